"""Vectors of sequences read once by a frozen network, kept on disk for every head that is tried on them.

sequences -> key of model, reading and bases -> file there, or read and written -> memory map
"""

import hashlib
import os
import secrets
from pathlib import Path

import numpy as np

from hybridna_core.errors import DataError
from hybridna_core.model.readout import read_features
from hybridna_core.task_files import identify


def cached_features(predictor, sequences, folder, progress=None):
    """Return what a frozen network gives for each sequence: (n, hidden), or (n, bases, hidden), NaN after the end.

    folder  where the file is looked for, and written when it is not there
    Raises GuardError for numbers that are not finite, DataError for a damaged file.
    """
    path = Path(folder) / f"features-{_key(predictor, sequences)}.npy"
    config = predictor.config
    bases = (max(map(len, sequences)),) if config.is_per_base else ()
    shape = (len(sequences), *bases, config.hidden_size)
    if not path.exists():
        _write(path, shape, _rows(predictor, sequences, shape[1:], progress))
    try:
        found = np.load(path, mmap_mode="c")
        whole = found.shape == shape and found.dtype == np.float32
    except (ValueError, OSError, EOFError):
        whole = False
    if not whole:
        raise DataError("is damaged", where=path, hint="delete it; it is then written again")
    return found


def _key(predictor, sequences):
    """Digest all that a vector depends on: weights, reading, bases."""
    config, model = predictor.config, predictor.backbone
    reading = "every base" if config.is_per_base else config.reading
    found = hashlib.sha256(repr((identify(model), str(model.dtype), model.device.type, reading, config.echo)).encode())
    for sequence in sequences:
        found.update(f"{sequence}\n".encode())
    return found.hexdigest()[:32]


def _rows(predictor, sequences, shape, progress):
    """Yield the features of each sequence, filled up to one shape."""
    for done, vectors in enumerate(read_features(predictor, sequences), start=1):
        row = np.full(shape, np.nan, dtype="<f4")
        row[tuple(slice(n) for n in vectors.shape)] = vectors
        yield row
        if progress is not None:
            progress(done, len(sequences), note="reading sequences")


def _write(path, shape, rows):
    """Write rows to a .npy file, whole or not at all; written in order, so that a full disk is an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".hybridna-{os.getpid()}-{secrets.token_hex(4)}.partial"
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    try:
        with temporary.open("wb") as handle:
            np.lib.format.write_array_header_1_0(handle, header)
            for row in rows:
                handle.write(row.tobytes())
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
