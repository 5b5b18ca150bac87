"""Snapshots of a training run: folders with a manifest written last, found again by step number.

model, optimiser, position -> folder beside -> manifest -> rename -> verified -> older ones deleted
"""

import contextlib
import logging
import os
import secrets
import shutil
from pathlib import Path

from hybridna_core.checkpoint import (
    atomic_folder,
    sync_folder,
    system_fault,
    verify_manifest,
    write_json,
    write_tensors,
)
from hybridna_core.config import read_json
from hybridna_core.data.inputs import warn
from hybridna_core.data.lock import hold_lock
from hybridna_core.errors import HybriDNAError, ModelError, SystemFault
from hybridna_core.train.optim import restore_optimizer
from hybridna_core.train.parallel import ALONE

log = logging.getLogger("hybridna")

# What a run needs room for beside its tensors: position, manifest, log.
SLACK_BYTES = 2**20


@contextlib.contextmanager
def hold_folder(folder):
    """Make the folder of a run and keep other runs out of it; raise UsageError naming the holder, or SystemFault."""
    folder = Path(folder)
    try:
        (folder / "snapshots").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SystemFault(error.strerror or str(error), where=folder) from None
    hint = "wait for it, or give another output folder"
    with hold_lock(folder / "lock", where=folder, doing="is training in this folder", hint=hint):
        # What a killed run was writing or deleting; no one else writes here now.
        for left in (folder / "snapshots").glob(".hybridna-*"):
            shutil.rmtree(left, ignore_errors=True)
        yield


def snapshot_bytes(model):
    """Return the bytes of one snapshot of a model in AdamW: the weights and two moments of each."""
    return 3 * sum(p.numel() * p.element_size() for p in model.parameters()) + SLACK_BYTES


def check_space(folder, model, *, keep):
    """Raise SystemFault, naming bytes needed and free, if a run's snapshots and finished model will not fit.

    One more snapshot than are kept stands there for a moment; what is there already needs no more room.
    """
    folder = Path(folder)
    one = snapshot_bytes(model)
    there = sum(p.stat().st_size for p in (folder / "snapshots").rglob("*") if p.is_file())
    _check_free(folder, max(one, (keep + 1) * one - there) + one // 3, "the run's snapshots and model")


def _check_free(folder, needed, what):
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise system_fault(error, folder) from None
    if free < needed:
        what = f"the disk is too full: {what} need {needed:,} bytes, {free:,} are free"
        raise SystemFault(what, where=folder, hint="free some space, then rerun")


def save_snapshot(folder, model, optimizer, position, *, keep, world=ALONE, best=None):
    """Write `folder/step-N` whole, check it, then delete all but the newest `keep`; position holds `step`.

    best  {name: tensor} of the weights that did best so far, kept beside the last ones; None: there are none

    What stands at this step or a later one was passed over as damaged when the run went on from an earlier one.
    Raises SystemFault when the disk is full or cannot be written; the older snapshots are then as they were.
    Every process of the run calls it, and the first one writes: the same files however the model is split.
    """
    weights, moments = world.whole_weights(model), world.whole_moments(optimizer, model)
    with world.together():
        if world.is_first:
            return _write_snapshot(Path(folder), weights, moments, position, keep, best or {})


def _write_snapshot(folder, weights, moments, position, keep, best):
    target = folder / f"step-{position['step']:09d}"
    tensors = (*weights.values(), *moments.values(), *best.values())
    needed = sum(t.numel() * t.element_size() for t in tensors) + SLACK_BYTES
    _check_free(folder, needed, f"the weights and optimiser of step {position['step']:,}")
    for step, path in _by_step(folder):
        if step >= position["step"]:
            _discard(path)
    # Tied weights are one parameter under two names; safetensors refuses to write both.
    with atomic_folder(target) as temporary:
        write_tensors(temporary / "model.safetensors", weights)
        write_tensors(temporary / "optimizer.safetensors", moments)
        if best:
            write_tensors(temporary / "best.safetensors", best)
        write_json(temporary / "position.json", position)
    try:
        verify_manifest(target)
        for _, old in _by_step(folder)[:-keep]:
            _discard(old)
        sync_folder(folder)
    except OSError as error:
        raise system_fault(error, target) from error
    return target


def _discard(path):
    """Delete a snapshot; it loses its name first, so that none is ever there in part."""
    gone = path.parent / f".hybridna-{os.getpid()}-{secrets.token_hex(4)}.old"
    with contextlib.suppress(OSError):
        os.rename(path, gone)
    shutil.rmtree(gone, ignore_errors=True)


def find_snapshot(folder):
    """Return (path, position) of the newest whole snapshot, or (None, None) when there is none.

    A damaged or unfinished one is passed over with a warning; raises ModelError when all are.
    """
    found = _by_step(folder)
    for step, path in reversed(found):
        try:
            position = check_snapshot(path)
        except (HybriDNAError, OSError) as error:
            warn("snapshot", f"snapshot of step {step:,} passed over: {error}")
            continue
        if path != found[-1][1]:
            warn("snapshot", f"going on from step {step:,}: {found[-1][0] - step:,} steps are lost to damage")
        return path, position
    if found:
        hint = "delete the folder to start afresh"
        raise ModelError(f"all {len(found)} snapshots are damaged", where=folder, hint=hint)
    return None, None


def check_snapshot(path):
    """Return the position of a snapshot whose every file is as it was written; raise ModelError otherwise."""
    verify_manifest(path)
    # The ledger of a genome in very many contigs is long; that it is ours is known by now.
    return read_json(path / "position.json", limit=None)


def restore_snapshot(path, model, optimizer, world=ALONE):
    """Put the weights and the optimiser's state of a snapshot back, bit for bit, or this process's share of them."""
    import torch

    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in _read_tensors(path / "model.safetensors"):
            # Snapshots of tied weights may hold the second name too.
            if name in parameters:
                parameters[name].copy_(world.own_weight(value, parameters[name]))
    moments = world.own_moments(_read_tensors(path / "optimizer.safetensors"), optimizer, model)
    restore_optimizer(optimizer, model, moments)


def read_best(path):
    """Return {name: tensor} of the weights that did best up to a snapshot, or None where it has none."""
    file = Path(path) / "best.safetensors"
    return dict(_read_tensors(file)) if file.exists() else None


def _read_tensors(path):
    """Yield (name, tensor) in the order of the names, one at a time: a rank may keep but a part of each."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        for name in sorted(file.keys()):
            yield name, file.get_tensor(name)


def _by_step(folder):
    """List (step, path) of finished or half-finished snapshots, oldest first; other names are left alone."""
    folder = Path(folder)
    found = [(int(p.name[5:]), p) for p in folder.glob("step-*") if p.name[5:].isdigit() and p.is_dir()]
    return sorted(found) if folder.is_dir() else []
