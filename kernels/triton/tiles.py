"""The committed table of tiles: no tuning at run time.

(op, shape, dtype) -> tokens or rows per tile, warps, stages
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from hybridna_kernels.triton import setting


class Tile(NamedTuple):
    """How one kernel is cut: tokens per step, channels and warps per program, stages of the pipeline."""

    tokens: int
    channels: int
    warps: int
    stages: int
    dtype: torch.dtype

    def options(self):
        """Return the launch options. Fusion of products and sums is asked for, as releases differ in the default."""
        return {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}

    def parts(self, P):
        """Return how many programs share the channels of a head."""
        return -(-P // self.block(P))

    def block(self, P):
        """Return the channels of one program, at least the 16 that a product needs."""
        return max(16, min(self.channels, triton.next_power_of_2(P)))

    def blocks(self, P, N):
        """Return the block sizes and the precision of products as the scan kernels name them."""
        return {
            "BLOCK_P": self.block(P), "BLOCK_N": max(16, triton.next_power_of_2(N)), "TOKENS": self.tokens,
            **products(self.dtype),
        }  # fmt: skip


def products(dtype):
    """Return the dtype of operands and the precision of products: bfloat16, or float32 as three terms of TF32."""
    # In the interpreter products of bfloat16 are wrong, so operands are widened there.
    low = dtype == torch.bfloat16 and not setting.interpreted()
    return {"OPERAND": tl.bfloat16 if low else tl.float32, "PRECISION": "tf32x3"}


def _launch(warps, stages=1):
    return {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}


# (head_dim, state_size up to) -> tokens, channels, warps, stages. Compiled for sm_90 without spills, not yet timed on a
# device. float32 with states of 128 spills in every cut tried, so `setting.LARGEST` leaves it out.
_SCAN = {
    torch.bfloat16: {(64, 64): (64, 64, 4, 2), (64, 128): (64, 64, 8, 2)},
    torch.float32: {(64, 64): (16, 32, 4, 1)},
}
_TILE_GRADIENT = {
    torch.bfloat16: {(64, 64): (64, 64, 8, 1), (64, 128): (64, 64, 8, 1)},
    torch.float32: {(64, 64): (32, 64, 8, 1)},
}


def scan(P, N, dtype):
    """Return the tile of the scan: that of the smallest shape in the table that holds this one."""
    return _find(_SCAN, P, N, dtype)


def _find(table, P, N, dtype):
    for (largest_p, largest_n), numbers in table[dtype].items():
        if largest_p >= P and largest_n >= N:
            return Tile(*numbers, dtype)
    raise ValueError(f"no tile for head_dim {P}, state_size {N}")


def step(P, N):
    """Return how many channels one program of the step takes, and its launch options."""
    # Small blocks, as one token of a few beams must fill the device; the whole state is read once either way.
    return min(16, triton.next_power_of_2(P)), _launch(4)


def convolution():
    """Return tokens and channels of one tile of the convolution, and its launch options."""
    return (32, 64), _launch(4)


def norm(width, dtype):
    """Return the padded width of a row and the launch options of the norms."""
    block = triton.next_power_of_2(width)
    # Of rows of 8,192 the backward pass of the gate spills in bfloat16 with 8 warps, in float32 (refused) with any.
    wide = 16 if dtype == torch.bfloat16 else 8
    return block, _launch(4 if block <= 2048 else 8 if block <= 4096 else wide)


# Rows whose gradients of the weight one program of the norms' backward passes sums up.
NORM_ROWS = 16


def tile_gradient(P, N, dtype):
    """Return the tile of the kernel that takes the gradients of one tile of tokens."""
    return _find(_TILE_GRADIENT, P, N, dtype)


def loss(vocabulary, dtype):
    """Return the block sizes, the precision of products and the launch options of the head with its loss."""
    block = max(16, triton.next_power_of_2(vocabulary))
    return {"BLOCK_V": block, "ROWS": 64, "WIDTH": 64, **products(dtype), **_launch(4, 3)}
