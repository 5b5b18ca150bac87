"""Snapshots of a training run: folders with a manifest written last, found again by step number.

model, optimiser, position -> folder beside -> manifest -> rename -> verified -> older ones deleted
"""

import contextlib
import os
import shutil
import socket
from pathlib import Path

from hybridna_core.checkpoint import atomic_folder, sync_folder, verify_manifest, write_json, write_tensors
from hybridna_core.config import read_json
from hybridna_core.data.inputs import warn
from hybridna_core.errors import HybriDNAError, ModelError, SystemFault, UsageError
from hybridna_core.train.optim import optimizer_tensors, restore_optimizer

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None


@contextlib.contextmanager
def hold_folder(folder):
    """Make the folder of a run and keep other runs out of it; raise UsageError naming the holder, or SystemFault.

    The lock is the system's own, so it ends with the process, however that ends.
    """
    folder = Path(folder)
    try:
        (folder / "snapshots").mkdir(parents=True, exist_ok=True)
        handle = (folder / "lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise SystemFault(error.strerror or str(error), where=folder) from None
    with handle:
        _lock(handle, folder)
        # What a killed run was writing; no one else writes here now.
        for left in (folder / "snapshots").glob(".hybridna-*"):
            shutil.rmtree(left, ignore_errors=True)
        yield


def _lock(handle, folder):
    if fcntl is None:
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.seek(0)
        holder = handle.read(200).strip() or "another process"
        hint = "wait for it, or give another output folder"
        raise UsageError(f"{holder} is training in this folder", where=folder, hint=hint) from None
    except OSError:
        # Some network file systems know no locks.
        return
    # A full disk is told of by the first snapshot.
    with contextlib.suppress(OSError):
        handle.truncate(0)
        handle.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        handle.flush()


def save_snapshot(folder, model, optimizer, position, *, keep):
    """Write `folder/step-N` whole, check it, then delete all but the newest `keep`; position holds `step`.

    What stands at this step or a later one was passed over as damaged when the run went on from an earlier one.
    """
    folder = Path(folder)
    target = folder / f"step-{position['step']:09d}"
    for step, path in _by_step(folder):
        if step >= position["step"]:
            shutil.rmtree(path, ignore_errors=True)
    # Tied weights are one parameter under two names; safetensors refuses to write both.
    with atomic_folder(target) as temporary:
        write_tensors(temporary / "model.safetensors", dict(model.named_parameters()))
        write_tensors(temporary / "optimizer.safetensors", optimizer_tensors(optimizer, model))
        write_json(temporary / "position.json", position)
    verify_manifest(target)
    for _, old in _by_step(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    sync_folder(folder)
    return target


def find_snapshot(folder):
    """Return (path, position) of the newest whole snapshot, or (None, None) when there is none.

    A damaged or unfinished one is passed over with a warning; raises ModelError when all are.
    """
    found = _by_step(folder)
    for step, path in reversed(found):
        try:
            verify_manifest(path)
            position = read_json(path / "position.json")
        except (HybriDNAError, FileNotFoundError) as error:
            warn("snapshot", f"snapshot of step {step:,} passed over: {error}")
            continue
        if path != found[-1][1]:
            warn("snapshot", f"going on from step {step:,}: {found[-1][0] - step:,} steps are lost to damage")
        return path, position
    if found:
        hint = "delete the folder to start afresh"
        raise ModelError(f"all {len(found)} snapshots are damaged", where=folder, hint=hint)
    return None, None


def restore_snapshot(path, model, optimizer):
    """Put the weights and the optimiser's state of a snapshot back, bit for bit."""
    import torch
    from safetensors.torch import load_file

    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in load_file(path / "model.safetensors").items():
            # Snapshots of tied weights may hold the second name too.
            if name in parameters:
                parameters[name].copy_(value)
    restore_optimizer(optimizer, model, load_file(path / "optimizer.safetensors"))


def _by_step(folder):
    """List (step, path) of finished or half-finished snapshots, oldest first; other names are left alone."""
    folder = Path(folder)
    found = [(int(p.name[5:]), p) for p in folder.glob("step-*") if p.name[5:].isdigit() and p.is_dir()]
    return sorted(found) if folder.is_dir() else []
