"""From a run file to the windows of every step, and the record that lets a run folder be read again.

RunConfig, species -> one Corpus per stage -> places of the windows of given steps
"""

import os
from pathlib import Path

from hybridna_core.checkpoint import write_json
from hybridna_core.config import read_json
from hybridna_core.data.corpus import Corpus, check_exclusions, load_species, read_exclusions
from hybridna_core.data.inputs import check_input
from hybridna_core.errors import HybriDNAError, ModelError

RECORD = "run.json"


def open_species(run, *, exclude_bed=None, scan=False, **reading):
    """Open the genomes of a run, without what a BED file of exclusions covers; see `load_species`."""
    exclusions = None if exclude_bed is None else read_exclusions(exclude_bed)
    species = [load_species(one, exclude=exclusions, scan=scan, **reading) for one in run.species]
    if exclusions is not None:
        check_exclusions(exclude_bed, exclusions, species)
    return species


def make_corpora(run, species):
    """Return one Corpus per stage of a run."""
    mixture, weights = run.mixture, [s.weight for s in run.species]
    classes = [s.class_ for s in run.species] if mixture.by == "class" else None
    return [
        Corpus(species, bases=window_bases(run, stage), tokens=run_tokens(run), seed=run.seed, stage=number,
               power=mixture.power, max_passes=mixture.max_passes, weights=weights, max_unknown=mixture.max_unknown,
               reverse_share=mixture.reverse_complement, classes=classes, class_shares=mixture.classes,
               soft_masked_weight=mixture.soft_masked_weight, duplication=stage.duplication)
        for number, stage in enumerate(run.stage)
    ]  # fmt: skip


def window_bases(run, stage):
    """Bases per window of a stage."""
    return stage.context_length - (run.model.bos_token_id is not None)


def run_tokens(run):
    """Training tokens of a whole run."""
    return sum(s.steps * s.batch_tokens for s in run.stage)


def places_of(run, corpora, first, last):
    """Yield the Place of every window of the steps [first, last), counted from 0 over all stages; nothing is read."""
    begin = 0
    for stage, corpus in zip(run.stage, corpora, strict=True):
        rows = stage.batch_tokens // stage.context_length
        steps = range(max(first - begin, 0), max(min(last - begin, stage.steps), 0))
        for i in range(steps.start * rows, steps.stop * rows):
            yield corpus.place(i)
        begin += stage.steps


def write_record(folder, run_file, overrides, exclude_bed, reading):
    """Note in a run's folder where its run file lies and how it was called."""
    record = {
        "run": os.path.abspath(run_file), "set": list(overrides),
        "exclude_bed": None if exclude_bed is None else os.path.abspath(exclude_bed),
        "reading": {key: value for key, value in reading.items() if key != "rebuild_index"},
    }  # fmt: skip
    temporary = Path(folder) / f".{RECORD}.tmp"
    write_json(temporary, record)
    os.replace(temporary, Path(folder) / RECORD)


def read_record(folder):
    """Return the record of a run's folder; raise ModelError when it is no folder of a run."""
    path = Path(folder) / RECORD
    try:
        check_input(path)
        record = read_json(path)
        if record.keys() >= {"run", "set", "exclude_bed", "reading"}:
            return record
    except (HybriDNAError, AttributeError):
        pass
    hint = "give the folder that `hybridna pretrain` wrote to, or run pretrain once more so that it is noted"
    raise ModelError("not the folder of a run: no sound run.json", where=folder, hint=hint)
