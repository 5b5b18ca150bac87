"""What a set of sequences is worth for a label: activity, diversity, novelty, closeness to real sequences.

sequences, activity, distances, the real sequences of the label -> {column: number}, reasons where there is none
"""

import numpy as np

from hybridna_core.metrics import jensen_shannon, kmer_spectrum, nearest, pairwise_distances
from hybridna_core.oracle import score_label
from hybridna_core.sequence_baselines import gc_content
from hybridna_core.task_metrics import measure_one
from hybridna_core.tokenizer import reverse_complement

# Best sequences that are averaged, as published, and length of the words counted.
TOP, K = 100, 4


def draw(rows, limit, seed):
    """Return at most so many rows, drawn evenly by the seed, in their order."""
    if limit is None or len(rows) <= limit:
        return rows
    return [rows[i] for i in np.sort(np.random.default_rng(seed).choice(len(rows), limit, replace=False))]


def mean_distance(sequences, limit, seed):
    """Return the mean edit distance of two sequences and over how many pairs; None for fewer than two.

    limit  pairs; where there are more, so many are drawn by the seed, each pair as likely as any other
    """
    count = len(sequences)
    if count < 2:
        return None, 0
    if count * (count - 1) // 2 <= limit:
        found = pairwise_distances(sequences)
        return float(found.mean()), len(found)
    from rapidfuzz.distance import Levenshtein

    random = np.random.default_rng(seed)
    first, second = random.integers(count, size=limit), random.integers(count - 1, size=limit)
    second += second >= first
    found = [Levenshtein.distance(sequences[i], sequences[j]) for i, j in zip(first, second, strict=True)]
    return float(np.mean(found)), limit


def nearest_distances(sequences, places, known, progress=None):
    """Return the edit distance of each sequence to the nearest known one, on either strand; NaN without any.

    places  where each stands itself among the known ones, to be passed over there; None for one that is none of them
    """
    both = [*known, *map(reverse_complement, known)]
    found = np.full(len(sequences), np.nan)
    for i, (sequence, place) in enumerate(zip(sequences, places, strict=True)):
        own = () if place is None else (place, place + len(known))
        kept = [both[j] for j in own]
        for j in own:
            both[j] = None
        near = nearest(sequence, both)
        for j, text in zip(own, kept, strict=True):
            both[j] = text
        if near is not None:
            found[i] = near[1]
        if progress is not None:
            progress(i + 1, len(sequences))
    return found


def compare(sequences, real):
    """Return how much more G and C sequences have than real ones, and the divergence of their 4-mers, bits.

    The first is a difference of means of shares; the second the Jensen-Shannon divergence, 0 to 1.
    """
    difference = float(gc_content(sequences).mean() - gc_content(real).mean())
    return difference, jensen_shannon(kmer_spectrum(sequences, K), kmer_spectrum(real, K)) ** 2


def compare_real(real, count, seed):
    """Return what `compare` gives for real sequences beside each other; None for fewer than two.

    count  sequences that are drawn by the seed, at most half, and held against all others
    """
    count = min(count, len(real) // 2)
    if count < 1:
        return None
    order = np.random.default_rng(seed).permutation(len(real))
    return compare([real[i] for i in order[:count]], [real[i] for i in order[count:]])


def measure_activity(values, label, sequences, pairs, seed):
    """Return {column: number} of what an oracle says of a set.

    values     (n, outputs), as the oracle gives them
    sequences  (n,) str; pairs, seed as in `mean_distance`
    """
    target, specificity = score_label(values, label)
    best = np.argsort(-target, kind="stable")[:TOP]
    found = {
        "top_1": float(target[best[0]]), "top_100": float(target[best].mean()), "mean": float(target.mean()),
        "sd": float(target.std(ddof=1)) if len(target) > 1 else None,
        "specificity": None if specificity is None else float(specificity.mean()),
        "specificity_100": None if specificity is None else float(specificity[best].mean()),
    }  # fmt: skip
    found["diversity"], found["pairs"] = mean_distance(sequences, pairs, seed)
    found["diversity_100"], _ = mean_distance([sequences[i] for i in best], pairs, seed)
    return found


def measure_oracle(values, measured, label):
    """Return the mean of the measured target, and Pearson's r of the oracle's target with it; None where undefined."""
    told, true = (score_label(numbers, label)[0][:, None] for numbers in (values, measured))
    found = measure_one("regression", "pearson", true, told)
    return float(true.mean()), found if found == found else None


def spell_lengths(sequences):
    """Return `80`, or `60-80` where lengths differ."""
    lengths = [len(text) for text in sequences]
    return str(lengths[0]) if len(set(lengths)) == 1 else f"{min(lengths)}-{max(lengths)}"
