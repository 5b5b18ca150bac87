"""Adapter to the attention that torch brings.

(q, k, v) -> torch.nn.functional.scaled_dot_product_attention -> out
"""

import contextlib

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

# On CUDA in this order: cuDNN's is the faster one on Hopper where it takes the arguments, the last takes any.
CUDA_ORDER = (
    SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH,
)  # fmt: skip


# Largest head_dim of torch's flash kernel on CUDA, and what its rows' widths must divide by.
_CUDA_FLASH, _CUDA_ALIGNED = 256, 8


def refuse_sdpa(args, kwargs):
    """Say why torch's fused attention cannot take these arguments: its causal mask starts at the first key."""
    q, k = args[0], args[1]
    if q.dtype == torch.float64 and q.device.type != "cpu":
        return "no float64 on this device"
    if not _is_joined(args, kwargs):
        return None
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad):
        return "no gradient with earlier keys"
    if q.device.type == "cuda":
        return f"head_dim {q.shape[3]} does not divide by {_CUDA_ALIGNED}" if q.shape[3] % _CUDA_ALIGNED else None
    if q.device.type != "cpu" or not hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu"):
        return "no earlier keys on this device"
    return None


def untested(args, kwargs):
    """Say why attention to earlier keys does not run on CUDA unasked, or None: it names torch's kernels itself."""
    if args[0].device.type != "cuda" or not _is_joined(args, kwargs):
        return None
    return "with earlier keys it has not run on a GPU; HYBRIDNA_KERNELS can name it"


def _is_joined(args, kwargs):
    return args[0].shape[1] != args[1].shape[1] or kwargs.get("shared_k") is not None


def sdpa(q, k, v, *, shared_k=None, shared_v=None):
    """Causal attention by torch's fused kernel; shapes as in `reference.attention`.

    Earlier and shared keys are attended to without a mask, in passes of their own; the passes are joined by their
    log-sum-exp.
    """
    per_kv = q.shape[2] // k.shape[2]
    past = k.shape[1] - q.shape[1]
    if not past and shared_k is None:
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        # torch's grouped-query switch falls to a path that holds the square of scores on CPU; repeated keys do not.
        k, v = (t.repeat_interleave(per_kv, dim=1) if per_kv > 1 else t for t in (k, v))
        with prefer(q.device.type):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
    batch, n, heads, head_dim = q.shape
    kv_heads = heads // per_kv
    own_k, own_v = (t[:, past:].transpose(1, 2).repeat_interleave(per_kv, dim=1) for t in (k, v))
    parts = [_flash(q.transpose(1, 2), own_k, own_v, is_causal=True)]
    if past:
        # Query heads of one group and their tokens go as one long list of queries, as nothing is masked.
        folded = q.reshape(batch, n, kv_heads, per_kv, head_dim).permute(0, 2, 3, 1, 4)
        out, weight = _flash(folded.flatten(2, 3), *(t[:, :past].transpose(1, 2) for t in (k, v)))
        parts.append((out.reshape(batch, heads, n, head_dim), weight.reshape(batch, heads, n)))
    if shared_k is not None:
        folded = q.reshape(batch, n, kv_heads, per_kv, head_dim).permute(2, 0, 3, 1, 4)
        out, weight = _flash(
            folded.reshape(1, kv_heads, -1, head_dim), *(t.transpose(1, 2) for t in (shared_k, shared_v))
        )
        out = out.reshape(kv_heads, batch, per_kv, n, head_dim).permute(1, 0, 2, 3, 4)
        weight = weight.reshape(kv_heads, batch, per_kv, n).permute(1, 0, 2, 3)
        parts.append((out.reshape(batch, heads, n, head_dim), weight.reshape(batch, heads, n)))
    outputs, weights = zip(*parts, strict=True)
    weights = torch.softmax(torch.stack(weights), dim=0)[..., None]
    joined = sum(weight * out.to(weight.dtype) for weight, out in zip(weights, outputs, strict=True))
    return joined.to(q.dtype).transpose(1, 2)


def prefer(device_type):
    """Within the block, let torch choose among its kernels in CUDA_ORDER on CUDA; elsewhere there is one."""
    if device_type != "cuda":
        return contextlib.nullcontext()
    return sdpa_kernel(list(CUDA_ORDER), set_priority=True)


def _flash(q, k, v, is_causal=False):
    """Fused attention, and the log-sum-exp of each query's scores. (batch, heads, n, head_dim)"""
    ops = torch.ops.aten
    if q.device.type == "cpu":
        return ops._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, is_causal)
    if q.dtype in (torch.bfloat16, torch.float16) and q.shape[3] <= _CUDA_FLASH:
        out, weight, *_ = ops._scaled_dot_product_flash_attention(q, k, v, 0.0, is_causal)
        return out, weight
    out, weight, *_ = ops._scaled_dot_product_efficient_attention(q, k, v, None, True, 0.0, is_causal)
    # Its rows are as many as divide by 32.
    return out, weight[..., : q.shape[2]]
