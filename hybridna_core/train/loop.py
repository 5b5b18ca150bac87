"""The training loop: step, accumulate, clip, log, save.

windows of one step -> microbatches -> loss, gradients -> clip -> AdamW; now and then: log, validation, snapshot
"""

import json
import math
import os
import signal
import threading
import time
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from hybridna_core.data.corpus import validation_windows
from hybridna_core.errors import GuardError, Stopped
from hybridna_core.model.likelihood import read
from hybridna_core.tokenizer import A, T
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


def bits_per_base(model, ids, bos):
    """Mean negative log2 probability over A, C, G, T of the second half of each window.

    ids  (n, bases) uint8
    """
    total, count = 0.0, 0
    for row in ids:
        log_probs, _ = read(model, with_start(row[None], bos).to(model.device))
        counted = log_probs[0, -(len(row) // 2) :]
        counted = counted[~counted.isnan()]
        total -= float(counted.sum())
        count += len(counted)
    return total / max(1, count) / LN2


class _Signals:
    """Note SIGINT, SIGTERM and their kin, so that the step in hand is finished; a second SIGINT stops at once."""

    def __enter__(self):
        self.number = None
        self._old = {}
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP"):
                number = getattr(signal, name, None)
                if number is not None:
                    self._old[number] = signal.signal(number, self._note)
        return self

    def _note(self, number, _frame):
        if self.number == signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number

    def __exit__(self, *_):
        for number, old in self._old.items():
            signal.signal(number, old)


class Log:
    """JSON lines beside the snapshots; on resume, lines after the snapshot's step are cut."""

    def __init__(self, path, step):
        kept = []
        if path.exists():
            for line in path.read_text().splitlines():
                try:
                    entry = json.loads(line)
                except ValueError:
                    break
                if entry["step"] > step:
                    break
                kept.append(line)
        temporary = path.with_suffix(".partial")
        temporary.write_text("".join(line + "\n" for line in kept))
        os.replace(temporary, path)
        self._handle = path.open("a")

    def write(self, **entry):
        self._handle.write(json.dumps(entry) + "\n")
        self._handle.flush()

    def close(self):
        self._handle.close()


def train(model, optimizer, run, corpora, species, *, folder, position, progress=None):
    """Run the stages from a position on; return the last position.

    corpora   one Corpus per stage
    position  dict with `step` (steps done in all) and `seen` (bases read, per species)
    raises    Stopped after a signal, with a snapshot saved; GuardError, with the last snapshot good
    """
    bos = run.model.bos_token_id
    ends = np.cumsum([s.steps for s in run.stage])
    total = int(ends[-1])
    log = Log(folder / "log.jsonl", position["step"])
    window_start, tokens_since, bits_since, bases_since = time.monotonic(), 0, 0.0, 0
    with _Signals() as signals:
        try:
            while position["step"] < total:
                step = position["step"]
                index = int(np.searchsorted(ends, step, side="right"))
                stage, corpus = run.stage[index], corpora[index]
                rows = stage.batch_tokens // stage.context_length
                within = step - (int(ends[index - 1]) if index else 0)
                windows = [corpus.window(within * rows + r) for r in range(rows)]
                tokens = with_start(np.stack([ids for _, ids in windows]), bos)
                lr = learning_rate(step, total, run.optim)
                try:
                    result = train_step(model, optimizer, tokens, lr=lr, clip=run.optim.clip,
                                        microbatch_tokens=run.optim.microbatch_tokens)  # fmt: skip
                except GuardError as error:
                    batch = f"windows {within * rows} to {within * rows + rows - 1} of stage {index}"
                    raise GuardError(f"{error.what} ({batch})", where=f"step {step + 1}",
                                     hint="lower optim.lr; the last snapshot is good") from None  # fmt: skip
                for kind, ids in windows:
                    position["seen"][corpus.names[kind]] += len(ids)
                position["step"] = step = step + 1
                tokens_since += tokens.numel()
                bits_since += result.bits * result.bases
                bases_since += result.bases
                if step % run.save.log_every == 0 or step == total:
                    now = time.monotonic()
                    entry = {
                        "step": step, "stage": index, "bits_per_base": bits_since / max(1, bases_since), "lr": lr,
                        "gradient_norm": result.gradient_norm, "tokens": _tokens(run, step),
                        "tokens_per_second": tokens_since / (now - window_start),
                    }  # fmt: skip
                    log.write(**entry)
                    window_start, tokens_since, bits_since, bases_since = now, 0, 0.0, 0
                    if progress:
                        rate = entry["tokens_per_second"]
                        progress(step, total, note=f"{entry['bits_per_base']:.3f} bits/base, {rate:,.0f} tokens/s")
                if step % run.valid.every == 0 or step == total:
                    measured = validate(model, species, stage.context_length - (bos is not None), run)
                    if measured:
                        log.write(step=step, stage=index, valid=measured)
                    window_start = time.monotonic()
                if step % run.save.every == 0 or step == total or signals.number:
                    save_snapshot(folder / "snapshots", model, optimizer, position, keep=run.save.keep)
                    window_start = time.monotonic()
                if signals.number and step < total:
                    name = signal.Signals(signals.number).name
                    raise Stopped(f"stopped by {name}, saved", signal_number=signals.number, where=f"step {step}",
                                  hint="the same command goes on from here")  # fmt: skip
        finally:
            log.close()
    return position


def validate(model, species, bases, run):
    """Measure bits per base on the held-out windows of each species; {} where nothing is held out."""
    measured = {}
    for one in species:
        ids = validation_windows(one, bases, run.valid.windows) if one.valid else []
        if len(ids):
            measured[one.name] = bits_per_base(model, ids, run.model.bos_token_id)
    return measured


def _tokens(run, steps):
    """Tokens read in the first `steps` steps of a run."""
    total = 0
    for stage in run.stage:
        taken = min(steps, stage.steps)
        total += taken * stage.batch_tokens
        steps -= taken
    return total
