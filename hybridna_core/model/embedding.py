"""Sequences to vectors: many at once, in their order, each as if it were alone.

base ids -> strands -> windows where too long -> jobs of one row length, read together -> pooled, joined, averaged
"""

import collections
import itertools

import numpy as np
import torch

from hybridna_core.errors import GuardError
from hybridna_core.model.heads import Pool, Pooler, longest_input, read_rows, row_length, rows_at_once
from hybridna_core.tokenizer import reverse_complement_ids

LONG = ("mark", "windows", "stream")
# Sequences that may wait for others of their length, and bytes of vectors that may wait with them.
AHEAD, AHEAD_BYTES = 512, 64 * 2**20


class Embedder:
    """Embeds sequences of base ids; how many are read together changes no number.

    layers           depths as in HybridLM.read_layers
    average_strands  take the mean of the vectors of a sequence and of its reverse complement
    batch_size       rows per pass, or "auto"
    long             what becomes of a sequence longer than the model reads at once: `windows` of nearly equal length,
                     each read by itself and pooled as if they were one; `stream`, one pass with the state carried on,
                     where attention sees all that came before
    """

    def __init__(self, model, pool, echo=None, layers=None, average_strands=False, batch_size="auto", long="stream"):
        self.model, self.pool, self.echo, self.average_strands = model, pool, echo, average_strands
        self.layers = (model.config.num_hidden_layers + 1,) if layers is None else layers
        self.batch_size, self.long = batch_size, long
        self.longest = longest_input(model.config, echo)

    def embed(self, items):
        """Yield (key, vectors) for each (key, ids) of an iterable, in its order; ids None gives vectors None.

        vectors  (layers, hidden) float32, (layers, n, hidden) for per-base
        Raises GuardError, naming the key, where the model gives no finite number.
        """
        waiting, groups = collections.deque(), {}
        held = 0
        for key, ids in items:
            item = _Item(key, [] if ids is None else self._jobs(ids), 0 if ids is None else len(ids))
            waiting.append(item)
            held += self._bytes(item)
            for job in item.jobs:
                group = groups.setdefault((job.row, job.pool), [])
                group.append(job)
                if len(group) >= rows_at_once(self.model, job.row, self.batch_size):
                    self._read(groups.pop((job.row, job.pool)))
            while waiting and (len(waiting) > AHEAD or held > AHEAD_BYTES or waiting[0].is_done):
                held -= self._bytes(waiting[0])
                yield self._finish(waiting.popleft(), groups)
        while waiting:
            yield self._finish(waiting.popleft(), groups)

    def _bytes(self, item):
        vectors = item.length if self.pool.kind == "per-base" else 1
        return 4 * vectors * len(self.layers) * self.model.config.hidden_size

    def _jobs(self, ids):
        strands = [ids, reverse_complement_ids(ids)] if self.average_strands else [ids]
        edges = cut_windows(len(ids), self.longest if self.long == "windows" else len(ids))
        pool = self.pool if len(edges) == 2 else Pool("per-base")
        jobs = []
        for strand, sequence in enumerate(strands):
            for start, stop in itertools.pairwise(edges):
                row = row_length(self.model.config, stop - start, self.echo)
                jobs.append(_Job(strand, start, sequence[start:stop], row, pool))
        return jobs

    def _read(self, jobs):
        """Read jobs of one row length and pool; where GPU memory runs out, fewer at once."""
        rows = max(rows_at_once(self.model, jobs[0].row, self.batch_size), len(jobs))
        while True:
            try:
                for i in range(0, len(jobs), rows):
                    some = jobs[i : i + rows]
                    found = read_rows(self.model, [job.ids for job in some], some[0].pool, self.echo, self.layers, rows)
                    for job, vectors in zip(some, found, strict=True):
                        job.vectors = vectors
                return
            except torch.OutOfMemoryError:
                if rows == 1:
                    raise
                rows //= 2

    def _finish(self, item, groups):
        """Join the vectors of an item's jobs; those that are still waiting for others are read now."""
        for job in item.jobs:
            if job.vectors is None:
                self._read(groups.pop((job.row, job.pool)))
        if not item.jobs:
            return item.key, None
        strands = []
        for strand in range(1 + self.average_strands):
            jobs = [job for job in item.jobs if job.strand == strand]
            vectors = jobs[0].vectors if jobs[0].pool == self.pool and len(jobs) == 1 else self._join(jobs, item.length)
            # Both strands in the order of the sequence.
            strands.append(vectors[:, ::-1] if strand and self.pool.kind == "per-base" else vectors)
        vectors = strands[0] if len(strands) == 1 else (strands[0] + strands[1]) / np.float32(2)
        # NaN means `no vector` in an output, so it must not come from anywhere else.
        if not np.isfinite(vectors).all():
            hint = "check its weights, or use float32"
            raise GuardError("the model's output is not finite", where=str(item.key), hint=hint)
        return item.key, vectors

    def _join(self, jobs, length):
        poolers = [Pooler(self.pool, 0, length) for _ in self.layers]
        for job in jobs:
            for pooler, vectors in zip(poolers, job.vectors, strict=True):
                pooler.add(torch.from_numpy(vectors), job.start)
        return np.stack([pooler.vectors().numpy() for pooler in poolers])


def cut_windows(length, longest):
    """Return the edges of as few windows of nearly equal length as need be, none above `longest`."""
    count = -(-length // longest)
    return [length * i // count for i in range(count + 1)]


def count_tokens(config, length, echo, average_strands, long):
    """Return how many passes an Embedder makes over a sequence of so many bases, and how many tokens they read."""
    edges = cut_windows(length, longest_input(config, echo) if long == "windows" else length)
    rows = [row_length(config, stop - start, echo) for start, stop in itertools.pairwise(edges)]
    return len(rows) * (1 + average_strands), sum(rows) * (1 + average_strands)


class _Job:
    """One row to read: the window of a strand that begins at `start`."""

    def __init__(self, strand, start, ids, row, pool):
        self.strand, self.start, self.ids, self.row, self.pool = strand, start, ids, row, pool
        self.vectors = None


class _Item:
    """A sequence on its way: its key, its jobs and its length."""

    def __init__(self, key, jobs, length):
        self.key, self.jobs, self.length = key, jobs, length

    @property
    def is_done(self):
        return all(job.vectors is not None for job in self.jobs)
