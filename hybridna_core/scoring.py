"""The engine that scores variants, shared by the commands: what a score is, and how it is read from a model.

Variant -> data.variants.compare -> per direction: prefix read once, then both suffixes -> differences summed -> Score

The definition is that of docs/scoring.md: what is read is laid out by data.variants.compare, here it is only read.
"""

import collections
import math
import os
import time
from typing import NamedTuple

import numpy as np
import torch

from hybridna_core.checkpoint import is_own_folder, read_description, resolve_folder
from hybridna_core.data.variants import compare
from hybridna_core.errors import GuardError, UsageError
from hybridna_core.model.likelihood import read
from hybridna_core.tokenizer import N

DEFAULT_WINDOW = 8192


class Score(NamedTuple):
    """What an allele ends with; numbers are None where there is no score.

    llr, forward, reverse  nats: mean of the strands, `+`, `-`
    is_edge                a contig end shortened what was read
    has_unknown            what was read held unknown bases
    """

    status: str
    llr: float | None = None
    is_edge: bool | None = None
    forward: float | None = None
    reverse: float | None = None
    has_unknown: bool = False


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


def is_name(model):
    return isinstance(model, str | os.PathLike)


def name_model(model):
    return str(model) if is_name(model) else model.name


def read_config(model):
    """Return the ModelConfig of a loaded model, or of a name or folder without loading it."""
    if not is_name(model):
        return model.config
    folder = resolve_folder(model)
    if is_own_folder(folder):
        return read_description(folder)[0]
    from hybridna_core.hf_weights import plan_import

    return plan_import(folder).config


class Scorer:
    """Scores alleles, one row per pass, so that a score depends on nothing but its variant.

    What the reference gave is kept for the last places, where a record's further alleles mostly want it again.
    """

    KEPT = 4

    def __init__(self, model, genome, plan):
        self.model, self.genome, self.plan = model, genome, plan
        bos = model.config.bos_token_id
        self.opening = np.array([] if bos is None else [bos], dtype=np.int64)
        self.prefixes, self.references = collections.OrderedDict(), collections.OrderedDict()

    def score(self, allele):
        """Return the Score of an Allele; raise GuardError when the model gives no finite number."""
        if allele.variant is None:
            return Score(allele.status)
        variant = allele.variant
        status, comparisons = compare(variant, self.genome, *self.plan)
        if status != "ok":
            return Score(status)
        values = {c.strand: variant.sign * self.compare(variant.contig, c) for c in comparisons}
        llr = math.fsum(values.values()) / len(values)
        if not math.isfinite(llr):
            where = f"{variant.contig}:{variant.start + 1}"
            raise GuardError("the model gives no finite number", where=where, hint="hybridna models check FOLDER")
        is_edge = len(values) < 2 or any(c.is_short for c in comparisons)
        has_unknown = any(c.unknown_share > 0 for c in comparisons)
        return Score(allele.status, llr, is_edge, values.get("+"), values.get("-"), has_unknown)

    def compare(self, contig, comparison):
        """Return log P(alternative) - log P(reference) in one direction, nats."""
        place = contig, comparison.strand, comparison.start, comparison.change
        prefix = self._keep(self.prefixes, place, lambda: self._read_prefix(comparison.prefix))
        reference = self._keep(
            self.references,
            (*place, len(comparison.reference)),
            lambda: self._read_suffix(comparison.reference, prefix),
        )
        alternative = self._read_suffix(comparison.alternative, prefix)
        # Subtracted base by base first: sums over thousands of bases would drown the difference.
        return float(np.sum(alternative - reference))

    def _keep(self, kept, key, make):
        if key not in kept:
            kept[key] = make()
            if len(kept) > self.KEPT:
                kept.popitem(last=False)
        kept.move_to_end(key)
        return kept[key]

    def _read_prefix(self, ids):
        tokens = np.concatenate([self.opening, ids]).astype(np.int64)
        return self._read(tokens, None)[1] if len(tokens) else None

    def _read_suffix(self, ids, reading):
        """Log-probability of each known base, nats. (known bases,) float64"""
        log_probs, _ = self._read(ids.astype(np.int64), reading)
        return log_probs[0].cpu().numpy()[ids != N]

    def _read(self, tokens, reading):
        return read(self.model, torch.from_numpy(tokens)[None].to(self.model.device), reading)


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
