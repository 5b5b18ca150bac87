"""Small models with answers one can work out, and small random ones.

config -> HybridLM -> weights set by hand or drawn -> a model that every command takes
"""

import dataclasses
import itertools

import numpy as np
import torch

from hybridna_core.config import ModelConfig
from hybridna_core.model.hybrid import HybridLM
from hybridna_core.tokenizer import BASE_IDS, Tokenizer

SMALL = ModelConfig(
    hidden_size=32, intermediate_size=48, layer_types=("mamba", "attention", "mamba"), num_attention_heads=4,
    num_key_value_heads=2, mamba_n_heads=2, mamba_d_state=8, mamba_d_head=32, max_position_embeddings=4096,
)  # fmt: skip


def random_model(seed=0, *, labels=(), sharpness=20.0, **changes):
    """Return a small HybridLM with random weights whose predictions are far from uniform.

    labels     LabelPosition of each label digit
    sharpness  factor on the output weights
    changes    fields of the config to replace
    """
    tokenizer = Tokenizer(label_positions=tuple(labels))
    config = dataclasses.replace(SMALL, **{"vocab_size": tokenizer.vocab_size, **changes})
    model = HybridLM(config, seed=seed)
    model.tokenizer, model.name, model.digest = tokenizer, "toy", f"{seed:064x}"
    with torch.no_grad():
        model.lm_head.weight.mul_(sharpness)
        for name, parameter in model.named_parameters():
            if name.endswith(("out_proj.weight", "o_proj.weight", "down_proj.weight", "embed_tokens.weight")):
                parameter.mul_(10)
    return model.eval().requires_grad_(False)


def uniform_model(**changes):
    """Return a model that gives every base the same probability, whatever came before."""
    model = random_model(**changes)
    model.lm_head.weight.zero_()
    return model


def markov_model(table, start=None, **changes):
    """Return a model whose next base depends on the last token alone.

    table  (4, 4) probabilities, row: last base, column: next base, in the order A, C, G, T
    start  (4,) probabilities after any other token, such as the start token; uniform when None

    Every block adds nothing, embeddings point along axes, and the head holds log-probabilities.
    """
    model = random_model(**changes)
    config = model.config
    width = config.hidden_size
    start = np.full(4, 0.25) if start is None else start
    model.lm_head.weight.fill_(-60.0)
    model.lm_head.weight.div_(width**0.5)
    for name, parameter in model.named_parameters():
        if name.endswith(("out_proj.weight", "o_proj.weight", "down_proj.weight")):
            parameter.zero_()
    model.model.embed_tokens.weight.copy_(100 * torch.eye(config.vocab_size, width))
    for token in range(config.vocab_size):
        row = table[token - BASE_IDS[0]] if token in BASE_IDS else start
        # The final norm makes a unit vector's entry sqrt(width).
        log_probs = torch.tensor(np.log(row), dtype=torch.float32) / width**0.5
        model.lm_head.weight[BASE_IDS[0] : BASE_IDS[-1] + 1, token] = log_probs
    return model


def markov_log_prob(table, sequence, start=None):
    """Return the log-probability of bases under `markov_model(table, start)`, read from the start token; nats."""
    letters = ["ACGT".index(letter) for letter in sequence]
    first = 0.25 if start is None else start[letters[0]]
    return float(np.log(first) + sum(np.log(table[a][b]) for a, b in itertools.pairwise(letters)))
