"""A picture of a benchmark: speed, and of context lengths memory too, against length on logarithmic axes.

BenchSummary -> curves of each case and way, of each model -> PNG
"""

from typing import NamedTuple

from hybridna_core.data.writers import atomic_output
from hybridna_core.train.plots import COLOURS


class Curve(NamedTuple):
    """One line of a panel: lengths in tokens, values, and how far each reaches down and up."""

    label: str
    x: list
    y: list
    spread: list


def draw_bench(summary, path, *, force=False):
    """Draw a BenchSummary into a PNG, which is there whole or not at all. Matplotlib must be there (`check_plot`)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    panels = list_panels(summary)
    figure = Figure(figsize=(6.4 * len(panels), 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for number, curve in enumerate(curves):
            # Our way and the other one of a case stand side by side in the list.
            style = {"color": COLOURS[number % len(COLOURS)], "linestyle": ("-", "--")[number % 2]}
            error = list(zip(*curve.spread, strict=True)) or None
            axes.errorbar(curve.x, curve.y, yerr=error, marker="os"[number % 2], markersize=4, capsize=2,
                          label=curve.label, **style)  # fmt: skip
        lengths = sorted({row.tokens for row in summary.rows})
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(lengths, [f"{n:,}" for n in lengths])
        axes.xaxis.set_minor_locator(NullLocator())
        values = [value for curve in curves for value in curve.y] or [1]
        is_narrow = max(values) < 10 * min(values)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7) if is_narrow else (1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("tokens")
        axes.set_ylabel(name)
        axes.grid(alpha=0.25, linewidth=0.6, which="both")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(
            fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=1 + (len(curves) > 4)
        )
    where = f"threads: {summary.threads}" if summary.device == "cpu" else f"{summary.device}, {summary.precision}"
    figure.suptitle(
        f"hybridna bench --task {summary.task}, {where}, torch {summary.versions['torch']}\n"
        f"hidden {summary.hidden_size}, {summary.layers} layers, state {summary.state_size}, "
        f"{summary.parameters / 1e6:.2f} M parameters",
        fontsize=9,
    )
    with atomic_output(path, force) as temporary:
        figure.savefig(temporary, format="png", dpi=130, metadata={"Software": None})


def list_panels(summary):
    """Return (axis label, Curves) of each panel of a BenchSummary."""
    if summary.task != "lengths":
        return [(f"{summary.unit} per second", list_rates(summary))]
    speed, memory = [], []
    rows = sorted(summary.rows, key=lambda row: row.tokens)
    for name in dict.fromkeys(point.model for point in rows):
        own = [point for point in rows if point.model == name]
        good = [point for point in own if point.seconds]
        missing = [point for point in own if not point.seconds]
        label = name if not missing else f"{name} (from {missing[0].tokens:,} tokens on: {missing[0].status})"
        speed.append(_curve(label, [(p.tokens, p.tokens, p.seconds) for p in good]))
        known = [p for p in good if p.peak_bytes]
        memory.append(Curve(label, [p.tokens for p in known], [p.peak_bytes / 2**20 for p in known], []))
    return [("tokens per second", speed), ("peak memory beside the loaded model (MiB)", memory)]


def list_rates(summary):
    """Return the Curves of Timings: of each case our way, then the other."""
    rows, curves = sorted(summary.rows, key=lambda row: row.tokens), []
    for case in dict.fromkeys(row.case for row in rows):
        own = [row for row in rows if row.case == case]
        head = f"{case}: " if case else ""
        curves.append(_curve(f"{head}hybridna", [(r.tokens, r.count, r.hybridna) for r in own]))
        curves.append(_curve(f"{head}{summary.beside}", [(r.tokens, r.count, r.other) for r in own]))
    return curves


def _curve(label, points):
    """Make a Curve of rates. points: (tokens, count, (median, fastest, slowest) seconds)"""
    rates = [(count / middle, count / slow, count / fast) for _, count, (middle, fast, slow) in points]
    return Curve(label, [tokens for tokens, *_ in points], [rate for rate, *_ in rates],
                 [(rate - low, high - rate) for rate, low, high in rates])  # fmt: skip
