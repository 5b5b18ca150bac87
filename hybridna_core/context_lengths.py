"""Speed and memory against context length: the hybrid beside a Transformer of the same size.

config -> attention in every layer, MLPs widened to as many parameters -> both equal to plain torch, or GuardError
-> each length and model in a process of its own -> Points
"""

import dataclasses
import json
import os
import subprocess
import sys
import time
from typing import NamedTuple

from hybridna_core.config import ModelConfig, build
from hybridna_core.errors import SystemFault
from hybridna_core.memory import forget_peak, held_bytes, peak_bytes, return_freed_memory
from hybridna_core.timing import TOLERANCE, check_equal, forced_kernels, spread, wait

CHECKED_TOKENS = 2048
# The Transformer's attention is torch's own, unless the environment asks for something else.
TRANSFORMER_KERNELS = "attention=sdpa"
KILLED = (-9, 137)


class Point(NamedTuple):
    """One model at one length: log-probabilities of all tokens, batch 1.

    status      ok, or why there are no figures
    seconds     of a pass: median, fastest, slowest
    passes      that were timed
    ratio       of the hybrid's speed to the Transformer's
    peak_bytes  most that a pass took beside the loaded model; None where the system does not say
    resident    most that the whole process took; on CUDA of its tensors, the model among them
    """

    model: str
    tokens: int
    status: str
    seconds: tuple[float, float, float] | None = None
    passes: int = 0
    tokens_per_second: float | None = None
    ratio: float | None = None
    peak_bytes: int | None = None
    resident: int | None = None


def make_models(config):
    """Return {name: ModelConfig} of the hybrid and of the Transformer with as many parameters."""
    from hybridna_core.model.hybrid import count_parameters, match_size

    layers = ("attention",) * config.num_hidden_layers
    return {
        "hybrid": config,
        "transformer": match_size(dataclasses.replace(config, layer_types=layers), count_parameters(config)),
    }


def kernels_of(name):
    """Return what HYBRIDNA_KERNELS is for a model's process."""
    asked = os.environ.get("HYBRIDNA_KERNELS", "")
    return asked or (TRANSFORMER_KERNELS if name == "transformer" else "")


def time_lengths(config, lengths, repeats, limit, progress=None, device="cpu", precision="fp32"):
    """Measure both models at all lengths, from the shortest; return the list of Points.

    limit      seconds that one point may take, start of its process included; what is longer than a point that took
               more is not tried
    precision  of both models' weights and of what lies between them: fp32 or bf16
    Raises GuardError when a model's log-probabilities differ from those of plain torch, before anything is timed.
    """
    models, stopped, points = make_models(config), {}, []
    for name, own in models.items():
        check_model(name, own, min(*lengths, CHECKED_TOKENS), device, precision)
    # The processes that measure need it.
    return_freed_memory(device)
    for length in sorted(lengths):
        for name, own in models.items():
            if name in stopped:
                points.append(Point(name, length, f"skipped: {stopped[name]}"))
            else:
                points.append(measure_apart(name, own, length, repeats, limit, device, precision))
                if points[-1].status != "ok":
                    stopped[name] = f"{length:,} tokens were {points[-1].status}"
            if progress:
                progress(len(points), len(models) * len(lengths))
        hybrid, transformer = points[-2:]
        if hybrid.seconds and transformer.seconds:
            points[-2] = hybrid._replace(ratio=transformer.seconds[0] / hybrid.seconds[0])
    return points


def check_model(name, config, length, device, precision):
    """Compare the log-probabilities of a model, read in segments, with those of plain torch in one piece."""
    model, tokens = make_model(config, device, precision), draw_tokens(length).to(device)
    ours, plain = [], []
    with forced_kernels(kernels_of(name) or "auto"):
        ours.append(read_all(model, tokens))
    with forced_kernels("reference"):
        plain.append(read_all(model, tokens, segment=length))
    check_equal("log-probabilities", ours, plain, TOLERANCE[precision], f"{name}, {length:,} tokens")


def make_model(config, device, precision):
    import torch

    from hybridna_core.model.hybrid import HybridLM

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return HybridLM(config, device, dtype).eval().requires_grad_(False)


def draw_tokens(length):
    import torch

    from hybridna_core.tokenizer import BASE_IDS

    generator = torch.Generator().manual_seed(length)
    return torch.randint(BASE_IDS[0], BASE_IDS[-1] + 1, (1, length), generator=generator)


def read_all(model, tokens, segment=None):
    from hybridna_core.model.likelihood import read

    return read(model, tokens, segment=segment)[0]


def measure_apart(name, config, length, repeats, limit, device="cpu", precision="fp32"):
    """Measure one point in a process of its own; return the Point, whose status tells when that took too long."""
    import torch

    job = {
        "config": dataclasses.asdict(config), "tokens": length, "repeats": repeats, "until": time.time() + limit,
        "device": str(device), "precision": precision,
    }  # fmt: skip
    command = [sys.executable, "-m", "hybridna_core.context_lengths", json.dumps(job)]
    threads = str(torch.get_num_threads())
    environment = {**os.environ, "HYBRIDNA_KERNELS": kernels_of(name), "OMP_NUM_THREADS": threads}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, env=environment)
    except subprocess.TimeoutExpired:
        return Point(name, length, f"over the limit of {limit:g} s")
    if done.returncode in KILLED:
        return Point(name, length, "killed by the system, out of memory")
    if done.returncode:
        what = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise SystemFault(f"the process that measures failed ({what})", where=f"{name}, {length:,} tokens")
    found = json.loads(done.stdout.splitlines()[-1])
    if found is None:
        return Point(name, length, "out of memory")
    seconds = spread(found["seconds"])
    return Point(name, length, "ok", seconds, len(found["seconds"]), length / seconds[0], None, found["peak"],
                 found["resident"])  # fmt: skip


def measure(config, length, repeats, until, device="cpu", precision="fp32"):
    """Time passes of a new model in this process, as many as end before a moment, one at least; return the figures."""
    model, tokens = make_model(config, device, precision), draw_tokens(length).to(device)
    loaded = held_bytes(device)
    # Kernels are made and threads started by a short pass; CUDA chooses kernels for each length.
    read_all(model, tokens[:, : 2 * model.segment] if device == "cpu" else tokens)
    forget_peak(device)
    seconds = []
    while not seconds or (len(seconds) < repeats and time.time() + 1.2 * max(seconds) < until):
        wait(device)
        start = time.perf_counter()
        read_all(model, tokens)
        wait(device)
        seconds.append(time.perf_counter() - start)
    resident = peak_bytes(device)
    peak = None if resident is None or loaded is None else max(0, resident - loaded)
    return {"seconds": seconds, "peak": peak, "resident": resident}


def main():
    import torch

    job = json.loads(sys.argv[1])
    config = build(ModelConfig, job["config"], "config")
    try:
        figures = measure(config, job["tokens"], job["repeats"], job["until"], job["device"], job["precision"])
    except torch.OutOfMemoryError:
        figures = None
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
