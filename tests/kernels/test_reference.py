"""The chunked scan and the other ops against their slow definitions: outputs, last state, gradients."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from hybridna_kernels import dispatch, installed, parity, reference

LENGTHS = [1, 2, 63, 64, 65, 257, 1000]


def gradients(function, args, kwargs):
    """Return outputs and the gradient of a fixed random sum of all of them for every floating argument."""
    args = [a.clone().requires_grad_() if isinstance(a, torch.Tensor) else a for a in args]
    kwargs = {k: v.clone().requires_grad_() if isinstance(v, torch.Tensor) else v for k, v in kwargs.items()}
    out = function(*args, **kwargs)
    out = out if isinstance(out, tuple) else (out,)
    generator = torch.Generator().manual_seed(1)
    total = sum((o * torch.randn(o.shape, generator=generator, dtype=o.dtype)).sum() for o in out)
    leaves = [t for t in [*args, *kwargs.values()] if isinstance(t, torch.Tensor)]
    return [o.detach() for o in out], torch.autograd.grad(total, leaves)


def close(found, due, tolerance):
    for f, d in zip(found, due, strict=True):
        assert f.shape == d.shape
        scale = max(1.0, float(d.abs().max()))
        assert float((f - d).abs().max()) <= tolerance * scale


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("with_state", [False, True])
def test_chunked_scan_equals_the_recurrence_in_float64(length, with_state):
    args, kwargs = parity.example("ssd_scan", length=length, with_state=with_state, seed=length)
    due, due_gradients = gradients(reference.ssd_scan_sequential, args, kwargs)
    found, found_gradients = gradients(reference.ssd_scan, args, kwargs)
    close(found, due, 1e-10)
    close(found_gradients, due_gradients, 1e-10)


@pytest.mark.parametrize("chunk_size", [1, 7, 64, 1000])
def test_the_chunk_size_changes_nothing(chunk_size):
    args, kwargs = parity.example("ssd_scan", length=100)
    due = reference.ssd_scan(*args, **kwargs)
    close(reference.ssd_scan(*args, **kwargs, chunk_size=chunk_size), due, 1e-12)


def test_groups_share_nothing():
    x, dt, A, B, C, D = parity.example("ssd_scan", length=50)[0]
    B, C = (torch.cat([t, 2 * t.flip(1)], dim=2) for t in (B, C))
    found, state = reference.ssd_scan(x, dt, A, B, C, D)
    for g, h in ((0, slice(0, 2)), (1, slice(2, 4))):
        y, own = reference.ssd_scan_sequential(x[:, :, h], dt[:, :, h], A[h], B[:, :, [g]], C[:, :, [g]], D[h])
        close([found[:, :, h], state[:, h]], [y, own], 1e-12)


def test_hand_worked_recurrence():
    # One head, one channel, one state: h = a h + dt x B, y = C h + D x with a = exp(-dt).
    one = torch.ones(1, dtype=torch.float64)
    x = torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64).reshape(1, 3, 1, 1)
    dt = torch.tensor([1.0, 0.5, 1.0], dtype=torch.float64).reshape(1, 3, 1)
    B = torch.tensor([2.0, 1.0, 5.0], dtype=torch.float64).reshape(1, 3, 1, 1)
    C = torch.tensor([1.0, 3.0, 1.0], dtype=torch.float64).reshape(1, 3, 1, 1)
    y, state = reference.ssd_scan(x, dt, -one, B, C, 10 * one)
    h1 = 2.0
    h2 = h1 * 0.6065306597126334 + 1.0
    h3 = h2 * 0.36787944117144233
    assert y.flatten().tolist() == pytest.approx([h1 + 10, 3 * h2 + 20, h3], abs=1e-12)
    assert state.item() == pytest.approx(h3, abs=1e-12)


def test_long_decay_neither_overflows_nor_loses_the_state():
    args = list(parity.example("ssd_scan", length=300)[0])
    args[2] = args[2] * 1000
    due, found = reference.ssd_scan_sequential(*args), reference.ssd_scan(*args)
    assert all(t.isfinite().all() for t in found)
    close(found, due, 1e-10)


@pytest.mark.parametrize("length", [1, 2, 3, 65])
@pytest.mark.parametrize("with_state", [False, True])
def test_causal_conv_is_torchs_convolution(length, with_state):
    (x, weight, bias), kwargs = parity.example("causal_conv1d", length=length, with_state=with_state)
    before = kwargs["state"] if with_state else x.new_zeros(x.shape[0], 3, x.shape[2])
    padded = torch.cat([before, x], dim=1)
    due = torch.nn.functional.conv1d(padded.transpose(1, 2), weight[:, None], bias, groups=x.shape[2]).transpose(1, 2)
    y, state = reference.causal_conv1d(x, weight, bias, **kwargs)
    close([y, state], [torch.nn.functional.silu(due), padded[:, -3:]], 1e-12)


def plain_attention(q, k, v):
    """Softmax over the whole square, head by head, key heads repeated."""
    n, heads, head_dim = q.shape[1:]
    m = k.shape[1]
    k, v = (t.repeat_interleave(heads // k.shape[2], dim=2) for t in (k, v))
    scores = torch.einsum("bnhd,bmhd->bhnm", q, k) * head_dim**-0.5
    future = torch.arange(m)[None] > torch.arange(m - n, m)[:, None]
    return torch.einsum("bhnm,bmhd->bnhd", scores.masked_fill(future, float("-inf")).softmax(-1), v)


@pytest.mark.parametrize("past", [0, 1, 70])
@pytest.mark.parametrize("limit", [50, 2**21])
def test_attention_in_blocks_is_attention(past, limit, monkeypatch):
    monkeypatch.setattr(reference, "ATTENTION_SCORES_LIMIT", limit)
    (q, k, v), _ = parity.example("attention", length=65 + past)
    q = q[:, past:]
    close([reference.attention(q, k, v)], [plain_attention(q, k, v)], 1e-12)


def test_a_shared_prefix_is_a_prefix_of_every_row():
    (q, k, v), _ = parity.example("attention", length=60, batch=3)
    shared_k, shared_v = k[:1, :40], v[:1, :40]
    whole_k, whole_v = (torch.cat([s.expand(3, -1, -1, -1), t[:, 40:]], 1) for s, t in ((shared_k, k), (shared_v, v)))
    found = reference.attention(q[:, 40:], k[:, 40:], v[:, 40:], shared_k=shared_k, shared_v=shared_v)
    close([found], [plain_attention(q[:, 40:], whole_k, whole_v)], 1e-12)


@pytest.mark.parametrize("past,shared", [(0, 0), (0, 17), (23, 0), (23, 17)])
@pytest.mark.parametrize("n", [1, 40])
def test_fused_attention_joins_earlier_and_shared_keys(past, shared, n):
    (q, k, v), _ = parity.example("attention", length=n + past, batch=3)
    (_, common_k, common_v), _ = parity.example("attention", length=shared + 1, batch=1, seed=5)
    common = {} if not shared else {"shared_k": common_k[:, 1:], "shared_v": common_v[:, 1:]}
    args = q[:, past:], k, v
    assert installed.refuse_sdpa(args, common) is None
    close([installed.sdpa(*args, **common)], [reference.attention(*args, **common)], 1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("past,shared", [(0, 17), (23, 0), (23, 17)])
def test_on_a_gpu_earlier_keys_go_to_its_kernels(dtype, past, shared, monkeypatch):
    monkeypatch.delenv("HYBRIDNA_KERNELS", raising=False)

    def make(device, width=32):
        q, k, common = (torch.empty(2, n, 4, width, dtype=dtype, device=device) for n in (5, 5 + past, shared))
        return (q, k, k), common

    # The shapes are those that torch's CUDA kernels give, as torch itself derives them.
    args, common = make("meta")
    out = installed.sdpa(*args, **({} if not shared else {"shared_k": common[:1], "shared_v": common[:1]}))
    assert (out.shape, out.dtype) == (args[0].shape, dtype)
    with FakeTensorMode(), torch.no_grad():
        args, common = make("cuda")
        kwargs = {"shared_k": common} if shared else {}
        assert installed.refuse_sdpa(args, kwargs) is None
        assert "has not run on a GPU" in dispatch.refusal("attention", "sdpa", args, kwargs)
        assert installed.refuse_sdpa(make("cuda", 12)[0], kwargs) == "head_dim 12 does not divide by 8"
        # What torch offers to everyone needs no test of ours.
        assert dispatch.refusal("attention", "sdpa", (args[0],) * 3, {}) is None
        monkeypatch.setenv("HYBRIDNA_KERNELS", "attention=sdpa")
        assert dispatch.refusal("attention", "sdpa", args, kwargs) is None


def test_gated_norm_by_hand():
    y, z = torch.tensor([3.0, 4.0]).double(), torch.full((2,), 2.0).double()
    gated = [v * 2 / (1 + 2.718281828459045**-2) for v in (3, 4)]
    scale = ((gated[0] ** 2 + gated[1] ** 2) / 2) ** -0.5
    weight = torch.tensor([1.0, 10.0]).double()
    found = reference.gated_rms_norm(y, z, weight, 0.0).tolist()
    assert found == pytest.approx([gated[0] * scale, 10 * gated[1] * scale], rel=1e-12)


@pytest.mark.parametrize("op", dispatch.OPS)
def test_bfloat16_sums_in_float32(op):
    args, kwargs = parity.example(op, length=257, dtype=torch.float32)
    low = [a.bfloat16() if isinstance(a, torch.Tensor) and a.ndim > 1 else a for a in args]
    high = [a.float() if isinstance(a, torch.Tensor) else a for a in low]
    due, found = (parity.definition(op)(*a, **kwargs) for a in (high, low))
    due, found = (t if isinstance(t, tuple) else (t,) for t in (due, found))
    assert found[0].dtype == torch.bfloat16
    # Nothing is lost but the rounding of inputs' products and of the output itself.
    close([found[0].float()], [due[0]], 0.02)


@pytest.mark.parametrize("op,backend,error,limit", parity.check())
def test_every_backend_is_within_twice_the_definitions_own_error(op, backend, error, limit):
    assert error <= limit, f"{op} on {backend}"


def test_order_of_torchs_attention_kernels_on_cuda():
    usual = torch._C._get_sdp_priority_order()
    with installed.prefer("cuda"):
        order = torch._C._get_sdp_priority_order()
        assert [int(kind) for kind in installed.CUDA_ORDER] == order[: len(installed.CUDA_ORDER)]
        assert torch.backends.cuda.cudnn_sdp_enabled() and torch.backends.cuda.math_sdp_enabled()
    assert torch._C._get_sdp_priority_order() == usual
    with installed.prefer("cpu"):
        assert torch._C._get_sdp_priority_order() == usual
