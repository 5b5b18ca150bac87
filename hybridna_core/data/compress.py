"""Compressors of bases, baselines that learn from nothing but the bases that they are measured on.

token ids -> known bases -> xz, GeCo3 or cmix (size of what they write), or an adaptive mixture -> bits per base
"""

import lzma
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from hybridna_core.data.inputs import warn
from hybridna_core.tokenizer import A, T, decode

ORDERS = (1, 2, 3, 4, 6, 8, 9, 10, 11, 12, 13, 14, 16, 18, 20)
DECAYS = (0.9, 0.95, 0.98, 0.99)
# Command lines of outside compressors: what is run on a file of letters, and the file that it writes.
OUTSIDE = {
    "GeCo3": (["GeCo3", "-l", "12", "{input}"], "{input}.co"),
    "cmix": (["cmix", "-c", "{input}", "{input}.cmix"], "{input}.cmix"),
}


def xz_bits(ids):
    """Return bits per known base by xz, and which form it took: two-bit packed or letters, the smaller of the two."""
    bases = _known(ids)
    padded = np.concatenate([bases, np.zeros(-len(bases) % 4, dtype=np.uint8)]).reshape(-1, 4)
    packed = (padded << [6, 4, 2, 0]).sum(axis=1).astype(np.uint8).tobytes()
    sizes = {}
    for form, data, settings in (
        ("packed", packed, {"lc": 0, "lp": 0, "pb": 0}),
        ("letters", decode(bases + A).encode(), {"lc": 4, "lp": 0, "pb": 0}),
    ):
        # No container, so that its hundred bytes are not counted against a short sequence.
        filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, **settings}]
        sizes[form] = len(lzma.compress(data, format=lzma.FORMAT_RAW, filters=filters))
    form = min(sizes, key=sizes.get)
    return 8 * sizes[form] / max(1, len(bases)), f"xz of {form}"


def outside_bits(ids):
    """Return bits per known base by GeCo3 or cmix, and its name; None when neither is on the PATH or runs."""
    for name, (command, output) in OUTSIDE.items():
        if shutil.which(command[0]) is None:
            continue
        bases = _known(ids)
        with tempfile.TemporaryDirectory() as folder:
            letters = Path(folder) / "bases"
            letters.write_bytes(decode(bases + A).encode())
            command = [word.format(input=letters) for word in command]
            done = subprocess.run(command, capture_output=True, cwd=folder)
            written = Path(output.format(input=letters))
            if done.returncode == 0 and written.is_file():
                return 8 * written.stat().st_size / max(1, len(bases)), name
        warn("compressor", f"{name} is on the PATH but does not run as expected; left out")
    return None


def adaptive_bits(ids, orders=ORDERS, decays=DECAYS):
    """Return the bits of each known base by counts of what came before, orders mixed by how well they did lately.

    ids     (n,) uint8 -> (known bases,) float64
    decays  tried; the bits are those of the best one, which favours this baseline

    Every order counts the bases that followed the same context earlier, on either strand. Its weight is the product
    of the probabilities that it gave, each to the power decay ** (bases since). This is the way of the GeCo family.
    """
    bases = _known(ids)
    if not len(bases):
        return np.zeros(0)
    log_probs = np.empty((len(bases), len(orders)))
    for column, order in enumerate(orders):
        # Long contexts are mostly new, and what followed them once tends to follow again.
        log_probs[:, column] = _order_log_probs(bases, order, 1 if order <= 10 else 1 / 16 if order < 16 else 1 / 64)
    return min((_mix(log_probs, decay) for decay in decays), key=np.mean)


def _mix(log_probs, decay):
    """Bits of each base by the weighted orders. (n, orders) nats -> (n,)"""
    weights = np.empty_like(log_probs)
    state = np.zeros(log_probs.shape[1])
    for at, row in enumerate(log_probs):
        weights[at] = state
        state = decay * state + row
    weights -= weights.max(axis=1, keepdims=True)
    np.exp(weights, out=weights)
    weights /= weights.sum(axis=1, keepdims=True)
    return -np.log2((weights * np.exp(log_probs)).sum(axis=1))


def _order_log_probs(bases, order, start):
    """Log-probability of each base by the counts of one order before it, `start` added to each; nats. (n,)"""
    n = len(bases)
    found = np.full(n, np.log(0.25))
    if n <= order:
        return found
    codes = bases.astype(np.int64)
    forward, backward = np.zeros(n - order, dtype=np.int64), np.zeros(n - order, dtype=np.int64)
    for k in range(order + 1):
        part = codes[k : n - order + k]
        forward = forward * 4 + part
        # The reverse complement of the same word begins with its last base.
        backward += (3 - part) << (2 * k)
    # A word and the number of its last base, as one sortable number; it counts for bases after that one.
    number = np.arange(len(forward))
    events = np.sort(np.concatenate([forward, backward]) * n + np.tile(number, 2))
    context = forward >> 2 << 2
    bounds = [np.searchsorted(events, (context + base) * n) for base in range(5)]
    counts = [np.searchsorted(events, (context + base) * n + number) - bounds[base] for base in range(4)]
    seen = np.choose(forward & 3, counts)
    found[order:] = np.log((seen + start) / (sum(counts) + 4 * start))
    return found


def _known(ids):
    """The known bases as 0 to 3, joined. (n,) uint8"""
    ids = np.asarray(ids)
    return (ids[(ids >= A) & (ids <= T)] - A).astype(np.uint8)
