"""Folders of fine-tuned models: a model folder with a head beside the weights, or an adapter for another folder.

Predictor, Scheme -> merged weights, head.json, head.safetensors -> model folder -> Predictor, Scheme
adapter.json, adapter.safetensors, the base that they are for -> merged network
"""

import json
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from hybridna_core.checkpoint import (
    atomic_folder,
    finish_model,
    load_model,
    save_model,
    verify_manifest,
    write_bytes,
    write_json,
)
from hybridna_core.config import build
from hybridna_core.data.labelled import Scheme
from hybridna_core.errors import HybriDNAError, ModelError
from hybridna_core.model.lora import add_lora, lora_tensors, merge_lora
from hybridna_core.model.readout import HeadConfig, Predictor
from hybridna_core.part_files import FORMAT, LABELS, read_part, read_scheme

HEAD, HEAD_WEIGHTS = "head.json", "head.safetensors"
ADAPTER, ADAPTER_WEIGHTS = "adapter.json", "adapter.safetensors"


def describe_head(predictor, scheme):
    """Return what head.json says, but for the digest of the weights that the head is for."""
    return {"format": FORMAT, "config": asdict(predictor.config), "scheme": asdict(scheme)}


def save_predictor(folder, predictor, scheme, *, card, extra, force=False):
    """Write a Predictor as a model folder that every command takes.

    extra  dict of file name -> content
    """
    digest = digest_weights(predictor.backbone)
    files = {HEAD: _spell({**describe_head(predictor, scheme), "weights": digest}),
             HEAD_WEIGHTS: _pack(predictor.head.state_dict())}  # fmt: skip
    return save_model(folder, predictor.backbone, card=card, extra_files={**files, **extra}, force=force)


def save_adapter(folder, predictor, scheme, base, lora, *, card, extra, force=False):
    """Write head and adapters alone, with the fingerprint of the base that they were trained on.

    base  name or path of the base, as the user gave it
    lora  dict of rank and alpha, or None for a head alone
    """
    model = predictor.backbone
    place = str(base) if str(base) == model.name else os.path.abspath(base)
    with atomic_folder(folder, force=force) as temporary:
        adapter = {"format": FORMAT, "base": place, "weights": model.digest, "lora": lora}
        write_json(temporary / ADAPTER, adapter)
        write_bytes(temporary / ADAPTER_WEIGHTS, _pack(predictor.adapters))
        write_json(temporary / HEAD, {**describe_head(predictor, scheme), "weights": model.digest})
        write_bytes(temporary / HEAD_WEIGHTS, _pack(predictor.head.state_dict()))
        write_json(temporary / "config.json", model.config.to_dict())
        write_json(temporary / "tokenizer.json", model.tokenizer.to_dict())
        write_bytes(temporary / "README.md", card.encode())
        for name, content in extra.items():
            write_bytes(temporary / name, content.encode() if isinstance(content, str) else content)
    return Path(folder)


def load_adapted(folder, base=None, **options):
    """Load the base that an adapter folder is for, with the adapters merged in; options as `load_model` has them.

    base  another place of the same base
    Raises ModelError when the base is not there, or is another one than was trained on.
    """
    manifest, folder = verify_manifest(folder), Path(folder)
    adapter = read_part(folder / ADAPTER, {"base", "weights", "lora"})
    try:
        model = load_model(base or adapter["base"], **options)
    except HybriDNAError as error:
        what = f"the model that this adapter is for cannot be loaded ({error})"
        raise ModelError(what, where=folder, hint="give --base FOLDER, where it lies now") from None
    if model.digest != adapter["weights"]:
        what = (
            f"the adapter is for weights {adapter['weights'][:12]}, {base or adapter['base']} has {model.digest[:12]}"
        )
        raise ModelError(what, where=folder, hint="give the base that it was trained on, with --base")
    if adapter["lora"]:
        add_lora(model, **adapter["lora"])
        tensors, wanted = _unpack(folder / ADAPTER_WEIGHTS), lora_tensors(model)
        _check_names(tensors, wanted, folder / ADAPTER_WEIGHTS)
        for name, tensor in wanted.items():
            tensor.copy_(tensors[name])
        merge_lora(model)
    finish_model(model, model.tokenizer, folder, manifest["digest"])
    return model


def load_predictor(folder, base=None, **options):
    """Load a fine-tuned model; return a Predictor and its Scheme. Options as `load_model` has them.

    Raises ModelError for a folder without a head, a damaged head, and one that is for other weights.
    """
    model = load_adapted(folder, base, **options) if is_adapter(folder) else load_model(folder, **options)
    path = model.folder / HEAD
    if not path.is_file():
        raise ModelError("this model has no head to predict with", where=folder, hint="hybridna finetune makes one")
    table = read_part(path, {"config", "scheme", "weights"})
    due = read_part(model.folder / ADAPTER, {"weights"})["weights"] if is_adapter(folder) else digest_weights(model)
    # Weights stored or loaded in fewer bits are others by their digest alone.
    if table["weights"] != due and model.dtype == torch.float32:
        what = f"the head is for weights {table['weights'][:12]}, the folder has {due[:12]}"
        raise ModelError(what, where=path, hint="use head and weights of one training")
    config = build(HeadConfig, table["config"], f"{path}: config")
    scheme = build(Scheme, table["scheme"], f"{path}: scheme")
    if config.hidden_size != model.config.hidden_size or config.outputs != len(scheme.outputs):
        what = f"the head takes {config.hidden_size} numbers and gives {config.outputs}"
        due = f"the model gives {model.config.hidden_size}, {len(scheme.outputs)} are named"
        raise ModelError(f"{what}; {due}", where=path)
    predictor = Predictor(model, config)
    tensors, wanted = _unpack(model.folder / HEAD_WEIGHTS), predictor.head.state_dict()
    _check_names(tensors, wanted, model.folder / HEAD_WEIGHTS)
    predictor.head.load_state_dict(tensors)
    return predictor.eval().requires_grad_(False), scheme


def is_adapter(folder):
    """Say whether a name or folder is an adapter's."""
    return (Path(folder) / ADAPTER).is_file()


def save_labelled_model(folder, model, frequencies, *, length, card, extra, force=False):
    """Write a network that knows labels, with what they mean and how often each stood in training.

    length  bases that most training sequences have, which `generate` makes unless it is told otherwise
    """
    positions = [
        {"name": p.name, "meaning": p.meaning, "values": list(range(p.digits))} for p in model.tokenizer.label_positions
    ]
    table = {
        "format": FORMAT, "positions": positions, "length": length, "rows": sum(frequencies.values()),
        "frequencies": frequencies,
    }  # fmt: skip
    return save_model(folder, model, card=card, extra_files={LABELS: _spell(table), **extra}, force=force)


def read_labels(model):
    """Return {label: rows in training} of a loaded network; None for one that was not trained on labels."""
    table = None if model.folder is None else read_scheme(model.folder)
    if table is None:
        return None
    for label, count in table["frequencies"].items():
        model.tokenizer.encode_label(label)
        if type(count) is not int or count < 1:
            where = Path(model.folder) / LABELS
            raise ModelError(f"label {label}: {count!r} is no number of rows", where=where)
    return table["frequencies"]


def digest_weights(model):
    """Return the SHA-256 of a network's weights as float32, whatever file they come from."""
    import hashlib

    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(f"{name} {tuple(tensor.shape)}".encode())
        found.update(np.ascontiguousarray(tensor.detach().cpu().float().numpy()).data)
    return found.hexdigest()


def identify(model):
    """Return what tells a model's weights apart: the digest that it was loaded with, or of those that it holds."""
    return model.digest or digest_weights(model)


def _spell(table):
    return json.dumps(table, indent=2) + "\n"


def _pack(tensors):
    from safetensors.torch import save

    return save({name: tensor.detach().cpu().float().contiguous() for name, tensor in tensors.items()})


def _unpack(path):
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"cannot be read ({error})", where=path) from None


def _check_names(tensors, wanted, path):
    shapes = {name: tuple(t.shape) for name, t in tensors.items()}
    for name in {**wanted, **tensors}:
        due, there = tuple(wanted[name].shape) if name in wanted else None, shapes.get(name)
        if due != there:
            raise ModelError(f"{name} is {there or 'missing'}, due is {due or 'nothing'}", where=path)
