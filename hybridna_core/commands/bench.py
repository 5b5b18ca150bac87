"""Speed on this machine, forward or forward and back, beside transformers' Bamba with the same weights.

random weights -> both models -> equal results, or no timing at all -> timed in turn -> medians and their ratio
"""

import statistics
import time
from typing import NamedTuple

from hybridna_core.config import ModelConfig, layer_pattern
from hybridna_core.errors import GuardError, SystemFault, UsageError

TASKS = ("forward", "train")
# Largest difference of a logit, and of a gradient relative to its tensor's largest, by precision of the products.
TOLERANCE = {"fp32": 1e-3, "bf16": 0.1}


class Timing(NamedTuple):
    """One length: seconds per pass (median, fastest, slowest) of each, and their ratio of medians.

    products    seconds (median) that the matrix products with weights of one forward pass take by themselves
    difference  largest one between the results of the two
    """

    tokens: int
    hybridna: tuple[float, float, float]
    bamba: tuple[float, float, float]
    ratio: float
    products: float
    difference: float


class BenchSummary(NamedTuple):
    """Timings of one run, with what they were taken on."""

    task: str
    precision: str
    hidden_size: int
    layers: int
    state_size: int
    threads: int
    versions: dict
    timings: tuple[Timing, ...]

    def to_dict(self):
        return {**self._asdict(), "timings": [t._asdict() for t in self.timings]}


def bench(
    *, task="forward", precision="fp32", hidden_size=256, layers=8, state_size=128, lengths=(2048, 8192), repeats=5,
    progress=None,
):  # fmt: skip
    """Time a pass of the whole model, logits included, against transformers' BambaForCausalLM in float32 on CPU.

    task                 forward, or train: the loss of every token and the gradients of all weights
    precision            of our matrix products: fp32, or bf16 (see `hybridna_kernels.gemm.bf16_products`)
    hidden_size, layers, state_size  of the model timed; the rest follows the presets' proportions
    lengths              tokens per pass, batch 1
    repeats              timed passes of each, in turn, after one that is not
    Returns a BenchSummary; raises GuardError when logits or gradients differ, before anything is timed.
    """
    import torch

    from hybridna_core.model.hybrid import HybridLM

    transformers = _transformers()
    if task not in TASKS or precision not in TOLERANCE:
        what = f"task is one of {', '.join(TASKS)}, precision one of {', '.join(TOLERANCE)}"
        raise UsageError(what, where="bench")
    if hidden_size < 64 or hidden_size % 64 or min(repeats, layers, state_size, *lengths) < 1:
        what = "hidden_size must be a multiple of 64; layers, state_size, lengths and repeats at least 1"
        raise UsageError(what, where="bench")
    config = ModelConfig(
        hidden_size, 2 * hidden_size, layer_pattern(layers), hidden_size // 32, max(1, hidden_size // 128),
        mamba_n_heads=hidden_size // 32, mamba_d_state=state_size,
    )  # fmt: skip
    ours = HybridLM(config).requires_grad_(task == "train")
    theirs = bamba_twin(ours, transformers).train(task == "train").requires_grad_(task == "train")
    timings = []
    for number, length in enumerate(lengths):
        tokens = torch.randint(7, 11, (1, length), generator=torch.Generator().manual_seed(length))
        with torch.set_grad_enabled(task == "train"):
            timings.append(_time(ours, theirs, tokens, task, precision, repeats))
        if progress:
            progress(number + 1, len(lengths))
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    threads = torch.get_num_threads()
    return BenchSummary(task, precision, hidden_size, layers, state_size, threads, versions, tuple(timings))


def _time(ours, theirs, tokens, task, precision, repeats):
    """Compare both models on the same tokens, then time them in turn; return a Timing."""
    import torch

    from hybridna_core.train.loop import is_counted
    from hybridna_kernels.gemm import bf16_products, linear

    def run_ours():
        with bf16_products(precision == "bf16"):
            return finish(ours, ours.head(ours(tokens)[0]))

    def run_theirs():
        return finish(theirs, theirs(tokens, use_cache=False).logits)

    def finish(model, logits):
        if task == "forward":
            return [logits]
        model.zero_grad()
        target = tokens[:, 1:][is_counted(tokens)]
        torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), target).backward()
        return [p.grad / p.grad.abs().max() for _, p in sorted(model.named_parameters())]

    difference = max(float((a - b).abs().max()) for a, b in zip(run_ours(), run_theirs(), strict=True))
    if not difference < TOLERANCE[precision]:
        what = "logits" if task == "forward" else "gradients"
        raise GuardError(f"{what} differ by {difference:.2g}", where=f"{tokens.shape[1]} tokens")
    weights = [p.detach() for name, p in ours.named_parameters() if p.ndim == 2 and "embed" not in name]
    inputs = {w.shape[1]: torch.randn(min(tokens.shape[1], ours.segment), w.shape[1]) for w in weights}

    @torch.no_grad()
    def run_products():
        with bf16_products(precision == "bf16"):
            for _ in range(0, tokens.shape[1], ours.segment):
                for weight in weights:
                    linear(inputs[weight.shape[1]], weight)

    run_products()
    seconds = {run_ours: [], run_theirs: [], run_products: []}
    for _ in range(repeats):
        for function, taken in seconds.items():
            start = time.perf_counter()
            function()
            taken.append(time.perf_counter() - start)
    mine, other, products = (tuple(f(taken) for f in (statistics.median, min, max)) for taken in seconds.values())
    return Timing(tokens.shape[1], mine, other, other[0] / mine[0], products[0], difference)


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
