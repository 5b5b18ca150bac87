"""Adapters to the C++ kernels: float32 on CPU.

tensors -> pointers and strides, copies only where the last dimension is not dense -> library -> new tensors
"""

import torch

from hybridna_kernels.cpu import build, forward, training
from hybridna_kernels.cpu.block import (
    LARGEST_CONV,
    LARGEST_HEAD,
    LARGEST_STATE_SIZE,
    AttentionBlock,
    Kept,
    LaidOut,
    MambaBlock,
    read_blocks,
)
from hybridna_kernels.cpu.peak import multiply_add
from hybridna_kernels.cpu.projection import (
    EXACT,
    LARGEST_TILED,
    ROUNDED,
    is_fixed,
    matmul,
    panels,
    product,
    refuse_tiles,
)
from hybridna_kernels.cpu.projection import LARGEST as LARGEST_WEIGHT

__all__ = [
    "EXACT", "LARGEST_CONV", "LARGEST_HEAD", "LARGEST_STATE_SIZE", "LARGEST_TILED", "LARGEST_WEIGHT", "ROUNDED",
    "AttentionBlock", "Kept", "LaidOut", "MambaBlock", "is_fixed", "matmul", "multiply_add", "panels", "product",
    "read_blocks", "refuse_tiles",
]  # fmt: skip


def refuse(*tensors):
    """Say why the C++ kernels cannot take these tensors, or None. None among them are skipped."""
    for t in tensors:
        if t is None:
            continue
        if t.device.type != "cpu":
            return "needs CPU"
        if t.dtype != torch.float32:
            return "needs float32"
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
    return _scan(x, dt, A, B, C, D, state, on_tiles=False)


def refuse_ssd_scan_tiles(args, kwargs):
    head_dim, size = args[0].shape[-1], args[3].shape[-1]
    if head_dim % 32 or size % 32:
        return "head_dim or state size no multiple of 32"
    return refuse_ssd_scan(args, kwargs) or refuse_tiles()


def ssd_scan_tiles(x, dt, A, B, C, D, *, state=None, chunk_size=64):
    """Run the Mamba-2 recurrence over a sequence, its products on matrix tiles; shapes as in `reference.ssd_scan`."""
    return _scan(x, dt, A, B, C, D, state, on_tiles=True)


def _scan(*args, on_tiles):
    if training.wanted(*args):
        return training.Scan.apply(*args, on_tiles)
    return forward.scan(*args, on_tiles=on_tiles)


def refuse_ssd_step(args, kwargs):
    if training.wanted(*args):
        return "no backward"
    return "heads do not divide into groups" if args[0].shape[1] % args[3].shape[1] else refuse(*args)


def ssd_step(x, dt, A, B, C, D, state, *, rows=None):
    """Advance the Mamba-2 recurrence by one token; shapes as in `reference.ssd_step`."""
    return forward.step(x, dt, A, B, C, D, state, rows)


def refuse_causal_conv1d(args, kwargs):
    x, weight, bias = args
    if weight.shape[1] > LARGEST_CONV:
        return f"wider than {LARGEST_CONV}"
    state = kwargs.get("state")
    if weight.shape[1] not in training.CONVOLUTIONS and training.wanted(x, weight, bias, state):
        return f"no backward for width {weight.shape[1]}"
    return refuse(x, weight, bias, state if weight.shape[1] > 1 else None)


def causal_conv1d(x, weight, bias, *, state=None):
    """Convolve each channel with its past, then SiLU; shapes as in `reference.causal_conv1d`."""
    length, width = x.shape[1], weight.shape[1]
    if training.wanted(x, weight, bias, state):
        y = training.Convolution.apply(x, weight, bias, state)
    else:
        y = forward.convolution(x, weight, bias, state)
    if length >= width - 1:
        return y, x[:, length - width + 1 :].clone(memory_format=torch.contiguous_format)
    before = x.new_zeros(x.shape[0], width - 1, x.shape[2]) if state is None else state
    return y, torch.cat([before[:, length:], x], dim=1)


def refuse_block(x, state, laid):
    """Say why `read_blocks` cannot take a LaidOut block with these, or None; shapes as there."""
    if laid.reason is not None:
        return laid.reason
    if training.wanted(x, *state, *laid.block.tensors):
        return "no backward"
    if any(t is not None and t.dtype not in (torch.float32, torch.int64) for t in state):
        return "needs float32"
    if any(t is not None and t.device.type != "cpu" for t in state):
        return "needs CPU"
    return refuse(x)


def refuse_attention(args, kwargs):
    q = args[0]
    if q.shape[-1] % 2 or q.shape[-1] > LARGEST_HEAD:
        return f"head_dim odd or above {LARGEST_HEAD}"
    shared = kwargs.get("shared_k"), kwargs.get("shared_v")
    if training.wanted(*args, *shared) and (q.shape[1] != args[1].shape[1] or shared[0] is not None):
        return "no backward with earlier keys"
    return refuse(*args, *shared)


def attention(q, k, v, *, shared_k=None, shared_v=None):
    """Attend causally; shapes as in `reference.attention`."""
    if training.wanted(q, k, v):
        return training.Attention.apply(q, k, v)
    return forward.attention(q, k, v, shared_k, shared_v)


def refuse_gated_rms_norm(args, kwargs):
    return refuse(*args[:3])


def gated_rms_norm(y, z, weight, eps):
    """Gate, then scale each vector to unit mean square; shapes as in `reference.gated_rms_norm`."""
    if training.wanted(y, z, weight):
        return training.GatedNorm.apply(y, z, weight, eps)
    return forward.gated_rms_norm(y, z, weight, eps)


def add_rms_norm(x, more, weight, eps):
    """Return x + more and its RMS norm; shapes as in `pointwise.add_rms_norm`."""
    if not training.wanted(x, more, weight):
        return forward.add_rms_norm(x, more, weight, eps)
    found = training.AddNorm.apply(x, more, weight, eps)
    return (x, found) if more is None else found


def silu_mul(gate, up):
    """Return silu(gate) * up; shapes as in `pointwise.silu_mul`."""
    return training.SiluMul.apply(gate, up) if training.wanted(gate, up) else forward.silu_mul(gate, up)
