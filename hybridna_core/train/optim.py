"""Optimiser and schedule: AdamW with decay on matrices only; warm-up, then a cosine.

model -> parameter groups -> AdamW; step -> learning rate
"""

import math

import torch


def make_optimizer(model, config):
    """Build AdamW; weight decay on projection matrices, not on embeddings, norms or SSM scalars."""
    decayed, plain = [], []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.ndim == 2 and not name.startswith(("model.embed_tokens", "lm_head"))
        (decayed if is_matrix else plain).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def learning_rate(step, total, config):
    """Return the rate of step number `step` (from 0) of `total`: linear warm-up, then cosine to final_lr times lr."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, total - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.lr * (config.final_lr + (1 - config.final_lr) * cosine)


def optimizer_tensors(optimizer, model):
    """Name the optimiser's state for saving: {`exp_avg.NAME`: tensor, ...}."""
    names = {id(p): n for n, p in model.named_parameters()}
    return {
        f"{key}.{names[id(p)]}": value if value.ndim else value.reshape(1)
        for p, entry in optimizer.state.items()
        for key, value in entry.items()
    }


def restore_optimizer(optimizer, model, tensors):
    """Put saved state back, bit for bit; the reverse of `optimizer_tensors`."""
    named = dict(model.named_parameters())
    for name, value in tensors.items():
        key, parameter = name.split(".", 1)
        shaped = value.reshape(()) if key == "step" else value
        # The fused optimiser keeps even its step count beside the weights.
        optimizer.state[named[parameter]][key] = shaped.to(named[parameter].device, copy=True)
