"""What anyone's predictions of a labelled table are worth.

predictions, labels -> paired by name or row -> measures with intervals -> table
"""

import csv
import time
from typing import NamedTuple

import numpy as np

from hybridna_core.data.inputs import check_input
from hybridna_core.data.labelled import Columns, read_labelled
from hybridna_core.data.writers import check_output, is_stdout, open_output
from hybridna_core.errors import DataError, UsageError
from hybridna_core.task_metrics import MEASURES, interval, measure_one
from hybridna_core.task_report import explain_nothing, spell_cell

TASKS = ("classification", "regression")


class PredictionsSummary(NamedTuple):
    """Measures of predictions; None where one has no meaning, with the reason in `why`."""

    rows: int
    task: str
    measures: dict
    why: dict
    output: str
    seconds: float

    def to_dict(self):
        return self._asdict()


def evaluate_predictions(
    predictions, labels, output="-", *, task="classification", sequence_column=None, label_column=None, force=False,
):  # fmt: skip
    """Measure a table of predictions against a labelled one and write measure, value, interval; return a summary.

    predictions  TSV with a column `name` or `row` (1-based, of the labelled table), and p_CLASS for every class, or
                 `prediction` (a class, or a number), as `predict` writes it
    labels       see `read_labelled`
    output       TSV; `-` is standard output
    Raises DataError where ids do not match or a number is none, and HybriDNAError kinds.
    """
    started = time.monotonic()
    if task not in TASKS:
        raise UsageError(f"is {task!r}, must be {' or '.join(TASKS)}", where="--task")
    predictions = check_input(predictions)
    check_output(output, inputs=(predictions, labels), force=force)
    if not is_stdout(output) and not str(output).endswith(".tsv"):
        raise UsageError("the name tells no table format", where=output, hint="end it in .tsv")
    table = read_labelled(labels, Columns(sequence_column, (label_column,) if label_column else None))
    with open(predictions, encoding="utf-8", newline="") as handle:
        reader = csv.DictReader(handle, delimiter="\t")
        cells = [(f"{predictions}:{reader.line_num}", row) for row in reader]
    names = reader.fieldnames or []
    pairs = _pair(table, cells, names, predictions)
    given = [found for _, found in pairs]
    if task == "regression":
        column = "prediction" if "prediction" in names else (table.labels[0] if table.labels[0] in names else None)
        if column is None:
            raise DataError("no column 'prediction'", where=f"{predictions}:1")
        truth = np.array([[_number(row.labels[0], table.where(row))] for row, _ in pairs])
        outputs = np.array([[_number(row[column], where)] for where, row in given])
    else:
        truth, outputs = _read_classes(table, pairs, given, names, predictions)
    measures, why, lines = {}, {}, ["measure\tvalue\tlow\thigh\twhy\n"]
    for name in MEASURES[task]:
        value = measure_one(task, name, truth, outputs)
        bounds = (None, None)
        if value == value and (task == "regression" or len(np.unique(truth)) > 1):
            bounds = interval(task, name, truth, [outputs])
            measures[name] = value
        else:
            measures[name], why[name] = None, explain_nothing(task, truth, outputs)
        lines.append("\t".join([name, *map(spell_cell, (measures[name], *bounds)), why.get(name, "")]) + "\n")
    with open_output(output, force) as handle:
        handle.write("".join(lines).encode())
    return PredictionsSummary(len(pairs), task, measures, why, str(output), time.monotonic() - started)


def _pair(table, cells, names, path):
    """Pair the rows of both tables by name, or by number; raise DataError where some have no partner."""
    by_name = "name" in names and all(
        row.keys and row.keys[-1 if len(row.keys) == 1 else 3] != "." for row in table.rows
    )
    key = "name" if by_name else "row"
    if key not in names:
        raise DataError(f"no column {key!r}", where=f"{path}:1", hint="predictions are paired by name or row")
    known = {}
    for number, row in enumerate(table.rows, start=1):
        known.setdefault(row.keys[-1 if len(row.keys) == 1 else 3] if by_name else str(number), row)
    given = {row[key]: (where, row) for where, row in cells}
    if len(given) < len(cells) or len(known) < len(table.rows):
        where = path if len(given) < len(cells) else table.path
        raise DataError(f"a {key} stands there twice", where=where)
    alone, without = [name for name in given if name not in known], [name for name in known if name not in given]
    if alone or without:
        counts = (
            f"{len(alone):,} of {len(given):,} predictions have no label, {len(without):,} of {len(known):,} labels"
        )
        what = f"{counts} no prediction (the first: {', '.join((alone + without)[:5])})"
        raise DataError(what, where=path, hint=f"they are paired by {key} with {table.path}")
    return [(known[name], given[name]) for name in known]


def _number(text, where):
    try:
        value = float(text)
    except (TypeError, ValueError):
        value = float("nan")
    if not np.isfinite(value):
        raise DataError(f"{str(text)[:40]!r} is no finite number", where=where)
    return value


def _read_classes(table, pairs, given, names, path):
    """Return (n,) true class numbers and (n, classes) log-probabilities, or 0 and 1 where only classes are given."""
    rows = [row for row, _ in pairs]
    classes = [name[2:] for name in names if name.startswith("p_")]
    chances = [[_number(row[f"p_{name}"], where) for name in classes] for where, row in given]
    if not classes:
        if "prediction" not in names:
            raise DataError("no column p_CLASS nor 'prediction'", where=f"{path}:1")
        told = [row["prediction"] for _, row in given]
        classes = sorted({*told, *(row.labels[0] for row in rows)})
        chances = np.eye(len(classes))[[classes.index(name) for name in told]]
    for row in rows:
        if row.labels[0] not in classes:
            hint = f"they are {', '.join(classes[:12])}"
            raise DataError(f"class {row.labels[0][:40]!r} has no prediction", where=table.where(row), hint=hint)
    truth = np.array([classes.index(row.labels[0]) for row in rows])
    if len(classes) == 1:
        raise DataError("one class only is told of", where=f"{path}:1")
    return truth, np.log(np.maximum(np.array(chances, dtype=np.float64), 1e-300))
