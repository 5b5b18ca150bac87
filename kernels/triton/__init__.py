"""Adapters to the Triton kernels: CUDA tensors, float32 and bfloat16.

tensors -> reasons against -> a module with kernels, imported on first use -> new tensors
"""

import torch

from hybridna_kernels.triton import setting

# What the kernels hold in registers.
LARGEST_CONV, LARGEST_WIDTH, LARGEST_VOCABULARY = 8, 16384, 128
untested = setting.untested


def refuse(*tensors):
    """Say why the Triton kernels cannot take these tensors, or None. None among them are skipped."""
    present = [t for t in tensors if t is not None]
    if any(t.device.type != "cuda" for t in present) and not setting.on_cpu(present):
        return "needs CUDA"
    if any(t.dtype not in setting.LARGEST for t in present if t.is_floating_point()):
        return "needs float32 or bfloat16"
    if not all(t.numel() for t in present):
        return "needs elements"
    return setting.failure()


def refuse_ssd_scan(args, kwargs):
    x, _, _, B, *_ = args
    if kwargs.get("chunk_size", 64) != 64:
        return "has chunks of its own"
    state = kwargs.get("state")
    reason = _refuse_shapes(x, B) or refuse(*args, state)
    if reason is None and setting.wants_gradient(*args, state):
        return setting.miscompiled()
    return reason


def ssd_scan(x, dt, A, B, C, D, *, state=None, chunk_size=64):
    """Run the Mamba-2 recurrence over a sequence; shapes as in `reference.ssd_scan`."""
    from hybridna_kernels.triton import training

    return training.ssd_scan(x, dt, A, B, C, D, state)


def refuse_ssd_step(args, kwargs):
    x, B = args[0], args[3]
    if setting.wants_gradient(*args):
        return "no backward"
    return _refuse_shapes(x, B) or refuse(*args)


def ssd_step(x, dt, A, B, C, D, state, *, rows=None):
    """Advance the Mamba-2 recurrence by one token; shapes as in `reference.ssd_step`."""
    from hybridna_kernels.triton import step

    return step.ssd_step(x, dt, A, B, C, D, state, rows)


def refuse_causal_conv1d(args, kwargs):
    x, weight, bias = args
    if weight.shape[1] > LARGEST_CONV:
        return f"wider than {LARGEST_CONV}"
    return refuse(x, weight, bias, kwargs.get("state") if weight.shape[1] > 1 else None)


def causal_conv1d(x, weight, bias, *, state=None):
    """Convolve each channel with its past, then SiLU; shapes as in `reference.causal_conv1d`."""
    from hybridna_kernels.triton import training

    return training.causal_conv1d(x, weight, bias, state)


def refuse_gated_rms_norm(args, kwargs):
    y = args[0]
    if y.dtype == torch.float32 and y.shape[-1] > setting.LARGEST_BACKWARD and setting.wants_gradient(*args[:3]):
        return f"no backward for float32 rows wider than {setting.LARGEST_BACKWARD}"
    return refuse_rows(*args[:3])


def gated_rms_norm(y, z, weight, eps):
    """Gate, then scale each vector to unit mean square; shapes as in `reference.gated_rms_norm`."""
    from hybridna_kernels.triton import training

    return training.gated_rms_norm(y, z, weight, eps)


def refuse_rows(*tensors):
    """Say why the kernels that hold whole rows cannot take these tensors."""
    if tensors[0].shape[-1] > LARGEST_WIDTH:
        return f"rows wider than {LARGEST_WIDTH}"
    return refuse(*tensors)


def add_rms_norm(x, more, weight, eps):
    """Return x + more and its RMS norm; shapes as in `pointwise.add_rms_norm`."""
    from hybridna_kernels.triton import training

    return training.add_rms_norm(x, more, weight, eps)


def refuse_cross_entropy(hidden, head, target):
    """Say why `cross_entropy` cannot take these tensors, or None."""
    if head.shape[0] > LARGEST_VOCABULARY:
        return f"vocabulary above {LARGEST_VOCABULARY}"
    return refuse(hidden, head, target)


def cross_entropy(hidden, head, target):
    """Return the loss of each row in nats, 0 where the target is negative; logits are never written.

    hidden  (rows, width)
    head    (vocabulary, width)
    target  (rows,) int64
    """
    from hybridna_kernels.triton import loss

    return loss.cross_entropy(hidden, head, target)


def _refuse_shapes(x, B):
    heads, head_dim, groups, size = *x.shape[-2:], *B.shape[-2:]
    if heads % groups:
        return "heads do not divide into groups"
    if x.dtype not in setting.LARGEST:
        return None
    largest_head, largest_size = setting.LARGEST[x.dtype]
    if head_dim > largest_head or size > largest_size:
        return f"head_dim above {largest_head} or state size above {largest_size} in {x.dtype}".replace("torch.", "")
    return None
