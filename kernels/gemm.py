"""Matrix product with a weight, by the fastest route of the machine.

x (..., in), weight (out, in) -> x weight^T (..., out); CPU float32 goes through our C++ where the weight is small and
wants no gradient, in training through MKL on Intel's processors, else through oneDNN; all else through torch; inside
`bf16_products`, CPU float32 factors are rounded to bfloat16 first, for the processor's matrix tiles where it has some
"""

import contextlib
import functools
import re
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from hybridna_kernels import cpu, dispatch

_rounded = False
# Tokens from which on a weight is packed for one product on tiles.
LEAST_TOKENS = 16


@contextlib.contextmanager
def bf16_products(wanted=True):
    """Within the block, multiply CPU float32 tensors with their factors rounded to bfloat16, sums in float32.

    Off the processor's matrix tiles results are rounded to bfloat16 too; all between the products stays float32. Faster
    where the processor multiplies bfloat16. The gradients of a product made here are taken the same way.
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


@functools.cache
def _suits_mkl():
    """Say whether torch's own products are Intel's on an Intel processor; elsewhere those are slower than oneDNN's."""
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return False
    return torch.backends.mkl.is_available() and re.search("^vendor_id.*GenuineIntel", text, re.MULTILINE) is not None


def refuse_product(way, device="cpu", dtype=torch.float32):
    """Say why products with weights do not go a way of `dispatch.PRODUCTS` as things stand, or None."""
    asked = dispatch.forced().get("product")
    if asked not in (None, way):
        return f"HYBRIDNA_KERNELS asks for {asked}"
    if torch.device(device).type != "cpu" or dtype != torch.float32:
        return "needs float32 on CPU"
    if way == "tiles":
        return cpu.refuse_tiles()
    if way == "onednn":
        return None if _has_onednn() else "torch is built without it"
    return cpu.refuse() if way == "vectors" else None


def count_slices(tokens, numbers):
    """Return the slices of factors in products on matrix tiles, 0 where products do not go there now.

    tokens   read at a time: single ones would leave most of a tile empty
    numbers  of the weight: three slices of a large one leave the caches, which costs what tiles save
    """
    if tokens < 2 or (numbers > cpu.LARGEST_WEIGHT and not _rounded):
        return 0
    reason = refuse_product("tiles")
    if reason is None:
        return cpu.ROUNDED if _rounded else cpu.EXACT
    if dispatch.forced().get("product") == "tiles":
        raise dispatch.KernelError(f"product: backend 'tiles' refuses: {reason}")
    return 0


def _tokens(x):
    return x.shape[-2] if x.ndim > 1 else 1


def uses_panels(x, weight):
    """Say whether `cpu.product` takes these now: CPU float32, no gradient wanted, a small weight that is not trained.

    It follows the choice for the gated norm, the op most like what it does around a product.
    """
    if x.device.type != "cpu" or x.dtype != torch.float32 or (torch.is_grad_enabled() and x.requires_grad):
        return False
    slices = count_slices(_tokens(x), weight.numel())
    if not cpu.is_fixed(weight) or weight.numel() > (cpu.LARGEST_TILED if slices else cpu.LARGEST_WEIGHT):
        return False
    chosen = dispatch.forced()
    if chosen.get("gated_rms_norm") not in (None, "cpu") or chosen.get("product") not in (None, "tiles", "vectors"):
        return False
    return cpu.refuse(x, weight) is None and bool(slices or not _rounded)


def refuse_block(x, state, laid):
    """Say why `cpu.read_blocks` does not take a LaidOut block with these now, or None; shapes as there."""
    # It follows the choice for each of the ops that it is made of.
    chosen = dispatch.forced()
    ways = {op: (None, "tiles") if op == "ssd_scan" and laid.slices else (None, "cpu") for op in laid.block.ops}
    if any(chosen.get(op) not in ways[op] for op in laid.block.ops) or chosen.get("product") in ("onednn", "torch"):
        return "HYBRIDNA_KERNELS asks for others"
    if _rounded and not (laid.slices and x.shape[1] > 1):
        return "products are rounded"
    if laid.is_large and x.shape[1] == 1:
        return "single tokens, large weights"
    return cpu.refuse_block(x, state, laid)


def linear(x, weight, bias=None):
    """Multiply by a weight as `torch.nn.functional.linear` does.

    x       (..., in)
    weight  (out, in)
    bias    (out,) or None

    torch's own float32 product on some CPUs is half as fast as oneDNN's, which gives the same precision; tiles (AMX)
    take all bits of float32 in three slices. In training those pay on a core of one's own alone: beside a busy sibling
    thread, and slicing both factors anew each time, they are slower than vectors.
    """
    if x.device.type != "cpu" or x.dtype != torch.float32 or weight.dtype != torch.float32:
        return F.linear(x, weight, bias)
    slices, way = count_slices(_tokens(x), weight.numel()), dispatch.forced().get("product")
    is_trained = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    if uses_panels(x, weight):
        y = cpu.product(x, weight, slices=slices)
    elif slices and (_rounded or way == "tiles") and _tokens(x) >= LEAST_TOKENS and weight.numel():
        y = _TileLinear.apply(x, weight, slices)
    elif way == "torch" or not _has_onednn():
        return F.linear(x, weight, bias)
    elif _rounded:
        y = _RoundedLinear.apply(x, weight)
    elif is_trained and way != "onednn" and _suits_mkl():
        return F.linear(x, weight, bias)
    elif is_trained:
        y = _Linear.apply(x, weight)
    else:
        return _onednn(x, weight, bias)
    return y if bias is None else y + bias


def multiply(way, x, weight):
    """Multiply by a weight in one of the ways of `dispatch.PRODUCTS`, float32 on CPU without autograd; as `linear`."""
    if way in ("onednn", "torch"):
        return _onednn(x, weight) if way == "onednn" else F.linear(x, weight)
    return cpu.product(x, weight, slices=cpu.EXACT if way == "tiles" else 0)


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


class _TileLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, slices):
        ctx.save_for_backward(x, weight)
        ctx.slices = slices
        return cpu.matmul(x.reshape(-1, x.shape[-1]), weight, slices).view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        rows, columns = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        grad_x = cpu.matmul(rows, weight.t(), ctx.slices).view(x.shape) if ctx.needs_input_grad[0] else None
        grad_weight = cpu.matmul(rows.t(), columns.t(), ctx.slices) if ctx.needs_input_grad[1] else None
        return grad_x, grad_weight, None


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
