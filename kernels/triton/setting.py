"""Whether Triton can run here, and where its kernels were tested.

import triton -> version, ptxas, device -> reason against, or None
"""

import contextlib
import functools
import os
import re

import torch

# Per dtype the largest head_dim and state_size that the table of tiles holds.
LARGEST = {torch.float32: (64, 64), torch.bfloat16: (64, 128)}

# Width of the longest float32 rows whose gated norm goes back without spilling registers.
LARGEST_BACKWARD = 4096

# (compute capability, Triton, ptxas) on which gpu_check passed: none so far, so `auto` never takes these kernels.
TESTED = frozenset()


@functools.cache
def failure():
    """Say why Triton cannot be used, or None. Its import runs a large package: whatever it raises is the reason."""
    try:
        import triton

        if not hasattr(triton, "jit"):
            return "triton is not the compiler"
        from torch.library import triton_op, wrap_triton  # noqa: F401
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


@functools.cache
def versions():
    """Return the versions of Triton and of the ptxas that it runs, "unknown" where one cannot be told."""
    import triton

    try:
        from triton.backends.nvidia.compiler import get_ptxas

        ptxas = str(get_ptxas(90).version)
    except Exception:
        ptxas = "unknown"
    return triton.__version__, ptxas


def miscompiled():
    """Say why this Triton cannot be trusted with the scan's backward, where a product is transposed into another."""
    release = tuple(int(part) for part in re.findall(r"\d+", versions()[0])[:3])
    if (3, 4, 0) <= release < (3, 7, 1):
        return f"Triton {versions()[0]} miscompiles its backward; 3.7.1 is the first that does not"
    return None


def untested(device):
    """Say why `auto` does not take the Triton kernels on a device: they were not tested there; None if they were."""
    if device.type != "cuda":
        return "Triton's interpreter is for tests"
    architecture = torch.cuda.get_device_capability(device)
    found = (architecture, *versions())
    if found in TESTED:
        return None
    name = "sm_{}{}".format(*architecture)
    return f"untested with {name}, Triton {found[1]}, ptxas {found[2]}; HYBRIDNA_KERNELS=triton takes it"


def interpreted():
    """Say whether Triton's interpreter stands in for a device."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def on_cpu(tensors):
    """Say whether these tensors lie on the CPU and the interpreter may work on them."""
    return interpreted() and all(t.device.type == "cpu" for t in tensors)


def launch_on(tensor):
    """Make the tensor's device current, as a kernel runs on the current one."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def processors(tensor):
    """Return the number of multiprocessors of the tensor's device."""
    return torch.cuda.get_device_properties(tensor.device).multi_processor_count if tensor.is_cuda else 1


def wants_gradient(*tensors):
    """Say whether any of the tensors, None among them skipped, wants a gradient now."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def dense(tensor):
    """Return the tensor, or a copy if its last dimension is not dense; None for None."""
    if tensor is None or tensor.stride(-1) == 1 or tensor.shape[-1] == 1:
        return tensor
    return tensor.contiguous()
