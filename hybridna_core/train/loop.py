"""The training loop of pretraining and fine-tuning: step, accumulate, clip, log, save.

task -> rows of one step -> microbatches -> loss, gradients -> clip -> AdamW; now and then: log, validation, snapshot

What is trained on, what is lost there and how it is measured is the task's: `Pretraining` or `Tuning`.
"""

import contextlib
import math
import time
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from hybridna_core.data.inputs import warn
from hybridna_core.errors import GuardError, OutOfMemory
from hybridna_core.memory import spell_bytes, used_bytes
from hybridna_core.tokenizer import A, T
from hybridna_core.train.guards import Spike, SpikeGuard, spell_spike
from hybridna_core.train.log import Log, open_sinks
from hybridna_core.train.optim import learning_rate
from hybridna_core.train.parallel import ALONE
from hybridna_core.train.signals import Abandoned, Signals
from hybridna_core.train.snapshots import save_snapshot
from hybridna_kernels.gemm import bf16_products
from hybridna_kernels.pointwise import cross_entropy

LN2 = math.log(2)


class StepResult(NamedTuple):
    """What one step did on all ranks: mean loss over counted bases (bits), their number, gradient norm before clipping.

    bases is the sum of the bases' weights where they have some; spike says why the step was not taken.
    """

    bits: float
    bases: float
    gradient_norm: float
    spike: Spike | None = None


def choose_precision(wanted, device):
    """Turn auto, fp32 or bf16 into the last two: auto is bf16 on a GPU, as the published models were trained."""
    return wanted if wanted != "auto" else ("fp32" if device.type == "cpu" else "bf16")


def with_start(ids, bos):
    """Put the start token before windows. (n, bases) uint8 -> (n, bases + 1) int64, or (n, bases) without one"""
    tokens = torch.from_numpy(np.asarray(ids)).long()
    return tokens if bos is None else F.pad(tokens, (1, 0), value=bos)


def stack_weights(windows, bos):
    """Stack the weights of windows as (n, bases + 1) float32, or (n, bases) without a start token; None if none."""
    if windows[0].weights is None:
        return None
    weights = torch.from_numpy(np.stack([window.weights for window in windows]))
    return weights if bos is None else F.pad(weights, (1, 0))


def loss_sum(model, tokens, weights=None, precision="fp32", bases_alone=False):
    """Sum the negative log-probability (nats) of every A, C, G, T after the first token.

    tokens     (batch, n) int64
    weights    (batch, n) float32, what each base's loss is multiplied by, or None
    precision  bf16: matrix products in bfloat16; norms, the recurrence, softmax, head and loss in float32
    bases_alone  probabilities over A, C, G, T, as scores and generation have them, not over the whole vocabulary
    returns    the sum and the number of bases in it, each counted as its weight
    """
    # On CPU the products alone are rounded, by `bf16_products`.
    rounded = precision == "bf16" and tokens.device.type != "cpu"
    with torch.autocast(tokens.device.type, torch.bfloat16, enabled=rounded):
        hidden, _ = model(tokens[:, :-1])
    target = tokens[:, 1:].masked_fill(~is_counted(tokens), -1).flatten()
    hidden, head = hidden.to(model.dtype).flatten(0, 1), model.lm_head.weight
    if bases_alone:
        head, target = head[A : T + 1], torch.where(target < 0, target, target - A)
    each = cross_entropy(hidden, head, target)
    total = each.sum() if weights is None else (each * weights[:, 1:].flatten()).sum()
    return total, count_bases(tokens, weights)


def is_counted(tokens):
    """Say which tokens after the first are counted in the loss. tokens (batch, n) -> (batch, n - 1) bool"""
    target = tokens[:, 1:]
    return (target >= A) & (target <= T)


def count_bases(tokens, weights=None):
    """Count the bases that the loss of these rows is summed over, each as its weight; shapes as in `loss_sum`."""
    counted = is_counted(tokens)
    return int(counted.sum()) if weights is None else float(weights[:, 1:][counted].double().sum())


def train_step(
    model, optimizer, tokens, weights=None, *, lr, clip, microbatch_tokens, bases=None, precision="fp32", world=ALONE,
    names=None, judge=None, breakable=contextlib.nullcontext, loss=None,
):  # fmt: skip
    """Take one optimiser step over the rows of all ranks; they weigh the same however they are split.

    tokens, weights  (batch, n) of this rank, see `loss_sum`
    bases            counted bases of all ranks, those of `tokens` when None
    names            per rank, what its rows are called in messages
    judge            called with the bits per base of all ranks; a Spike from it leaves the weights as they were
    breakable        gives the context in which the step may be abandoned; weights are then as before
    loss             called and returning as `loss_sum`, which it is when None
    raises           GuardError on a non-finite loss or gradient on any rank, OutOfMemory; weights are then as before
    """
    rows = max(1, microbatch_tokens // tokens.shape[1])
    bases = count_bases(tokens, weights) if bases is None else bases
    parts = zip(tokens.split(rows), [None] * len(tokens) if weights is None else weights.split(rows), strict=False)
    total, norm, short = 0.0, 0.0, False
    loss = loss_sum if loss is None else loss
    try:
        with breakable():
            for part, weight in parts:
                # Around the way back too, as blocks may be computed again there.
                with world.watch(), bf16_products(precision == "bf16"):
                    weight = None if weight is None else weight.to(model.device)
                    lost, _ = loss(model, part.to(model.device), weight, precision)
                    (lost * world.gradient_factor / (bases or 1)).backward()
                total += float(lost.detach())
        if world.size > 1 and world.shard != "full":
            # A rank's own gradient can be told only before the sum.
            norm = float(torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]))
    except Abandoned:
        model.zero_grad(set_to_none=True)
        raise
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        model.zero_grad(set_to_none=True)
        if world.shard == "full":
            # The others wait for this rank's share of the weights and cannot be met.
            raise OutOfMemory("out of memory") from None
        short = True
    reports = world.gather_numbers(total, norm, short)
    if any(report[2] for report in reports):
        model.zero_grad(set_to_none=True)
        raise OutOfMemory("out of memory")
    if world.size > 1:
        _refuse_nonfinite(model, [report[:2] for report in reports], names)
    world.sum_gradients(model)
    norm, total = _clip(model, clip), sum(report[0] for report in reports)
    _refuse_nonfinite(model, [(total, norm)])
    result = StepResult(total / (bases or 1) / LN2, bases, norm)
    spike = judge(result.bits) if judge is not None else None
    if spike is not None:
        model.zero_grad(set_to_none=True)
        return result._replace(spike=spike)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    world.spread_weights(optimizer)
    model.zero_grad(set_to_none=True)
    return result


def _clip(model, clip):
    """Cut the gradient down to a norm; return its norm before."""
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)


def _refuse_nonfinite(model, reports, names=()):
    """Raise GuardError, gradients dropped, if a loss or gradient norm is not finite. reports: (loss, norm) per rank"""
    for rank, (loss, norm) in enumerate(reports):
        if not (math.isfinite(loss) and math.isfinite(norm)):
            model.zero_grad(set_to_none=True)
            whose = f" on rank {rank} ({names[rank]})" if names and len(reports) > 1 else ""
            raise GuardError(f"loss {loss} and gradient norm {norm} are not finite{whose}")


def is_out_of_memory(error):
    """Say whether an exception is Python's or torch's way to run out of memory."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def train(model, optimizer, run, task, *, folder, position, progress=None, precision="fp32", world=ALONE):
    """Run a task from a position on; return the last position and what the last validation measured.

    run       configuration with `name`, `optim`, `save`, `valid`, `guard` and `log`
    task      Pretraining or Tuning: the rows of each step, their loss, what is measured
    position  dict with `step` (steps done in all), what the task keeps there, and `since`: bits and bases since the
              last line of the log; all ranks' the same
    progress  called with steps done, steps in all and note=, a text
    raises    Stopped after a signal, with a snapshot saved; GuardError, with the last snapshot good

    Every rank calls it with the same arguments; the first one alone logs, writes and shows progress.
    """
    total = int(task.ends[-1])
    since = position.setdefault("since", {"bits": 0.0, "bases": 0})
    task.begin(position)
    guard = SpikeGuard(run.guard, position.setdefault("guard", {}), task.unit)
    clock, tokens_since, loading, note = time.monotonic(), 0, 0.0, ""
    progress = progress if world.is_first else None
    with contextlib.ExitStack() as stack:
        log = None
        if world.is_first:
            log = stack.enter_context(contextlib.closing(Log(folder / "log.jsonl", position["step"])))
        with world.together():
            if log is not None:
                log.sinks += open_sinks(run.log, folder, position["step"], run.name)
        # torchrun passes a signal on that a terminal has sent to all already.
        signals = stack.enter_context(Signals(patience=0.0 if world.size == 1 else 2.0, alone=world.size == 1))
        # A signal may have come between a step and its validation.
        _validate_when_due(model, run, task, position, log, signals, world)
        signals.agree(world)
        signals.check(position["step"], world)

        def save():
            if log is not None:
                log.sync()
                task.write(folder, position)
            save_snapshot(
                folder / "snapshots", model, optimizer, position, keep=run.save.keep, world=world, best=task.best
            )

        if progress:
            progress(position["step"], total)
        saved = position["step"]
        while position["step"] < total and not task.is_over(position):
            try:
                stage, lr, result, seconds = _take_step(
                    model, optimizer, run, task, position, precision, world, guard, signals.breakable
                )
            except Abandoned:
                # A step that goes on for longer than a stop may take; it is taken anew when the run goes on.
                step = position["step"]
                if step > saved:
                    save()
                signals.check(step, world)
            step = position["step"]
            tokens_since += task.count_tokens(step) - task.count_tokens(step - 1)
            loading += seconds
            if result.spike is None:
                since["bits"] += result.bits * result.bases
                since["bases"] += result.bases
            elif log is not None:
                log.write(step=step, stage=stage, skipped=result.spike._asdict())
                warn("spike", f"step {step:,} skipped: {spell_spike(result.spike, task.unit)}")
            if step % run.save.log_every == 0 or step == total:
                now = time.monotonic()
                bits, rate = since["bits"] / since["bases"] if since["bases"] else None, tokens_since / (now - clock)
                if log is not None:
                    log.write(
                        step=step, stage=stage, **{task.unit.replace("/", "_per_"): bits}, lr=lr,
                        gradient_norm=result.gradient_norm, tokens=task.count_tokens(step), tokens_per_second=rate,
                        loader_share=loading / (now - clock),
                    )  # fmt: skip
                clock, tokens_since, loading = now, 0, 0.0
                since.update(bits=0.0, bases=0)
                note = spell_note(bits, rate, used_bytes(world.device), task.unit)
            if progress:
                progress(step, total, note=note)
            paused = time.monotonic()
            _validate_when_due(model, run, task, position, log, signals, world)
            signals.agree(world)
            if step % run.save.every == 0 or step == total or signals.number or task.is_over(position):
                save()
                saved = step
            signals.check(step, world)
            # Speed is that of training alone.
            clock += time.monotonic() - paused
        return position, world.share(log and (log.valid_at(position["step"]) or {}))


def _take_step(model, optimizer, run, task, position, precision, world, guard, breakable):
    """Take the next step and move the position on.

    returns  the stage's number, the learning rate, the StepResult, the seconds that this rank's rows took to read
    """
    step = position["step"]
    world.at(f"step {step + 1}")
    stage = find_stage(task.ends, step)
    lr = learning_rate(step, int(task.ends[-1]), run.optim)
    with world.together():
        # The same rows in the same step, however many ranks share them.
        began = time.perf_counter()
        tokens, weights = task.read(step, world.rank, world.size)
        loading = time.perf_counter() - began
    guard.enter(stage)
    microbatch = position.get("microbatch_tokens", run.optim.microbatch_tokens)
    try:
        while True:
            try:
                result = train_step(
                    model, optimizer, tokens, lr=lr, clip=run.optim.clip, microbatch_tokens=microbatch,
                    bases=world.sum(task.count(tokens, weights)), precision=precision, world=world, weights=weights,
                    names=[task.spell(step, rank, world.size) for rank in range(world.size)],
                    judge=guard.find_spike, breakable=breakable, loss=task.loss,
                )  # fmt: skip
                guard.note(result.bits, result.spike)
                break
            except OutOfMemory:
                microbatch = _smaller_microbatch(tokens, microbatch, step + 1, task, world)
                position["microbatch_tokens"] = microbatch
    except GuardError as error:
        rows = task.spell(step)
        what = error.what if rows.split()[0] in error.what else f"{error.what} ({rows})"
        hint = f"begin again in another folder with a lower {task.rate_option}; the last snapshot is good"
        raise world.spoken(GuardError(what, where=f"step {step + 1}", hint=hint)) from None
    task.note(position)
    position["step"] = step + 1
    return stage, lr, result, loading


def spell_note(bits, rate, memory, unit="bits/base"):
    """Spell how training goes: 1.902 bits/base, 12,345 tokens/s, 3.2 GiB; what is None is left out."""
    parts = [f"{rate:,.0f} tokens/s"]
    if bits is not None:
        parts.insert(0, f"{bits:.3f} {unit}")
    if memory is not None:
        parts.append(spell_bytes(memory))
    return ", ".join(parts)


def _smaller_microbatch(tokens, microbatch, step, task, world):
    """Return half a microbatch after memory ran out; raise OutOfMemory when that was a single row already.

    With `full` a rank that runs out of memory leaves the others waiting, so that there is no second try.
    """
    length = tokens.shape[1]
    rows = min(len(tokens), max(1, microbatch // length))
    if rows > 1 and world.shard != "full":
        warn("memory", f"step {step:,}: out of memory with {rows} {task.row}s at once; from here on {rows // 2}")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return rows // 2 * length
    what = f"out of memory with {rows} {task.row}{'s' * (rows > 1)} of {length:,} tokens at once"
    where = f"rank {world.rank}, step {step}" if world.shard == "full" else f"step {step}"
    error = OutOfMemory(what, where=where, hint=task.save_memory(rows // 2 * length))
    raise (error if world.shard == "full" else world.spoken(error)) from None


def find_stage(ends, step):
    """Return the number of the stage that step number `step` (from 0) belongs to; ends: steps up to each one's end."""
    return int(np.searchsorted(ends, step, side="right"))


def _validate_when_due(model, run, task, position, log, signals, world):
    """Measure what is held out after the position's steps and log it, if that is due and not yet done."""
    step = position["step"]
    if not step or not (step % run.valid.every == 0 or step == int(task.ends[-1])):
        return
    # The first rank alone knows the log.
    if world.share(log is not None and log.valid_at(step) is not None):
        return
    stage = find_stage(task.ends, step - 1)
    try:
        with signals.breakable():
            measured = task.measure(model, stage, stop=lambda: signals.number, world=world)
    except Abandoned:
        return
    if measured and log is not None:
        log.write(step=step, stage=stage, valid=measured)
    if measured:
        task.judge(model, position, measured)
