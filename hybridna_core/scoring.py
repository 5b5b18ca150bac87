"""The engine that scores variants, shared by the commands: what a score is, and how it is read from a model.

Variant -> data.variants.compare -> per direction: ReferencePass of the place, the alternative from its nearest snapshot
-> differences summed -> Score

The definition is that of docs/scoring.md: what is read is laid out by data.variants.compare, here it is only read.
"""

import collections
import itertools
import math
import os
import threading
import time
from typing import NamedTuple

import numpy as np
import torch

from hybridna_core.checkpoint import read_structure
from hybridna_core.data.variants import Haplotype, Piece, compare
from hybridna_core.errors import GuardError, UsageError, nearest
from hybridna_core.halves import Halves
from hybridna_core.model.likelihood import read
from hybridna_core.tokenizer import N

DEFAULT_WINDOW = 8192
DISTANCES = ("cosine", "l2")


class Score(NamedTuple):
    """What an allele ends with; numbers are None where there is no score.

    llr, forward, reverse  nats: mean of the strands, `+`, `-`
    is_edge                a contig end shortened what was read
    has_unknown            what was read held unknown bases
    distance               of the pooled hidden vectors of reference and alternative, mean of the strands
    percentile, phred      where llr lies among matched alleles
    """

    status: str
    llr: float | None = None
    is_edge: bool | None = None
    forward: float | None = None
    reverse: float | None = None
    has_unknown: bool = False
    distance: float | None = None
    percentile: float | None = None
    phred: float | None = None


class Plan(NamedTuple):
    """The numbers that define a score, checked."""

    window: int
    horizon: int
    stride: int


def make_plan(config, window, horizon, stride):
    """Fill in the defaults of window and horizon and check them against the model."""
    room = config.bases_at_once
    window = min(DEFAULT_WINDOW, room) if window is None else window
    if not 1 <= window <= room:
        what = f"is {window:,}, must be 1 to {room:,}"
        raise UsageError(what, where="--window", hint=f"this model reads {room:,} bases at once")
    horizon = max(window // 2, 1) if horizon is None else horizon
    if not 1 <= horizon <= window:
        raise UsageError(f"is {horizon:,}, must be 1 to the window of {window:,}", where="--horizon")
    if stride < 1:
        raise UsageError(f"is {stride:,}, must be at least 1", where="--stride")
    return Plan(window, horizon, stride)


def check_distance(distance):
    """Raise UsageError for a distance that does not exist."""
    if distance not in (None, *DISTANCES):
        close = nearest(distance, DISTANCES)
        hint = f"did you mean {close}?" if close else None
        raise UsageError(f"is {distance!r}, must be {' or '.join(DISTANCES)}", where="--embedding-distance", hint=hint)


def is_name(model):
    return isinstance(model, str | os.PathLike)


def name_model(model):
    return str(model) if is_name(model) else model.name


def read_config(model):
    """Return the ModelConfig of a loaded model, or of a name or folder without loading it."""
    return read_structure(model)[0] if is_name(model) else model.config


class Scorer:
    """Scores alleles; alleles of one place and neighbours share what is read of the reference.

    distance     one of DISTANCES, to measure how far the embeddings of the two alleles lie apart, too
    calibration  Calibration to find a score's place in
    tokens       read so far

    What is read together is laid out by the place alone, one row per pass, so that a score depends on nothing but its
    variant. On a CPU with several threads the two directions are read at once, each with half of them. Without a model
    nothing is read but all is counted, and scores are 0.
    """

    # Passes that are kept for each direction.
    KEPT = 2

    def __init__(self, model, genome, plan, config=None, distance=None, calibration=None):
        self.model, self.genome, self.plan, self.distance, self.tokens = model, genome, plan, distance, 0
        self.calibration = calibration
        bos = (config or model.config).bos_token_id
        self.opening = np.array([] if bos is None else [bos], dtype=np.int64)
        self.passes = {strand: collections.OrderedDict() for strand in "+-"}
        self.lock, self.halves, self.is_warm = threading.Lock(), None, False

    def score(self, allele):
        """Return the Score of an Allele; raise GuardError when the model gives no finite number."""
        if allele.variant is None:
            return Score(allele.status)
        variant = allele.variant
        status, comparisons = compare(variant, self.genome, *self.plan)
        if status != "ok":
            return Score(status)
        found = self._compare_all(variant.contig, comparisons)
        values = {strand: variant.sign * value for strand, (value, _) in found.items()}
        llr = math.fsum(values.values()) / len(values)
        distance = None
        if self.distance is not None:
            distance = math.fsum(apart for _, apart in found.values()) / len(found)
        if not math.isfinite(llr) or not math.isfinite(distance or 0):
            where = f"{variant.contig}:{variant.start + 1}"
            raise GuardError("the model gives no finite number", where=where, hint="hybridna models check FOLDER")
        is_edge = len(values) < 2 or any(c.is_short for c in comparisons)
        has_unknown = any(c.unknown_share > 0 for c in comparisons)
        place = () if self.calibration is None else self.calibration.rank(variant, llr, self.genome)
        return Score(allele.status, llr, is_edge, values.get("+"), values.get("-"), has_unknown, distance, *place)

    def compare(self, contig, comparison, plan=None):
        """Return log P(alternative) - log P(reference) in one direction, nats. plan: of the reading if not the own"""
        return self._compare(contig, comparison, plan)[0]

    def _compare_all(self, contig, comparisons):
        """Return {strand: what _compare gives}."""

        def compare_one(comparison):
            return self._compare(contig, comparison)

        threads = 1 if self.model is None or self.model.device.type != "cpu" else torch.get_num_threads()
        # The first ones make kernels and tables that one thread should make.
        if len(comparisons) < 2 or threads < 2 or not self.is_warm:
            results = [compare_one(comparison) for comparison in comparisons]
            self.is_warm = self.is_warm or bool(results)
        else:
            if self.halves is None or self.halves.threads != threads:
                self.halves = Halves(threads)
            results = self.halves.map(compare_one, comparisons)
        return {comparison.strand: result for comparison, result in zip(comparisons, results, strict=True)}

    def _compare(self, contig, comparison, plan=None):
        """Return the difference in one direction, nats, and the distance of the embeddings if there is to be one."""
        shared = self._find_pass(contig, comparison.strand, comparison.start, plan or self.plan)
        change = comparison.change - comparison.start
        end = change + len(comparison.reference)
        reference = shared.read_reference(change, end)
        alternative, vectors = shared.read_alternative(change, comparison.alternative)
        # Subtracted base by base first: sums over thousands of bases would drown the difference.
        value = float(np.sum(alternative[comparison.alternative != N] - reference[comparison.reference != N]))
        if self.distance is None:
            return value, None
        return value, measure(shared.vectors[:change], shared.vectors[change:end], vectors, self.distance)

    def _find_pass(self, *place):
        """Return the pass that begins at (contig, strand, start, plan), one of the last used or a new one."""
        passes = self.passes[place[1]]
        if place not in passes:
            passes[place] = ReferencePass(self._read, self.genome, *place, self.opening)
            if len(passes) > self.KEPT:
                passes.popitem(last=False)
        passes.move_to_end(place)
        return passes[place]

    def _read(self, tokens, reading):
        """Read tokens (n,) after a Reading.

        returns  log-probabilities (n,), nats; hidden vectors (n, hidden_size), or (n, 0) where no distance asks for
                 them; the Reading after
        """
        with self.lock:
            self.tokens += len(tokens)
        vectors = None if self.distance is None else []
        if self.model is None:
            return np.zeros(len(tokens)), np.zeros((len(tokens), 0)), None
        row = torch.from_numpy(tokens.astype(np.int64))[None].to(self.model.device)
        log_probs, reading = read(self.model, row, reading, vectors=vectors)
        hidden = torch.cat(vectors, dim=1)[0].float().cpu().numpy() if vectors else np.zeros((len(tokens), 0))
        return log_probs[0].cpu().numpy(), hidden, reading


def measure(prefix, reference, alternative, distance):
    """Return the distance of two alleles' embeddings: the mean vector of prefix and what follows, for each of them.

    prefix, reference, alternative  (n, hidden_size), of each token of the prefix and of either suffix
    distance                        "cosine", 1 - cosine of the angle; "l2", the length of the difference
    """
    before = prefix.sum(axis=0, dtype=np.float64)
    a, b = (
        (before + suffix.sum(axis=0, dtype=np.float64)) / (len(prefix) + len(suffix))
        for suffix in (reference, alternative)
    )
    if distance == "l2":
        return float(np.linalg.norm(a - b))
    # Half the squared distance of unit vectors: 1 - a.b would lose the digits of a small angle.
    with np.errstate(invalid="ignore"):
        apart = a / np.linalg.norm(a) - b / np.linalg.norm(b)
    return float(apart @ apart / 2)


class ReferencePass:
    """The reference read once from one place on, as far as is asked for, with snapshots to go on from.

    start    where it begins, counted from where reading begins; offsets count from there
    read     tokens, Reading -> log-probabilities, hidden vectors, Reading

    Changes lie `first` to `last` bases after the start: the stride moves the start by less than itself, and only at
    the contig's very end may they lie anywhere before. The pieces that are read end at fixed offsets, so that the
    numbers do not depend on which variants are asked for: at `first` and every `near` bases from there to `last`, at
    the window's end, and every `step` from there, where unknown bases move the horizon on.
    """

    def __init__(self, read, genome, contig, strand, start, plan, opening):
        length = genome.contigs[contig]
        self.reference = Haplotype(genome, contig, [Piece(0, length)], strand == "-")
        self.read, self.start, self.opening = read, start, opening
        first, self.last, near, step = lay_out(plan, length)
        if start == 0:
            self.ends = itertools.count(step, step)
        else:
            snapshots = (end for end in range(first, self.last + 1, near) if end > 0)
            self.ends = itertools.chain(snapshots, itertools.count(plan.window, step))
        self.log_probs, self.vectors, self.reading = np.zeros(0), None, None
        # Offset -> Reading; before the first token there is none.
        self.snapshots = {0: None}

    def read_reference(self, start, end):
        """Return the log-probability of each base from one offset to another, nats; NaN at N."""
        while len(self.log_probs) < end:
            self._extend(min(next(self.ends), self.reference.length - self.start))
        return self.log_probs[start:end]

    def read_alternative(self, change, ids):
        """Return log-probability, nats, and hidden vector of each base of an allele that the reference gives way to.

        change  offset where it does. The reference must have been read beyond that offset.
        """
        nearest = max(offset for offset in self.snapshots if offset <= change)
        tokens = np.concatenate([self._tokens(nearest, change), ids])
        log_probs, vectors, _ = self.read(tokens, self.snapshots[nearest])
        return log_probs[len(tokens) - len(ids) :], vectors[len(tokens) - len(ids) :]

    def _tokens(self, start, end):
        """Tokens of the reference between two offsets, after the start token if they begin at 0."""
        ids = self.reference.ids(self.start + start, self.start + end)
        return np.concatenate([self.opening, ids]) if start == 0 else ids

    def _extend(self, end):
        done = len(self.log_probs)
        log_probs, vectors, self.reading = self.read(self._tokens(done, end), self.reading)
        self.log_probs = np.concatenate([self.log_probs, log_probs[done - end :]])
        # The start token is no part of an embedding.
        vectors = vectors[done - end :]
        self.vectors = vectors if self.vectors is None else np.concatenate([self.vectors, vectors])
        if end <= self.last:
            self._keep(end)

    def _keep(self, end):
        if self.reading is not None:
            # Keys of all before become common to whatever goes on from here, and earlier snapshots look into the same.
            self.reading = self.reading.repeat(1)
            later = self.reading.state
            earlier = {offset: reading for offset, reading in self.snapshots.items() if reading is not None}
            for offset, reading in earlier.items():
                self.snapshots[offset] = reading._replace(state=reading.state.within(later))
        self.snapshots[end] = self.reading


def lay_out(plan, length):
    """Return where a pass's snapshots lie on a contig: first and last offset of a change, the steps between them there
    and along a whole contig's end.

    Half a step is what an alternative reads again on average. The stride has eight steps of at least 8 bases, a
    contig's end about sixteen of at least 64.
    """
    last = plan.window - plan.horizon
    step = max(64, min(last, length) // 16)
    return max(last - plan.stride + 1, 0), last, min(step, max(8, plan.stride // 8)), step


def estimate(config, plan, tokens, device, dtype, distance=None):
    """Return bytes of memory and seconds that reading so many tokens takes; a layer of each kind is timed."""
    from hybridna_core.checkpoint import choose_device, choose_dtype
    from hybridna_core.model.hybrid import count_parameters
    from hybridna_core.model.state import bytes_per_row

    item = 4 if dtype == "float32" else torch.empty(0, dtype=choose_dtype(dtype)).element_size()
    first, last, near, _ = lay_out(plan, plan.window)
    # In each direction a pass holds the keys of a window once and a few snapshots; an alternative adds a row.
    held = 2 * Scorer.KEPT * (1 + (last - first) // near) * bytes_per_row(config, 0, item)
    held += 2 * (Scorer.KEPT + 1) * bytes_per_row(config, plan.window, item)
    held += 0 if distance is None else 8 * (Scorer.KEPT + 1) * plan.window * config.hidden_size
    seconds = tokens * seconds_per_token(config, choose_device(device), choose_dtype(dtype))
    return count_parameters(config) * item + held, seconds


def seconds_per_token(config, device, dtype, length=1024):
    """Time one layer of each kind that the model has; return seconds per token of all its layers."""
    import dataclasses

    from hybridna_core.model.hybrid import HybridLM

    total = 0.0
    for kind in dict.fromkeys(config.layer_types):
        small = HybridLM(dataclasses.replace(config, layer_types=(kind,)), device=device, dtype=dtype)
        tokens = torch.full((1, length), 7, device=device)
        with torch.no_grad():
            small(tokens)
            start = time.perf_counter()
            small(tokens)[0].sum().item()
        total += config.layer_types.count(kind) * (time.perf_counter() - start) / length
    return total
