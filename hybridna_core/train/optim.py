"""Optimisers and schedules: AdamW, or Muon for the matrices; decay on matrices only; warm-up, then a way down.

model -> parameter groups -> optimiser; step -> learning rate
"""

import math

import torch

from hybridna_core.errors import SystemFault


def make_optimizer(model, config):
    """Build the optimiser of a run; weight decay on projection matrices, not on embeddings, norms or SSM scalars.

    adamw  the published one, for everything
    muon   orthogonalised momentum for the matrices, scaled to AdamW's usual step (Jordan et al. 2024; Liu et al. 2025,
           arXiv 2502.16982), and AdamW for the rest
    """
    matrices, rest = [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_matrix = parameter.ndim == 2 and "embed_tokens" not in name and "lm_head" not in name
        (matrices if is_matrix else rest).append(parameter)
    if config.optimizer == "muon":
        return MuonAndAdamW(matrices, rest, config)
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def hasten_rows(optimizer, weight, first, factor):
    """Let every step of an optimiser move the rows of a weight from `first` on so many times as far as it would."""
    before = {}

    def keep(*_):
        before["rows"] = weight[first:].detach().clone()

    @torch.no_grad()
    def stretch(*_):
        weight[first:] = torch.lerp(before.pop("rows"), weight[first:], factor)

    optimizer.register_step_pre_hook(keep)
    optimizer.register_step_post_hook(stretch)


class MuonAndAdamW(torch.optim.Optimizer):
    """Muon and AdamW as one optimiser: the first group's matrices by Muon, the second group by AdamW.

    Raises SystemFault where torch has no Muon yet.
    """

    def __init__(self, matrices, rest, config):
        if not hasattr(torch.optim, "Muon"):
            raise SystemFault("torch has no Muon", where='optim.optimizer = "muon"', hint="pip install 'torch>=2.9'")
        self._muon = torch.optim.Muon(
            matrices, lr=config.lr, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
        )
        self._adamw = torch.optim.AdamW(
            rest, lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=0.0, fused=True
        )
        super().__init__([*self._muon.param_groups, *self._adamw.param_groups], {})
        self._join()

    def _join(self):
        """Let both parts work on this optimiser's own state and groups, which loading replaces."""
        for part, group in zip((self._muon, self._adamw), self.param_groups, strict=True):
            part.state, part.param_groups = self.state, [group]

    @torch.no_grad()
    def step(self, closure=None):
        """Take one step of both."""
        loss = closure() if closure else None
        self._join()
        self._muon.step()
        self._adamw.step()
        return loss


def learning_rate(step, total, config):
    """Return the rate of step number `step` (from 0) of `total`: linear warm-up, then down to final_lr times lr.

    cosine    half a cosine wave
    constant  no way down until the last share `cooldown` of all steps, which go down on a straight line
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    after = max(1, total - config.warmup_steps)
    progress = min(1.0, (step - config.warmup_steps) / after)
    if config.schedule == "cosine":
        left = 0.5 * (1 + math.cos(math.pi * progress))
    else:
        left = min(1.0, (total - step) / (config.cooldown * total)) if config.cooldown else 1.0
    return config.lr * (config.final_lr + (1 - config.final_lr) * left)


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
