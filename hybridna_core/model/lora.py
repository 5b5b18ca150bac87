"""Low-rank adapters on the projections of a network, and how they become part of its weights.

Linear -> LoraLinear: W x + (alpha / rank) up down x, W fixed -> trained -> merged: W + (alpha / rank) up down

peft's own adapters take torch.nn.Linear alone; the projections here are modules of their own (kernels.gemm).
"""

import torch
from torch import nn

from hybridna_core.model.layers import Linear
from hybridna_kernels.gemm import linear


class LoraLinear(nn.Module):
    """A projection with a low-rank addition; it begins as the projection itself (Hu et al. 2021).

    down (rank, in), up (out, rank)
    """

    def __init__(self, base, rank, alpha, generator):
        super().__init__()
        self.base, self.scale = base, alpha / rank
        width_out, width_in = base.weight.shape
        drawn = torch.randn(rank, width_in, generator=generator) * width_in**-0.5
        self.down = nn.Parameter(drawn.to(base.weight.device))
        self.up = nn.Parameter(torch.zeros(width_out, rank, device=base.weight.device))

    def forward(self, x):
        # The addition stays in float32 where the projection is of fewer bits, outside autocast.
        added = linear(linear(x.to(self.down.dtype), self.down), self.up)
        return self.base(x) + (self.scale * added).to(x.dtype)


def add_lora(model, rank, alpha, seed=0):
    """Put an adapter on every projection of a network's blocks; nothing else of it stays trainable."""
    model.requires_grad_(False)
    generator = torch.Generator("cpu").manual_seed(seed)
    for module in list(model.model.layers.modules()):
        for name, child in list(module.named_children()):
            if type(child) is Linear:
                setattr(module, name, LoraLinear(child, rank, alpha, generator))


@torch.no_grad()
def merge_lora(model):
    """Make the adapters part of the projections' weights and take them out."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, LoraLinear):
                weight = child.base.weight
                weight.copy_(weight.float() + child.scale * (child.up.float() @ child.down.float()))
                setattr(module, name, child.base)


def lora_tensors(model):
    """Return {name: tensor} of the adapters of a network."""
    return {name: p.detach() for name, p in model.named_parameters() if name.endswith((".down", ".up"))}
