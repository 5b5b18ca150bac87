"""Our network against an independent one: transformers' Bamba with the same weights and no position code.

random Bamba -> its state dict, under the same names -> HybridLM -> logits of both, in one pass and with a cache
"""

import pytest
import torch
from bamba import make_bamba
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hybridna_core.config import PRESETS, ModelConfig, layer_pattern
from hybridna_core.model.hybrid import HybridLM, count_parameters

TOLERANCE = 1e-4
PLACES = {"max_position_embeddings": 4096}
SHAPES = {
    "toy": ModelConfig(32, 48, ("mamba", "attention", "mamba"), 4, 2, mamba_n_heads=4, mamba_d_state=8,
                       mamba_d_head=16, **PLACES),
    "published pattern": ModelConfig(64, 128, layer_pattern(14), 8, 2, mamba_n_heads=4, mamba_d_state=16,
                                     mamba_d_head=32, **PLACES),
    "state above head_dim": ModelConfig(64, 96, layer_pattern(6), 4, 1, mamba_n_heads=8, mamba_d_state=64,
                                        mamba_d_head=16, **PLACES),
    "odd widths": ModelConfig(48, 80, ("attention", "mamba", "mamba"), 6, 3, mamba_n_heads=3, mamba_d_state=24,
                              mamba_d_head=32, **PLACES),
    "tied, more rows": ModelConfig(32, 64, layer_pattern(5), 2, 2, mamba_n_heads=2, mamba_d_state=32,
                                   mamba_d_head=32, vocab_size=19, tie_word_embeddings=True, **PLACES),
    "tiny": PRESETS["tiny"],
}  # fmt: skip


@pytest.fixture(scope="module", params=SHAPES)
def pair(request):
    """A Bamba and a HybridLM that hold the same weights."""
    config = SHAPES[request.param]
    oracle = make_bamba(config)
    model = HybridLM(config).requires_grad_(False).eval()
    model.load_state_dict(oracle.state_dict(), strict=True)
    return oracle, model


def tokens_of(model, batch, length, seed=0):
    return torch.randint(0, model.config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed))


def difference(a, b):
    return float((a - b).abs().max())


@pytest.mark.parametrize("length", [1, 2, 3, 15, 16, 17, 63, 64, 65, 200])
def test_logits_are_equal(pair, length):
    oracle, model = pair
    tokens = tokens_of(model, 2, length)
    expected = oracle(tokens).logits
    assert expected.std() > 0.1, "an oracle that says nothing proves nothing"
    assert difference(model.head(model(tokens)[0]), expected) < TOLERANCE


def test_long_input_over_several_segments(pair):
    oracle, model = pair
    tokens = tokens_of(model, 1, 700)
    expected = oracle(tokens).logits
    state, parts = None, []
    for part in tokens.split(256, dim=1):
        hidden, state = model(part, state)
        parts.append(model.head(hidden))
    assert difference(torch.cat(parts, dim=1), expected) < TOLERANCE


def test_decoding_token_by_token(pair):
    oracle, model = pair
    tokens = tokens_of(model, 2, 40)
    state, parts = None, []
    for i in range(tokens.shape[1]):
        hidden, state = model(tokens[:, i : i + 1], state)
        parts.append(model.head(hidden))
    assert difference(torch.cat(parts, dim=1), oracle(tokens).logits) < TOLERANCE


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=st.lists(st.integers(1, 40), min_size=2, max_size=7), seed=st.integers(0, 99))
def test_reading_in_odd_pieces(pair, pieces, seed):
    oracle, model = pair
    tokens = tokens_of(model, 1, sum(pieces), seed)
    state, parts = None, []
    for part in tokens.split(pieces, dim=1):
        hidden, state = model(part, state)
        parts.append(model.head(hidden))
    assert difference(torch.cat(parts, dim=1), oracle(tokens).logits) < TOLERANCE


def test_cached_decoding_of_both(pair):
    """A prefill of 50 tokens, then 20 single steps, each side with its own cache."""
    oracle, model = pair
    tokens = tokens_of(model, 2, 70)
    theirs = oracle(tokens[:, :50], use_cache=True)
    hidden, state = model(tokens[:, :50])
    assert difference(model.head(hidden), theirs.logits) < TOLERANCE
    cache = theirs.past_key_values
    for i in range(50, 70):
        theirs = oracle(tokens[:, i : i + 1], past_key_values=cache, use_cache=True)
        cache = theirs.past_key_values
        hidden, state = model(tokens[:, i : i + 1], state)
        assert difference(model.head(hidden), theirs.logits) < TOLERANCE, f"step {i}"


def test_float64_agrees_as_well(pair):
    """In float64 only the oracle's own casts to float32 remain."""
    oracle, model = pair
    tokens = tokens_of(model, 1, 90)
    wide = HybridLM(model.config, dtype=torch.float64).requires_grad_(False).eval()
    wide.load_state_dict(model.state_dict())
    expected = oracle(tokens).logits.double()
    assert difference(wide.head(wide(tokens)[0]), expected) < TOLERANCE


@pytest.mark.parametrize("leaf", ["A_log", "mamba.D", "dt_bias", "mamba.norm.weight", "conv1d.bias", "k_proj.weight",
                                  "pre_ff_layernorm.weight", "up_proj.weight"])  # fmt: skip
def test_the_comparison_sees_every_parameter(leaf):
    config = SHAPES["toy"]
    oracle = make_bamba(config)
    model = HybridLM(config).requires_grad_(False).eval()
    model.load_state_dict(oracle.state_dict())
    name = next(n for n in model.state_dict() if n.endswith(leaf))
    model.state_dict()[name].mul_(1.2)
    tokens = tokens_of(model, 1, 40)
    assert difference(model.head(model(tokens)[0]), oracle(tokens).logits) > 3 * TOLERANCE


def test_the_comparison_sees_a_position_code():
    config = SHAPES["published pattern"]
    oracle = make_bamba(config)
    model = HybridLM(config).requires_grad_(False).eval()
    model.load_state_dict(oracle.state_dict())
    tokens = tokens_of(model, 1, 64)
    turned = make_bamba(config)
    turned.config.rope_parameters["partial_rotary_factor"] = 0.5
    turned.model.rotary_emb = type(turned.model.rotary_emb)(turned.config)
    assert difference(model.head(model(tokens)[0]), turned(tokens).logits) > 100 * TOLERANCE


@pytest.mark.parametrize("name, elements", [("300m", 297_534_688), ("3b", 3_119_400_960), ("7b", 6_253_397_504)])
def test_parameter_totals_are_the_published_ones(name, elements):
    assert count_parameters(PRESETS[name]) == elements
    model = HybridLM(PRESETS[name], device="meta")
    assert all(p.is_meta for p in model.parameters())
    assert sum(t.numel() for t in model.state_dict().values()) == elements
    assert len(model.state_dict()) == {"300m": 303, "3b": 203, "7b": 403}[name]
