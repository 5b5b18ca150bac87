"""The Mamba-2 mixer: projections around the kernels.

x -> in_proj -> z | x, B, C | dt -> causal convolution -> SSD scan -> gated RMSNorm -> out_proj
"""

import torch
import torch.nn.functional as F
from torch import nn

from hybridna_core.model.layers import Linear
from hybridna_core.model.state import MambaState
from hybridna_kernels import cpu, dispatch


class Conv1d(nn.Module):
    """Weights of the depthwise causal convolution. weight (channels, 1, kernel), bias (channels,)"""

    def __init__(self, channels, kernel, device=None, dtype=None):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, kernel, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(channels, device=device, dtype=dtype))


class GatedRMSNorm(nn.Module):
    """Weight of the norm after the gate. (width,)"""

    def __init__(self, width, eps, device=None):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(width, device=device))

    def forward(self, y, z):
        return dispatch.run("gated_rms_norm", y, z, self.weight, self.eps)


class Mamba2Mixer(nn.Module):
    """Mamba-2 (SSD) sequence mixer; A_log, D and dt_bias stay in float32."""

    def __init__(self, config, device=None, dtype=None):
        super().__init__()
        self.config = config
        at = {"device": device, "dtype": dtype}
        width, heads = config.mamba_width, config.mamba_n_heads
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        self.in_proj = Linear(config.hidden_size, width + config.conv_width + heads, **at)
        self.conv1d = Conv1d(config.conv_width, config.mamba_d_conv, **at)
        self.dt_bias = nn.Parameter(torch.empty(heads, device=device, dtype=exact))
        self.A_log = nn.Parameter(torch.empty(heads, device=device, dtype=exact))
        self.D = nn.Parameter(torch.empty(heads, device=device, dtype=exact))
        self.norm = GatedRMSNorm(width, config.rms_norm_eps, device)
        self.out_proj = Linear(width, config.hidden_size, **at)

    @property
    def projections(self):
        return self.in_proj, self.out_proj

    def forward(self, x, state):
        """Mix (batch, length, hidden) along the length; return it and the new MambaState."""
        c = self.config
        projected = self.in_proj(x)
        batch, length, _ = projected.shape
        z, mixed, dt = projected.split([c.mamba_width, c.conv_width, c.mamba_n_heads], dim=-1)
        weight = self.conv1d.weight[:, 0]
        mixed, conv = dispatch.run("causal_conv1d", mixed, weight, self.conv1d.bias, state=state.conv)
        group_width = c.mamba_n_groups * c.mamba_d_state
        inner, B, C = mixed.split([c.mamba_width, group_width, group_width], dim=-1)
        inner = inner.unflatten(-1, (c.mamba_n_heads, c.mamba_d_head))
        B, C = (t.unflatten(-1, (c.mamba_n_groups, c.mamba_d_state)) for t in (B, C))
        dt = F.softplus(dt.to(self.dt_bias.dtype) + self.dt_bias)
        if c.time_step_limit is not None:
            dt = dt.clamp(*c.time_step_limit)
        A = -torch.exp(self.A_log)
        if length == 1:
            one = (t[:, 0] for t in (inner, dt, B, C))
            inner, dt, B, C = one
            y, ssm = dispatch.run("ssd_step", inner, dt, A, B, C, self.D, state.ssm, rows=state.rows)
        else:
            # Under autocast too the recurrence sums in float32.
            with torch.autocast(projected.device.type, enabled=False):
                y, ssm = dispatch.run("ssd_scan", inner, dt, A, B, C, self.D, state=state.gather())
        return self.out_proj(self.norm(y.reshape(batch, length, c.mamba_width), z)), MambaState(conv, ssm)

    def with_mlp(self, norm, mlp_norm, mlp):
        """Return the weights of a block of this mixer and an MLP, each with its norm, for `cpu.read_blocks`."""
        c = self.config
        return cpu.MambaBlock(
            norm.weight, self.in_proj.weight, self.conv1d.weight, self.conv1d.bias, self.dt_bias, self.A_log, self.D,
            self.norm.weight, self.out_proj.weight, mlp_norm.weight, mlp.gate_proj.weight, mlp.up_proj.weight,
            mlp.down_proj.weight, norm.eps, self.norm.eps, mlp_norm.eps, c.time_step_limit, c.mamba_n_groups,
            c.mamba_d_state,
        )  # fmt: skip
