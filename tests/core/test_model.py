"""The network and its state: chaining, Law 2, memory, initial weights."""

import itertools
import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridna_core.config import PRESETS, ModelConfig, preset
from hybridna_core.model.hybrid import HybridLM, count_parameters, flops_per_token
from hybridna_core.model.likelihood import read
from hybridna_core.model.state import MambaState, ModelState, bytes_per_row

CONFIG = ModelConfig(
    hidden_size=32, intermediate_size=48, layer_types=("mamba", "attention", "mamba"), num_attention_heads=4,
    num_key_value_heads=2, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=16, max_position_embeddings=4096,
)  # fmt: skip


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = HybridLM(CONFIG, dtype=torch.float64).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.requires_grad_(False)


def tokens_of(batch, length, seed=0):
    return torch.randint(7, 11, (batch, length), generator=torch.Generator().manual_seed(seed))


def same(found, due, tolerance=1e-10):
    for a, b in zip(found.layers, due.layers, strict=True):
        for x, y in zip(a, b, strict=True):
            if y is not None:
                assert float((x - y).abs().max()) <= tolerance * max(1.0, float(y.abs().max()))


@settings(max_examples=60, deadline=None)
@given(cuts=st.lists(st.integers(1, 299), max_size=12, unique=True), batch=st.integers(1, 3))
def test_law_1_any_split_gives_the_same_outputs_and_state(model, cuts, batch):
    tokens = tokens_of(batch, 300)
    due, due_state = model(tokens)
    state, parts = None, []
    edges = [0, *sorted(cuts), 300]
    for start, end in itertools.pairwise(edges):
        hidden, state = model(tokens[:, start:end], state)
        parts.append(hidden)
    assert float((torch.cat(parts, 1) - due).abs().max()) < 1e-10
    assert state.length == due_state.length == 300
    same(state, due_state)


def test_law_1_token_by_token(model):
    tokens = tokens_of(2, 150)
    due, due_state = model(tokens)
    state, parts = None, []
    for t in range(150):
        hidden, state = model(tokens[:, t : t + 1], state)
        parts.append(hidden)
    assert float((torch.cat(parts, 1) - due).abs().max()) < 1e-10
    same(state, due_state)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 5), rows=st.lists(st.integers(0, 4), min_size=1, max_size=8), split=st.integers(1, 99))
def test_law_2_repeat_select_and_snapshot_never_change_a_number(model, n, rows, split):
    prefix, suffixes = tokens_of(1, split), tokens_of(n, 40, seed=1)
    _, state = model(prefix)
    kept = state.snapshot()
    shared, shared_state = model(suffixes, state.repeat(n))
    due, due_state = model(torch.cat([prefix.expand(n, -1), suffixes], 1))
    assert float((shared - due[:, split:]).abs().max()) < 1e-10
    rows = torch.tensor([r % n for r in rows])
    more = tokens_of(len(rows), 7, seed=2)
    found, _ = model(more, shared_state.select(rows))
    due, _ = model(more, due_state.select(rows))
    assert float((found - due).abs().max()) < 1e-10
    after, _ = model(suffixes[:1], kept)
    assert torch.equal(after, model(suffixes[:1], state)[0])


def test_repeat_of_several_rows_keeps_them_adjacent(model):
    prefixes, suffix = tokens_of(2, 30), tokens_of(6, 9, seed=3)
    _, state = model(prefixes)
    found, _ = model(suffix, state.repeat(3))
    due, _ = model(torch.cat([prefixes.repeat_interleave(3, 0), suffix], 1))
    assert float((found - due[:, 30:]).abs().max()) < 1e-10


def test_a_shared_prefix_is_stored_once(model):
    _, state = model(tokens_of(1, 200))
    grown = state.repeat(50)
    mamba = [layer for layer in state.layers if isinstance(layer, MambaState)]
    # Of 49 more rows each layer keeps the convolution's inputs, and of all 50 whose recurrent state is theirs.
    assert grown.nbytes == state.nbytes + sum(49 * layer.conv.nbytes + 50 * 8 for layer in mamba)
    assert all(new.ssm is old.ssm for new, old in zip(grown.layers, state.layers, strict=True) if hasattr(new, "ssm"))
    _, after = model(tokens_of(50, 1), grown)
    assert after.nbytes > 50 * sum(layer.ssm.nbytes for layer in mamba)


def test_rows_chosen_over_and_over_are_those_chosen_at_once(model):
    _, state = model(tokens_of(4, 30))
    first, second = torch.tensor([3, 3, 0, 1, 2]), torch.tensor([4, 0, 0, 2])
    more = tokens_of(4, 5)
    found, last = model(more, state.select(first).select(second))
    due, due_last = model(more, state.select(first[second]))
    assert torch.equal(found, due)
    assert all(torch.equal(a, b) for a, b in zip(last.layers[0][:2], due_last.layers[0][:2], strict=True))
    assert torch.equal(state.select(first).snapshot().layers[0].ssm, state.layers[0].ssm[first])
    with pytest.raises(IndexError):
        state.select(torch.tensor([4]))


def test_bytes_per_row_counts_the_state_itself():
    model = HybridLM(CONFIG)
    with torch.no_grad():
        _, state = model(tokens_of(3, 40))
    assert 3 * bytes_per_row(CONFIG, 40) == state.nbytes
    assert ModelState.start(CONFIG, 3).nbytes == 3 * bytes_per_row(CONFIG, 0)


def test_segments_change_nothing(model, monkeypatch):
    tokens = tokens_of(2, 300)
    due, due_state = model(tokens)
    monkeypatch.setattr("hybridna_core.model.hybrid.CPU_SEGMENT", 64)
    found, state = model(tokens)
    assert float((found - due).abs().max()) < 1e-10
    same(state, due_state)


def test_presets_have_the_published_sizes():
    totals = {name: count_parameters(preset(name)) for name in PRESETS}
    assert totals["300m"] == 297_534_688
    assert totals["3b"] == 3_119_400_960
    assert totals["7b"] == 6_253_397_504
    assert 1_500_000 < totals["tiny"] < 1_800_000


def test_attention_stands_at_four_of_every_eight():
    for name, positions in {"300m": [4, 12, 20], "3b": [4, 12], "7b": [4, 12, 20, 28], "tiny": [4]}.items():
        kinds = preset(name).layer_types
        assert [i for i, kind in enumerate(kinds) if kind == "attention"] == positions


def test_flops_are_about_two_per_weight_and_token():
    config = preset("300m")
    assert flops_per_token(config, 1) == pytest.approx(2 * count_parameters(config), rel=0.1)


def test_initial_weights_follow_the_stated_rule_and_the_seed():
    config = preset("tiny")
    state = HybridLM(config, seed=3).state_dict()
    again = HybridLM(config, seed=3).state_dict()
    other = HybridLM(config, seed=4).state_dict()
    assert all(torch.equal(state[k], again[k]) for k in state)
    assert not torch.equal(state["lm_head.weight"], other["lm_head.weight"])
    assert state["model.layers.0.mamba.in_proj.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    residual = state["model.layers.0.mamba.out_proj.weight"].std().item()
    assert residual == pytest.approx(0.02 / math.sqrt(16), rel=0.05)
    decay = torch.cat([v.exp() for k, v in state.items() if k.endswith("A_log")])
    assert decay.min() >= 1 and decay.max() <= 16
    steps = torch.cat([torch.nn.functional.softplus(v) for k, v in state.items() if k.endswith("dt_bias")])
    assert steps.min() + 1e-6 >= 0.001 and steps.max() <= 0.1 + 1e-6
    assert all(v.eq(1).all() for k, v in state.items() if k.endswith(("norm.weight", "mamba.D")))


def test_bfloat16_keeps_the_recurrence_in_float32():
    model = HybridLM(preset("tiny"), dtype=torch.bfloat16)
    kinds = {name.rsplit(".", 1)[-1] if "weight" not in name else name: p.dtype for name, p in model.named_parameters()}
    assert kinds["A_log"] == kinds["D"] == kinds["dt_bias"] == torch.float32
    with torch.no_grad():
        hidden, state = model(tokens_of(1, 70))
    assert hidden.dtype == torch.bfloat16 and state.layers[0].ssm.dtype == torch.float32
    assert model.head(hidden).dtype == torch.float32


def test_a_tied_head_is_the_embedding():
    from dataclasses import replace

    model = HybridLM(replace(CONFIG, tie_word_embeddings=True))
    assert model.lm_head.weight is model.model.embed_tokens.weight


PEAK = """
import resource, sys, torch
from hybridna_core.config import preset
from hybridna_core.model.hybrid import HybridLM
from hybridna_core.model.likelihood import read
tokens = torch.randint(7, 11, (1, int(sys.argv[1])), generator=torch.Generator().manual_seed(0))
log_probs, reading = read(HybridLM(preset("tiny")), tokens)
assert log_probs.shape == tokens.shape and reading.state.length == tokens.shape[1]
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""


def peak_gib(length):
    done = subprocess.run([sys.executable, "-c", PEAK, str(length)], capture_output=True, text=True, check=True)
    return float(done.stdout)


def test_memory_hardly_grows_with_length():
    assert peak_gib(12_288) - peak_gib(4_096) < 0.1


@pytest.mark.slow
def test_131072_tokens_through_tiny_stay_below_2_gib():
    assert peak_gib(131_072) < 2.0


def test_reading_on_equals_reading_at_once(model):
    tokens = tokens_of(2, 100)
    whole, reading = read(model, tokens)
    first, middle = read(model, tokens[:, :37])
    second, last = read(model, tokens[:, 37:], middle, segment=10)
    assert float((torch.cat([first, second], 1) - whole).abs().max()) < 1e-10
    assert float((last.logits - reading.logits).abs().max()) < 1e-10
