"""Results of benchmark tasks as one table, one picture, and beside the paper's figures.

rows of results -> TSV, Markdown, PNG; means over a group's tasks -> beside what is published
"""

import itertools
from pathlib import Path

import numpy as np

from hybridna_core.data.inputs import warn
from hybridna_core.data.writers import atomic_output
from hybridna_core.errors import SystemFault
from hybridna_core.reports import write_report

COLUMNS = (
    "benchmark", "group", "task", "model", "method", "metric", "test", "sd", "low", "high", "valid", "seeds", "lr",
    "epochs", "train_rows", "valid_rows", "test_rows", "shared", "seconds", "chosen", "why",
)  # fmt: skip
SHOWN = ("task", "model", "method", "metric", "test", "sd", "95 % interval", "valid", "seeds", "lr", "chosen")
BASELINE = "baseline"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C564B")


def spell_cell(value):
    """Spell a cell; NA for a number that is none."""
    if value is None:
        return "NA"
    if isinstance(value, float):
        return f"{value:.4g}" if value == value else "NA"
    return str(value)


def explain_nothing(task, truth, outputs):
    """Say why a measure has no meaning for these rows."""
    truth = np.asarray(truth)
    if task == "classification":
        return "one class in the test rows" if len(np.unique(truth)) < 2 else "not defined for these rows"
    if task == "multilabel":
        return "no label has both classes in the test rows"
    return "the test labels are all the same" if (truth == truth[0]).all() else "the predictions are all the same"


def write_results(folder, rows, compared=None):
    """Write results.tsv, results.md and, where matplotlib is there, results.png; earlier ones are replaced.

    rows      dicts with COLUMNS
    compared  what `compare_groups` gives, written as compare.tsv and compare.md
    """
    folder = Path(folder)
    rows = sorted(rows, key=lambda row: (row["task"], row["model"] != BASELINE, row["model"], row["method"]))
    shown = []
    for row in rows:
        bounds = [spell_cell(row[name]) for name in ("low", "high")]
        cells = {**row, "95 % interval": "NA" if "NA" in bounds else " to ".join(bounds)}
        cells["test"] = f"NA ({row['why']})" if row["why"] else row["test"]
        shown.append([cells[name] for name in SHOWN])
    _write(folder / "results.tsv", COLUMNS, [[row[name] for name in COLUMNS] for row in rows])
    _write(folder / "results.md", SHOWN, shown)
    if compared:
        for suffix in (".tsv", ".md"):
            _write(folder / f"compare{suffix}", list(compared[0]), [list(one.values()) for one in compared])
    if rows:
        try:
            draw_results(folder / "results.png", rows)
        except SystemFault as error:
            warn("no-plot", f"results.png is not drawn: {error}")


def _write(path, columns, rows):
    write_report(path, list(columns), [list(map(spell_cell, cells)) for cells in rows], force=True)


def compare_groups(rows, published):
    """Return dicts of group, model, method, metric, value, tasks, from: ours, and what is published, group by group.

    rows       dicts with COLUMNS and group_size
    published  as `read_published` gives it
    """
    found = []
    for group in dict.fromkeys(row["group"] for row in rows if row["group"] != "-"):
        ours = [row for row in rows if row["group"] == group]
        for model, method, metric in dict.fromkeys((r["model"], r["method"], r["metric"]) for r in ours):
            some = [r for r in ours if (r["model"], r["method"], r["metric"]) == (model, method, metric)]
            values = [r["test"] for r in some if r["test"] is not None]
            mean = float(np.mean(values)) if values else None
            tasks = f"{len(values)} of {some[0]['group_size']}"
            found.append(_compared(group, model, method, metric, mean, tasks, "here"))
        for row in published:
            if row["group"] == group:
                found.append(
                    _compared(group, row["model"], "published", row["metric"], row["value"], "all", row["from"])
                )
    return found


def _compared(*cells):
    return dict(zip(("group", "model", "method", "metric", "value", "tasks", "from"), cells, strict=True))


def draw_results(path, rows):
    """Draw a bar per method with its interval, tasks side by side; raise SystemFault without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise SystemFault("matplotlib is not installed", hint="pip install hybridna[plots]") from None
    methods = list(dict.fromkeys((row["model"], row["method"]) for row in rows))
    methods.sort(key=lambda pair: pair[0] != BASELINE)
    tasks = list(dict.fromkeys((row["task"], row["metric"]) for row in rows))
    width = 0.84 / len(methods)
    figure = Figure(figsize=(max(6, 3 + len(tasks) * (0.4 + 0.16 * len(methods))), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    greys, colours = iter(np.linspace(0.85, 0.45, len(methods))), itertools.cycle(COLOURS)
    for number, (model, method) in enumerate(methods):
        some = {(r["task"], r["metric"]): r for r in rows if (r["model"], r["method"]) == (model, method)}
        bars = [(i, some[t]) for i, t in enumerate(tasks) if t in some and some[t]["test"] is not None]
        is_simple = model == BASELINE
        label = method if is_simple else f"{model}: {method}"
        values = np.array([row["test"] for _, row in bars])
        bounds = np.array([[row[k] if row[k] is not None else row["test"] for k in ("low", "high")] for _, row in bars])
        error = np.maximum(0, [values - bounds[:, 0], bounds[:, 1] - values]) if bars else None
        axes.bar(
            [i + (number + 0.5) * width - 0.42 for i, _ in bars], values, width * 0.92, yerr=error, label=label,
            color=str(next(greys)) if is_simple else next(colours), error_kw={"elinewidth": 0.8},
        )  # fmt: skip
    axes.axhline(0, color="black", linewidth=0.6)
    axes.set_xticks(range(len(tasks)), [f"{task}\n({metric})" for task, metric in tasks], fontsize=8)
    axes.set_ylabel("test rows, with 95 % interval")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(fontsize=7, frameon=False, loc="outside right upper")
    with atomic_output(path, force=True) as temporary:
        figure.savefig(temporary, dpi=130, metadata={"Software": None}, format="png")
