"""The simulated reporter assay: its sites, its activity worked out by hand, its table."""

import re

import numpy as np
import pytest

from hybridna_core.data.genome import open_genome
from hybridna_core.data.reporter import FACTORS, IUPAC, LINES, activity, count_sites, draw_site, reverse_site, simulate
from hybridna_core.tokenizer import decode, encode, reverse_complement

# Holds no site of any factor, nor one with a letter amiss, nor makes one with its neighbours.
FILL = "ACACACACACAC"
SITES = {factor.name: factor.site for factor in FACTORS}


def spell(site):
    """One of the sequences that fit: the first letter allowed everywhere."""
    return "".join("ACGT"[next(b for b in range(4) if IUPAC[letter] >> b & 1)] for letter in site)


def test_the_filling_is_silent():
    assert activity([FILL * 10]).tolist() == [[0, 0, 0]]


def test_activity_by_hand():
    hnf4a, hnf1a, cebpb = (FILL + spell(SITES[name]) + FILL for name in ("HNF4A", "HNF1A", "CEBPB"))
    found = activity([hnf4a, reverse_complement(hnf4a), hnf4a + hnf4a, hnf4a + hnf1a + cebpb])
    # HNF1A's site is nearly its own reverse, one place on: that counts as a site with a letter amiss.
    assert found[:, 0] == pytest.approx([0.5, 0.5, 0.75, 1.0 * 0.5 + 1.2 * (1 - 2**-1.2) + 0.8 * 0.5 + 0.5])
    assert not found[:, 1:].any()
    near = FILL + "CAAAGTCGA" + FILL
    assert activity([near])[0, 0] == pytest.approx(1 - 2**-0.2)


def test_each_factor_drives_its_own_line():
    for factor in FACTORS:
        found = activity([FILL + spell(factor.site) + FILL])[0]
        assert found[LINES.index(factor.line)] >= factor.weight / 2 - 1e-9
        assert found.max() == found[LINES.index(factor.line)]


@pytest.mark.parametrize("site", SITES.values())
def test_sites_are_counted_as_a_regular_expression_does(site):
    generator = np.random.default_rng(len(site))
    text = decode(generator.integers(7, 11, 3000)) + decode(draw_site(site, generator)) + "NACGT"
    pattern = "".join(f"[{''.join(b for i, b in enumerate('ACGT') if IUPAC[letter] >> i & 1)}]" for letter in site)
    forward = {m.start() for m in re.finditer(f"(?={pattern})", text)}
    backward = {len(text) - m.start() - len(site) for m in re.finditer(f"(?={pattern})", reverse_complement(text))}
    exact, _ = count_sites(encode(text)[None], site)
    assert exact.tolist() == [len(forward | backward)] and exact[0] >= 1


def test_a_site_and_its_reverse_are_one_place():
    assert reverse_site("AGATAAGR") == "YCTTATCT" and reverse_site(reverse_site("RTTGCGYAAY")) == "RTTGCGYAAY"
    exact, near = count_sites(encode("CAGCTG")[None], "CAGCTG")
    assert (exact.tolist(), near.tolist()) == ([1], [0])
    assert [n.tolist() for n in count_sites(encode("ACG")[None], "ACGT")] == [[0], [0]]


@pytest.fixture(scope="module")
def genome(tmp_path_factory):
    path = tmp_path_factory.mktemp("background") / "genome.fa"
    generator = np.random.default_rng(1)
    path.write_text(f">a\n{decode(generator.integers(7, 11, 9000))}\n>b\n{'N' * 3000}\n>short\nACGT\n")
    with open_genome(path) as genome:
        yield genome


def test_the_table(genome):
    rows = simulate(genome, 1200, seed=3)
    assert rows == simulate(genome, 1200, seed=3) and rows != simulate(genome, 1200, seed=4)
    assert {row.contig for row in rows} == {"a"} and {len(row.sequence) for row in rows} == {200}
    assert all(row.end - row.start == 200 and set(row.sequence) <= set("ACGT") for row in rows)
    # Measured is activity and noise; digits are quarters of each line.
    noise = np.array([row.activity for row in rows]) - activity([row.sequence for row in rows])
    assert abs(noise.mean()) < 0.03 and 0.13 < noise.std() < 0.17
    for line in range(3):
        digits = np.array([int(row.label[line]) for row in rows])
        assert np.bincount(digits).tolist() == [300, 300, 300, 300]
        values = np.array([row.activity[line] for row in rows])
        assert all(values[digits == d].max() < values[digits == d + 1].min() for d in range(3))
    # Elements that work in one line alone are common enough to learn from.
    assert all(sum(row.label == label for row in rows) >= 10 for label in ("300", "030", "003"))
    # Background stays where no site was planted.
    plain = [row for row in rows if row.sequence == genome.fetch(row.contig, row.start, row.end)]
    assert 0.15 < len(plain) / len(rows) < 0.35
