"""The C++ kernels' forward passes, without autograd.

tensors -> pointers and strides -> library -> new tensors
"""

import ctypes

import torch

from hybridna_kernels.cpu import build
from hybridna_kernels.cpu.call import address, contiguous, dense, integer, number, rows_of, strided, threads


def scan(x, dt, A, B, C, D, state, kept=None, on_tiles=False):
    """Run ssd_scan without autograd.

    kept      (batch, heads, chunks, head_dim, state_size), filled with the state before each chunk; None: not wanted
    on_tiles  on the processor's matrix tiles; head_dim and state_size multiples of 32
    """
    library = build.library()[0]
    batch, length, heads, head_dim = x.shape
    groups, size = B.shape[2:]
    x, B, C = (dense(t) for t in (x, B, C))
    A, D = A.contiguous(), D.contiguous()
    state = contiguous(state)
    y, after = x.new_empty(batch, length, heads, head_dim), x.new_empty(batch, heads, head_dim, size)
    shape = [integer(n) for n in (batch, length, heads, head_dim, groups, size)]
    name = "hybridna_tile_ssd" if on_tiles else "hybridna_ssd"
    measure, run = getattr(library, f"{name}_scratch"), getattr(library, f"{name}_scan")
    measure.restype = ctypes.c_int64
    scratch = x.new_empty(measure(*shape))
    run(
        *strided(x, 3), *strided(dt, 3), address(A), *strided(B, 3), *strided(C, 3), address(D), address(state),
        address(y), address(after), address(kept), address(scratch), *shape, threads(),
    )  # fmt: skip
    return y, after


def step(x, dt, A, B, C, D, state, rows):
    """Run ssd_step without autograd."""
    batch, heads, head_dim = x.shape
    groups, size = B.shape[1:]
    x, B, C = (dense(t) for t in (x, B, C))
    A, D, state, rows = (contiguous(t) for t in (A, D, state, rows))
    y, after = x.new_empty(batch, heads, head_dim), x.new_empty(batch, heads, head_dim, size)
    build.library()[0].hybridna_ssd_step(
        *strided(x, 2), *strided(dt, 2), address(A), *strided(B, 2), *strided(C, 2), address(D), address(state),
        address(rows), address(y), address(after), *(integer(n) for n in (batch, heads, head_dim, groups, size)),
        threads(),
    )  # fmt: skip
    return y, after


def convolution(x, weight, bias, state):
    """Return the outputs of causal_conv1d, without autograd."""
    batch, length, channels = x.shape
    width = weight.shape[1]
    x, by_tap = dense(x), weight.t().contiguous()
    bias, state = contiguous(bias), contiguous(state)
    zeros = x.new_zeros(channels) if state is None else None
    y = x.new_empty(batch, length, channels)
    build.library()[0].hybridna_causal_conv1d(
        *strided(x, 2), address(by_tap), address(bias), address(state), address(zeros), address(y),
        integer(batch), integer(length), integer(channels), integer(width), threads(),
    )  # fmt: skip
    return y


def attention(q, k, v, shared_k, shared_v, weight=None):
    """Attend causally; shapes as in `reference.attention`.

    weight  (batch, heads, n), filled with the log-sum-exp of each query's scores; None: not wanted
    """
    library = build.library()[0]
    batch, n, heads, head_dim = q.shape
    m, kv_heads = k.shape[1:3]
    q, k, v = (dense(t) for t in (q, k, v))
    shared_k, shared_v = (None if t is None else dense(t) for t in (shared_k, shared_v))
    shared = 0 if shared_k is None else shared_k.shape[1]
    common = [[address(None), integer(0), integer(0)] if t is None else strided(t[0], 2) for t in (shared_k, shared_v)]
    out = q.new_empty(batch, n, heads, head_dim)
    library.hybridna_attention_scratch.restype = ctypes.c_int64
    needed = library.hybridna_attention_scratch(
        *(integer(i) for i in (batch, kv_heads, head_dim, m, shared, n * heads // kv_heads)), threads()
    )
    scratch = q.new_empty(needed)
    library.hybridna_attention(
        *strided(q, 3), *strided(k, 3), *strided(v, 3), *common[0], *common[1], address(out), address(weight),
        address(scratch), number(head_dim**-0.5),
        *(integer(i) for i in (batch, n, heads, kv_heads, head_dim, m, shared)), threads(),
    )  # fmt: skip
    return out


def gated_rms_norm(y, z, weight, eps):
    """Run gated_rms_norm without autograd."""
    out = torch.empty(y.shape)
    y, z, weight = rows_of(y), rows_of(z), weight.contiguous()
    build.library()[0].hybridna_gated_rms_norm(
        address(y), integer(y.stride(0)), address(z), integer(z.stride(0)), address(weight), number(eps), address(out),
        integer(y.shape[0]), integer(y.shape[1]), threads(),
    )  # fmt: skip
    return out


def add_rms_norm(x, more, weight, eps):
    """Run add_rms_norm without autograd."""
    x, weight = x.contiguous(), weight.contiguous()
    more = None if more is None else more.contiguous()
    added = x if more is None else torch.empty_like(x)
    out = torch.empty_like(x)
    build.library()[0].hybridna_add_rms_norm(
        address(x), address(more), address(weight), number(eps), address(added), address(out),
        integer(x.numel() // x.shape[-1]), integer(x.shape[-1]), threads(),
    )  # fmt: skip
    return added, out


def silu_mul(gate, up):
    """Run silu_mul without autograd."""
    gate, up = gate.contiguous(), up.contiguous()
    out = torch.empty_like(gate)
    build.library()[0].hybridna_silu_mul(address(gate), address(up), address(out), integer(gate.numel()), threads())
    return out
