"""The two ways to fine-tune: a head on a network, or labels before the bases.

network, rows, targets, TuneConfig -> Predictor | wider network -> fit -> measures of validation and test rows
"""

import copy
import functools
from typing import NamedTuple

import numpy as np
import torch

from hybridna_core.errors import DataError, ModelError
from hybridna_core.model.labels import add_labels, label_posterior, label_tokens
from hybridna_core.model.lora import add_lora, lora_tensors, merge_lora
from hybridna_core.model.readout import HeadConfig, Predictor, Probe, predict_outputs
from hybridna_core.task_metrics import choose_metric, measure
from hybridna_core.tokenizer import BASE_IDS, FIRST_PROMPT_ID, LabelPosition
from hybridna_core.train.features import cached_features
from hybridna_core.train.fit import fit
from hybridna_core.train.loop import loss_sum
from hybridna_core.train.optim import hasten_rows
from hybridna_core.train.tuning import Tuning, balance, examine_bases, examine_head, make_loss

# Of the label tokens' rows, beside the standard deviation of the bases' rows.
LABEL_RATE = 0.1


class Examples(NamedTuple):
    """Rows that a model is trained or measured on.

    targets  as `encode_labels` gives them; for generation the list of labels
    """

    sequences: list
    targets: object


class Tuned(NamedTuple):
    """What one training came to: what is to be saved, where it stood, {set: {measure: number}} of what is held out.

    outputs  {set: (n, outputs) float64} of a head
    """

    model: object
    position: dict
    measures: dict
    outputs: dict = {}  # noqa: RUF012


def tune_head(model, config, scheme, sets, folder, fingerprint, *, seed=0, precision="fp32", cache=None, progress=None):
    """Train a head, and with it the network, adapters on it, or nothing else; return a Tuned with a Predictor.

    model   loaded HybridLM; a copy of it is trained, unless it is frozen
    config  TuneConfig
    scheme  Scheme of the labels
    sets    {"train": Examples, and maybe "valid" and "test"}
    folder  of log and snapshots, see `fit`
    cache   folder of the vectors that a frozen network gave, `folder` when None
    """
    head = HeadConfig(model.config.hidden_size, len(scheme.outputs), config.head, config.reading, config.echo)
    predictor = Predictor(model if config.freeze else copy.deepcopy(model), head, seed)
    if config.freeze:
        predictor.backbone.requires_grad_(False)
        rows = {
            name: cached_features(predictor, one.sequences, cache or folder, progress) for name, one in sets.items()
        }
        learned = rows["train"]
    else:
        rows = {name: one.sequences for name, one in sets.items()}
        learned = [predictor.tokens(text) for text in rows["train"]]
        if config.lora:
            add_lora(predictor.backbone, **lora_of(config), seed=seed)
        else:
            predictor.backbone.requires_grad_(True)
            if not model.config.tie_word_embeddings:
                # It is no part of what is read.
                predictor.backbone.lm_head.requires_grad_(False)
        for block in predictor.backbone.model.layers:
            block.recompute = config.checkpoint_activations
    parameters = sum(p.numel() for p in model.parameters())
    position = _learn(
        predictor, config, scheme, sets, rows, learned, (model.name, parameters), folder, fingerprint, seed, precision,
        progress,
    )  # fmt: skip
    # Measured as it will be used: with the adapters merged.
    predictor.adapters = {name: tensor.clone() for name, tensor in lora_tensors(predictor.backbone).items()}
    merge_lora(predictor.backbone)
    return _examine(predictor, scheme, sets, rows, position)


def tune_probe(name, config, scheme, sets, folder, fingerprint, *, seed=0, progress=None, device="cpu"):
    """Train a head on features that something else gave; return a Tuned with a Probe.

    name  of what gave them
    sets  {"train": Examples whose sequences are (n, hidden) float32, and maybe "valid" and "test"}
    """
    rows = {name: one.sequences for name, one in sets.items()}
    probe = Probe(HeadConfig(rows["train"].shape[1], len(scheme.outputs), config.head), seed, device)
    position = _learn(
        probe, config, scheme, sets, rows, rows["train"], (name, 0), folder, fingerprint, seed, "fp32", progress
    )
    return _examine(probe, scheme, sets, rows, position)


def _learn(
    predictor, config, scheme, sets, rows, learned, origin, folder, fingerprint, seed, precision, progress
):  # fmt: skip
    """Train what of a Predictor or Probe wants gradients on the training rows; return the position."""
    task = scheme.task
    targets = {name: torch.from_numpy(np.asarray(one.targets)) for name, one in sets.items()}
    weights = balance(task, targets["train"]) if config.class_weights == "balanced" else None
    loss, count = make_loss(task, weights)
    examine = None
    if "valid" in sets:
        examine = examine_head(rows["valid"], targets["valid"].numpy(), scheme)
    tuning = Tuning(
        learned, targets["train"], epochs=config.epochs, batch_size=config.batch_size, seed=seed, loss=loss,
        count=count, examine=examine, metric=choose_metric(task, config.metric), patience=config.patience,
    )  # fmt: skip
    return _fit(predictor, tuning, config, origin, folder, fingerprint, precision, progress)


def _examine(predictor, scheme, sets, rows, position):
    """Measure the validation and test rows; return a Tuned."""
    # As it will be used: what wants no gradient may go through other kernels.
    predictor.requires_grad_(False)
    held = [name for name in ("valid", "test") if name in sets]
    outputs = {name: predict_outputs(predictor, rows[name]) for name in held}
    measures = {name: measure(scheme.task, np.asarray(sets[name].targets), outputs[name], scheme.sd) for name in held}
    return Tuned(predictor, position, measures, outputs)


def lora_of(config):
    """Return rank and alpha of the adapters, None without them."""
    if not config.lora:
        return None
    return {"rank": config.lora, "alpha": float(config.lora_alpha or 2 * config.lora)}


def _fit(trained, tuning, config, origin, folder, fingerprint, precision, progress, prepare=None):
    """Train; origin is the name of the network that it began with, and its number of parameters."""
    name, parameters = origin
    run = config.loop(name, int(tuning.ends[-1]), tuning.epoch_steps, parameters)
    trained.train()
    how = {"precision": precision, "progress": progress, "prepare": prepare}
    position = fit(trained, tuning, run, folder, fingerprint, **how)
    trained.eval()
    return position


# --- Labels before the bases -----------------------------------------------------------------------------------------


def learn_positions(labels, names=(), meanings=()):
    """Return a LabelPosition for each digit of labels such as "44": values from 0 to the greatest one seen."""
    width = len(labels[0])
    names = names or [f"digit{i + 1}" for i in range(width)]
    meanings = meanings or [""] * width
    digits = np.array([[int(digit) for digit in label] for label in labels])
    return [
        LabelPosition(name, int(digits[:, i].max()) + 1, meaning)
        for i, (name, meaning) in enumerate(zip(names, meanings, strict=True))
    ]


def tune_labels(model, config, positions, sets, folder, fingerprint, *, seed=0, precision="fp32", progress=None):
    """Train a network on bases after labels (section 3.3.2, eq. 7); return a Tuned with a network that knows them.

    positions  LabelPosition of each digit; none: the bases alone are learned, without labels
    sets       {"train": Examples with labels as targets, and maybe "valid" and "test"}
    """
    if model.tokenizer.label_positions:
        what = f"knows labels already ({model.tokenizer.describe_labels()})"
        raise ModelError(what, where=model.name, hint="begin with a model that knows bases alone")
    wider = add_labels(model, positions, seed)
    longest = wider.config.bases_at_once - len(positions)
    for one in sets.values():
        if max(map(len, one.sequences)) > longest:
            raise DataError(f"a sequence of over {longest:,} bases leaves no room for the label", where=model.name)
    rows = {
        name: [label_tokens(wider, label if positions else "", text)
               for text, label in zip(one.sequences, one.targets, strict=True)]
        for name, one in sets.items()
    }  # fmt: skip
    for block in wider.model.layers:
        block.recompute = config.checkpoint_activations
    examine = examine_bases(rows["valid"], config.batch_size, precision) if "valid" in sets else None
    # Over the whole vocabulary the head's new rows, drawn at random, would have to be learned away first: a hundred
    # steps or so, for tokens that are never generated.
    tuning = Tuning(
        rows["train"], epochs=config.epochs, batch_size=config.batch_size, seed=seed, examine=examine,
        loss=functools.partial(loss_sum, bases_alone=True), metric=choose_metric("generation", config.metric),
        patience=config.patience,
    )  # fmt: skip
    origin = model.name, sum(p.numel() for p in model.parameters())
    prepare = functools.partial(_hasten_labels, wider, config, origin[1]) if positions else None
    position = _fit(wider, tuning, config, origin, folder, fingerprint, precision, progress, prepare)
    wider.requires_grad_(False)
    frequencies = count_labels(sets["train"].targets) if positions else None
    measures = {}
    for name in [name for name in ("valid", "test") if name in sets]:
        measures[name] = examine_bases(rows[name], config.batch_size, precision)(wider, None)
        if frequencies:
            measures[name] |= measure_labels(wider, sets[name], frequencies)
    return Tuned(wider, position, measures)


def _hasten_labels(model, config, parameters, optimizer):
    """Let labels' rows of the embedding learn at their own rate: all steps of the others are too small for them."""
    rows = model.model.embed_tokens.weight
    rate = config.label_lr or LABEL_RATE * float(rows[list(BASE_IDS)].detach().std())
    hasten_rows(optimizer, rows, FIRST_PROMPT_ID, rate / config.choose_rate(parameters))


def count_labels(labels):
    """Return {label: rows}, in the order of labels."""
    names, counts = np.unique(np.array(labels), return_counts=True)
    return dict(zip(names.tolist(), counts.tolist(), strict=True))


def measure_labels(model, examples, frequencies):
    """Measure how often the likeliest label is the true one, beside the commonest label's share of the same rows."""
    labels = list(frequencies)
    guesses = [labels[int(label_posterior(model, text, frequencies)[0].argmax())] for text in examples.sequences]
    commonest = max(labels, key=frequencies.get)
    return {
        "label_accuracy": float(np.mean([g == t for g, t in zip(guesses, examples.targets, strict=True)])),
        "commonest_label": float(np.mean([t == commonest for t in examples.targets])),
    }
