"""The C++ products with small weights, and the weights as those read them.

weight (outputs, depth) -> panels (n, depth, outputs of a panel), kept with the weight -> product, fused with its norm,
gate or residual
"""

import torch

from hybridna_kernels.cpu import build
from hybridna_kernels.cpu.call import address, contiguous, integer, number, rows_of, threads

# Floats of a weight that is kept a second time, as panels. Larger ones leave the caches, and oneDNN reads them as well.
LARGEST = 1 << 20


def product(x, weight, *, up=None, z=None, norm=None, eps=0.0, add=None):
    """Multiply by a weight, float32, without autograd.

    x       (..., depth)
    weight  (outputs, depth)
    up      (outputs, depth), then the result is silu(x weight^T) * (x up^T); or None
    z       (..., depth): x is multiplied by silu(z) first, only with `norm`; or None
    norm    (depth,): then scaled to unit mean square, times this; or None
    add     (..., outputs), added to the result; not with `up`; or None

    returns (..., outputs). A row's result does not depend on how many there are, nor on threads.
    """
    rows = rows_of(x)
    gates = None if z is None else rows_of(z)
    add = contiguous(add)
    out = x.new_empty(*x.shape[:-1], weight.shape[0])
    build.library()[0].hybridna_product(
        address(rows), integer(rows.stride(0)), address(gates), integer(0 if gates is None else gates.stride(0)),
        address(contiguous(norm)), number(eps), address(panels(weight, up)), address(add), address(out),
        integer(rows.shape[0]), integer(rows.shape[1]), integer(weight.shape[0]), integer(up is not None), threads(),
    )  # fmt: skip
    return out


def is_fixed(weight):
    """Say whether a weight is kept as panels from call to call.

    One that is trained, or is made anew for a call, would be laid out each time; inference tensors do not say when they
    change.
    """
    return isinstance(weight, torch.nn.Parameter) and not (weight.requires_grad or weight.is_inference())


def panels(weight, up=None):
    """Return a weight, or two in turn, as panels, made anew when the weight's memory or version is another.

    A weight changed through `.data` keeps its version; torch gives no sign of such a change.
    """
    state = [(t.data_ptr(), t._version) for t in (weight, up) if t is not None]
    kept = getattr(weight, "_hybridna_panels", None)
    if kept is None or kept[0] != state:
        kept = state, make_panels(weight.detach(), None if up is None else up.detach())
        weight._hybridna_panels = kept
    return kept[1]


def make_panels(weight, up=None):
    """Lay out a weight, or two in turn, as panels."""
    library = build.library()[0]
    wide = library.hybridna_product_width()
    outputs, depth = weight.shape
    width = wide if up is None else wide // 2
    count = -(-outputs // width)
    parts = []
    for tensor in (weight, up):
        if tensor is None:
            continue
        whole = tensor.new_zeros(count * width, depth)
        whole[:outputs] = tensor
        parts.append(whole.view(count, width, depth))
    return torch.cat(parts, dim=1).transpose(1, 2).contiguous()
