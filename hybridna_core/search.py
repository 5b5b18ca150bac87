"""Ways through the tree of sequences: draws, and beams; one pass per live beam and base, states follow their parents.

Reading of label and prompt -> log-probabilities of the next base -> constraints bar bases -> drawn or ranked ->
Reading.gather of the parents, slice by slice -> one more base
"""

import dataclasses
import time
from typing import NamedTuple

import numpy as np
import torch

from hybridna_core.errors import GuardError, UsageError
from hybridna_core.memory import free_bytes, spell_bytes
from hybridna_core.model.decode import make_graph
from hybridna_core.model.hybrid import HybridLM
from hybridna_core.model.likelihood import Reading, read
from hybridna_core.model.state import bytes_per_row
from hybridna_core.tokenizer import BASE_IDS

# Rows per pass when sampling: always as many, sequence i always in row i % 16, so that results do not depend on n.
SAMPLE_ROWS = 16
# Beams per pass where memory does not allow more; and what states of one layer they have on a CPU where it does, half
# of the largest block that glibc keeps.
SLICE_ROWS, CPU_SLICE_BYTES = 64, 2**24


class Sampling(NamedTuple):
    """How to draw: `temperature` divides log-probabilities; the `top_k` likeliest, or the fewest that reach `top_p`."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0


class Beams(NamedTuple):
    """How to search: `width` beams in `groups` of equal size, one group after the other at each step.

    penalty  nats taken off a base for each earlier group, times the share of that group's beams that chose it there
    """

    width: int
    groups: int = 1
    penalty: float = 0.0


class Found(NamedTuple):
    """What a search found. ids (rows, length) int64; log_probs (rows,) the model's own, nats"""

    ids: np.ndarray
    log_probs: np.ndarray


def check_memory(config, device, dtype, given, length, beams):
    """Raise UsageError when the search needs more memory than is free, naming the largest number that fits.

    given  tokens before the first generated base
    beams  Beams, or None for sampling
    """
    free = free_bytes(device)
    if free is None:
        return
    per_row, fixed = count_bytes(config, device, dtype, given, length, beams)
    rows = SAMPLE_ROWS if beams is None else beams.width
    if fixed + rows * per_row <= free:
        return
    what = f"{rows:,} sequences of {length:,} bases need about {spell_bytes(fixed + rows * per_row)}"
    fits = f"{spell_bytes(free)} are free"
    if beams is not None:
        fits += f", enough for {max(0, (free - fixed) // per_row):,} beams"
    raise UsageError(what, where="--length" if beams is None else "--num-beams", hint=fits)


def count_bytes(config, device, dtype, given, length, beams):
    """Return the bytes that a search needs at least for each row, and besides; arguments as of `check_memory`."""
    per_row = bytes_per_row(config, given + length, torch.finfo(dtype).bits // 8)
    if beams is None:
        # The old and the new state stand side by side, and one layer's update takes a few copies of its own.
        return 3 * per_row, 0
    # In slices, old states go as new ones come; besides, what is kept of each step.
    return int(1.15 * per_row) + 24 * length + 200, 4 * min(SLICE_ROWS, beams.width) * per_row


def count_slice(config, device, dtype, given, length, beams):
    """Return how many beams to read in one pass, few where memory is short.

    On a CPU as many as leave each layer's states in a block that the allocator uses again: a larger one goes back to
    the system, and the pages of the next are mapped and cleared at every base. Elsewhere all.
    """
    most = beams.width
    if torch.device(device).type == "cpu":
        layer = 4 * config.mamba_n_heads * config.mamba_d_head * config.mamba_d_state
        most = min(most, max(CPU_SLICE_BYTES // layer, SLICE_ROWS))
    free = free_bytes(device)
    per_row = bytes_per_row(config, given + length, torch.finfo(dtype).bits // 8)
    # Old and new states of a slice stand side by side.
    is_ample = free is None or free > (1.5 * beams.width + most) * per_row
    return most if is_ample else min(SLICE_ROWS, beams.width)


def count_seconds(config, device, dtype, given, length, rows):
    """Return about how many seconds reading `length` bases in so many rows takes; a layer of each kind is timed.

    given  tokens before
    """
    width, total = min(rows, SLICE_ROWS), 0.0
    for kind in dict.fromkeys(config.layer_types):
        small = HybridLM(dataclasses.replace(config, layer_types=(kind,)), device=device, dtype=dtype)
        seconds = []
        with torch.no_grad():
            _, state = small(torch.full((width, given + length // 2), BASE_IDS[0], device=device))
            for _ in range(3):
                began = time.perf_counter()
                small(torch.full((width, 1), BASE_IDS[0], device=device), state)[0].sum().item()
                seconds.append(time.perf_counter() - began)
        total += config.layer_types.count(kind) * min(seconds)
    return total * length * -(-rows // width)


def draw_block(model, reading, length, first, sampling, automaton=None, advance=None, graph=None):
    """Sample SAMPLE_ROWS sequences, the first with index `first`; return them as Found.

    reading    of one row: label and prompt
    automaton  Automaton of the constraints; what it bars is left out before a base is drawn
    advance    called with the number of bases of this block so far
    graph      StepGraph of SAMPLE_ROWS rows, or None: steps go one by one
    """
    ids, log_probs = np.zeros((SAMPLE_ROWS, length), dtype=np.int64), np.zeros(SAMPLE_ROWS)
    draws = np.stack([uniforms(sampling.seed, first + i, length) for i in range(SAMPLE_ROWS)])
    reading, rows = reading.repeat(SAMPLE_ROWS), np.arange(SAMPLE_ROWS)
    if graph is not None:
        graph.load(reading)
    states, counts = _start(automaton, SAMPLE_ROWS)
    for step in range(length):
        own = next_log_probs(reading)
        check_finite(own, step, "sequence", first)
        usable = own
        if automaton is not None:
            usable = np.where(automaton.live(step, states, counts), own, -np.inf)
        chosen = choose(usable, draws[:, step], sampling.temperature, sampling.top_k, sampling.top_p)
        if automaton is not None:
            states, counts = automaton.move(states, counts, chosen)
        ids[:, step] = np.array(BASE_IDS)[chosen]
        log_probs += own[rows, chosen]
        if step + 1 < length:
            reading = append(model, reading, ids[:, step]) if graph is None else graph.append(ids[:, step])
        if advance is not None:
            advance(step + 1)
    return Found(ids, log_probs)


def uniforms(seed, index, count):
    """Return the random numbers of one sequence, in [0, 1): the t-th depends on (seed, index, t) alone.

    Philox counts, so the t-th number is a function of key and t; raw bits, as numpy promises only those.
    """
    raw = np.random.Philox(key=np.array([seed, index], dtype=np.uint64)).random_raw(count)
    return (raw >> np.uint64(11)) * 2.0**-53


def choose(log_probs, draws, temperature=None, top_k=None, top_p=None):
    """Pick one base per row by inverting the cumulative distribution over A, C, G, T.

    log_probs  (rows, 4), minus infinity for bases that are barred
    draws      (rows,) in [0, 1)
    returns    (rows,) 0 to 3
    """
    scaled = log_probs - log_probs.max(axis=1, keepdims=True)
    # A temperature close to 0 sends all but the likeliest to minus infinity.
    with np.errstate(over="ignore"):
        weights = np.exp(scaled / (temperature or 1))
    weights /= weights.sum(axis=1, keepdims=True)
    # Likeliest first; equal ones in the order A, C, G, T.
    order = np.argsort(-weights, axis=1, kind="stable")
    ranked = np.take_along_axis(weights, order, axis=1)
    if top_k is not None:
        ranked[:, top_k:] = 0
    if top_p is not None:
        # A base stays while those before it have not reached top_p together.
        before = np.cumsum(ranked, axis=1) - ranked
        ranked[before >= top_p] = 0
    np.put_along_axis(weights, order, ranked, axis=1)
    cumulative = np.cumsum(weights, axis=1)
    chosen = (cumulative <= (draws * cumulative[:, -1])[:, None]).sum(axis=1)
    # Rounding in the product could point past the last base that can be drawn.
    last = 3 - np.argmax(weights[:, ::-1] > 0, axis=1)
    return np.minimum(chosen, last)


def search_beams(model, reading, length, beams, automaton=None, advance=None, rows_at_once=None):
    """Keep the likeliest partial sequences at each step; return the distinct ones of full length as Found.

    reading    of one row: label and prompt
    automaton  Automaton of the constraints, which leaves every kept prefix a way to the end
    advance    called with the number of bases so far
    rows_at_once  beams read in one pass; all when None

    Equal sums are ordered by the rank of the parent, then A, C, G, T. The order of what is returned: the best of
    each group, then the second of each, and so on.
    """
    # A single row's keys are stored once, for all that come of it.
    slices, place = [reading.repeat(1)], np.zeros(beams.groups, dtype=np.int64)
    group, sums, scores = np.arange(beams.groups), np.zeros(beams.groups), np.zeros(beams.groups)
    states, counts = _start(automaton, beams.groups)
    parents_of, bases_of, graph = [], [], None
    for step in range(length):
        log_probs = np.concatenate([next_log_probs(part) for part in slices])[place]
        check_finite(log_probs, step, "beam")
        live = True if automaton is None else automaton.live(step, states, counts)
        usable = np.where(live, scores[:, None] + log_probs, -np.inf)
        kept, scores = _rank(usable, group, beams)
        parents, bases = kept // 4, kept % 4
        sums, group = sums[parents] + log_probs[parents, bases], group[parents]
        if automaton is not None:
            states, counts = automaton.move(states[parents], counts[parents], bases)
        parents_of.append(parents.astype(np.int32))
        bases_of.append(bases.astype(np.uint8))
        if step + 1 < length:
            ids = np.array(BASE_IDS)[bases]
            slices, place, graph = _read_next(
                model, slices, place[parents], ids, rows_at_once or beams.width, graph, beams
            )
        if advance is not None:
            advance(step + 1)
    return _distinct(_trace(parents_of, bases_of), sums, group)


def _read_next(model, slices, parents, ids, width, graph, beams):
    """Read one more base after each parent, as `read_slices`, by a StepGraph once all beams are there.

    graph    StepGraph that has read the parents, or None
    returns  slices and places as `read_slices`, and the StepGraph or None
    """
    if graph is not None and graph.rows == len(ids):
        return [graph.append(ids, parents)], np.arange(len(ids)), graph
    if graph is not None:
        # Constraints have left fewer.
        slices = [graph.reading()]
    slices, place = read_slices(model, slices, parents, ids, width)
    graph = make_graph(model, slices[0], moves=True) if len(slices) == 1 and len(ids) == beams.width else None
    return slices, place, graph


def _rank(usable, group, beams):
    """Choose each group's best continuations, one group after the other.

    usable   (rows, 4) score with the next base, minus infinity where it is barred
    group    (rows,) 0 to groups - 1, in order
    returns  (kept,) row * 4 + base, groups in order, best first within each, and their scores
    """
    chosen, scores = [], []
    penalties = np.zeros(4)
    for number in range(beams.groups):
        rows = np.flatnonzero(group == number)
        totals = (usable[rows] - penalties).ravel()
        best = np.argsort(-totals, kind="stable")[: beams.width // beams.groups]
        best = best[np.isfinite(totals[best])]
        chosen.append(rows[best // 4] * 4 + best % 4)
        scores.append(totals[best])
        penalties = penalties + beams.penalty * np.bincount(best % 4, minlength=4) / len(best)
    return np.concatenate(chosen), np.concatenate(scores)


def read_slices(model, slices, parents, ids, width):
    """Read one more base after each parent; return the new slices, and where in them each row stands.

    slices   Readings of the parents, emptied from the front as they are no longer needed
    parents  (rows,) places in the slices, counted through
    ids      (rows,) int64
    width    rows of a new slice at most
    """
    # Rows lie in the order of their parents, so that a slice of children needs but few slices of parents.
    order = np.argsort(parents, kind="stable")
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    edges = np.cumsum([0] + [len(part.logits) for part in slices])
    source, found = np.searchsorted(edges, parents, side="right") - 1, []
    for first in range(0, len(order), width):
        rows, parts = order[first : first + width], []
        for i in np.unique(source[rows]):
            within = parents[rows[source[rows] == i]] - edges[i]
            parts.append((slices[i], torch.from_numpy(within).to(model.device)))
        slices[: source[rows[0]]] = [None] * source[rows[0]]
        if first + width >= len(order):
            slices.clear()
        found.append(append(model, Reading.gather(parts), ids[rows]))
    return found, place


def _trace(parents_of, bases_of):
    """Follow the rows of the last step back to the first; return their ids. (rows, length) int64"""
    rows = np.arange(len(parents_of[-1]))
    ids = np.zeros((len(rows), len(parents_of)), dtype=np.int64)
    for step in range(len(parents_of) - 1, -1, -1):
        ids[:, step] = np.array(BASE_IDS)[bases_of[step][rows]]
        rows = parents_of[step][rows]
    return ids


def _distinct(ids, sums, group):
    """Order rows by their rank within their group, then by group, and leave out sequences that stood before."""
    rank = np.arange(len(group)) - np.searchsorted(group, group)
    order = np.lexsort((group, rank))
    _, first = np.unique(ids[order], axis=0, return_index=True)
    kept = order[np.sort(first)]
    return Found(ids[kept], sums[kept])


def _start(automaton, rows):
    state, count = (0, 0) if automaton is None else automaton.start
    return np.full(rows, state), np.full(rows, count)


def next_log_probs(reading):
    """Return the next base's log-probabilities over A, C, G, T. (rows, 4) float64"""
    return reading.next_log_probs().cpu().numpy()


def check_finite(log_probs, step, name, first=0):
    """Raise GuardError for a row of log-probabilities that is not finite."""
    bad = np.flatnonzero(~np.isfinite(log_probs).all(axis=1))
    if len(bad):
        where = f"step {step + 1}, {name} {first + bad[0] + 1}"
        raise GuardError("the model's prediction is not finite", where=where, hint="check its weights")


def append(model, reading, ids):
    """Read one more base per row. ids (rows,) int64"""
    return read(model, torch.from_numpy(ids)[:, None].to(model.device), reading)[1]
