"""Autograd around the Triton kernels.

op -> Function: inputs saved, nothing else -> gradients by kernels; sums over parts in torch
"""

from torch.autograd import Function
from torch.autograd.function import once_differentiable

from hybridna_kernels.triton import rows, scan, scan_backward
from hybridna_kernels.triton.setting import dense


def contiguous(tensor):
    return None if tensor is None else tensor.contiguous()


class Scan(Function):
    """ssd_scan. The states between tiles are computed anew on the way back, so that none is kept."""

    @staticmethod
    def forward(ctx, x, dt, A, B, C, D, state):
        x, B, C, state = dense(x), dense(B), dense(C), contiguous(state)
        ctx.save_for_backward(x, dt, A, B, C, D, state)
        ctx.set_materialize_grads(False)
        return scan.scan(x, dt, A, B, C, D, state)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dlast):
        x, dt, A, B, C, D, state = ctx.saved_tensors
        dy = x.new_zeros(x.shape) if dy is None else dy.contiguous()
        found = scan_backward.scan_backward(x, dt, A, B, C, D, state, dy, contiguous(dlast))
        return *found[:6], found[6] if ctx.needs_input_grad[6] else None


class Convolution(Function):
    """causal_conv1d, its outputs alone: the new state is a slice of the inputs."""

    @staticmethod
    def forward(ctx, x, weight, bias, state):
        x, weight, bias, state = dense(x), weight.contiguous(), contiguous(bias), contiguous(state)
        ctx.save_for_backward(x, weight, bias, state)
        return rows.convolution(x, weight, bias, state)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, weight, bias, state = ctx.saved_tensors
        width = weight.shape[1]
        dx, dstate, sums = rows.convolution_backward(x, weight, bias, state, dy.contiguous())
        dbias = None if bias is None else sums[width]
        return dx, sums[:width].t(), dbias, dstate if ctx.needs_input_grad[3] else None


class GatedNorm(Function):
    """gated_rms_norm of rows."""

    @staticmethod
    def forward(ctx, y, z, weight, eps):
        y, z, weight = dense(y), dense(z), weight.contiguous()
        ctx.save_for_backward(y, z, weight)
        ctx.eps = eps
        return rows.norm(y, z, weight, eps, "gate")[1]

    @staticmethod
    @once_differentiable
    def backward(ctx, dout):
        y, z, weight = ctx.saved_tensors
        return *rows.norm_backward(y, z, weight, dout.contiguous(), None, ctx.eps), None


class AddNorm(Function):
    """The sum of two tensors of rows, and its norm; the norm alone when there is nothing to add."""

    @staticmethod
    def forward(ctx, x, more, weight, eps):
        x, more, weight = x.contiguous(), contiguous(more), weight.contiguous()
        added, out = rows.norm(x, more, weight, eps, "plain" if more is None else "add")
        ctx.save_for_backward(x if more is None else added, weight)
        ctx.eps = eps
        ctx.set_materialize_grads(False)
        return out if more is None else (added, out)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        total, weight = ctx.saved_tensors
        dadded, dout = (None, *grads) if len(grads) == 1 else grads
        pair = len(grads) == 2
        if dout is None:
            return dadded, dadded if pair else None, None, None
        dx, _, dweight = rows.norm_backward(total, None, weight, dout.contiguous(), contiguous(dadded), ctx.eps)
        return dx, dx if pair else None, dweight, None


def ssd_scan(x, dt, A, B, C, D, state):
    """Run the Mamba-2 recurrence over a sequence; shapes as in `reference.ssd_scan`."""
    return Scan.apply(x, dt, A, B, C, D, state)


def causal_conv1d(x, weight, bias, state):
    """Convolve each channel with its past, then SiLU; shapes as in `reference.causal_conv1d`."""
    import torch

    length, width = x.shape[1], weight.shape[1]
    before = state if state is not None and width > 1 else None
    y = Convolution.apply(x, weight, bias, before)
    if length >= width - 1:
        return y, x[:, length - width + 1 :].clone(memory_format=torch.contiguous_format)
    before = x.new_zeros(x.shape[0], width - 1, x.shape[2]) if state is None else state.to(x.dtype)
    return y, torch.cat([before[:, length:], x], dim=1)


def gated_rms_norm(y, z, weight, eps):
    """Gate, then norm; shapes as in `reference.gated_rms_norm`."""
    width = y.shape[-1]
    return GatedNorm.apply(y.reshape(-1, width), z.reshape(-1, width), weight, eps).reshape(y.shape)


def add_rms_norm(x, more, weight, eps):
    """Return x + more and its RMS norm; shapes as in `pointwise.add_rms_norm`."""
    flat = x.reshape(-1, x.shape[-1])
    if more is None:
        return x, AddNorm.apply(flat, None, weight, eps).reshape(x.shape)
    added, out = AddNorm.apply(flat, more.reshape(flat.shape), weight, eps)
    return added.reshape(x.shape), out.reshape(x.shape)
