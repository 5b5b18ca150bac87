"""Matrix product with a weight, by the fastest route of the machine.

x (..., in), weight (out, in) -> x weight^T (..., out); CPU float32 goes through our C++ where the weight is small and
wants no gradient, else through oneDNN; all else through torch; inside `bf16_products`, CPU float32 factors are rounded
to bfloat16 first
"""

import contextlib
import functools

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from hybridna_kernels import cpu, dispatch

_rounded = False


@contextlib.contextmanager
def bf16_products(wanted=True):
    """Within the block, multiply CPU float32 tensors with their factors rounded to bfloat16, sums in float32.

    Results are rounded to bfloat16 too; all between the products stays float32. Twice as fast where the processor
    multiplies bfloat16. The gradients of a product made here are taken the same way.
    """
    global _rounded
    before, _rounded = _rounded, wanted
    try:
        yield
    finally:
        _rounded = before


@functools.cache
def _has_onednn():
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def uses_panels(x, weight):
    """Say whether `cpu.product` takes these now: CPU float32, no gradient wanted, a small weight that is not trained.

    It follows the choice for the gated norm, the op most like what it does around a product.
    """
    if _rounded or x.device.type != "cpu" or x.dtype != torch.float32 or (torch.is_grad_enabled() and x.requires_grad):
        return False
    if not cpu.is_fixed(weight) or weight.numel() > cpu.LARGEST_WEIGHT:
        return False
    return dispatch.forced().get("gated_rms_norm") in (None, "cpu") and cpu.refuse(x, weight) is None


def refuse_block(x, state, laid):
    """Say why `cpu.read_blocks` does not take a LaidOut block with these now, or None; shapes as there."""
    # It follows the choice for each of the ops that it is made of.
    chosen = dispatch.forced()
    if any(chosen.get(op) not in (None, "cpu") for op in laid.block.ops):
        return "HYBRIDNA_KERNELS asks for others"
    return "products are rounded" if _rounded else cpu.refuse_block(x, state, laid)


def linear(x, weight, bias=None):
    """Multiply by a weight as `torch.nn.functional.linear` does.

    x       (..., in)
    weight  (out, in)
    bias    (out,) or None

    torch's own float32 product on some CPUs is half as fast as oneDNN's, which gives the same precision.
    """
    if x.device.type != "cpu" or x.dtype != torch.float32 or weight.dtype != torch.float32 or not _has_onednn():
        return F.linear(x, weight, bias)
    if uses_panels(x, weight):
        y = cpu.product(x, weight)
        return y if bias is None else y + bias
    if _rounded:
        y = _RoundedLinear.apply(x, weight)
        return y if bias is None else y + bias
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        y = _Linear.apply(x, weight)
        return y if bias is None else y + bias
    return _onednn(x, weight, bias)


def _onednn(x, weight, bias=None):
    return torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight.contiguous(), bias, "none", [], "")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return _onednn(x, weight)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        rows, columns = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        grad_x = _onednn(grad, weight.t()) if ctx.needs_input_grad[0] else None
        # The weight's gradient sums over rows; torch's own product is the faster one there.
        grad_weight = rows.t() @ columns if ctx.needs_input_grad[1] else None
        return grad_x, grad_weight


class _RoundedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        x, weight = x.bfloat16(), weight.bfloat16()
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight).float()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        grad = grad.bfloat16()
        rows, columns = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        grad_x = F.linear(grad, weight.t()).float() if ctx.needs_input_grad[0] else None
        grad_weight = (rows.t() @ columns).float() if ctx.needs_input_grad[1] else None
        return grad_x, grad_weight
