"""The Triton kernels in Triton's interpreter, on CPU tensors, and compiled for a device that need not be there."""

import importlib.util
import json
import os
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F

from hybridna_kernels import dispatch, parity, pointwise, reference
from hybridna_kernels import triton as ours
from hybridna_kernels.triton import setting

installed = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
# Of a gradient, relative to its largest value: a sum in another order.
TOLERANCE = 1e-5


@pytest.fixture(autouse=True)
def filled_with_nan():
    """Fill memory that an op allocates, and may forget to write, with NaN."""
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = before


@contextmanager
def segments(number, monkeypatch):
    """Scan in that many segments, as a large device does with one long sequence."""
    from hybridna_kernels.triton import scan

    with monkeypatch.context() as patch:
        patch.setattr(scan, "SHORTEST_SEGMENT", 32)
        patch.setattr(scan, "MOST_SEGMENTS", number)
        patch.setattr(setting, "processors", lambda tensor: 132)
        yield


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def scan_inputs(length, heads, head_dim, groups, size, batch=1):
    """Draw x, dt, A, B, C, D and state."""
    dt = F.softplus(normal(batch, length, heads) - 2)
    B, C = normal(batch, length, groups, size), normal(batch, length, groups, size, seed=1)
    A, D = -normal(heads).exp(), normal(heads, seed=1)
    return [normal(batch, length, heads, head_dim), dt, A, B, C, D, normal(batch, heads, head_dim, size, seed=2)]


def with_state(op):
    return lambda *args: op(*args[:-1], state=args[-1])


def strided(tensor):
    """Return a float32 copy that lies among NaN, so that no row follows the last at once."""
    if tensor.ndim < 3:
        return tensor.float()
    wide = torch.full((*tensor.shape[:2], tensor.shape[2] + 5, *tensor.shape[3:]), float("nan"))
    wide[:, :, 2 : tensor.shape[2] + 2] = tensor
    return wide[:, :, 2 : tensor.shape[2] + 2]


def gradients(function, inputs, place):
    """Return the outputs and the gradients of a fixed random sum of them."""
    leaves = [place(t).requires_grad_() for t in inputs]
    out = function(*leaves)
    out = out if isinstance(out, tuple) else (out,)
    total = sum((o * normal(*o.shape, seed=9).to(o.dtype)).sum() for o in out)
    return [*(o.detach() for o in out), *torch.autograd.grad(total, leaves)]


def agree(function, definition, inputs):
    """Hold outputs and gradients in float32 to the definition's in float64."""
    due = gradients(definition, inputs, torch.Tensor.clone)
    found = gradients(function, inputs, strided)
    for i, (f, d) in enumerate(zip(found, due, strict=True)):
        assert f.shape == d.shape
        assert float((f - d).abs().max()) <= TOLERANCE * max(1.0, float(d.abs().max())), f"number {i}"


@installed
@pytest.mark.parametrize("length", [1, 2, 33, 65])
def test_scan_is_the_recurrence(length):
    agree(with_state(ours.ssd_scan), with_state(reference.ssd_scan_sequential), scan_inputs(length, 2, 8, 1, 16))


@installed
def test_scan_from_zeros():
    agree(ours.ssd_scan, reference.ssd_scan_sequential, scan_inputs(40, 2, 8, 1, 16)[:-1])


@installed
@pytest.mark.parametrize("heads,head_dim,groups,size", [(4, 5, 2, 7), (1, 1, 1, 1), (2, 33, 1, 9), (1, 64, 1, 64)])
def test_scan_of_any_shape(heads, head_dim, groups, size):
    inputs = scan_inputs(34, heads, head_dim, groups, size, batch=2)
    agree(with_state(ours.ssd_scan), with_state(reference.ssd_scan_sequential), inputs)


@installed
@pytest.mark.parametrize("number,length", [(2, 64), (3, 97)])
def test_scan_in_segments(number, length, monkeypatch):
    inputs = scan_inputs(length, 2, 4, 1, 4)
    with segments(number, monkeypatch):
        from hybridna_kernels.triton import scan

        assert scan.segments(inputs[0], 16)[0] == number
        agree(with_state(ours.ssd_scan), with_state(reference.ssd_scan_sequential), inputs)
        agree(ours.ssd_scan, reference.ssd_scan_sequential, inputs[:-1])


@installed
def test_long_decay_neither_overflows_nor_loses_the_state():
    inputs = scan_inputs(70, 2, 4, 1, 4)
    inputs[2] = inputs[2] * 1000
    agree(with_state(ours.ssd_scan), with_state(reference.ssd_scan_sequential), inputs)


@installed
def test_the_last_state_alone_has_gradients():
    inputs = scan_inputs(35, 2, 4, 1, 4)
    agree(
        lambda *t: with_state(ours.ssd_scan)(*t)[1] + 0 * t[4].sum() + 0 * t[5].sum(),
        lambda *t: with_state(reference.ssd_scan_sequential)(*t)[1] + 0 * t[4].sum() + 0 * t[5].sum(),
        inputs,
    )


@installed
def test_reading_in_parts_is_reading_at_once():
    x, dt, A, B, C, D, state = (t.float() for t in scan_inputs(70, 2, 8, 1, 8))
    due, last = ours.ssd_scan(x, dt, A, B, C, D, state=state)
    parts = []
    for part in (slice(0, 1), slice(1, 34), slice(34, 70)):
        y, state = ours.ssd_scan(x[:, part], dt[:, part], A, B[:, part], C[:, part], D, state=state)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, dim=1), due, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state, last, rtol=1e-5, atol=1e-5)


@installed
@pytest.mark.parametrize("rows", [None, [2, 0, 2, 1]])
@pytest.mark.parametrize("heads,head_dim,groups,size", [(4, 16, 2, 8), (2, 5, 1, 7), (1, 1, 1, 1), (2, 33, 1, 64)])
def test_step_goes_on_from_any_row(heads, head_dim, groups, size, rows):
    batch = 4 if rows else 3
    x, dt, A, B, C, D, _ = scan_inputs(1, heads, head_dim, groups, size, batch=batch)
    args = x[:, 0], dt[:, 0], A, B[:, 0], C[:, 0], D, normal(3, heads, head_dim, size)
    rows = None if rows is None else torch.tensor(rows)
    due = reference.ssd_step(*args, rows=rows)
    low = [t.float() for t in args]
    before = low[-1].clone()
    for f, d in zip(ours.ssd_step(*low, rows=rows), due, strict=True):
        assert float((f - d).abs().max()) <= TOLERANCE * max(1.0, float(d.abs().max()))
    assert torch.equal(low[-1], before)


@installed
@pytest.mark.parametrize("length", [1, 3, 33, 61])
@pytest.mark.parametrize("channels,width,state", [(24, 4, True), (67, 4, False), (7, 2, True), (5, 1, False)])
def test_convolution(length, channels, width, state):
    inputs = [normal(2, length, channels), normal(channels, width), normal(channels)]
    if state:
        inputs.append(normal(2, width - 1, channels))
        agree(with_state(ours.causal_conv1d), with_state(reference.causal_conv1d), inputs)
    else:
        agree(lambda *t: ours.causal_conv1d(*t)[0], lambda *t: reference.causal_conv1d(*t)[0], inputs)


@installed
def test_convolution_without_bias():
    inputs = [normal(2, 9, 24), normal(24, 4)]
    agree(lambda x, w: ours.causal_conv1d(x, w, None), lambda x, w: reference.causal_conv1d(x, w, None), inputs)


@installed
@pytest.mark.parametrize("width", [1, 15, 64])
def test_norms(width):
    y, z, weight = normal(2, 17, width), 3 * normal(2, 17, width, seed=1), normal(width)

    def plain(x, more, weight):
        total = x + more
        return total, F.rms_norm(total, (width,), weight, 1e-6)

    agree(lambda *t: ours.gated_rms_norm(*t, 1e-6), lambda *t: reference.gated_rms_norm(*t, 1e-6), [y, z, weight])
    agree(lambda *t: ours.add_rms_norm(*t, 1e-6), plain, [y, z, weight])
    agree(lambda *t: ours.add_rms_norm(*t, 1e-6)[1], lambda *t: plain(*t)[1], [y, z, weight])
    agree(
        lambda x, w: ours.add_rms_norm(x, None, w, 1e-6)[1], lambda x, w: F.rms_norm(x, (width,), w, 1e-6), [y, weight]
    )


@installed
@pytest.mark.parametrize("rows,width,vocabulary", [(1, 16, 12), (70, 33, 12), (65, 130, 21)])
def test_loss(rows, width, vocabulary):
    target = torch.arange(rows) % vocabulary
    target[::5] = -100
    agree(
        lambda x, w: ours.cross_entropy(x, w, target),
        lambda x, w: F.cross_entropy(x @ w.t(), target, reduction="none"),
        [normal(rows, width), normal(vocabulary, width)],
    )


@installed
def test_training_takes_the_loss_where_it_takes_the_norms(monkeypatch):
    called = []
    honest = ours.cross_entropy
    monkeypatch.setattr(ours, "cross_entropy", lambda *t: called.append(1) or honest(*t))
    target = torch.tensor([3, -1, 0, 11, -100])

    def losses():
        given = [t.float().requires_grad_() for t in (normal(5, 24), normal(12, 24))]
        out = pointwise.cross_entropy(*given, target)
        return [out.detach(), *torch.autograd.grad(out.sum(), given)]

    monkeypatch.delenv("HYBRIDNA_KERNELS", raising=False)
    plain = losses()
    assert not called and plain[0][1] == plain[0][4] == 0 and not plain[1][1].any()
    monkeypatch.setenv("HYBRIDNA_KERNELS", "triton")
    torch.testing.assert_close(losses(), plain, rtol=1e-4, atol=1e-5)
    assert called


@installed
@pytest.mark.parametrize("op", ["ssd_scan", "ssd_step", "causal_conv1d", "gated_rms_norm"])
def test_bfloat16_sums_in_float32(op):
    args, kwargs = parity.example(op, length=40, dtype=torch.float32)
    low = [a.bfloat16() if isinstance(a, torch.Tensor) and a.ndim > 1 else a for a in args]
    high = [a.float() if isinstance(a, torch.Tensor) else a for a in low]
    due, found = parity.definition(op)(*high, **kwargs), getattr(ours, op)(*low, **kwargs)
    due, found = (t if isinstance(t, tuple) else (t,) for t in (due, found))
    assert found[0].dtype == torch.bfloat16
    assert float((found[0].float() - due[0]).abs().max()) <= 0.01 * float(due[0].abs().max())


@installed
def test_chosen_by_name_only(monkeypatch):
    args, kwargs = parity.example("ssd_scan", length=9, dtype=torch.float32)
    monkeypatch.delenv("HYBRIDNA_KERNELS", raising=False)
    assert dispatch.refusal("ssd_scan", "triton", args, kwargs) == "Triton's interpreter is for tests"
    monkeypatch.setenv("HYBRIDNA_KERNELS", "triton")
    assert dispatch.refusal("ssd_scan", "triton", args, kwargs) is None
    due = reference.ssd_scan(*args, **kwargs)
    for found, d in zip(dispatch.run("ssd_scan", *args, **kwargs), due, strict=True):
        torch.testing.assert_close(found, d, rtol=1e-5, atol=1e-5)
    assert pointwise._on_triton(ours.refuse_rows, args[0])
    for op, backend, error, limit in parity.check():
        assert backend != "triton" or error <= limit, op


def test_what_they_refuse(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    args, kwargs = parity.example("ssd_scan", length=9, dtype=torch.float32)
    x, dt, A, B, C, D = args
    assert ours.refuse_ssd_scan(args, {"chunk_size": 32}) == "has chunks of its own"
    assert ours.refuse_ssd_scan((x[:, :, :3], dt, A, B.expand(-1, -1, 2, -1), C, D), {}) == (
        "heads do not divide into groups"
    )
    assert ours.refuse_ssd_scan((x.repeat(1, 1, 1, 9), dt, A, B, C, D), {}).startswith("head_dim above 64")
    assert ours.refuse_ssd_scan(*parity.example("ssd_scan", length=9)) == "needs float32 or bfloat16"
    assert ours.refuse_gated_rms_norm((torch.zeros(1, 20000), None, None), {}) == "rows wider than 16384"
    args, kwargs = parity.example("ssd_step", dtype=torch.float32)
    args[0].requires_grad_()
    assert ours.refuse_ssd_step(args, kwargs) == "no backward"
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert ours.refuse_ssd_scan(*parity.example("ssd_scan", length=9, dtype=torch.float32)) == "needs CUDA"


def test_an_untested_device_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(setting, "versions", lambda: ("3.9.0", "13.3"))
    device = torch.device("cuda")
    reason = "untested with sm_90, Triton 3.9.0, ptxas 13.3; HYBRIDNA_KERNELS=triton takes it"
    assert setting.untested(device) == reason
    monkeypatch.setattr(setting, "TESTED", {((9, 0), "3.9.0", "13.3")})
    assert setting.untested(device) is None


@installed
@pytest.mark.parametrize("version,wrong", [("3.3.1", False), ("3.4.0", True), ("3.7.0", True), ("3.7.1", False)])
def test_a_triton_that_miscompiles_is_not_trusted_with_gradients(version, wrong, monkeypatch):
    monkeypatch.setattr(setting, "versions", lambda: (version, "13.3"))
    args, kwargs = parity.example("ssd_scan", length=9, dtype=torch.float32)
    assert ours.refuse_ssd_scan(args, kwargs) is None
    args[0].requires_grad_()
    assert (ours.refuse_ssd_scan(args, kwargs) is not None) == wrong


def test_an_import_that_fails_is_the_reason(monkeypatch):
    setting.failure.cache_clear()
    monkeypatch.setitem(sys.modules, "triton", None)
    assert setting.failure().startswith("ModuleNotFoundError: ")
    setting.failure.cache_clear()


@installed
def test_every_kernel_fits_sm_90():
    # A sample in the fast set; `python -m hybridna_kernels.triton.compiled` compiles every launch.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-m", "hybridna_kernels.triton.compiled", "--sample"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0 and rows, done.stderr
    for row in rows:
        assert row["spilled"] == 0 and row["shared"] < 227 * 1024, row
