"""Parts of a block beside the Mamba-2 mixer: RMSNorm, causal grouped-query attention, gated MLP."""

import torch
from torch import nn

from hybridna_core.model.state import AttentionState, FixedAttentionState
from hybridna_kernels import cpu, dispatch
from hybridna_kernels.gemm import linear
from hybridna_kernels.pointwise import add_rms_norm, silu_mul


class RMSNorm(nn.Module):
    """Scale each vector to unit mean square, times a weight; statistics in float32."""

    def __init__(self, width, eps, device=None):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(width, device=device))

    def forward(self, x):
        return add_rms_norm(x, None, self.weight, self.eps)[1]

    def add(self, x, more):
        """Return x + more, and that sum normalised."""
        return add_rms_norm(x, more, self.weight, self.eps)


class Linear(nn.Module):
    """A projection without bias. weight (out, in)"""

    def __init__(self, width_in, width_out, device=None, dtype=None):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width_out, width_in, device=device, dtype=dtype))

    def forward(self, x):
        return linear(x, self.weight)


class AttentionMixer(nn.Module):
    """Causal grouped-query attention without position code, bias or query/key norm."""

    def __init__(self, config, device=None, dtype=None):
        super().__init__()
        self.head_dim = config.head_dim
        kv_width = config.num_key_value_heads * config.head_dim
        at = {"device": device, "dtype": dtype}
        self.q_proj = Linear(config.hidden_size, config.hidden_size, **at)
        self.k_proj = Linear(config.hidden_size, kv_width, **at)
        self.v_proj = Linear(config.hidden_size, kv_width, **at)
        self.o_proj = Linear(config.hidden_size, config.hidden_size, **at)

    @property
    def projections(self):
        return self.q_proj, self.k_proj, self.v_proj, self.o_proj

    def forward(self, x, state):
        """Mix (batch, length, hidden) along the length; return it and the grown AttentionState."""
        q, k, v = (
            projection(x).unflatten(-1, (-1, self.head_dim)) for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        if isinstance(state, FixedAttentionState):
            return self.o_proj(state.attend(q, k, v).flatten(2)), state
        if state.keys.shape[1]:
            k, v = torch.cat([state.keys, k], dim=1), torch.cat([state.values, v], dim=1)
        state = AttentionState(k, v, state.shared_keys, state.shared_values)
        out = dispatch.run("attention", q, k, v, shared_k=state.shared_keys, shared_v=state.shared_values)
        return self.o_proj(out.flatten(2)), state

    def with_mlp(self, norm, mlp_norm, mlp):
        """Return the weights of a block of this mixer and an MLP, each with its norm, for `cpu.read_blocks`."""
        q, k, v, o, gate, up, down = (p.weight for p in (*self.projections, *mlp.projections))
        return cpu.AttentionBlock(
            norm.weight, q, k, v, o, mlp_norm.weight, gate, up, down, norm.eps, mlp_norm.eps,
            q.shape[0] // self.head_dim, k.shape[0] // self.head_dim,
        )  # fmt: skip


class GatedMLP(nn.Module):
    """SwiGLU without bias: down(silu(gate(x)) * up(x))."""

    def __init__(self, config, device=None, dtype=None):
        super().__init__()
        at = {"device": device, "dtype": dtype}
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, **at)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, **at)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, **at)

    @property
    def projections(self):
        return self.gate_proj, self.up_proj, self.down_proj

    def forward(self, x):
        return self.down_proj(silu_mul(self.gate_proj(x), self.up_proj(x)))
