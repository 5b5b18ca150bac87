"""Training windows from a mixture of genomes.

packed stores -> allowed stretches -> share of each species -> window(i), a pure function of its number
"""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from hybridna_core.data.duplication import duplicate
from hybridna_core.data.inputs import check_input, warn
from hybridna_core.data.regions import parse_region, read_bed
from hybridna_core.data.store import open_store, scan_store
from hybridna_core.errors import DataError, UsageError
from hybridna_core.tokenizer import reverse_complement_ids


class Bases:
    """The bases of a stretch as token ids, read when they are asked for: an array, or a slice of it."""

    def __init__(self, store, start, end):
        self.store, self.start, self.end = store, start, end

    def __len__(self):
        return self.end - self.start

    def __getitem__(self, part):
        start, end, step = part.indices(len(self))
        return self.store.ids(self.start + start, self.start + max(start, end))[::step]

    def __array__(self, dtype=None, copy=None):
        return self.store.ids(self.start, self.end).astype(dtype or np.uint8, copy=False)


class Stretch(NamedTuple):
    """A piece of a contig; start and end 0-based half-open, ids: Bases, or (end - start,) uint8."""

    contig: str
    start: int
    end: int
    ids: Bases


class Stretches(Sequence):
    """Pieces of one store's contigs, in file order, as Stretch each; memory does not hold their bases.

    contigs       (n,) int64, number of each piece's contig
    starts, ends  (n,) int64, its bases by their number in the store, half-open
    """

    def __init__(self, store, contigs, starts, ends):
        self.store = store
        self.contigs, self.starts, self.ends = (np.asarray(a, dtype=np.int64) for a in (contigs, starts, ends))

    def __len__(self):
        return len(self.contigs)

    def __getitem__(self, i):
        if isinstance(i, slice):
            return Stretches(self.store, self.contigs[i], self.starts[i], self.ends[i])
        contig, start, end = int(self.contigs[i]), int(self.starts[i]), int(self.ends[i])
        offset = int(self.store.offsets[contig])
        return Stretch(self.store.name(contig), start - offset, end - offset, Bases(self.store, start, end))

    @cached_property
    def known(self):
        """Bases that are not N."""
        return int((self.ends - self.starts).sum() - self.store.count_unknown(self.starts, self.ends).sum())


class Species(NamedTuple):
    """One genome: what is trained on, and what is held out."""

    name: str
    train: Stretches
    valid: Stretches

    @property
    def train_bases(self):
        """Known bases that are trained on."""
        return self.train.known

    @property
    def valid_bases(self):
        """Known bases that are held out."""
        return self.valid.known

    def fingerprint(self, masked=False):
        """Digest what is trained on and held out: places and content, with `masked` also what is in lower case.

        The same content in another file, of another time, in another place, gives the same digest.
        """
        digest, store = hashlib.sha256(), self.train.store
        for part in (self.train, self.valid):
            digest.update(f"{len(part)} ".encode())
            for contig in np.unique(part.contigs).tolist():
                digest.update(store.name(contig).encode() + b"\n")
                digest.update(store.digests[contig, : 2 if masked else 1].tobytes())
            counts = np.unique(part.contigs, return_counts=True)[1]
            offsets = store.offsets[part.contigs]
            for column in (counts, part.starts - offsets, part.ends - offsets):
                digest.update(column.astype("<i8").tobytes())
        return digest.hexdigest()[:16]


def load_species(config, *, exclude=None, scan=False, **reading):
    """Open one species of a run file, packing its genome first if that is not done.

    exclude  contig -> list of (start, end), 0-based half-open: excluded beside what the run file excludes
    scan     learn where bases are but not which: nothing is packed, and windows cannot be read
    reading  options of `open_genome`
    Raises the genome reader's errors, UsageError for regions that do not fit, and BED reader's errors.

    What is excluded is neither trained on nor held out; held-out regions that touch or overlap count once.
    """
    store = (scan_store if scan else open_store)(config.fasta, **reading)
    if config.valid == ("all",):
        held = [(i, 0, int(length)) for i, length in enumerate(store.lengths)]
    else:
        held = _place(config.valid, store, config.name)
    barred = _place(config.exclude, store, config.name)
    held += _read_places(config.valid_bed, store)
    barred += _read_places(config.exclude_bed, store)
    for contig, parts in (exclude or {}).items():
        if contig in store.contigs:
            length = store.contigs[contig]
            barred += [(store.numbers[contig], s, min(e, length)) for s, e in parts if s < length]
    held, barred = _by_contig(held), _by_contig(barred)
    train, valid = [], []
    plain = np.ones(len(store.lengths), dtype=bool)
    for contig in sorted({*held, *barred}):
        plain[contig] = False
        length, out, aside = int(store.lengths[contig]), barred.get(contig, []), held.get(contig, [])
        rest = list(_left_over(length, aside))
        for kept, taken in ((train, aside), (valid, rest)):
            kept += [(contig, start, end) for start, end in _left_over(length, taken + out)]
    whole = np.flatnonzero(plain)
    untouched = np.stack([whole, np.zeros_like(whole), store.lengths[whole]], axis=1)
    rows = np.concatenate([np.array(train, dtype=np.int64).reshape(-1, 3), untouched])
    rows = rows[np.lexsort((rows[:, 1], rows[:, 0]))]
    return Species(config.name, _stretches(store, rows), _stretches(store, np.array(valid, dtype=np.int64)))


def _stretches(store, places):
    contigs, starts, ends = places.reshape(-1, 3).T
    offsets = store.offsets[contigs]
    return Stretches(store, contigs, starts + offsets, ends + offsets)


def _place(texts, store, species):
    """Turn region strings into (contig number, start, end); a contig's whole name comes before any other reading."""
    found = []
    for text in texts:
        if text in store.contigs:
            found.append((store.numbers[text], 0, store.contigs[text]))
            continue
        try:
            region = parse_region(text, store)
        except UsageError as error:
            raise UsageError(error.what, where=f"species {species}", hint=error.hint) from None
        found.append((store.numbers[region.contig], region.start, region.end))
    return found


def _read_places(path, store):
    """Read a BED file of a run file into (contig number, start, end); what passes a contig's end is cut."""
    if path is None:
        return []
    regions = read_bed(check_input(path, random_access=True), store, clip=True, use_strand=False)
    return [(store.numbers[r.contig], r.start, r.end) for r in regions if r.status == "ok"]


def read_exclusions(path):
    """Read a BED file that holds for every species: contig -> list of (start, end), 0-based half-open."""
    found = {}
    for region in read_bed(check_input(path, random_access=True), use_strand=False):
        if region.status == "ok":
            found.setdefault(region.contig, []).append((region.start, region.end))
    return found


def check_exclusions(path, exclusions, species):
    """Warn of excluded contigs that no species has; raise DataError when that is so of them all."""
    stores = [one.train.store for one in species]
    unknown = [contig for contig in exclusions if not any(contig in store.contigs for store in stores)]
    close = next((name for contig in unknown[:1] for store in stores if (name := store.suggest(contig))), None)
    hint = f"did you mean {close}?" if close else "names must be those of the genomes"
    if unknown and len(unknown) == len(exclusions):
        raise DataError(f"no species has any of its contigs (the first: {unknown[0]})", where=path, hint=hint)
    for contig in unknown:
        warn("unknown_contig", f"{path}: no species has a contig {contig}; it excludes nothing")


def _by_contig(places):
    found = {}
    for contig, start, end in places:
        found.setdefault(contig, []).append((start, end))
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


def mixture_weights(bases, tokens, *, power, max_passes, given=None, usable=None, classes=None, class_shares=None):
    """Return each species' share of the training windows; shares sum to 1.

    bases         known training bases per species
    tokens        training tokens of the whole run
    given         fixed weights or None, per species; the others get bases ** power
    usable        bases that windows can reach, per species; all of them when None
    classes       class of each species, and class_shares the share of each class before normalising: shares are dealt
                  out among classes first, then inside each; None: among all species at once

    No species is read more than max_passes times: what is over is spread among the rest (of its class as long as
    that can take it). Raises UsageError when all of them together are too small for that.
    """
    given = given or [None] * len(bases)
    wish = np.array([b**power if w is None else w for b, w in zip(bases, given, strict=True)], dtype=np.float64)
    usable = np.array(bases if usable is None else usable, dtype=np.float64)
    limit = usable * max_passes / tokens
    if limit.sum() < 1:
        passes = tokens / max(1.0, usable.sum())
        what = f"is {max_passes:g}, but {tokens:,} tokens read the {int(usable.sum()):,} bases {passes:,.1f} times"
        raise UsageError(what, where="mixture.max_passes", hint="allow more passes, take fewer steps or more data")
    if classes is None:
        return _deal(1, wish, limit)
    members = {name: np.array([c == name for c in classes]) for name in class_shares}
    most = np.array([limit[which].sum() for which in members.values()])
    dealt = _deal(1, np.array(list(class_shares.values()), dtype=np.float64), most)
    share = np.zeros(len(bases))
    for (name, which), part in zip(members.items(), dealt, strict=True):
        if not part:
            warn("empty-class", f"class {name!r} has no bases that windows can reach; its share goes to the others")
            continue
        share[which] = _deal(part, wish[which], limit[which])
    return share


def _deal(total, wish, limit):
    """Deal a total out by the ratio of the wishes, none above its limit; limits must come to the total."""
    share = np.zeros(len(wish))
    capped = limit == 0
    while not capped.all():
        free = total - share[capped].sum()
        share[~capped] = free * wish[~capped] / wish[~capped].sum()
        over = ~capped & (share > limit)
        if not over.any():
            break
        share[over] = limit[over]
        capped |= over
    return share


def find_starts(stretches, bases, most_unknown):
    """Find where windows may start: whole inside a stretch, with at most so many unknown bases.

    returns  runs of starts, by their number in the store, half-open and in order, as three (n,) int64 arrays: the
             number of the stretch, the first start, the end of the starts
    """
    first, last = stretches.starts, stretches.ends - bases + 1
    unknown = stretches.store.unknown
    fits = last > first
    # Runs of N are few, so only stretches that hold one are looked at one by one.
    begin = (
        np.searchsorted(unknown[:, 1], stretches.starts, side="right") if len(unknown) else np.zeros(len(first), int)
    )
    end = np.searchsorted(unknown[:, 0], stretches.ends, side="left") if len(unknown) else begin
    plain = np.flatnonzero(fits & (begin == end))
    found = [(plain, first[plain], last[plain])]
    for i in np.flatnonzero(fits & (begin < end)).tolist():
        starts, ends = _starts_beside(unknown[begin[i] : end[i]], int(first[i]), int(last[i]), bases, most_unknown)
        found.append((np.full(len(starts), i), starts, ends))
    which, starts, ends = (np.concatenate(column).astype(np.int64) for column in zip(*found, strict=True))
    order = np.argsort(starts, kind="stable")
    return which[order], starts[order], ends[order]


def _starts_beside(runs, first, last, bases, most_unknown):
    """Return the runs of starts in [first, last) of windows with at most so many bases in `runs` of N.

    The number of unknown bases in a window is linear between places where either end of it meets an end of a run.
    """
    edges = np.concatenate(([first, last], runs.ravel(), runs.ravel() - bases))
    edges = np.unique(edges[(edges >= first) & (edges <= last)])
    total = np.concatenate(([0], np.cumsum(runs[:, 1] - runs[:, 0])))

    def up_to(base):
        run = np.searchsorted(runs[:, 0], base, side="left")
        return total[run] - np.where(run > 0, np.maximum(0, runs[run - 1, 1] - base), 0)

    inside = up_to(edges + bases) - up_to(edges)
    a, b, left, right = edges[:-1], edges[1:], inside[:-1], inside[1:]
    slope = (right - left) // (b - a)
    spare = most_unknown - left
    starts = np.where(slope < 0, np.maximum(a, a - spare), a)
    ends = np.where(slope > 0, np.minimum(b, a + spare + 1), b)
    # On a level piece all starts are alike; elsewhere an impossible piece comes out empty.
    ends = np.where((slope == 0) & (spare < 0), starts, ends)
    kept = starts < ends
    starts, ends = starts[kept], ends[kept]
    if not len(starts):
        return starts, ends
    joined = starts[1:] == ends[:-1]
    return starts[np.concatenate(([True], ~joined))], ends[np.concatenate((~joined, [True]))]


class _Pool:
    """Every start that a window of one species may have.

    usable  known bases that windows can reach
    firsts  (runs,) first start of each run, by its number in the store
    ends    (runs,) number of starts up to the end of each run
    """

    def __init__(self, species, bases, most_unknown):
        self.train, self.store = species.train, species.train.store
        lengths = self.train.ends - self.train.starts
        which, self.firsts, lasts = find_starts(self.train, bases, most_unknown)
        self.ends = np.cumsum(lasts - self.firsts)
        # Windows of neighbouring runs overlap; each base counts once.
        reached = lasts - 1 + bases
        before = np.concatenate(([0], np.where(which[1:] == which[:-1], reached[:-1], 0)))[: len(which)]
        begin = np.maximum(self.firsts, before)
        self.usable = int((reached - begin).sum() - self.store.count_unknown(begin, reached).sum())
        reachable = np.zeros(len(lengths), dtype=bool)
        reachable[which] = True
        # Number and bases of the pieces left out, for the two reasons there are.
        self.short = int((lengths < bases).sum()), int(lengths[lengths < bases].sum())
        left_out = (lengths >= bases) & ~reachable
        self.unknown = int(left_out.sum()), int(lengths[left_out].sum())
        self.longest = int(lengths.max(initial=0))

    def start(self, at):
        """Return start number `at`, counted over all runs, by its number in the store."""
        run = int(np.searchsorted(self.ends, at, side="right"))
        return int(self.firsts[run]) + at - (int(self.ends[run - 1]) if run else 0)


class Place(NamedTuple):
    """Where a window lies; start and end 0-based half-open, strand `-`: read as its reverse complement."""

    species: str
    contig: str
    start: int
    end: int
    strand: str


class Window(NamedTuple):
    """One window: where it lies, ids (bases,) uint8 as it is read, weights (bases,) float32 of the loss or None."""

    species: str
    contig: str
    start: int
    end: int
    strand: str
    ids: np.ndarray
    weights: np.ndarray | None


class Corpus:
    """The training windows of one stage: `window(i)` for any i.

    species             list of Species
    bases               bases per window
    tokens              training tokens of the whole run, which max_passes is measured by
    weights             fixed weights or None, per species; see `mixture_weights`, also for power, max_passes, classes
    max_unknown         largest share of unknown bases in a window
    reverse_share       share of the windows that are read as their reverse complement
    soft_masked_weight  weight of lower-case bases in the loss; at 1 windows carry no weights
    duplication         share of the windows whose end becomes a tandem array, see `duplicate`

    names, shares and usable say how the windows are shared: per species its name, its share, and the known bases
    that windows can reach. Warns of contigs left out; raises DataError when no window fits anywhere.
    """

    def __init__(
        self, species, *, bases, tokens, seed=0, stage=0, power=0.7, max_passes=15.0, weights=None, max_unknown=0.05,
        reverse_share=0.5, classes=None, class_shares=None, soft_masked_weight=1.0,
        duplication=0.0,
    ):  # fmt: skip
        self.bases, self.seed, self.stage, self.reverse_share = bases, seed, stage, reverse_share
        self.soft_masked_weight, self.duplication = soft_masked_weight, duplication
        self.names = [s.name for s in species]
        self._pools = [_Pool(s, bases, int(max_unknown * bases)) for s in species]
        self.usable = [pool.usable for pool in self._pools]
        if not any(self.usable):
            self._refuse(max_unknown)
        for name, pool in zip(self.names, self._pools, strict=True):
            self._warn(name, pool.short, f"shorter than the window of {bases:,} bases")
            self._warn(name, pool.unknown, f"over {100 * max_unknown:g} % unknown bases in every window of {bases:,}")
        self.shares = mixture_weights(
            [s.train_bases for s in species], tokens, power=power, max_passes=max_passes, given=weights,
            usable=self.usable, classes=classes, class_shares=class_shares,
        )  # fmt: skip

    def _refuse(self, max_unknown):
        where = f"stage {self.stage}"
        longest = max((pool.longest for pool in self._pools), default=0)
        if not longest:
            raise DataError("there is nothing to train on: every base is held out or excluded", where=where)
        if longest < self.bases:
            what = f"every contig is shorter than the window: longest {longest:,} bases, window {self.bases:,}"
            raise DataError(what, where=where, hint="shorten the stage's context_length")
        what = f"every window of {self.bases:,} bases has over {100 * max_unknown:g} % unknown bases"
        raise DataError(what, where=where, hint="raise mixture.max_unknown")

    def _warn(self, name, left_out, why):
        number, total = left_out
        if number:
            count = "1 contig" if number == 1 else f"{number:,} contigs"
            warn("contigs-left-out", f"{name}: {count} left out ({total:,} bases): {why}")

    @cached_property
    def _drawn(self):
        """Numbers of the species that are drawn from, and where the share of each ends."""
        kinds = np.flatnonzero(self.shares > 0)
        return kinds, np.cumsum(self.shares[kinds])

    def draw(self, i):
        """Return the species number of window i, its start in the store, and whether it is read in reverse."""
        random = np.random.Generator(np.random.Philox(key=[self.seed, self.stage], counter=[0, 0, 0, i]))
        kinds, ends = self._drawn
        # Rounding may put a draw at the very end of the last share.
        found = int(np.searchsorted(ends, random.random() * ends[-1], side="right"))
        kind = int(kinds[min(found, len(kinds) - 1)])
        pool = self._pools[kind]
        start = pool.start(int(random.integers(pool.ends[-1])))
        return kind, start, random.random() < self.reverse_share

    def _name(self, kind, start, is_reverse):
        store = self._pools[kind].store
        contig = int(store.contig_at(start))
        begin = start - int(store.offsets[contig])
        return Place(self.names[kind], store.name(contig), begin, begin + self.bases, "-" if is_reverse else "+")

    def place(self, i):
        """Return where window number i lies, as a Place; nothing is read. The same for every call and rank."""
        return self._name(*self.draw(i))

    def window(self, i):
        """Return window number i. The same for every call and rank; raises DataError when its bases are damaged."""
        kind, start, is_reverse = self.draw(i)
        store, end = self._pools[kind].store, start + self.bases
        ids, weights = store.ids(start, end), None
        if self.soft_masked_weight != 1:
            weights = np.where(store.masked(start, end), self.soft_masked_weight, 1).astype(np.float32)
        if is_reverse:
            ids = reverse_complement_ids(ids)
            weights = None if weights is None else weights[::-1].copy()
        if self.duplication:
            # Numbers of their own, so that the share changes no other draw.
            random = np.random.Generator(np.random.Philox(key=[self.seed, self.stage], counter=[0, 0, 1, i]))
            if random.random() < self.duplication:
                ids, weights = duplicate(ids, weights, random)
        return Window(*self._name(kind, start, is_reverse), ids, weights)


def validation_starts(species, bases):
    """Return where validation windows may start in the held-out stretches of one species, by number in the store.

    They stand one behind the other and hold at most half unknown bases.
    """
    valid = species.valid
    pieces = [
        np.arange(a, b - bases + 1, bases) for a, b in zip(valid.starts.tolist(), valid.ends.tolist(), strict=True)
    ]
    starts = np.concatenate(pieces).astype(np.int64) if pieces else np.zeros(0, dtype=np.int64)
    return starts[valid.store.count_unknown(starts, starts + bases) <= bases // 2]


def validation_windows(species, bases, count):
    """Return up to `count` windows spread evenly over the held-out stretches of one species, as (n, bases) uint8.

    Windows never overlap and hold at most half unknown bases; fewer are returned when there are no more.
    """
    starts = validation_starts(species, bases).tolist()
    if not starts:
        return np.zeros((0, bases), dtype=np.uint8)
    chosen = sorted({i * len(starts) // count for i in range(count)} if len(starts) > count else range(len(starts)))
    return np.stack([species.valid.store.ids(starts[i], starts[i] + bases) for i in chosen])
