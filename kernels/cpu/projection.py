"""The C++ products, on vectors or on the processor's matrix tiles, and weights as those read them.

weight (outputs, depth) -> panels, kept with the weight -> product, fused with its norm, gate or residual
two factors of any kind -> product on tiles
"""

import ctypes

import torch

from hybridna_kernels.cpu import build
from hybridna_kernels.cpu.call import address, contiguous, integer, number, rows_of, threads

# Floats of a weight that is kept a second time, as panels. Larger ones leave the caches, and oneDNN reads them as well.
LARGEST = 1 << 20
# The same on tiles, rounded: half of its memory once more. 300m's stay below it, 3b's do not.
LARGEST_TILED = 1 << 23
# Of each factor in a product on tiles: all bits of a float32, or those of a bfloat16.
EXACT, ROUNDED = 3, 1
_NO_TILES = {1: "no AMX here", 2: "the system does not allow AMX"}


def refuse_tiles():
    """Say why products cannot go on matrix tiles here, or None."""
    library, reason = build.library()
    return reason if library is None else _NO_TILES.get(library.hybridna_tiles())


def product(x, weight, *, up=None, z=None, norm=None, eps=0.0, add=None, slices=0):
    """Multiply by a weight, float32, without autograd.

    x       (..., depth)
    weight  (outputs, depth)
    up      (outputs, depth), then the result is silu(x weight^T) * (x up^T); or None
    z       (..., depth): x is multiplied by silu(z) first, only with `norm`; or None
    norm    (depth,): then scaled to unit mean square, times this; or None
    add     (..., outputs), added to the result; not with `up`; or None
    slices  0: on vectors; EXACT or ROUNDED: on tiles

    returns (..., outputs). A row's result does not depend on how many there are, nor on threads.
    """
    rows = rows_of(x)
    gates = None if z is None else rows_of(z)
    add = contiguous(add)
    out = x.new_empty(*x.shape[:-1], weight.shape[0])
    before = (
        address(rows), integer(rows.stride(0)), address(gates), integer(0 if gates is None else gates.stride(0)),
        address(contiguous(norm)), number(eps), address(panels(weight, up, slices)), address(add), address(out),
        integer(rows.shape[0]), integer(rows.shape[1]), integer(weight.shape[0]), integer(up is not None),
    )  # fmt: skip
    if slices:
        build.library()[0].hybridna_tile_product(*before, integer(slices), threads())
    else:
        build.library()[0].hybridna_product(*before, threads())
    return out


def matmul(a, b, slices):
    """Multiply two factors on tiles, float32, without autograd.

    a       (rows, depth), b (columns, depth); each dense along one of its dimensions, or copied
    slices  EXACT or ROUNDED
    returns (rows, columns) a b^T. A row's result does not depend on how many there are, nor on threads.
    """
    a, b = (t if 1 in t.stride() else t.contiguous() for t in (a, b))
    out = a.new_empty(a.shape[0], b.shape[0])
    at = [(address(t), *(integer(n) for n in t.stride())) for t in (a, b)]
    build.library()[0].hybridna_tile_matmul(
        *at[0], *at[1], address(out), integer(a.shape[0]), integer(b.shape[0]), integer(a.shape[1]), integer(slices),
        threads(),
    )  # fmt: skip
    return out


def is_fixed(weight):
    """Say whether a weight is kept as panels from call to call.

    One that is trained, or is made anew for a call, would be laid out each time; inference tensors do not say when they
    change.
    """
    return isinstance(weight, torch.nn.Parameter) and not (weight.requires_grad or weight.is_inference())


def panels(weight, up=None, slices=0):
    """Return a weight, or two in turn, as panels, made anew when the weight's memory or version is another.

    slices  0: for products on vectors; EXACT or ROUNDED: on tiles
    A weight changed through `.data` keeps its version; torch gives no sign of such a change.
    """
    state = [(t.data_ptr(), t._version) for t in (weight, up) if t is not None]
    kept = getattr(weight, "_hybridna_panels", None)
    if kept is None or kept[0] != state:
        kept = weight._hybridna_panels = state, {}
    if slices not in kept[1]:
        make = make_tile_panels if slices else make_panels
        kept[1][slices] = make(weight.detach(), None if up is None else up.detach(), *([slices] if slices else []))
    return kept[1][slices]


def make_panels(weight, up=None):
    """Lay out a weight, or two in turn, as panels for products on vectors."""
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


def make_tile_panels(weight, up, slices):
    """Lay out a weight, or two in turn, as panels for products on tiles."""
    library = build.library()[0]
    weight, up = weight.contiguous(), contiguous(up)
    outputs, depth = weight.shape
    shape = integer(depth), integer(outputs)
    library.hybridna_tile_panels.restype = ctypes.c_int64
    # On a multiple of 64 bytes, as torch's memory is.
    made = torch.empty(
        library.hybridna_tile_panels(*shape, integer(up is not None), integer(slices)), dtype=torch.int16
    )
    library.hybridna_tile_pack(address(weight), address(up), *shape, integer(slices), address(made))
    return made
