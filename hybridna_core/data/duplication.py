"""Made tandem arrays: a training window's end overwritten by copies of a stretch of itself.

base ids, random numbers -> source, length, divergence -> base ids of the same length
"""

import numpy as np

from hybridna_core.tokenizer import A, T

# Shortest stretch that is repeated, bp.
SHORTEST = 24
# Share of the arrays whose copies are exact; share of the bases that are drawn anew, at most, in those of the others.
EXACT, FARTHEST = 0.75, 0.3


def duplicate(ids, weights, random):
    """Return a window in which a stretch is repeated until the window's end.

    ids      (bases,) uint8
    weights  (bases,) float32 of each base in the loss, or None; a copy takes along its source's
    random   numpy Generator
    returns  new ids and weights

    Genomes are full of duplications, from satellites to transposons, yet short windows on small genomes show too few of
    them for copying to be learnt: with arrays in all windows of 1,024 bases `base` learnt it within 350 steps of 4,096
    tokens; with half of them scattered and half changed it had not after 300, when that was stopped. The stretch is
    24 bp to a third of the window long, log-uniform; in a quarter of the arrays copies differ from it at up to 30 % of
    the bases, mostly at far fewer.
    """
    bases = len(ids)
    if bases < 3 * SHORTEST:
        return ids, weights
    length = int(np.exp(random.uniform(np.log(SHORTEST), np.log(bases // 3))))
    source = int(random.integers(bases - 2 * length + 1))
    ids, weights = (None if values is None else _repeat(values, source, length) for values in (ids, weights))
    if random.random() >= EXACT:
        copies = ids[source + length :]
        changed = (random.random(len(copies)) < FARTHEST * random.random() ** 2) & (copies >= A) & (copies <= T)
        copies[changed] = random.integers(A, T + 1, int(changed.sum()))
    return ids, weights


def _repeat(values, source, length):
    """Return values with the stretch of a length that begins at `source` repeated to their end."""
    return np.concatenate([values[:source], np.resize(values[source : source + length], len(values) - source)])
