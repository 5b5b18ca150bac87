"""Other spellings of the published tensor names: rules per slot, not one fixed list.

stored name -> prefixes off -> layer number, slot, part of the slot; our name of a slot
"""

import re
from typing import NamedTuple

PREFIX = re.compile(r"^(?:module|model|backbone|base_model|transformer|decoder|_orig_mod)\.")
LAYER = re.compile(r"^(?:layers|blocks|h)\.(\d{1,4})\.(.+)$")
# Buffers that other programs store and nobody needs.
IGNORED = re.compile(r"(?:^|\.)(?:rotary_emb\.inv_freq|inv_freq|position_ids)$")

TOP = {
    "embed": r"(?:embed_tokens|embeddings|embedding|word_embeddings|embeddings\.word_embeddings)\.weight",
    "final": r"(?:final_layernorm|norm|norm_f)\.weight",
    "head": r"lm_head\.weight",
}
MLP, MIXER, ATTENTION = (
    r"(?:feed_forward|mlp|shared_mlp)",
    r"(?:mamba|mamba2|mixer)",
    r"(?:self_attn|attn|attention|mixer)",
)
IN_LAYER = {
    "norm1": r"(?:input_layernorm|norm|norm1)\.weight",
    "norm2": r"(?:pre_ff_layernorm|post_attention_layernorm|pre_moe_layernorm|norm2)\.weight",
    "gate": rf"{MLP}\.(?:gate_proj|w1)\.weight",
    "up": rf"{MLP}\.(?:up_proj|w3)\.weight",
    "down": rf"{MLP}\.(?:down_proj|output_linear|w2)\.weight",
    "gate_up": rf"{MLP}\.(?:gate_up_proj|input_linear)\.weight",
    "q": rf"{ATTENTION}\.(?:q_proj|wq|query)\.weight",
    "k": rf"{ATTENTION}\.(?:k_proj|wk|key)\.weight",
    "v": rf"{ATTENTION}\.(?:v_proj|wv|value)\.weight",
    "o": rf"{ATTENTION}\.(?:o_proj|wo|dense)\.weight|(?:self_attn|attn|attention)\.out_proj\.weight",
    "qkv": rf"{ATTENTION}\.(?:qkv_proj|Wqkv|qkv)\.weight",
    "conv_weight": rf"{MIXER}\.conv1d\.weight",
    "conv_bias": rf"{MIXER}\.conv1d\.bias",
    "dt_bias": rf"{MIXER}\.dt_bias",
    "A_log": rf"{MIXER}\.A_log",
    "D": rf"{MIXER}\.D",
    "norm": rf"{MIXER}\.norm\.weight",
    "out_proj": rf"{MIXER}\.out_proj\.weight",
    "in_proj": rf"{MIXER}\.in_proj\.weight",
}
# The input projection may be stored as several matrices; together they are rows z, x, B, C, dt in this order.
IN_PROJ_PARTS = {
    "z": rf"{MIXER}\.(?:z_proj|gate_proj|in_proj_z)\.weight",
    "xBC": rf"{MIXER}\.(?:xBC_proj|in_proj_xBC)\.weight",
    "x": rf"{MIXER}\.(?:x_proj|in_proj_x)\.weight",
    "BC": rf"{MIXER}\.(?:BC_proj|in_proj_BC)\.weight",
    "B": rf"{MIXER}\.(?:B_proj|in_proj_B)\.weight",
    "C": rf"{MIXER}\.(?:C_proj|in_proj_C)\.weight",
    "dt": rf"{MIXER}\.(?:dt_proj|in_proj_dt)\.weight",
}
# A shortened in_proj beside a separate z holds all the rest.
IN_PROJ_ORDER = ("z", "whole", "xBC", "x", "BC", "B", "C", "dt")
ATTENTION_SLOTS = ("q", "k", "v", "o", "qkv")
MAMBA_SLOTS = ("conv_weight", "conv_bias", "dt_bias", "A_log", "D", "norm", "out_proj", "in_proj")

OUR_TOP = {"embed": "model.embed_tokens.weight", "final": "model.final_layernorm.weight", "head": "lm_head.weight"}
OUR_IN_LAYER = {
    "norm1": "input_layernorm.weight", "norm2": "pre_ff_layernorm.weight",
    "gate": "feed_forward.gate_proj.weight", "up": "feed_forward.up_proj.weight",
    "down": "feed_forward.down_proj.weight",
    "q": "self_attn.q_proj.weight", "k": "self_attn.k_proj.weight", "v": "self_attn.v_proj.weight",
    "o": "self_attn.o_proj.weight",
    "conv_weight": "mamba.conv1d.weight", "conv_bias": "mamba.conv1d.bias", "dt_bias": "mamba.dt_bias",
    "A_log": "mamba.A_log", "D": "mamba.D", "norm": "mamba.norm.weight", "out_proj": "mamba.out_proj.weight",
    "in_proj": "mamba.in_proj.weight",
}  # fmt: skip

_TOP = [(slot, re.compile(rule)) for slot, rule in TOP.items()]
_IN_LAYER = [(slot, "whole", re.compile(rule)) for slot, rule in IN_LAYER.items()]
_IN_LAYER += [("in_proj", part, re.compile(rule)) for part, rule in IN_PROJ_PARTS.items()]


class Place(NamedTuple):
    """Where a stored tensor belongs; layer is None outside the layers, part is `whole` unless in_proj is split."""

    layer: int | None
    slot: str
    part: str = "whole"


def place(name):
    """Return the Place of a stored tensor name, `"ignored"` for buffers that nobody needs, or None if unknown."""
    if IGNORED.search(name):
        return "ignored"
    while PREFIX.match(name):
        name = PREFIX.sub("", name)
    inside = LAYER.match(name)
    if inside is None:
        return next((Place(None, slot) for slot, rule in _TOP if rule.fullmatch(name)), None)
    layer, rest = int(inside[1]), inside[2]
    return next((Place(layer, slot, part) for slot, part, rule in _IN_LAYER if rule.fullmatch(rest)), None)


def our_name(layer, slot):
    """Return our tensor name of a slot."""
    return OUR_TOP[slot] if layer is None else f"model.layers.{layer}.{OUR_IN_LAYER[slot]}"


# Every family's spelling of what config.json may say, the published one first.
CONFIG_SPELLINGS = {
    "num_hidden_layers": ("num_hidden_layers", "n_layer", "n_layers"),
    "hidden_size": ("hidden_size", "d_model", "n_embd"),
    "intermediate_size": ("intermediate_size", "shared_intermediate_size", "d_intermediate"),
    "vocab_size": ("vocab_size",),
    "num_attention_heads": ("num_attention_heads", "n_head"),
    "num_key_value_heads": ("num_key_value_heads", "num_heads_kv"),
    "mamba_n_heads": ("mamba_n_heads", "mamba_num_heads", "n_mamba_heads", "num_heads", "nheads"),
    "mamba_d_head": ("mamba_d_head", "mamba_head_dim", "mamba_headdim", "headdim"),
    "mamba_n_groups": ("mamba_n_groups", "mamba_ngroups", "n_groups", "ngroups"),
    "mamba_d_state": ("mamba_d_state", "state_size", "ssm_state_size", "d_state"),
    "mamba_d_conv": ("mamba_d_conv", "conv_kernel", "conv_kernel_size", "d_conv"),
    "mamba_expand": ("mamba_expand", "expand"),
    "rms_norm_eps": ("rms_norm_eps", "layer_norm_epsilon", "norm_eps"),
    "max_position_embeddings": ("max_position_embeddings", "max_sequence_length", "context_length"),
    "time_step_limit": ("time_step_limit", "dt_limit"),
    "activation": ("hidden_act", "mamba_hidden_act", "activation"),
    "tie_word_embeddings": ("tie_word_embeddings",),
}
# Read elsewhere, or without any bearing on the numbers.
CONFIG_SILENT = {
    "model_type", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache", "initializer_range",
    "mamba_chunk_size", "chunk_size", "attention_dropout", "use_mamba_kernels", "mamba_conv_bias", "mamba_proj_bias",
    "attention_bias", "mlp_bias", "attn_layer_period", "attn_layer_offset", "attn_layer_indices", "layers_block_type",
    "layer_types", "bos_token_id", "eos_token_id", "pad_token_id", "rope_parameters", "partial_rotary_factor",
    "position_embedding_type", "embedding_multiplier", "residual_multiplier", "logits_scaling", "attention_multiplier",
    "z_loss_coefficient", "num_logits_to_keep", "output_router_logits", "head_dim",
}  # fmt: skip
