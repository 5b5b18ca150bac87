"""Markov models of bases, the baseline beside every likelihood.

token arrays, both strands -> counts of every (order + 1)-mer -> interpolated probabilities -> bits per base
"""

import numpy as np

from hybridna_core.tokenizer import A, N, T, reverse_complement_ids

MAX_ORDER = 12
COUNT_AT_ONCE = 2**24
_BREAK = np.array([N], dtype=np.uint8)


class MarkovModel:
    """Counts of all (k + 1)-mers up to an order, over both strands of the training bases.

    P_k(x | context) = (count(context x) + strength P_{k-1}(x | shorter context)) / (count(context) + strength),
    down to a uniform P_{-1}: all orders are interpolated.
    """

    def __init__(self, order):
        if not 0 <= order <= MAX_ORDER:
            raise ValueError(f"order {order} is not 0 to {MAX_ORDER}")
        self.order = order
        self.counts = [np.zeros((4**k, 4), dtype=np.int32) for k in range(order + 1)]
        self._waiting = []

    def add(self, ids):
        """Count one stretch of token ids and its reverse complement; unknown bases break it. (n,) uint8"""
        # Stretches wait until they are many, as one pass over a table of 4^13 words costs as much for few as for many.
        self._waiting += [np.asarray(ids), _BREAK]
        if sum(len(part) for part in self._waiting) >= COUNT_AT_ONCE:
            self._count()

    def _count(self):
        if not self._waiting:
            return
        joined = np.concatenate(self._waiting)
        self._waiting = []
        for strand in (joined, reverse_complement_ids(joined)):
            for table, (words, whole) in zip(self.counts, _words(strand, self.order), strict=True):
                table += np.bincount(words[whole], minlength=table.size).reshape(-1, 4).astype(np.int32)

    def log2_probs(self, ids, strength=16.0):
        """Return log2 P of each base given what stands before it, for every order; NaN at unknown bases.

        ids (n,) uint8 -> (order + 1, n) float64; row k reads k bases back at most
        """
        self._count()
        ids = np.asarray(ids)
        known = (ids >= A) & (ids <= T)
        probability, rows = np.full(len(ids), 0.25), []
        for k, (table, (words, whole)) in enumerate(zip(self.counts, _words(ids, self.order), strict=True)):
            seen = table[words // 4]
            times = np.take_along_axis(seen, (words % 4)[:, None], axis=1)[:, 0]
            deeper = (times + strength * probability[k:]) / (seen.sum(axis=1, dtype=np.int64) + strength)
            probability[k:] = np.where(whole, deeper, probability[k:])
            rows.append(np.where(known, np.log2(probability), np.nan))
        return np.stack(rows)


def _words(ids, order):
    """Yield for each k up to the order: index of the (k + 1)-mer ending at each base from k on, and if all is known."""
    known = (ids >= A) & (ids <= T)
    codes = np.where(known, ids - A, 0).astype(np.int32)
    words, whole = codes, known
    yield words, whole
    for k in range(1, order + 1):
        words, whole = words[:-1] * 4 + codes[k:], whole[:-1] & known[k:]
        yield words, whole
