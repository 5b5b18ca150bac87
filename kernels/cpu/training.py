"""Autograd around the C++ kernels: forward as ever, backward in C++ too.

op whose tensors want gradients -> Function: inputs and chunk states saved -> gradients; sums over parts in torch
"""

import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from hybridna_kernels.cpu import build, forward
from hybridna_kernels.cpu.call import address, contiguous, dense, integer, number, rows_of, strided, threads

CHUNK = 64  # tokens, as in scan.cpp
CONVOLUTIONS = (2, 3, 4)  # widths that have a backward pass


def wanted(*tensors):
    """Say whether any of the tensors, None among them skipped, wants a gradient now."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


class Scan(Function):
    """ssd_scan. The state before each chunk is kept: as many floats as x, for a state_size of 64."""

    @staticmethod
    def forward(ctx, x, dt, A, B, C, D, state, on_tiles):
        batch, length, heads, head_dim = x.shape
        kept = x.new_empty(batch, heads, -(-length // CHUNK), head_dim, B.shape[-1])
        y, last = forward.scan(x, dt, A, B, C, D, state, kept, on_tiles)
        ctx.save_for_backward(x, dt, A, B, C, D, kept)
        ctx.set_materialize_grads(False)
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dlast):
        x, dt, A, B, C, D, kept = ctx.saved_tensors
        batch, length, heads, head_dim = x.shape
        groups, size = B.shape[2:]
        dy = x.new_zeros(x.shape) if dy is None else dy.contiguous()
        dlast = contiguous(dlast)
        x, B, C, A, D = dense(x), dense(B), dense(C), A.contiguous(), D.contiguous()
        parts = min(4, heads // groups)
        dx, ddt = x.new_empty(x.shape), x.new_empty(batch, length, heads)
        dA, dD = x.new_empty(batch, heads), x.new_empty(batch, heads)
        dB, dC = (x.new_empty(parts, batch, length, groups, size) for _ in range(2))
        dstate = x.new_empty(batch, heads, head_dim, size) if ctx.needs_input_grad[6] else None
        build.library()[0].hybridna_ssd_backward(
            *strided(x, 3), *strided(dt, 3), address(A), *strided(B, 3), *strided(C, 3), address(D), address(kept),
            address(dy), address(dlast), address(dx), address(ddt), address(dA), address(dB), address(dC), address(dD),
            address(dstate), *(integer(n) for n in (batch, length, heads, head_dim, groups, size)), threads(),
        )  # fmt: skip
        return dx, ddt, dA.sum(0), dB.sum(0), dC.sum(0), dD.sum(0), dstate, None


class Convolution(Function):
    """causal_conv1d, its outputs alone: the new state is a slice of the inputs."""

    @staticmethod
    def forward(ctx, x, weight, bias, state):
        ctx.save_for_backward(x, weight, bias, state)
        return forward.convolution(x, weight, bias, state)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, weight, bias, state = ctx.saved_tensors
        batch, length, channels = x.shape
        width = weight.shape[1]
        x, by_tap, dy = dense(x), weight.t().contiguous(), dy.contiguous()
        bias, state = contiguous(bias), contiguous(state)
        library = build.library()[0]
        dx = x.new_empty(x.shape)
        dstate = x.new_empty(batch, width - 1, channels) if ctx.needs_input_grad[3] else None
        sums = x.new_empty(batch, _units(length), width + 1, channels)
        library.hybridna_causal_conv1d_backward(
            *strided(x, 2), address(by_tap), address(bias), address(state), address(dy), address(dx), address(dstate),
            address(sums), *(integer(n) for n in (batch, length, channels, width)), threads(),
        )  # fmt: skip
        sums = sums.sum((0, 1))
        return dx, sums[:width].t(), None if bias is None else sums[width], dstate


class Attention(Function):
    """attention without earlier keys; torch's own fused kernel goes back."""

    @staticmethod
    def forward(ctx, q, k, v):
        batch, n, heads, _ = q.shape
        weight = q.new_empty(batch, heads, n)
        out = forward.attention(q, k, v, None, None, weight)
        ctx.save_for_backward(q, k, v, out, weight)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, dout):
        q, k, v, out, weight = ctx.saved_tensors
        kv_heads = k.shape[2]
        per_kv = q.shape[2] // kv_heads
        dout, q, out, k, v = (t.transpose(1, 2) for t in (dout, q, out, k, v))
        k, v = (t.repeat_interleave(per_kv, dim=1) if per_kv > 1 else t for t in (k, v))
        back = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        dq, dk, dv = (t.transpose(1, 2) for t in back(dout, q, k, v, out, weight, 0.0, True))
        if per_kv > 1:
            dk, dv = (t.unflatten(2, (kv_heads, per_kv)).sum(3) for t in (dk, dv))
        return dq, dk, dv


class GatedNorm(Function):
    """gated_rms_norm."""

    @staticmethod
    def forward(ctx, y, z, weight, eps):
        ctx.save_for_backward(y, z, weight)
        ctx.eps = eps
        return forward.gated_rms_norm(y, z, weight, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx, dout):
        y, z, weight = ctx.saved_tensors
        dout, weight = dout.contiguous(), weight.contiguous()
        dy, dz = torch.empty_like(dout), torch.empty_like(dout)
        y, z = rows_of(y), rows_of(z)
        rows, width = y.shape
        sums = dout.new_empty(_units(rows), width)
        build.library()[0].hybridna_gated_rms_norm_backward(
            address(y), integer(y.stride(0)), address(z), integer(z.stride(0)), address(weight), number(ctx.eps),
            address(dout), address(dy), address(dz), address(sums), integer(rows), integer(width), threads(),
        )  # fmt: skip
        return dy, dz, sums.sum(0), None


class AddNorm(Function):
    """add_rms_norm: the sum and its norm, or the norm alone when there is nothing to add."""

    @staticmethod
    def forward(ctx, x, more, weight, eps):
        added, out = forward.add_rms_norm(x, more, weight, eps)
        ctx.save_for_backward(added, weight)
        ctx.eps = eps
        ctx.set_materialize_grads(False)
        return out if more is None else (added, out)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        total, weight = ctx.saved_tensors
        dadded, dout = (None, *grads) if len(grads) == 1 else grads
        if dout is None:
            return dadded, dadded if len(grads) == 2 else None, None, None
        dout, dadded, weight, total = dout.contiguous(), contiguous(dadded), weight.contiguous(), total.contiguous()
        width = total.shape[-1]
        rows = total.numel() // width
        dtotal, sums = torch.empty_like(dout), dout.new_empty(_units(rows), width)
        build.library()[0].hybridna_rms_norm_backward(
            address(total), address(weight), number(ctx.eps), address(dout), address(dadded), address(dtotal),
            address(sums), integer(rows), integer(width), threads(),
        )  # fmt: skip
        return dtotal, dtotal if len(grads) == 2 else None, sums.sum(0), None


class SiluMul(Function):
    """silu_mul."""

    @staticmethod
    def forward(ctx, gate, up):
        ctx.save_for_backward(gate, up)
        return forward.silu_mul(gate, up)

    @staticmethod
    @once_differentiable
    def backward(ctx, dout):
        gate, up = (t.contiguous() for t in ctx.saved_tensors)
        dout = dout.contiguous()
        dgate, dup = torch.empty_like(dout), torch.empty_like(dout)
        build.library()[0].hybridna_silu_mul_backward(
            address(gate), address(up), address(dout), address(dgate), address(dup), integer(gate.numel()), threads()
        )
        return dgate, dup


def _units(rows):
    return -(-rows // 64)  # SPAN of rows_backward.cpp
