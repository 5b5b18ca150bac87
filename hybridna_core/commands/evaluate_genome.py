"""Bits per base of a model on held-out genomes, with simple baselines beside it.

run.toml -> training bases -> Markov counts; held-out bases -> windows -> bits per base of model and baselines
"""

import os
import time
from typing import NamedTuple

import numpy as np

from hybridna_core.data.inputs import check_input, warn
from hybridna_core.errors import DataError, UsageError
from hybridna_core.reports import check_report, write_report
from hybridna_core.run_config import read_run

STRENGTHS = (1.0, 4.0, 16.0, 64.0, 256.0)


class HeldOut(NamedTuple):
    """One held-out set: bases measured, and their bits per base.

    markov           one per order, counted on the training bases
    compressor, by   of an outside compressor where there is one, else xz; and what it was
    adaptive         of an adaptive mixture of orders that learns from the measured bases alone
    """

    name: str
    bases: int
    model: float
    markov: tuple[float, ...]
    compressor: float
    by: str
    adaptive: float

    @property
    def best_markov(self):
        """Order and bits per base of the best Markov model; the baseline gets the benefit of choosing here."""
        order = int(np.argmin(self.markov))
        return order, self.markov[order]


class GenomeEvaluation(NamedTuple):
    """Bits per base on every held-out set of a run.

    tokens_per_second  of the model, reading windows one by one
    """

    model: str
    model_sha256: str
    window: int
    sets: tuple[HeldOut, ...]
    tokens_per_second: float
    seconds: float

    @property
    def gain(self):
        """Mean over the sets of best Markov model minus model, bits per base."""
        return float(np.mean([s.best_markov[1] - s.model for s in self.sets]))

    def to_dict(self):
        rows = [
            {**s._asdict(), "best_markov_order": s.best_markov[0], "best_markov": s.best_markov[1]} for s in self.sets
        ]
        return {**self._asdict(), "sets": rows, "gain": self.gain if rows else None}

    def table(self):
        """Return column names and rows of cells as text."""
        orders = range(len(self.sets[0].markov) if self.sets else 0)
        columns = ["set", "bases", "model", "best_markov", "best_order", "compressor", "by", "adaptive"]
        rows = []
        for one in self.sets:
            order, best = one.best_markov
            bits = [f"{value:.4f}" for value in (one.model, best, one.compressor, one.adaptive, *one.markov)]
            rows.append([one.name, str(one.bases), *bits[:2], str(order), bits[2], one.by, *bits[3:]])
        return columns + [f"order_{k}" for k in orders], rows


def evaluate_genome(run, output=None, *, model="base", max_bases=500_000, max_order=12, window=None, device="auto",
                    set=(), force=False, rebuild_index=False, other_letters=None, rna=False, allow_missing_eof=False,
                    allow_nonfinite=False, progress=None):  # fmt: skip
    """Measure bits per base on the held-out bases of a run file, beside interpolated Markov models and compressors.

    run        run file: its species with `valid` are measured, the others' training bases are counted
    output     file for the table, TSV or Markdown (.md); `-` is standard output, None: not written
    model      name or folder, or a loaded model
    max_bases  measured per set, in whole windows spread evenly over it; None: all
    window     bases per window; what the model reads at once when None
    rebuild_index, other_letters, rna, allow_missing_eof: as `open_genome` has them, for every FASTA of the run

    Windows stand at steps of half; the second half of each is counted, of a stretch's first window all of it; unknown
    bases are skipped. Markov models count both strands; their strength is the best of a few on the measured bases.
    Compressors and the adaptive mixture get the measured bases joined, and learn from nothing else.
    Returns a GenomeEvaluation; raises as `pretrain` does.
    """
    from hybridna_core.checkpoint import load_model
    from hybridna_core.data.compress import adaptive_bits, outside_bits, xz_bits
    from hybridna_core.data.corpus import load_species
    from hybridna_core.data.markov import MAX_ORDER, MarkovModel

    started = time.monotonic()
    if not 0 <= max_order <= MAX_ORDER:
        raise UsageError(f"is {max_order}, must be 0 to {MAX_ORDER}", where="--max-order")
    if max_bases is not None and max_bases < 1:
        raise UsageError(f"is {max_bases}, must be at least 1", where="--max-bases")
    if window is not None and window < 1:
        raise UsageError(f"is {window}, must be at least 1", where="--window")
    reading = {"rebuild_index": rebuild_index, "other_letters": other_letters, "rna": rna,
               "allow_missing_eof": allow_missing_eof}  # fmt: skip
    run = check_input(run, random_access=True)
    check_report(output, (run,), force)
    species = [load_species(s, **reading) for s in read_run(run, set).species]
    if not any(s.valid_bases for s in species):
        raise DataError("no known base is held out", where=run, hint="give a species `valid`")
    for one in species:
        if one.valid and not one.valid_bases:
            warn("nothing-measured", f"{one.name}: every held-out base is unknown; left out")
    if isinstance(model, str | os.PathLike):
        model = load_model(model, device=device, allow_nonfinite=allow_nonfinite)
    longest = model.config.bases_at_once
    if window is not None and window > longest:
        raise UsageError(f"is {window:,}, but this model reads {longest:,} bases at once", where="--window")
    window = window or longest
    markov = MarkovModel(max_order)
    for one in species:
        for stretch in one.train:
            markov.add(stretch.ids)
    sets, reading, tokens, done = [], 0.0, 0, 0
    held_out = [s for s in species if s.valid_bases]
    chosen = [choose_windows(one.valid, window, max_bases) for one in held_out]
    total = sum(len(places) for places in chosen)
    for one, places in zip(held_out, chosen, strict=True):
        found = []
        for stretch, at in places:
            begun = time.perf_counter()
            found.append(model_bits(model, one.valid[stretch].ids, at, window))
            reading += time.perf_counter() - begun
            tokens += min(window, len(one.valid[stretch].ids) - at)
            done += 1
            if progress:
                progress(done, total, note=one.name)
        found = np.concatenate(found)
        known = int(np.count_nonzero(~np.isnan(found)))
        if not known:
            warn("nothing-measured", f"{one.name}: no known base in the windows measured; left out")
            continue
        due = [
            np.nanmean(np.concatenate([markov_bits(markov, one.valid[w].ids, at, window, s) for w, at in places], 1), 1)
            for s in STRENGTHS
        ]
        per_order = tuple(float(bits) for bits in np.min(due, axis=0))
        measured = np.concatenate([counted_ids(one.valid[w].ids, at, window) for w, at in places])
        compressor, by = outside_bits(measured) or xz_bits(measured)
        adaptive = float(np.mean(adaptive_bits(measured)))
        sets.append(HeldOut(one.name, known, float(np.nanmean(found)), per_order, compressor, by, adaptive))
    rate = tokens / reading if reading else 0.0
    summary = GenomeEvaluation(model.name, model.digest, window, tuple(sets), rate, time.monotonic() - started)
    write_report(output, *summary.table(), force)
    return summary


def choose_windows(stretches, window, max_bases=None):
    """List (stretch number, start) of windows at steps of half; with max_bases, about so many, spread evenly."""
    step = max(1, window // 2)
    places = []
    for number, stretch in enumerate(stretches):
        n = len(stretch.ids)
        places += [(number, at) for at in range(0, max(1, n - window + step), step) if n]
    if max_bases is None or len(places) * step <= max_bases:
        return places
    count = max(1, max_bases // step)
    return [places[i * len(places) // count] for i in range(count)]


def counted(start, length, window):
    """Return the half-open range of a stretch that the window at `start` counts."""
    end = min(start + window, length)
    # Of an odd window the smaller half is counted, so that no base counts twice.
    return (0 if start == 0 else min(start + window - max(1, window // 2), end)), end


def counted_ids(ids, start, window):
    """The bases of a stretch that the window at `start` counts. (n,) uint8"""
    first, end = counted(start, len(ids), window)
    return ids[first:end]


def model_bits(model, ids, start, window):
    """Bits of each base that the window at `start` counts; NaN at unknown ones."""
    import torch

    from hybridna_core.model.likelihood import read

    first, end = counted(start, len(ids), window)
    bos = model.config.bos_token_id
    tokens = torch.from_numpy(ids[start:end].astype(np.int64))
    tokens = tokens if bos is None else torch.cat([torch.tensor([bos]), tokens])
    log_probs, _ = read(model, tokens[None].to(model.device))
    log_probs = log_probs[0].cpu().numpy()[bos is not None :]
    return -log_probs[first - start :] / np.log(2)


def markov_bits(markov, ids, start, window, strength):
    """Bits of the same bases by the Markov models of every order, which read the same window. (order + 1, bases)"""
    first, end = counted(start, len(ids), window)
    return -markov.log2_probs(ids[start:end], strength)[:, first - start :]
