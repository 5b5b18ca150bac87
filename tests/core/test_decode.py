"""Recorded steps against steps one by one: on CPU with the step itself in the recording's place, and on a GPU."""

import contextlib

import numpy as np
import pytest
import torch
from toys import random_model

from hybridna_core.constraints import compile_constraints, parse_constraints
from hybridna_core.model import decode
from hybridna_core.model.decode import StepGraph, make_graph
from hybridna_core.model.likelihood import read
from hybridna_core.search import Beams, Sampling, draw_block, search_beams
from hybridna_kernels import dispatch, graphs

KINDS = [("mamba", "attention", "mamba"), ("mamba",), ("attention",)]


@pytest.fixture
def recorded(monkeypatch):
    """Let steps be recorded on CPU: a recording is the step, run as often before as a capture would; count them."""
    made = []

    def record(step, device):
        for _ in range(graphs.WARM_UPS):
            step()
        made.append(step)
        return torch.no_grad()(step)

    monkeypatch.setattr(graphs, "wanted", lambda device: True)
    monkeypatch.setattr(graphs, "record", record)
    return made


def step_by_step(model, reading, ids, parents=None):
    for i, now in enumerate(ids):
        reading = reading if parents is None else reading.select(torch.from_numpy(parents[i]))
        reading = read(model, torch.from_numpy(now)[:, None], reading)[1]
    return reading


def equal(found, due, model):
    assert torch.allclose(found.logits, due.logits, rtol=0, atol=1e-10)
    tokens = torch.full((len(due.logits), 3), 8)
    torch.testing.assert_close(read(model, tokens, found)[0], read(model, tokens, due)[0], rtol=0, atol=1e-10)


@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize("moves", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_recorded_steps_are_steps(recorded, monkeypatch, kinds, moves, shared):
    monkeypatch.setattr(decode, "ROOM", 3)
    model = random_model(1, layer_types=kinds).double()
    generator = np.random.default_rng(0)
    _, before = read(model, torch.from_numpy(generator.integers(7, 11, (1 if shared else 5, 9))))
    before = before.repeat(5) if shared else before
    ids, parents = generator.integers(7, 11, (11, 5)), generator.integers(0, 5, (11, 5)) if moves else None
    graph = StepGraph(model, before, moves)
    for i, now in enumerate(ids):
        after = graph.append(now, None if parents is None else parents[i])
        due = step_by_step(model, before, ids[: i + 1], parents)
        assert torch.allclose(after.logits, due.logits, rtol=0, atol=1e-10)
    assert graph.reading().state.length == due.state.length == 20
    equal(graph.reading(), due, model)
    # Room for 3 tokens, then for twice as many as before; keys that rows have for themselves take some of it.
    assert len(recorded) == (2 if not shared and "attention" in kinds else 3)
    taken = graph.reading()
    graph.append(ids[0])
    equal(taken, due, model)


def test_another_reading_of_the_same_prompt(recorded):
    model = random_model(1, layer_types=KINDS[0]).double()
    prompt = read(model, torch.tensor([[2, 7, 8, 9, 10]]))[1]
    graph = make_graph(model, prompt.repeat(4))
    ids = np.random.default_rng(1).integers(7, 11, (6, 4))
    for now in ids[::-1]:
        graph.append(now)
    graph.load(prompt.repeat(4))
    for now in ids:
        graph.append(now)
    equal(graph.reading(), step_by_step(model, prompt.repeat(4), ids), model)
    assert len(recorded) == 1
    other = read(model, torch.tensor([[2, 7, 8, 9, 10]]))[1]
    with pytest.raises(ValueError, match="shared with others"):
        graph.load(other.repeat(4))


def test_draws_and_beams_are_the_same(recorded, monkeypatch):
    model = random_model(2, layer_types=KINDS[0])
    prompt = read(model, torch.tensor([[2, 7, 8]]))[1]
    found = draw_block(model, prompt, 12, 3, Sampling(seed=4), graph=make_graph(model, prompt.repeat(16)))
    due = draw_block(model, prompt, 12, 3, Sampling(seed=4))
    assert np.array_equal(found.ids, due.ids)
    np.testing.assert_allclose(found.log_probs, due.log_probs, atol=1e-4)
    # Constraints leave fewer than all beams at some steps.
    options = parse_constraints(None, 1, None, "NNNRNNNNNNSN", None)
    for automaton in (None, compile_constraints(options, "", 12)):
        recorded.clear()
        found = search_beams(model, prompt, 12, Beams(40), automaton)
        assert recorded
        with monkeypatch.context() as patch:
            patch.setattr(graphs, "wanted", lambda device: False)
            due = search_beams(model, prompt, 12, Beams(40), automaton)
        assert np.array_equal(found.ids, due.ids)
        np.testing.assert_allclose(found.log_probs, due.log_probs, atol=1e-4)


def test_many_rows_go_one_by_one(recorded, monkeypatch):
    model = random_model(2, layer_types=("mamba",))
    monkeypatch.setattr(decode, "MOST_ROWS", 3)
    prompt = read(model, torch.tensor([[2, 7, 8]]))[1]
    assert make_graph(model, prompt.repeat(3)) is not None and make_graph(model, prompt.repeat(4)) is None


def test_a_recording_is_warmed_up_beside_and_then_captured(monkeypatch):
    done = []

    class Stream:
        def wait_stream(self, other):
            done.append("wait")

    class Graph:
        def replay(self):
            done.append("replay")

    @contextlib.contextmanager
    def within(name):
        done.append(name)
        yield
        done.append(f"{name} ends")

    monkeypatch.setattr(torch.cuda, "device", lambda device: within("device"))
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: within("beside"))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: within("capture"))
    graphs.record(lambda: done.append("step"), torch.device("cuda"))()
    beside = ["wait", "beside", *["step"] * graphs.WARM_UPS, "beside ends", "wait"]
    assert done == ["device", *beside, "capture", "step", "capture ends", "device ends", "replay"]


def test_where_steps_are_recorded(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    monkeypatch.delenv("HYBRIDNA_KERNELS", raising=False)
    assert not graphs.wanted(cpu) and not graphs.wanted(cuda)
    assert "has not run on a GPU" in graphs.refuse(cuda)
    assert [row for row in dispatch.report() if row[0] == "decode"] == [("decode", "graph", "needs CUDA")]
    for text in ("decode=graph", "graph"):
        monkeypatch.setenv("HYBRIDNA_KERNELS", text)
        assert graphs.wanted(cuda)
        with pytest.raises(dispatch.KernelError, match="decode: backend 'graph' refuses: needs CUDA"):
            graphs.wanted(cpu)
    for text in ("decode=eager", "reference"):
        monkeypatch.setenv("HYBRIDNA_KERNELS", text)
        assert not graphs.wanted(cuda) and not graphs.wanted(cpu)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize("moves", [False, True])
def test_recorded_on_a_device(kinds, moves):
    model = random_model(1, layer_types=kinds).to("cuda")
    ids, parents = torch.randint(7, 11, (12, 5)).numpy(), torch.randint(5, (12, 5)).numpy()
    before = read(model, torch.randint(7, 11, (5, 9), device="cuda"))[1]
    graph, due = StepGraph(model, before, moves), before
    for now, parent in zip(ids, parents, strict=True):
        found = graph.append(now, parent if moves else None)
        due = due.select(torch.from_numpy(parent).to("cuda")) if moves else due
        due = read(model, torch.from_numpy(now)[:, None].to("cuda"), due)[1]
        torch.testing.assert_close(found.logits, due.logits, rtol=1e-4, atol=1e-4)
