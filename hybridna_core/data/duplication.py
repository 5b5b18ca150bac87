"""Made duplications: part of a training window overwritten by changed copies of an earlier part.

base ids, random numbers -> length, source, copies, their strand and divergence -> base ids of the same length
"""

import numpy as np

from hybridna_core.tokenizer import A, T, reverse_complement_ids

# Shortest part that is copied, bp; the most that a copy differs from its source, share of its bases.
SHORTEST, FARTHEST = 32, 0.3
# Shares of the parts that are copied in reverse complement.
REVERSED = 0.25
MOST_COPIES = 4


def duplicate(ids, weights, random):
    """Return a window in which one to four copies of an earlier stretch stand in for what was there.

    ids      (bases,) uint8
    weights  (bases,) float32 of each base in the loss, or None; a copy takes along its source's
    random   numpy Generator
    returns  new ids and weights

    Genomes are full of duplications, from satellites to transposons, yet short windows on small genomes show few of
    them to learn copying from. Lengths are log-uniform from 32 bp to half the window; a quarter of the parts are copied
    in reverse complement; copies differ from their source at up to 30 % of their bases, mostly at far fewer.
    """
    bases = len(ids)
    if bases < 2 * SHORTEST:
        return ids, weights
    ids, weights = ids.copy(), None if weights is None else weights.copy()
    length = int(np.exp(random.uniform(np.log(SHORTEST), np.log(bases // 2))))
    source = int(random.integers(bases - 2 * length + 1))
    part, loss = ids[source : source + length], None if weights is None else weights[source : source + length]
    if random.random() < REVERSED:
        part, loss = reverse_complement_ids(part), None if loss is None else loss[::-1]
    part, loss = part.copy(), None if loss is None else loss.copy()
    begin, copies = source + length, int(random.integers(1, MOST_COPIES + 1))
    for left in range(copies, 0, -1):
        room = bases - begin - left * length
        if room < 0:
            continue
        begin += int(random.integers(room + 1)) if random.random() < 0.5 else 0
        changed = (random.random(length) < FARTHEST * random.random() ** 2) & (part >= A) & (part <= T)
        copy = part.copy()
        copy[changed] = random.integers(A, T + 1, int(changed.sum()))
        ids[begin : begin + length] = copy
        if weights is not None:
            weights[begin : begin + length] = loss
        begin += length
    return ids, weights
