"""Fine-tuning as the loop's task: rows of a table in an order drawn for every epoch, the step that did best kept.

rows, targets -> rows of a step -> loss of a head, or of bases after labels; held-out rows -> measures -> best weights
"""

import logging

import numpy as np
import torch
import torch.nn.functional as F

from hybridna_core.model.likelihood import base_log_probs
from hybridna_core.model.readout import pad_rows, predict_outputs, stack_rows
from hybridna_core.task_metrics import is_better, measure
from hybridna_core.tokenizer import A
from hybridna_core.train.loop import LN2, count_bases, is_counted
from hybridna_core.train.parallel import ALONE

log = logging.getLogger("hybridna")


class Tuning:
    """What the loop trains on: rows of tokens, or of features, each once in an epoch.

    rows      sequence of (n,) tokens or features
    targets   (rows, ...) tensor of what the head should give; None where the bases themselves are learned
    loss      as `loop.loss_sum`, None for that itself
    count     as `loop.count_bases`, of targets
    examine   model, stop -> {measure: number} of the held-out rows, None when stopped; None: nothing is held out
    metric    the measure that the best step is chosen by
    patience  measurements without a better one that end the run; 0: none do

    The position keeps `best`, its step and measure, and `waited`, measurements since.
    """

    row, rate_option = "sequence", "--lr"

    def __init__(
        self, rows, targets=None, *, epochs, batch_size, seed=0, loss=None, count=count_bases, examine=None,
        metric="loss", patience=0,
    ):  # fmt: skip
        self.rows, self.targets, self.loss, self.count = rows, targets, loss, count
        self.batch_size, self.seed, self.examine = min(batch_size, len(rows)), seed, examine
        self.metric, self.patience, self.best = metric, patience, None
        self.unit = "bits/base" if targets is None else "bits/label"
        self.epoch_steps = -(-len(rows) // self.batch_size)
        self.ends = np.array([epochs * self.epoch_steps])
        self.lengths = np.array([len(row) for row in rows])
        self._epoch, self._order = -1, None

    def begin(self, position):
        """Fill in what a position lacks."""
        position.setdefault("best", None)
        position.setdefault("waited", 0)

    def _numbers(self, step):
        """Return the epoch of a step and the numbers of its rows."""
        epoch, within = divmod(step, self.epoch_steps)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, np.random.default_rng([self.seed, epoch]).permutation(len(self.rows))
        return epoch, self._order[within * self.batch_size : (within + 1) * self.batch_size]

    def read(self, step, rank=0, size=1):
        """Return a rank's rows of a step and their targets, or None."""
        numbers = self._numbers(step)[1][rank::size]
        targets = None if self.targets is None else self.targets[torch.from_numpy(numbers)]
        return stack_rows([self.rows[i] for i in numbers]), targets

    def note(self, position):
        """Keep no ledger: every row is read once in an epoch."""

    def spell(self, step, rank=0, size=1):
        """Name the rows of a step: rows 1 to 32 of epoch 2."""
        first = step % self.epoch_steps * self.batch_size
        last = min(first + self.batch_size, len(self.rows))
        return f"rows {first + 1} to {last} in the order of epoch {step // self.epoch_steps + 1}"

    def count_tokens(self, steps):
        """Tokens read in the first `steps` steps, padding left out."""
        epochs, within = divmod(steps, self.epoch_steps)
        total = epochs * int(self.lengths.sum())
        if within:
            self._numbers(steps)
            total += int(self.lengths[self._order[: within * self.batch_size]].sum())
        return total

    def save_memory(self, tokens):
        """Say what needs less memory."""
        return "give --checkpoint-activations, --lora or --freeze, or leave long sequences out"

    def write(self, folder, position):
        """Keep nothing beside the snapshots."""

    def is_over(self, position):
        """End early when the measure has not become better for long enough."""
        return bool(self.patience) and position["waited"] >= self.patience

    def measure(self, model, stage, stop=None, world=ALONE):
        """Measure the held-out rows; None when stopped or where there are none."""
        if self.examine is None:
            return None
        with torch.no_grad():
            measured = self.examine(model, stop)
        # What has no meaning here is left out: neither log nor snapshot holds NaN.
        return measured and {name: value for name, value in measured.items() if value == value}

    def judge(self, model, position, measured):
        """Keep the weights if the measure is the best so far."""
        step, value = position["step"], measured.get(self.metric, float("nan"))
        best = position["best"]
        if best is not None and step <= best["measured"]:
            # Measured again, as the log of it was lost.
            return
        than = None if best is None else float("nan") if best["value"] is None else best["value"]
        # As long as the measure has no meaning, the last weights are kept, as without held-out rows.
        is_undefined = value != value and (than is None or than != than)
        if is_undefined or is_better(self.metric, value, than):
            position["best"] = {"step": step, "value": None if value != value else value, "measured": step}
            position["waited"] = 0
            self.best = {n: p.detach().cpu().clone() for n, p in model.named_parameters() if p.requires_grad}
        else:
            position["best"]["measured"] = step
            position["waited"] += 1
        log.info(
            "step %s: %s %.4f%s", f"{step:,}", self.metric, value, " (best so far)" if not position["waited"] else ""
        )


# --- Heads -----------------------------------------------------------------------------------------------------------


def make_loss(task, weights=None):
    """Return the loss and the count of a head's task, as the loop takes them.

    weights  (classes,) float32: of each class; multilabel: of the positives of each label

    classification  cross-entropy, weighted by class (paper, eq. 6)
    multilabel      binary cross-entropy, mean over labels
    regression      half the squared error of standardised labels, mean over columns
    """
    if task == "classification":

        def lose(outputs, target):
            given = None if weights is None else weights.to(outputs.device)
            return F.cross_entropy(outputs, target, weight=given, reduction="sum")
    elif task == "multilabel":

        def lose(outputs, target):
            given = None if weights is None else weights.to(outputs.device)
            each = F.binary_cross_entropy_with_logits(outputs, target, pos_weight=given, reduction="none")
            return each.mean(1).sum()
    else:

        def lose(outputs, target):
            return 0.5 * ((outputs - target) ** 2).mean(1).sum()

    def count(rows, targets):
        if task == "classification" and weights is not None:
            return float(weights[targets].double().sum())
        return len(targets)

    def loss(model, rows, targets, precision="fp32"):
        return lose(model(rows, precision), targets), count(rows, targets.cpu())

    return loss, count


def balance(task, targets):
    """Return weights that make classes count alike: rows / (classes * the class's); of labels, negatives/positives."""
    if task == "multilabel":
        positive = targets.sum(0)
        return ((len(targets) - positive) / positive.clamp(min=1)).float()
    counts = torch.bincount(targets)
    return (len(targets) / (len(counts) * counts.clamp(min=1))).float()


def examine_head(given, targets, scheme):
    """Return what measures a Predictor on sequences, or features, and their targets, as `Tuning` takes it.

    They are read as `predict` reads them, in full precision, so that it comes to the same measures.
    """

    def examine(model, stop):
        outputs = predict_outputs(model, given, stop=stop)
        return None if outputs is None else measure(scheme.task, targets, outputs, scheme.sd)

    return examine


# --- Bases after labels ----------------------------------------------------------------------------------------------


def examine_bases(rows, batch_size, precision):
    """Return what measures a network on rows of tokens: bits per base over A, C, G, T, and the share it puts first."""

    def examine(model, stop):
        bits = right = count = 0
        for first in range(0, len(rows), batch_size):
            if stop is not None and stop():
                return None
            tokens = pad_rows(rows[first : first + batch_size]).to(model.device)
            rounded = precision == "bf16" and tokens.device.type != "cpu"
            with torch.autocast(tokens.device.type, torch.bfloat16, enabled=rounded):
                hidden, _ = model(tokens[:, :-1])
            log_probs = base_log_probs(model.head(hidden.to(model.dtype))[is_counted(tokens)])
            target = tokens[:, 1:][is_counted(tokens)] - A
            bits -= float(log_probs.double().gather(1, target[:, None]).sum()) / LN2
            right += int((log_probs.argmax(1) == target).sum())
            count += len(target)
        return {"bits_per_base": bits / max(count, 1), "accuracy": right / max(count, 1)}

    return examine
