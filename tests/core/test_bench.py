"""bench: equal results come before any timing; what is timed is what is named; what takes too long is said."""

import contextlib
import io
import json
import math
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from hybridna_core import context_lengths, peer_passes, slow_ways, timing
from hybridna_core.bench_plot import draw_bench, list_panels
from hybridna_core.commands.bench import bench
from hybridna_core.config import preset
from hybridna_core.context_lengths import Point
from hybridna_core.errors import GuardError, SystemFault, UsageError
from hybridna_core.model.hybrid import HybridLM, count_parameters
from hybridna_core.model.likelihood import read
from hybridna_kernels import cpu, dispatch

SIZES = {"hidden_size": 64, "layers": 2, "state_size": 16, "repeats": 1}
SMALL = {**SIZES, "lengths": (33,)}
# The tasks of our own beside a slow way, small.
OWN = {"score": {"lengths": (128,)}, "embed": {"lengths": (50, 70), "count": 3}, "beam": {"lengths": (5,), "count": 7}}


def consistent(row):
    assert row.peaks is None or min(row.peaks) >= 0
    for seconds in (row.hybridna, row.other):
        assert 0 < seconds[1] <= seconds[0] <= seconds[2]
    assert row.ratio == row.other[0] / row.hybridna[0] and row.per_second == row.count / row.hybridna[0]


@pytest.mark.parametrize("task", ["forward", "train"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_both_agree_and_are_timed(task, precision):
    pytest.importorskip("transformers")
    # Three of each: one alone, at such a size, is as long as what else the machine does.
    found = bench(task=task, precision=precision, **{**SMALL, "repeats": 3})
    (one,) = found.rows
    assert (found.task, found.precision, found.state_size, one.tokens) == (task, precision, 16, 33)
    assert one.difference < (1e-4 if precision == "fp32" else 0.05)
    assert (precision == "bf16") == (one.difference > 1e-4)
    consistent(one)
    assert 0 < one.products < one.hybridna[2]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_mixer_agrees_and_is_timed(precision):
    pytest.importorskip("transformers")
    (one,) = bench(task="mixer", precision=precision, **{**SMALL, "lengths": (1100,)}).rows
    assert one.tokens == one.count == 1100
    assert one.difference < (1e-5 if precision == "fp32" else 0.05)
    assert (precision == "bf16") == (one.difference > 1e-4)
    consistent(one)


@pytest.mark.skipif(cpu.refuse() is not None, reason="no C++ kernels here")
def test_a_share_of_what_registers_alone_give(monkeypatch):
    pytest.importorskip("transformers")
    assert cpu.multiply_add(10) == 10 * cpu.multiply_add(1) > 0
    monkeypatch.setattr(peer_passes, "PEAK_ROUNDS", 1 << 16)
    (one,) = bench(**SMALL).rows
    assert 0 < one.peak_share < 1
    assert all(
        bench(**{**SMALL, **change}).rows[0].peak_share is None for change in ({"task": "train"}, {"precision": "bf16"})
    )
    monkeypatch.setattr(cpu, "refuse", lambda *tensors: "no compiler")
    assert peer_passes.find_share(1, one, [1.0]) is None


@pytest.mark.parametrize("task,what", [("forward", "logits"), ("train", "gradients")])
def test_nothing_is_timed_when_results_differ(monkeypatch, task, what):
    pytest.importorskip("transformers")
    honest = peer_passes.bamba_twin

    def spoilt(model, transformers):
        twin = honest(model, transformers)
        twin.lm_head.weight.data *= 2
        return twin

    monkeypatch.setattr(peer_passes, "bamba_twin", spoilt)
    with pytest.raises(GuardError, match=f"{what} differ by"):
        bench(task=task, **SMALL)


@pytest.mark.parametrize(
    "change",
    [
        {"task": "sleep"}, {"precision": "fp8"}, {"hidden_size": 100}, {"hidden_size": 0}, {"repeats": 0},
        {"limit": 0, "task": "lengths"}, {"count": 3}, {"count": 0, "task": "embed"},
        {"task": "embed", "precision": "bf16"}, {"task": "score", "lengths": (127,)}, {"plot": "x.pdf"},
        {"task": "beam", "count": 10**9}, {"task": "embed", "device": "cuda"}, {"task": "mixer", "device": "cuda:1"},
        {"task": "lengths", "precision": "bf16"}, {"device": "tpu"},
    ],
    ids=lambda change: " ".join(f"{name}={value}" for name, value in change.items()),
)  # fmt: skip
def test_what_cannot_be_timed(change):
    with pytest.raises(UsageError):
        bench(**{**SMALL, **change})


@pytest.mark.parametrize("task", OWN)
def test_own_tasks_beside_a_slow_way(task):
    found = bench(task=task, **SIZES, **OWN[task])
    # With a compiler, whole blocks are read in one call too.
    assert found.to_dict()["rows"] and set(found.kernels) - {"product", "mamba_block", "attention_block"} == {
        "ssd_scan", "ssd_step", "causal_conv1d", "attention", "gated_rms_norm",
    }  # fmt: skip
    assert found.device == "cpu"
    for row in found.rows:
        consistent(row)
    cases = {
        "score": [(case[0], 128, n) for case, n in zip(slow_ways.SCORE_CASES, (12, 48, 48), strict=True)],
        "embed": [("", 50, 3), ("", 70, 3)],
        "beam": [("whole step", 5, 7), ("state update of a layer", 5, 7)],
    }
    assert [(row.case, row.tokens, row.count) for row in found.rows] == cases[task]


def spoil_pass(*arguments):
    found, tokens = HONEST_PASS(*arguments)
    return found + 1e-3, tokens


HONEST_PASS = slow_ways.pass_twice


@contextlib.contextmanager
def spoil_kernels(text):
    """Round the factors of products, which no other way of summing explains."""
    from hybridna_kernels.gemm import bf16_products

    with bf16_products():
        yield


@pytest.mark.parametrize(
    "task,name,spoilt,what",
    [
        ("score", "pass_twice", spoil_pass, "scores"),
        ("embed", "forced_kernels", spoil_kernels, "vectors"),
        ("beam", "forced_kernels", spoil_kernels, "states"),
    ],
)
def test_own_tasks_are_not_timed_when_results_differ(monkeypatch, task, name, spoilt, what):
    monkeypatch.setattr(slow_ways, name, spoilt)
    monkeypatch.setattr(slow_ways, "take_turns", None)
    with pytest.raises(GuardError, match=f"{what} differ by"):
        bench(task=task, **SIZES, **OWN[task])


def test_the_slow_ways_are_slow(monkeypatch):
    """The other way runs plain torch, and ours does not."""
    asked = []
    honest = slow_ways.dispatch.run
    monkeypatch.setattr(slow_ways, "take_turns", lambda functions, repeats: [[(f(), 1.0)[1]] for f in functions])

    def run(op, *args, **kwargs):
        asked.append((op, os.environ.get("HYBRIDNA_KERNELS")))
        return honest(op, *args, **kwargs)

    def read_blocks(*args):
        asked.append(("read_blocks", os.environ.get("HYBRIDNA_KERNELS")))
        return whole(*args)

    whole = cpu.read_blocks
    monkeypatch.setattr(slow_ways.dispatch, "run", run)
    monkeypatch.setattr(cpu, "read_blocks", read_blocks)
    monkeypatch.delenv("HYBRIDNA_KERNELS", raising=False)
    bench(task="embed", **SIZES, lengths=(50,), count=2)
    # Compared, measured and timed once each: ours, the other, ours, the other, ours, the other.
    order = [text for i, (_, text) in enumerate(asked) if i == 0 or asked[i - 1][1] != text]
    assert order == [None, "reference"] * 3
    asked.clear()
    bench(task="beam", **SIZES, lengths=(5,), count=3)
    assert {text for op, text in asked if op == "ssd_step"} == {None, "ssd_step=reference"}
    assert "HYBRIDNA_KERNELS" not in os.environ


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="the system tells no peak that can be reset")
def test_peaks_are_those_of_each_function():
    def take(size):
        return lambda: np.ones(size << 20, dtype=np.uint8).sum()

    small, large, again = timing.take_peaks([take(10), take(100), take(10)])
    assert small == pytest.approx(10 << 20, rel=0.3) and large == pytest.approx(100 << 20, rel=0.1)
    assert again == pytest.approx(10 << 20, rel=0.3)


def test_kernels_asked_for_stay_asked_for(monkeypatch):
    monkeypatch.setenv("HYBRIDNA_KERNELS", "attention=sdpa")
    with timing.forced_kernels("ssd_step=reference"):
        assert os.environ["HYBRIDNA_KERNELS"] == "attention=sdpa,ssd_step=reference"
    assert os.environ["HYBRIDNA_KERNELS"] == "attention=sdpa"


def test_turns_are_taken():
    order = []
    seconds = timing.take_turns([lambda: order.append("a"), lambda: order.append("b")], 3)
    assert order == ["a", "b"] * 3 and [len(taken) for taken in seconds] == [3, 3]
    row = timing.make_timing("x", 5, 6, [[3.0, 1.0, 2.0], [4.0, 9.0, 5.0], [0.5, 0.25, 0.75]], 0.1)
    assert row == ("x", 5, 6, (2.0, 1.0, 3.0), (5.0, 4.0, 9.0), 2.5, 3.0, 0.1, 0.5, None, None)


# Context lengths


def test_both_models_have_as_many_parameters():
    models = context_lengths.make_models(preset("tiny"))
    assert models["hybrid"] == preset("tiny") and set(models["transformer"].layer_types) == {"attention"}
    one_wider = 3 * 128 * 8
    sizes = [count_parameters(config) for config in models.values()]
    assert abs(sizes[0] - sizes[1]) <= one_wider / 2


def test_lengths_of_a_small_model():
    found = bench(task="lengths", **SIZES, lengths=(80, 40))
    assert [(p.model, p.tokens, p.status, p.passes) for p in found.rows] == [
        ("hybrid", 40, "ok", 1), ("transformer", 40, "ok", 1), ("hybrid", 80, "ok", 1), ("transformer", 80, "ok", 1),
    ]  # fmt: skip
    for hybrid, transformer in (found.rows[:2], found.rows[2:]):
        assert hybrid.ratio == transformer.seconds[0] / hybrid.seconds[0] and transformer.ratio is None
        assert hybrid.tokens_per_second == hybrid.tokens / hybrid.seconds[0]
        # A process with torch in it takes more than 50 MiB, and a pass over 80 tokens much less.
        assert hybrid.peak_bytes is None or hybrid.peak_bytes < 50 * 2**20 < hybrid.resident


def test_peak_is_that_of_the_pass(monkeypatch):
    """Reading that takes 200 MiB for a while is found to take as much."""

    def hungry(model, tokens, segment=None):
        torch.ones(200 * 2**18)
        return read(model, tokens)[0]

    monkeypatch.setattr(context_lengths, "read_all", hungry)
    found = context_lengths.measure(preset("tiny"), 20, 2, until=0)
    if found["peak"] is None:
        pytest.skip("the system does not say")
    # Linux counts pages in batches, 128 KiB a processor and more, and a peak that is over is known no better: a mapping
    # of 8 MiB, filled and closed, leaves one that is 120 to 250 KiB short (two processors, Linux 6.18).
    assert 199 * 2**20 <= found["peak"] < 300 * 2**20 and found["resident"] > found["peak"]
    assert len(found["seconds"]) == 1, "the time is over, so one pass must do"


def test_what_takes_too_long_is_skipped_from_there_on(monkeypatch):
    def run(command, timeout, **kwargs):
        job = json.loads(command[-1])
        is_hybrid = "mamba" in job["config"]["layer_types"]
        if not is_hybrid and job["tokens"] == 20:
            raise subprocess.TimeoutExpired(command, timeout)
        if is_hybrid and job["tokens"] == 30:
            return subprocess.CompletedProcess(command, -9, "", "")
        out = f"words\n{json.dumps({'seconds': [2.0, 1.0, 4.0], 'peak': 5, 'resident': 6})}\n"
        return subprocess.CompletedProcess(command, 0, out, "")

    monkeypatch.setattr(context_lengths.subprocess, "run", run)
    found = bench(task="lengths", **SIZES, lengths=(10, 20, 30, 40), limit=7)
    assert [(p.model, p.tokens, p.status) for p in found.rows] == [
        ("hybrid", 10, "ok"), ("transformer", 10, "ok"),
        ("hybrid", 20, "ok"), ("transformer", 20, "over the limit of 7 s"),
        ("hybrid", 30, "killed by the system, out of memory"),
        ("transformer", 30, "skipped: 20 tokens were over the limit of 7 s"),
        ("hybrid", 40, "skipped: 30 tokens were killed by the system, out of memory"),
        ("transformer", 40, "skipped: 20 tokens were over the limit of 7 s"),
    ]  # fmt: skip
    assert found.rows[0][3:] == ((2.0, 1.0, 4.0), 3, 5.0, 1.0, 5, 6) and found.rows[2].ratio is None
    speed, memory = list_panels(found)
    assert [c.label for c in speed[1]] == [
        "hybrid (from 30 tokens on: killed by the system, out of memory)",
        "transformer (from 20 tokens on: over the limit of 7 s)",
    ]
    assert (speed[1][0].x, speed[1][0].y, speed[1][0].spread) == ([10, 20], [5.0, 10.0], [(2.5, 5.0), (5.0, 10.0)])
    assert memory[1][1].y == [5 / 2**20]


def test_a_limit_ends_the_process():
    point = context_lengths.measure_apart("hybrid", preset("tiny"), 131_072, 1, 0.05)
    assert point == Point("hybrid", 131_072, "over the limit of 0.05 s")


def test_a_process_that_fails_says_why(monkeypatch):
    monkeypatch.setenv("HYBRIDNA_KERNELS", "attention=no")
    with pytest.raises(SystemFault, match="no backend 'attention=no'"):
        context_lengths.measure_apart("hybrid", preset("tiny"), 10, 1, 500)


def test_lengths_are_not_measured_when_kernels_are_wrong(monkeypatch):
    honest = context_lengths.read_all
    monkeypatch.setattr(context_lengths, "measure_apart", None)
    monkeypatch.setattr(
        context_lengths, "read_all", lambda model, tokens, segment=None: honest(model, tokens, segment) + bool(segment)
    )
    with pytest.raises(GuardError, match="hybrid, 40 tokens: log-probabilities differ by"):
        bench(task="lengths", **SIZES, lengths=(40, 50))


@pytest.mark.parametrize("asked", [None, "attention=reference"])
def test_attention_of_the_transformer_is_torchs_unless_asked(monkeypatch, asked):
    monkeypatch.delenv("HYBRIDNA_KERNELS", raising=False)
    if asked:
        monkeypatch.setenv("HYBRIDNA_KERNELS", asked)
    assert context_lengths.kernels_of("transformer") == (asked or "attention=sdpa")
    assert context_lengths.kernels_of("hybrid") == (asked or "")


# A CUDA device, which the CPU stands in for


class OnCpu(TorchFunctionMode):
    """Within the block, tensors asked for on a CUDA device come to lie on the CPU."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        def swap(value):
            is_device = func is not torch.device and isinstance(value, torch.device | str)
            return "cpu" if is_device and str(value).startswith("cuda") else value

        return func(*map(swap, args), **{name: swap(value) for name, value in (kwargs or {}).items()})


class StandIn:
    """What torch.cuda says: work is done when it is waited for, and memory is what a test says that it takes."""

    def __init__(self):
        self.calls, self.now, self.queued, self.held, self.most = [], 0.0, 0.0, 3 << 20, 50 << 20

    def synchronize(self, device=None):
        self.now, self.queued = self.now + self.queued, 0.0
        self.calls.append("wait")

    def reset_peak_memory_stats(self, device=None):
        self.most = self.held

    def take(self, size):
        self.most = max(self.most, self.held + size)

    def queue(self, seconds):
        self.queued += seconds


@pytest.fixture
def cuda(monkeypatch):
    stand_in, autocast = StandIn(), torch.autocast

    def cast(device_type, *args, enabled=True, **kwargs):
        if device_type == "cuda":
            stand_in.calls.append(("cast", enabled))
            stand_in.take(7 << 20)
        return autocast("cpu", *args, enabled=enabled, **kwargs)

    def report(device, dtype):
        stand_in.calls.append(("report", str(device), dtype))
        return [("ssd_scan", "triton", "in use"), ("ssd_scan", "chunked", "usable")]

    for name, function in {
        "is_available": lambda: True, "device_count": lambda: 1, "get_device_name": lambda device: "a GPU",
        "synchronize": stand_in.synchronize, "reset_peak_memory_stats": stand_in.reset_peak_memory_stats,
        "memory_allocated": lambda device: stand_in.held, "max_memory_allocated": lambda device: stand_in.most,
        "empty_cache": lambda: stand_in.calls.append("empty"),
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, function)
    monkeypatch.setattr(torch, "autocast", cast)
    monkeypatch.setattr(dispatch, "report", report)
    monkeypatch.setattr(HybridLM, "device", property(lambda model: torch.device("cuda")))
    with OnCpu():
        yield stand_in


def test_a_device_is_waited_for_before_the_clock_is_read(monkeypatch, cuda):
    monkeypatch.setattr(time, "perf_counter", lambda: cuda.now)
    cuda.queue(5.0)
    turns = timing.take_turns([lambda: cuda.queue(2.0), lambda: cuda.queue(3.0)], 2, torch.device("cuda"))
    assert turns == [[2.0, 2.0], [3.0, 3.0]]
    monkeypatch.setattr(context_lengths, "read_all", lambda model, tokens: cuda.queue(tokens.shape[1]))
    assert context_lengths.measure(preset("tiny"), 20, 2, math.inf, "cuda")["seconds"] == [20.0, 20.0]


@pytest.mark.parametrize("device, first", [("cpu", 10), ("cuda", 20)])
def test_a_device_is_warm_for_the_whole_length(monkeypatch, cuda, device, first):
    read = []
    monkeypatch.setattr(HybridLM, "segment", 5)
    monkeypatch.setattr(context_lengths, "read_all", lambda model, tokens: read.append(tokens.shape[1]))
    context_lengths.measure(preset("tiny"), 20, 2, math.inf, device)
    assert read == [first, 20, 20]


def test_peaks_of_a_device_are_those_of_each_function(cuda):
    functions = [lambda size=size: cuda.take(size) for size in (10, 100, 10)]
    assert timing.take_peaks(functions, torch.device("cuda")) == (10, 100, 10)


@pytest.mark.parametrize("task", ["forward", "train"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_passes_on_a_device(monkeypatch, cuda, task, precision):
    pytest.importorskip("transformers")
    twins, honest = [], peer_passes.bamba_twin
    monkeypatch.setattr(peer_passes, "bamba_twin", lambda *args: (twins.append(honest(*args)), twins[-1])[1])
    found = bench(task=task, device="cuda", precision=precision, **SMALL)
    (one,) = found.rows
    assert (found.device, found.kernels) == ("a GPU", {"ssd_scan": "triton"})
    assert one.products is None and one.peak_share is None and one.peaks == (7 << 20, 7 << 20)
    consistent(one)
    assert one.difference < (1e-4 if precision == "fp32" else 0.05)
    rounded = precision == "bf16"
    assert rounded == (one.difference > 1e-4)
    # Both ways: weights where they are not trained, else under autocast.
    weights = torch.bfloat16 if rounded and task == "forward" else torch.float32
    assert {p.dtype for p in twins[0].parameters()} == {weights}
    assert {call for call in cuda.calls if call[0] == "cast"} == {("cast", rounded and task == "train")}
    # Compared, measured and timed.
    assert sum(call[0] == "cast" for call in cuda.calls) == 6 and cuda.calls.count("wait") == 4
    assert cuda.calls[-1] == ("report", "cuda", torch.bfloat16 if rounded else torch.float32)


def test_both_ways_rounded_may_differ_by_twice_as_much(monkeypatch, cuda):
    pytest.importorskip("transformers")
    limits = []
    monkeypatch.setattr(peer_passes, "check_equal", lambda what, ours, others, limit, where: limits.append(limit) or 0)
    for precision in ("fp32", "bf16"):
        bench(device="cuda", precision=precision, **SMALL)
    assert limits == [1e-3, 0.2]


def test_lengths_on_a_device_end_where_its_memory_does(monkeypatch, cuda):
    honest, dtypes = context_lengths.read_all, set()

    def read_some(model, tokens, segment=None):
        dtypes.add(model.dtype)
        if set(model.config.layer_types) == {"attention"} and tokens.shape[1] > 40:
            raise torch.OutOfMemoryError("CUDA out of memory")
        cuda.take(7 << 20)
        return honest(model, tokens, segment)

    def run(command, **kwargs):
        cuda.calls.append("process")
        monkeypatch.setattr(sys, "argv", command[-2:])
        with contextlib.redirect_stdout(io.StringIO()) as out:
            context_lengths.main()
        return subprocess.CompletedProcess(command, 0, out.getvalue(), "")

    monkeypatch.setattr(context_lengths, "read_all", read_some)
    monkeypatch.setattr(context_lengths.subprocess, "run", run)
    found = bench(task="lengths", device="cuda", precision="bf16", **SIZES, lengths=(40, 80, 120))
    assert [(p.model, p.tokens, p.status) for p in found.rows] == [
        ("hybrid", 40, "ok"), ("transformer", 40, "ok"),
        ("hybrid", 80, "ok"), ("transformer", 80, "out of memory"),
        ("hybrid", 120, "ok"), ("transformer", 120, "skipped: 80 tokens were out of memory"),
    ]  # fmt: skip
    assert {(p.peak_bytes, p.resident) for p in found.rows if p.status == "ok"} == {(7 << 20, 10 << 20)}
    assert dtypes == {torch.bfloat16} and (found.device, found.precision) == ("a GPU", "bf16")
    assert cuda.calls.count("empty") == 1 and cuda.calls.index("empty") < cuda.calls.index("process")
    labels = [curve.label for curve in list_panels(found)[0][1]]
    assert labels == ["hybrid", "transformer (from 80 tokens on: out of memory)"]


@pytest.mark.parametrize("precision, limit", [("fp32", 1e-3), ("bf16", 0.1)])
def test_lengths_on_a_device_are_not_measured_when_kernels_are_wrong(monkeypatch, cuda, precision, limit):
    def answer(model, tokens, segment=None):
        return torch.full(tokens.shape, error * limit if segment else 0.0)

    monkeypatch.setattr(context_lengths, "read_all", answer)
    error = 0.9
    context_lengths.check_model("hybrid", preset("tiny"), 40, "cuda", precision)
    error = 1.1
    with pytest.raises(GuardError, match="log-probabilities differ by"):
        context_lengths.check_model("hybrid", preset("tiny"), 40, "cuda", precision)


@pytest.mark.parametrize("change", [{}, {"task": "train"}, {"task": "lengths", "precision": "bf16"}])
def test_a_device_that_is_not_there(monkeypatch, change):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemFault, match="no device cuda"):
        bench(**{**SMALL, **change}, device="cuda")


def test_a_device_found_by_itself_is_refused_too(cuda):
    with pytest.raises(UsageError) as error:
        bench(task="embed", device="auto", **SMALL)
    assert error.value.where == "--device"


# The picture


def test_title_says_what_the_rows_were_taken_on(monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    titles = []
    monkeypatch.setattr(Figure, "suptitle", lambda figure, text, **kwargs: titles.append(text.splitlines()[0]))
    point = Point("hybrid", 40, "ok", (1.0, 1.0, 1.0), 1, 40.0, None, 2**20, 2**21)
    monkeypatch.setattr(context_lengths, "time_lengths", lambda *_: [point])
    found = bench(task="lengths", **SIZES)._replace(threads=5, versions={"torch": "2"})
    draw_bench(found, tmp_path / "cpu.png")
    draw_bench(found._replace(device="a GPU", precision="bf16"), tmp_path / "gpu.png")
    assert titles == [f"hybridna bench --task lengths, {what}, torch 2" for what in ("threads: 5", "a GPU, bf16")]


@pytest.mark.parametrize("task", ["embed", "lengths"])
def test_picture(tmp_path, monkeypatch, task):
    pytest.importorskip("matplotlib")

    def make_point(name, config, length, *_):
        seconds = length * (2.0 if name == "hybrid" else 3.0)
        return Point(name, length, "ok", (seconds, seconds, seconds), 1, length / seconds, None, 2**20, 2**21)

    monkeypatch.setattr(context_lengths, "measure_apart", make_point)
    from matplotlib.image import imread

    path = tmp_path / "bench.png"
    bench(task=task, **SIZES, lengths=(40, 20), plot=path, **({"count": 2} if task == "embed" else {}))
    pixels = imread(path)
    assert pixels.shape[1] == (832 if task == "embed" else 1664)
    # Both lines are there: the first two colours of `plots.COLOURS`.
    for colour in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)):
        assert (np.abs(pixels[..., :3] * 255 - colour).max(axis=-1) < 2).sum() > 50
    with pytest.raises(UsageError, match="exists already"):
        bench(task=task, **SIZES, lengths=(40,), plot=path)
