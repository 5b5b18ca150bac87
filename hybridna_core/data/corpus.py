"""Training windows from a mixture of genomes.

FASTA files -> token arrays per allowed stretch -> share of each species -> window(i), a pure function of its number
"""

from functools import cached_property
from typing import NamedTuple

import numpy as np

from hybridna_core.data.genome import open_genome
from hybridna_core.data.inputs import warn
from hybridna_core.data.regions import parse_region
from hybridna_core.errors import DataError, UsageError
from hybridna_core.tokenizer import N, reverse_complement_ids

# Starts judged at a time, so that counting unknown bases needs little memory beside a long contig.
BLOCK = 2**22


class Stretch(NamedTuple):
    """A piece of a contig; start and end 0-based half-open, ids (end - start,) uint8."""

    contig: str
    start: int
    end: int
    ids: np.ndarray


class Species(NamedTuple):
    """One genome in memory: what is trained on, and what is held out."""

    name: str
    train: tuple[Stretch, ...]
    valid: tuple[Stretch, ...]

    @property
    def train_bases(self):
        """Known bases that are trained on."""
        return sum(count_known(s.ids) for s in self.train)

    @property
    def valid_bases(self):
        """Known bases that are held out."""
        return sum(count_known(s.ids) for s in self.valid)


def count_known(ids):
    """Count the bases that are not N."""
    return len(ids) - int(np.count_nonzero(ids == N))


def load_species(config, **reading):
    """Read one species of a run file; raise the genome reader's errors, UsageError for regions that do not fit.

    reading  options of `open_genome`

    What is excluded is neither trained on nor held out; held-out regions that touch or overlap count once.
    """
    train, valid = [], []
    with open_genome(config.fasta, **reading) as genome:
        everything = [(name, 0, length) for name, length in genome.contigs.items()]
        held = everything if config.valid == ("all",) else _place(config.valid, genome, config.name)
        barred = _place(config.exclude, genome, config.name)
        for contig, length in genome.contigs.items():
            out = [(start, end) for name, start, end in barred if name == contig]
            aside = [(start, end) for name, start, end in held if name == contig]
            rest = list(_left_over(length, aside))
            for kept, taken in ((train, aside), (valid, rest)):
                for start, end in _left_over(length, taken + out):
                    kept.append(Stretch(contig, start, end, genome.ids(contig, start, end)))
    return Species(config.name, tuple(train), tuple(valid))


def _place(texts, genome, species):
    """Turn region strings into (contig, start, end); a contig's whole name comes before any other reading."""
    found = []
    for text in texts:
        if text in genome.contigs:
            found.append((text, 0, genome.contigs[text]))
            continue
        try:
            region = parse_region(text, genome)
        except UsageError as error:
            raise UsageError(error.what, where=f"species {species}", hint=error.hint) from None
        found.append((region.contig, region.start, region.end))
    return found


def _left_over(length, taken):
    """Yield what the given (start, end) pairs leave of [0, length)."""
    at = 0
    for start, end in sorted(taken):
        if start > at:
            yield at, start
        at = max(at, end)
    if at < length:
        yield at, length


def mixture_weights(bases, tokens, *, power, max_passes, given=None, usable=None):
    """Return each species' share of the training windows; shares sum to 1.

    bases   known training bases per species
    tokens  training tokens of the whole run
    given   fixed weights or None, per species; the others get bases ** power
    usable  bases that windows can reach, per species; all of them when None

    No species is read more than max_passes times: what is over is spread among the rest. Raises UsageError when all
    of them together are too small for that.
    """
    given = given or [None] * len(bases)
    wish = np.array([b**power if w is None else w for b, w in zip(bases, given, strict=True)], dtype=np.float64)
    usable = np.array(bases if usable is None else usable, dtype=np.float64)
    limit = usable * max_passes / tokens
    if limit.sum() < 1:
        passes = tokens / max(1.0, usable.sum())
        what = f"is {max_passes:g}, but {tokens:,} tokens read the {int(usable.sum()):,} bases {passes:,.1f} times"
        raise UsageError(what, where="mixture.max_passes", hint="allow more passes, take fewer steps or more data")
    share = np.zeros(len(bases))
    capped = usable == 0
    while True:
        free = 1 - share[capped].sum()
        share[~capped] = free * wish[~capped] / wish[~capped].sum()
        over = ~capped & (share > limit)
        if not over.any():
            return share
        share[over] = limit[over]
        capped |= over


def find_starts(ids, bases, most_unknown):
    """Find where windows may start: whole within `ids`, with at most so many unknown bases.

    returns  (n, 2) int64, half-open runs of starts in order; neighbouring runs may touch
    """
    runs, total = [], len(ids) - bases + 1
    if total > 0 and count_known(ids) == len(ids):
        return np.array([[0, total]])
    for at in range(0, total, BLOCK):
        count = min(BLOCK, total - at)
        unknown = np.cumsum(ids[at : at + count + bases - 1] == N, dtype=np.int64)
        inside = unknown[bases - 1 :].copy()
        inside[1:] -= unknown[: count - 1]
        edges = np.diff((inside <= most_unknown).astype(np.int8), prepend=0, append=0)
        runs.append(np.flatnonzero(edges).reshape(-1, 2) + at)
    return np.concatenate(runs) if runs else np.zeros((0, 2), dtype=np.int64)


class _Pool:
    """Every start that a window of one species may have.

    stretches  Stretch of each run, adjacent
    first      (runs,) first start of each run within its stretch
    ends       (runs,) number of starts up to the end of each run
    """

    def __init__(self, species, bases, most_unknown):
        self.stretches, first, sizes = [], [], []
        self.usable = 0
        self.short = [s for s in species.train if len(s.ids) < bases]
        self.unknown = []
        for stretch in species.train:
            runs = find_starts(stretch.ids, bases, most_unknown)
            if not len(runs) and len(stretch.ids) >= bases:
                self.unknown.append(stretch)
            covered = 0
            for start, end in runs.tolist():
                self.stretches.append(stretch)
                first.append(start)
                sizes.append(end - start)
                self.usable += count_known(stretch.ids[max(start, covered) : end - 1 + bases])
                covered = end - 1 + bases
        self.first = np.array(first, dtype=np.int64)
        self.ends = np.cumsum(sizes, dtype=np.int64)

    def window(self, at, bases):
        """Return the window at start number `at`, counted over all runs."""
        run = int(np.searchsorted(self.ends, at, side="right"))
        start = int(self.first[run]) + at - (int(self.ends[run - 1]) if run else 0)
        return self.stretches[run].ids[start : start + bases]


class Corpus:
    """The training windows of one stage: `window(i)` for any i.

    species        list of Species
    bases          bases per window
    tokens         training tokens of the whole run, which max_passes is measured by
    weights        fixed weights or None, per species; see `mixture_weights`, also for power and max_passes
    max_unknown    largest share of unknown bases in a window
    reverse_share  share of the windows that are read as their reverse complement

    names, shares and usable say how the windows are shared: per species its name, its share, and the known bases
    that windows can reach. Warns of contigs left out; raises DataError when no window fits anywhere.
    """

    def __init__(self, species, *, bases, tokens, seed=0, stage=0, power=0.7, max_passes=15.0, weights=None,
                 max_unknown=0.05, reverse_share=0.5):  # fmt: skip
        self.bases, self.seed, self.stage, self.reverse_share = bases, seed, stage, reverse_share
        self.names = [s.name for s in species]
        self._pools = [_Pool(s, bases, int(max_unknown * bases)) for s in species]
        self.usable = [pool.usable for pool in self._pools]
        if not any(self.usable):
            self._refuse(species, max_unknown)
        for name, pool in zip(self.names, self._pools, strict=True):
            self._warn(name, pool.short, f"shorter than the window of {bases:,} bases")
            self._warn(name, pool.unknown, f"over {100 * max_unknown:g} % unknown bases in every window of {bases:,}")
        self.shares = mixture_weights(
            [s.train_bases for s in species], tokens, power=power, max_passes=max_passes, given=weights,
            usable=self.usable,
        )  # fmt: skip

    def _refuse(self, species, max_unknown):
        where = f"stage {self.stage}"
        longest = max((len(s.ids) for one in species for s in one.train), default=0)
        if not longest:
            raise DataError("there is nothing to train on: every base is held out or excluded", where=where)
        if longest < self.bases:
            what = f"every contig is shorter than the window: longest {longest:,} bases, window {self.bases:,}"
            raise DataError(what, where=where, hint="shorten the stage's context_length")
        what = f"every window of {self.bases:,} bases has over {100 * max_unknown:g} % unknown bases"
        raise DataError(what, where=where, hint="raise mixture.max_unknown")

    def _warn(self, name, stretches, why):
        if stretches:
            total = sum(len(s.ids) for s in stretches)
            count = "1 contig" if len(stretches) == 1 else f"{len(stretches):,} contigs"
            warn("contigs-left-out", f"{name}: {count} left out ({total:,} bases): {why}")

    @cached_property
    def _drawn(self):
        """Numbers of the species that are drawn from, and where the share of each ends."""
        kinds = np.flatnonzero(self.shares > 0)
        return kinds, np.cumsum(self.shares[kinds])

    def window(self, i):
        """Return window number i as (species number, ids); ids (bases,) uint8. The same for every call and rank."""
        random = np.random.Generator(np.random.Philox(key=[self.seed, self.stage], counter=[0, 0, 0, i]))
        kinds, ends = self._drawn
        # Rounding may put a draw at the very end of the last share.
        found = int(np.searchsorted(ends, random.random() * ends[-1], side="right"))
        kind = int(kinds[min(found, len(kinds) - 1)])
        pool = self._pools[kind]
        ids = pool.window(int(random.integers(pool.ends[-1])), self.bases)
        return kind, reverse_complement_ids(ids) if random.random() < self.reverse_share else ids.copy()


def validation_windows(species, bases, count):
    """Return up to `count` windows spread evenly over the held-out stretches of one species, as (n, bases) uint8.

    Windows never overlap and hold at most half unknown bases; fewer are returned when there are no more.
    """
    places = [(s, at) for s in species.valid for at in range(0, len(s.ids) - bases + 1, bases)]
    places = [(s, at) for s, at in places if np.count_nonzero(s.ids[at : at + bases] == N) <= bases // 2]
    if not places:
        return np.zeros((0, bases), dtype=np.uint8)
    chosen = sorted({i * len(places) // count for i in range(count)} if len(places) > count else range(len(places)))
    return np.stack([places[i][0].ids[places[i][1] : places[i][1] + bases] for i in chosen])
