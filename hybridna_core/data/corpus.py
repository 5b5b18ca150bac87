"""Training windows from a mixture of genomes.

FASTA files -> token arrays per allowed stretch -> share of each species -> window(i), a pure function of its number
"""

from typing import NamedTuple

import numpy as np

from hybridna_core.data.genome import open_genome
from hybridna_core.data.inputs import warn
from hybridna_core.data.regions import parse_region
from hybridna_core.errors import DataError
from hybridna_core.tokenizer import N, reverse_complement_ids

# Draws of a start before a window over the limit of unknown bases is taken as it is.
DRAWS = 32


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
        return sum(len(s.ids) for s in self.train)


def load_species(config):
    """Read one species of a run file; raise the genome reader's errors, DataError for regions that do not fit."""
    with open_genome(config.fasta) as genome:
        if config.valid == ("all",):
            held = [(name, 0, length) for name, length in genome.contigs.items()]
        else:
            held = [_place(text, genome) for text in config.valid]
        barred = [_place(text, genome) for text in config.exclude]
        valid = [Stretch(c, a, b, genome.ids(c, a, b)) for c, a, b in held]
        train = []
        for contig, length in genome.contigs.items():
            for start, end in _left_over(length, [(a, b) for c, a, b in held + barred if c == contig]):
                train.append(Stretch(contig, start, end, genome.ids(contig, start, end)))
    return Species(config.name, tuple(train), tuple(valid))


def _place(text, genome):
    if text in genome.contigs:
        return text, 0, genome.contigs[text]
    region = parse_region(text, genome)
    if region.contig not in genome.contigs:
        raise DataError(f"no contig {region.contig!r} in {genome.path}", where=text)
    return region.contig, region.start, min(region.end, genome.contigs[region.contig])


def _left_over(length, taken):
    """Yield what the given (start, end) pairs leave of [0, length)."""
    at = 0
    for start, end in sorted(taken):
        if start > at:
            yield at, start
        at = max(at, end)
    if at < length:
        yield at, length


def mixture_weights(bases, tokens, *, power, max_passes, given=None):
    """Return each species' share of the training tokens; shares sum to 1.

    bases   training bases per species
    tokens  training tokens in all
    given   fixed weights or None, per species; the others get bases ** power

    No species is read more than max_passes times: what is over is spread among the rest.
    """
    given = given or [None] * len(bases)
    wish = np.array([b**power if w is None else w for b, w in zip(bases, given, strict=True)], dtype=np.float64)
    limit = np.array(bases, dtype=np.float64) * max_passes / tokens
    if limit.sum() <= 1:
        return limit / limit.sum()
    share = np.zeros(len(bases))
    capped = np.zeros(len(bases), dtype=bool)
    while True:
        free = 1 - share[capped].sum()
        share[~capped] = free * wish[~capped] / wish[~capped].sum()
        over = ~capped & (share > limit)
        if not over.any():
            return share
        share[over] = limit[over]
        capped |= over


class Corpus:
    """The training windows of one stage.

    species  list of Species
    shares   share of the windows for each
    bases    bases per window
    """

    def __init__(self, species, shares, *, bases, seed, stage, max_unknown=0.05, reverse_share=0.5):
        self.bases, self.seed, self.stage = bases, seed, stage
        self.max_unknown, self.reverse_share = max_unknown, reverse_share
        self.names = [s.name for s in species]
        self._stretches, self._starts, usable = [], [], []
        for one, share in zip(species, shares, strict=True):
            fitting = [s for s in one.train if len(s.ids) >= bases]
            left = one.train_bases - sum(len(s.ids) for s in fitting)
            if left and share:
                count = len(one.train) - len(fitting)
                warn("short-contigs", f"{one.name}: {count} stretches ({left:,} bases) below {bases:,} bases left out")
            self._stretches.append(fitting)
            self._starts.append(np.cumsum([len(s.ids) - bases + 1 for s in fitting], dtype=np.int64))
            usable.append(share if fitting else 0.0)
        if not sum(usable):
            longest = max((len(s.ids) for one in species for s in one.train), default=0)
            raise DataError(f"every contig is shorter than the window: longest {longest:,} bases, window {bases:,}",
                            hint="shorten the stage's context_length")  # fmt: skip
        self.shares = np.array(usable) / sum(usable)
        self._cumulative = np.cumsum(self.shares)

    def window(self, i):
        """Return window number i as (species index, ids); ids (bases,) uint8. The same for every call and rank."""
        random = np.random.Generator(np.random.Philox(key=[self.seed, self.stage], counter=[0, 0, 0, i]))
        kind = int(np.searchsorted(self._cumulative, random.random() * self._cumulative[-1], side="right"))
        kind = min(kind, len(self.names) - 1)
        starts = self._starts[kind]
        for _ in range(DRAWS):
            at = int(random.integers(starts[-1]))
            which = int(np.searchsorted(starts, at, side="right"))
            offset = at - (int(starts[which - 1]) if which else 0)
            ids = self._stretches[kind][which].ids[offset : offset + self.bases]
            if np.count_nonzero(ids == N) <= self.max_unknown * self.bases:
                break
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
