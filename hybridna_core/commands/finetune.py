"""Fine-tuning: a table of sequences and labels in, a model folder that predicts them out.

tables -> Rows -> label scheme -> per seed: tune_head | tune_labels -> measures -> best seed -> model folder
"""

import collections
import contextlib
import dataclasses
import hashlib
import json
import logging
import math
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hybridna_core.checkpoint import check_target, choose_device, load_model, version
from hybridna_core.data.genome import open_genome
from hybridna_core.data.inputs import check_input, warn
from hybridna_core.data.labelled import (
    SETS,
    TASKS,
    Columns,
    Row,
    Scheme,
    Table,
    count_shared,
    encode_labels,
    find_table,
    learn_scheme,
    mark_rows,
    read_labelled,
    split_table,
    usable,
)
from hybridna_core.errors import DataError, UsageError, nearest
from hybridna_core.memory import keep_freed_memory
from hybridna_core.model.heads import longest_input
from hybridna_core.scoring import is_name, name_model, read_config
from hybridna_core.task_files import identify, save_adapter, save_labelled_model, save_predictor
from hybridna_core.task_metrics import choose_metric, is_better
from hybridna_core.tune_config import TuneConfig

log = logging.getLogger("hybridna")


class FinetuneSummary(NamedTuple):
    """What a fine-tuning came to: rows used of each set, rows left out, measures (mean over seeds, and sd).

    measures  {"valid_mcc": mean, ...}, of the validation and test rows
    shared    {"shared_test": sequences that stand in training too, ...}
    sd        {"valid_mcc_sd": ...} over seeds, empty for one seed
    by_seed   a dict per seed: seed, best step, measures
    """

    output: str
    task: str
    rows: dict
    marked: dict
    shared: dict
    classes: tuple
    lr: float
    steps: int
    measures: dict
    sd: dict
    by_seed: tuple
    seconds: float

    def to_dict(self):
        return {**self._asdict(), "classes": list(self.classes), "by_seed": list(self.by_seed)}


def finetune(
    train, output=None, *, model="base", valid=None, test=None, fasta_ref=None, task="classification",
    sequence_column=None, label_column=(), split_column=None, label_names=(), unconditional=False, seeds=1, seed=0,
    adapter_only=False, cache=None, strict=False, force=False, rna=False, device="auto", dry_run=False,
    rebuild_index=False, allow_missing_eof=False, progress=None, **settings,
):  # fmt: skip
    """Fine-tune a model on a table; return a FinetuneSummary.

    train         table (see `read_labelled`), a folder with train, dev and test tables, or a Table
    output        folder to write, which predict, embed and the others take; None: nothing is kept but the summary
    valid, test   tables of the rows that the best step is chosen by, and of those that it is measured on at the end
    fasta_ref     genome of tables that hold regions
    task          classification, multilabel, regression, or generation: bases after label tokens
    label_column  names of the label columns; label_names what the digits of generation's labels are called
    unconditional of generation: learn the bases alone, without label tokens
    seeds, seed   how many trainings, and the first one's seed; the one that does best on `valid` is kept
    adapter_only  write head and adapters alone, for --freeze and --lora
    cache         folder for the vectors that a frozen network gives, kept; beside the output and deleted when None
    strict        raise DataError for sequences that stand in train and in valid or test
    dry_run       read the tables, train and write nothing
    settings      fields of TuneConfig: head, reading, echo, freeze, lora, lr, epochs, ...

    Interrupted, the same call goes on from the last snapshot in `output`.runs. Raises HybriDNAError kinds.
    """
    from hybridna_core.train.loop import choose_precision
    from hybridna_core.train.tune import learn_positions, tune_head, tune_labels

    started = time.monotonic()
    keep_freed_memory()
    config = _check(task, settings, seeds, seed, adapter_only, unconditional)
    if output is not None:
        check_target(output, force=force)
    if fasta_ref is not None:
        check_input(fasta_ref, random_access=True)
    columns = Columns(sequence_column, tuple(label_column) or None, split_column)
    longest = longest_input(read_config(model), config.echo)
    with contextlib.ExitStack() as stack:
        genome = None
        if fasta_ref is not None:
            genome = stack.enter_context(open_genome(fasta_ref, rebuild_index, None, rna, allow_missing_eof))
        tables = _read(train, valid, test, columns, genome, longest, rna, need_labels=not unconditional)
    rows = {name: usable(table) for name, table in tables.items()}
    marked = collections.Counter(row.status for table in tables.values() for row in table.rows if row.status != "ok")
    scheme, sets = _make_examples(task, tables, rows, unconditional)
    shared = _find_shared(rows, tables, strict)
    if "valid" not in rows:
        warn("no-valid", "no validation rows: the last step's weights are kept, not the best")
    precision = choose_precision(config.precision, choose_device(device))
    steps = config.epochs * -(-len(rows["train"]) // min(config.batch_size, len(rows["train"])))
    summary = FinetuneSummary(
        "" if output is None else str(output), task, {name: len(rows[name]) for name in rows}, dict(marked), shared,
        scheme.outputs if task != "generation" else scheme.classes, 0.0, steps, {}, {}, (), 0.0,
    )  # fmt: skip
    if dry_run:
        return summary._replace(seconds=time.monotonic() - started)
    base = model
    if is_name(model):
        model = load_model(model, device=device)
    fingerprint = fingerprint_run(config, scheme, rows, precision, model, label_names)
    rate = config.choose_rate(sum(p.numel() for p in model.parameters()))
    found, best, metric = [], None, choose_metric(task, config.metric)
    folder = Path(f"{output}.runs") if output is not None else Path(temporary_folder())
    try:
        for number in range(seed, seed + seeds):
            here = folder / f"seed-{number}"
            options = {"seed": number, "precision": precision, "progress": progress}
            if task == "generation":
                positions = [] if unconditional else learn_positions(sets["train"].targets, label_names)
                tuned = tune_labels(model, config, positions, sets, here, fingerprint, **options)
            else:
                keep = cache or folder
                tuned = tune_head(model, config, scheme, sets, here, fingerprint, cache=keep, **options)
            chosen = tuned.position["best"]
            measures = {f"{name}_{key}": v for name, table in tuned.measures.items() for key, v in table.items()}
            found.append(
                {"seed": number, "best_step": chosen["step"] if chosen else tuned.position["step"], **measures}
            )
            value = measures.get(f"valid_{metric}", math.nan)
            if best is None or is_better(metric, value, best[0]):
                best = (value, tuned.model, number)
        measures, sd = _average(found)
        if "valid" in rows and f"valid_{metric}" not in measures:
            warn("no-measure", f"{tables['valid'].path}: these rows have no {metric}: the last step's weights are kept")
        summary = summary._replace(measures=measures, sd=sd, by_seed=tuple(found), lr=rate)
        if output is not None:
            _save(output, best, summary, config, scheme, sets, base, model, folder, adapter_only, unconditional, force)
            summary = summary._replace(seconds=time.monotonic() - started)
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        if output is None:
            shutil.rmtree(folder, ignore_errors=True)
    return summary._replace(seconds=time.monotonic() - started)


def temporary_folder():
    """Make a folder for a training of which nothing is kept."""
    return tempfile.mkdtemp(prefix="hybridna-")


def table_of(sequences, labels, name="sequences"):
    """Make a Table of sequences and labels that `finetune` takes; a label is a text, a number, or a tuple of those."""
    columns = [label if isinstance(label, tuple | list) else (label,) for label in labels]
    rows = [
        Row(text.upper(), tuple(str(value) for value in label), line=i + 1, keys=(".",))
        for i, (text, label) in enumerate(zip(sequences, columns, strict=True))
    ]
    width = len(columns[0]) if columns else 1
    names = ("label",) if width == 1 else tuple(f"label{i + 1}" for i in range(width))
    return Table(name, rows, names, ("name",))


def _check(task, settings, seeds, seed, adapter_only, unconditional):
    """Check options that no file is needed for; return the TuneConfig."""
    if task not in TASKS:
        close = nearest(task, TASKS)
        hint = f"did you mean {close}?" if close else f"one of {', '.join(TASKS)}"
        raise UsageError(f"is {task!r}, which is no task", where="--task", hint=hint)
    known = [field.name for field in dataclasses.fields(TuneConfig)]
    for name in settings:
        if name not in known:
            raise UsageError(f"no setting is called {name!r}", hint=f"did you mean {nearest(name, known)!r}?")
    config = TuneConfig(task=task, **settings)
    choose_metric(task, config.metric)
    if not 1 <= seeds <= 1000:
        raise UsageError(f"is {seeds}, must be 1 to 1,000", where="--seeds")
    if not 0 <= seed < 2**32:
        raise UsageError(f"is {seed}, must be 0 to 2^32 - 1", where="--seed")
    if adapter_only and not (config.freeze or config.lora):
        raise UsageError("all weights are trained, so all must be written", where="--adapter-only",
                         hint="it goes with --lora or --freeze")  # fmt: skip
    if unconditional and task != "generation":
        raise UsageError("is for --task generation", where="--unconditional")
    return config


# --- Tables ----------------------------------------------------------------------------------------------------------


def _read(train, valid, test, columns, genome, longest, rna, need_labels):
    """Read the tables of all sets; return {set: Table}."""
    given = {"train": train, "valid": valid, "test": test}
    if isinstance(train, str | os.PathLike) and os.path.isdir(train):
        given = {name: given[name] if name != "train" and given[name] else find_table(train, name) for name in SETS}
        if given["train"] is None:
            hint = "a folder must hold train.csv, and maybe dev.csv and test.csv (or .tsv, .parquet)"
            raise DataError("no training table", where=train, hint=hint)

    def read(source, columns):
        if isinstance(source, Table):
            return mark_rows(source, longest, rna)
        return read_labelled(source, columns, genome=genome, need_labels=need_labels, longest=longest, rna=rna)

    plain = columns._replace(split=None)
    tables = {"train": read(given["train"], columns)}
    if columns.split is not None:
        parts = split_table(tables["train"])
        tables = {name: part for name, part in zip(SETS, parts, strict=True) if part is not None}
    for name in ("valid", "test"):
        if given[name] is not None:
            if name in tables:
                raise UsageError("is given, and the split column has such rows too", where=f"--{name}")
            tables[name] = read(given[name], plain)
    return tables


def _make_examples(task, tables, rows, unconditional):
    """Return the Scheme of the training labels, and {set: Examples}."""
    from hybridna_core.train.tune import Examples

    if task == "generation":
        labels = {name: [""] * len(rows[name]) for name in rows} if unconditional else _read_digits(tables, rows)
        classes = tuple(sorted(set(labels["train"])))
        scheme = Scheme(task, tables["train"].labels, classes)
    else:
        scheme = learn_scheme(task, tables["train"], rows["train"])
        labels = {name: encode_labels(scheme, tables[name], rows[name]) for name in rows}
    return scheme, {name: Examples([row.sequence for row in rows[name]], labels[name]) for name in rows}


def _read_digits(tables, rows):
    """Return {set: labels} such as "44", the digits of all label columns; raise DataError for what is no such label."""
    labels, width, known = {}, None, None
    for name in rows:
        table, labels[name] = tables[name], []
        for row in rows[name]:
            label = "".join(row.labels)
            where = table.where(row)
            if not (label.isascii() and label.isdigit()):
                raise DataError(f"label {label[:40]!r} is no row of digits", where=where, hint="such as 0, 44 or 300")
            width = width or len(label)
            if len(label) != width:
                raise DataError(f"label {label!r} has {len(label)} digits, others have {width}", where=where)
            if known is not None and any(digit not in seen for digit, seen in zip(label, known, strict=True)):
                what = f"label {label!r} holds a digit that no training row has there"
                raise DataError(what, where=where, hint=f"they are {', '.join(''.join(sorted(s)) for s in known)}")
            labels[name].append(label)
        known = known or [set(digits) for digits in zip(*labels["train"], strict=True)]
    if len(set(labels["train"])) < 2:
        what = f"one label only ({labels['train'][0]!r})"
        raise DataError(what, where=tables["train"].path, hint="--unconditional learns bases without labels")
    return labels


def _find_shared(rows, tables, strict):
    """Warn of sequences that stand in training and elsewhere too; raise DataError for them if strict."""
    shared = {}
    for name in [name for name in rows if name != "train"]:
        count = count_shared(rows["train"], rows[name])
        if not count:
            continue
        shared[f"shared_{name}"] = count
        what = f"{count:,} of {len(rows[name]):,} sequences, or their reverse complements, stand in training too"
        if strict:
            raise DataError(what, where=tables[name].path, hint="take them out, or leave out --strict")
        warn("shared", f"{tables[name].path}: {what}; measures are too good by that")
    return shared


def fingerprint_run(config, scheme, rows, precision, model, label_names):
    """Return what must stay the same from a training's start to its resume."""
    data = hashlib.sha256()
    for name in rows:
        data.update(f"{name}\n".encode())
        for row in rows[name]:
            data.update("\t".join((row.sequence, *row.labels)).encode() + b"\n")
    settings = {
        **dataclasses.asdict(config), "precision": precision, "version": version(), "device": model.device.type,
        "label_names": list(label_names), "columns": list(scheme.columns),
    }  # fmt: skip
    if scheme.task == "generation" and scheme.classes == ("",):
        settings["unconditional"] = True
    return {"settings": settings, "data": data.hexdigest()[:32], "model": identify(model)}


# --- What it came to -------------------------------------------------------------------------------------------------


def _average(found):
    """Return means and standard deviations over seeds of every measure; undefined ones are left out."""
    names = [name for name in found[0] if name not in ("seed", "best_step")]
    values = {name: np.array([one[name] for one in found]) for name in names}
    values = {name: value for name, value in values.items() if np.isfinite(value).all()}
    sd = {f"{name}_sd": float(value.std(ddof=1)) for name, value in values.items()} if len(found) > 1 else {}
    return {name: float(value.mean()) for name, value in values.items()}, sd


def spell_measures(summary):
    """Spell the measures of all seeds as TSV, with mean and sd below."""
    names = [name for name in summary.by_seed[0] if name != "seed"]
    lines = ["\t".join(["seed", *names])]
    lines += ["\t".join([str(one["seed"]), *(f"{one[name]:.6g}" for name in names)]) for one in summary.by_seed]
    for word, table, end in (("mean", summary.measures, ""), ("sd", summary.sd, "_sd")):
        if table:
            cells = [f"{table[name + end]:.6g}" if name + end in table else "" for name in names]
            lines.append("\t".join([word, *cells]))
    return "\n".join(lines) + "\n"


def _save(output, best, summary, config, scheme, sets, base, model, folder, adapter_only, unconditional, force):
    """Write the finished model folder, with what says how it came to be."""
    from hybridna_core.train.tune import count_labels, lora_of

    _, tuned, number = best
    name = Path(os.path.abspath(output)).name
    record = {
        "base": name_model(base), "base_sha256": model.digest, "kept_seed": number,
        **{key: value for key, value in summary.to_dict().items() if key not in ("output", "seconds")},
        "settings": dataclasses.asdict(config),
    }  # fmt: skip
    extra = {"finetune.json": json.dumps(record, indent=2) + "\n", "measures.tsv": spell_measures(summary)}
    for seed in [one["seed"] for one in summary.by_seed]:
        extra[f"seed-{seed}.log.jsonl"] = (folder / f"seed-{seed}" / "log.jsonl").read_bytes()
    classes = f" ({', '.join(summary.classes[:20])})" if summary.classes else ""
    card = (
        f"# {name}\n\n{name_model(base)} (SHA-256 of the weights {model.digest[:12]}), fine-tuned by `hybridna "
        f"finetune` for {summary.task}{classes} on {summary.rows['train']:,} sequences. `finetune.json` holds the "
        f"settings and what came of them, `measures.tsv` the measures of every seed.\n"
    )
    if summary.task == "generation":
        frequencies = count_labels(sets["train"].targets) if not unconditional else {}
        # The mode, and of several the shortest.
        length = statistics.mode(sorted(map(len, sets["train"].sequences)))
        tuned.name = name
        save_labelled_model(output, tuned, frequencies, length=length, card=card, extra=extra, force=force)
    elif adapter_only:
        base = base if is_name(base) else (base.folder or base.name)
        save_adapter(output, tuned, scheme, base, lora_of(config), card=card, extra=extra, force=force)
    else:
        save_predictor(output, tuned, scheme, card=card, extra=extra, force=force)
