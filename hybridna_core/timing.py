"""How two ways to one result are timed: equal first, then in turn, so that other work on the machine falls on both.

two functions -> largest difference below a limit, or GuardError -> seconds of each in turn -> Timing
"""

import contextlib
import gc
import os
import statistics
import time
from typing import NamedTuple

from hybridna_core.errors import GuardError
from hybridna_core.memory import forget_peak, held_bytes, peak_bytes, return_freed_memory

# Largest difference of a logit, a log-probability, and a gradient relative to its tensor's largest, by precision.
TOLERANCE = {"fp32": 1e-3, "bf16": 0.1}


class Timing(NamedTuple):
    """One row of a benchmark: seconds per pass (median, fastest, slowest) of our way and of the other.

    case        what was done, empty where the task says it all
    tokens      of a sequence, a window, a region, or what beams have read
    count       what a pass gets through, in the summary's unit
    ratio       of the medians, the other's to ours
    per_second  count by the median of ours
    difference  largest one between the results of the two
    products    seconds (median) that the matrix products with weights of a forward pass take by themselves, or None
    peak_share  floating-point operations a second of our way, by those of multiply-adds on registers alone, or None
    peaks       most bytes that a pass of ours and one of the other took beside what was there before, or None
    """

    case: str
    tokens: int
    count: int
    hybridna: tuple[float, float, float]
    other: tuple[float, float, float]
    ratio: float
    per_second: float
    difference: float
    products: float | None = None
    peak_share: float | None = None
    peaks: tuple | None = None


def make_timing(case, tokens, count, seconds, difference):
    """Make a Timing of the seconds of our way, of the other and, if they were taken, of the products alone."""
    ours, other, *products = (spread(taken) for taken in seconds)
    alone = products[0][0] if products else None
    return Timing(case, tokens, count, ours, other, other[0] / ours[0], count / ours[0], difference, alone)


def spread(values):
    """Return median, least and most."""
    return statistics.median(values), min(values), max(values)


def wait(device):
    """Wait until a torch device has done what it was told; a CPU always has."""
    if str(device).startswith("cuda"):
        import torch

        torch.cuda.synchronize(device)


def take_turns(functions, repeats, device="cpu"):
    """Call functions one after the other, so many times; return the list of seconds of each.

    device  where they work, waited for before the clock is read
    """
    seconds = [[] for _ in functions]
    for _ in range(repeats):
        for function, taken in zip(functions, seconds, strict=True):
            wait(device)
            start = time.perf_counter()
            function()
            wait(device)
            taken.append(time.perf_counter() - start)
    return seconds


def take_peaks(functions, device="cpu"):
    """Call each function once; return the most bytes that each took beside what was there, None off Linux.

    device  where the bytes are counted
    """
    peaks = []
    for function in functions:
        gc.collect()
        return_freed_memory()
        is_new, before = forget_peak(device), held_bytes(device)
        function()
        most = peak_bytes(device)
        peaks.append(max(0, most - before) if is_new and most is not None and before is not None else None)
    return None if None in peaks else tuple(peaks)


def check_equal(what, ours, others, limit, where):
    """Return the largest difference of two lists of tensors or arrays; raise GuardError if not below the limit."""
    difference = max(float(abs(a - b).max()) for a, b in zip(ours, others, strict=True))
    if not difference < limit:
        raise GuardError(f"{what} differ by {difference:.2g}", where=where)
    return difference


@contextlib.contextmanager
def forced_kernels(text):
    """Within the block, add to what HYBRIDNA_KERNELS asks for."""
    before = os.environ.get("HYBRIDNA_KERNELS")
    os.environ["HYBRIDNA_KERNELS"] = f"{before},{text}" if before else text
    try:
        yield
    finally:
        if before is None:
            del os.environ["HYBRIDNA_KERNELS"]
        else:
            os.environ["HYBRIDNA_KERNELS"] = before
