"""Adapters to the CUDA kernels of mamba-ssm, causal-conv1d and flash-attn, for a comparison or by choice.

an op's arguments -> reasons against -> the package, imported on first use -> its kernel -> the op's results

They were written from the packages' documented signatures and compared with the definitions through stand-ins of those
signatures; no adapter has run on a GPU, so they are only taken when HYBRIDNA_KERNELS names them.
"""

import contextlib
import functools
import importlib

import torch

# Package -> what must be importable for it.
_MODULES = {
    "mamba_ssm": ("mamba_ssm.ops.triton.ssd_combined", "mamba_ssm.ops.triton.selective_state_update"),
    "causal_conv1d": ("causal_conv1d",),
    "flash_attn": ("flash_attn",),
}
# Package -> the ops that it serves.
SERVED = {"mamba_ssm": ("ssd_scan", "ssd_step"), "causal_conv1d": ("causal_conv1d",), "flash_attn": ("attention",)}
# Its kernels count offsets in 32 bits.
_LARGEST_OFFSET = 2**31
_HALVES = torch.bfloat16, torch.float16


@functools.cache
def why_absent(package):
    """Say why a package cannot be used, or None. Importing one may run all of it: whatever it raises is caught."""
    try:
        for module in _MODULES[package]:
            importlib.import_module(module)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def absent():
    """List (op, package, reason) for each op of each package that cannot be imported."""
    return [(op, name, why_absent(name)) for name, ops in SERVED.items() for op in ops if why_absent(name)]


def untested(args, kwargs):
    """Say why an adapter does not run unasked."""
    return "its adapter has not run on a GPU; HYBRIDNA_KERNELS can name it"


def _refuse(package, *tensors):
    present = [t for t in tensors if t is not None]
    if any(t.device.type != "cuda" for t in present):
        return "needs CUDA"
    return why_absent(package)


def refuse_ssd_scan(args, kwargs):
    """Say why mamba-ssm's scan cannot take these, or None."""
    x, _, _, B, *_ = args
    # Triton's products of float32 factors are of fewer bits unless told otherwise, and these are not told.
    if x.dtype not in _HALVES:
        return "needs bfloat16 or float16"
    if any(t.shape[1] * t.stride(1) >= _LARGEST_OFFSET for t in (x, B)):
        return "too long for its offsets"
    return _refuse("mamba_ssm", *args, kwargs.get("state"))


def ssd_scan(x, dt, A, B, C, D, *, state=None, chunk_size=64):
    """Run the Mamba-2 recurrence over a sequence; shapes as in `reference.ssd_scan`."""
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    with _on(x):
        y, after = mamba_chunk_scan_combined(
            x, dt, A, B, C, chunk_size, D=D, initial_states=state, dt_softplus=False, return_final_states=True
        )
    return y, after.float()


def refuse_ssd_step(args, kwargs):
    """Say why mamba-ssm's step cannot take these, or None."""
    if torch.is_grad_enabled() and any(t.requires_grad for t in args):
        return "no backward"
    return _refuse("mamba_ssm", *args)


def ssd_step(x, dt, A, B, C, D, state, *, rows=None):
    """Advance the Mamba-2 recurrence by one token; shapes as in `reference.ssd_step`."""
    from mamba_ssm.ops.triton.selective_state_update import selective_state_update

    # It writes into the state that it is given, and looks at dt_bias's strides without asking whether there is one.
    after = state.clone() if rows is None else state.index_select(0, rows)
    head_dim, size = state.shape[-2:]
    with _on(x):
        y = selective_state_update(
            after, x, dt[..., None].expand(-1, -1, head_dim), A[:, None, None].expand(-1, head_dim, size), B, C,
            D=D[:, None].expand(-1, head_dim), dt_bias=dt.new_zeros(len(A), 1).expand(-1, head_dim),
            dt_softplus=False,
        )  # fmt: skip
    return y, after


def refuse_causal_conv1d(args, kwargs):
    """Say why causal-conv1d's kernel cannot take these, or None."""
    x, weight, bias = args
    if not 2 <= weight.shape[1] <= 4:
        return "widths of 2 to 4 only"
    if x.shape[2] % 8:
        return "channels must be a multiple of 8"
    if x.dtype not in (*_HALVES, torch.float32):
        return "needs float32 or fewer bits"
    return _refuse("causal_conv1d", x, weight, bias, kwargs.get("state"))


def causal_conv1d(x, weight, bias, *, state=None):
    """Convolve each channel with its past, then SiLU; shapes as in `reference.causal_conv1d`."""
    from causal_conv1d import causal_conv1d_fn

    if state is None:
        state = x.new_zeros(x.shape[0], weight.shape[1] - 1, x.shape[2])
    # Both lie channel by channel, as it asks where there is a state; rows begin at every eighth element.
    x = x.contiguous() if x.stride(0) % 8 or x.stride(1) % 8 else x
    with _on(x):
        y = causal_conv1d_fn(
            x.transpose(1, 2), weight, bias, initial_states=state.to(x.dtype).transpose(1, 2), activation="silu"
        )
    return y.transpose(1, 2), torch.cat([state.to(x.dtype), x], dim=1)[:, x.shape[1] :].clone()


def refuse_attention(args, kwargs):
    """Say why flash-attn cannot take these, or None."""
    if args[0].dtype not in _HALVES:
        return "needs bfloat16 or float16"
    if kwargs.get("shared_k") is not None:
        return "no keys common to all rows"
    return _refuse("flash_attn", *args)


def attention(q, k, v, *, shared_k=None, shared_v=None):
    """Attend causally, the last query to every key; shapes as in `reference.attention`."""
    from flash_attn import flash_attn_func

    with _on(q):
        return flash_attn_func(q, k, v, causal=True)


def _on(tensor):
    # The packages launch on the current device, not on the tensor's.
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
