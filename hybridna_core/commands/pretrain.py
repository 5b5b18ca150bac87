"""Pretraining: a run file in, a model folder out.

run.toml -> corpus.window(i) -> model -> loss -> optimiser -> snapshots -> model folder
"""

import dataclasses
import hashlib
import json
import time
from pathlib import Path
from typing import NamedTuple

from hybridna_core.errors import SystemFault, UsageError
from hybridna_core.run_config import read_run


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


def pretrain(run, *, output=None, set=(), device="auto", dry_run=False, progress=None):
    """Train a model as a run file says; go on from the last snapshot when there is one.

    run      path of the TOML file
    output   folder of the run (snapshots, log, finished model); the file's own `output` when None
    set      overrides such as `optim.lr=2e-3`
    dry_run  read the configuration and the genomes, report what would be done, train nothing
    Returns a PretrainSummary. Raises UsageError, DataError, ModelError, SystemFault, GuardError, Stopped.
    """
    from hybridna_core.checkpoint import choose_device, save_model
    from hybridna_core.data.corpus import Corpus, load_species, mixture_weights
    from hybridna_core.model.hybrid import HybridLM
    from hybridna_core.train.loop import train, validate
    from hybridna_core.train.optim import make_optimizer
    from hybridna_core.train.snapshots import load_snapshot

    started = time.monotonic()
    path = Path(run)
    run = read_run(path, set)
    output = output or run.output
    if not output:
        raise UsageError("no output folder", where=path, hint='give -o DIR, or output = "DIR" in the run file')
    folder = Path(output)
    target = choose_device(device)
    bos = run.model.bos_token_id is not None
    tokens = sum(s.steps * s.batch_tokens for s in run.stage)
    species = [load_species(s) for s in run.species]
    shares = mixture_weights([s.train_bases for s in species], tokens, power=run.mixture.power,
                             max_passes=run.mixture.max_passes, given=[s.weight for s in run.species])  # fmt: skip
    corpora = [
        Corpus(species, shares, bases=s.context_length - bos, seed=run.seed, stage=i,
               max_unknown=run.mixture.max_unknown, reverse_share=run.mixture.reverse_complement)
        for i, s in enumerate(run.stage)
    ]  # fmt: skip
    model = HybridLM(run.model, device=target, seed=run.seed)
    parameters = sum(p.numel() for p in model.parameters())
    steps = sum(s.steps for s in run.stage)
    if dry_run:
        return PretrainSummary(str(folder), steps, tokens, parameters, {}, time.monotonic() - started)

    try:
        (folder / "snapshots").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SystemFault(error.strerror or str(error), where=folder) from None
    optimizer = make_optimizer(model, run.optim)
    fingerprint = _fingerprint(run)
    position = load_snapshot(folder / "snapshots", model, optimizer)
    if position is None:
        position = {"step": 0, "seen": {s.name: 0 for s in species}, "run": fingerprint}
    changed = sorted(k for k in fingerprint if fingerprint[k] != position["run"].get(k))
    if changed:
        raise UsageError(f"{', '.join(changed)} changed since the run began", where=folder,
                         hint="undo the change, or give another output folder")  # fmt: skip
    position = train(model, optimizer, run, corpora, species, folder=folder, position=position, progress=progress)
    bases = run.stage[-1].context_length - bos
    measured = validate(model, species, bases, run)
    model.name = run.name
    extra = {"run.toml": path, "training.json": json.dumps({"seen_bases": position["seen"], "valid": measured})}
    finished = save_model(folder / "model", model, extra_files=extra, force=True)
    return PretrainSummary(str(finished), position["step"], tokens, parameters, measured, time.monotonic() - started)


def _fingerprint(run):
    """What must stay the same from start to resume, by part of the run file."""
    table = dataclasses.asdict(run)
    parts = ("model", "species", "stage", "seed", "mixture", "optim")
    return {k: hashlib.sha256(json.dumps(table[k], sort_keys=True).encode()).hexdigest()[:16] for k in parts}
