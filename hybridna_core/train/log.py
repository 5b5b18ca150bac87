"""The log of a training run: JSON lines that always agree with the snapshots, and other places that get the same.

step -> line -> log.jsonl, TensorBoard, Weights & Biases; snapshot -> fsync; resume -> lines after its step are cut
"""

import contextlib
import json
import os
import secrets

from hybridna_core.data.inputs import warn
from hybridna_core.errors import SystemFault


class Log:
    """JSON lines beside the snapshots; on resume, lines after the snapshot's step are cut.

    sinks  further places that get every entry: `write(entry)` and `close()`
    A log that cannot be written costs a warning, never the run.
    """

    def __init__(self, path, step, sinks=()):
        self.path, self.sinks, self._valid = path, list(sinks), {}
        before = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        kept = []
        for line in before.splitlines():
            entry = parse_entry(line)
            if entry is not None and entry["step"] <= step:
                kept.append(line + "\n")
                self._remember(entry)
        if "".join(kept) != before:
            temporary = path.with_suffix(".partial")
            with temporary.open("w", encoding="utf-8") as handle:
                handle.writelines(kept)
                handle.flush()
                os.fsync(handle.fileno())
            os.replace(temporary, path)
        self._handle = path.open("a", encoding="utf-8")

    def _remember(self, entry):
        if "valid" in entry:
            self._valid = {entry["step"]: entry["valid"]}

    def valid_at(self, step):
        """Return what validation measured at the given step if that is the last one logged, else None."""
        return self._valid.get(step)

    def write(self, **entry):
        self._remember(entry)
        try:
            self._handle.write(json.dumps(entry) + "\n")
            self._handle.flush()
        except OSError as error:
            warn("log", f"{self.path}: a line could not be written: {error.strerror}")
        for sink in list(self.sinks):
            try:
                sink.write(entry)
            except Exception as error:
                # Other people's code, and often the network; the lines themselves are safe.
                warn("log", f"{type(sink).__name__} gets no more lines: {type(error).__name__}: {error}")
                self.sinks.remove(sink)

    def sync(self):
        """Force the lines to disk, so that no snapshot is newer than its log."""
        with contextlib.suppress(OSError):
            os.fsync(self._handle.fileno())

    def close(self):
        with contextlib.suppress(OSError):
            self._handle.close()
        for sink in self.sinks:
            with contextlib.suppress(Exception):
                sink.close()


def parse_entry(line):
    """Return a log line as a dict, None when it is cut or is none of ours."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and type(entry.get("step")) is int else None


def flatten(entry):
    """Name the numbers of an entry as dashboards have them: {`train/bits_per_base`: 1.9, `valid/yeast`: 1.88}."""
    found = {f"valid/{name}": bits for name, bits in entry.get("valid", {}).items()}
    found |= {f"skipped/{name}": number for name, number in entry.get("skipped", {}).items()}
    for name, value in entry.items():
        if name != "step" and isinstance(value, int | float):
            found[f"train/{name}"] = value
    return found


class TensorBoard:
    """Event files in a folder; those of steps that are done again are hidden."""

    def __init__(self, folder, step):
        writer = _import("tensorboard", "torch.utils.tensorboard").SummaryWriter
        self._writer = writer(log_dir=str(folder), purge_step=step + 1)

    def write(self, entry):
        for name, value in flatten(entry).items():
            self._writer.add_scalar(name, value, entry["step"])
        self._writer.flush()

    def close(self):
        self._writer.close()


class WeightsAndBiases:
    """One run of a project there; its id stays in the folder, so that a resumed run goes on in it."""

    def __init__(self, folder, project, name):
        kept = folder / "wandb.id"
        identity = kept.read_text(encoding="utf-8").strip() if kept.exists() else secrets.token_hex(8)
        try:
            self._run = _import("wandb", "wandb").init(
                project=project, name=name, id=identity, resume="allow", dir=str(folder)
            )
        except SystemFault:
            raise
        except Exception as error:
            hint = "log in with `wandb login`, or set WANDB_MODE=offline, or leave log.wandb out"
            raise SystemFault(f"wandb did not start: {error}", where="log.wandb", hint=hint) from None
        kept.write_text(identity + "\n", encoding="utf-8")

    def write(self, entry):
        self._run.log(flatten(entry), step=entry["step"])

    def close(self):
        self._run.finish()


def _import(package, module):
    """Import what a sink needs; raise SystemFault when it is not installed."""
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError:
        hint = f"pip install {package}, or leave log.{package} out"
        raise SystemFault(f"{package} is not installed", where=f"log.{package}", hint=hint) from None


def check_sinks(config):
    """Raise SystemFault, before any work, if a package that the run file asks for is missing. config: LogConfig"""
    if config.tensorboard:
        _import("tensorboard", "torch.utils.tensorboard")
    if config.wandb:
        _import("wandb", "wandb")


def open_sinks(config, folder, step, name):
    """Return the sinks that a run file asks for; raise SystemFault if one does not start."""
    sinks = []
    if config.tensorboard:
        sinks.append(TensorBoard(folder / "tensorboard", step))
    if config.wandb:
        sinks.append(WeightsAndBiases(folder, config.wandb, name))
    return sinks
