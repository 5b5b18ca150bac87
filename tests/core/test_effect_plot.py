"""The picture of saturation mutagenesis: what is drawn is what the table says, where it says so.

regions and scores -> EffectGrid -> figure -> letters, cells, ticks; PNG -> size
"""

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
from genome_files import put, warnings_of
from toys import random_model

from hybridna_core import effect_plot
from hybridna_core.commands.saturate import saturate
from hybridna_core.data.regions import Region
from hybridna_core.effect_plot import CHANGES, EffectGrid, draw_effects, heights_of, make_figure
from hybridna_core.errors import SystemFault, UsageError
from hybridna_core.scoring import Score

BASES = "ACGTN" + "ACGTTGCA" * 32


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    put(tmp_path, f">chr1\n{BASES}\n".encode(), "ref.fa")


def make_grid(*regions, score=lambda pos, alt: -1.0):
    grid = EffectGrid()
    for region in regions:
        for start in range(region.start, region.end):
            ref = BASES[start % len(BASES)]
            for alt in "ACGT".replace(ref, "") if ref != "N" else ".":
                grid.add(region, start, ref, alt, Score("ok", None if ref == "N" else score(start + 1, alt)))
    return grid


def draw(grid, changes=4):
    """Return the axes of each row: letters, map, colour bar."""
    axes = make_figure(grid.stretches, "toy", changes).axes
    return [axes[i : i + 3] for i in range(0, len(axes), 3)]


def boxes(letters):
    """Extents of the letters drawn: (left, right, low, high)."""
    found = [path.get_extents() for path in letters.collections[0].get_paths()]
    return [(box.x0, box.x1, box.y0, box.y1) for box in found]


def test_letters_and_cells_are_the_scores():
    values = {(2, "A"): -3.0, (2, "G"): -1.0, (2, "T"): 1.0, (3, "A"): 2.0, (3, "C"): 3.0, (3, "T"): 4.0}
    (row,) = draw(make_grid(Region("chr1", 1, 5), score=lambda pos, alt: values.get((pos, alt), 0.0)))
    letters, cells, bar = row
    # C at 2 falls by (3 + 1 - 1) / 3 and stands; G at 3 rises by 3 and hangs; T at 4 changes nothing; 5 is unknown.
    assert boxes(letters) == [
        pytest.approx((1.56, 2.44, 0, 1), abs=1e-6), pytest.approx((2.56, 3.44, -3, 0), abs=1e-6)
    ]  # fmt: skip
    low, high = letters.get_ylim()
    assert low < -3 and high > 1 and letters.get_xlim() == cells.get_xlim() == (1.5, 5.5)
    (image,) = cells.images
    drawn = np.ma.filled(image.get_array(), np.nan)
    assert drawn.shape == (4, 4) and drawn[:, 0].tolist()[0] == -3.0 and np.isnan(drawn[1, 0])
    assert drawn[:, 1].tolist()[:2] == [2.0, 3.0] and np.isnan(drawn[:, 3]).all()
    assert image.norm.vmin == -image.norm.vmax and image.cmap(0.0)[0] > image.cmap(0.0)[2]
    assert cells.lines[0].get_xydata().tolist() == [[2, 1], [3, 2], [4, 3]]
    assert [t.get_text() for t in cells.get_yticklabels()] == ["A", "C", "G", "T"]
    assert bar.get_ylabel() == "HD_LLR (nats)" and "HD_LLR (nats)" in letters.get_ylabel()
    assert letters.get_title(loc="left") == "chr1:2-5"


def test_regions_wrap_into_rows():
    regions = Region("chr1", 0, 230), Region("$x$", 40, 52, name="$b_1$")
    rows = draw(make_grid(*regions), changes=5)
    assert [letters.get_title(loc="left") for letters, _, _ in rows] == ["chr1:1-230", "", "", "$x$:41-52  $b_1$"]
    assert [cells.get_xlim() for _, cells, _ in rows] == [(0.5, 100.5), (100.5, 200.5), (200.5, 230.5), (40.5, 52.5)]
    assert [t.get_text() for t in rows[1][1].get_xticklabels()] == [f"{pos}" for pos in range(110, 201, 10)]
    assert len({letters.get_ylim() for letters, _, _ in rows}) == len({row[1].images[0].norm.vmax for row in rows}) == 1
    # All cells are of one size, and none overlaps another row.
    places = [row[1].get_position() for row in rows]
    assert places[0].width == pytest.approx(places[2].width / 0.3)
    assert all(a.y0 > b.y1 for a, b in itertools.pairwise(places))
    assert len({round(place.x0, 9) for place in places}) == 1


def test_heights():
    (stretch,) = make_grid(Region("chr1", 3, 6), score=lambda pos, alt: -2.0).stretches
    assert heights_of(stretch).tolist()[::2] == [2.0, 2.0] and np.isnan(heights_of(stretch)[1])


def test_limit_of_a_picture(monkeypatch, caplog):
    monkeypatch.setattr(effect_plot, "ROWS_LIMIT", 2)
    regions = [Region("chr1", 0, 130), Region("chr1", 5, 9), Region("chr1", 7, 9)]
    grid = make_grid(*regions)
    assert [len(stretch.letters) for stretch in grid.stretches] == [130] and grid.missed == 6
    draw_effects(grid, "out.png", title="toy")
    assert warnings_of(caplog, "plot-limit") == [
        "out.png: shows the first 130 bases of 136; the table has all, a picture 2 rows of 100 bases"
    ]
    draw_effects(EffectGrid(), "none.png", title="toy")
    assert "none.png: there is nothing to draw" in warnings_of(caplog, "empty-plot")[0]
    assert not Path("none.png").exists()


def test_picture_of_a_run(monkeypatch):
    """What is drawn is what the table has, deletions where their base is."""
    grids = []
    kept = effect_plot.make_figure
    monkeypatch.setattr(effect_plot, "make_figure", lambda grid, *rest: grids.append(grid) or kept(grid, *rest))
    model, options = random_model(4), {"window": 64, "force": True, "deletions": True}
    saturate("chr1:1-6", "ref.fa", "out.tsv", model=model, plot="out.png", **options)
    ((stretch,),) = grids
    assert "".join(stretch.letters) == BASES[:6]
    due = np.full((5, 6), np.nan)
    for line in Path("out.tsv").read_text().splitlines():
        if line[0] != "#" and line.split("\t")[4] != ".":
            _, pos, ref, alt, llr = line.split("\t")[:5]
            column = int(pos) - 1 if len(ref) == 1 else int(pos) - (alt == ref[1])
            due[CHANGES.index(alt) if len(ref) == 1 else 4, column] = float(llr)
    assert np.array_equal(np.isnan(stretch.values), np.isnan(due)) and np.count_nonzero(~np.isnan(due)) == 19
    assert np.allclose(stretch.values, due, equal_nan=True)
    first = Path("out.png").read_bytes()
    assert first[:8] == b"\x89PNG\r\n\x1a\n"
    saturate("chr1:1-6", "ref.fa", "out.tsv", model=model, plot="out.png", **options)
    assert Path("out.png").read_bytes() == first
    assert not list(Path().glob(".hybridna*"))


def test_rules_for_the_picture(monkeypatch):
    def run(**options):
        return saturate("chr1:1-6", "ref.fa", "out.tsv", model=random_model(), window=64, **options)

    with pytest.raises(UsageError, match=r"out.pdf: the picture is a PNG"):
        run(plot="out.pdf")
    Path("out.png").write_text("old")
    with pytest.raises(UsageError, match=r"out.png: the output exists already"):
        run(plot="out.png")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemFault, match=r"pip install 'hybridna\[plots\]'"):
        run(plot="new.png")
    assert not Path("out.tsv").exists() and run().scored == 15
