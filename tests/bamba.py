"""The independent oracle: transformers' BambaForCausalLM with its position code switched off.

our ModelConfig -> BambaConfig of the same meaning -> model with every parameter drawn, none at a default
"""

import math

import pytest
import torch


def make_bamba(config, seed=0, chunk_size=16):
    """Return a BambaForCausalLM of the shapes of a ModelConfig, all parameters random; skip without transformers."""
    transformers = pytest.importorskip("transformers")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    oracle = transformers.BambaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        attn_layer_indices=[i for i, kind in enumerate(config.layer_types) if kind == "attention"],
        mamba_n_heads=config.mamba_n_heads,
        mamba_d_head=config.mamba_d_head,
        mamba_n_groups=config.mamba_n_groups,
        mamba_d_state=config.mamba_d_state,
        mamba_d_conv=config.mamba_d_conv,
        mamba_expand=config.mamba_width // config.hidden_size,
        mamba_chunk_size=chunk_size,
        rms_norm_eps=config.rms_norm_eps,
        max_position_embeddings=config.max_position_embeddings,
        tie_word_embeddings=config.tie_word_embeddings,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=None,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.0},
    )
    model = transformers.BambaForCausalLM(oracle).eval().requires_grad_(False)
    randomize(model, seed)
    return model


@torch.no_grad()
def randomize(model, seed):
    """Draw every parameter anew; ones and zeros would hide a parameter that is left out or taken for another."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        draw = torch.rand(parameter.shape, generator=generator)
        if name.endswith("A_log"):
            parameter.copy_((1 + 15 * draw).log())
        elif name.endswith("dt_bias"):
            dt = torch.exp(math.log(1e-3) + draw * math.log(100))
            parameter.copy_(dt + torch.log(-torch.expm1(-dt)))
        elif "norm" in name or name.endswith("D"):
            parameter.copy_(0.5 + draw)
        else:
            fan = math.prod(parameter.shape[1:]) or 1
            parameter.copy_((2 * draw - 1) * (3 / fan) ** 0.5)
