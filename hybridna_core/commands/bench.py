"""Speed on this machine: a model's passes and what the commands do with them, each beside another way to the same.

random weights -> both ways -> equal results, or no timing at all -> timed in turn -> medians and their ratio
"""

from typing import NamedTuple

from hybridna_core.checkpoint import choose_device, version
from hybridna_core.config import ModelConfig, layer_pattern
from hybridna_core.data.writers import check_output
from hybridna_core.errors import UsageError, nearest

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
    "mixer": Task("transformers' Mamba2Mixer", "tokens", (8192,)),
    "score": Task("two full passes per allele", "alleles", (2048,), 128, 64),
    "embed": Task("plain torch (HYBRIDNA_KERNELS=reference)", "regions", (1024,), count=64),
    "beam": Task("states reordered, then updated by plain torch", "beams", (100,), count=2500),
    "lengths": Task("a Transformer of as many parameters", "tokens", FOUR_LENGTHS, 128, 64),
}

# Tasks beside transformers, and what precision their products may have.
PEERED, PRECISIONS = ("forward", "train", "mixer"), ("fp32", "bf16")
# Tasks that CUDA devices can take.
ON_CUDA = ("forward", "train", "lengths")


class BenchSummary(NamedTuple):
    """Rows of one run, with what they were taken on.

    unit     of what rows count
    device   cpu, or the name of the GPU
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
    device: str
    threads: int
    versions: dict
    kernels: dict
    rows: tuple

    def to_dict(self):
        return {**self._asdict(), "rows": [row._asdict() for row in self.rows]}


def bench(
    *, task="forward", precision="fp32", hidden_size=None, layers=8, state_size=None, lengths=None, count=None,
    repeats=5, limit=600, plot=None, force=False, device="cpu", progress=None,
):  # fmt: skip
    """Time a task beside another way to the same results, which are compared first; return a BenchSummary.

    task                 forward: logits of all tokens, or train: loss of every token and gradients of all weights, both
                         beside transformers' BambaForCausalLM in float32 with the same weights; mixer: a Mamba-2
                         mixer beside transformers'; score: the scorer beside two full passes per allele; embed: the
                         kernels beside plain torch; beam: one step of beams beside a step that reorders states first;
                         lengths: log-probabilities of all tokens, beside a Transformer of the same size
    precision            of our matrix products beside transformers: fp32, or bf16 (`gemm.bf16_products`); on CUDA of
                         both ways, lengths too: bf16 are the weights, or in train the products (torch's autocast)
    hidden_size, layers, state_size  of the model timed; the rest follows the presets' proportions
    lengths              tokens per pass, batch 1; score: of a window; embed: of a region; beam: read by each beam
    count                regions of embed, beams of beam
    repeats              timed passes of each, in turn, after one that is not
    limit                of lengths: seconds that one model may take at one length before longer ones are skipped
    plot                 .png to draw the rows into
    force                an existing picture may be replaced
    device               cpu, as aims are for it; ON_CUDA: auto, cuda, cuda:n too
    The sizes that are None are those of TASKS. Raises GuardError when results differ, before anything is timed.
    """
    import torch

    from hybridna_core.bench_plot import draw_bench
    from hybridna_core.effect_plot import check_plot
    from hybridna_core.model.hybrid import HybridLM, count_parameters
    from hybridna_kernels import dispatch

    if str(device) == "auto":
        device = choose_device(device)
    kind = choose_task(task, precision, count, str(device))
    device = choose_device(device)
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
    if task in PEERED:
        from hybridna_core.peer_passes import find_transformers

        versions["transformers"] = find_transformers().__version__
    config = ModelConfig(
        hidden_size, 2 * hidden_size, layer_pattern(layers), hidden_size // 32, max(1, hidden_size // 128),
        mamba_n_heads=hidden_size // 32, mamba_d_state=state_size,
    )  # fmt: skip
    dtype = torch.bfloat16 if precision == "bf16" and device.type == "cuda" else torch.float32
    if task == "lengths":
        from hybridna_core.context_lengths import time_lengths

        rows = time_lengths(config, lengths, repeats, limit, progress, device, precision)
    else:
        model = HybridLM(config, device, torch.float32 if task == "train" else dtype)
        model = model.train(task == "train").requires_grad_(task == "train")
        rows = []
        for number, length in enumerate(lengths, start=1):
            rows += _time_task(task, model, length, count, precision, repeats)
            if progress:
                progress(number, len(lengths))
    kernels = {op: name for op, name, state in dispatch.report(device, dtype) if state == "in use"}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    summary = BenchSummary(
        task, kind.beside, kind.unit, precision, hidden_size, layers, state_size, count_parameters(config),
        name, torch.get_num_threads(), versions, kernels, tuple(rows),
    )  # fmt: skip
    if plot is not None:
        draw_bench(summary, plot, force=force)
    return summary


def choose_task(task, precision, count, device):
    """Return the Task of a name; raise UsageError for what there is not, and for options that are another task's."""
    if task not in TASKS:
        close = nearest(task, TASKS)
        hint = f"did you mean {close}?" if close else None
        raise UsageError(f"is {task!r}, must be {', '.join(TASKS)}", where="--task", hint=hint)
    if precision not in PRECISIONS:
        raise UsageError(f"is {precision!r}, must be {' or '.join(PRECISIONS)}", where="--precision")
    if device.startswith("cuda") and task not in ON_CUDA:
        raise UsageError(f"{task} is timed on the CPU", where="--device", hint=f"{', '.join(ON_CUDA)} run on CUDA too")
    if precision != "fp32" and task not in PEERED and not device.startswith("cuda"):
        hint = "--device cuda takes bf16" if task in ON_CUDA else None
        raise UsageError(f"{task} is timed in fp32", where="--precision", hint=hint)
    if count is not None and TASKS[task].count is None:
        raise UsageError(f"{task} has no number of things to choose", where="--count")
    return TASKS[task]


def _time_task(task, model, length, count, precision, repeats):
    """Yield the Timings of one length."""
    from hybridna_core import peer_passes, slow_ways

    if task == "score":
        yield from slow_ways.time_all_scores(model, length, repeats)
    elif task == "embed":
        yield slow_ways.time_embedding(model, length, count, repeats)
    elif task == "beam":
        yield from slow_ways.time_beams(model, length, count, repeats)
    elif task == "mixer":
        yield peer_passes.time_mixer(model, length, precision, repeats)
    else:
        yield peer_passes.time_passes(model, length, task, precision, repeats)
