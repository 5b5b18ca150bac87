"""How much memory is free and taken, how an amount is spelt, and what becomes of what a process frees.

/proc, cgroup and process limits, or the CUDA driver -> bytes
"""

import contextlib
import ctypes
from pathlib import Path

# Options of glibc's mallopt.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def keep_freed_memory():
    """Let this process keep what it frees for its next tensors; without glibc do nothing.

    By default large blocks go back to the system when freed, and their next user waits for the same pages to be mapped
    and cleared again, at every step.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, 32 * 2**20)  # the largest that it takes
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def return_freed_memory(device="cpu"):
    """Give back to the system what this process has freed on a torch device; on a CPU without glibc do nothing."""
    if str(device).startswith("cuda"):
        import torch

        torch.cuda.empty_cache()
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def free_bytes(device):
    """Return the bytes that can still be taken on a torch device, or None when the system does not say."""
    if str(device).startswith("cuda"):
        import torch

        return torch.cuda.mem_get_info(device)[0]
    limits = [n for n in (_meminfo(), _cgroup(), _address_space()) if n is not None]
    return min(limits) if limits else None


def used_bytes(device):
    """Return the bytes that this process has taken on a torch device, or None when the system does not say."""
    if str(device).startswith("cuda"):
        import torch

        return torch.cuda.memory_reserved(device)
    return _field("/proc/self/status", "VmRSS:", 1024)


def held_bytes(device):
    """Return the bytes of what lies on a torch device: tensors on CUDA, else all of this process, None off Linux."""
    if str(device).startswith("cuda"):
        import torch

        return torch.cuda.memory_allocated(device)
    return used_bytes(device)


def peak_bytes(device="cpu"):
    """Return the most that `held_bytes` has been since the process's start or `forget_peak`, or None off Linux.

    The most of its own: getrusage tells that of the process it was forked from where that is more.
    """
    if str(device).startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated(device)
    return _field("/proc/self/status", "VmHWM:", 1024)


def forget_peak(device="cpu"):
    """Let `peak_bytes` begin anew; return whether the system could."""
    if str(device).startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def spell_bytes(count):
    """Spell a number of bytes: 512 bytes, 3.2 GiB."""
    for unit, size in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count} bytes"


def _meminfo():
    return _field("/proc/meminfo", "MemAvailable:", 1024)


def _cgroup():
    """Bytes left in this process's memory cgroup, version 2."""
    try:
        folder = Path("/sys/fs/cgroup") / Path("/proc/self/cgroup").read_text().split("::", 1)[1].strip().lstrip("/")
        limit = (folder / "memory.max").read_text().strip()
        return None if limit == "max" else max(0, int(limit) - int((folder / "memory.current").read_text()))
    except (OSError, ValueError, IndexError):
        return None


def _address_space():
    """Bytes left under `ulimit -v`."""
    try:
        import resource
    except ImportError:
        return None
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    used = _field("/proc/self/status", "VmSize:", 1024)
    return None if limit == resource.RLIM_INFINITY or used is None else max(0, limit - used)


def _field(path, name, unit):
    try:
        for line in Path(path).read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * unit
    except (OSError, ValueError, IndexError):
        pass
    return None
