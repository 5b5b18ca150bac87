"""Pretraining: a run file in, a model folder out.

run.toml -> corpus.window(i) -> model -> loss -> optimiser -> snapshots -> model folder
"""

import contextlib
import json
import logging
import os
import time
from pathlib import Path
from typing import NamedTuple

from hybridna_core.data.inputs import check_input, warn
from hybridna_core.errors import HybriDNAError, ModelError, SystemFault, UsageError
from hybridna_core.memory import free_bytes, keep_freed_memory, spell_bytes
from hybridna_core.run_config import read_run

log = logging.getLogger("hybridna")


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
    run, *, output=None, set=(), device="auto", shard="none", rank_timeout=600.0, dry_run=False, rebuild_index=False,
    other_letters=None, rna=False, allow_missing_eof=False, exclude_bed=None, new_data=False, override=(),
    progress=None,
):  # fmt: skip
    """Train a model as a run file says; go on from the last snapshot when there is one.

    run           path of the TOML file
    output        folder of the run (snapshots, log, finished model); the file's own `output` when None
    set           overrides such as `optim.lr=2e-3`
    shard         what processes started by torchrun split: none, optim (the optimiser's state), full (weights too)
    rank_timeout  seconds that such processes wait for one another before they give the run up
    dry_run       read the configuration and the genomes, report what would be done, train and write nothing
    exclude_bed   BED file of regions that are never read, by contig name in every species
    new_data      go on though the genomes' content, or what is held out or excluded, changed since the run began
    override      keys of the run file that may differ from the run's beginning, such as `optim.lr`
    progress      called with steps done, steps in all and note=, a text
    rebuild_index, other_letters, rna, allow_missing_eof: as `open_genome` has them, for every FASTA of the run
    Returns a PretrainSummary, or a PretrainPlan of a dry run. A run that is finished is not trained again.
    Raises UsageError, DataError, ModelError, SystemFault, GuardError, OutOfMemory, Stopped; Elsewhere on ranks that
    another one speaks for.
    """
    from hybridna_core.checkpoint import check_target
    from hybridna_core.train.corpora import make_corpora, open_species, write_record
    from hybridna_core.train.fingerprint import check_unchanged, take_fingerprint
    from hybridna_core.train.log import check_sinks
    from hybridna_core.train.loop import choose_precision, train
    from hybridna_core.train.parallel import join
    from hybridna_core.train.pretraining import Pretraining
    from hybridna_core.train.snapshots import find_snapshot, hold_folder

    started = time.monotonic()
    keep_freed_memory()
    reading = {"rebuild_index": rebuild_index, "other_letters": other_letters, "rna": rna,
               "allow_missing_eof": allow_missing_eof}  # fmt: skip
    with join(device, shard=shard, timeout=rank_timeout) as world, contextlib.ExitStack() as held:
        with world.together():
            path = Path(check_input(run, random_access=True))
            # Read now: the file may be another one when training ends.
            run_file = path.read_bytes()
            overrides, run = list(set), read_run(path, set)
            folder = Path(output or run.output)
            if not (output or run.output):
                raise UsageError("no output folder", where=path, hint='give -o DIR, or output = "DIR" in the run file')
            _check_folder(folder)
            _check_divides(run, world.size)
            if world.is_first:
                check_sinks(run.log)
        # The first process packs and indexes what the others then find.
        species = world.in_turn(lambda: open_species(run, exclude_bed=exclude_bed, scan=dry_run, **reading))
        with world.together():
            corpora = make_corpora(run, species)
        plan = _plan(run, folder, species, world)
        if dry_run:
            return plan._replace(seconds=time.monotonic() - started, species=plan_species(run, species, corpora))
        finished, precision = folder / "model", choose_precision(run.optim.precision, world.device)
        snapshot = position = measured = None
        with world.together():
            if world.is_first:
                held.enter_context(hold_folder(folder))
                check_target(finished, force=True)
                init = _load_init(run)
                fingerprint = take_fingerprint(run, species, precision, init.digest if init else "")
                snapshot, position = find_snapshot(folder / "snapshots")
                if position is None:
                    position = _start(folder, species)
                else:
                    check_unchanged(position["run"], fingerprint, folder, run, species, new_data=new_data,
                                    override=tuple(override))  # fmt: skip
                    measured = _measured(finished) if position["step"] == plan.steps else None
                    _go_on(position, fingerprint, plan.steps, measured)
                position["run"] = fingerprint
                if measured is None:
                    write_record(folder, path, overrides, exclude_bed, reading)
        snapshot, position, measured = world.share((snapshot, position, measured))
        if measured is None:
            model, optimizer = _build(run, snapshot, folder, world)
            position, measured = train(
                model, optimizer, run, Pretraining(run, corpora, species), folder=folder, position=position,
                progress=progress, precision=precision, world=world,
            )  # fmt: skip
            model = world.whole_model(model)
            with world.together():
                if world.is_first:
                    record = {"seen_bases": position["seen"], "valid": measured, "set": overrides,
                              "precision": precision}  # fmt: skip
                    _save(finished, model, run, record, run_file, position["ledger"], species)
                    _draw(folder, run)
    return PretrainSummary(str(finished), plan.steps, plan.tokens, plan.parameters, measured,
                           time.monotonic() - started)  # fmt: skip


def _check_divides(run, size):
    """Raise UsageError unless every stage's rows divide evenly among the ranks."""
    for number, stage in enumerate(run.stage):
        rows = stage.batch_tokens // stage.context_length
        if rows % size:
            what = f"{rows} windows a step cannot be divided among {size} ranks"
            close = max(1, rows // size) * size * stage.context_length
            hint = f"batch_tokens = {close} can be, or start another number of ranks"
            raise UsageError(what, where=f"stage[{number}]", hint=hint)


def _plan(run, folder, species, world):
    """Return the plan of a run, but for the species; warn of what may come to nothing, and of too little memory."""
    from hybridna_core.model.hybrid import count_parameters
    from hybridna_core.train.corpora import run_tokens

    parameters = count_parameters(run.model)
    memory = estimate_memory(run, parameters, shard=world.shard, size=world.size)
    if world.is_first:
        _warn_of_traps(run, species)
        free = free_bytes(world.device)
        if free is not None and memory > free:
            warn("memory", f"about {spell_bytes(memory)} of memory are needed, {spell_bytes(free)} are free")
    steps = sum(s.steps for s in run.stage)
    return PretrainPlan(str(folder), steps, run_tokens(run), parameters, f"about {spell_bytes(memory)}", 0.0, ())


def _start(folder, species):
    """Return the position of a run that begins."""
    if (folder / "log.jsonl").exists():
        log.info("no snapshot was written yet; starting from step 0")
    return {"step": 0, "seen": {s.name: 0 for s in species}, "ledger": {}}


def _go_on(position, fingerprint, steps, measured):
    """Say from where a run goes on, and forget what an earlier setting had led to."""
    if measured is not None:
        log.info("finished already; nothing is left to train")
        return
    log.info("going on from step %s of %s", f"{position['step']:,}", f"{steps:,}")
    key = "optim.microbatch_tokens"
    if position["run"].get("settings", {}).get(key) != fingerprint["settings"].get(key):
        position.pop("microbatch_tokens", None)


def _load_init(run):
    """Load the model that a run begins with; None without one. Raise ModelError if it is built in another way."""
    from hybridna_core.checkpoint import load_model

    if not run.init:
        return None
    model = load_model(run.init, device="cpu")
    theirs, ours = model.config.to_dict(), run.model.to_dict()
    # A longer context is what a warm start is often for.
    differing = [key for key in ours if theirs[key] != ours[key] and key != "max_position_embeddings"]
    if differing:
        words = ", ".join(f"{key} is {theirs[key]!r}, the run's {ours[key]!r}" for key in differing[:5])
        raise ModelError(f"does not fit the run's [model]: {words}", where=run.init)
    return model


def _build(run, snapshot, folder, world):
    """Return model and optimiser, or this rank's share of them, as the snapshot, init or the seed have it."""
    from hybridna_core.model.hybrid import HybridLM
    from hybridna_core.train.optim import make_optimizer
    from hybridna_core.train.snapshots import check_space, restore_snapshot

    model = HybridLM(run.model, device=world.device, seed=run.seed)
    with world.together():
        if world.is_first:
            check_space(folder, model, keep=run.save.keep)
        if snapshot is None and run.init:
            model.load_state_dict(_load_init(run).state_dict())
    for block in model.model.layers:
        block.recompute = run.optim.checkpoint_activations
    world.shard_model(model)
    optimizer = world.shard_optimizer(make_optimizer(model, run.optim))
    if snapshot is not None:
        restore_snapshot(snapshot, model, optimizer, world)
    return model, optimizer


def _save(folder, model, run, record, run_file, ledger, species):
    """Write the finished model folder, with what says how it came to be."""
    from hybridna_core.checkpoint import save_model
    from hybridna_core.train.corpora import run_tokens
    from hybridna_core.train.ledger import spell_ledger

    model.name = run.name
    card = (
        f"# {run.name}\n\n{sum(p.numel() for p in model.parameters()):,} parameters, trained by `hybridna pretrain` on "
        f"{run_tokens(run):,} tokens in {record['precision']}{f', from {run.init}' if run.init else ''}. `run.toml` is "
        f"its run file, `training.json` what it came to, `ledger.tsv` how often each contig was read.\n"
    )
    extra = {"run.toml": run_file, "ledger.tsv": spell_ledger(ledger, species),
             "training.json": json.dumps(record, indent=2) + "\n"}  # fmt: skip
    save_model(folder, model, card=card, extra_files=extra, force=True)


def _draw(folder, run):
    """Draw the curves of a run that has ended; what keeps it from that costs a warning."""
    from hybridna_core.train.plots import draw_curves, read_curves

    if not run.log.plot:
        return
    try:
        draw_curves(read_curves(folder / "log.jsonl", run), folder / "loss.png", run=run, title=run.name)
    except HybriDNAError as error:
        warn("plot", f"no curves drawn: {error}")


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


def estimate_memory(run, parameters, *, shard="none", size=1):
    """Estimate the bytes that one rank takes: weights, gradients, two moments, activations, torch itself."""
    config = run.model
    at_once = max(
        max(1, min(s.batch_tokens, run.optim.microbatch_tokens) // s.context_length) * s.context_length
        for s in run.stage
    )
    # Floats per token that the backward pass reads again, counted with autograd's saved-tensor hooks.
    mlp = 4 * config.intermediate_size
    mamba = 6 * config.hidden_size + 19 * config.mamba_width + 18 * config.mamba_n_groups * config.mamba_d_state
    each = [mlp + (mamba if kind == "mamba" else 10 * config.hidden_size) for kind in config.layer_types]
    per_token = sum(each)
    if run.optim.checkpoint_activations:
        # The input of every block, and one block at a time.
        per_token = config.hidden_size * len(each) + max(each)
    per_parameter = {"none": 16, "optim": 8 + 8 / size, "full": 16 / size}[shard]
    if shard == "full":
        # Gathered for the pass through it: one block, and the next one already.
        per_parameter += 8 / len(each)
    return int(per_parameter * parameters + 1.25 * 4 * per_token * at_once + 350 * 2**20)


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
