"""Adapters to the C++ kernels: float32 on CPU, forward only.

tensors -> pointers and strides, copies only where the last dimension is not dense -> library -> new tensors
"""

import ctypes

import torch

from hybridna_kernels.cpu import build

# What the library's fixed buffers hold.
LARGEST_STATE_SIZE, LARGEST_CONV, LARGEST_HEAD = 512, 64, 256
# Packing all keys pays off from here on, against torch's fused attention.
FEWEST_QUERIES = 64


def refuse(*tensors):
    """Say why the C++ kernels cannot take these tensors, or None. None among them are skipped."""
    for t in tensors:
        if t is None:
            continue
        if t.device.type != "cpu":
            return "needs CPU"
        if t.dtype != torch.float32:
            return "needs float32"
        if t.requires_grad and torch.is_grad_enabled():
            return "no backward"
        if not t.numel():
            return "needs elements"
    return build.library()[1]


def refuse_ssd_scan(args, kwargs):
    x, _, _, B, *_ = args
    if kwargs.get("chunk_size", 64) != 64:
        return "chunks of 64 only"
    if B.shape[-1] > LARGEST_STATE_SIZE:
        return f"state size above {LARGEST_STATE_SIZE}"
    return "heads do not divide into groups" if x.shape[2] % B.shape[2] else refuse(*args, kwargs.get("state"))


def ssd_scan(x, dt, A, B, C, D, *, state=None, chunk_size=64):
    """Run the Mamba-2 recurrence over a sequence; shapes as in `reference.ssd_scan`."""
    library = build.library()[0]
    batch, length, heads, head_dim = x.shape
    groups, size = B.shape[2:]
    x, B, C = (_dense(t) for t in (x, B, C))
    A, D = A.contiguous(), D.contiguous()
    state = None if state is None else state.contiguous()
    y, after = x.new_empty(batch, length, heads, head_dim), x.new_empty(batch, heads, head_dim, size)
    shape = [_int(n) for n in (batch, length, heads, head_dim, groups, size)]
    library.hybridna_ssd_scratch.restype = ctypes.c_int64
    scratch = x.new_empty(library.hybridna_ssd_scratch(*shape))
    library.hybridna_ssd_scan(
        *_strided(x, 3), *_strided(dt, 3), _at(A), *_strided(B, 3), *_strided(C, 3), _at(D), _at(state),
        _at(y), _at(after), _at(scratch), *shape, _threads(),
    )  # fmt: skip
    return y, after


def refuse_causal_conv1d(args, kwargs):
    x, weight, bias = args
    if weight.shape[1] > LARGEST_CONV:
        return f"wider than {LARGEST_CONV}"
    state = kwargs.get("state")
    return refuse(x, weight, bias, state if weight.shape[1] > 1 else None)


def causal_conv1d(x, weight, bias, *, state=None):
    """Convolve each channel with its past, then SiLU; shapes as in `reference.causal_conv1d`."""
    batch, length, channels = x.shape
    width = weight.shape[1]
    x, by_tap = _dense(x), weight.t().contiguous()
    bias = None if bias is None else bias.contiguous()
    state = None if state is None else state.contiguous()
    zeros = x.new_zeros(channels) if state is None else None
    y = x.new_empty(batch, length, channels)
    build.library()[0].hybridna_causal_conv1d(
        *_strided(x, 2), _at(by_tap), _at(bias), _at(state), _at(zeros), _at(y),
        _int(batch), _int(length), _int(channels), _int(width), _threads(),
    )  # fmt: skip
    if length >= width - 1:
        return y, x[:, length - width + 1 :].clone(memory_format=torch.contiguous_format)
    before = x.new_zeros(batch, width - 1, channels) if state is None else state
    return y, torch.cat([before[:, length:], x], dim=1)


def refuse_attention(args, kwargs):
    q = args[0]
    if q.shape[1] < FEWEST_QUERIES:
        return f"fewer than {FEWEST_QUERIES} queries"
    if q.shape[-1] % 2 or q.shape[-1] > LARGEST_HEAD:
        return f"head_dim odd or above {LARGEST_HEAD}"
    return refuse(*args, kwargs.get("shared_k"), kwargs.get("shared_v"))


def attention(q, k, v, *, shared_k=None, shared_v=None):
    """Attend causally; shapes as in `reference.attention`."""
    library = build.library()[0]
    batch, n, heads, head_dim = q.shape
    m, kv_heads = k.shape[1:3]
    q, k, v = (_dense(t) for t in (q, k, v))
    shared_k, shared_v = (None if t is None else _dense(t) for t in (shared_k, shared_v))
    shared = 0 if shared_k is None else shared_k.shape[1]
    common = [[_at(None), _int(0), _int(0)] if t is None else _strided(t[0], 2) for t in (shared_k, shared_v)]
    out = q.new_empty(batch, n, heads, head_dim)
    library.hybridna_attention_scratch.restype = ctypes.c_int64
    needed = library.hybridna_attention_scratch(*(_int(i) for i in (batch, kv_heads, head_dim, m, shared)))
    scratch = q.new_empty(needed)
    library.hybridna_attention(
        *_strided(q, 3), *_strided(k, 3), *_strided(v, 3), *common[0], *common[1], _at(out), _at(scratch),
        ctypes.c_float(head_dim**-0.5), *(_int(i) for i in (batch, n, heads, kv_heads, head_dim, m, shared)),
        _threads(),
    )  # fmt: skip
    return out


def refuse_gated_rms_norm(args, kwargs):
    return refuse(*args[:3])


def gated_rms_norm(y, z, weight, eps):
    """Gate, then scale each vector to unit mean square; shapes as in `reference.gated_rms_norm`."""
    out = torch.empty(y.shape)
    y, z, weight = _rows(y), _rows(z), weight.contiguous()
    build.library()[0].hybridna_gated_rms_norm(
        _at(y), _int(y.stride(0)), _at(z), _int(z.stride(0)), _at(weight), ctypes.c_float(eps), _at(out),
        _int(y.shape[0]), _int(y.shape[1]), _threads(),
    )  # fmt: skip
    return out


def add_rms_norm(x, more, weight, eps):
    """Return x + more and its RMS norm; shapes as in `pointwise.add_rms_norm`."""
    x, weight = x.contiguous(), weight.contiguous()
    more = None if more is None else more.contiguous()
    added = x if more is None else torch.empty_like(x)
    out = torch.empty_like(x)
    build.library()[0].hybridna_add_rms_norm(
        _at(x), _at(more), _at(weight), ctypes.c_float(eps), _at(added), _at(out),
        _int(x.numel() // x.shape[-1]), _int(x.shape[-1]), _threads(),
    )  # fmt: skip
    return added, out


def silu_mul(gate, up):
    """Return silu(gate) * up; shapes as in `pointwise.silu_mul`."""
    gate, up = gate.contiguous(), up.contiguous()
    out = torch.empty_like(gate)
    build.library()[0].hybridna_silu_mul(_at(gate), _at(up), _at(out), _int(gate.numel()), _threads())
    return out


_int = ctypes.c_int64


def _at(tensor):
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def _strided(tensor, dimensions):
    return [_at(tensor), *(_int(n) for n in tensor.stride()[:dimensions])]


def _dense(tensor):
    """Return the tensor, or a copy if its last dimension is not dense."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def _rows(tensor):
    """See (..., width) as (rows, width) with a dense last dimension, copied only if that cannot be."""
    return _dense(tensor).reshape(-1, tensor.shape[-1])


def _threads():
    return _int(torch.get_num_threads())
