"""Snapshots of a training run: folders with a manifest written last, found again by step number.

model, optimiser, position -> folder beside -> manifest -> rename -> older ones deleted
"""

import logging
import shutil
from pathlib import Path

from hybridna_core.checkpoint import atomic_folder, sync_folder, verify_manifest, write_json, write_tensors
from hybridna_core.config import read_json
from hybridna_core.errors import HybriDNAError, ModelError
from hybridna_core.train.optim import optimizer_tensors, restore_optimizer

log = logging.getLogger("hybridna")


def save_snapshot(folder, model, optimizer, position, *, keep):
    """Write `folder/step-N` whole, then delete all but the newest `keep`; position is a dict that holds `step`."""
    target = Path(folder) / f"step-{position['step']:09d}"
    if target.exists():
        return target
    with atomic_folder(target) as temporary:
        write_tensors(temporary / "model.safetensors", model.state_dict())
        write_tensors(temporary / "optimizer.safetensors", optimizer_tensors(optimizer, model))
        write_json(temporary / "position.json", position)
    for _, old in _by_step(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    sync_folder(folder)
    return target


def load_snapshot(folder, model, optimizer):
    """Load the newest whole snapshot into model and optimiser; return its position, or None when there is none.

    A damaged or unfinished one is passed over with a warning; raises ModelError when all are.
    """
    from safetensors.torch import load_file

    found = _by_step(folder)
    for step, path in reversed(found):
        try:
            verify_manifest(path)
            position = read_json(path / "position.json")
        except HybriDNAError as error:
            log.warning("snapshot of step %d passed over: %s", step, error, extra={"kind": "snapshot"})
            continue
        model.load_state_dict(load_file(path / "model.safetensors"))
        restore_optimizer(optimizer, model, load_file(path / "optimizer.safetensors"))
        if path != found[-1][1]:
            log.warning("%d steps lost to damage", found[-1][0] - step, extra={"kind": "snapshot"})
        return position
    if found:
        hint = "delete the folder to start afresh"
        raise ModelError(f"all {len(found)} snapshots are damaged", where=folder, hint=hint)
    return None


def _by_step(folder):
    """List (step, path) of finished or half-finished snapshots, oldest first; other names are left alone."""
    folder = Path(folder)
    found = [(int(p.name[5:]), p) for p in folder.glob("step-*") if p.name[5:].isdigit() and p.is_dir()]
    return sorted(found) if folder.is_dir() else []
