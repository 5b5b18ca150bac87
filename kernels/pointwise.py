"""Small fused passes beside the matrix products: the residual sum with its norm, and the gate of the MLP.

plain torch, or one pass of the C++ or Triton kernels where they can run
"""

import torch
import torch.nn.functional as F

from hybridna_kernels import cpu, dispatch, triton


def add_rms_norm(x, more, weight, eps):
    """Add two tensors and scale each vector of the sum to unit mean square; return the sum and the scaled sum.

    x       (..., width)
    more    (..., width) or None, then x itself is the sum
    weight  (width,)

    Statistics in float32 at least.
    """
    if _fused(x, more, weight):
        return cpu.add_rms_norm(x, more, weight, eps)
    if _on_triton(x, more, weight):
        return triton.add_rms_norm(x, more, weight, eps)
    total = x if more is None else x + more
    if total.dtype in (torch.float32, torch.float64):
        return total, F.rms_norm(total, total.shape[-1:], weight.to(total.dtype), eps)
    return total, F.rms_norm(total.float(), total.shape[-1:], weight.float(), eps).to(total.dtype)


def silu_mul(gate, up):
    """Return silu(gate) * up. gate, up (..., width)"""
    if _fused(gate, up):
        return cpu.silu_mul(gate, up)
    return F.silu(gate) * up


def _fused(*tensors):
    # These passes follow the choice for the norm, the op most like them.
    return dispatch.forced().get("gated_rms_norm") in (None, "cpu") and cpu.refuse(*tensors) is None


def _on_triton(*tensors):
    wanted = dispatch.forced().get("gated_rms_norm")
    if wanted not in (None, "triton") or triton.refuse_rows(*tensors) is not None:
        return False
    return wanted == "triton" or triton.untested(tensors[0].device) is None
