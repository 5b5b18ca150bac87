"""A whole Mamba-2 block with its MLP in one call: what fills the time of short passes is calling kernel after kernel.

a block's tensors -> pointers and sizes -> library -> what leaves the block, and its state
"""

import ctypes
from typing import NamedTuple

import torch

from hybridna_kernels.cpu import build
from hybridna_kernels.cpu.call import address, contiguous, integer, threads
from hybridna_kernels.cpu.projection import panels


class MambaBlock(NamedTuple):
    """Weights of a block `x + mixer(norm(x))`, then `x + mlp(norm(x))`, and what goes with them.

    norm, mlp_norm  (hidden,), eps and mlp_eps with them
    in_proj         (width + channels + heads, hidden): the gate z; x, B and C; dt
    conv            (channels, 1, taps), conv_bias (channels,)
    dt_bias, A_log, D  (heads,)
    gated_norm      (width,), gated_eps with it
    out_proj        (hidden, width)
    gate, up        (inner, hidden)
    down            (hidden, inner)
    dt_range        least and most of dt, or None
    """

    norm: torch.Tensor
    in_proj: torch.Tensor
    conv: torch.Tensor
    conv_bias: torch.Tensor
    dt_bias: torch.Tensor
    A_log: torch.Tensor
    D: torch.Tensor
    gated_norm: torch.Tensor
    out_proj: torch.Tensor
    mlp_norm: torch.Tensor
    gate: torch.Tensor
    up: torch.Tensor
    down: torch.Tensor
    eps: float
    gated_eps: float
    mlp_eps: float
    dt_range: tuple | None
    groups: int

    @property
    def tensors(self):
        return self[:13]


class _Weights(ctypes.Structure):
    # As block.cpp has it.
    _fields_ = (
        [(f"pointer{i}", ctypes.c_void_p) for i in range(12)]
        + [(name, ctypes.c_double) for name in ("eps", "gated_eps", "mlp_eps", "dt_least", "dt_most")]
        + [(name, ctypes.c_int64) for name in ("hidden", "heads", "head_dim", "groups", "size", "taps", "inner")]
    )


def mamba_block(x, conv, ssm, rows, block):
    """Return what leaves a MambaBlock and its new states; float32, without autograd.

    x     (batch, length, hidden)
    conv  (batch, taps - 1, channels)
    ssm   (batch, heads, head_dim, size), of any number of rows where `rows` says whose
    rows  (batch,) int64, for a length of 1 alone; or None

    A row's results depend neither on the rows beside it nor on threads.
    """
    batch, length, hidden = x.shape
    heads, head_dim, size = ssm.shape[1:]
    least, most = block.dt_range or (0.0, float("inf"))
    # Held by this name until the call is over.
    held = [
        contiguous(t)
        for t in (
            block.norm, panels(block.in_proj), block.conv, block.conv_bias, block.dt_bias, block.A_log, block.D,
            block.gated_norm, panels(block.out_proj), block.mlp_norm, panels(block.gate, block.up), panels(block.down),
        )
    ]  # fmt: skip
    weights = _Weights(
        *(t.data_ptr() for t in held), block.eps, block.gated_eps, block.mlp_eps, least, most,
        hidden, heads, head_dim, block.groups, size, block.conv.shape[-1], block.gate.shape[0],
    )  # fmt: skip
    x, conv, ssm, rows = (contiguous(t) for t in (x, conv, ssm, rows))
    out, conv_after = torch.empty_like(x), torch.empty_like(conv)
    ssm_after = ssm.new_empty(batch, heads, head_dim, size)
    build.library()[0].hybridna_mamba_block(
        ctypes.byref(weights), address(x), address(conv), address(ssm), address(rows), address(out),
        address(conv_after), address(ssm_after), integer(batch), integer(length), threads(),
    )  # fmt: skip
    return out, conv_after, ssm_after
