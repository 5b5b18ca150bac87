"""Predictions of a fine-tuned model for a table of sequences.

model folder, table -> Rows -> outputs, the same whatever is read together -> probabilities or numbers -> table
"""

import collections
import contextlib
import time
from typing import NamedTuple

import numpy as np

from hybridna_core.checkpoint import load_model, resolve_folder
from hybridna_core.data.genome import open_genome
from hybridna_core.data.inputs import check_input, warn
from hybridna_core.data.labelled import Columns, encode_labels, read_labelled
from hybridna_core.data.writers import check_output, open_table, table_suffix
from hybridna_core.errors import DataError, GuardError, ModelError, UsageError
from hybridna_core.model.heads import longest_input
from hybridna_core.model.labels import label_posterior
from hybridna_core.model.readout import predict_outputs
from hybridna_core.task_files import HEAD, is_adapter, load_predictor, read_labels
from hybridna_core.task_metrics import measure, probabilities

KEYS = {"contig": str, "start": int, "end": int, "name": str, "strand": str}
# Sequences whose predictions are written before the next ones are read.
BLOCK = 1024


class PredictSummary(NamedTuple):
    """What was predicted: `sequences` is `predicted` plus the reasons among `statuses`.

    measures  of the labels in the table, empty where it has none
    """

    sequences: int
    predicted: int
    statuses: dict
    measures: dict
    task: str
    model: str
    output: str
    seconds: float

    def to_dict(self):
        return self._asdict()


def predict(
    model, table, output="-", *, base=None, fasta_ref=None, sequence_column=None, label_column=(), batch_size="auto",
    strict=False, force=False, rna=False, device="auto", dtype="float32", rebuild_index=False, allow_missing_eof=False,
    progress=None,
):  # fmt: skip
    """Predict the labels of sequences with a fine-tuned model and write them as a table; return a PredictSummary.

    model         folder that `finetune` wrote
    table         see `read_labelled`; labels are not needed, and measured where they are there
    output        .tsv, .parquet or .npz; `-` for a TSV on standard output
    base          where the base of an adapter folder lies, if not where it was
    label_column  names of the label columns; the usual ones when empty
    batch_size    sequences per pass; no number depends on it (float32 on a CPU)

    One row per sequence, in order: its keys, status, the likeliest class as `prediction`, and a probability per class
    (`p_` and its name); of a regression one number per column; of a model that knows labels P(label | sequence).
    Rows that cannot be read keep their place, with the reason in `status`. Raises HybriDNAError kinds.
    """
    start = time.monotonic()
    check_output(output, inputs=(table, fasta_ref), force=force)
    table_suffix(output)
    check_input(table)
    options = {"device": device, "dtype": dtype}
    speak = _load(model, base, options)
    columns = Columns(sequence_column, tuple(label_column) or None)
    with contextlib.ExitStack() as stack:
        genome = None
        if fasta_ref is not None:
            genome = stack.enter_context(open_genome(fasta_ref, rebuild_index, None, rna, allow_missing_eof))
        read = read_labelled(
            table, columns, genome=genome, need_labels=bool(label_column), longest=speak.longest, rna=rna
        )
    statuses = collections.Counter(row.status for row in read.rows)
    if not statuses["ok"]:
        reasons = ", ".join(f"{status} {count:,}" for status, count in statuses.items())
        raise DataError(f"none of {len(read.rows):,} sequences can be read ({reasons})", where=table)
    truth = _find_truth(speak, read, bool(label_column))
    kinds = {"row": int, **{name: KEYS[name] for name in read.keys}, "status": str, **speak.columns}
    outputs, done = [], 0
    with open_table(output, kinds, meta=speak.meta, force=force) as add:
        for first in range(0, len(read.rows), BLOCK):
            block = read.rows[first : first + BLOCK]
            good = [row.sequence for row in block if row.status == "ok"]
            found = (
                speak.predict(good, batch_size, _share(progress, done, len(read.rows))) if good else np.empty((0, 0))
            )
            if not np.isfinite(found).all():
                where = f"{table}: rows {first + 1} to {first + len(block)}"
                raise GuardError("the model's output is not finite", where=where, hint="check its weights")
            cells = iter(speak.spell(found)) if good else iter(())
            for number, row in enumerate(block, start=first + 1):
                is_there = row.status == "ok"
                add((number, *row.keys, row.status, *(next(cells) if is_there else speak.nothing)))
            if good:
                outputs.append(found)
            done += len(block)
    measures = {} if truth is None else speak.measure(truth, np.concatenate(outputs))
    measures = {name: value for name, value in measures.items() if value == value}
    summary = PredictSummary(
        len(read.rows), statuses["ok"], dict(statuses), measures, speak.task, speak.name, str(output),
        time.monotonic() - start,
    )  # fmt: skip
    if strict and summary.predicted < summary.sequences:
        what = f"{summary.sequences - summary.predicted:,} of {summary.sequences:,} sequences have no prediction"
        raise DataError(what, where=table, hint="the output is complete; leave out --strict to accept it")
    return summary


def _share(progress, done, total):
    return None if progress is None else lambda part, _: progress(done + part, total)


def _load(model, base, options):
    """Load a fine-tuned model of either kind; raise ModelError for one that predicts nothing."""
    folder = resolve_folder(model)
    if base is not None and not is_adapter(folder):
        raise UsageError("is for an adapter folder, which this is not", where="--base")
    if (folder / HEAD).is_file():
        return _HeadSpeaker(*load_predictor(folder, base, **options))
    loaded = load_model(folder, **options)
    frequencies = read_labels(loaded)
    if not frequencies:
        raise ModelError("this model has nothing to predict with", where=model, hint="hybridna finetune makes one")
    return _LabelSpeaker(loaded, frequencies)


def describe(model, task):
    """Return what a reader of the predictions must know, for the formats that can hold it."""
    return {"model": model.name, "sha256": model.digest, "task": task, "dtype": str(model.dtype)[6:]}


class _HeadSpeaker:
    """Predicts with a head."""

    def __init__(self, predictor, scheme):
        self.predictor, self.scheme, self.task = predictor, scheme, scheme.task
        network = predictor.backbone
        self.device, self.name = network.device, network.name
        self.longest = longest_input(network.config, predictor.config.echo)
        self.meta = describe(network, self.task)
        if self.task == "regression":
            self.columns = dict.fromkeys(scheme.columns, float)
        else:
            chances = {f"p_{name}": float for name in scheme.classes}
            self.columns = {"prediction": str, **chances}
        self.nothing = tuple("" if kind is str else float("nan") for kind in self.columns.values())

    def predict(self, sequences, together, progress):
        return predict_outputs(self.predictor, sequences, together, progress=progress)

    def spell(self, outputs):
        """Yield the cells of each row."""
        if self.task == "regression":
            yield from (outputs * np.array(self.scheme.sd) + np.array(self.scheme.mean)).tolist()
            return
        for chances in probabilities(self.task, outputs):
            if self.task == "multilabel":
                likely = ",".join(n for n, c in zip(self.scheme.classes, chances, strict=True) if c > 0.5) or "-"
            else:
                likely = self.scheme.classes[int(chances.argmax())]
            yield (likely, *chances.tolist())

    def find_truth(self, read, rows):
        """Return the labels of rows as the measures take them; raise DataError for those that are none."""
        return encode_labels(self.scheme, read, rows)

    def measure(self, truth, outputs):
        return measure(self.task, truth, outputs, self.scheme.sd)


class _LabelSpeaker:
    """Predicts with a network that knows labels: P(label | sequence) over those seen in training."""

    task = "generation"

    def __init__(self, model, frequencies):
        self.model, self.frequencies, self.device, self.name = model, frequencies, model.device, model.name
        self.longest = model.config.bases_at_once - len(model.tokenizer.label_positions)
        self.meta = describe(model, self.task)
        self.columns = {"prediction": str, **{f"p_{label}": float for label in frequencies}}
        self.nothing = ("", *[float("nan")] * len(frequencies))

    def predict(self, sequences, together, progress):
        found = []
        for done, text in enumerate(sequences, start=1):
            found.append(label_posterior(self.model, text, self.frequencies)[0])
            if progress is not None:
                progress(done, len(sequences))
        return np.stack(found)

    def spell(self, outputs):
        labels = list(self.frequencies)
        for chances in outputs:
            yield (labels[int(chances.argmax())], *chances.tolist())

    def find_truth(self, read, rows):
        """Return the digits of each row's label; raise DataError for those that are none."""
        for row in rows:
            text = "".join(row.labels)
            if not (text.isascii() and text.isdigit()):
                raise DataError(f"label {text[:40]!r} is no row of digits", where=read.where(row))
        return ["".join(row.labels) for row in rows]

    def measure(self, truth, outputs):
        labels = list(self.frequencies)
        guesses = [labels[i] for i in outputs.argmax(axis=1)]
        return {"label_accuracy": float(np.mean([guess == true for guess, true in zip(guesses, truth, strict=True)]))}


def _find_truth(speaker, read, is_asked):
    """Return the labels that a table happens to hold, None where it has none; those asked for must be sound."""
    if not read.labels:
        return None
    try:
        return speaker.find_truth(read, [row for row in read.rows if row.status == "ok"])
    except DataError as error:
        if is_asked:
            raise
        warn("labels", f"nothing is measured: {error}")
        return None
