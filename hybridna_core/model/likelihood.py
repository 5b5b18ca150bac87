"""Log-probability of given tokens; the only place where it is computed.

tokens, reading -> model, segment by segment -> logits -> log-softmax over A, C, G, T in float32 -> float64, reading
"""

import math
from typing import NamedTuple

import torch

from hybridna_core.errors import UsageError
from hybridna_core.model.state import ModelState
from hybridna_core.tokenizer import BASE_IDS, A, T, encode


class Reading(NamedTuple):
    """Where a pass stands: the state, and what it predicts next.

    state   ModelState
    logits  (batch, vocabulary) of the next token
    """

    state: ModelState
    logits: torch.Tensor

    def repeat(self, n):
        """Give each row n times, adjacent."""
        return Reading(self.state.repeat(n), self.logits.repeat_interleave(n, dim=0))

    def select(self, rows):
        """Keep the given rows, in that order. rows (n,) int64"""
        return Reading(self.state.select(rows), self.logits.index_select(0, rows))

    @classmethod
    def gather(cls, parts):
        """Keep the given rows of several readings of one length, one after the other. parts: list of (reading, rows)"""
        logits = torch.cat([reading.logits.index_select(0, rows) for reading, rows in parts])
        return cls(ModelState.gather([(reading.state, rows) for reading, rows in parts]), logits)

    def next_log_probs(self):
        """Log-probabilities of the next base over A, C, G, T, nats. (batch, 4) float64"""
        return base_log_probs(self.logits).double()


@torch.no_grad()
def read(model, tokens, reading=None, *, renormalize=True, segment=None, vectors=None):
    """Read tokens and return the log-probability of each, given all before it, and where the pass stands after.

    tokens       (batch, n) int64
    reading      Reading of what comes before, None for the very start
    renormalize  over A, C, G, T; False: plain softmax over the whole vocabulary
    segment      tokens per pass, the model's own when None
    vectors      list that takes the hidden vectors after the final norm, (batch, part, hidden_size) of each part
    returns      (batch, n) float64, nats, and a Reading

    NaN where there is no such probability: renormalised, at tokens other than A, C, G, T. A base with nothing
    before it has log 1/4.
    """
    state, logits = (None, None) if reading is None else reading
    parts = []
    for part in tokens.split(segment or model.segment, dim=1):
        hidden, state = model(part, state)
        if vectors is not None:
            vectors.append(hidden)
        following = model.head(hidden)
        if logits is None:
            parts.append(_first(part[:, :1]))
            predicted, target = following[:, :-1], part[:, 1:]
        else:
            predicted, target = torch.cat([logits[:, None], following[:, :-1]], dim=1), part
        parts.append(pick_log_probs(predicted, target, renormalize))
        logits = following[:, -1]
    return torch.cat(parts, dim=1), Reading(state, logits)


@torch.no_grad()
def logits(model, tokens):
    """Return the logits after each token. tokens (batch, length) ids -> (batch, length, vocabulary) float32"""
    tokens = torch.as_tensor(tokens, dtype=torch.int64, device=model.device)
    hidden, _ = model(tokens)
    return model.head(hidden)


def log_probs(model, sequences, renormalize=True):
    """Return the log-probability of every base, given all before it in its sequence.

    sequences    list of str, each of at least one base
    renormalize  over A, C, G, T; False: plain softmax over the whole vocabulary
    returns      list of float64 arrays of len(sequence), nats; NaN at N and other unknown letters when renormalised

    Each sequence is read by itself after the model's start token, so its numbers do not depend on the others.
    """
    found = []
    for number, sequence in enumerate(sequences):
        if not sequence:
            raise UsageError("is empty", where=f"sequence {number}")
        ids = torch.from_numpy(encode(sequence)).long()
        start = [] if model.config.bos_token_id is None else [model.config.bos_token_id]
        tokens = torch.cat([torch.tensor(start, dtype=torch.int64), ids])[None].to(model.device)
        values, _ = read(model, tokens, renormalize=renormalize)
        found.append(values[0, len(start) :].cpu().numpy())
    return found


def base_log_probs(logits):
    """Turn logits into log-probabilities over A, C, G, T, in the logits' precision. (..., vocabulary) -> (..., 4)"""
    return torch.log_softmax(logits[..., BASE_IDS[0] : BASE_IDS[-1] + 1], dim=-1)


def _is_base(tokens):
    return (tokens >= A) & (tokens <= T)


def _first(tokens):
    quarter = torch.full(tokens.shape, -math.log(4), dtype=torch.float64, device=tokens.device)
    return quarter.masked_fill(~_is_base(tokens), float("nan"))


def pick_log_probs(logits, tokens, renormalize=True):
    """Log-probability of each token under the logits beside it, as `read` defines it.

    logits (batch, n, vocabulary), tokens (batch, n) -> (batch, n) float64, nats
    """
    if not renormalize:
        return torch.log_softmax(logits, dim=-1).gather(-1, tokens[..., None])[..., 0].double()
    known = _is_base(tokens)
    index = torch.where(known, tokens - A, 0)
    found = base_log_probs(logits).gather(-1, index[..., None])[..., 0].double()
    return found.masked_fill(~known, float("nan"))
