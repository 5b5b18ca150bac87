"""Vectors of sequences read once by a frozen network, kept on disk for every head that is tried on them.

sequences -> key of model, reading and bases -> file there, or read row by row and written -> memory map
"""

import hashlib
import os
import secrets
from pathlib import Path

import numpy as np

from hybridna_core.errors import DataError, GuardError
from hybridna_core.model.readout import pad_rows


def cached_features(predictor, sequences, folder, *, batch_size=1, precision="fp32", progress=None):
    """Return what a frozen network gives for each sequence: (n, hidden), or (n, bases, hidden), NaN after the end.

    folder  where the file is looked for, and written when it is not there
    Raises GuardError for numbers that are not finite.
    """
    path = Path(folder) / f"features-{_key(predictor, sequences, batch_size, precision)}.npy"
    config = predictor.config
    bases = (max(map(len, sequences)),) if config.is_per_base else ()
    shape = (len(sequences), *bases, config.hidden_size)
    if not path.exists():
        _write(path, shape, _read(predictor, sequences, shape, batch_size, precision, progress))
    try:
        found = np.load(path, mmap_mode="c")
        whole = found.shape == shape and found.dtype == np.float32
    except (ValueError, OSError, EOFError):
        whole = False
    if not whole:
        raise DataError("is damaged", where=path, hint="delete it; it is then written again")
    return found


def _key(predictor, sequences, batch_size, precision):
    """Digest all that a vector depends on: weights, reading, bases, and how rows go together off the CPU."""
    config, model = predictor.config, predictor.backbone
    reading = "every base" if config.is_per_base else config.reading
    together = 1 if model.device.type == "cpu" else batch_size
    found = hashlib.sha256(repr((model.digest, reading, config.echo, precision, together)).encode())
    for sequence in sequences:
        found.update(f"{sequence}\n".encode())
    return found.hexdigest()[:32]


def _read(predictor, sequences, shape, batch_size, precision, progress):
    """Yield blocks of rows in order, one row each on a CPU, so that a vector depends on its sequence alone."""
    import torch

    rows = 1 if predictor.device.type == "cpu" else batch_size
    for first in range(0, len(sequences), rows):
        here = sequences[first : first + rows]
        tokens = pad_rows([predictor.tokens(sequence) for sequence in here]).to(predictor.device)
        with torch.no_grad():
            found = predictor.features(tokens, precision).float().cpu().numpy()
        known = found if found.ndim == 2 else np.concatenate([f[: len(s)] for f, s in zip(found, here, strict=True)])
        if not np.isfinite(known).all():
            raise GuardError(
                "the model's output is not finite", where=f"rows from {first + 1}", hint="check its weights"
            )
        block = np.full((len(here), *shape[1:]), np.nan, dtype=np.float32)
        block[tuple(slice(n) for n in found.shape)] = found
        yield block
        if progress is not None:
            progress(first + len(here), len(sequences), note="reading sequences")


def _write(path, shape, blocks):
    """Write rows to a .npy file, whole or not at all; written in order, so that a full disk is an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".hybridna-{os.getpid()}-{secrets.token_hex(4)}.partial"
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    try:
        with temporary.open("wb") as handle:
            np.lib.format.write_array_header_1_0(handle, header)
            for block in blocks:
                handle.write(block.astype("<f4").tobytes())
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
