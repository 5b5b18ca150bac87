"""The settings of fine-tuning, checked once, and what the training loop takes of them.

options -> TuneConfig -> LoopConfig
"""

from dataclasses import dataclass
from typing import NamedTuple

from hybridna_core.config import check_types, require
from hybridna_core.errors import UsageError
from hybridna_core.run_config import PRECISIONS, SCHEDULES, GuardConfig, LogConfig, OptimConfig, SaveConfig, ValidConfig

CLASS_WEIGHTS = ("none", "balanced")
# Published for 300M, 3B and 7B; the small ones' are ASSUMED, from a few values tried on the staged GUE tasks.
RATES = ((20e6, 1e-3), (1e9, 5e-5), (5e9, 3e-5), (float("inf"), 1e-5))
# BEND's for its CNN; ASSUMED for the other heads and for adapters.
FROZEN_RATE, LORA_RATE = 3e-3, 1e-3


class LoopConfig(NamedTuple):
    """What the training loop reads of a run's configuration."""

    name: str
    optim: OptimConfig
    save: SaveConfig
    valid: ValidConfig
    guard: GuardConfig
    log: LogConfig


@dataclass(frozen=True)
class TuneConfig:
    """How a model is fine-tuned.

    freeze         the network stays as it is; its vectors are read once
    lora           rank of the adapters that are trained instead of the weights; 0: none
    lora_alpha     what they are multiplied by, times the rank; None: twice the rank
    lr             None: by the model's size, see `choose_rate`
    label_lr       rate of label tokens' rows, on the same schedule; None: a tenth of the sd of the bases' rows
    warmup         share of all steps in which the rate rises
    final_lr       rate at the end, as a share of lr
    class_weights  balanced: classes count alike in the loss, however many rows they have
    metric         measure of the validation rows that the best step is chosen by; None: the task's first
    patience       measurements without a better one that end the training; 0: none do
    valid_every    steps between measurements; None: an epoch
    """

    task: str = "classification"
    head: str = "linear"
    reading: str = "mean"
    echo: str | None = None
    freeze: bool = False
    lora: int = 0
    lora_alpha: float | None = None
    lr: float | None = None
    label_lr: float | None = None
    epochs: int = 5
    batch_size: int = 32
    warmup: float = 0.05
    schedule: str = "cosine"
    final_lr: float = 0.0
    weight_decay: float = 0.01
    clip: float = 1.0
    class_weights: str = "none"
    metric: str | None = None
    patience: int = 0
    valid_every: int | None = None
    precision: str = "auto"
    microbatch_tokens: int = 16384
    checkpoint_activations: bool = False

    def __post_init__(self):
        try:
            self._check()
        except UsageError as error:
            raise UsageError(error.what, where=f"--{error.where.replace('_', '-')}", hint=error.hint) from None

    def _check(self):
        check_types(self)
        require(self.schedule in SCHEDULES, "schedule", self.schedule, f"one of {', '.join(SCHEDULES)}")
        require(self.precision in PRECISIONS, "precision", self.precision, f"one of {', '.join(PRECISIONS)}")
        weights = f"one of {', '.join(CLASS_WEIGHTS)}"
        require(self.class_weights in CLASS_WEIGHTS, "class_weights", self.class_weights, weights)
        for name in ("epochs", "batch_size", "microbatch_tokens"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("lora", "patience", "weight_decay"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        for name in ("warmup", "final_lr"):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "between 0 and 1")
        for name in ("lr", "label_lr"):
            require(getattr(self, name) is None or getattr(self, name) > 0, name, getattr(self, name), "above 0")
        require(self.clip > 0, "clip", self.clip, "above 0")
        require(self.lora_alpha is None or self.lora_alpha > 0, "lora_alpha", self.lora_alpha, "above 0")
        require(self.valid_every is None or self.valid_every >= 1, "valid_every", self.valid_every, "at least 1")
        if self.freeze and self.lora:
            raise UsageError("trains weights that --freeze keeps as they are", where="lora", hint="give one of both")
        if self.class_weights != "none" and self.task not in ("classification", "multilabel"):
            raise UsageError(f"{self.task} has no classes", where="class_weights")
        if self.task != "generation" and self.label_lr is not None:
            raise UsageError("is for --task generation", where="label_lr")
        if self.task == "generation":
            for name, plain in (("head", "linear"), ("echo", None), ("freeze", False), ("lora", 0)):
                if getattr(self, name) != plain:
                    raise UsageError("is for heads; generation trains the whole model", where=name)
        if self.head == "cnn" and self.reading == "last":
            raise UsageError("the cnn head reads every base's vector", where="reading", hint="leave it out")

    def choose_rate(self, parameters):
        """Return the learning rate: the one given, else by what is trained and the network's number of parameters."""
        if self.lr is not None:
            return self.lr
        if self.freeze or self.lora:
            return FROZEN_RATE if self.freeze else LORA_RATE
        return next(rate for limit, rate in RATES if parameters < limit)

    def loop(self, name, steps, epoch_steps, parameters):
        """Return what the loop reads of this, for a training of so many steps."""
        optim = OptimConfig(
            lr=self.choose_rate(parameters), schedule=self.schedule, warmup_steps=int(self.warmup * steps),
            weight_decay=self.weight_decay, final_lr=self.final_lr, clip=self.clip, precision=self.precision,
            betas=(0.9, 0.95), microbatch_tokens=2**40 if self.freeze else self.microbatch_tokens,
        )  # fmt: skip
        every = self.valid_every or epoch_steps
        # What stands between two snapshots is lost to a kill; a measurement is the best moment for one.
        save = SaveConfig(every=every, keep=2, log_every=max(1, min(10, epoch_steps // 4)))
        return LoopConfig(name, optim, save, ValidConfig(every=every), GuardConfig(), LogConfig(plot=False))
