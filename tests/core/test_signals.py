"""Signals during long steps: a step that would outlast the grace of torchrun and batch systems is abandoned."""

import os
import signal
import time

import pytest
from runs import lay_out, outcome, weights

from hybridna_core.commands.pretrain import pretrain
from hybridna_core.errors import Stopped
from hybridna_core.train import loop, pretraining, signals
from hybridna_core.train.signals import Abandoned, Signals

SETTINGS = ["stage.0.steps=6", "stage.1.steps=2", "save.every=3", "save.log_every=1", "valid.every=4"]


@pytest.fixture
def endless(monkeypatch):
    """Let one call of a function of the loop take a minute, and a signal come as it begins; the limit is short."""
    monkeypatch.setattr(signals, "STEP_LIMIT", 0.2)

    def make(patch, name, call):
        module = pretraining if name == "window_bits" else loop
        honest, calls = getattr(module, name), []

        def slow(*args, **named):
            calls.append(name)
            if len(calls) == call:
                os.kill(os.getpid(), signal.SIGTERM)
                for _ in range(6000):
                    time.sleep(0.01)
            return honest(*args, **named)

        patch.setattr(module, name, slow)

    return make


@pytest.mark.parametrize(
    ("name", "call", "step"),
    # Two microbatches a step: within step 1, 3, and 4, which follows a snapshot; windows of the measurement at step 4.
    [("loss_sum", 1, 0), ("loss_sum", 6, 2), ("loss_sum", 7, 3), ("window_bits", 2, 4)],
)
def test_a_step_that_takes_too_long_is_abandoned(endless, monkeypatch, tmp_path, name, call, step):
    for folder in ("whole", "stopped"):
        lay_out(tmp_path / folder)
    pretrain(tmp_path / "whole" / "run.toml", device="cpu", set=SETTINGS)
    with monkeypatch.context() as patch, pytest.raises(Stopped) as caught:
        endless(patch, name, call)
        began = time.monotonic()
        pretrain(tmp_path / "stopped" / "run.toml", device="cpu", set=SETTINGS)
    assert time.monotonic() - began < 30 and caught.value.exit_code == 143
    if step:
        assert str(caught.value).startswith(f"step {step}: stopped by SIGTERM, saved; ")
        assert weights(tmp_path / "stopped" / "out")[0] == f"step-{step:09d}"
    else:
        assert str(caught.value).startswith("step 0: stopped by SIGTERM before the first step was done; ")
    pretrain(tmp_path / "stopped" / "run.toml", device="cpu", set=SETTINGS)
    assert outcome(tmp_path / "stopped" / "out") == outcome(tmp_path / "whole" / "out")


def test_only_what_may_break_is_broken(monkeypatch):
    monkeypatch.setattr(signals, "STEP_LIMIT", 0.05)
    with Signals(alone=True) as noted:
        os.kill(os.getpid(), signal.SIGTERM)
        # As in the optimiser's step, or while saving.
        time.sleep(0.2)
        with pytest.raises(Abandoned), noted.breakable():
            for _ in range(1000):
                time.sleep(0.01)
        time.sleep(0.7)
    # Nothing rings after the run.
    time.sleep(0.7)
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0) and signal.getsignal(signal.SIGALRM) == signal.SIG_DFL


def test_with_other_ranks_no_step_is_abandoned(monkeypatch):
    monkeypatch.setattr(signals, "STEP_LIMIT", 0.05)
    with Signals() as noted, noted.breakable():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.3)
        assert noted.number == signal.SIGTERM
