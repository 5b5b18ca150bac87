"""Published folders for tests: our weights under other names, and headers without weights.

HybridLM -> tensors, renamed or damaged -> config.json + model.safetensors as others would write them
"""

import json
import struct

import torch

from hybridna_core.checkpoint import write_tensors
from hybridna_core.model.hybrid import HybridLM


def published_config(config, **changes):
    """Return what a published config.json of this structure says; a value of None takes the key out."""
    table = {
        "model_type": "hybridna",
        "num_hidden_layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "vocab_size": config.vocab_size,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "mamba_n_heads": config.mamba_n_heads,
        "mamba_n_groups": config.mamba_n_groups,
        "mamba_d_state": config.mamba_d_state,
        "mamba_d_conv": config.mamba_d_conv,
        "rms_norm_eps": config.rms_norm_eps,
        "max_position_embeddings": config.max_position_embeddings,
        "tie_word_embeddings": config.tie_word_embeddings,
        **changes,
    }
    return {key: value for key, value in table.items() if value is not None}


def publish(folder, tensors, table):
    """Write a published folder: config.json of a table, model.safetensors of tensors."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(table))
    write_tensors(folder / "model.safetensors", tensors)
    return folder


def publish_model(folder, model, **changes):
    """Write a model as a published folder under the usual names."""
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    return publish(folder, tensors, published_config(model.config, **changes))


def publish_headers(folder, config, table, dtype="BF16", shards=1):
    """Write a folder of headers only: the files have their full size, but no block of them is on disk."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(table))
    shapes = {name: tuple(t.shape) for name, t in HybridLM(config, device="meta").state_dict().items()}
    names, weight_map = list(shapes), {}
    for shard in range(shards):
        file = "model.safetensors" if shards == 1 else f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        header, offset = {}, 0
        for name in names[shard::shards]:
            size = torch.Size(shapes[name]).numel() * (2 if dtype == "BF16" else 4)
            header[name] = {"dtype": dtype, "shape": shapes[name], "data_offsets": [offset, offset + size]}
            offset += size
            weight_map[name] = file
        text = json.dumps(header).encode()
        with open(folder / file, "wb") as handle:
            handle.write(struct.pack("<Q", len(text)) + text)
            handle.truncate(8 + len(text) + offset)
    if shards > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder
