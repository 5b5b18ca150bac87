"""Weight files on disk: what a file really is, safetensors headers read strictly, tensors read one at a time.

path -> inside the model folder? -> what it looks like -> header (names, dtypes, shapes, offsets) -> tensors
"""

import contextlib
import json
import logging
import os
import stat
import zipfile
from pathlib import Path
from typing import NamedTuple

from hybridna_core.errors import ModelError, SystemFault

log = logging.getLogger("hybridna")

HEADER_BYTES_LIMIT = 100 * 2**20
DTYPE_BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U8": 8, "BOOL": 8,
}  # fmt: skip
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".distcp", ".npy", ".metadata", ".joblib")
ARCHIVE_MAGIC = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf")
ARCHIVE_SUFFIXES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z")


class Entry(NamedTuple):
    """One tensor of a safetensors file; `start` and `end` count bytes after the header."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def elements(self):
        count = 1
        for size in self.shape:
            count *= size
        return count


def looks_like(path):
    """Say in a few words what a file is when it is no proper weight or text file; None when nothing is odd."""
    with open_model_file(path) as handle:
        head = handle.read(512)
    if not head:
        return "an empty file"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file itself"
    if head.lstrip()[:15].lower().startswith((b"<!doctype", b"<html")):
        return "an HTML page"
    if head.startswith(b"PK\x03\x04"):
        return "a PyTorch pickle" if _zip_holds_pickle(path) else "a zip archive"
    if (
        head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf"))
        or head[257:262] == b"ustar"
    ):
        return "an archive"
    if head.startswith(b"\x93NUMPY"):
        return "a NumPy file, which may hold a pickle"
    # Protocols 2 to 5 begin with this pair; a safetensors header of that length would be 0x..80 bytes, then `{`.
    if head[0] == 0x80 and len(head) > 1 and head[1] <= 5 and head[8:9] != b"{":
        return "a pickle"
    if head.startswith(b"\x89HDF"):
        return "an HDF5 file"
    return None


def _zip_holds_pickle(path):
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith((".pkl", "data.pkl")) for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError):
        return False


def hint_for(kind):
    """Return how to mend what `looks_like` found."""
    kind = kind or ""
    if "LFS" in kind:
        return "run `git lfs pull` in that folder"
    if "HTML" in kind:
        return "download it again, the server sent a page instead"
    if "pickle" in kind or "NumPy" in kind:
        return "save it as safetensors first; pickles can run code and are never opened"
    if "archive" in kind:
        return "unpack it yourself and give the folder"
    return "copy or download it again"


def open_model_file(path):
    """Open a file of a model folder for reading bytes; a fault becomes ModelError (absent) or SystemFault (denied)."""
    try:
        return open(path, "rb")
    except FileNotFoundError:
        raise ModelError("file is missing", where=path) from None
    except IsADirectoryError:
        raise ModelError("is a folder, a file is expected", where=path) from None
    except PermissionError:
        raise denied(path) from None
    except OSError as error:
        raise SystemFault(error.strerror or str(error), where=path) from None


def denied(path):
    """Return the SystemFault for a path that may not be read; it names owner and mode."""
    try:
        about = os.stat(path)
        what = f"not readable (owner {_user(about.st_uid)}, mode {stat.S_IMODE(about.st_mode):04o})"
    except OSError:
        what = "not readable"
    return SystemFault(what, where=path, hint="ask its owner for read permission")


def _user(uid):
    try:
        import pwd

        return pwd.getpwuid(uid).pw_name
    except (ImportError, KeyError):
        return str(uid)


def model_root(folder):
    """Return the folder that a model's links may point into: itself, or the whole entry of a hub cache."""
    folder = Path(folder).resolve()
    if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
        return folder.parent.parent
    return folder


def check_inside(path, folder):
    """Raise ModelError when a file of a model folder is a link that leads out of the model."""
    target, root = Path(os.path.realpath(path)), model_root(folder)
    if not target.is_relative_to(root):
        raise ModelError(f"is a link out of the model folder, to {target}", where=path, hint="copy the file itself")


def read_header(path):
    """Read and check the header of one safetensors file without touching its tensors.

    returns  (dict of tensor name -> Entry, metadata dict)
    Refuses (ModelError) headers that are too long, name unknown dtypes, overlap, leave holes or overflow, and files
    shorter or longer than the header says.
    """
    path = Path(path)
    kind = looks_like(path)
    if kind:
        raise ModelError(f"looks like {kind}", where=path, hint=hint_for(kind))
    size = path.stat().st_size
    with open_model_file(path) as handle:
        raw = handle.read(8)
        length = int.from_bytes(raw, "little")
        if len(raw) < 8 or handle.read(1) != b"{":
            raise ModelError("is no safetensors file", where=path, hint=hint_for(None))
        if length > HEADER_BYTES_LIMIT:
            raise ModelError(f"header of {length:,} bytes, at most {HEADER_BYTES_LIMIT:,} are read", where=path)
        if 8 + length > size:
            what = f"truncated: {size:,} bytes there, {8 + length:,} due for the header alone"
            raise ModelError(what, where=path, hint=hint_for(None))
        table = _parse_header(b"{" + handle.read(length - 1), path)
    metadata = table.pop("__metadata__", {})
    entries = {name: _entry(path, name, item) for name, item in table.items()}
    _check_layout(entries, size - 8 - length, path)
    return entries, metadata if isinstance(metadata, dict) else {}


def _parse_header(text, path):
    def pairs(items):
        table = dict(items)
        if len(table) != len(items):
            raise ModelError("a name stands twice in the header", where=path)
        return table

    try:
        table = json.loads(text.decode("utf-8"), object_pairs_hook=pairs)
    except (ValueError, RecursionError):
        raise ModelError("the header is damaged", where=path, hint=hint_for(None)) from None
    if not isinstance(table, dict):
        raise ModelError("the header is no table", where=path)
    return table


def _entry(path, name, item):
    where = f"{path}: {name}"
    item = item if isinstance(item, dict) else {}
    dtype, shape, offsets = item.get("dtype"), item.get("shape"), item.get("data_offsets")
    if dtype not in DTYPE_BITS:
        raise ModelError(f"unknown number format {dtype!r}", where=where, hint=f"known: {', '.join(DTYPE_BITS)}")
    if not (isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape)):
        raise ModelError(f"impossible shape {str(shape)[:80]}", where=where)
    if not (isinstance(offsets, list) and len(offsets) == 2 and all(type(n) is int and n >= 0 for n in offsets)):
        raise ModelError(f"impossible offsets {str(offsets)[:80]}", where=where)
    entry = Entry(path, dtype, tuple(shape), *offsets)
    if entry.elements * DTYPE_BITS[dtype] // 8 != entry.end - entry.start:
        raise ModelError(f"shape {shape} of {dtype} does not fit {entry.end - entry.start:,} bytes", where=where)
    return entry


def _check_layout(entries, data_bytes, path):
    """Tensors must follow one another without hole or overlap and end where the file ends."""
    due = 0
    for name, entry in sorted(entries.items(), key=lambda pair: (pair[1].start, pair[1].end)):
        if entry.start != due:
            kind = "overlaps the one before" if entry.start < due else "leaves a hole before it"
            raise ModelError(f"tensor {kind}", where=f"{path}: {name}")
        due = entry.end
    if due > data_bytes:
        what = f"truncated: {data_bytes:,} bytes of tensors there, {due:,} due"
        raise ModelError(what, where=path, hint=hint_for(None))
    if due < data_bytes:
        raise ModelError(f"{data_bytes - due:,} bytes after the last tensor belong to none", where=path)


@contextlib.contextmanager
def open_tensors(headers):
    """Give a function `get(name, rows=None)` that reads one tensor, or a span of its first axis, onto the CPU.

    headers  dict of tensor name -> Entry, as `read_headers` returns it; files are mapped, not read
    """
    from safetensors import SafetensorError, safe_open

    with contextlib.ExitStack() as stack:
        files = {}
        try:
            for file in sorted({entry.file for entry in headers.values()}):
                files[file] = stack.enter_context(safe_open(file, framework="pt", device="cpu"))
        except SafetensorError as error:
            raise ModelError(str(error), where=file) from None

        def get(name, rows=None):
            handle = files[headers[name].file]
            return handle.get_tensor(name) if rows is None else handle.get_slice(name)[rows[0] : rows[1]]

        yield get


def check_finite(name, tensor, allow_nonfinite, where):
    """Raise ModelError, or warn when allowed, if a floating-point tensor holds NaN or infinity."""
    import torch

    if not tensor.is_floating_point():
        return
    # A sum is finite unless an element is not (or it overflows): one cheap pass settles nearly every tensor.
    if torch.isfinite(tensor.sum(dtype=torch.float64)):
        return
    count = int((~torch.isfinite(tensor)).sum())
    if count and not allow_nonfinite:
        what = f"{count:,} of {tensor.numel():,} weights are NaN or infinite"
        raise ModelError(what, where=f"{where}: {name}", hint="--allow-nonfinite loads it all the same")
    if count:
        log.warning("%s: %s weights are NaN or infinite", name, f"{count:,}", extra={"kind": "nonfinite-weights"})


def weight_files(folder):
    """Return the safetensors files of a model folder in order; refuse folders that only hold pickles.

    One `model.safetensors`, or the shards of `model.safetensors.index.json`, all present and inside the model.
    """
    from hybridna_core.config import read_json

    folder = Path(folder)
    index = folder / "model.safetensors.index.json"
    single = folder / "model.safetensors"
    if single.exists() or single.is_symlink():
        names = [single.name]
    elif index.exists():
        check_inside(index, folder)
        kind = looks_like(index)
        if kind:
            raise ModelError(f"looks like {kind}", where=index, hint=hint_for(kind))
        table = read_json(index)
        weight_map = table.get("weight_map") if isinstance(table, dict) else None
        if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
            raise ModelError("has no usable weight_map", where=index)
        names = sorted(set(weight_map.values()))
    else:
        found = sorted(p.name for p in folder.glob("*.safetensors"))
        if len(found) != 1:
            raise _no_weights(folder)
        names = found
    for name in names:
        if Path(name).name != name:
            raise ModelError(f"shard name {name!r} leads out of the folder", where=index)
        path = folder / name
        if not path.exists():
            raise ModelError("shard is missing", where=path, hint="download or copy it again")
        check_inside(path, folder)
    return [folder / name for name in names]


def _no_weights(folder):
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in PICKLE_SUFFIXES)
    if pickles:
        return ModelError(f"the weights are a pickle ({pickles[0]})", where=folder, hint=hint_for("pickle"))
    there = ", ".join(sorted(p.name for p in folder.iterdir())[:5]) or "nothing"
    what = f"no model folder: config.json and model.safetensors expected, {there} found"
    return ModelError(what, where=folder)


def read_headers(folder):
    """Read all headers of a model folder; return dict of tensor name -> Entry. A name in two shards is refused.

    An index that names a tensor which its shard does not hold (a shard of another save) is refused as well.
    """
    from hybridna_core.config import read_json

    entries = {}
    paths = weight_files(folder)
    for path in paths:
        for name, entry in read_header(path)[0].items():
            if name in entries:
                raise ModelError(f"stands in {entries[name].file.name} too", where=f"{path}: {name}")
            entries[name] = entry
    index = Path(folder) / "model.safetensors.index.json"
    if len(paths) > 1 or (index.exists() and paths[0].name != "model.safetensors"):
        for name, shard in read_json(index)["weight_map"].items():
            if name not in entries or entries[name].file.name != shard:
                what = f"the index places {name} in it, the shard does not hold it"
                raise ModelError(what, where=Path(folder) / shard, hint="the shards are not of one save")
    return entries
