"""A simulated reporter assay in three cell lines: real background windows, planted binding sites, a stated activity.

Genome -> windows -> sites planted -> activity of each line + noise -> digits by quantile -> rows of a table

It stands in for measured tables that are not free, and is for trying out and testing only: no number here was measured.
"""

from typing import NamedTuple

import numpy as np

from hybridna_core.tokenizer import A, N, decode, encode, reverse_complement_ids

LINES = ("HepG2", "K562", "SK-N-SH")
# What a site with one letter amiss counts, beside one of an exact site.
NEAR = 0.2
# Added where every factor of a line has an exact site, as enhancers work by combinations.
SYNERGY = 0.5
NOISE = 0.15
# Shares of the windows that get no sites, sites of one line, and sites of two or three.
PLAIN, ALONE = 0.25, 0.5
MOST_SITES = 6

# Bits of A, C, G, T in each IUPAC letter.
IUPAC = {"A": 1, "C": 2, "G": 4, "T": 8, "R": 5, "Y": 10, "S": 6, "W": 9, "K": 12, "M": 3, "B": 14, "D": 13, "H": 11,
         "V": 7, "N": 15}  # fmt: skip


class Factor(NamedTuple):
    """A transcription factor that drives one cell line.

    site    consensus of its binding site, IUPAC letters
    weight  activity that it adds when bound all of the time, log2 units
    """

    name: str
    line: str
    site: str
    weight: float


# Consensus sites as published for these factors (JASPAR, TRANSFAC); the weights are made up.
FACTORS = (
    Factor("HNF4A", "HepG2", "CAAAGTCCA", 1.0),
    Factor("HNF1A", "HepG2", "GTTAATNATTAA", 1.2),
    Factor("CEBPB", "HepG2", "RTTGCGYAAY", 0.8),
    Factor("GATA1", "K562", "AGATAAGR", 1.0),
    Factor("GATA1::TAL1", "K562", "CTTATCWNNNNNNNCAG", 1.2),
    Factor("KLF1", "K562", "CCACRCCCW", 0.8),
    Factor("ASCL1", "SK-N-SH", "RCAGCTGY", 1.0),
    Factor("PHOX2B", "SK-N-SH", "TAATYYAATTA", 1.2),
    Factor("HAND2", "SK-N-SH", "CCAGATGK", 0.8),
)


class Row(NamedTuple):
    """One tested element.

    contig, start, end  of the background window, 0-based half-open
    activity            measured in each line, log2 units, noise included
    label               a digit per line: 0 the lowest quarter of the table, 3 the highest
    """

    contig: str
    start: int
    end: int
    sequence: str
    activity: tuple
    label: str


def activity(sequences):
    """Return the noiseless activity of sequences in the three lines, (n, 3), log2 units over the bare reporter.

    A factor with n sites, on either strand, adds weight * (1 - 2^-n); a site with one letter amiss counts 0.2. A line
    whose factors all have an exact site gets 0.5 more.
    """
    found = np.zeros((len(sequences), len(LINES)))
    by_length = {}
    for i, sequence in enumerate(sequences):
        by_length.setdefault(len(sequence), []).append(i)
    for rows in by_length.values():
        found[rows] = _activity(np.stack([encode(sequences[i]) for i in rows]))
    return found


def _activity(ids):
    """As `activity`, for ids (n, length)."""
    found, whole = np.zeros((len(ids), len(LINES))), np.ones((len(ids), len(LINES)), dtype=bool)
    for factor in FACTORS:
        line, (exact, near) = LINES.index(factor.line), count_sites(ids, factor.site)
        found[:, line] += factor.weight * (1 - 2.0 ** -(exact + NEAR * near))
        whole[:, line] &= exact > 0
    return found + SYNERGY * whole


def count_sites(ids, site):
    """Count the places where a site stands on either strand: without and with one letter amiss.

    ids      (n, length) uint8; unknown bases fit nothing, not even N
    returns  two (n,) arrays of whole numbers
    """
    bits = np.where(ids == N, 0, 1 << (ids.astype(int) - A)).astype(np.uint8)
    amiss = None
    for letters in (site, reverse_site(site)):
        places = ids.shape[1] - len(letters) + 1
        if places < 1:
            return np.zeros((2, len(ids)), dtype=int)
        wrong = np.zeros((len(ids), places), dtype=np.uint8)
        for i, letter in enumerate(letters):
            wrong += (bits[:, i : i + places] & IUPAC[letter]) == 0
        amiss = wrong if amiss is None else np.minimum(amiss, wrong)
    return (amiss == 0).sum(axis=1), (amiss == 1).sum(axis=1)


def reverse_site(site):
    """Reverse complement of IUPAC letters."""
    letters = {bits: letter for letter, bits in IUPAC.items()}
    return "".join(letters[int(f"{IUPAC[letter]:04b}"[::-1], 2)] for letter in reversed(site))


def plant(ids, random):
    """Return a copy of a window, (length,) uint8, with sites of no, one or several lines written into it.

    Sites are exact, on either strand, and do not overlap; one that finds no room in twenty tries is left out.
    """
    draw, lines = random.random(), random.permutation(LINES)
    lines = lines[: 0 if draw < PLAIN else 1 if draw < PLAIN + ALONE else int(random.integers(2, 4))]
    ids, taken = ids.copy(), np.zeros(len(ids), dtype=bool)
    for line in lines:
        factors = [factor for factor in FACTORS if factor.line == line]
        for _ in range(int(random.integers(1, MOST_SITES + 1))):
            site = draw_site(factors[random.integers(len(factors))].site, random)
            for _ in range(20):
                at = int(random.integers(len(ids) - len(site) + 1))
                if not taken[at : at + len(site)].any():
                    ids[at : at + len(site)] = site
                    taken[at : at + len(site)] = True
                    break
    return ids


def draw_site(site, random):
    """Draw one of the sequences that fit a site, on either strand, as ids."""
    ids = np.array([A + random.choice([b for b in range(4) if IUPAC[letter] >> b & 1]) for letter in site], np.uint8)
    return ids if random.random() < 0.5 else reverse_complement_ids(ids)


def simulate(genome, count, *, length=200, seed=0):
    """Simulate the assay of so many elements; return its Rows.

    genome  Genome whose windows are the background; windows with unknown bases are not taken
    length  of an element, bp

    The same genome, count, length and seed give the same rows.
    """
    random = np.random.default_rng(seed)
    contigs = [name for name, bases in genome.contigs.items() if bases >= length]
    room = np.array([genome.contigs[name] - length + 1 for name in contigs])
    places, windows = [], []
    while len(windows) < count:
        contig = contigs[random.choice(len(contigs), p=room / room.sum())]
        start = int(random.integers(genome.contigs[contig] - length + 1))
        ids = encode(genome.fetch(contig, start, start + length))
        if not (ids == N).any():
            places.append((contig, start, start + length))
            windows.append(plant(ids, random))
    measured = _activity(np.stack(windows)) + random.normal(0, NOISE, (count, len(LINES)))
    borders = np.quantile(measured, [0.25, 0.5, 0.75], axis=0)
    digits = (measured[:, None] >= borders).sum(axis=1)
    return [
        Row(*place, decode(ids), tuple(values), "".join(map(str, label)))
        for place, ids, values, label in zip(places, windows, measured.tolist(), digits.tolist(), strict=True)
    ]
