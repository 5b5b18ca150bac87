"""One fine-tuning from beginning to end in its folder, gone on with where it was stopped.

trainable module, Tuning -> folder held -> snapshot or first step -> loop -> weights that did best
"""

import json
import logging

from hybridna_core.errors import DataError, UsageError
from hybridna_core.train.loop import train
from hybridna_core.train.optim import make_optimizer
from hybridna_core.train.parallel import World
from hybridna_core.train.snapshots import find_snapshot, hold_folder, read_best, restore_snapshot

log = logging.getLogger("hybridna")


def fit(model, tuning, run, folder, fingerprint, *, precision="fp32", progress=None, prepare=None):
    """Train what of a module wants gradients, and leave it with the weights that did best; return the position.

    run          LoopConfig
    folder       of log and snapshots; one that was begun with the same fingerprint is gone on with
    fingerprint  {"settings": {...}, "data": digest, "model": digest}
    prepare      called with the optimiser before the first step
    Raises UsageError or DataError for another fingerprint, and what `train` raises.
    """
    with hold_folder(folder):
        snapshot, position = find_snapshot(folder / "snapshots")
        if position is None:
            position = {"step": 0, "run": fingerprint}
        else:
            check_same(position["run"], fingerprint, folder)
            log.info("going on from step %s of %s", f"{position['step']:,}", f"{int(tuning.ends[-1]):,}")
        optimizer = make_optimizer(model, run.optim)
        if prepare is not None:
            prepare(optimizer)
        if snapshot is not None:
            restore_snapshot(snapshot, model, optimizer)
            tuning.best = read_best(snapshot)
        position, _ = train(
            model, optimizer, run, tuning, folder=folder, position=position, progress=progress, precision=precision,
            world=World(model.device),
        )  # fmt: skip
    if tuning.best is not None:
        model.load_state_dict(tuning.best, strict=False)
    return position


def check_same(before, now, folder):
    """Raise UsageError for settings or a model that changed since a training began, DataError for its rows."""
    hint = "undo the change, give another output, or delete that folder"
    for key in sorted({*before["settings"], *now["settings"]}):
        was, is_now = before["settings"].get(key), now["settings"].get(key)
        if was != is_now:
            words = f"{key} changed since the training began ({json.dumps(was)} before, {json.dumps(is_now)} now)"
            raise UsageError(words, where=folder, hint=hint)
    if before["model"] != now["model"]:
        raise UsageError("the model's weights changed since the training began", where=folder, hint=hint)
    if before["data"] != now["data"]:
        raise DataError("the tables' content changed since the training began", where=folder, hint=hint)
