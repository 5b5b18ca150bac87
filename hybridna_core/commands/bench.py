"""Forward speed on this machine, beside transformers' Bamba with the same weights.

random weights -> both models -> equal logits, or no timing at all -> timed in turn -> medians and their ratio
"""

import statistics
import time
from typing import NamedTuple

from hybridna_core.config import ModelConfig, layer_pattern
from hybridna_core.errors import GuardError, SystemFault, UsageError

TOLERANCE = 1e-3


class Timing(NamedTuple):
    """One length: seconds per forward pass (median, fastest, slowest) of each, and their ratio of medians."""

    tokens: int
    hybridna: tuple[float, float, float]
    bamba: tuple[float, float, float]
    ratio: float
    difference: float


class BenchSummary(NamedTuple):
    """Timings of one run, with what they were taken on."""

    hidden_size: int
    layers: int
    threads: int
    versions: dict
    timings: tuple[Timing, ...]

    def to_dict(self):
        return {**self._asdict(), "timings": [t._asdict() for t in self.timings]}


def bench(*, hidden_size=256, layers=8, lengths=(2048, 8192), repeats=5, progress=None):
    """Time a forward pass of the whole model, logits included, against transformers' BambaForCausalLM on CPU.

    hidden_size, layers  of the model timed; the rest follows the presets' proportions
    lengths              tokens per pass, batch 1
    repeats              timed passes of each, in turn, after one that is not
    Returns a BenchSummary; raises GuardError when the logits differ, before anything is timed.
    """
    import torch

    from hybridna_core.model.hybrid import HybridLM

    transformers = _transformers()
    if hidden_size < 64 or hidden_size % 64 or repeats < 1 or layers < 1 or any(n < 1 for n in lengths):
        raise UsageError("hidden_size must be a multiple of 64; layers, lengths and repeats at least 1", where="bench")
    config = ModelConfig(
        hidden_size, 2 * hidden_size, layer_pattern(layers), hidden_size // 32, max(1, hidden_size // 128),
        mamba_n_heads=hidden_size // 32, mamba_d_state=128,
    )  # fmt: skip
    ours = HybridLM(config).eval().requires_grad_(False)
    theirs = bamba_twin(ours, transformers)
    timings = []
    for number, length in enumerate(lengths):
        tokens = torch.randint(7, 11, (1, length), generator=torch.Generator().manual_seed(length))

        def run_ours(tokens=tokens):
            with torch.no_grad():
                return ours.head(ours(tokens)[0])

        def run_theirs(tokens=tokens):
            with torch.no_grad():
                return theirs(tokens, use_cache=False).logits

        difference = float((run_ours() - run_theirs()).abs().max())
        if not difference < TOLERANCE:
            raise GuardError(f"logits differ by {difference:.2g}", where=f"{length} tokens")
        seconds = {run_ours: [], run_theirs: []}
        for _ in range(repeats):
            for function, taken in seconds.items():
                start = time.perf_counter()
                function()
                taken.append(time.perf_counter() - start)
        mine, other = (tuple(f(taken) for f in (statistics.median, min, max)) for taken in seconds.values())
        timings.append(Timing(length, mine, other, other[0] / mine[0], difference))
        if progress:
            progress(number + 1, len(lengths))
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    return BenchSummary(hidden_size, layers, torch.get_num_threads(), versions, tuple(timings))


def _transformers():
    try:
        import transformers
    except ImportError as error:
        hint = "pip install transformers==5.23.0"
        raise SystemFault(f"the peer to compare with is absent ({error})", where="bench", hint=hint) from None
    return transformers


def bamba_twin(model, transformers):
    """Build transformers' Bamba, rotary embedding off, with a model's own weights."""
    c = model.config
    peer_config = transformers.BambaConfig(
        vocab_size=c.vocab_size, hidden_size=c.hidden_size, intermediate_size=c.intermediate_size,
        num_hidden_layers=c.num_hidden_layers, num_attention_heads=c.num_attention_heads,
        num_key_value_heads=c.num_key_value_heads, mamba_n_heads=c.mamba_n_heads, mamba_d_head=c.mamba_d_head,
        attn_layer_indices=[i for i, kind in enumerate(c.layer_types) if kind == "attention"],
        mamba_n_groups=c.mamba_n_groups, mamba_d_state=c.mamba_d_state, mamba_d_conv=c.mamba_d_conv,
        mamba_expand=c.mamba_width // c.hidden_size, mamba_chunk_size=256, mamba_conv_bias=True, mamba_proj_bias=False,
        attention_bias=False, mlp_bias=False, rms_norm_eps=c.rms_norm_eps, tie_word_embeddings=False,
        z_loss_coefficient=0.0, pad_token_id=None, bos_token_id=None, eos_token_id=None,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.0},
    )  # fmt: skip
    peer = transformers.BambaForCausalLM(peer_config).eval().requires_grad_(False)
    peer.load_state_dict(model.state_dict(), strict=True)
    return peer
