"""Pretraining: a run file in, a model folder out.

run.toml -> corpus.window(i) -> model -> loss -> optimiser -> snapshots -> model folder
"""

import dataclasses
import hashlib
import json
import logging
import os
import time
from pathlib import Path
from typing import NamedTuple

from hybridna_core.data.inputs import check_input, warn
from hybridna_core.errors import DataError, ModelError, SystemFault, UsageError
from hybridna_core.memory import free_bytes, spell_bytes
from hybridna_core.run_config import read_run

log = logging.getLogger("hybridna")

# Parts of a run that must stay as they are from start to resume.
FIXED = ("model", "species", "stage", "seed", "mixture", "optim")
# Their keys that came after the first release.
LATER = ("class_", "valid_bed", "exclude_bed", "by", "classes", "soft_masked_weight", "precision",
         "checkpoint_activations")  # fmt: skip


class PretrainSummary(NamedTuple):
    """What a pretraining run came to."""

    output: str
    steps: int
    tokens: int
    parameters: int
    bits_per_base: dict
    seconds: float

    def to_dict(self):
        return self._asdict()


class SpeciesPlan(NamedTuple):
    """One species in a dry run: known bases trained on and held out, share of the windows, expected passes."""

    name: str
    bases: int
    held_out: int
    share: float
    passes: float


class PretrainPlan(NamedTuple):
    """What a pretraining run would do."""

    output: str
    steps: int
    tokens: int
    parameters: int
    memory: str
    seconds: float
    species: tuple[SpeciesPlan, ...]

    def to_dict(self):
        return {**self._asdict(), "species": [s._asdict() for s in self.species]}


def pretrain(
    run, *, output=None, set=(), device="auto", dry_run=False, rebuild_index=False, other_letters=None, rna=False,
    allow_missing_eof=False, exclude_bed=None, new_data=False, progress=None,
):  # fmt: skip
    """Train a model as a run file says; go on from the last snapshot when there is one.

    run       path of the TOML file
    output    folder of the run (snapshots, log, finished model); the file's own `output` when None
    set       overrides such as `optim.lr=2e-3`
    dry_run   read the configuration and the genomes, report what would be done, train and write nothing
    exclude_bed  BED file of regions that are never read, by contig name in every species
    new_data     go on though the genomes' content, or what is held out or excluded, changed since the run began
    progress  called with steps done, steps in all and note=, a text
    rebuild_index, other_letters, rna, allow_missing_eof: as `open_genome` has them, for every FASTA of the run
    Returns a PretrainSummary, or a PretrainPlan of a dry run. A run that is finished is not trained again.
    Raises UsageError, DataError, ModelError, SystemFault, GuardError, Stopped.
    """
    started = time.monotonic()
    path = Path(check_input(run, random_access=True))
    # Read now: the file may be another one when training ends.
    run_file = path.read_bytes()
    overrides, run = list(set), read_run(path, set)
    folder = Path(output or run.output)
    if not (output or run.output):
        raise UsageError("no output folder", where=path, hint='give -o DIR, or output = "DIR" in the run file')
    _check_folder(folder)

    from hybridna_core.checkpoint import check_target, choose_device, save_model
    from hybridna_core.model.hybrid import HybridLM, count_parameters
    from hybridna_core.train.corpora import make_corpora, open_species, run_tokens, write_record
    from hybridna_core.train.ledger import spell_ledger
    from hybridna_core.train.loop import train
    from hybridna_core.train.optim import make_optimizer
    from hybridna_core.train.snapshots import find_snapshot, hold_folder, restore_snapshot

    target = choose_device(device)
    reading = {"rebuild_index": rebuild_index, "other_letters": other_letters, "rna": rna,
               "allow_missing_eof": allow_missing_eof}  # fmt: skip
    species = open_species(run, exclude_bed=exclude_bed, scan=dry_run, **reading)
    corpora = make_corpora(run, species)
    _warn_of_traps(run, species)
    parameters = count_parameters(run.model)
    steps, tokens = sum(s.steps for s in run.stage), run_tokens(run)
    memory = estimate_memory(run, parameters)
    free = free_bytes(target)
    if free is not None and memory > free:
        warn("memory", f"about {spell_bytes(memory)} of memory are needed, {spell_bytes(free)} are free")
    if dry_run:
        return PretrainPlan(str(folder), steps, tokens, parameters, f"about {spell_bytes(memory)}",
                            time.monotonic() - started, plan_species(run, species, corpora))  # fmt: skip

    finished = folder / "model"
    with hold_folder(folder):
        check_target(finished, force=True)
        snapshot, position = find_snapshot(folder / "snapshots")
        fingerprint = _fingerprint(run, species)
        if position is not None:
            _check_unchanged(position["run"], fingerprint, folder, run, species, new_data)
            measured = _measured(finished) if position["step"] == steps else None
            if measured is not None:
                log.info("finished already; nothing is left to train")
                seconds = time.monotonic() - started
                return PretrainSummary(str(finished), steps, tokens, parameters, measured, seconds)
            log.info("going on from step %s of %s", f"{position['step']:,}", f"{steps:,}")
            position["run"] = fingerprint
        else:
            if (folder / "log.jsonl").exists():
                log.info("no snapshot was written yet; starting from step 0")
            position = {"step": 0, "seen": {s.name: 0 for s in species}, "ledger": {}, "run": fingerprint}
        write_record(folder, path, overrides, exclude_bed, reading)
        model = HybridLM(run.model, device=target, seed=run.seed)
        optimizer = make_optimizer(model, run.optim)
        if snapshot is not None:
            restore_snapshot(snapshot, model, optimizer)
        position, measured = train(model, optimizer, run, corpora, species, folder=folder, position=position,
                                   progress=progress)  # fmt: skip
        model.name = run.name
        record = {"seen_bases": position["seen"], "valid": measured, "set": overrides}
        ledger = spell_ledger(position["ledger"], species)
        extra = {"run.toml": run_file, "ledger.tsv": ledger, "training.json": json.dumps(record, indent=2) + "\n"}
        save_model(finished, model, extra_files=extra, force=True)
    return PretrainSummary(str(finished), steps, tokens, parameters, measured, time.monotonic() - started)


def plan_species(run, species, corpora):
    """Return a SpeciesPlan of each species, over all stages."""
    read = [0.0] * len(species)
    for stage, corpus in zip(run.stage, corpora, strict=True):
        bases = stage.steps * (stage.batch_tokens // stage.context_length) * corpus.bases
        read = [total + float(share) * bases for total, share in zip(read, corpus.shares, strict=True)]
    return tuple(
        SpeciesPlan(one.name, one.train_bases, one.valid_bases, bases / sum(read), bases / max(1, one.train_bases))
        for one, bases in zip(species, read, strict=True)
    )


def estimate_memory(run, parameters):
    """Estimate the bytes that training takes: weights, gradients, two moments, activations, torch itself."""
    config = run.model
    at_once = max(
        max(1, min(s.batch_tokens, run.optim.microbatch_tokens) // s.context_length) * s.context_length
        for s in run.stage
    )
    # Floats per token that the backward pass reads again, counted with autograd's saved-tensor hooks.
    mlp = 4 * config.intermediate_size
    mamba = 6 * config.hidden_size + 19 * config.mamba_width + 18 * config.mamba_n_groups * config.mamba_d_state
    per_token = sum(mlp + (mamba if kind == "mamba" else 10 * config.hidden_size) for kind in config.layer_types)
    return int(16 * parameters + 1.25 * 4 * per_token * at_once + 350 * 2**20)


def _check_folder(folder):
    """Raise before any work if the folder of a run can neither be used nor made."""
    if folder.exists() and not folder.is_dir():
        raise UsageError("exists and is no folder", where=folder, hint="give another output")
    nearest = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    if not nearest.is_dir():
        raise SystemFault("is no folder", where=nearest, hint="give another output")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise SystemFault("folder is not writable", where=nearest)


def _warn_of_traps(run, species):
    """Warn of what runs to its end and still comes to nothing."""
    from hybridna_core.data.corpus import validation_starts
    from hybridna_core.train.corpora import window_bases

    steps = sum(s.steps for s in run.stage)
    if run.optim.warmup_steps >= steps:
        what = f"warm-up takes {run.optim.warmup_steps:,} steps and the run has {steps:,}: optim.lr is never reached"
        warn("warm-up", what)
    for number, stage in enumerate(run.stage):
        bases = window_bases(run, stage)
        for one in species:
            if len(one.valid) and not len(validation_starts(one, bases)):
                what = f"{one.name}: nothing is measured in stage {number}, no held-out window of {bases:,} known bases"
                warn("nothing-measured", what)


def _measured(folder):
    """Return what a finished model folder says of its validation, or None if it is not whole."""
    from hybridna_core.checkpoint import verify_manifest
    from hybridna_core.config import read_json

    try:
        verify_manifest(folder)
        return read_json(folder / "training.json")["valid"]
    except (ModelError, UsageError, OSError, KeyError):
        return None


def _fingerprint(run, species):
    """Digest what must stay the same from start to resume: parts of the run file, and the genomes' content."""
    table = _without_later(run)
    parts = {k: hashlib.sha256(json.dumps(table[k], sort_keys=True).encode()).hexdigest()[:16] for k in FIXED}
    data = hashlib.sha256()
    masked = run.mixture.soft_masked_weight != 1
    for config, one in zip(run.species, species, strict=True):
        data.update(repr((one.name, config.weight, config.class_)).encode())
        data.update(one.fingerprint(masked).encode())
    return {**parts, "genomes": data.hexdigest()[:16]}


def _without_later(config):
    """Turn a configuration into tables, without keys of later releases that stand at their default.

    A run that leaves them out is the run it was before they came, and goes on as such.
    """
    if isinstance(config, tuple):
        return [_without_later(one) for one in config]
    if not dataclasses.is_dataclass(config):
        return config
    table = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if field.name not in LATER or value != default:
            table[field.name] = _without_later(value)
    return table


def _early_data(run, species):
    """Digest the genomes' content as early releases did, which read all of it."""
    data = hashlib.sha256()
    for config, one in zip(run.species, species, strict=True):
        for stretch in [*one.train, *one.valid]:
            place = (one.name, config.weight, stretch.contig, stretch.start, stretch.end)
            data.update(repr(place).encode())
            for at in range(0, len(stretch.ids), 2**24):
                data.update(stretch.ids[at : at + 2**24])
    return data.hexdigest()[:16]


def _check_unchanged(before, now, folder, run, species, new_data=False):
    """Compare fingerprints; raise UsageError for a changed configuration, DataError for changed genomes."""
    changed = [k for k in FIXED if before.get(k) != now[k]]
    knows_data = "genomes" in before or "data" in before
    if "genomes" in before:
        same_data = before["genomes"] == now["genomes"]
    else:
        # Snapshots of the first release know the genomes by their paths alone.
        same_data = "data" not in before or before["data"] == _early_data(run, species)
    if "species" in changed and knows_data and (same_data or new_data):
        # Only the paths are others: the genomes were moved.
        changed.remove("species")
    if changed:
        raise UsageError(f"{', '.join(changed)} changed since the run began", where=folder,
                         hint="undo the change, or give another output folder")  # fmt: skip
    if not same_data and new_data:
        warn("new-data", "the genomes' content changed since the run began; going on with what they are now")
    elif not same_data:
        raise DataError("the genomes' content changed since the run began", where=folder,
                        hint="put the old files back, or give another output folder, or --new-data")  # fmt: skip
