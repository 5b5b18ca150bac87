"""The training loop: step, accumulate, clip, log, save.

windows of one step -> microbatches -> loss, gradients -> clip -> AdamW; now and then: log, validation, snapshot
"""

import contextlib
import math
import signal
import threading
import time
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from hybridna_core.data.corpus import validation_windows
from hybridna_core.errors import GuardError, OutOfMemory, Stopped
from hybridna_core.model.likelihood import read
from hybridna_core.tokenizer import A, T
from hybridna_core.train.log import Log
from hybridna_core.train.optim import learning_rate
from hybridna_core.train.snapshots import save_snapshot

LN2 = math.log(2)


class StepResult(NamedTuple):
    """What one step did: mean loss over counted bases (bits), bases counted, gradient norm before clipping."""

    bits: float
    bases: int
    gradient_norm: float


def with_start(ids, bos):
    """Put the start token before windows. (n, bases) uint8 -> (n, bases + 1) int64, or (n, bases) without one"""
    tokens = torch.from_numpy(np.asarray(ids)).long()
    return tokens if bos is None else F.pad(tokens, (1, 0), value=bos)


def loss_sum(model, tokens):
    """Sum the negative log-probability (nats, whole vocabulary) of every A, C, G, T after the first token.

    tokens  (batch, n) int64
    returns  the sum and the number of bases in it
    """
    hidden, _ = model(tokens[:, :-1])
    target = tokens[:, 1:]
    known = (target >= A) & (target <= T)
    target = target.masked_fill(~known, -100)
    total = F.cross_entropy(model.head(hidden).flatten(0, 1), target.flatten(), ignore_index=-100, reduction="sum")
    return total, int(known.sum())


def train_step(model, optimizer, tokens, *, lr, clip, microbatch_tokens):
    """Take one optimiser step over all rows; rows are read a few at a time and weigh the same however split.

    tokens  (batch, n) int64
    raises  GuardError on a non-finite loss or gradient; the weights are then as before
    """
    rows = max(1, microbatch_tokens // tokens.shape[1])
    bases = int(((tokens[:, 1:] >= A) & (tokens[:, 1:] <= T)).sum())
    total = 0.0
    for part in tokens.split(rows):
        loss, _ = loss_sum(model, part.to(model.device))
        (loss / max(1, bases)).backward()
        total += float(loss.detach())
    norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), clip))
    if not (math.isfinite(total) and math.isfinite(norm)):
        optimizer.zero_grad(set_to_none=True)
        raise GuardError(f"loss {total} and gradient norm {norm} are not finite")
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return StepResult(total / max(1, bases) / LN2, bases, norm)


class Signals:
    """Note SIGINT, SIGTERM and their kin, so that the step in hand is finished; a second SIGINT stops at once.

    number  of the signal that came, None so far
    """

    def __enter__(self):
        self.number = None
        self._old = {}
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP"):
                number = getattr(signal, name, None)
                # nohup and a shell's background jobs ignore signals on purpose.
                if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                    self._old[number] = signal.signal(number, self._note)
        return self

    def _note(self, number, _frame):
        if self.number == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number

    def check(self, step):
        """Raise Stopped if a signal came; everything up to `step` is saved."""
        if self.number is not None:
            name = signal.Signals(self.number).name
            hint = "the same command goes on from here"
            raise Stopped(f"stopped by {name}, saved", signal_number=self.number, where=f"step {step}", hint=hint)

    def __exit__(self, *_):
        for number, old in self._old.items():
            signal.signal(number, old)


def train(model, optimizer, run, corpora, species, *, folder, position, progress=None):
    """Run the stages from a position on; return the last position and what the last validation measured.

    corpora   one Corpus per stage
    position  dict with `step` (steps done in all), `seen` (bases read, per species), and `since`: bits and bases since
              the last line of the log
    progress  called with steps done, steps in all and note=, a text
    raises    Stopped after a signal, with a snapshot saved; GuardError, with the last snapshot good
    """
    ends = np.cumsum([s.steps for s in run.stage])
    total = int(ends[-1])
    since = position.setdefault("since", {"bits": 0.0, "bases": 0})
    clock, tokens_since, note = time.monotonic(), 0, ""
    with contextlib.closing(Log(folder / "log.jsonl", position["step"])) as log, Signals() as signals:
        # A signal may have come between a step and its validation.
        _validate_when_due(model, species, run, ends, position["step"], log, signals)
        signals.check(position["step"])
        if progress:
            progress(position["step"], total)
        while position["step"] < total:
            stage, lr, result = _take_step(model, optimizer, run, corpora, ends, position)
            step = position["step"]
            tokens_since += run.stage[stage].batch_tokens
            since["bits"] += result.bits * result.bases
            since["bases"] += result.bases
            if step % run.save.log_every == 0 or step == total:
                now = time.monotonic()
                bits, rate = since["bits"] / max(1, since["bases"]), tokens_since / (now - clock)
                log.write(
                    step=step, stage=stage, bits_per_base=bits, lr=lr, gradient_norm=result.gradient_norm,
                    tokens=count_tokens(run, step), tokens_per_second=rate,
                )  # fmt: skip
                clock, tokens_since = now, 0
                since.update(bits=0.0, bases=0)
                note = f"{bits:.3f} bits/base, {rate:,.0f} tokens/s"
            if progress:
                progress(step, total, note=note)
            paused = time.monotonic()
            _validate_when_due(model, species, run, ends, step, log, signals)
            if step % run.save.every == 0 or step == total or signals.number:
                log.sync()
                save_snapshot(folder / "snapshots", model, optimizer, position, keep=run.save.keep)
            signals.check(step)
            # Speed is that of training alone.
            clock += time.monotonic() - paused
        return position, log.valid_at(total) or {}


def _take_step(model, optimizer, run, corpora, ends, position):
    """Take the next step and move the position on; return the stage's number, the learning rate and the StepResult."""
    step = position["step"]
    stage = find_stage(ends, step)
    lr = learning_rate(step, int(ends[-1]), run.optim)
    within = step - int(ends[stage - 1]) if stage else step
    rows = run.stage[stage].batch_tokens // run.stage[stage].context_length
    windows = [corpora[stage].window(within * rows + row) for row in range(rows)]
    tokens = with_start(np.stack([ids for _, ids in windows]), run.model.bos_token_id)
    try:
        result = train_step(model, optimizer, tokens, lr=lr, clip=run.optim.clip,
                            microbatch_tokens=run.optim.microbatch_tokens)  # fmt: skip
    except GuardError as error:
        what = f"{error.what} (windows {within * rows} to {within * rows + rows - 1} of stage {stage})"
        hint = "begin again in another folder with a lower optim.lr; the last snapshot is good"
        raise GuardError(what, where=f"step {step + 1}", hint=hint) from None
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        what = f"out of memory with {len(tokens)} windows of {tokens.shape[1]:,} tokens"
        hint = "begin again in another folder with a smaller optim.microbatch_tokens, or a shorter context_length"
        raise OutOfMemory(what, where=f"step {step + 1}", hint=hint) from None
    for kind, ids in windows:
        position["seen"][corpora[stage].names[kind]] += len(ids)
    position["step"] = step + 1
    return stage, lr, result


def _is_out_of_memory(error):
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def find_stage(ends, step):
    """Return the number of the stage that step number `step` (from 0) belongs to; ends: steps up to each one's end."""
    return int(np.searchsorted(ends, step, side="right"))


def _validate_when_due(model, species, run, ends, step, log, signals):
    """Measure the held-out bases after `step` steps and log it, if that is due and not yet done."""
    total = int(ends[-1])
    due = step > 0 and (step % run.valid.every == 0 or step == total)
    if not due or log.valid_at(step) is not None:
        return
    stage = find_stage(ends, step - 1)
    measured = validate(model, species, run, stage, stop=lambda: signals.number)
    if measured:
        log.write(step=step, stage=stage, valid=measured)


def validate(model, species, run, stage, stop=None):
    """Measure bits per base on the held-out windows of each species, as long as those of a stage.

    stop     called before each window; what it returns, if true, ends it all
    returns  {species: bits per base}, without those that hold out nothing; None when stopped
    """
    bos = run.model.bos_token_id
    bases = run.stage[stage].context_length - (bos is not None)
    measured = {}
    for one in species:
        total, count = 0.0, 0
        for ids in validation_windows(one, bases, run.valid.windows):
            if stop is not None and stop():
                return None
            bits, counted = window_bits(model, ids, bos)
            total, count = total + bits, count + counted
        if count:
            measured[one.name] = total / count
    return measured


def window_bits(model, ids, bos):
    """Sum the bits of A, C, G, T over the second half of one window; return the sum and the number of bases.

    ids  (bases,) uint8
    """
    log_probs, _ = read(model, with_start(ids[None], bos).to(model.device))
    counted = log_probs[0, -(len(ids) // 2) :]
    counted = counted[~counted.isnan()]
    return -float(counted.sum()) / LN2, len(counted)


def count_tokens(run, steps):
    """Tokens read in the first `steps` steps of a run."""
    total = 0
    for stage in run.stage:
        taken = min(steps, stage.steps)
        total += taken * stage.batch_tokens
        steps -= taken
    return total
