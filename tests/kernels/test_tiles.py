"""Products on the processor's matrix tiles against float64: as exact as float32, row by row the same bits."""

import types

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridna_core.config import ModelConfig
from hybridna_core.model.hybrid import HybridLM
from hybridna_kernels import cpu, dispatch, gemm, reference
from hybridna_kernels.cpu import build

EPS = 1e-5
TINY = ModelConfig(64, 96, ("mamba", "attention", "mamba"), 2, 1, mamba_n_heads=4, mamba_d_head=32, mamba_d_state=16)

tiles = pytest.mark.skipif(cpu.refuse_tiles() is not None, reason=f"no matrix tiles: {cpu.refuse_tiles()}")


def draw(seed, *shapes):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def rms(t):
    return float(t.double().square().mean().sqrt())


@tiles
@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 100), st.integers(1, 1100), st.integers(1, 100), st.booleans(), st.booleans(),
    st.sampled_from([1, 2, 3]), st.integers(0, 9),
)  # fmt: skip
def test_two_factors_of_any_shape_and_layout(rows, depth, columns, turn_a, turn_b, threads, seed):
    a, b = draw(seed, (depth, rows) if turn_a else (rows, depth), (depth, columns) if turn_b else (columns, depth))
    a, b = a.t() if turn_a else a, b.t() if turn_b else b
    exact = a.double() @ b.double().t()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found, rounded = cpu.matmul(a, b, cpu.EXACT), cpu.matmul(a, b, cpu.ROUNDED)
    finally:
        torch.set_num_threads(before)
    assert found.shape == (rows, columns)
    # How large results are that do not happen to be near 0.
    usual = rms(a.double().norm(dim=1)[:, None] * b.double().norm(dim=1)) / depth**0.5
    assert rms(found - exact) <= 4e-7 * usual
    wanted = a.bfloat16().double() @ b.bfloat16().double().t()
    assert rms(rounded - wanted) <= 1e-6 * usual


@tiles
@pytest.mark.parametrize("depth", [31, 256, 2500])
@pytest.mark.parametrize("spread", [1.0, 1e6, 1e-25])
def test_what_they_lose_beside_plain_float32(depth, spread):
    """Also where numbers of very different sizes meet, which a common scale would lose.

    At most twice what plain torch loses, on one thread: with more it cuts long sums in parts. Sums that are all but one
    term have several roundings where plain float32 has one: half a unit in the last place.
    """
    a, b, sizes = draw(0, (300, depth), (200, depth), (depth,))
    a = a * torch.exp(sizes * 3) * spread
    exact = a.double() @ b.double().t()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        plain = a @ b.t()
    finally:
        torch.set_num_threads(before)
    for found in (cpu.matmul(a, b, cpu.EXACT), cpu.product(a, b, slices=cpu.EXACT)):
        assert rms(found - exact) <= max(2 * rms(plain - exact), 2**-23 * rms(exact))
        assert (found - exact).abs().max() <= max(2 * (plain - exact).abs().max(), 2**-22 * exact.abs().max())


@tiles
def test_a_few_products_worked_out_by_hand():
    """24 bits of each factor take part: 1 + 2^-23 times 1 - 2^-23, and what rounding to bfloat16 leaves of it."""
    a = torch.tensor([[1 + 2.0**-23, 3.0], [0.0, -0.5]])
    b = torch.tensor([[1.0, 0.0], [0.0, 2.0**-30], [1 + 2.0**-23, 0.0]])
    wanted = a.double() @ b.double().t()
    assert torch.equal(cpu.matmul(a, b, cpu.EXACT).double(), wanted.float().double())
    assert cpu.matmul(a, b, cpu.ROUNDED)[0, 0] == 1
    hostile = torch.tensor([[float("nan"), 1.0], [float("inf"), 1.0], [1.0, 1.0]])
    found = cpu.matmul(hostile, torch.ones(1, 2), cpu.EXACT)
    assert [bool(v) for v in found.isfinite()[:, 0]] == [False, False, True]


@tiles
@pytest.mark.parametrize("slices", [cpu.EXACT, cpu.ROUNDED])
@pytest.mark.parametrize("depth, outputs", [(64, 96), (256, 1288), (512, 33)])
def test_a_rows_bits_depend_on_neither_its_neighbours_nor_threads(depth, outputs, slices):
    x, z, norm, weight, add = draw(0, (300, depth), (300, depth), (depth,), (outputs, depth), (300, outputs))
    before = torch.get_num_threads()

    def take(rows):
        fused = cpu.product(x[rows], weight, z=z[rows], norm=norm, eps=EPS, add=add[rows], slices=slices)
        return fused, cpu.matmul(x[rows], weight, slices)

    try:
        torch.set_num_threads(1)
        whole = take(slice(0, 300))
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            for first, count in ((0, 300), (0, 1), (7, 1), (3, 2), (5, 17), (20, 33), (1, 64), (100, 199)):
                rows = slice(first, first + count)
                for found, due in zip(take(rows), whole, strict=True):
                    assert torch.equal(found, due[rows]), (threads, first, count)
    finally:
        torch.set_num_threads(before)


@tiles
@pytest.mark.parametrize("rounded, limit", [(False, 1e-6), (True, 0.02)])
def test_gradients(rounded, limit, monkeypatch):
    monkeypatch.setenv("HYBRIDNA_KERNELS", "product=tiles")
    x, weight = draw(1, (2, 40, 70), (50, 70))
    leaves = [t.requires_grad_() for t in (x, weight)]
    with gemm.bf16_products(rounded):
        y = gemm.linear(*leaves)
    assert type(y.grad_fn).__name__ == "_TileLinearBackward"
    found = torch.autograd.grad(y.sin().sum(), leaves)
    exact = [t.detach().double().requires_grad_() for t in leaves]
    due = torch.autograd.grad(F.linear(*exact).sin().sum(), exact)
    for one, other in zip((y, *found), (F.linear(*exact), *due), strict=True):
        # The sine is steep where products are large, so what is lost before it is lost several times.
        assert (one - other).abs().max() <= 20 * limit * other.abs().max()


@tiles
def test_which_products_go_there(monkeypatch):
    x, weight = draw(2, (3, 20, 32), (40, 32))
    fixed = torch.nn.Parameter(weight, requires_grad=False)
    taken = []
    for name in ("product", "matmul"):
        honest = getattr(cpu, name)
        monkeypatch.setattr(
            cpu,
            name,
            lambda *a, name=name, honest=honest, **k: taken.append((name, k.get("slices"))) or honest(*a, **k),
        )

    def ways(x, weight):
        taken.clear()
        gemm.linear(x, weight)
        return list(taken)

    assert ways(x, fixed) == [("product", cpu.EXACT)]
    # Single tokens, however many: by what is read, not by the number of rows.
    assert ways(x[:, :1], fixed) == [("product", 0)]
    # With all bits, what is trained goes there when asked alone.
    assert ways(x, weight) == []
    with monkeypatch.context() as patch:
        patch.setenv("HYBRIDNA_KERNELS", "product=tiles")
        assert ways(x, weight) == [("matmul", None)]
        assert ways(x[:, : gemm.LEAST_TOKENS - 1], weight) == []
    with gemm.bf16_products():
        assert ways(x, fixed) == [("product", cpu.ROUNDED)]
        assert ways(x[:, :1], fixed) == [] and ways(x, weight) == [("matmul", None)]
        assert ways(x[:, : gemm.LEAST_TOKENS - 1], weight) == []
    with monkeypatch.context() as patch:
        patch.setattr(cpu, "LARGEST_WEIGHT", 100)
        assert ways(x, fixed) == ways(x, weight) == []
        with gemm.bf16_products():
            assert ways(x, fixed) == [("product", cpu.ROUNDED)] and ways(x, weight) == [("matmul", None)]
    monkeypatch.setenv("HYBRIDNA_KERNELS", "product=vectors")
    assert ways(x, fixed) == [("product", 0)] and ways(x, weight) == []
    for text in ("product=onednn", "onednn", "product=torch", "torch", "reference"):
        monkeypatch.setenv("HYBRIDNA_KERNELS", text)
        assert ways(x, fixed) == ways(x, weight) == []


@tiles
def test_a_network_on_tiles_and_on_vectors(monkeypatch):
    model = HybridLM(TINY).eval().requires_grad_(False)
    tokens = torch.randint(7, 11, (2, 150), generator=torch.Generator().manual_seed(0))
    found, state = model(tokens)
    with gemm.bf16_products():
        rounded, _ = model(tokens)
    monkeypatch.setenv("HYBRIDNA_KERNELS", "product=vectors")
    wanted, after = model(tokens)
    assert not torch.equal(found, wanted) and (found - wanted).abs().max() < 1e-5
    assert (state.layers[0].ssm - after.layers[0].ssm).abs().max() < 1e-5
    assert 1e-5 < (rounded - wanted).abs().max() < 0.1


def test_where_there_are_none(monkeypatch):
    x, weight = draw(3, (20, 32), (40, 32))
    fixed = torch.nn.Parameter(weight, requires_grad=False)
    without = types.SimpleNamespace(hybridna_tiles=lambda: 1)
    with monkeypatch.context() as patch:
        patch.setattr(build, "_found", (without, None))
        assert gemm.count_slices(20, 100) == 0
        patch.setenv("HYBRIDNA_KERNELS", "product=tiles")
        with pytest.raises(dispatch.KernelError, match="product: backend 'tiles' refuses: no AMX here"):
            gemm.linear(x, fixed)
        without.hybridna_tiles = lambda: 2
        assert cpu.refuse_tiles() == "the system does not allow AMX"
        patch.setattr(build, "_found", (None, "no C++ compiler"))
        assert cpu.refuse_tiles() == "no C++ compiler"
        patch.delenv("HYBRIDNA_KERNELS")
        torch.testing.assert_close(gemm.linear(x, weight), x @ weight.t())


def test_names_of_products_are_known(monkeypatch):
    monkeypatch.setenv("HYBRIDNA_KERNELS", "product=abacus")
    with pytest.raises(dispatch.KernelError, match=r"product=tiles\|vectors\|onednn\|torch"):
        dispatch.forced()
    monkeypatch.setenv("HYBRIDNA_KERNELS", "vectors")
    assert dispatch.forced() == {"product": "vectors"}
    rows = {way: state for op, way, state in dispatch.report() if op == "product"}
    assert list(rows) == list(dispatch.PRODUCTS)
    assert rows["tiles"] == rows["onednn"] == "HYBRIDNA_KERNELS asks for vectors"


def draw_scan(length, heads, head_dim, groups, size, batch=2):
    """Draw inputs of ssd_scan, state last, float64."""
    generator = torch.Generator().manual_seed(length)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    dt = F.softplus(normal(batch, length, heads) - 2)
    B, C = normal(batch, length, groups, size), normal(batch, length, groups, size)
    return [
        normal(batch, length, heads, head_dim), dt, -normal(heads).exp(), B, C, normal(heads),
        normal(batch, heads, head_dim, size),
    ]  # fmt: skip


def largest_errors(found, exact):
    return [float((f - e).abs().max() / e.abs().max()) for f, e in zip(found, exact, strict=True)]


@tiles
@pytest.mark.parametrize(
    "heads, head_dim, groups, size", [(2, 32, 1, 32), (4, 64, 2, 128), (3, 96, 3, 64), (1, 32, 1, 512)]
)
@pytest.mark.parametrize("length", [1, 2, 31, 32, 33, 63, 64, 65, 257])
@pytest.mark.parametrize("with_state", [False, True])
def test_scan_is_the_recurrence(heads, head_dim, groups, size, length, with_state, monkeypatch):
    *args, state = draw_scan(length, heads, head_dim, groups, size)
    state = state if with_state else None
    exact = reference.ssd_scan_sequential(*args, state=state)
    single = [t.float() for t in args]
    state = None if state is None else state.float()
    plain = largest_errors(reference.ssd_scan(*single, state=state), exact)
    # What is read before it is written would show.
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)
    try:
        found = cpu.ssd_scan_tiles(*single, state=state)
    finally:
        torch.use_deterministic_algorithms(False)
    for error, limit in zip(largest_errors(found, exact), plain, strict=True):
        assert error <= max(2 * limit, 1e-6)


@tiles
@pytest.mark.parametrize("length", [33, 130])
def test_gradients_of_the_scan(length):
    inputs = draw_scan(length, 4, 32, 1, 64)

    def differentiate(op, inputs):
        leaves = [t.detach().clone().requires_grad_() for t in inputs]
        y, state = op(*leaves[:-1], state=leaves[-1])
        return torch.autograd.grad(y.sin().sum() + state.cos().sum(), leaves)

    exact = differentiate(reference.ssd_scan, inputs)
    single = [t.float() for t in inputs]
    plain = largest_errors(differentiate(reference.ssd_scan, single), exact)
    found = largest_errors(differentiate(cpu.ssd_scan_tiles, single), exact)
    for error, limit in zip(found, plain, strict=True):
        assert error <= max(2 * limit, 2e-6)


@tiles
def test_a_heads_scan_is_its_own():
    """The same bits beside other rows and with other numbers of threads."""
    args = [t.float() for t in draw_scan(200, 4, 64, 1, 64, batch=3)]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        y, state = cpu.ssd_scan_tiles(*args[:-1], state=args[-1])
        torch.set_num_threads(3)
        for row in range(3):
            own = [t if t.ndim == 1 else t[row : row + 1] for t in args]
            found = cpu.ssd_scan_tiles(*own[:-1], state=own[-1])
            assert torch.equal(found[0][0], y[row]) and torch.equal(found[1][0], state[row])
    finally:
        torch.set_num_threads(before)


def test_what_the_scan_on_tiles_refuses():
    args = [t.float() for t in draw_scan(9, 2, 32, 1, 32)]
    assert cpu.refuse_ssd_scan_tiles(args, {}) == cpu.refuse_tiles()
    odd = [t.float() for t in draw_scan(9, 2, 16, 1, 32)]
    assert cpu.refuse_ssd_scan_tiles(odd, {}) == "head_dim or state size no multiple of 32"
    assert cpu.refuse_ssd_scan_tiles([t.double() for t in args], {}) == "needs float32"
