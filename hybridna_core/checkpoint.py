"""Model folders of our own: written whole or not at all, verified before use.

save: tensors, config, tokenizer, card -> folder beside the target -> fsync -> manifest last -> rename
load: name or folder -> manifest (size, SHA-256 of each file) -> config -> headers against config -> tensors -> HybridLM
"""

import contextlib
import errno
import hashlib
import importlib.metadata
import json
import logging
import os
import re
import secrets
import shutil
from pathlib import Path

from hybridna_core.config import FORMAT_VERSION, read_json, read_model_config
from hybridna_core.errors import ModelError, SystemFault, UsageError, nearest
from hybridna_core.tokenizer import Tokenizer, read_tokenizer
from hybridna_core.weight_files import (
    ARCHIVE_SUFFIXES,
    PICKLE_SUFFIXES,
    check_finite,
    check_inside,
    denied,
    hint_for,
    looks_like,
    open_model_file,
    open_tensors,
    read_headers,
)

log = logging.getLogger("hybridna")

BUNDLED = Path(__file__).parent / "bundled"
MANIFEST = "manifest.json"
WEIGHTS = "model.safetensors"
# A line that every use of a model repeats, if its folder has one.
NOTICE, NOTICE_LENGTH = "notice.txt", 300
DTYPES = ("float32", "bfloat16", "float64")
STORED_DTYPES = ("float32", "bfloat16")
# Decay and step parameters lose their meaning in eight bits of mantissa; norm weights cost next to nothing.
FLOAT32_ALWAYS = re.compile(r"(A_log|D|dt_bias|norm\.weight)$")
CODE_KEYS = ("auto_map", "_target_", "class_path", "custom_pipelines", "trust_remote_code")
DEVICE_ERRORS = (
    errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG, errno.EACCES, errno.EPERM, errno.ESTALE,
)  # fmt: skip
REMOTE_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w.-]+)?")
REVISION = re.compile(r"[0-9a-f]{40}")


def version():
    """Return the installed version of hybridna."""
    try:
        return importlib.metadata.version("hybridna")
    except importlib.metadata.PackageNotFoundError:
        return "0+unknown"


# --- Writing ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def atomic_folder(folder, *, force=False, about=None):
    """Give a folder beside `folder` to fill; on success add the manifest, fsync everything and rename it.

    On any error nothing is left behind and a folder already there stays as it was. Files of one's own making are
    readable as the umask says. An existing folder is replaced only with `force`, and only when it is a model folder
    (or empty), so that a slip of the keyboard cannot delete anything else.

    about  further entries for the manifest
    raises UsageError (exists), SystemFault (no parent folder, disk full, permission)
    """
    folder = Path(os.path.abspath(folder))
    check_target(folder, force=force)
    # Not made from the target's name, which may already be as long as names can be.
    temporary = folder.parent / f".hybridna-{os.getpid()}-{secrets.token_hex(4)}.partial"
    try:
        try:
            temporary.mkdir()
            yield temporary
            write_manifest(temporary, about=about)
            _replace(temporary, folder)
        except OSError as error:
            # Whatever else the caller's own code met is not a fault of this folder.
            if error.errno not in DEVICE_ERRORS:
                raise
            raise system_fault(error, folder) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_target(folder, *, force=False):
    """Check before the work that a model folder can be written there; raise UsageError or SystemFault."""
    folder = Path(os.path.abspath(folder))
    if not folder.parent.is_dir():
        raise SystemFault("no such folder", where=folder.parent, hint="make it first")
    if not os.access(folder.parent, os.W_OK):
        raise SystemFault("folder is not writable", where=folder.parent)
    if not (folder.exists() or folder.is_symlink()):
        return
    if not folder.is_dir() or folder.is_symlink():
        raise UsageError("exists and is no folder", where=folder, hint="give another name")
    if not any(folder.iterdir()):
        return
    if not force:
        raise UsageError("exists", where=folder, hint="give another name, or --force to replace it")
    if not (folder / MANIFEST).is_file():
        raise UsageError("exists and is no model folder of ours; not replaced", where=folder, hint="give another name")


def _replace(temporary, folder):
    """Rename a finished folder to its name; an older one is moved aside first and deleted last."""
    old = None
    if folder.exists():
        old = folder.parent / f".hybridna-{os.getpid()}-{secrets.token_hex(4)}.old"
        os.rename(folder, old)
    try:
        os.rename(temporary, folder)
    except OSError:
        if old is not None:
            os.rename(old, folder)
        raise
    sync_folder(folder.parent)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def system_fault(error, path):
    """Turn an OSError met while writing into a SystemFault; a full disk names the bytes that are free."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(Path(path).parent).free
        return SystemFault(f"the disk is full ({free:,} bytes free)", where=path, hint="free some space, then rerun")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return SystemFault("may not be written", where=path)
    return SystemFault(error.strerror or str(error), where=path)


def write_bytes(path, data):
    """Write and fsync one file."""
    with open(path, "wb") as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())


def write_json(path, value):
    """Write and fsync one JSON file."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def write_tensors(path, tensors, metadata=None):
    """Write tensors to a safetensors file, fsynced; its mode follows the umask."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path = Path(path)
    path.touch()
    mode = path.stat().st_mode
    plain = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    try:
        save_file(plain, path, metadata=metadata or {"format": "pt"})
    except SafetensorError as error:
        # A full disk and its kin are told of in the text alone.
        code = re.search(r"\(os error (\d+)\)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from None
    # The library makes its files private, which would shut out the owner's group.
    os.chmod(path, mode)
    sync_file(path)


def sync_file(path):
    """Force one file's content to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


sync_folder = sync_file


def sha256(path):
    """Return the hex SHA-256 of one file."""
    with open_model_file(path) as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def write_manifest(folder, *, about=None):
    """Fsync every file of a folder, then write `manifest.json` with size and SHA-256 of each, last of all.

    The manifest is the mark of completeness: a folder without it was not finished. It holds a digest of itself.
    """
    folder = Path(folder)
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST):
        sync_file(path)
        files[path.relative_to(folder).as_posix()] = {"size": path.stat().st_size, "sha256": sha256(path)}
    for path in [folder, *(p for p in folder.rglob("*") if p.is_dir())]:
        sync_folder(path)
    table = {"format": FORMAT_VERSION, "hybridna": version(), **(about or {}), "files": files}
    table["digest"] = _digest(table)
    temporary = folder / f".{MANIFEST}.partial"
    write_json(temporary, table)
    os.rename(temporary, folder / MANIFEST)
    sync_folder(folder)
    return table


# --- Verifying -------------------------------------------------------------------------------------------------------


def verify_manifest(folder):
    """Check every file of a folder against its manifest; return the manifest.

    Raises ModelError naming the first file that is missing, truncated or changed, or a newer format.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    if not path.exists():
        raise ModelError(f"{MANIFEST} is missing: saving was cut short", where=folder, hint="use another copy")
    check_inside(path, folder)
    table = _read_manifest(path)
    _check_format(table.get("format"), table.get("hybridna"), path)
    # Manifests of the first release have no digest, and these keys alone.
    if table.get("digest") != _digest(table) and table.keys() != {"format", "hybridna", "files"}:
        raise ModelError("the manifest is damaged (its digest differs)", where=path, hint=hint_for(None))
    for name, due in table["files"].items():
        file = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ModelError(f"names {name!r}, which leads out of the folder", where=path)
        if not file.exists():
            raise ModelError("file is missing", where=file, hint=hint_for(None))
        check_inside(file, folder)
        size = file.stat().st_size
        if size != due["size"]:
            kind = looks_like(file)
            what = f"looks like {kind}" if kind else f"{size:,} bytes there, {due['size']:,} due"
            what = f"truncated: {what}" if size < due["size"] and not kind else what
            raise ModelError(what, where=file, hint=hint_for(kind))
        if sha256(file) != due["sha256"]:
            raise ModelError("checksum differs from the manifest: the file was damaged or changed", where=file,
                             hint=hint_for(None))  # fmt: skip
    return table


def _read_manifest(path):
    kind = looks_like(path)
    if kind:
        raise ModelError(f"looks like {kind}", where=path, hint=hint_for(kind))
    try:
        table = read_json(path)
    except UsageError as error:
        raise ModelError(f"the manifest is damaged ({error.what})", where=path, hint=hint_for(None)) from None
    files = table.get("files") if isinstance(table, dict) else None
    entries = files.values() if isinstance(files, dict) else [None]
    if not all(
        isinstance(e, dict) and type(e.get("size")) is int and isinstance(e.get("sha256"), str) for e in entries
    ):
        raise ModelError("the manifest is damaged (no list of files)", where=path, hint=hint_for(None))
    return table


def _digest(table):
    """Return the SHA-256 of what a manifest says, spacing aside."""
    plain = {key: value for key, value in table.items() if key != "digest"}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _check_format(number, written_by, where):
    if type(number) is not int or number < 1:
        raise ModelError(f"format {number!r} is unknown", where=where)
    if number > FORMAT_VERSION:
        what = f"written by hybridna {written_by} (format {number}), this is {version()} (format {FORMAT_VERSION})"
        raise ModelError(what, where=where, hint="upgrade hybridna")


def find_code_keys(value, path=""):
    """Yield the key paths in a parsed config that would make other programs import or run code."""
    if isinstance(value, dict):
        for key, inner in value.items():
            here = f"{path}.{key}" if path else str(key)
            if key in CODE_KEYS:
                yield here
            yield from find_code_keys(inner, here)
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from find_code_keys(inner, f"{path}[{i}]")
    elif isinstance(value, str) and "!!python" in value:
        yield path


# --- Saving and loading a model --------------------------------------------------------------------------------------


def save_model(folder, model, *, card="", extra_files=None, force=False, dtype="float32"):
    """Write a model folder whole: config, weights, tokenizer, model card, manifest.

    card         text of README.md
    extra_files  dict of file name -> str, bytes or Path of a file to copy
    dtype        float32 or bfloat16 for the stored weights; A_log, D, dt_bias and norms stay float32
    Returns the folder; raises UsageError (exists without force) or SystemFault (disk, permission).
    """
    import torch

    if dtype not in STORED_DTYPES:
        raise UsageError(f"weights cannot be stored as {dtype!r}", hint=f"one of {', '.join(STORED_DTYPES)}")
    tokenizer = getattr(model, "tokenizer", None) or Tokenizer()
    if tokenizer.vocab_size != model.config.vocab_size:
        raise ModelError(_vocabulary_differs(tokenizer, model.config), where=folder)
    kept = model.state_dict()
    if model.config.tie_word_embeddings:
        kept.pop("lm_head.weight", None)
    tensors = {}
    for name, tensor in kept.items():
        wide = dtype == "float32" or FLOAT32_ALWAYS.search(name)
        tensors[name] = tensor.to(torch.float32 if wide else torch.bfloat16)
    with atomic_folder(folder, force=force) as temporary:
        write_tensors(temporary / WEIGHTS, tensors)
        write_json(temporary / "config.json", model.config.to_dict())
        write_json(temporary / "tokenizer.json", tokenizer.to_dict())
        write_bytes(temporary / "README.md", (card or _plain_card(model)).encode())
        for name, content in (extra_files or {}).items():
            content = content.read_bytes() if isinstance(content, Path) else content
            write_bytes(temporary / name, content.encode() if isinstance(content, str) else content)
    return Path(folder)


def _plain_card(model):
    config = model.config
    total = sum(p.numel() for p in model.parameters())
    return (
        f"# {getattr(model, 'name', None) or 'HybriDNA model'}\n\n"
        f"{total:,} parameters: {config.num_hidden_layers} layers, width {config.hidden_size}, context "
        f"{config.context_length:,} tokens. Written by hybridna {version()}; no further notes were given.\n"
    )


def _vocabulary_differs(tokenizer, config):
    return f"the tokenizer has {tokenizer.vocab_size} tokens, the embedding {config.vocab_size} rows"


def bundled_names():
    """Return the names of the models that ship with the package, in order."""
    if not BUNDLED.is_dir():
        return []
    return sorted(p.name for p in BUNDLED.iterdir() if (p / "config.json").is_file())


def resolve_folder(name_or_folder):
    """Turn a bundled name or a path into an existing model folder.

    A bundled name wins over a folder of that name in the working directory (`./base` means the latter).
    Raises UsageError (remote name without commit), ModelError (nothing there, a pickle, an archive) or SystemFault.
    """
    text = str(name_or_folder)
    if not text:
        raise UsageError("the model's name is empty", hint="give a bundled name or a folder")
    if text in bundled_names():
        return BUNDLED / text
    folder = Path(name_or_folder)
    try:
        is_folder, exists = folder.is_dir(), folder.exists()
    except PermissionError:
        raise denied(folder) from None
    if is_folder:
        if not os.access(folder, os.R_OK | os.X_OK):
            raise denied(folder)
        return folder
    if exists:
        raise _no_folder(folder)
    remote = text.split("://", 1)[-1]
    if "://" in text or (REMOTE_ID.fullmatch(text) and not folder.parent.is_dir()):
        if not REVISION.fullmatch(remote.rpartition("@")[2]):
            what = f"no folder {text!r}; as a remote name it lacks the commit"
            raise UsageError(what, hint="give the path of a folder, or NAME@ and the 40 hex digits of the commit")
        hint = "fetch the folder with the hub's own client, then `hybridna models import FOLDER -o OUT`"
        raise SystemFault(f"{text}: downloading is not built in", hint=hint)
    known = bundled_names()
    close = nearest(folder.name, known + [p.name for p in _folders_beside(folder)])
    if close is not None and close not in known:
        close = str(folder.parent / close)
    hint = f"did you mean {close!r}?" if close else f"bundled models: {', '.join(known) or 'none'}"
    raise ModelError("no such model folder", where=text, hint=hint)


def _folders_beside(folder):
    try:
        return [p for p in folder.parent.iterdir() if p.is_dir()]
    except OSError:
        return []


def _no_folder(path):
    kind = looks_like(path) if path.is_file() else None
    suffix = path.suffix.lower()
    if kind is None and suffix in PICKLE_SUFFIXES:
        kind = "a pickle"
    if kind is None and suffix in ARCHIVE_SUFFIXES:
        kind = "an archive"
    if kind:
        return ModelError(f"looks like {kind}; a model folder is expected", where=path, hint=hint_for(kind))
    hint = "give the folder that it lies in" if suffix in (".safetensors", ".json") else None
    return ModelError("is a file; a model folder is expected", where=path, hint=hint)


def choose_device(device):
    """Turn auto, cpu, cuda or cuda:n into a torch.device; a CUDA device that is not there is a SystemFault."""
    import torch

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    text = str(device)
    if not re.fullmatch(r"cpu|cuda(:\d+)?", text):
        raise UsageError(f"device {text!r} is unknown", hint="one of auto, cpu, cuda, cuda:0, ...")
    if text != "cpu":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        # torch takes no number of many digits.
        if int(text.partition(":")[2][:9] or 0) >= count:
            raise SystemFault(f"no device {text} ({count} CUDA devices are there)", hint="use --device cpu")
    return torch.device(text)


def choose_dtype(dtype):
    """Turn the name of a number format into a torch.dtype; raise UsageError for others."""
    import torch

    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        close = nearest(name, DTYPES)
        raise UsageError(f"dtype {name!r} is unknown", hint=f"did you mean {close!r}?" if close else ", ".join(DTYPES))
    return getattr(torch, name)


def is_own_folder(folder):
    """Say whether a folder is in our own format, complete or not, rather than a published one."""
    folder = Path(folder)
    if (folder / MANIFEST).exists():
        return True
    try:
        table = read_json(folder / "config.json")
    except (OSError, UsageError):
        return False
    return isinstance(table, dict) and "hybridna_format" in table


def load_model(name_or_folder, *, device="auto", dtype="float32", allow_nonfinite=False):
    """Load a bundled model, a folder of ours or a published HybriDNA folder; return a HybridLM for use.

    The model is in eval mode, wants no gradients and carries tokenizer, name, digest (SHA-256 of the weights), folder.
    Raises ModelError (missing, damaged, not fitting), UsageError (config) or SystemFault (device, permission).
    """
    target = choose_device(device)
    folder = resolve_folder(name_or_folder)
    if not is_own_folder(folder):
        from hybridna_core.hf_weights import load_published

        return load_published(folder, device=device, dtype=dtype, allow_nonfinite=allow_nonfinite)
    number_format = choose_dtype(dtype)
    if (folder / "adapter.json").is_file():
        from hybridna_core.task_files import load_adapted

        return load_adapted(folder, device=device, dtype=dtype, allow_nonfinite=allow_nonfinite)
    manifest, config, tokenizer, headers = read_own_folder(folder)
    model = empty_model(config, number_format)
    check_shapes(headers, model, folder)
    fill_model(model, own_tensors(headers, allow_nonfinite), target)
    finish_model(model, tokenizer, folder, weights_digest(manifest, headers))
    if notice := read_notice(folder, manifest):
        log.warning("%s: %s", model.name, notice, extra={"kind": "notice"})
    return model


def read_notice(folder, manifest):
    """Return the first line of a verified notice.txt, without what a terminal would obey; empty where there is none."""
    if NOTICE not in manifest["files"]:
        return ""
    with open(Path(folder) / NOTICE, encoding="utf-8", errors="replace") as handle:
        line = handle.readline(NOTICE_LENGTH)
    return "".join(letter for letter in line if letter.isprintable())


def read_own_folder(folder):
    """Verify a folder of ours and read all but its weights; return manifest, config, tokenizer and headers."""
    manifest = verify_manifest(folder)
    config, tokenizer = read_description(folder)
    headers = read_headers(folder)
    for name in ("config.json", "tokenizer.json", *sorted({entry.file.name for entry in headers.values()})):
        # What the manifest does not list was not verified.
        if name not in manifest["files"]:
            raise ModelError(f"{name} is not in the manifest", where=Path(folder) / MANIFEST)
    return manifest, config, tokenizer, headers


def read_structure(name_or_folder):
    """Return the ModelConfig and Tokenizer of a name or folder, ours or published, without loading its weights."""
    folder = resolve_folder(name_or_folder)
    if is_own_folder(folder):
        return read_description(folder)
    from hybridna_core.hf_weights import plan_import

    plan = plan_import(folder)
    return plan.config, plan.tokenizer


def read_description(folder):
    """Read config.json and tokenizer.json of a folder of ours; check versions, code keys and sizes."""
    folder = Path(folder)
    for name in ("config.json", "tokenizer.json"):
        path = folder / name
        if not path.exists():
            raise ModelError("file is missing", where=path, hint=hint_for(None))
        kind = looks_like(path)
        if kind:
            raise ModelError(f"looks like {kind}", where=path, hint=hint_for(kind))
    path = folder / "config.json"
    table = read_json(path)
    for key in find_code_keys(table):
        what = f"key {key!r} names code to import"
        raise ModelError(what, where=path, hint="take the key out; remote code is never run")
    if isinstance(table, dict) and "hybridna_format" in table:
        _check_format(table["hybridna_format"], table.get("hybridna_version", "of a later release"), path)
    config = read_model_config(path)
    path = folder / "tokenizer.json"
    table = read_json(path)
    if isinstance(table, dict) and type(table.get("version")) is int and table["version"] > 1:
        raise ModelError(f"tokenizer version {table['version']} is newer than 1", where=path, hint="upgrade hybridna")
    tokenizer = read_tokenizer(path)
    if tokenizer.vocab_size != config.vocab_size:
        raise ModelError(_vocabulary_differs(tokenizer, config), where=folder)
    return config, tokenizer


def empty_model(config, number_format):
    """Build the network without memory for its weights (meta device)."""
    from hybridna_core.model.hybrid import HybridLM

    return HybridLM(config, device="meta", dtype=number_format)


def check_shapes(headers, model, where):
    """Raise ModelError naming the first five tensors that are missing, extra or of another shape."""
    wanted = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        wanted.pop("lm_head.weight", None)
    faults = [f"{name} is missing" for name in wanted if name not in headers]
    faults += [f"{name} is unexpected" for name in headers if name not in wanted]
    for name, shape in wanted.items():
        if name in headers and headers[name].shape != shape:
            faults.append(f"{name} is {list(headers[name].shape)}, config says {list(shape)}")
    if faults:
        more = f", and {len(faults) - 5} more" if len(faults) > 5 else ""
        what = f"weights do not fit config.json: {', '.join(faults[:5])}{more}"
        raise ModelError(what, where=where)


def own_tensors(headers, allow_nonfinite):
    """Yield (name, tensor) of a folder of ours, one tensor at a time."""
    with open_tensors(headers) as get:
        for name, entry in headers.items():
            tensor = get(name)
            check_finite(name, tensor, allow_nonfinite, entry.file)
            yield name, tensor


def fill_model(model, tensors, device):
    """Give a model on the meta device its weights, one at a time, in the number format the model asks for."""
    wanted = model.state_dict()
    ready = {}
    for name, tensor in tensors:
        # A copy, since tensors read from a mapped file change with it and lie at odd addresses.
        ready[name] = tensor.to(device=device, dtype=wanted[name].dtype, copy=True)
    if model.config.tie_word_embeddings:
        ready["lm_head.weight"] = ready["model.embed_tokens.weight"]
    model.load_state_dict(ready, strict=True, assign=True)
    if model.config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight


def finish_model(model, tokenizer, folder, digest):
    """Set what a loaded model carries beside its weights, and make it ready for use."""
    model.tokenizer, model.folder, model.digest = tokenizer, Path(folder), digest
    model.name = Path(os.path.abspath(folder)).name
    model.requires_grad_(False)
    model.eval()


def weights_digest(manifest, headers):
    """Return the SHA-256 of the weights: of the one file, or over the digests of the shards in order."""
    names = sorted({entry.file.name for entry in headers.values()})
    digests = [manifest["files"][name]["sha256"] for name in names]
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()
