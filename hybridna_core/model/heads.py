"""What is made of hidden vectors: pooling, and the input that is read twice for it.

base ids -> [BOS] x (or [BOS] x x') -> rows of one length -> model, segment by segment -> pooled vectors of the last
reading
"""

import re
from typing import NamedTuple

import numpy as np
import torch

from hybridna_core.errors import UsageError, nearest
from hybridna_core.tokenizer import N, reverse_complement_ids

ECHOES = ("same", "rc")
POOLS = ("mean", "last", "max", "center:N", "per-base")
# Rows are filled up to a multiple of it, so that few shapes occur, and the same whatever is read together.
ROW_STEP = 64


class Pool(NamedTuple):
    """What becomes of a sequence's vectors: mean, last, max, center (mean of the middle `width`); per-base: all."""

    kind: str
    width: int = 0

    def __str__(self):
        return f"center:{self.width}" if self.kind == "center" else self.kind


def parse_pool(text):
    """Turn `mean`, `last`, `max`, `center:N` or `per-base` into a Pool; raise UsageError."""
    found = re.fullmatch(r"center:([0-9]{1,12})", str(text))
    if found and int(found[1]) > 0:
        return Pool("center", int(found[1]))
    if text in POOLS and text != "center:N":
        return Pool(text)
    close = nearest(text, POOLS)
    hint = f"did you mean {close}?" if close else None
    raise UsageError(f"is {text!r}, must be {', '.join(POOLS[:-1])} or {POOLS[-1]}", where="--pool", hint=hint)


def check_echo(echo):
    """Raise UsageError for an echo that does not exist."""
    if echo is not None and echo not in ECHOES:
        close = nearest(echo, ECHOES)
        hint = f"did you mean {close}?" if close else None
        raise UsageError(f"is {echo!r}, must be {' or '.join(ECHOES)}", where="--echo", hint=hint)


def parse_layers(text, config):
    """Turn `-1,12` (or a number, or a list) into depths from 0 to one more than there are blocks; raise UsageError.

    0 is the tokens' embedding, i what leaves block i, the last one the final norm; negative numbers count from there.
    """
    words = text.split(",") if isinstance(text, str) else np.atleast_1d(text).tolist()
    last, depths = config.num_hidden_layers + 1, []
    for word in words:
        number = int(word) if re.fullmatch(r"\s*-?[0-9]{1,6}\s*", str(word)) else None
        if number is None or not -last - 1 <= number <= last:
            what = f"{word!r} is no layer"
            hint = f"0 (embedding), 1 to {last - 1} or -2 (after that block), {last} or -1 (final norm)"
            raise UsageError(what, where="--layer", hint=hint)
        depths.append(number % (last + 1))
    if len(set(depths)) < len(depths):
        raise UsageError("a layer is named twice", where="--layer", hint=f"-1 is {last} in this model")
    return tuple(depths)


def longest_input(config, echo=None):
    """Return how many bases can be pooled at once: twice the bases and the start token must fit for an echo."""
    return config.bases_at_once // (1 if echo is None else 2)


def echo_tokens(config, ids, echo=None):
    """Return the tokens of one pass over base ids, and the index of the first one that is pooled.

    ids      (n,) base ids, in reading direction
    echo     None: [BOS] x; "same": [BOS] x x; "rc": [BOS] x and its reverse complement
    returns  (1, tokens) int64 on the CPU, and an int

    Nothing stands between the two copies and no state is reset, so that the second is read knowing the first.
    """
    start = [] if config.bos_token_id is None else [config.bos_token_id]
    copies = [ids] if echo is None else [ids, ids if echo == "same" else reverse_complement_ids(ids)]
    tokens = np.concatenate([np.array(start, dtype=np.int64), *copies]).astype(np.int64)
    return torch.from_numpy(tokens)[None], len(tokens) - len(ids)


class Pooler:
    """Pools the vectors of tokens [first, stop) of one row, given in parts; sums run in float64, gradients pass."""

    def __init__(self, pool, first, stop):
        self.pool, self.parts = pool, []
        if pool.kind == "last":
            first = stop - 1
        elif pool.kind == "center" and pool.width < stop - first:
            first += (stop - first - pool.width) // 2
            stop = first + pool.width
        self.first, self.stop = first, stop

    def add(self, hidden, begin):
        """Take the vectors of tokens from `begin` on. hidden (n, width)"""
        part = hidden[max(0, self.first - begin) : max(0, self.stop - begin)]
        if len(part) and self.pool.kind in ("mean", "center"):
            self.parts.append(part.double().sum(dim=0))
        elif len(part):
            self.parts.append(part.amax(dim=0) if self.pool.kind == "max" else part)

    def vectors(self):
        """Return (width,) float32, or (bases, width) for per-base."""
        if self.pool.kind in ("mean", "center"):
            return (sum(self.parts) / (self.stop - self.first)).float()
        if self.pool.kind == "max":
            return torch.stack(self.parts).amax(dim=0).float()
        found = torch.cat(self.parts).float()
        return found[-1] if self.pool.kind == "last" else found


@torch.no_grad()
def pool_hidden(model, tokens, spans, pool, layers=None, segment=None):
    """Read rows of tokens in one pass and pool, of each, the vectors of its own stretch.

    tokens   (batch, n) int64, on any device; what follows a row's stretch is read and changes nothing
    spans    (first, stop) per row: the tokens that are pooled; rows beyond them fill up and are not
    pool     Pool
    layers   depths as in HybridLM.read_layers, the final norm alone when None
    segment  tokens per pass, the model's own when None
    returns  per row a tensor (layers, hidden) float32, or (layers, stop - first, hidden) for per-base

    Memory does not grow with n beyond the model's state, but for per-base.
    """
    layers = (model.config.num_hidden_layers + 1,) if layers is None else layers
    poolers = [[Pooler(pool, *span) for _ in layers] for span in spans]
    state, begin = None, 0
    for part in tokens.to(model.device).split(segment or model.segment, dim=1):
        found, state = model.read_layers(part, state, layers)
        for hidden, column in zip(found, zip(*poolers, strict=True), strict=True):
            for row, pooler in zip(hidden, column, strict=False):
                pooler.add(row, begin)
        begin += part.shape[1]
    return [torch.stack([pooler.vectors() for pooler in row]) for row in poolers]


def row_length(config, bases, echo=None):
    """Return how many tokens a row for so many bases has, filled up to a multiple of ROW_STEP."""
    tokens = (config.bos_token_id is not None) + bases * (1 if echo is None else 2)
    return -(-tokens // ROW_STEP) * ROW_STEP


def rows_at_once(model, length, batch_size="auto"):
    """Return how many rows of a length are read together: as many as make up one segment for `auto`.

    Rows longer than a segment are read one by one.
    """
    if length > model.segment:
        return 1
    return model.segment // length if batch_size == "auto" else batch_size


def read_rows(model, sequences, pool, echo=None, layers=None, rows=1, segment=None):
    """Pool sequences that fill rows of one length; `rows` rows are read, however many sequences there are.

    sequences  list of base ids (n,), all of one row_length
    rows       at least as many; what is left over is N
    returns    list of (layers, hidden) float32 arrays, (layers, n, hidden) for per-base

    As the shape of what is read depends on a sequence's length and on `rows` alone, so do its numbers; rows never mix.
    The per-base vectors of an `rc` echo come in the order of the sequence.
    """
    length = row_length(model.config, len(sequences[0]), echo)
    tokens = torch.full((max(rows, len(sequences)), length), N, dtype=torch.int64)
    spans = []
    for row, ids in enumerate(sequences):
        read, first = echo_tokens(model.config, ids, echo)
        tokens[row, : read.shape[1]] = read[0]
        spans.append((first, read.shape[1]))
    vectors = [row.cpu().numpy() for row in pool_hidden(model, tokens, spans, pool, layers, segment)]
    if pool.kind == "per-base" and echo == "rc":
        vectors = [np.ascontiguousarray(row[:, ::-1]) for row in vectors]
    return vectors
