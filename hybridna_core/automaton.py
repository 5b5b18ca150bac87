"""Constraints as one finite automaton over A, C, G, T, and which of its states can still be completed.

patterns -> states by subset construction; letters per place, range of G and C -> layers, computed from the end
backwards: for each state, the numbers of G and C that its completions can have, as a set of bits
"""

import collections
import math

import numpy as np

BASES = "ACGT"
STATES_LIMIT, BYTES_LIMIT = 100_000, 2**30


class TooLarge(Exception):
    """The automaton or its layers would take too much memory."""


class Automaton:
    """Tells which bases may follow a prefix so that the whole can still satisfy every constraint.

    patterns   list of patterns, each a list of letters that fit its places; the first `forbidden` of them must
               not occur, the others must occur at least once
    allowed    per place, prompt included, the letters that may stand there
    counts     smallest and largest number of G and C of the whole, or None
    prompt     bases that come first

    A prefix is a pair of whole numbers: state, and G and C generated so far. `start` is that of the prompt.
    """

    def __init__(self, patterns, forbidden, allowed, counts, prompt=""):
        self.length = len(allowed) - len(prompt)
        self._read_patterns(patterns, forbidden)
        state = self._follow(prompt)
        is_alive = state is not None and all(base in allowed[i] for i, base in enumerate(prompt))
        self._explore(state if is_alive else (0, 0))
        self._allowed = np.array([[base in letters for base in BASES] for letters in allowed[len(prompt) :]])
        given = sum(base in "GC" for base in prompt)
        self._counts_gc = counts is not None
        # Bit i of a set stands for i more G and C; without a range every number is as good as 0.
        bits = self.length + 1 if self._counts_gc else 1
        self._words = -(-bits // 64)
        self._gc = np.array([0, 1, 1, 0] if self._counts_gc else [0, 0, 0, 0])
        self._stride = max(1, math.isqrt(self.length))
        needed = 8 * self._words * (len(self._moves) * 2 * (self._stride + 2) + 8 * bits)
        if needed > BYTES_LIMIT:
            raise TooLarge(f"{len(self._moves):,} states, {needed / 2**30:.1f} GiB")
        low, high = (int(count) - given for count in counts) if self._counts_gc else (0, 0)
        numbers = np.arange(64 * self._words)
        more = numbers + np.arange(bits)[:, None]
        self._wanted = _pack((more >= low) & (more <= high) & (numbers < bits))
        self._keep_layers()
        self.start = 0, 0
        self.is_satisfiable = is_alive and bool((self._layer(0)[0] & self._wanted[0]).any())

    def live(self, step, states, counts):
        """Tell which base may come next after prefixes of `step` generated bases.

        states, counts  (rows,) int64
        returns         (rows, 4) bool; every live prefix has at least one
        """
        following = self._layer(step + 1)[self._moves[states]]
        wanted = self._wanted[np.minimum(counts[:, None] + self._gc, len(self._wanted) - 1)]
        return (following & wanted).any(axis=2) & self._allowed[step]

    def move(self, states, counts, bases):
        """Return states and counts after one base each. bases (rows,) 0 to 3"""
        return self._moves[states, bases], counts + self._gc[bases]

    def count(self, limit):
        """Return how many sequences satisfy everything, or `limit` when they are at least as many."""
        prefixes = {self.start: 1}
        for step in range(self.length):
            # Each live prefix leads to one sequence at least, so the number of them only grows.
            if sum(prefixes.values()) >= limit:
                return limit
            keys = np.array(list(prefixes), dtype=np.int64)
            live = self.live(step, keys[:, 0], keys[:, 1])
            found = collections.Counter()
            for base in range(4):
                states, counts = self.move(keys[:, 0], keys[:, 1], np.full(len(keys), base))
                for key, state, count, is_live in zip(prefixes, states, counts, live[:, base], strict=True):
                    if is_live:
                        found[int(state), int(count)] += prefixes[key]
            prefixes = found
        return min(limit, sum(prefixes.values()))

    def _read_patterns(self, patterns, forbidden):
        """Lay all patterns side by side: bit i of a set of places says that a pattern fits up to place i."""
        self._starts = self._barred = 0
        self._fits, self._ends, place = [0, 0, 0, 0], [], 0
        self._places = []
        for number, pattern in enumerate(patterns):
            self._starts |= 1 << place
            first = place
            for letters in pattern:
                for i, base in enumerate(BASES):
                    self._fits[i] |= (base in letters) << place
                place += 1
            if number < forbidden:
                self._barred |= 1 << (place - 1)
            else:
                self._ends.append(1 << (place - 1))
                self._places.append((1 << place) - (1 << first))

    def _step(self, state, base):
        """Return the state (places, patterns that have occurred) after a base, None when a forbidden one occurs."""
        places, seen = state
        places = ((places << 1) | self._starts) & self._fits[base]
        if places & self._barred:
            return None
        for i, (end, own) in enumerate(zip(self._ends, self._places, strict=True)):
            if places & end:
                seen |= 1 << i
            if seen >> i & 1:
                # What has occurred need not be followed any more.
                places &= ~own
        return places, seen

    def _follow(self, prompt):
        state = 0, 0
        for base in prompt:
            state = state and self._step(state, BASES.index(base))
        return state

    def _explore(self, first):
        """Number all states that can be reached, the first one 0; the last number is where nothing leads on."""
        numbers, queue, moves = {first: 0}, collections.deque([first]), []
        while queue:
            state = queue.popleft()
            row = []
            for base in range(4):
                after = self._step(state, base)
                if after is not None and after not in numbers:
                    if len(numbers) == STATES_LIMIT:
                        raise TooLarge(f"over {STATES_LIMIT:,} states")
                    numbers[after] = len(numbers)
                    queue.append(after)
                row.append(-1 if after is None else numbers[after])
            moves.append(row)
        dead = len(numbers)
        self._moves = np.array([*moves, [dead] * 4], dtype=np.int64)
        self._moves[self._moves == -1] = dead
        every = (1 << len(self._ends)) - 1
        self._accepts = np.array([*(seen == every for _, seen in numbers), False])

    def _keep_layers(self):
        """Compute all layers from the end, and keep every `stride`-th; those between are computed again when asked."""
        layer = np.zeros((len(self._moves), self._words), dtype=np.uint64)
        layer[self._accepts, 0] = 1
        self._kept, self._block, self._block_start = {self.length: layer}, {}, -1
        for step in range(self.length - 1, -1, -1):
            layer = self._before(layer, step)
            if step % self._stride == 0:
                self._kept[step] = layer

    def _layer(self, step):
        """Return the sets of all states after `step` generated bases. (states, words) uint64"""
        if step in self._kept:
            return self._kept[step]
        start = step - step % self._stride
        if start != self._block_start:
            last = min(start + self._stride, self.length)
            layer, self._block, self._block_start = self._kept[last], {}, start
            for i in range(last - 1, start, -1):
                self._block[i] = layer = self._before(layer, i)
        return self._block[step]

    def _before(self, layer, step):
        """Return the sets before one more base, from those after it."""
        found = np.zeros_like(layer)
        shifted = _shift(layer) if self._counts_gc else layer
        for base in range(4):
            if self._allowed[step, base]:
                found |= (shifted if self._gc[base] else layer)[self._moves[:, base]]
        return found


def _shift(sets):
    """Add one to every member of sets. (rows, words) uint64"""
    found = sets << np.uint64(1)
    found[:, 1:] |= sets[:, :-1] >> np.uint64(63)
    return found


def _pack(members):
    """Turn (rows, bits) bool into (rows, words) uint64, the first bit the lowest."""
    return np.packbits(members, axis=1, bitorder="little").view("<u8").astype(np.uint64)
