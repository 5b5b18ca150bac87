"""The oracle of constraints: options as typed, held against a sequence by Biopython's nt_search and plain counts."""

from fractions import Fraction

from Bio.Seq import reverse_complement
from Bio.SeqUtils import nt_search

LETTERS = "ACGTACGTACGTRYSWKMBDHVN"


def places(sequence, motif):
    """Return where a motif stands, by Biopython, a match found only once its window is cut out of the rest."""
    found = range(len(sequence) - len(motif) + 1)
    return [i for i in found if len(nt_search(sequence[i : i + len(motif)], motif)) > 1]


def satisfies(sequence, prompt_bases, gc=None, max_homopolymer=None, forbid=None, template=None, require=None):
    """Say whether a sequence satisfies options as typed; shares no code with what is tested."""
    if gc is not None:
        low, high = (Fraction(part) for part in gc.split(":"))
        if not low * len(sequence) <= sum(base in "GC" for base in sequence) <= high * len(sequence):
            return False
    if max_homopolymer is not None and any(base * (max_homopolymer + 1) in sequence for base in "ACGT"):
        return False
    for site in forbid.split(",") if forbid else ():
        if places(sequence, site) or places(reverse_complement(sequence), site):
            return False
    if template is not None and 0 not in places(sequence[prompt_bases:], template):
        return False
    for text in require.split(",") if require else ():
        motif, at, position = text.partition("@")
        start = int(position or 0)
        start = start - 1 if start > 0 else len(sequence) + start
        if start not in places(sequence, motif) if at else not places(sequence, motif):
            return False
    return True
