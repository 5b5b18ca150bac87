"""Labels before a sequence: tokens added to a network for them, and which label a sequence most likely has.

network, label positions -> wider embedding and head; sequence, labels -> P(sequence | label) -> P(label | sequence)
"""

import dataclasses

import numpy as np
import torch

from hybridna_core.model.hybrid import HybridLM
from hybridna_core.model.likelihood import read
from hybridna_core.tokenizer import BASE_IDS, FIRST_PROMPT_ID, Tokenizer, encode

# How far labels' rows of the embedding lie apart at first, beside the bases' standard deviation.
LABEL_SCALE = 1e-3
# Labels read in one pass beside each other.
LABELS_AT_ONCE = 32


def add_labels(model, positions, seed=0):
    """Return a copy of a network that knows labels too; their rows of embedding and head are drawn (section 3.3.2).

    positions  LabelPosition of each digit

    Rows of the embedding are drawn close to the mean of the bases' rows: what the network does not know from its
    training would cost it more than a label tells.
    """
    tokenizer = Tokenizer(label_positions=tuple(positions))
    config = dataclasses.replace(model.config, vocab_size=tokenizer.vocab_size)
    wider = HybridLM(config, device=model.device, dtype=model.dtype, seed=seed)
    tensors = model.state_dict()
    with torch.no_grad():
        for name, tensor in wider.state_dict().items():
            known = tensors[name]
            tensor[: len(known)].copy_(known[:FIRST_PROMPT_ID] if known.shape != tensor.shape else known)
        if positions:
            rows = wider.model.embed_tokens.weight
            bases, drawn = rows[list(BASE_IDS)], rows[FIRST_PROMPT_ID:]
            drawn.mul_(LABEL_SCALE * bases.std() / drawn.std()).add_(bases.mean(dim=0))
    wider.tokenizer, wider.name, wider.digest = tokenizer, model.name, model.digest
    return wider


def label_tokens(model, label, sequence):
    """Return start token, label and bases as the network reads them. str, str -> (n,) int64"""
    start = [] if model.config.bos_token_id is None else [model.config.bos_token_id]
    digits = model.tokenizer.encode_label(label) if label else []
    return np.concatenate([np.array(start, dtype=np.int64), digits, encode(sequence)]).astype(np.int64)


def label_posterior(model, sequence, frequencies):
    """Return P(label | sequence) of each label, in the order given: P(sequence | label) times its frequency.

    frequencies  {label: rows in training}
    returns      (labels,) float64, and the log-probability of the sequence over all labels, nats

    A sequence is read by itself, all labels beside each other, so that the numbers depend on nothing else.
    """
    labels = list(frequencies)
    rows = np.stack([label_tokens(model, label, sequence) for label in labels])
    found = []
    for first in range(0, len(labels), LABELS_AT_ONCE):
        log_probs, _ = read(model, torch.from_numpy(rows[first : first + LABELS_AT_ONCE]).to(model.device))
        found.append(np.nansum(log_probs[:, -len(sequence) :].cpu().numpy(), axis=1))
    counts = np.array([frequencies[label] for label in labels], dtype=np.float64)
    joint = np.concatenate(found) + np.log(counts / counts.sum())
    total = np.logaddexp.reduce(joint)
    return np.exp(joint - total), float(total)
