"""A picture of saturation mutagenesis: reference letters as tall as their changes count, above a map of every change.

Scores of regions -> EffectGrid -> rows of at most 100 bases -> PNG
"""

import textwrap
import warnings
from typing import NamedTuple

import numpy as np

from hybridna_core.data.inputs import warn
from hybridna_core.data.writers import atomic_output
from hybridna_core.errors import SystemFault, UsageError
from hybridna_core.logo import add_letters

ROW_BASES, ROWS_LIMIT = 100, 40
CHANGES = ("A", "C", "G", "T", "del")
_CELL, _LEFT, _RIGHT = 0.125, 0.95, 1.1  # inches: a base, beside the panels
_LOGO, _GAP, _LINE, _AXIS, _HEAD = 0.9, 0.06, 0.17, 0.66, 0.75  # inches, from top to bottom
_LEGEND = (
    "Letters: mean fall of HD_LLR over the substitutions of a base, below the line a rise.   "
    "Map: HD_LLR of each change, red: less likely than the reference; dot: the reference; grey: no score."
)


class Stretch(NamedTuple):
    """The scores of one region: `values` has a row per change (CHANGES) and a column per base; NaN: no score."""

    contig: str
    start: int
    name: str
    letters: list
    values: np.ndarray

    def cut(self, first, last):
        """Return the bases from one offset to another."""
        return self._replace(
            start=self.start + first, letters=self.letters[first:last], values=self.values[:, first:last]
        )


class EffectGrid:
    """Takes the scores of regions base by base, as many as a picture shows; `missed` counts the bases beyond."""

    def __init__(self):
        self.stretches, self.missed = [], 0
        self._region, self._stretch, self._rows = None, None, 0

    def add(self, region, start, ref, alt, score):
        """Take one change. start: of the base that is changed or left out, 0-based"""
        if region is not self._region:
            self._region, shown = region, min(region.length, (ROWS_LIMIT - self._rows) * ROW_BASES)
            self._rows += -(-shown // ROW_BASES)
            self.missed += region.length - shown
            values = np.full((len(CHANGES), shown), np.nan)
            self._stretch = Stretch(region.contig, region.start, region.name, ["N"] * shown, values)
            self.stretches += [self._stretch] * (shown > 0)
        stretch, offset = self._stretch, start - region.start
        if offset >= len(stretch.letters):
            return
        is_deletion = len(ref) > 1
        if not is_deletion:
            stretch.letters[offset] = ref
        if score.llr is not None:
            stretch.values[CHANGES.index("del" if is_deletion else alt), offset] = score.llr


def check_plot(path):
    """Raise UsageError for a name that is no PNG's, SystemFault without matplotlib."""
    if not str(path).lower().endswith(".png"):
        raise UsageError("the picture is a PNG", where=str(path), hint="end its name in .png")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        hint = "pip install 'hybridna[plots]'"
        raise SystemFault("--plot needs matplotlib, which is not installed", hint=hint) from None


def draw_effects(grid, path, *, title, deletions=False, force=False):
    """Draw an EffectGrid into a PNG, which is there whole or not at all.

    title      first line of the picture
    deletions  with a row for the deletion of each base
    """
    if not grid.stretches:
        warn("empty-plot", f"{path}: there is nothing to draw")
        return
    if grid.missed:
        shown = sum(len(stretch.letters) for stretch in grid.stretches)
        what = f"shows the first {shown:,} bases of {shown + grid.missed:,}; the table has all"
        warn("plot-limit", f"{path}: {what}, a picture {ROWS_LIMIT} rows of {ROW_BASES} bases")
    figure = make_figure(grid.stretches, title, len(CHANGES) - (not deletions))
    with atomic_output(path, force) as temporary, warnings.catch_warnings():
        # Of names in scripts that the font lacks.
        warnings.simplefilter("ignore", UserWarning)
        figure.savefig(temporary, format="png", dpi=130, metadata={"Software": None})


def make_figure(stretches, title, changes):
    """Return the matplotlib Figure of stretches: for each row letters, map and colour bar. changes: rows of the map"""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Scales are common to all rows; a few extremes would leave the rest without colour.
    heights = np.concatenate([heights_of(stretch) for stretch in stretches])
    low, high = min(0.0, np.nanmin(heights, initial=0.0)), max(0.0, np.nanmax(heights, initial=0.0))
    pad = 0.06 * (high - low) or 0.5
    known = np.abs(np.concatenate([stretch.values[:changes].ravel() for stretch in stretches]))
    known = known[~np.isnan(known)]
    limit = max(float(np.quantile(known, 0.99)) if len(known) else 0.0, 1e-3)
    is_cut = bool(np.max(known, initial=0.0) > limit * 1.001)

    width = min(ROW_BASES, max(len(stretch.letters) for stretch in stretches))
    count = sum(-(-len(stretch.letters) // ROW_BASES) for stretch in stretches)
    legend = "\n".join(textwrap.wrap(_LEGEND, max(int(2.1 * width), 60)))
    heat, head = _LINE * changes, _HEAD + 0.13 * legend.count("\n")
    tall = _LOGO + _GAP + heat + _AXIS
    across, down = _LEFT + _CELL * max(width, 24) + _RIGHT, head + tall * count
    figure = Figure(figsize=(across, down))
    FigureCanvasAgg(figure)
    figure.text(_LEFT / across, 1 - 0.17 / down, title, fontsize=9, va="center", parse_math=False)
    figure.text(_LEFT / across, 1 - 0.28 / down, legend, fontsize=7, va="top", color="#444444")

    def add_axes(left, bottom, width, height):
        return figure.add_axes([left / across, bottom / down, width / across, height / down])

    top = down - head
    for stretch in stretches:
        for first in range(0, len(stretch.letters), ROW_BASES):
            row = stretch.cut(first, first + ROW_BASES)
            wide, bottom = _CELL * len(row.letters), top - _LOGO - _GAP - heat
            letters = add_axes(_LEFT, top - _LOGO, wide, _LOGO)
            below, bar = add_axes(_LEFT, bottom, wide, heat), add_axes(_LEFT + wide + 0.12, bottom, 0.1, heat)
            _draw_letters(letters, row, (low - pad, high + pad))
            picture = _draw_map(below, row, changes, limit)
            colours = figure.colorbar(picture, cax=bar, extend="both" if is_cut else "neither")
            colours.set_label("HD_LLR (nats)", fontsize=7)
            bar.tick_params(labelsize=6.5, length=2)
            if first == 0:
                place = f"{row.contig}:{row.start + 1:,}-{row.start + len(stretch.letters):,}"
                name = "" if row.name == "." else f"  {row.name}"
                letters.set_title(place + name, fontsize=8, loc="left", pad=3, parse_math=False)
            top -= tall
    return figure


def heights_of(row):
    """Return how far the score falls at each base, mean of its substitutions, nats; NaN where there is none."""
    substitutions = row.values[:4]
    counts = np.count_nonzero(~np.isnan(substitutions), axis=0)
    return np.where(counts > 0, -np.nansum(substitutions, axis=0) / np.maximum(counts, 1), np.nan)


def _draw_letters(axes, row, limits):
    """Draw each reference letter from 0 to the mean fall, upright on either side."""
    heights = heights_of(row)
    add_letters(
        axes,
        [(base, row.start + i + 0.56, 0.0, h) for i, (base, h) in enumerate(zip(row.letters, heights, strict=True))],
    )
    axes.axhline(0, color="#444444", linewidth=0.6)
    axes.set_xlim(row.start + 0.5, row.start + 0.5 + len(row.letters))
    axes.set_ylim(*limits)
    axes.set_ylabel("mean fall of\nHD_LLR (nats)", fontsize=7)
    axes.tick_params(labelsize=6.5, length=2)
    axes.tick_params(axis="x", bottom=False, labelbottom=False)
    axes.spines[["top", "right", "bottom"]].set_visible(False)


def _draw_map(axes, row, changes, limit):
    """Draw a cell for each change, the reference's own marked with a dot, those without a score grey."""
    first, last = row.start + 1, row.start + len(row.letters)
    axes.set_facecolor("#D0D0D0")
    picture = axes.imshow(row.values[:changes], extent=(first - 0.5, last + 0.5, changes - 0.5, -0.5), cmap="RdBu",
                          vmin=-limit, vmax=limit, aspect="auto", interpolation="none")  # fmt: skip
    own = [(first + i, CHANGES.index(letter)) for i, letter in enumerate(row.letters) if letter in CHANGES]
    axes.plot([x for x, _ in own], [y for _, y in own], "o", color="#222222", markersize=1.8)
    axes.set_yticks(range(changes), CHANGES[:changes], fontsize=7, family="DejaVu Sans Mono")
    ticks = [pos for pos in range(first, last + 1) if pos % 10 == 0] or [first]
    axes.set_xticks(ticks, [f"{pos:,}" for pos in ticks], fontsize=6.5)
    axes.set_ylabel("changed\nto", fontsize=7)
    axes.set_xlabel(f"{row.contig}, position counted from 1", fontsize=7, loc="left", labelpad=2, parse_math=False)
    axes.tick_params(length=2)
    axes.spines[["top", "right"]].set_visible(False)
    return picture
