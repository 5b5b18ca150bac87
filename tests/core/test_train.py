"""The training loop's parts: loss, step, schedule, optimiser, signals."""

import itertools
import math
import os
import signal
import time

import numpy as np
import pytest
import torch
from toys import SMALL, markov_log_prob, markov_model, random_model, uniform_model

from hybridna_core.errors import GuardError, Stopped
from hybridna_core.model.hybrid import HybridLM
from hybridna_core.model.likelihood import log_probs
from hybridna_core.run_config import OptimConfig
from hybridna_core.tokenizer import BOS, N, decode, encode
from hybridna_core.train import loop
from hybridna_core.train.loop import choose_precision, loss_sum, train_step, with_start
from hybridna_core.train.optim import learning_rate, make_optimizer, optimizer_tensors
from hybridna_core.train.pretraining import window_bits
from hybridna_core.train.signals import Signals
from hybridna_kernels.gemm import bf16_products

TABLE = np.array([[0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.25, 0.25], [0.7, 0.1, 0.1, 0.1], [0.4, 0.3, 0.2, 0.1]])


def rows(*texts):
    return with_start(np.stack([encode(text) for text in texts]), BOS)


def fresh(seed=0):
    """A small model that is ready to be trained."""
    return HybridLM(SMALL, seed=seed)


def drawn(count, length, seed=0):
    """Rows of random bases with a start token; the first has many unknown ones."""
    ids = np.random.default_rng(seed).integers(7, 11, (count, length)).astype(np.uint8)
    ids[0, : length // 2] = N
    return with_start(ids, BOS)


# --- Loss ------------------------------------------------------------------------------------------------------------


def test_start_token():
    assert rows("ACGT").tolist() == [[2, 7, 8, 9, 10]]
    assert with_start(encode("ACGT")[None], None).tolist() == [[7, 8, 9, 10]]


def test_loss_of_a_model_that_knows_nothing():
    total, count = loss_sum(uniform_model(), rows("ACGTN", "NNNAC"))
    assert count == 6 and float(total) == pytest.approx(6 * math.log(12), rel=1e-6)


def test_loss_is_counted_over_bases_alone():
    model = markov_model(TABLE, start=TABLE[2])
    total, count = loss_sum(model, rows("ACCTGA"))
    assert count == 6 and float(total) == pytest.approx(-markov_log_prob(TABLE, "ACCTGA", TABLE[2]), rel=1e-5)
    # After N comes the start distribution; N itself is counted nowhere.
    total, count = loss_sum(model, rows("ACNNTG"))
    due = markov_log_prob(TABLE, "AC", TABLE[2]) + markov_log_prob(TABLE, "TG", TABLE[2])
    assert count == 4 and float(total) == pytest.approx(-due, rel=1e-5)
    assert loss_sum(model, rows("NNN"))[1] == 0 and float(loss_sum(model, rows("NNN"))[0]) == 0


def test_without_a_start_token_the_first_base_is_not_counted():
    total, count = loss_sum(markov_model(TABLE), with_start(encode("ACCT")[None], None))
    assert count == 3
    due = markov_log_prob(TABLE, "ACCT") - math.log(0.25)
    assert float(total) == pytest.approx(-due, rel=1e-5)


# --- Step ------------------------------------------------------------------------------------------------------------


def step_of(tokens, microbatch_tokens, clip=1e9):
    """Take one plain gradient step of rate 1; return the change of every weight, and the StepResult."""
    model = fresh()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=123.0)
    result = train_step(model, optimizer, tokens, lr=1.0, clip=clip, microbatch_tokens=microbatch_tokens)
    assert all(p.grad is None for p in model.parameters())
    return {n: p.detach() - before[n] for n, p in model.named_parameters()}, result


def test_splitting_a_batch_changes_nothing():
    tokens = drawn(6, 40)
    whole, due = step_of(tokens, 10**6)
    assert due.bases == 6 * 40 - 20
    for microbatch in (41, 2 * 41, 4 * 41, 1):
        change, result = step_of(tokens, microbatch)
        assert result.bases == due.bases
        assert result.bits == pytest.approx(due.bits, rel=1e-6)
        assert result.gradient_norm == pytest.approx(due.gradient_norm, rel=1e-5)
        for name, value in change.items():
            assert torch.allclose(value, whole[name], rtol=1e-4, atol=1e-7), name


def test_a_step_follows_the_mean_over_bases():
    tokens = drawn(3, 30)
    change, result = step_of(tokens, 31)
    model = fresh()
    total, count = loss_sum(model, tokens)
    (total / count).backward()
    assert result.bits == pytest.approx(total.item() / count / math.log(2), rel=1e-6)
    squares = sum(float((p.grad.double() ** 2).sum()) for p in model.parameters())
    assert result.gradient_norm == pytest.approx(squares**0.5, rel=1e-5)
    for name, parameter in model.named_parameters():
        assert torch.allclose(change[name], -parameter.grad, rtol=1e-3, atol=1e-6), name


def test_gradients_are_clipped_to_the_norm():
    change, result = step_of(drawn(3, 30), 31, clip=0.01)
    moved = sum(float((c.double() ** 2).sum()) for c in change.values()) ** 0.5
    assert result.gradient_norm > 0.1 and moved == pytest.approx(0.01, rel=1e-3)


def test_a_batch_of_unknown_bases_is_harmless():
    change, result = step_of(with_start(np.full((2, 9), N, dtype=np.uint8), BOS), 10)
    assert (result.bits, result.bases, result.gradient_norm) == (0, 0, 0)
    assert all((c == 0).all() for c in change.values())


def nan_loss(total, model):
    return total * math.nan


def infinite_loss(total, model):
    return total + math.inf


def nan_gradient(total, model):
    # The slope of the square root at 0 is infinite, and 0 times that is not a number.
    return total + (model.lm_head.weight.sum() * 0).sqrt()


@pytest.mark.parametrize("spoil", [nan_loss, infinite_loss, nan_gradient])
def test_nothing_that_is_not_finite_reaches_the_weights(monkeypatch, spoil):
    model = fresh()
    optimizer = make_optimizer(model, OptimConfig())
    options = {"lr": 1e-3, "clip": 1.0, "microbatch_tokens": 41}
    train_step(model, optimizer, drawn(4, 40), **options)
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    moments = {n: t.clone() for n, t in optimizer_tensors(optimizer, model).items()}
    calls = []

    def spoilt(model, tokens, *rest):
        total, count = loss_sum(model, tokens)
        calls.append(count)
        return (spoil(total, model) if len(calls) == 2 else total), count

    monkeypatch.setattr(loop, "loss_sum", spoilt)
    with pytest.raises(GuardError, match="are not finite") as caught:
        train_step(model, optimizer, drawn(4, 40, seed=1), **options)
    assert caught.value.exit_code == 6 and len(calls) == 4
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, weights[name]) and parameter.grad is None
    for name, tensor in optimizer_tensors(optimizer, model).items():
        assert torch.equal(tensor, moments[name])


# --- Memory and precision --------------------------------------------------------------------------------------------


def gradients(model, tokens, precision="fp32"):
    total, count = loss_sum(model, tokens, None, precision)
    (total / count).backward()
    return float(total.detach()), {n: p.grad for n, p in model.named_parameters()}


def test_recomputed_blocks_give_the_same_gradients():
    """To the last bit, and each block runs twice."""
    tokens, calls = drawn(3, 150), []
    plain, frugal = fresh(), fresh()
    for block in frugal.model.layers:
        block.recompute = True
        block.input_layernorm.register_forward_hook(lambda *_: calls.append(1))
    loss, due = gradients(plain, tokens)
    again, found = gradients(frugal, tokens)
    assert again == loss and all(torch.equal(found[name], due[name]) for name in due)
    assert len(calls) == 2 * len(SMALL.layer_types)
    calls.clear()
    with torch.no_grad():
        frugal(tokens)
    assert len(calls) == len(SMALL.layer_types)


def test_recomputed_blocks_keep_less():
    def kept(recompute):
        model, held = fresh(), {}
        for block in model.model.layers:
            block.recompute = recompute
        own = {p.untyped_storage().data_ptr() for p in model.parameters()}

        def pack(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                held[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss_sum(model, drawn(2, 300))
        return sum(held.values())

    assert kept(True) < kept(False) / 4


def test_precision_is_chosen_by_device():
    assert [choose_precision("auto", torch.device(d)) for d in ("cpu", "cuda:1")] == ["fp32", "bf16"]
    assert [choose_precision(p, torch.device("cpu")) for p in ("fp32", "bf16")] == ["fp32", "bf16"]


@pytest.mark.parametrize("recompute", [False, True])
def test_products_in_bfloat16(recompute):
    tokens = drawn(3, 150)
    due, wanted = gradients(fresh(), tokens)
    model = fresh()
    for block in model.model.layers:
        block.recompute = recompute
    with bf16_products():
        loss, found = gradients(model, tokens, "bf16")
    assert loss != due and loss == pytest.approx(due, rel=2e-3)
    for name, value in found.items():
        assert value.dtype == torch.float32
        error = float((value - wanted[name]).norm() / wanted[name].norm())
        assert 0 < error < 0.05, name


def test_islands_of_float32_under_autocast(monkeypatch):
    """What a GPU does in bf16: products are rounded; the recurrence, norms, head and loss are not."""
    monkeypatch.setattr("hybridna_kernels.gemm._has_onednn", lambda: False)
    monkeypatch.setenv("HYBRIDNA_KERNELS", "reference")
    seen, honest = {}, torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda a, b: seen.setdefault("scan", set()).add(a.dtype) or honest(a, b))
    model, tokens = fresh(), drawn(2, 150)
    model.model.layers[0].mamba.in_proj.register_forward_hook(lambda m, i, o: seen.update(product=o.dtype))
    model.model.layers[0].pre_ff_layernorm.register_forward_hook(lambda m, i, o: seen.update(norm=o.dtype))
    model.model.layers[2].register_forward_hook(lambda m, i, o: seen.update(state=o[1].ssm.dtype, stream=o[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model(tokens)[0].detach()
    assert seen["scan"] == {torch.float32} and seen["product"] == torch.bfloat16
    assert (seen["state"], seen["stream"], hidden.dtype) == (torch.float32,) * 3
    exact = model(tokens)[0].detach()
    assert 0 < float((hidden - exact).norm() / exact.norm()) < 0.02


# --- Optimiser and schedule ------------------------------------------------------------------------------------------


def test_schedule_by_hand():
    config = OptimConfig(lr=1.0, warmup_steps=4, final_lr=0.2)
    rates = [learning_rate(step, 12, config) for step in range(13)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    # 8 steps of cosine from 1 to 0.2: half way in the middle, 0.6 + 0.4 cos(pi/4) after a quarter.
    assert rates[4] == 1.0 and rates[8] == pytest.approx(0.6) and rates[12] == pytest.approx(0.2)
    assert rates[6] == pytest.approx(0.6 + 0.4 * 0.5**0.5) and rates[10] == pytest.approx(0.6 - 0.4 * 0.5**0.5)
    assert all(a >= b for a, b in itertools.pairwise(rates[3:]))


def test_schedule_at_its_edges():
    assert learning_rate(0, 1, OptimConfig(lr=0.5, warmup_steps=0)) == 0.5
    constant = OptimConfig(lr=0.5, warmup_steps=0, final_lr=1.0)
    assert {learning_rate(step, 9, constant) for step in range(9)} == {0.5}
    # A warm-up longer than the run only ever climbs.
    assert learning_rate(9, 10, OptimConfig(lr=1.0, warmup_steps=100)) == pytest.approx(0.1)


def test_weight_decay_is_for_projections_alone():
    model = fresh()
    optimizer = make_optimizer(model, OptimConfig(lr=1e-3, weight_decay=0.3, betas=(0.8, 0.9), eps=1e-7))
    names = {id(p): n for n, p in model.named_parameters()}
    decay = {names[id(p)]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay.keys() == set(names.values())
    decayed = {name.split(".", 3)[-1] for name, value in decay.items() if value}
    assert decayed == {
        "mamba.in_proj.weight", "mamba.out_proj.weight", "self_attn.q_proj.weight", "self_attn.k_proj.weight",
        "self_attn.v_proj.weight", "self_attn.o_proj.weight", "feed_forward.gate_proj.weight",
        "feed_forward.up_proj.weight", "feed_forward.down_proj.weight",
    }  # fmt: skip
    assert set(decay.values()) == {0.3, 0.0}
    assert {(g["betas"], g["eps"]) for g in optimizer.param_groups} == {((0.8, 0.9), 1e-7)}


def test_the_step_uses_the_rate_it_is_given():
    model = fresh()
    optimizer = make_optimizer(model, OptimConfig(lr=5.0, weight_decay=0.0))
    before = model.lm_head.weight.detach().clone()
    train_step(model, optimizer, drawn(2, 20), lr=1e-3, clip=1.0, microbatch_tokens=100)
    # The first step of Adam moves every weight by the rate, whatever its gradient.
    moved = (model.lm_head.weight.detach() - before).abs()
    assert float(moved.max()) == pytest.approx(1e-3, rel=1e-3)


# --- Validation ------------------------------------------------------------------------------------------------------


def test_bits_of_the_second_half_of_a_window():
    model = random_model()
    ids = np.random.default_rng(3).integers(7, 11, 41).astype(np.uint8)
    ids[[25, 30]] = N
    due = log_probs(model, [decode(ids)])[0][21:]
    total, count = window_bits(model, ids, BOS)
    assert count == 18
    assert total == pytest.approx(-np.nansum(due) / math.log(2), rel=1e-9)


# --- Signals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 143), ("SIGUSR1", 143), ("SIGUSR2", 143)]
)
def test_a_signal_is_noted_and_ends_the_run_when_asked(name, code):
    number = getattr(signal, name)
    before = signal.getsignal(number)
    with Signals() as signals:
        signals.check(3)
        os.kill(os.getpid(), number)
        assert signals.number == number
        with pytest.raises(Stopped) as caught:
            signals.check(7)
    assert caught.value.exit_code == code
    assert str(caught.value) == f"step 7: stopped by {name}, saved; the same command goes on from here"
    assert signal.getsignal(number) is before


def test_a_second_interrupt_stops_at_once():
    with pytest.raises(KeyboardInterrupt), Signals():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_an_interrupt_that_torchrun_repeats_counts_once():
    with Signals(patience=0.3) as signals:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.number == signal.SIGINT
        time.sleep(0.4)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_signals_that_are_ignored_on_purpose_stay_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signals.number is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
