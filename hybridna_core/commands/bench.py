"""Speed on this machine: a model's passes and what the commands do with them, each beside another way to the same.

random weights -> both ways -> equal results, or no timing at all -> timed in turn -> medians and their ratio
"""

from typing import NamedTuple

from hybridna_core.checkpoint import version
from hybridna_core.config import ModelConfig, layer_pattern
from hybridna_core.data.writers import check_output
from hybridna_core.errors import SystemFault, UsageError, nearest
from hybridna_core.timing import check_equal, make_timing, take_turns

# Largest difference of a logit, and of a gradient relative to its tensor's largest, by precision of the products.
TOLERANCE = {"fp32": 1e-3, "bf16": 0.1}

# The strides timed must leave something to read before a change.
LEAST_WINDOW = 128


class Task(NamedTuple):
    """What is timed beside what, and the sizes that are taken unless others are asked for.

    unit   of what is counted
    count  of it in one pass, where that is neither tokens nor laid down by the task
    """

    beside: str
    unit: str
    lengths: tuple
    hidden_size: int = 256
    state_size: int = 128
    count: int | None = None


BAMBA, FOUR_LENGTHS = "transformers' Bamba", (2048, 8192, 32768, 131072)
TASKS = {
    "forward": Task(BAMBA, "tokens", (2048, 8192)),
    "train": Task(BAMBA, "tokens", (2048, 8192)),
    "score": Task("two full passes per allele", "alleles", (2048,), 128, 64),
    "embed": Task("plain torch (HYBRIDNA_KERNELS=reference)", "regions", (1024,), count=64),
    "beam": Task("states reordered, then updated by plain torch", "beams", (100,), count=2500),
    "lengths": Task("a Transformer of as many parameters", "tokens", FOUR_LENGTHS, 128, 64),
}


class BenchSummary(NamedTuple):
    """Rows of one run, with what they were taken on.

    unit     of what rows count
    kernels  backend in use, by op
    rows     Timings; of `lengths` Points
    """

    task: str
    beside: str
    unit: str
    precision: str
    hidden_size: int
    layers: int
    state_size: int
    parameters: int
    threads: int
    versions: dict
    kernels: dict
    rows: tuple

    def to_dict(self):
        return {**self._asdict(), "rows": [row._asdict() for row in self.rows]}


def bench(
    *, task="forward", precision="fp32", hidden_size=None, layers=8, state_size=None, lengths=None, count=None,
    repeats=5, limit=600, plot=None, force=False, progress=None,
):  # fmt: skip
    """Time a task on CPU beside another way to the same results, which are compared first; return a BenchSummary.

    task                 forward: logits of all tokens, or train: loss of every token and gradients of all weights, both
                         beside transformers' BambaForCausalLM in float32 with the same weights; score: the scorer
                         beside two full passes per allele; embed: the kernels beside plain torch; beam: one step of
                         beams beside a step that reorders states first; lengths: log-probabilities of all tokens,
                         beside a Transformer of the same size, with peak memory
    precision            of our matrix products in forward and train: fp32, or bf16 (`gemm.bf16_products`)
    hidden_size, layers, state_size  of the model timed; the rest follows the presets' proportions
    lengths              tokens per pass, batch 1; score: of a window; embed: of a region; beam: read by each beam
    count                regions of embed, beams of beam
    repeats              timed passes of each, in turn, after one that is not
    limit                of lengths: seconds that one model may take at one length before longer ones are skipped
    plot                 .png to draw the rows into
    force                an existing picture may be replaced
    The sizes that are None are those of TASKS. Raises GuardError when results differ, before anything is timed.
    """
    import torch

    from hybridna_core.bench_plot import draw_bench
    from hybridna_core.effect_plot import check_plot
    from hybridna_core.model.hybrid import HybridLM, count_parameters
    from hybridna_kernels import dispatch

    kind = choose_task(task, precision, count)
    hidden_size = kind.hidden_size if hidden_size is None else hidden_size
    state_size = kind.state_size if state_size is None else state_size
    lengths, count = tuple(lengths or kind.lengths), kind.count if count is None else count
    least = min(repeats, layers, state_size, limit, *lengths, *([] if count is None else [count]))
    if hidden_size < 64 or hidden_size % 64 or least < 1:
        what = "hidden_size must be a multiple of 64; layers, state_size, lengths, count, repeats and limit at least 1"
        raise UsageError(what, where="bench")
    if task == "score" and min(lengths) < LEAST_WINDOW:
        raise UsageError(f"a window of {min(lengths)} is too short, {LEAST_WINDOW} at least", where="--length")
    if plot is not None:
        check_plot(plot)
        check_output(plot, force=force)
    versions = {"hybridna": version(), "torch": torch.__version__}
    if task in ("forward", "train"):
        versions["transformers"] = _transformers().__version__
    config = ModelConfig(
        hidden_size, 2 * hidden_size, layer_pattern(layers), hidden_size // 32, max(1, hidden_size // 128),
        mamba_n_heads=hidden_size // 32, mamba_d_state=state_size,
    )  # fmt: skip
    if task == "lengths":
        from hybridna_core.context_lengths import time_lengths

        rows = time_lengths(config, lengths, repeats, limit, progress)
    else:
        model = HybridLM(config).train(task == "train").requires_grad_(task == "train")
        rows = []
        for number, length in enumerate(lengths, start=1):
            rows += _time_task(task, model, length, count, precision, repeats)
            if progress:
                progress(number, len(lengths))
    kernels = {op: name for op, name, state in dispatch.report() if state == "in use"}
    summary = BenchSummary(
        task, kind.beside, kind.unit, precision, hidden_size, layers, state_size, count_parameters(config),
        torch.get_num_threads(), versions, kernels, tuple(rows),
    )  # fmt: skip
    if plot is not None:
        draw_bench(summary, plot, force=force)
    return summary


def choose_task(task, precision, count):
    """Return the Task of a name; raise UsageError for what there is not, and for options that are another task's."""
    if task not in TASKS:
        close = nearest(task, TASKS)
        hint = f"did you mean {close}?" if close else None
        raise UsageError(f"is {task!r}, must be {', '.join(TASKS)}", where="--task", hint=hint)
    if precision not in TOLERANCE:
        raise UsageError(f"is {precision!r}, must be {' or '.join(TOLERANCE)}", where="--precision")
    if precision != "fp32" and task not in ("forward", "train"):
        raise UsageError(f"{task} is timed in fp32", where="--precision")
    if count is not None and TASKS[task].count is None:
        raise UsageError(f"{task} has no number of things to choose", where="--count")
    return TASKS[task]


def _time_task(task, model, length, count, precision, repeats):
    """Yield the Timings of one length."""
    from hybridna_core import slow_ways

    if task == "score":
        yield from slow_ways.time_all_scores(model, length, repeats)
    elif task == "embed":
        yield slow_ways.time_embedding(model, length, count, repeats)
    elif task == "beam":
        yield from slow_ways.time_beams(model, length, count, repeats)
    else:
        yield _time_passes(model, length, task, precision, repeats)


def _time_passes(ours, length, task, precision, repeats):
    """Compare a model and transformers' on the same tokens, then time them in turn; return a Timing."""
    import torch

    from hybridna_core.train.loop import is_counted
    from hybridna_kernels.gemm import bf16_products, linear

    theirs = bamba_twin(ours, _transformers()).train(task == "train").requires_grad_(task == "train")
    tokens = torch.randint(7, 11, (1, length), generator=torch.Generator().manual_seed(length))

    def run_ours():
        with bf16_products(precision == "bf16"), torch.set_grad_enabled(task == "train"):
            return finish(ours, ours.head(ours(tokens)[0]))

    def run_theirs():
        with torch.set_grad_enabled(task == "train"):
            return finish(theirs, theirs(tokens, use_cache=False).logits)

    def finish(model, logits):
        if task == "forward":
            return [logits]
        model.zero_grad()
        target = tokens[:, 1:][is_counted(tokens)]
        torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), target).backward()
        return [p.grad / p.grad.abs().max() for _, p in sorted(model.named_parameters())]

    what = "logits" if task == "forward" else "gradients"
    difference = check_equal(what, run_ours(), run_theirs(), TOLERANCE[precision], f"{length} tokens")
    weights = [p for name, p in ours.named_parameters() if p.ndim == 2 and "embed" not in name]
    inputs = {w.shape[1]: torch.randn(min(length, ours.segment), w.shape[1]) for w in weights}

    @torch.no_grad()
    def run_products():
        with bf16_products(precision == "bf16"):
            for _ in range(0, length, ours.segment):
                for weight in weights:
                    linear(inputs[weight.shape[1]], weight)

    run_products()
    seconds = take_turns([run_ours, run_theirs, run_products], repeats)
    return make_timing("", length, length, seconds, difference)


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
