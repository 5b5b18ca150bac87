"""Curves of a training run, drawn from its log: loss by stage, held-out bits by class and species.

log.jsonl, run file -> entries, stages, classes -> PNG
"""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hybridna_core.errors import DataError, SystemFault
from hybridna_core.train.log import parse_entry

# Colours that people with any colour vision can tell apart, after Okabe and Ito.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C564B", "#666666")
DASHES = ("-", "--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)))
# More species than this get a curve each but, where classes are known, no line of their own in the legend.
SPECIES_NAMED = 10


class Curves(NamedTuple):
    """What a log says. Losses and held-out bits in bits per base.

    tokens, stage, bits  (lines,) of the training loss; bits is NaN where every step was skipped
    skipped              tokens at which a step was skipped
    valid                {species: [(tokens, stage, bits), ...]}
    """

    tokens: np.ndarray
    stage: np.ndarray
    bits: np.ndarray
    skipped: list
    valid: dict


def read_curves(path, run=None):
    """Read a log; run (RunConfig) tells how many tokens a step has, else the log's own lines do.

    Raises SystemFault when there is no log, DataError when it has no line yet.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise SystemFault(error.strerror or str(error), where=path, hint="give a run's folder or run file") from None
    entries = [entry for line in lines if (entry := parse_entry(line)) is not None]
    plain = [e for e in entries if "bits_per_base" in e and "tokens" in e]
    if not plain:
        raise DataError("there is nothing to draw yet: no line has a loss", where=path)
    steps, tokens = [[0] + [e[key] for e in plain] for key in ("step", "tokens")]
    if run is not None:
        steps = [0, *np.cumsum([s.steps for s in run.stage])]
        tokens = [0, *np.cumsum([s.steps * s.batch_tokens for s in run.stage])]
    valid = {}
    for entry in entries:
        at = float(np.interp(entry["step"], steps, tokens))
        for name, bits in entry.get("valid", {}).items():
            valid.setdefault(name, []).append((at, entry.get("stage", 0), bits))
    return Curves(
        np.array([e["tokens"] for e in plain], dtype=np.float64),
        np.array([e.get("stage", 0) for e in plain]),
        np.array([e["bits_per_base"] for e in plain], dtype=np.float64),
        [float(np.interp(e["step"], steps, tokens)) for e in entries if "skipped" in e],
        valid,
    )


def draw_curves(curves, path, *, run=None, title=""):
    """Draw the curves into a PNG, which is there whole or not at all; raise SystemFault without matplotlib.

    run  RunConfig, for the lengths of the stages and the classes of the species; without it they have numbers alone
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise SystemFault("matplotlib is not installed", hint="pip install 'hybridna[train]'") from None
    figure = Figure(figsize=(11, 8.5 if curves.valid else 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2 if curves.valid else 1, 1, sharex=True, squeeze=False)[:, 0]
    largest = max([curves.tokens[-1], *(points[-1][0] for points in curves.valid.values())])
    unit, word = next(((u, w) for u, w in ((1e9, "billions"), (1e6, "millions"), (1e3, "thousands")) if largest >= u),
                      (1.0, ""))  # fmt: skip
    _draw_loss(axes[0], curves, unit, run)
    if curves.valid:
        _draw_valid(axes[1], curves.valid, unit, _classes_of(run))
    for ax in axes:
        _mark_stages(ax, curves, unit)
        ax.set_ylabel("bits per base")
        ax.grid(alpha=0.25, linewidth=0.6)
        ax.spines[["top", "right"]].set_visible(False)
        ax.margins(x=0.01)
    axes[-1].set_xlabel(f"tokens read ({word})" if word else "tokens read")
    if title:
        figure.suptitle(title)
    _write(figure, Path(path))


def _draw_loss(ax, curves, unit, run):
    """Draw the training loss, a colour for each stage, every line of the log thin and their running mean thick."""
    x = curves.tokens / unit
    many = len(x) > 60
    for number in sorted(set(curves.stage.tolist())):
        own = curves.stage == number
        colour = COLOURS[number % len(COLOURS)]
        length = f"{run.stage[number].context_length:,} tokens" if run and number < len(run.stage) else ""
        label = f"stage {number}" + (f": {length}" if length else "")
        if many:
            ax.plot(x[own], curves.bits[own], color=colour, alpha=0.25, linewidth=0.7)
            ax.plot(x[own], running_mean(curves.bits[own], max(1, len(x) // 50)), color=colour, label=label)
        else:
            ax.plot(x[own], curves.bits[own], color=colour, marker=".", label=label)
    low, high = y_limits(curves.bits)
    ax.set_ylim(low, high)
    above = np.flatnonzero(curves.bits > high)
    if curves.skipped:
        ax.plot(np.array(curves.skipped) / unit, np.full(len(curves.skipped), low), "|", color="#B00020", markersize=12,
                label=f"steps skipped for their loss: {len(curves.skipped):,}")  # fmt: skip
    if len(above):
        ax.annotate(f"begins at {np.nanmax(curves.bits):.2f}", (x[above[0]], high), xytext=(12, -11), fontsize=8,
                    textcoords="offset points", color="#555555")  # fmt: skip
    ax.set_title("Training loss" + (" (thin: each line of the log, thick: running mean)" if many else ""), fontsize=10)
    ax.legend(fontsize=8, frameon=False)


def _draw_valid(ax, valid, unit, classes):
    """Draw what was measured on held-out bases: a thick mean of each class, or a curve of each species."""
    groups = {}
    for name in valid:
        groups.setdefault(classes.get(name, ""), []).append(name)
    grouped = len(groups) > 1 or "" not in groups
    lines = 0
    for number, (group, names) in enumerate(groups.items()):
        for place, name in enumerate(names):
            x, y = _points(valid[name], unit)
            alone = grouped and len(names) == 1
            if grouped and not alone:
                ax.plot(x, y, color=_style(number)[0], linewidth=0.7, alpha=0.4)
            elif not grouped:
                colour, dash = _style(place)
                ax.plot(x, y, color=colour, linestyle=dash, linewidth=1.4, marker="." if len(x) < 15 else None,
                        label=f"{name} {y[-1]:.3f}")  # fmt: skip
                lines += 1
        if grouped:
            x, y = _mean_curve([_points(valid[name], unit) for name in names])
            colour, dash = _style(number)
            label = f"{group or 'no class'} {y[-1]:.3f}" + (f" ({len(names)} species)" if len(names) > 1 else "")
            ax.plot(x, y, color=colour, linestyle=dash, linewidth=2.2, marker="." if len(x) < 15 else None,
                    label=label)  # fmt: skip
            lines += 1
    values = np.array([p[2] for p in sorted(p for points in valid.values() for p in points)])
    ax.set_ylim(*y_limits(values))
    what = "by class: thick their mean, thin each species" if grouped else "by species"
    ax.set_title(f"Held-out bases, {what} (with the last value)", fontsize=10)
    few = lines <= SPECIES_NAMED
    handles, labels = ax.get_legend_handles_labels()
    # In the order in which the curves end.
    order = sorted(range(len(labels)), key=lambda i: -handles[i].get_ydata()[-1])
    ax.legend([handles[i] for i in order], [labels[i] for i in order], fontsize=8 if few else 6.5, frameon=False,
              loc="center left", bbox_to_anchor=(1.0, 0.5), ncols=1 if lines <= 24 else 2)  # fmt: skip


def _points(points, unit):
    """Split (tokens, stage, bits) into x and y."""
    return np.array([p[0] for p in points]) / unit, np.array([p[2] for p in points])


def _mean_curve(curves):
    """Average curves over the places where all of them have a value; where none is shared, over all there are."""
    shared = sorted(set.intersection(*(set(x.tolist()) for x, _ in curves)))
    places = shared or sorted({at for x, _ in curves for at in x.tolist()})
    tables = [dict(zip(x.tolist(), y.tolist(), strict=True)) for x, y in curves]
    return np.array(places), np.array([np.mean([t[at] for t in tables if at in t]) for at in places])


def _style(number):
    return COLOURS[number % len(COLOURS)], DASHES[number // len(COLOURS) % len(DASHES)]


def _mark_stages(ax, curves, unit):
    """Draw a line where one stage ends and the next begins."""
    changes = np.flatnonzero(np.diff(curves.stage)) + 1
    for i in changes:
        ax.axvline(curves.tokens[i - 1] / unit, color="#444444", linewidth=0.8, linestyle=(0, (4, 3)))


def _classes_of(run):
    return {} if run is None else {s.name: s.class_ for s in run.species if s.class_}


def running_mean(values, width):
    """Average each value with up to `width` before and after it; NaN counts for nothing."""
    known = ~np.isnan(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    at = np.arange(len(values))
    low, high = np.maximum(0, at - width), np.minimum(len(values), at + width + 1)
    total, count = sums[high] - sums[low], counts[high] - counts[low]
    return np.where(count > 0, total / np.maximum(1, count), np.nan)


def y_limits(values):
    """Return the range to draw: all values but the few at the start that would flatten the rest."""
    known = values[~np.isnan(values)]
    if not len(known):
        return 0.0, 2.0
    low, high = float(known.min()), float(known.max())
    settled = known[len(known) // 10 :]
    near = float(np.quantile(settled, 0.98))
    if high - low > 3 * (near - low) and near > low:
        high = near + 0.5 * (near - low)
    pad = 0.05 * (high - low) or 0.05
    return low - pad, high + pad


def _write(figure, path):
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        figure.savefig(temporary, format="png", dpi=130)
        os.replace(temporary, path)
    except OSError as error:
        raise SystemFault(error.strerror or str(error), where=path) from None
    finally:
        temporary.unlink(missing_ok=True)
