"""What is made of hidden vectors: pooling, and the input that is read twice for it.

base ids -> [BOS] x (or [BOS] x x') -> model, segment by segment -> pooled vector of the last reading
"""

import numpy as np
import torch

from hybridna_core.tokenizer import reverse_complement_ids

POOLS = ("mean", "last")
ECHOES = ("same", "rc")


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


@torch.no_grad()
def pool_hidden(model, tokens, first=0, pool="mean"):
    """Read tokens in one pass and pool the hidden vectors after the final norm from token `first` on.

    tokens   (batch, n) int64, on any device
    pool     "mean", or "last" for the vector of the last token alone
    returns  (batch, hidden) float32; sums run in float64

    Memory does not grow with n beyond the model's state.
    """
    tokens = tokens.to(model.device)
    total, state, begin = 0, None, 0
    for part in tokens.split(model.segment, dim=1):
        hidden, state = model(part, state)
        if pool == "mean" and begin + part.shape[1] > first:
            total = total + hidden[:, max(0, first - begin) :].double().sum(dim=1)
        begin += part.shape[1]
    return hidden[:, -1].float() if pool == "last" else (total / (begin - first)).float()
