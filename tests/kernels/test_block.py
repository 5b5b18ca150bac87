"""The Mamba-2 block in one call against the same block op by op, float64, and its bits row by row."""

import itertools

import pytest
import torch

from hybridna_core.config import ModelConfig
from hybridna_core.model.hybrid import Block, HybridLM
from hybridna_core.model.state import AttentionState, MambaState, ModelState
from hybridna_kernels import cpu, gemm
from hybridna_kernels.cpu import build

pytestmark = pytest.mark.skipif(build.library()[0] is None, reason=f"no C++ kernels here: {build.library()[1]}")

SHAPES = {
    "plain": {},
    "two groups": {"mamba_n_groups": 2},
    "odd sizes": {"mamba_d_state": 10, "mamba_d_conv": 3},
    "dt held": {"time_step_limit": (0.02, 0.05)},
}


def make_block(seed=0, dtype=None, **changes):
    """Return a block of random weights, none of them at a value that hides a mistake."""
    options = {"mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_state": 16, **changes}
    config = ModelConfig(64, 96, ("mamba",), 2, 1, **options)
    block = Block(config, "mamba", dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    for name, p in block.named_parameters():
        drawn = torch.randn(p.shape, generator=generator)
        scale = 0.3 if p.ndim > 1 else 0.5
        p.requires_grad_(False).copy_(drawn * scale + (1 if "norm" in name or name.endswith(".D") else 0))
    return block, config


def draw(config, batch, length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = batch, config.mamba_n_heads, config.mamba_d_head, config.mamba_d_state
    conv = torch.randn(batch, config.mamba_d_conv - 1, config.conv_width, generator=generator)
    state = MambaState(conv, torch.randn(shape, generator=generator))
    return torch.randn(batch, length, config.hidden_size, generator=generator), state


@pytest.fixture
def whole(monkeypatch):
    """Fail when a block is not read in one call."""
    taken, calls = cpu.mamba_block, []
    monkeypatch.setattr(cpu, "mamba_block", lambda *args: calls.append(1) or taken(*args))
    yield
    assert calls


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(
    "batch, length",
    [(1, 1), (3, 1), (2, 2), (1, 3), (2, 63), (3, 64), (1, 65), (5, 200), (2, 512), (2, 513), (1, 1100)],
)
def test_one_call_is_the_block_op_by_op(name, batch, length, whole, monkeypatch):
    block, config = make_block(**SHAPES[name])
    exact, _ = make_block(dtype=torch.float64, **SHAPES[name])
    exact.double()
    x, state = draw(config, batch, length)
    found, after = block(x, state)
    monkeypatch.setenv("HYBRIDNA_KERNELS", "reference")
    wanted, expected = exact(x.double(), MambaState(*(t.double() for t in state[:2])))
    for one, other in ((found, wanted), (after.conv, expected.conv), (after.ssm, expected.ssm)):
        assert one.shape == other.shape
        assert (one - other).abs().max() <= 1e-5 * other.abs().max()


def test_a_rows_bits_depend_on_neither_its_neighbours_nor_threads(whole):
    block, config = make_block()
    before = torch.get_num_threads()
    try:
        for length in (1, 7, 130, 600):
            torch.set_num_threads(1)
            x, state = draw(config, 9, length)
            found, after = block(x, state)
            torch.set_num_threads(3)
            for rows in ([0], [8], [3, 4], [8, 0, 5, 5]):
                some, kept = block(x[rows], MambaState(state.conv[rows], state.ssm[rows]))
                assert torch.equal(some, found[rows])
                assert torch.equal(kept.conv, after.conv[rows])
                assert torch.equal(kept.ssm, after.ssm[rows])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("length", [1, 5])
def test_rows_go_on_from_their_parents(length, whole):
    block, config = make_block()
    x, state = draw(config, 600, length)
    parents = torch.randint(0, 600, (600,), generator=torch.Generator().manual_seed(1))
    found, after = block(x, state._replace(rows=parents))
    wanted, expected = block(x, MambaState(state.conv, state.ssm[parents]))
    assert torch.equal(found, wanted)
    assert torch.equal(after.conv, expected.conv)
    assert torch.equal(after.ssm, expected.ssm)


def test_what_was_given_is_left_as_it_was(whole):
    block, config = make_block()
    x, state = draw(config, 2, 130)
    copies = x.clone(), *(t.clone() for t in state[:2])
    block(x, state)
    assert all(torch.equal(a, b) for a, b in zip((x, *state[:2]), copies, strict=True))


def test_it_is_refused_where_it_could_not_be_right(monkeypatch):
    block, config = make_block()
    x, state = draw(config, 1, 5)

    def whole():
        return block.mamba.with_mlp(block.input_layernorm, block.pre_ff_layernorm, block.feed_forward)

    assert gemm.refuse_block(x, *state[:2], whole()) is None
    assert gemm.refuse_block(x.double(), *state[:2], whole())
    for op in ("ssd_scan=chunked", "ssd_step=reference", "causal_conv1d=reference", "gated_rms_norm=reference"):
        monkeypatch.setenv("HYBRIDNA_KERNELS", op)
        assert gemm.refuse_block(x, *state[:2], whole())
    monkeypatch.delenv("HYBRIDNA_KERNELS")
    for name in ("A_log", "D", "dt_bias"):
        getattr(block.mamba, name).requires_grad_(True)
        assert gemm.refuse_block(x, *state[:2], whole())
        with torch.no_grad():
            assert gemm.refuse_block(x, *state[:2], whole()) is None
        getattr(block.mamba, name).requires_grad_(False)
    assert gemm.refuse_block(x, state.conv, state.ssm.requires_grad_(), whole())


@pytest.mark.parametrize(
    "kind, trained",
    [
        *itertools.product(["mamba", "attention"], ["norm.weight", "input_layernorm.weight", "x", "state"]),
        ("mamba", "A_log"),
    ],
)
def test_what_is_trained_beside_fixed_projections_gets_its_gradient(kind, trained, monkeypatch):
    config = ModelConfig(64, 96, (kind,), 2, 1, mamba_n_heads=4, mamba_d_head=32, mamba_d_state=16)
    model = HybridLM(config).eval().requires_grad_(False)
    block = model.model.layers[0]
    x, _ = draw(config, 2, 70)
    state = ModelState.start(config, 2).layers[0]
    if kind == "attention":
        state = AttentionState(*(torch.randn(2, 3, 1, 32, generator=torch.Generator().manual_seed(i)) for i in (0, 1)))
    wanted = [p for name, p in block.named_parameters() if name.endswith(trained)]
    wanted += [x] if trained == "x" else list(state[:2]) if trained == "state" else []
    for t in wanted:
        t.requires_grad_(True)
    gradients = []
    for kernels in ("", "reference"):
        monkeypatch.setenv("HYBRIDNA_KERNELS", kernels)
        out, _ = block(x, state)
        gradients.append(torch.autograd.grad((out * out).sum(), wanted))
    for one, other in zip(*gradients, strict=True):
        assert other.abs().max() > 0
        assert (one - other).abs().max() <= 1e-4 * other.abs().max()
