"""Blocks read in one call against the same blocks op by op, float64, and their bits row by row."""

import copy
import itertools
import pickle
import threading
import types

import pytest
import torch

from hybridna_core.config import ModelConfig
from hybridna_core.model.hybrid import MANY_ROWS, Block, HybridLM, read_blocks
from hybridna_core.model.state import AttentionState, MambaState, ModelState
from hybridna_kernels import cpu, gemm, parity
from hybridna_kernels.cpu import build

pytestmark = pytest.mark.skipif(build.library()[0] is None, reason=f"no C++ kernels here: {build.library()[1]}")

SHAPES = {
    "plain": {},
    "two groups": {"mamba_n_groups": 2},
    "odd sizes": {"mamba_d_state": 10, "mamba_d_conv": 3},
    "dt held": {"time_step_limit": (0.02, 0.05)},
    "attention": {"kind": "attention"},
    "attention, 4 of 4 heads": {"kind": "attention", "num_attention_heads": 4, "num_key_value_heads": 4},
    "attention, 1 of 4 heads": {"kind": "attention", "num_attention_heads": 4, "num_key_value_heads": 1},
}
LENGTHS = [(1, 1), (3, 1), (2, 2), (1, 3), (2, 63), (3, 64), (1, 65), (5, 200), (2, 512), (2, 513), (1, 1100)]


def make_block(seed=0, dtype=None, kind="mamba", **changes):
    """Return a block of random weights, none of them at a value that hides a mistake."""
    options = {
        "num_attention_heads": 2, "num_key_value_heads": 1, "mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_state": 16,
        **changes,
    }  # fmt: skip
    config = ModelConfig(64, 96, (kind,), **options)
    block = Block(config, kind, dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    for name, p in block.named_parameters():
        drawn = torch.randn(p.shape, generator=generator)
        scale = 0.3 if p.ndim > 1 else 0.5
        p.requires_grad_(False).copy_(drawn * scale + (1 if "norm" in name or name.endswith(".D") else 0))
    return block, config


def draw(config, batch, length, seed=0, past=5, prefix=40):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    x = normal(batch, length, config.hidden_size)
    if config.layer_types == ("attention",):
        wide = config.num_key_value_heads, config.head_dim
        shapes = (batch, past), (batch, past), (1, prefix), (1, prefix)
        return x, AttentionState(*(normal(*shape, *wide) if shape[1] else None for shape in shapes))
    shape = batch, config.mamba_n_heads, config.mamba_d_head, config.mamba_d_state
    return x, MambaState(normal(batch, config.mamba_d_conv - 1, config.conv_width), normal(*shape))


def tensors(state):
    return [t for t in state if t is not None]


def pick(state, rows):
    """Return the state of some rows; what is common to all stays."""
    return state._replace(**{name: getattr(state, name)[rows] for name in state._fields[:2]})


def read(block, x, state):
    out, (after,) = read_blocks([block], x, [state])
    return out, after


@pytest.fixture
def whole(monkeypatch):
    """Fail when a block is not read in one call."""
    taken, calls = cpu.read_blocks, []
    monkeypatch.setattr(cpu, "read_blocks", lambda *args: calls.append(1) or taken(*args))
    yield
    assert calls


def agree(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() <= 1e-5 * other.abs().max()


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("batch, length", LENGTHS)
def test_one_call_is_the_block_op_by_op(name, batch, length, whole, monkeypatch):
    block, config = make_block(**SHAPES[name])
    exact, _ = make_block(dtype=torch.float64, **SHAPES[name])
    exact.double()
    x, state = draw(config, batch, length)
    found, after = read(block, x, state)
    monkeypatch.setenv("HYBRIDNA_KERNELS", "reference")
    wanted, expected = exact(x.double(), type(state)(*(t if t is None else t.double() for t in state)))
    agree([found, *tensors(after)], [wanted, *tensors(expected)])


@pytest.mark.parametrize("past, prefix", [(0, 0), (0, 100), (100, 0), (1, 95), (97, 193)])
@pytest.mark.parametrize("heads, kv_heads", [(2, 1), (8, 2), (32, 32), (16, 1)])
def test_keys_before_and_common_ones_are_attended_to(past, prefix, heads, kv_heads, whole, monkeypatch):
    changes = {"kind": "attention", "num_attention_heads": heads, "num_key_value_heads": kv_heads}
    block, config = make_block(**changes)
    exact, _ = make_block(dtype=torch.float64, **changes)
    exact.double()
    for batch, length in ((1, 1), (3, 1), (2, 7), (1, 100)):
        x, state = draw(config, batch, length, past=past or 1, prefix=prefix)
        state = state if past else state._replace(keys=state.keys[:, :0], values=state.values[:, :0])
        found, after = read(block, x, state)
        with monkeypatch.context() as patch:
            patch.setenv("HYBRIDNA_KERNELS", "reference")
            wanted, expected = exact(x.double(), type(state)(*(t if t is None else t.double() for t in state)))
        agree([found, *tensors(after)], [wanted, *tensors(expected)])


@pytest.mark.parametrize("name", ["plain", "attention"])
def test_a_rows_bits_depend_on_neither_its_neighbours_nor_threads(name, whole):
    block, config = make_block(**SHAPES[name])
    before = torch.get_num_threads()
    try:
        for length in (1, 7, 130, 600):
            torch.set_num_threads(1)
            x, state = draw(config, 9, length)
            found, after = read(block, x, state)
            torch.set_num_threads(3)
            for rows in ([0], [8], [3, 4], [8, 0, 5, 5]):
                some, kept = read(block, x[rows], pick(state, rows))
                assert torch.equal(some, found[rows])
                assert all(torch.equal(a, b[rows]) for a, b in zip(kept[:2], after[:2], strict=True))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("batch, length", [(9, 100), (9, 86), (5, 150), (5, 170), (3, 400), (7, 65), (11, 128)])
def test_a_last_group_of_fewer_rows(batch, length, groups, whole):
    """It holds more chunks of the scan at a time than those before it."""
    block, config = make_block(mamba_n_groups=groups, mamba_d_state=64, mamba_d_head=16)
    x, state = draw(config, batch, length)
    found, after = [], []

    def work():
        # In a thread of its own, whose scratch no larger pass has made large.
        out, kept = read(block, x, state)
        found.append(out)
        after.append(kept)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    for row in range(batch):
        alone, kept = read(block, x[row : row + 1], pick(state, [row]))
        assert torch.equal(alone, found[0][row : row + 1]) and torch.equal(kept.ssm, after[0].ssm[row : row + 1])


@pytest.mark.parametrize("name", ["plain", "attention"])
def test_states_of_another_number_of_rows_are_an_error(name):
    block, config = make_block(**SHAPES[name])
    x, state = draw(config, 4, 5)
    with pytest.raises(ValueError, match="states of 1 rows for 4 rows of tokens"):
        read(block, x, pick(state, [0]))


def test_memory_that_ran_out_in_the_library_is_an_error(monkeypatch):
    block, config = make_block()
    x, state = draw(config, 1, 5)
    read(block, x, state)
    monkeypatch.setattr(
        build,
        "_found",
        (
            types.SimpleNamespace(
                hybridna_read_blocks=lambda *args: 1, hybridna_tiles=build.library()[0].hybridna_tiles
            ),
            None,
        ),
    )
    with pytest.raises(MemoryError, match="not enough memory for a pass"):
        read(block, x, state)


@pytest.mark.parametrize("length", [1, 7])
def test_rows_with_many_keys_attend_in_groups(length, whole):
    block, config = make_block(kind="attention", num_attention_heads=32, num_key_value_heads=32)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        x, state = draw(config, 5, length, past=2500)
        found, _ = read(block, x, state)
        for row in range(5):
            assert torch.equal(read(block, x[row : row + 1], pick(state, [row]))[0], found[row : row + 1])
    finally:
        torch.set_num_threads(before)


def test_runs_of_blocks_are_one_call_and_give_what_each_gives_alone(monkeypatch):
    config = ModelConfig(
        64, 96, ("mamba", "attention", "mamba", "mamba"), 2, 1, mamba_n_heads=4, mamba_d_head=32, mamba_d_state=16
    )
    model = HybridLM(config).eval().requires_grad_(False)
    taken, calls = cpu.read_blocks, []
    monkeypatch.setattr(cpu, "read_blocks", lambda *args: calls.append(len(args[2])) or taken(*args))
    tokens = torch.randint(7, 11, (2, 70), generator=torch.Generator().manual_seed(0))
    found, state = model(tokens)
    assert calls == [4]
    for wanted_depths, expected in (((2, 5), [2, 2]), ((1, 2, 3, 4), [1] * 4), ((0,), [])):
        calls.clear()
        model.read_layers(tokens, None, wanted_depths)
        assert calls == expected
    x = model.model.embed_tokens(tokens)
    states = []
    for block, before in zip(model.model.layers, ModelState.start(config, 2).layers, strict=True):
        x, (after,) = read_blocks([block], x, [before])
        states.append(after)
    assert torch.equal(model.model.final_layernorm(x), found)
    for one, other in zip(states, state.layers, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(tensors(one), tensors(other), strict=True))
    # A block that must be read by itself parts the run.
    calls.clear()
    model.model.layers[2].mamba.in_proj.weight.requires_grad_(True)
    again, _ = model(tokens)
    assert calls == [2] and (again - found).abs().max() < 1e-5
    again.sum().backward()
    assert model.model.layers[2].mamba.in_proj.weight.grad.abs().max() > 0


def test_many_rows_go_block_by_block(monkeypatch):
    config = ModelConfig(64, 96, ("mamba", "mamba"), 2, 1, mamba_n_heads=4, mamba_d_head=32, mamba_d_state=16)
    model = HybridLM(config).eval().requires_grad_(False)
    taken, calls = cpu.read_blocks, []
    monkeypatch.setattr(cpu, "read_blocks", lambda *args: calls.append(len(args[2])) or taken(*args))
    model(torch.full((MANY_ROWS // 8, 8), 7))
    assert calls == [1, 1]


def test_blocks_that_are_listened_to_are_called(monkeypatch):
    block, config = make_block()
    x, state = draw(config, 1, 5)
    seen = []
    handle = block.register_forward_hook(lambda module, given, found: seen.append(found[0]))
    out, _ = read(block, x, state)
    assert seen and torch.equal(seen[0], out)
    handle.remove()
    again, _ = read(block, x, state)
    assert len(seen) == 1 and (again - out).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["plain", "attention"])
def test_weights_that_change_are_read_anew(name, whole):
    block, config = make_block(**SHAPES[name])
    other, _ = make_block(seed=1, **SHAPES[name])
    x, state = draw(config, 2, 9)
    first, _ = read(block, x, state)
    wanted, _ = read(other, x, state)
    laid = block.lay_out(x, state)
    kept = block.kept.get(laid.block, laid.slices)
    assert block.lay_out(x, state) is kept
    for p, q in zip(block.parameters(), other.parameters(), strict=True):
        p.copy_(q)
    assert torch.equal(read(block, x, state)[0], wanted)
    assert block.lay_out(x, state) is not kept
    for twin in (copy.deepcopy(other), pickle.loads(pickle.dumps(other))):
        for p, q in zip(twin.parameters(), make_block(**SHAPES[name])[0].parameters(), strict=True):
            p.data = q.data
        assert torch.equal(read(twin, x, state)[0], first)
    assert torch.equal(read(other, x, state)[0], wanted)


@pytest.mark.parametrize("length", [1, 5])
def test_rows_go_on_from_their_parents(length, whole):
    block, config = make_block()
    x, state = draw(config, 600, length)
    parents = torch.randint(0, 600, (600,), generator=torch.Generator().manual_seed(1))
    found, after = read(block, x, state._replace(rows=parents))
    wanted, expected = read(block, x, MambaState(state.conv, state.ssm[parents]))
    assert torch.equal(found, wanted)
    assert torch.equal(after.conv, expected.conv)
    assert torch.equal(after.ssm, expected.ssm)
    assert after.rows is None


@pytest.mark.parametrize("name", ["plain", "attention"])
def test_what_was_given_is_left_as_it_was(name, whole):
    block, config = make_block(**SHAPES[name])
    x, state = draw(config, 2, 130)
    copies = [t.clone() for t in (x, *tensors(state))]
    read(block, x, state)
    assert all(torch.equal(a, b) for a, b in zip((x, *tensors(state)), copies, strict=True))


@pytest.mark.parametrize("name", ["plain", "attention"])
def test_it_is_refused_where_it_could_not_be_right(name, monkeypatch):
    block, config = make_block(**SHAPES[name])
    x, state = draw(config, 1, 5)

    def is_taken(x=x, state=state):
        return block.lay_out(x, state) is not None

    assert is_taken()
    products = block.lay_out(x, state).block.products
    assert not is_taken(x.double())
    assert not is_taken(state=state._replace(**{state._fields[1]: state[1].double()}))
    own = {
        "plain": ("ssd_scan=chunked", "ssd_step=reference", "causal_conv1d=reference", "gated_rms_norm=reference"),
        "attention": ("attention=sdpa", "gated_rms_norm=reference"),
    }
    for op in own[name]:
        monkeypatch.setenv("HYBRIDNA_KERNELS", op)
        assert not is_taken()
    monkeypatch.delenv("HYBRIDNA_KERNELS")
    with gemm.bf16_products():
        assert is_taken() == (cpu.refuse_tiles() is None)
        monkeypatch.setenv("HYBRIDNA_KERNELS", "product=vectors")
        assert not is_taken()
    assert is_taken()
    for text in ("product=onednn", "product=torch"):
        monkeypatch.setenv("HYBRIDNA_KERNELS", text)
        assert not is_taken()
    monkeypatch.delenv("HYBRIDNA_KERNELS")
    for parameter in block.parameters():
        parameter.requires_grad_(True)
        assert not is_taken()
        with torch.no_grad():
            # A weight of a product that will be trained would be laid out at every step.
            assert is_taken() == all(parameter is not p for p in products)
        parameter.requires_grad_(False)
    assert is_taken()
    state[1].requires_grad_()
    assert not is_taken()
    state[1].requires_grad_(False)
    monkeypatch.setattr(cpu.block, "LARGEST", 100)
    monkeypatch.setattr(cpu, "LARGEST_WEIGHT", 100)
    large = make_block(**SHAPES[name])[0]
    assert large.lay_out(x, state) is None
    # Large weights are rounded to go on tiles, and single tokens not there.
    with gemm.bf16_products():
        assert (large.lay_out(x, state) is None) == (cpu.refuse_tiles() is not None)
        assert large.lay_out(x[:, :1], state) is None
        monkeypatch.setattr(cpu.block, "LARGEST_TILED", 100)
        assert make_block(**SHAPES[name])[0].lay_out(x, state) is None
    assert make_block(**SHAPES[name])[0].lay_out(x, state) is None


@pytest.mark.parametrize("kind", parity.BLOCKS)
def test_the_definition_is_the_networks_own(kind, monkeypatch):
    """`reference.mamba_block` and `attention_block` against Block, plain torch, float64."""
    name = {"mamba_block": "plain", "attention_block": "attention"}[kind]
    block, config = make_block(dtype=torch.float64, **SHAPES[name])
    block.double()
    x, state = draw(config, 2, 9)
    x, state = x.double(), type(state)(*(t if t is None else t.double() for t in state))
    weights = block.mixer.with_mlp(block.input_layernorm, block.pre_ff_layernorm, block.feed_forward)
    out, *after = parity.BLOCKS[kind](x, state, weights)
    monkeypatch.setenv("HYBRIDNA_KERNELS", "reference")
    wanted, expected = block(x, state)
    for one, other in zip((out, *after), (wanted, *expected[:2]), strict=True):
        assert (one - other).abs().max() <= 1e-12 * other.abs().max()


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
        out, _ = read(block, x, state)
        gradients.append(torch.autograd.grad((out * out).sum(), wanted))
    for one, other in zip(*gradients, strict=True):
        assert other.abs().max() > 0
        assert (one - other).abs().max() <= 1e-4 * other.abs().max()
