"""Task heads: what a network's hidden vectors are turned into classes or numbers by.

training: tokens (twice for echo), padded on the right -> hidden -> last | mean | every base -> head -> outputs
afterwards: sequences -> Embedder, one number whatever is read together -> head, one by one -> outputs
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from hybridna_core.config import check_types, require
from hybridna_core.model.embedding import Embedder
from hybridna_core.model.heads import ECHOES, Pool, echo_tokens
from hybridna_core.tokenizer import PAD, encode
from hybridna_kernels.gemm import linear

HEADS = ("linear", "mlp", "cnn")
READINGS = ("last", "mean")
# Channels and width of BEND's convolutions.
CNN_CHANNELS, CNN_KERNEL = 64, 3


@dataclass(frozen=True)
class HeadConfig:
    """How outputs are made of a network's hidden vectors.

    reading  mean of the vectors of all bases, or that of the last one; the cnn head reads all of them
    echo     the sequence is read twice, and the second reading taken: `same` again, or `rc`, its reverse complement
    """

    hidden_size: int
    outputs: int
    head: str = "linear"
    reading: str = "mean"
    echo: str | None = None

    def __post_init__(self):
        check_types(self)
        require(self.head in HEADS, "head", self.head, f"one of {', '.join(HEADS)}")
        require(self.reading in READINGS, "reading", self.reading, f"one of {', '.join(READINGS)}")
        require(self.echo in (None, *ECHOES), "echo", self.echo, f"one of {', '.join(ECHOES)}")
        require(self.outputs >= 1, "outputs", self.outputs, "at least 1")

    @property
    def is_per_base(self):
        """Whether the head reads every base's vector rather than one of the sequence."""
        return self.head == "cnn"


class LinearHead(nn.Linear):
    """One linear map of the pooled vector (paper, eq. 6)."""

    def forward(self, x):
        return linear(x, self.weight, self.bias)


class MLPHead(nn.Sequential):
    """One hidden layer as wide as the embedding (width and GELU are ASSUMED: LRB's are not stated in the paper)."""

    def __init__(self, width, outputs):
        super().__init__(LinearHead(width, width), nn.GELU(), LinearHead(width, outputs))


class CNNHead(nn.Module):
    """BEND's two convolutions of 64 channels over the bases' vectors, averaged over the bases, then a linear map.

    x (batch, bases, hidden), NaN where a shorter sequence has ended -> (batch, outputs)
    """

    def __init__(self, width, outputs):
        super().__init__()
        self.first = nn.Conv1d(width, CNN_CHANNELS, CNN_KERNEL, padding="same")
        self.second = nn.Conv1d(CNN_CHANNELS, CNN_CHANNELS, CNN_KERNEL, padding="same")
        self.last = LinearHead(CNN_CHANNELS, outputs)

    def forward(self, x):
        is_there = ~x[..., :1].isnan().mT
        x = x.mT.masked_fill(~is_there, 0)
        for layer in (self.first, self.second):
            x = nn.functional.gelu(layer(x)) * is_there
        return self.last(x.sum(-1) / is_there.sum(-1))


def make_head(config, seed=0):
    """Return the head of a HeadConfig, its first weights drawn by `seed`."""
    kind = {"linear": LinearHead, "mlp": MLPHead, "cnn": CNNHead}[config.head]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind(config.hidden_size, config.outputs)


class Probe(nn.Module):
    """A head alone, for features that something else has given: (batch, hidden) in, (batch, outputs) float32 out."""

    def __init__(self, config, seed=0, device="cpu"):
        super().__init__()
        self.config, self.device = config, torch.device(device)
        self.head = make_head(config, seed).to(device)

    def forward(self, x, precision="fp32"):
        return self.head(x)


class Predictor(nn.Module):
    """A network and a head: tokens, or features read before, in, outputs (batch, outputs) float32 out.

    model  HybridLM
    seed   of the head's first weights

    `adapters` holds what a training has merged into the network, by name.
    """

    def __init__(self, model, config, seed=0):
        super().__init__()
        self.backbone, self.config, self.adapters = model, config, {}
        self.head = make_head(config, seed).to(model.device)

    @property
    def device(self):
        return self.backbone.device

    def tokens(self, sequence):
        """Return the tokens of one sequence, its echo included. str -> (n,) int64"""
        return echo_tokens(self.backbone.config, encode(sequence), self.config.echo)[0][0]

    def forward(self, x, precision="fp32"):
        """Give the outputs of tokens (batch, n), padded on the right, or of features as `features` gives them."""
        if not x.is_floating_point():
            x = self.features(x, precision)
        return self.head(x)

    def features(self, tokens, precision="fp32"):
        """Read tokens and give what the head sees: (batch, hidden), or (batch, bases, hidden), NaN after the end.

        Padding stands behind the sequence, which never sees it, as nothing is read from right to left.
        """
        rounded = precision == "bf16" and tokens.device.type != "cpu"
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=rounded):
            hidden, _ = self.backbone(tokens)
        hidden = hidden.float()
        lengths = (tokens != PAD).sum(1)
        start = int(self.backbone.config.bos_token_id is not None)
        bases = (lengths - start) // (1 if self.config.echo is None else 2)
        if self.config.is_per_base:
            return self._every_base(hidden, lengths, bases)
        if self.config.reading == "last":
            return hidden[torch.arange(len(tokens), device=tokens.device), lengths - 1]
        place = torch.arange(tokens.shape[1], device=tokens.device)
        is_read = (place >= (lengths - bases)[:, None]) & (place < lengths[:, None])
        return (hidden * is_read[..., None]).sum(1) / bases[:, None]

    def _every_base(self, hidden, lengths, bases):
        """Cut out each row's last reading, in the order of the sequence itself; NaN behind shorter ones."""
        place = torch.arange(int(bases.max()), device=hidden.device)
        if self.config.echo == "rc":
            wanted = lengths[:, None] - 1 - place
        else:
            wanted = (lengths - bases)[:, None] + place
        is_there = place < bases[:, None]
        index = torch.where(is_there, wanted, 0)
        found = hidden.gather(1, index[..., None].expand(-1, -1, hidden.shape[-1]))
        return found.masked_fill(~is_there[..., None], float("nan"))


def pad_rows(rows):
    """Stack rows of unlike length as (rows, longest) int64, [PAD] behind the shorter ones."""
    return nn.utils.rnn.pad_sequence([torch.as_tensor(row).long() for row in rows], batch_first=True, padding_value=PAD)


@torch.no_grad()
def read_features(predictor, sequences, batch_size="auto"):
    """Yield what the head sees of each sequence, as `embed` gives it: (hidden,) or (bases, hidden) float32.

    How many sequences are read together changes no number (float32 on a CPU). Raises GuardError for numbers that are
    not finite.
    """
    config = predictor.config
    pool = Pool("per-base" if config.is_per_base else config.reading)
    embedder = Embedder(predictor.backbone, pool, config.echo, batch_size=batch_size)
    for _, vectors in embedder.embed((f"sequence {i + 1}", encode(text)) for i, text in enumerate(sequences)):
        # A copy, as one base read backwards keeps a stride that torch refuses.
        yield vectors[0].copy()


@torch.no_grad()
def predict_outputs(predictor, given, batch_size="auto", *, stop=None, progress=None):
    """Give the outputs for sequences, or for their features; None when `stop` said so between two of them.

    given    list of str, or array of features
    returns  (n, outputs) float64, in the order given; the head reads one at a time, so that none depends on others
    """
    found = np.empty((len(given), predictor.config.outputs))
    features = read_features(predictor, given, batch_size) if len(given) and isinstance(given[0], str) else given
    for i, vector in enumerate(features):
        if stop is not None and stop():
            return None
        if vector.ndim == 2:
            # Without what it is filled up with: one sum the more, even of zeros, can round otherwise.
            vector = vector[~np.isnan(vector[:, 0])]
        found[i] = predictor.head(torch.from_numpy(vector)[None].to(predictor.device))[0].double().cpu().numpy()
        if progress is not None:
            progress(i + 1, len(given))
    return found


def stack_rows(rows):
    """Stack rows of tokens, padded, or of features, all of one shape."""
    if np.issubdtype(np.asarray(rows[0]).dtype, np.floating):
        return torch.from_numpy(np.stack(rows))
    return pad_rows(rows)
