"""Gradients of the C++ kernels against those of the definitions in float64."""

import pytest
import torch
import torch.nn.functional as F

from hybridna_kernels import cpu, dispatch, parity, reference
from hybridna_kernels.cpu import build
from hybridna_kernels.gemm import bf16_products, linear

compiled = pytest.mark.skipif(build.library()[0] is None, reason=f"no C++ kernels here: {build.library()[1]}")
# Below this, one rounding of the last result decides which of two errors is the larger.
ROUNDING = 1e-6


def normal(*shape):
    return torch.randn(shape, dtype=torch.float64)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def gradients(function, tensors, weights, dtype, strided=False):
    """Return the gradients of a weighted sum of the outputs."""
    leaves = [t.to(dtype, copy=True).requires_grad_() for t in tensors]
    # Inputs that lie in larger tensors, as slices of a projection do.
    given = [F.pad(t, (3, 2))[..., 3:-2] if strided and t.ndim > 2 else t for t in leaves]
    outputs = function(*given)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    total = sum((o * w.to(dtype)).sum() for o, w in zip(outputs, weights, strict=True) if w is not None)
    found = torch.autograd.grad(total, leaves, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for g, t in zip(found, leaves, strict=True)]


def agree(function, definition, tensors, skip=()):
    """Hold gradients in float32 to twice the error of plain torch in float32; skip: outputs that nothing is made of."""
    outputs = definition(*tensors)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    weights = [None if i in skip else torch.randn_like(o) for i, o in enumerate(outputs)]
    exact = gradients(definition, tensors, weights, torch.float64)
    plain = gradients(definition, tensors, weights, torch.float32)
    found = gradients(function, tensors, weights, torch.float32, strided=True)
    for f, p, e in zip(found, plain, exact, strict=True):
        scale = e.abs().max()
        assert f.dtype == torch.float32 and f.shape == e.shape
        assert (f - e).abs().max() <= max(ROUNDING * scale, 2 * (p - e).abs().max())


def scan_inputs(length, heads, head_dim, groups, size, batch=2):
    dt = F.softplus(normal(batch, length, heads) - 2)
    inputs = normal(batch, length, heads, head_dim), dt, -normal(heads).exp(), normal(batch, length, groups, size)
    return [*inputs, normal(batch, length, groups, size), normal(heads), normal(batch, heads, head_dim, size)]


def with_state(op):
    return lambda *t: op(*t[:-1], state=t[-1])


@compiled
@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 257])
@pytest.mark.parametrize("state", [False, True])
def test_scan(length, state):
    inputs = scan_inputs(length, 4, 16, 1, 32)
    if state:
        agree(with_state(cpu.ssd_scan), with_state(reference.ssd_scan), inputs)
    else:
        agree(cpu.ssd_scan, reference.ssd_scan, inputs[:-1])


@compiled
@pytest.mark.parametrize(
    "heads,head_dim,groups,size",
    [(3, 5, 1, 7), (1, 1, 1, 1), (2, 33, 1, 9), (2, 64, 1, 128), (6, 70, 2, 18), (10, 16, 1, 16), (7, 8, 7, 8)],
)
def test_scan_of_any_shape(heads, head_dim, groups, size):
    agree(with_state(cpu.ssd_scan), with_state(reference.ssd_scan), scan_inputs(130, heads, head_dim, groups, size))


@compiled
@pytest.mark.parametrize("skip", [(0,), (1,)])
def test_scan_with_one_output_unused(skip):
    agree(with_state(cpu.ssd_scan), with_state(reference.ssd_scan), scan_inputs(70, 2, 8, 1, 8), skip)


@compiled
def test_scan_that_forgets_at_once():
    inputs = scan_inputs(200, 2, 16, 1, 16)
    inputs[2] = inputs[2] * 1000
    agree(with_state(cpu.ssd_scan), with_state(reference.ssd_scan), inputs)


@compiled
def test_scan_gradient_is_that_of_the_recurrence():
    inputs = scan_inputs(70, 2, 8, 1, 8)
    agree(with_state(cpu.ssd_scan), with_state(reference.ssd_scan_sequential), inputs)


@compiled
@pytest.mark.parametrize("length", [1, 2, 3, 63, 64, 65, 200])
@pytest.mark.parametrize("channels,width", [(24, 4), (33, 3), (64, 4), (7, 2)])
@pytest.mark.parametrize("state", [False, True])
def test_convolution(length, channels, width, state):
    inputs = [normal(2, length, channels), normal(channels, width), normal(channels), normal(2, width - 1, channels)]
    if state:
        agree(with_state(cpu.causal_conv1d), with_state(reference.causal_conv1d), inputs)
    else:
        agree(cpu.causal_conv1d, reference.causal_conv1d, inputs[:-1])


@compiled
def test_convolution_without_bias():
    def without(op):
        return lambda x, weight: op(x, weight, None)

    agree(without(cpu.causal_conv1d), without(reference.causal_conv1d), [normal(2, 70, 24), normal(24, 4)])


@compiled
@pytest.mark.parametrize("n,heads,kv_heads,head_dim", [(64, 4, 1, 32), (65, 6, 2, 18), (300, 2, 2, 64)])
def test_attention(n, heads, kv_heads, head_dim):
    agree(
        cpu.attention,
        reference.attention,
        [2 * normal(2, n, heads, head_dim), normal(2, n, kv_heads, head_dim), normal(2, n, kv_heads, head_dim)],
    )


@compiled
@pytest.mark.parametrize("width", [15, 64, 300])
def test_norms_and_gate(width):
    y, z, weight = normal(2, 70, width), 3 * normal(2, 70, width), normal(width)

    def plain(x, more, weight):
        total = x + more
        return total, F.rms_norm(total, (width,), weight, 1e-6)

    agree(lambda *t: cpu.gated_rms_norm(*t, 1e-6), lambda *t: reference.gated_rms_norm(*t, 1e-6), [y, z, weight])
    for skip in ((), (0,)):
        agree(lambda *t: cpu.add_rms_norm(*t, 1e-6), plain, [y, z, weight], skip)
    agree(
        lambda x, w: cpu.add_rms_norm(x, None, w, 1e-6)[1], lambda x, w: F.rms_norm(x, (width,), w, 1e-6), [y, weight]
    )
    agree(cpu.silu_mul, lambda gate, up: F.silu(gate) * up, [20 * y, z])


@compiled
def test_gate_far_from_zero_has_finite_gradients():
    gate = torch.tensor([0.0, 1e-30, 50.0, -50.0, 88.0, 200.0, -200.0, 1e30, -1e30], requires_grad=True)
    up = torch.ones_like(gate, requires_grad=True)
    cpu.silu_mul(gate, up).sum().backward()
    assert gate.grad.isfinite().all() and up.grad.isfinite().all()
    torch.testing.assert_close(up.grad, F.silu(gate.detach()), rtol=1e-6, atol=1e-30)


@compiled
def test_bits_do_not_depend_on_threads():
    inputs = [t.float() for t in scan_inputs(150, 6, 16, 1, 32, batch=3)]
    weights = [torch.randn(3, 150, 6, 16), torch.randn(3, 6, 16, 32)]
    before, runs = torch.get_num_threads(), []
    for number in (1, 2, 5):
        torch.set_num_threads(number)
        runs.append(gradients(with_state(cpu.ssd_scan), inputs, weights, torch.float32))
    torch.set_num_threads(before)
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


@compiled
def test_training_runs_on_them(monkeypatch):
    monkeypatch.delenv("HYBRIDNA_KERNELS", raising=False)
    for op in ("ssd_scan", "causal_conv1d", "gated_rms_norm"):
        args, kwargs = parity.example(op, dtype=torch.float32)
        args[0].requires_grad_()
        assert dispatch.refusal(op, "triton", args, kwargs) is not None
        assert dispatch.refusal(op, "cpu", args, kwargs) is None
    x, weight, bias = torch.randn(1, 9, 4), torch.randn(4, 7, requires_grad=True), torch.randn(4)
    assert cpu.refuse_causal_conv1d((x, weight, bias), {}) == "no backward for width 7"


def test_rounded_products():
    x, weight = torch.randn(3, 50, 40), torch.randn(20, 40)
    leaves = [t.clone().requires_grad_() for t in (x, weight)]
    with bf16_products():
        y = linear(*leaves)
    # The block has ended: the gradient still belongs to the product as it was made.
    found = torch.autograd.grad(y.square().sum(), leaves)
    exact = [t.double().requires_grad_() for t in (x, weight)]
    due = torch.autograd.grad(F.linear(*exact).square().sum(), exact)
    assert y.dtype == torch.float32 and not torch.equal(y, linear(x, weight))
    for f, d in zip((y, *found), (F.linear(*exact), *due), strict=True):
        assert (f - d).abs().max() < 0.02 * d.abs().max()
    torch.testing.assert_close(linear(x, weight), F.linear(x, weight))


@compiled
@pytest.mark.skipif(build.platform.machine() != "x86_64", reason="names x86 instruction sets")
@pytest.mark.parametrize("machine", ["x86-64", "x86-64-v3"])
def test_narrower_vectors(machine, monkeypatch, tmp_path):
    if machine == "x86-64-v3" and " avx2 " not in build._processor():
        pytest.skip("no AVX2 here")
    monkeypatch.setattr(build, "MACHINE", f"-march={machine}")
    monkeypatch.setattr(build, "_found", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert build.library()[1] is None
    test_scan_of_any_shape(3, 5, 1, 7)
    test_scan_of_any_shape(2, 33, 1, 9)
    test_convolution(65, 33, 3, True)
    test_norms_and_gate(15)
