"""Small fused passes beside the matrix products: the residual sum with its norm, the gate of the MLP, head with loss.

plain torch, or one pass of the C++ or Triton kernels where they can run
"""

import torch
import torch.nn.functional as F

from hybridna_kernels import cpu, dispatch, triton
from hybridna_kernels.gemm import linear

IGNORED = -1


def add_rms_norm(x, more, weight, eps):
    """Add two tensors and scale each vector of the sum to unit mean square; return the sum and the scaled sum.

    x       (..., width)
    more    (..., width) or None, then x itself is the sum
    weight  (width,)

    Statistics in float32 at least.
    """
    if _fused(x, more, weight):
        return cpu.add_rms_norm(x, more, weight, eps)
    if _on_triton(triton.refuse_rows, x, more, weight):
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


def cross_entropy(hidden, head, target):
    """Return the loss of each row in nats, 0 where the target is negative; softmax in float32 at least.

    hidden  (rows, width)
    head    (vocabulary, width)
    target  (rows,) int64
    """
    if _on_triton(triton.refuse_cross_entropy, hidden, head, target):
        return triton.cross_entropy(hidden, head, target)
    logits = linear(hidden, head)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(logits, target.clamp_min(IGNORED), ignore_index=IGNORED, reduction="none")


def _fused(*tensors):
    # These passes follow the choice for the norm, the op most like them.
    return dispatch.forced().get("gated_rms_norm") in (None, "cpu") and cpu.refuse(*tensors) is None


def _on_triton(refuse, *tensors):
    wanted = dispatch.forced().get("gated_rms_norm")
    if wanted not in (None, "triton") or refuse(*tensors) is not None:
        return False
    return wanted == "triton" or triton.untested(tensors[0].device) is None
