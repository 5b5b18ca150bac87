"""Muon beside AdamW, and the schedule that stays level before it goes down."""

import copy

import pytest
import torch

from hybridna_core.config import ModelConfig
from hybridna_core.errors import SystemFault, UsageError
from hybridna_core.model.hybrid import HybridLM
from hybridna_core.run_config import OptimConfig
from hybridna_core.train.optim import learning_rate, make_optimizer, optimizer_tensors, restore_optimizer

SMALL = ModelConfig(32, 48, ("mamba", "attention"), 4, 2, mamba_n_heads=4, mamba_d_head=16, mamba_d_state=8)
MUON = OptimConfig(optimizer="muon", lr=0.02, weight_decay=0.1, betas=(0.8, 0.9))


def give_gradients(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_matrices_go_by_muon_and_the_rest_by_adamw():
    ours, theirs = HybridLM(SMALL), HybridLM(SMALL)
    optimizer = make_optimizer(ours, MUON)
    is_matrix = {
        name: p.ndim == 2 and not name.startswith(("model.embed_tokens", "lm_head"))
        for name, p in theirs.named_parameters()
    }
    named = dict(theirs.named_parameters())
    muon = torch.optim.Muon(
        [p for n, p in named.items() if is_matrix[n]], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
    )
    adamw = torch.optim.AdamW(
        [p for n, p in named.items() if not is_matrix[n]], lr=0.02, betas=(0.8, 0.9), weight_decay=0.0, fused=True
    )
    for step in range(3):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        for group in [*optimizer.param_groups, *muon.param_groups, *adamw.param_groups]:
            group["lr"] = 0.02 / (step + 1)
        optimizer.step()
        muon.step()
        adamw.step()
    before = weights(HybridLM(SMALL))
    assert 0 < sum(is_matrix.values()) < len(is_matrix)
    for name, value in weights(ours).items():
        assert torch.equal(value, named[name]) and not torch.equal(value, before[name])


def test_a_matrix_moves_by_a_rotation_of_the_size_of_adamws_step():
    model = HybridLM(SMALL)
    optimizer = make_optimizer(model, OptimConfig(optimizer="muon", lr=1.0, weight_decay=0.0))
    before = weights(model)
    give_gradients(model, 0)
    optimizer.step()
    name = "model.layers.0.feed_forward.down_proj.weight"
    moved = before[name] - weights(model)[name]
    # Singular values near one, times 0.2 sqrt(longer side): the usual root mean square of Adam's steps, 0.2.
    values = torch.linalg.svdvals(moved) / (0.2 * max(moved.shape) ** 0.5)
    assert float(values.min()) > 0.3 and float(values.max()) < 1.5
    assert 0.1 < float(moved.square().mean().sqrt()) < 0.3


def test_state_comes_back_bit_for_bit():
    first, second = HybridLM(SMALL), HybridLM(SMALL)
    one, two = make_optimizer(first, MUON), make_optimizer(second, MUON)
    for step in range(2):
        give_gradients(first, step)
        one.step()
    saved = {name: tensor.clone() for name, tensor in optimizer_tensors(one, first).items()}
    assert any(name.startswith("momentum_buffer.") for name in saved) and any("exp_avg." in name for name in saved)
    second.load_state_dict(first.state_dict())
    restore_optimizer(two, second, saved)
    for model, optimizer in ((first, one), (second, two)):
        give_gradients(model, 9)
        optimizer.step()
    for name, value in weights(first).items():
        assert torch.equal(value, weights(second)[name])


def test_torchs_own_way_of_loading_works_too():
    first, second = HybridLM(SMALL), HybridLM(SMALL)
    one, two = make_optimizer(first, MUON), make_optimizer(second, MUON)
    give_gradients(first, 0)
    one.step()
    second.load_state_dict(first.state_dict())
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    for model, optimizer in ((first, one), (second, two)):
        give_gradients(model, 1)
        optimizer.step()
    for name, value in weights(first).items():
        assert torch.equal(value, weights(second)[name])


def test_a_torch_without_muon_is_told_of(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(SystemFault, match="torch has no Muon") as caught:
        make_optimizer(HybridLM(SMALL), MUON)
    assert "torch>=2.9" in caught.value.hint


def test_level_schedule_by_hand():
    config = OptimConfig(lr=1.0, warmup_steps=2, schedule="constant", cooldown=0.4, final_lr=0.1)
    rates = [learning_rate(step, 10, config) for step in range(11)]
    assert rates[:2] == [0.5, 1.0] and rates[2:7] == [1.0] * 5
    # 4 steps down from 1 to 0.1.
    assert rates[7:] == pytest.approx([0.775, 0.55, 0.325, 0.1])
    flat = OptimConfig(lr=1.0, warmup_steps=0, schedule="constant", cooldown=0.0)
    assert {learning_rate(step, 10, flat) for step in range(10)} == {1.0}


@pytest.mark.parametrize("field,value", [("optimizer", "sgd"), ("schedule", "step"), ("cooldown", 1.5)])
def test_what_there_is_not(field, value):
    with pytest.raises(UsageError, match=field):
        OptimConfig(**{field: value})
