"""The network: embedding, blocks of Mamba-2 or attention with an MLP each, final norm, head.

tokens, state -> embed -> x + mixer(norm(x)) -> x + mlp(norm(x)), per layer -> final norm -> hidden, state
"""

import dataclasses
import math

import torch
from torch import nn

from hybridna_core.model.layers import AttentionMixer, GatedMLP, Linear, RMSNorm
from hybridna_core.model.mamba2 import Mamba2Mixer
from hybridna_core.model.state import AttentionState, MambaState, ModelState
from hybridna_core.tokenizer import Tokenizer
from hybridna_kernels import cpu
from hybridna_kernels.gemm import count_slices, linear, refuse_block

# Rows of tokens from which on each block is a call of its own: no call can be interrupted.
MANY_ROWS = 8192
# Tokens read per pass where no gradient is needed: longer temporaries are slower on CPU, and cost memory everywhere.
CPU_SEGMENT, GPU_SEGMENT = 1024, 32768


class Block(nn.Module):
    """One layer: `x + mixer(norm(x))`, then `x + mlp(norm(x))`."""

    def __init__(self, config, kind, device=None, dtype=None):
        super().__init__()
        self.kind, self.recompute, self.kept = kind, False, cpu.Kept()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, device)
        if kind == "attention":
            self.self_attn = AttentionMixer(config, device, dtype)
        else:
            self.mamba = Mamba2Mixer(config, device, dtype)
        self.pre_ff_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, device)
        self.feed_forward = GatedMLP(config, device, dtype)

    def forward(self, x, state):
        """Pass (batch, length, hidden) and the layer's state through; return both.

        With `recompute` the backward pass computes the block again, so that only its input is kept.
        """
        if self.recompute and torch.is_grad_enabled():
            # Imported here, as it costs the command line a tenth of a second.
            from torch.utils.checkpoint import checkpoint

            return checkpoint(self._read, x, state, use_reentrant=False, preserve_rng_state=False)
        return self._read(x, state)

    @property
    def mixer(self):
        return self.self_attn if self.kind == "attention" else self.mamba

    def _read(self, x, state):
        mixed, state = self.mixer(self.input_layernorm(x), state)
        x, normed = self.pre_ff_layernorm.add(x, mixed)
        return x + self.feed_forward(normed), state

    def lay_out(self, x, state):
        """Return the block as `cpu.read_blocks` takes it with these, or None where it does not."""
        if x.device.type != "cpu" or self._forward_hooks or self._forward_pre_hooks:
            return None
        mixer, mlp = self.mixer, self.feed_forward
        if any(type(projection) is not Linear for projection in (*mixer.projections, *mlp.projections)):
            return None
        block = mixer.with_mlp(self.input_layernorm, self.pre_ff_layernorm, mlp)
        laid = self.kept.get(block, count_slices(2, max(weight.numel() for weight in block.products)))
        return laid if refuse_block(x, state, laid) is None else None


def read_blocks(blocks, x, states):
    """Pass (batch, length, hidden) and the states through blocks; return it and the list of new states.

    Blocks that the library takes go to it together, in as few calls as there are runs of them.
    """
    after, run = [], []

    def read_run(x):
        x, found = cpu.read_blocks(x, [state for _, state in run], [laid for laid, _ in run])
        for (_, state), new in zip(run, found, strict=True):
            after.append(MambaState(*new) if isinstance(state, MambaState) else AttentionState(*new, *state[2:]))
        run.clear()
        return x

    for block, state in zip(blocks, states, strict=True):
        if isinstance(state, MambaState) and x.shape[1] > 1 and state.rows is not None:
            state = MambaState(state.conv, state.gather())
        # What a run gives wants no gradient either: the answer does not depend on whether it has been read yet.
        laid = block.lay_out(x, state)
        if laid is not None:
            run.append((laid, state))
            if x.shape[0] * x.shape[1] >= MANY_ROWS:
                x = read_run(x)
            continue
        x, state = block(read_run(x) if run else x, state)
        after.append(state)
    return read_run(x) if run else x, after


class Backbone(nn.Module):
    """Embedding, blocks and final norm, under the published names."""

    def __init__(self, config, device=None, dtype=None):
        super().__init__()
        # nn.Embedding() would draw weights, and doing so on the meta device imports torch's compiler: a second lost.
        table = torch.empty(config.vocab_size, config.hidden_size, device=device, dtype=dtype)
        self.embed_tokens = nn.Embedding.from_pretrained(table, freeze=False)
        self.layers = nn.ModuleList(Block(config, kind, device, dtype) for kind in config.layer_types)
        self.final_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, device)


class HybridLM(nn.Module):
    """Decoder-only DNA language model; `hidden, state = model(tokens, state)` for any number of tokens.

    seed  of the initial weights; on the meta device there are none

    `tokenizer`, `name`, `digest` and `folder` say where loaded weights come from.
    """

    def __init__(self, config, device=None, dtype=None, seed=0):
        super().__init__()
        self.config = config
        self.model = Backbone(config, device, dtype)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, device=device, dtype=dtype)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        self.tokenizer = Tokenizer()
        self.name, self.digest, self.folder = "", "", None
        if self.lm_head.weight.device.type != "meta":
            initialize(self, seed)

    @property
    def device(self):
        return self.lm_head.weight.device

    @property
    def dtype(self):
        return self.lm_head.weight.dtype

    @property
    def segment(self):
        """Tokens that one pass reads when no gradient is needed."""
        return CPU_SEGMENT if self.device.type == "cpu" else GPU_SEGMENT

    def forward(self, tokens, state=None):
        """Read tokens after the given state.

        tokens   (batch, n) int64, n >= 1
        state    ModelState, or None for the very start
        returns  hidden (batch, n, hidden_size) after the final norm, and the new ModelState

        Reading a then b equals reading a + b, outputs and state, for every split.
        """
        if state is None:
            state = ModelState.start(self.config, tokens.shape[0], self.device, self.dtype)
        if torch.is_grad_enabled() or tokens.shape[1] <= self.segment:
            return self._read(tokens, state)
        parts = []
        for part in tokens.split(self.segment, dim=1):
            hidden, state = self._read(part, state)
            parts.append(hidden)
        return torch.cat(parts, dim=1), state

    def _read(self, tokens, state):
        (hidden,), state = self.read_layers(tokens, state, (len(self.model.layers) + 1,))
        return hidden, state

    def read_layers(self, tokens, state, layers):
        """Read tokens after the given state in one piece and return what stands at several depths.

        tokens   (batch, n) int64, n >= 1
        state    ModelState, or None for the very start
        layers   depths: 0 the tokens' embedding, i what leaves block i, one more than there are blocks the final norm
        returns  list of (batch, n, hidden_size), one per depth, and the new ModelState

        Blocks beyond the deepest are not run, and have no state in what is returned.
        """
        if state is None:
            state = ModelState.start(self.config, tokens.shape[0], self.device, self.dtype)
        x, states, blocks = self.model.embed_tokens(tokens), [], list(self.model.layers)
        found = {0: x}
        for depth in sorted({min(depth, len(blocks)) for depth in layers}):
            done = len(states)
            x, after = read_blocks(blocks[done:depth], x, state.layers[done:depth])
            states += after
            found[depth] = x
        if max(layers) > len(blocks):
            found[max(layers)] = self.model.final_layernorm(x)
        return [found[depth] for depth in layers], ModelState(tuple(states), state.length + tokens.shape[1])

    def head(self, hidden):
        """Turn hidden vectors into logits over the vocabulary, float32 (float64 for a float64 model)."""
        logits = linear(hidden, self.lm_head.weight)
        return logits if logits.dtype == torch.float64 else logits.float()


@torch.no_grad()
def initialize(model, seed=0):
    """Draw initial weights: normal 0.02, residual projections less, A and dt spread over their ranges.

    A uniform in [1, 16], dt log-uniform in [0.001, 0.1] through dt_bias, D and norms ones, convolution as torch's own.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    residual = 0.02 / math.sqrt(2 * model.config.num_hidden_layers)

    def draw(parameter, sample):
        parameter.copy_(sample(torch.empty(parameter.shape)).to(parameter.dtype))

    for name, parameter in model.named_parameters():
        leaf = name.rsplit(".", 2)[-2:] if name.endswith((".weight", ".bias")) else [name.rsplit(".", 1)[-1]]
        if "norm" in leaf[0] or leaf[0] == "D":
            parameter.fill_(1.0)
        elif leaf[0] == "A_log":
            draw(parameter, lambda t: t.uniform_(1, 16, generator=generator).log_())
        elif leaf[0] == "dt_bias":
            dt = torch.exp(torch.empty(parameter.shape).uniform_(math.log(0.001), math.log(0.1), generator=generator))
            # The inverse of softplus.
            parameter.copy_((dt + torch.log(-torch.expm1(-dt))).to(parameter.dtype))
        elif leaf[0] == "conv1d":
            bound = model.config.mamba_d_conv**-0.5
            draw(parameter, lambda t, b=bound: t.uniform_(-b, b, generator=generator))
        else:
            std = residual if leaf[0] in ("o_proj", "out_proj", "down_proj") else 0.02
            draw(parameter, lambda t, s=std: t.normal_(0, s, generator=generator))


def count_parameters(config):
    """Return the number of elements of the network, without allocating it."""
    return sum(p.numel() for p in HybridLM(config, device="meta").parameters())


def match_size(config, parameters):
    """Return the config with the MLP width that brings its parameters nearest to a number."""
    # A wider MLP adds one column to each of three matrices per layer.
    wider = 3 * config.hidden_size * config.num_hidden_layers
    width = config.intermediate_size + round((parameters - count_parameters(config)) / wider)
    return dataclasses.replace(config, intermediate_size=max(1, width))


def flops_per_token(config, length):
    """Return forward floating-point operations per token of a window of `length` tokens, two per multiply-add.

    Matrix products, the SSD scan in chunks of 64 and causal attention; norms and activations are left out.
    """
    h, chunk = config.hidden_size, 64
    total = 0
    for kind in config.layer_types:
        total += 6 * h * config.intermediate_size
        if kind == "attention":
            kv = config.num_key_value_heads * config.head_dim
            total += 4 * h * h + 4 * h * kv + 2 * length * h
        else:
            width, state = config.mamba_width, config.mamba_d_state
            total += 2 * h * (width + config.conv_width + config.mamba_n_heads) + 2 * width * h
            total += 2 * config.mamba_d_conv * config.conv_width
            total += 4 * width * state + 2 * chunk * (state * config.mamba_n_groups + width)
    return total + 2 * h * config.vocab_size
