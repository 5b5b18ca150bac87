"""The spike guard: which losses are spikes, and what becomes of a run that meets them."""

import math
import signal

import numpy as np
import pytest
import torch
from genome_files import warnings_of
from runs import lay_out, log_lines, outcome, weights
from toys import SMALL

from hybridna_core.commands.pretrain import pretrain
from hybridna_core.errors import GuardError, Stopped, UsageError
from hybridna_core.model.hybrid import HybridLM
from hybridna_core.run_config import GuardConfig, OptimConfig
from hybridna_core.tokenizer import BOS
from hybridna_core.train import loop
from hybridna_core.train.guards import Spike, SpikeGuard
from hybridna_core.train.loop import train_step, with_start
from hybridna_core.train.optim import make_optimizer
from hybridna_core.train.parallel import World

# A run of 20 steps that judges from the fifth on.
SETTINGS = ["guard.window=4", "guard.sigma=6", "guard.floor=0.5", "guard.stop=3", "save.every=1", "save.keep=30",
            "save.log_every=1", "stage.0.steps=20", "stage.1.steps=1", "mixture.max_passes=50"]  # fmt: skip


def feed(guard, losses):
    """Give a guard the losses of one step after another; return the numbers of those that it skips."""
    skipped = []
    for number, bits in enumerate(losses):
        spike = guard.find_spike(bits)
        guard.note(bits, spike)
        if spike is not None:
            skipped.append(number)
    return skipped


# --- Which losses are spikes -----------------------------------------------------------------------------------------


def test_six_sigma_over_the_last_128(caplog):
    """Against numpy, on losses around a mean that drifts."""
    random = np.random.default_rng(3)
    losses = 1.9 + 0.02 * random.standard_normal(600) - 0.0001 * np.arange(600)
    losses[random.choice(np.arange(200, 600), 30, replace=False)] += random.uniform(0, 0.4, 30)
    due, known = [], []
    for number, bits in enumerate(losses):
        last = np.array(known[-128:])
        if len(last) == 128 and bits - last.mean() > max(6 * last.std(), 0.05):
            due.append(number)
        else:
            known.append(bits)
    found = feed(SpikeGuard(GuardConfig(), {}), losses.tolist())
    assert found == due and 5 < len(due) < 30


def test_nothing_is_judged_before_the_window_is_full_or_in_a_new_stage():
    guard = SpikeGuard(GuardConfig(window=4), {})
    assert feed(guard, [2.0, 2.0, 2.0, 9.0]) == []
    guard = SpikeGuard(GuardConfig(window=4), {})
    assert feed(guard, [2.0] * 4 + [9.0]) == [4]
    guard.enter(0)
    assert feed(guard, [9.0]) == [0]
    guard.enter(1)
    assert feed(guard, [9.0] * 4 + [9.04, 9.2, 8.0, 1.0]) == [5]


def test_a_spike_says_what_it_was_held_against():
    guard = SpikeGuard(GuardConfig(window=4, sigma=2.0), {})
    feed(guard, [1.0, 2.0, 1.0, 2.0])
    assert guard.find_spike(2.49) is None
    assert guard.find_spike(2.51) == Spike(2.51, 1.5, 0.5)


def test_a_guard_that_is_off_skips_nothing():
    assert feed(SpikeGuard(GuardConfig(window=2, sigma=0.0), {}), [2.0, 2.0, 99.0]) == []


def test_so_many_in_a_row_end_it():
    guard = SpikeGuard(GuardConfig(window=2, stop=3), {})
    assert feed(guard, [2.0, 2.0, 9.0, 9.0, 2.0, 9.0, 9.0]) == [2, 3, 5, 6]
    with pytest.raises(GuardError) as caught:
        feed(guard, [9.0])
    words = "3 steps in a row had a loss over 6 sigma above the mean"
    assert str(caught.value) == f"{words} (the last one 9.000 bits/base, mean 2.000, sigma 0.000)"
    assert caught.value.exit_code == 6


@pytest.mark.parametrize("key", ["sigma=-1", "window=1", "floor=-0.1", "stop=0", "windw=3"])
def test_settings_that_do_not_do(tmp_path, key):
    with pytest.raises(UsageError, match=r"run.toml: guard: "):
        pretrain(lay_out(tmp_path), device="cpu", set=[f"guard.{key}"], dry_run=True)


# --- What becomes of the step ----------------------------------------------------------------------------------------


class TwoRanks(World):
    """The first of two ranks; what the second one reports is given."""

    def __init__(self, nats):
        super().__init__(size=2)
        self.nats = nats

    def gather_numbers(self, *own):
        return [own, (self.nats, 1.0, 0.0)]

    def sum_gradients(self, model):
        pass

    def spread_weights(self, optimizer):
        pass


@pytest.mark.parametrize(("nats", "skipped"), [(10.0, False), (200.0, True)])
def test_the_loss_of_all_ranks_decides(nats, skipped):
    model = HybridLM(SMALL, seed=1)
    optimizer = make_optimizer(model, OptimConfig())
    tokens = with_start(np.full((1, 10), 7, np.uint8), BOS)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    seen = []

    def judge(bits):
        seen.append(bits)
        return Spike(bits, 2.0, 0.1) if bits > 8 else None

    result = train_step(model, optimizer, tokens, lr=1e-3, clip=1.0, microbatch_tokens=64, bases=20,
                        world=TwoRanks(nats), judge=judge)  # fmt: skip
    own = loop.loss_sum(HybridLM(SMALL, seed=1), tokens)[0].item()
    assert seen == [result.bits] and result.bits == pytest.approx((own + nats) / 20 / math.log(2), rel=1e-5)
    assert (result.spike is not None) == skipped and bool(optimizer.state) != skipped
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters()) == skipped
    assert all(p.grad is None for p in model.parameters())


@pytest.fixture
def spiky(monkeypatch):
    """Train with 5 nats per base too much in given steps (counted from 1); return the folder of the run."""

    def train(folder, *steps, stop=None, settings=()):
        now = {}
        honest = loop.loss_sum

        def loss_sum(*args):
            total, count = honest(*args)
            return total + 5.0 * count * (now["step"] in steps), count

        def progress(done, total, note=""):
            now["step"] = done + 1
            if done == stop:
                signal.raise_signal(signal.SIGTERM)

        with monkeypatch.context() as patch:
            patch.setattr(loop, "loss_sum", loss_sum)
            pretrain(folder / "run.toml", device="cpu", set=[*SETTINGS, *settings], progress=progress)
        return folder / "out"

    return train


def parts_of(out, step):
    return [
        (out / "snapshots" / f"step-{step:09d}" / f"{name}.safetensors").read_bytes() for name in ("model", "optimizer")
    ]


def test_a_spike_is_skipped_and_logged(spiky, tmp_path, caplog):
    lay_out(tmp_path)
    out = spiky(tmp_path, 9, 12, 13)
    for step in range(5, 20):
        assert (parts_of(out, step) == parts_of(out, step + 1)) == (step + 1 in (9, 12, 13)), step
    told = [e for e in log_lines(out) if "skipped" in e]
    assert [e["step"] for e in told] == [9, 12, 13]
    for entry in told:
        skipped = entry["skipped"]
        # The added 5 nats are 7.2 bits.
        assert 6.5 < skipped["bits"] - skipped["mean"] < 8 and 0 <= skipped["sigma"] < 0.3
    said = warnings_of(caplog, "spike")
    assert len(said) == 3 and said[0].startswith("step 9 skipped: ") and said[0].count("bits/base, mean ") == 1
    plain = {e["step"]: e["bits_per_base"] for e in log_lines(out) if "bits_per_base" in e}
    assert plain[9] is None and plain[12] is None and all(1.5 < b < 4 for s, b in plain.items() if s not in (9, 12, 13))


def test_going_on_after_stops_is_exact(spiky, tmp_path):
    """What the guard knows is in the snapshot: also between two spikes of one row."""
    settings = ["guard.stop=4", "save.every=50"]
    for name in ("whole", "stopped"):
        lay_out(tmp_path / name)
    due = outcome(spiky(tmp_path / "whole", 9, 12, 13, 14, settings=settings))
    for stop in (8, 13):
        with pytest.raises(Stopped):
            spiky(tmp_path / "stopped", 9, 12, 13, 14, settings=settings, stop=stop)
    found = outcome(spiky(tmp_path / "stopped", 9, 12, 13, 14, settings=settings))
    assert found == due and len(found["position"]["guard"]["bits"]) == 1


def test_a_row_of_spikes_stops_the_run(spiky, tmp_path):
    """The row is counted on over a stop."""
    lay_out(tmp_path)
    with pytest.raises(Stopped):
        spiky(tmp_path, 9, 10, 11, stop=10)
    with pytest.raises(GuardError) as caught:
        spiky(tmp_path, 9, 10, 11)
    assert caught.value.exit_code == 6
    words = "step 11: 3 steps in a row had a loss over 6 sigma above the mean (the last one "
    assert str(caught.value).startswith(words)
    assert str(caught.value).endswith("lower optim.lr; the last snapshot is good")
    out = tmp_path / "out"
    assert weights(out)[0] == "step-000000010" and parts_of(out, 10) == parts_of(out, 8)


def test_other_settings_on_resume_are_refused(spiky, tmp_path):
    lay_out(tmp_path)
    with pytest.raises(Stopped):
        spiky(tmp_path, stop=6)
    with pytest.raises(UsageError, match=r"guard.sigma .* changed since the run began; undo .* --override guard.sigma"):
        spiky(tmp_path, settings=["guard.sigma=9"])
