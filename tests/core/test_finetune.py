"""Fine-tuning: heads and labels learned, the best step kept, stops gone on with, folders that others read."""

import collections
import copy
import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from tables import draw, lay_out_task, outcome, write_table
from toys import SMALL, random_model

from hybridna_core.checkpoint import load_model, save_model
from hybridna_core.commands.embed import embed_sequences
from hybridna_core.commands.finetune import finetune, table_of
from hybridna_core.commands.generate import generate_sequences
from hybridna_core.commands.predict import predict
from hybridna_core.config import read_json
from hybridna_core.errors import DataError, ModelError, Stopped, UsageError
from hybridna_core.model.hybrid import HybridLM
from hybridna_core.model.labels import add_labels, label_posterior, label_tokens
from hybridna_core.model.likelihood import logits, read
from hybridna_core.model.readout import HeadConfig, Predictor, pad_rows
from hybridna_core.task_files import load_predictor, read_labels
from hybridna_core.tokenizer import BOS, LabelPosition, encode
from hybridna_core.train import loop
from hybridna_core.train.fit import fit
from hybridna_core.train.loop import count_bases, loss_sum
from hybridna_core.train.optim import hasten_rows
from hybridna_core.train.tuning import Tuning, balance, make_loss
from hybridna_core.tune_config import TuneConfig

QUICK = {"device": "cpu", "epochs": 3, "lr": 1e-2, "batch_size": 16}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model folder that knows nothing yet."""
    model = HybridLM(SMALL, seed=1)
    return save_model(tmp_path_factory.mktemp("models") / "base", model)


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return lay_out_task(tmp_path_factory.mktemp("task"))


@pytest.fixture(scope="module")
def tuned(base, task, tmp_path_factory):
    """A finished folder and its summary: two seeds of a whole model, its measures taken twice an epoch."""
    folder = tmp_path_factory.mktemp("tuned") / "out"
    return folder, finetune(task, folder, model=base, seeds=2, valid_every=2, **QUICK)


def read_table(path):
    lines = [line.split("\t") for line in path.read_text().splitlines()]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]


# --- Loss ------------------------------------------------------------------------------------------------------------


def test_losses_by_hand():
    def model(outputs, precision):
        return outputs

    outputs = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]))
    loss, count = make_loss("classification")
    total, rows = loss(model, outputs, torch.tensor([1, 2]))
    assert float(total) == pytest.approx(-math.log(0.25) - math.log(0.8)) and rows == count(None, torch.ones(2)) == 2
    loss, _ = make_loss("classification", torch.tensor([1.0, 3.0, 0.5]))
    total, rows = loss(model, outputs, torch.tensor([1, 2]))
    assert float(total) == pytest.approx(-3 * math.log(0.25) - 0.5 * math.log(0.8)) and rows == 3.5
    odds = torch.tensor([[0.0, math.log(3)]])
    total, rows = make_loss("multilabel")[0](model, odds, torch.tensor([[1.0, 0.0]]))
    assert float(total) == pytest.approx((math.log(2) + math.log(4)) / 2) and rows == 1
    total, rows = make_loss("regression")[0](model, torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 4.0]]))
    assert float(total) == pytest.approx(0.5 * (1 + 4) / 2) and rows == 1


def test_weights_that_make_classes_count_alike():
    weights = balance("classification", torch.tensor([0, 0, 0, 1]))
    assert weights.tolist() == pytest.approx([4 / 6, 2.0]) and float(weights[[0, 0, 0, 1]].sum()) == 4
    assert balance("multilabel", torch.tensor([[1.0, 0], [0, 0], [0, 0]])).tolist() == [2, 3]


def test_every_row_is_read_once_in_an_epoch_in_another_order():
    rows = [np.full(3 + i, i) for i in range(10)]
    tuning = Tuning(rows, torch.arange(10), epochs=2, batch_size=4, seed=5, loss=lambda *a: 0, count=len)
    assert tuning.ends.tolist() == [6]
    read = [tuning.read(step)[1].tolist() for step in range(6)]
    assert [len(r) for r in read] == [4, 4, 2] * 2
    epochs = [list(itertools.chain(*steps)) for steps in (read[:3], read[3:])]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(10)) and epochs[0] != epochs[1]
    # Asked in any order, by any number of ranks.
    assert tuning.read(1)[1].tolist() == read[1]
    assert sorted(tuning.read(1, 0, 2)[1].tolist() + tuning.read(1, 1, 2)[1].tolist()) == sorted(read[1])
    assert tuning.count_tokens(3) == sum(map(len, rows)) and tuning.count_tokens(1) == sum(3 + i for i in read[0])
    tokens, _ = tuning.read(0)
    assert [int((row != 4).sum()) for row in tokens] == [3 + i for i in read[0]] or 4 in read[0]


# --- Learning --------------------------------------------------------------------------------------------------------


def test_a_task_is_learned_and_the_best_seed_kept(tuned, task):
    folder, summary = tuned
    assert summary.rows == {"train": 64, "valid": 24, "test": 24} and summary.classes == ("0", "1")
    assert summary.measures["test_mcc"] > 0.8 and set(summary.sd) == {f"{name}_sd" for name in summary.measures}
    mean = np.mean([one["test_loss"] for one in summary.by_seed])
    assert summary.measures["test_loss"] == pytest.approx(mean)
    record = read_json(folder / "finetune.json")
    best = max(summary.by_seed, key=lambda one: one["valid_mcc"])
    assert record["kept_seed"] == best["seed"] and record["settings"]["epochs"] == 3
    lines = (folder / "measures.tsv").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines] == ["seed", "0", "1", "mean", "sd"]
    assert not (folder.parent / "out.runs").exists()
    log = [json.loads(line) for line in (folder / "seed-1.log.jsonl").read_text().splitlines()]
    valid = {line["step"]: line["valid"]["mcc"] for line in log if "valid" in line}
    assert list(valid) == [2, 4, 6, 8, 10, 12]
    # The first of the best steps.
    assert summary.by_seed[1]["best_step"] == next(step for step in valid if valid[step] == max(valid.values()))


def test_the_weights_kept_are_those_of_the_best_step(tuned, task):
    folder, summary = tuned
    best = max(summary.by_seed, key=lambda one: one["valid_mcc"])
    found = predict(folder, task / "dev.csv", folder.parent / "dev.tsv", device="cpu", force=True)
    for name in ("mcc", "loss", "auroc"):
        assert found.measures[name] == best[f"valid_{name}"]


@pytest.mark.parametrize(
    ("options", "floor"),
    [
        ({"freeze": True, "head": "cnn", "class_weights": "balanced"}, 0.8),
        ({"freeze": True, "head": "mlp", "epochs": 6}, 0.8),
        ({"lora": 2}, 0.8),
        ({"echo": "rc", "reading": "last", "epochs": 5, "checkpoint_activations": True}, 0.5),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_ways_to_learn(base, task, tmp_path, options, floor):
    summary = finetune(task, tmp_path / "out", model=base, **{**QUICK, **options})
    assert summary.measures["test_mcc"] > floor
    found = predict(tmp_path / "out", task / "test.csv", tmp_path / "p.tsv", device="cpu")
    assert found.measures["loss"] == summary.measures["test_loss"]
    before, after = load_model(base, device="cpu").state_dict(), load_model(tmp_path / "out", device="cpu").state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    if "freeze" in options:
        assert not changed
    elif "lora" in options:
        assert changed == {n for n in before if n.endswith("_proj.weight")}
    else:
        assert changed == set(before) - {"lm_head.weight"}


def test_numbers_are_predicted_in_their_own_unit(base, tmp_path):
    rows = [(s, 100 + 40 * s.count("A") / len(s)) for s, _ in draw(96, 3)]
    write_table(tmp_path / "train.csv", rows[:72])
    write_table(tmp_path / "test.csv", rows[72:])
    options = {**QUICK, "epochs": 6, "task": "regression"}
    summary = finetune(tmp_path / "train.csv", tmp_path / "out", valid=tmp_path / "test.csv", model=base, **options)
    assert summary.measures["valid_pearson"] > 0.7
    predict(tmp_path / "out", tmp_path / "test.csv", tmp_path / "p.tsv", device="cpu")
    found = np.array([float(row["label"]) for row in read_table(tmp_path / "p.tsv")])
    error = ((found - [value for _, value in rows[72:]]) ** 2).mean()
    assert error == pytest.approx(summary.measures["valid_mse"], rel=1e-4) and 100 < found.mean() < 140


def test_arrays_in_place_of_tables(base):
    rows = draw(64, 0, classes=3)
    texts, labels = [text for text, _ in rows], [(int(c == "0"), int(c != "0")) for _, c in rows]
    summary = finetune(table_of(texts, labels), valid=table_of(texts, labels), model=load_model(base, device="cpu"),
                       task="multilabel", freeze=True, strict=False, **QUICK)  # fmt: skip
    assert summary.classes == ("label1", "label2") and summary.measures["valid_auroc"] > 0.8
    assert summary.output == "" and summary.shared == {"shared_valid": 64}
    # Marked as rows of a file are.
    with pytest.raises(DataError, match=r"1 of 2 rows cannot be used \(bad_letters 1\)"):
        finetune(table_of(["ACGT", "AC-T"], [0, 1]), model=base)


def test_early_stopping(base, task, tmp_path):
    options = {**QUICK, "epochs": 50, "valid_every": 1, "patience": 3, "freeze": True, "lr": 1e-9}
    summary = finetune(task, tmp_path / "out", model=base, **options)
    lines = [json.loads(line) for line in (tmp_path / "out" / "seed-0.log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "valid" in line] == [1, 2, 3, 4] and summary.by_seed[0]["best_step"] == 1


def test_vectors_of_a_frozen_network_are_read_once(base, task, tmp_path, monkeypatch):
    first = finetune(task, tmp_path / "a", model=base, freeze=True, cache=tmp_path / "kept", **QUICK)
    names = sorted(path.name for path in (tmp_path / "kept").iterdir())
    assert len(names) == 3
    monkeypatch.setattr(HybridLM, "read_layers", None)
    again = finetune(task, tmp_path / "b", model=base, freeze=True, cache=tmp_path / "kept", **QUICK)
    assert again.measures == first.measures
    (tmp_path / "kept" / names[0]).write_bytes(b"\x93NUMPY")
    with pytest.raises(DataError, match=r"features-.*\.npy: is damaged; delete it"):
        finetune(task, tmp_path / "c", model=base, freeze=True, cache=tmp_path / "kept", **QUICK)


def test_vectors_are_those_of_the_model_that_was_given(task, tmp_path):
    """... also of one that no folder gave its digest."""
    options = {"freeze": True, **QUICK, "epochs": 1}
    for seed in (1, 2):
        due = finetune(task, model=HybridLM(SMALL, seed=seed), **options).measures
        assert finetune(task, model=HybridLM(SMALL, seed=seed), cache=tmp_path, **options).measures == due


def test_shared_sequences_are_told_of_in_order(tmp_path):
    """Whatever order a set of names has in a process."""
    code = (
        "from hybridna_core.commands.finetune import Row, Table, _find_shared; row = Row('ACGT', ('0',)); "
        "rows = dict.fromkeys(('train', 'valid', 'test'), [row]); "
        "print(*_find_shared(rows, dict.fromkeys(rows, Table('t', [row], (), ())), False))"
    )
    for seed in ("0", "1", "2"):
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                               env={**os.environ, "PYTHONHASHSEED": seed})  # fmt: skip
        assert found.stdout.split() == ["shared_valid", "shared_test"]


def test_the_last_weights_are_kept_where_the_measure_has_no_meaning(tmp_path):
    predictor = Predictor(random_model(), HeadConfig(SMALL.hidden_size, 2))
    predictor.backbone.requires_grad_(False)
    features = np.random.default_rng(0).normal(size=(8, SMALL.hidden_size)).astype(np.float32)
    seen = []

    def examine(model, stop):
        seen.append(model.head.state_dict()["weight"].clone())
        return {"mcc": math.nan, "loss": 1.0}

    loss, count = make_loss("classification")
    tuning = Tuning(features, torch.arange(8) % 2, epochs=3, batch_size=4, loss=loss, count=count, examine=examine,
                    metric="mcc", patience=1)  # fmt: skip
    run = TuneConfig(freeze=True).loop("toy", 6, tuning.epoch_steps, 1)
    position = fit(predictor, tuning, run, tmp_path, {"settings": {}, "data": "", "model": ""})
    assert position["best"] == {"step": 6, "value": None, "measured": 6} and len(seen) == 3
    assert torch.equal(predictor.head.state_dict()["weight"], seen[2]) and not torch.equal(seen[0], seen[2])


def test_the_best_weights_stay_in_the_model(tmp_path):
    """Measures that are made up: the third of four is the best, and a later equal one is not better."""
    predictor = Predictor(random_model(), HeadConfig(SMALL.hidden_size, 2))
    predictor.backbone.requires_grad_(False)
    features = np.random.default_rng(0).normal(size=(8, SMALL.hidden_size)).astype(np.float32)
    seen, values = [], iter([0.1, 0.5, 0.6, 0.6])

    def examine(model, stop):
        seen.append({name: value.clone() for name, value in model.head.state_dict().items()})
        return {"mcc": next(values), "auroc": math.nan}

    loss, count = make_loss("classification")
    tuning = Tuning(features, torch.arange(8) % 2, epochs=4, batch_size=4, loss=loss, count=count, examine=examine,
                    metric="mcc")  # fmt: skip
    run = TuneConfig(freeze=True).loop("toy", 8, tuning.epoch_steps, 1)
    position = fit(predictor, tuning, run, tmp_path, {"settings": {}, "data": "", "model": ""})
    assert position["best"] == {"step": 6, "value": 0.6, "measured": 8} and position["waited"] == 1
    assert len(seen) == 4 and not torch.equal(seen[2]["weight"], seen[3]["weight"])
    assert all(torch.equal(value, seen[2][name]) for name, value in predictor.head.state_dict().items())


# --- Stops -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"freeze": True}, {"task": "generation"}], ids=str)
def test_a_stopped_run_goes_on_bit_for_bit(base, task, tmp_path, monkeypatch, options):
    options = {**QUICK, "valid_every": 3, "seeds": 2 if options.get("freeze") else 1, **options}
    finetune(task, tmp_path / "whole" / "out" if (tmp_path / "whole").mkdir() is None else None, model=base, **options)
    (tmp_path / "stopped").mkdir()
    take, calls = loop._take_step, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) in (2, 8, 15):
            os.kill(os.getpid(), signal.SIGTERM)
        return take(*args)

    monkeypatch.setattr(loop, "_take_step", interrupted)
    stops = 0
    while True:
        try:
            finetune(task, tmp_path / "stopped" / "out", model=base, **options)
            break
        except Stopped as stopped:
            stops += 1
            assert stopped.exit_code == 143 and not (tmp_path / "stopped" / "out").exists()
    assert stops == (3 if options.get("freeze") else 2)
    assert outcome(tmp_path / "stopped" / "out") == outcome(tmp_path / "whole" / "out")


def test_labels_may_not_come_or_go_on_resume(base, task, tmp_path, monkeypatch):
    def stop(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        return take(*args)

    take, options = loop._take_step, {"model": base, "task": "generation", **QUICK}
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(loop, "_take_step", stop)
        finetune(task, tmp_path / "out", **options)
    with pytest.raises(UsageError, match="unconditional changed since the training began"):
        finetune(task, tmp_path / "out", unconditional=True, **options)


def test_nothing_is_left_of_a_training_without_output(base, task, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    finetune(task, model=base, dry_run=True, **QUICK)
    with pytest.raises(ModelError):
        finetune(task, model=tmp_path / "absent", **QUICK)
    finetune(task, model=base, **{**QUICK, "epochs": 1})
    assert not list(tmp_path.iterdir())


def test_what_may_not_change_on_resume(base, task, tmp_path, monkeypatch):
    def stop(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        return take(*args)

    take = loop._take_step
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(loop, "_take_step", stop)
        finetune(task, tmp_path / "out", model=base, **QUICK)
    with pytest.raises(UsageError, match=r"lr changed since the training began \(0.01 before, 0.02 now\)"):
        finetune(task, tmp_path / "out", model=base, **{**QUICK, "lr": 0.02})
    with pytest.raises(DataError, match="the tables' content changed"):
        finetune(task, tmp_path / "out", valid=task / "test.csv", model=base, **QUICK)
    other = save_model(tmp_path / "other", HybridLM(SMALL, seed=2))
    with pytest.raises(UsageError, match="the model's weights changed"):
        finetune(task, tmp_path / "out", model=other, **QUICK)


# --- Folders ---------------------------------------------------------------------------------------------------------


def test_the_folder_is_a_model_like_any_other(tuned, base, task, tmp_path):
    folder, _ = tuned
    vectors = embed_sequences(load_model(folder, device="cpu"), ["ACGTACGT"])
    assert vectors.shape == (1, 32) and not np.allclose(vectors, embed_sequences(load_model(base), ["ACGTACGT"]))
    predictor, scheme = load_predictor(folder, device="cpu")
    assert scheme.classes == ("0", "1") and predictor.config.outputs == 2
    with pytest.raises(ModelError, match="nothing to predict with"):
        predict(base, task / "test.csv", tmp_path / "p.tsv", device="cpu")
    assert not list(tmp_path.iterdir())


def test_e30_a_head_for_other_weights(tuned, tmp_path):
    folder, _ = tuned
    model = random_model(seed=9)
    files = {name: folder / name for name in ("head.json", "head.safetensors")}
    mixed = save_model(tmp_path / "mixed", model, extra_files=files)
    with pytest.raises(ModelError, match=r"head\.json: the head is for weights [0-9a-f]{12}, the folder has"):
        load_predictor(mixed, device="cpu")


@pytest.mark.parametrize("options", [{"lora": 2}, {"freeze": True}], ids=str)
def test_e30_an_adapter_needs_its_own_base(base, task, tmp_path, options):
    merged = finetune(task, tmp_path / "merged", model=base, **options, **QUICK)
    summary = finetune(task, tmp_path / "adapter", model=base, adapter_only=True, **options, **QUICK)
    assert summary.measures == merged.measures and not (tmp_path / "adapter" / "model.safetensors").exists()
    for name in ("merged", "adapter"):
        found = predict(tmp_path / name, task / "test.csv", tmp_path / f"{name}.tsv", device="cpu")
        assert found.measures["loss"] == pytest.approx(summary.measures["test_loss"], rel=1e-5)
    vectors = [embed_sequences(load_model(tmp_path / name, device="cpu"), ["ACGTT"]) for name in ("merged", "adapter")]
    assert np.allclose(*vectors, rtol=1e-5, atol=1e-6)
    other = save_model(tmp_path / "other", HybridLM(SMALL, seed=2))
    with pytest.raises(ModelError, match=r"the adapter is for weights [0-9a-f]{12}, .*other has [0-9a-f]{12}"):
        load_predictor(tmp_path / "adapter", other, device="cpu")
    moved = shutil.copytree(base, tmp_path / "moved")
    load_predictor(tmp_path / "adapter", moved, device="cpu")
    record = read_json(tmp_path / "adapter" / "adapter.json")
    assert record["base"] == str(base) and bool(record["lora"]) == ("lora" in options)


# --- Labels before the bases -----------------------------------------------------------------------------------------

POSITIONS = (LabelPosition("complex", 3), LabelPosition("defined", 2))


def test_a_network_is_widened_for_labels():
    model = random_model()
    wider = add_labels(model, POSITIONS, seed=3)
    assert wider.config.vocab_size == 17 and wider.tokenizer.label_positions == POSITIONS
    before, after = model.state_dict(), wider.state_dict()
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        assert torch.equal(after[name][:12], before[name])
    assert after["lm_head.weight"][12:].std() == pytest.approx(0.02, rel=0.3)
    labels, bases = (after["model.embed_tokens.weight"][rows] for rows in (slice(12, None), slice(7, 11)))
    assert float((labels - bases.mean(dim=0)).abs().max()) < 5e-3 * float(bases.std())
    assert 0 < float((labels - bases.mean(dim=0)).std()) < 2e-3 * float(bases.std())
    assert all(torch.equal(after[name], before[name]) for name in before if before[name].shape == after[name].shape)
    assert not torch.equal(add_labels(model, POSITIONS, seed=4).lm_head.weight, wider.lm_head.weight)
    assert label_tokens(wider, "21", "ACN").tolist() == [2, 14, 16, 7, 8, 11]


def test_rows_of_labels_learn_at_their_own_rate():
    """One step of AdamW moves every weight by its rate, whatever its gradient."""
    rate, rows = 1e-3, torch.nn.Parameter(torch.zeros(17, 4))
    optimizer = torch.optim.AdamW([rows], lr=rate, weight_decay=0.0)
    hasten_rows(optimizer, rows, 12, 30)
    (rows * torch.arange(1.0, 18)[:, None]).sum().backward()
    for step in (1, 2):
        optimizer.step()
        assert torch.allclose(rows[:12], torch.tensor(-rate * step)), "the others go on as they were"
        assert torch.allclose(rows[12:], torch.tensor(-30 * rate * step))


@pytest.mark.parametrize("options", [{}, {"label_lr": 1e-5}], ids=["default", "given"])
def test_the_rate_of_labels_is_held(base, tmp_path, options):
    """In eight steps the rows of labels come further than those of bases, or hardly from where they began."""
    names = {"0": "02", "1": "10"}
    write_table(tmp_path / "train.tsv", [(text, names[c]) for text, c in draw(64, 0, shortest=20)])
    settings = {**QUICK, "epochs": 2, "lr": 1e-4, **options}
    finetune(tmp_path / "train.tsv", tmp_path / "out", model=base, task="generation", **settings)
    tuned = load_model(tmp_path / "out", device="cpu")
    began = add_labels(load_model(base, device="cpu"), tuned.tokenizer.label_positions)
    moved = (tuned.model.embed_tokens.weight - began.model.embed_tokens.weight).detach().abs()
    labels, bases = float(moved[12:].max()), float(moved[7:11].max())
    assert 0 < bases <= 8.1e-4
    assert 0 < labels <= 8.1e-5 if options else labels > 3 * bases


def test_labels_and_padding_are_no_part_of_the_loss():
    wider = add_labels(random_model(), POSITIONS).requires_grad_(False)
    rows = [label_tokens(wider, "21", "ACGT"), label_tokens(wider, "00", "TT")]
    total, count = loss_sum(wider, pad_rows(rows))
    assert count == count_bases(pad_rows(rows)) == 6
    due = 0.0
    for row, bases in zip(rows, (4, 2), strict=True):
        log_probs = torch.log_softmax(logits(wider, row[None])[0], -1)
        due -= sum(float(log_probs[i - 1, row[i]]) for i in range(len(row) - bases, len(row)))
    assert float(total) == pytest.approx(due, rel=1e-4)


def test_the_posterior_of_labels_by_hand():
    wider = add_labels(random_model(), POSITIONS).requires_grad_(False)
    frequencies = {"00": 3, "01": 1, "21": 4}
    joint = []
    for label, count in frequencies.items():
        row = label_tokens(wider, label, "ACNGT")
        log_probs = torch.log_softmax(logits(wider, row[None])[0, :, 7:11].double(), -1)
        joint.append(math.log(count / 8) + sum(float(log_probs[i - 1, row[i] - 7]) for i in (3, 4, 6, 7)))
    found, total = label_posterior(wider, "ACNGT", frequencies)
    assert np.allclose(found, np.exp(joint) / np.exp(joint).sum(), rtol=1e-4) and found.sum() == pytest.approx(1)
    assert total == pytest.approx(np.log(np.exp(joint).sum()), rel=1e-5)


def test_labels_are_learned_written_and_generated_after(base, tmp_path):
    names = {"0": "02", "1": "10"}
    rows = [(text, names[c]) for text, c in draw(120, 0, shortest=20)]
    write_table(tmp_path / "train.tsv", rows[:80])
    write_table(tmp_path / "val.tsv", rows[80:])
    tables = {"valid": tmp_path / "val.tsv", "model": base, "task": "generation", **QUICK, "epochs": 5}
    alone = finetune(tmp_path / "train.tsv", tmp_path / "alone", unconditional=True, **tables)
    summary = finetune(tmp_path / "train.tsv", tmp_path / "out", label_names=("x", "y"), **tables)
    assert summary.measures["valid_bits_per_base"] < alone.measures["valid_bits_per_base"] < 2
    assert summary.measures["valid_label_accuracy"] > 0.9 > summary.measures["valid_commonest_label"]
    table = read_json(tmp_path / "out" / "labels.json")
    assert table["frequencies"] == {"02": 40, "10": 40} and table["rows"] == 80
    counts = collections.Counter(len(text) for text, _ in rows[:80])
    assert counts[table["length"]] == max(counts.values())
    assert [(p["name"], p["values"]) for p in table["positions"]] == [("x", [0, 1]), ("y", [0, 1, 2])]
    model = load_model(tmp_path / "out", device="cpu")
    assert read_labels(model) == table["frequencies"]
    for label, base_letter in (("02", "A"), ("10", "T")):
        designs = generate_sequences(model, label=label, n=8, length=30, seed=1)
        assert sum(design.sequence.count(base_letter) for design in designs) / 240 > 0.5
    with pytest.raises(UsageError, match="labels are 2 digits \\(x 0-1, y 0-2\\)"):
        generate_sequences(model, label="30")
    found = predict(tmp_path / "out", tmp_path / "val.tsv", tmp_path / "p.tsv", device="cpu")
    assert found.measures["label_accuracy"] == summary.measures["valid_label_accuracy"]
    first = read_table(tmp_path / "p.tsv")[0]
    assert float(first["p_02"]) + float(first["p_10"]) == pytest.approx(1)
    with pytest.raises(ModelError, match="knows labels already"):
        finetune(tmp_path / "train.tsv", tmp_path / "twice", **{**tables, "model": tmp_path / "out"})


@pytest.mark.parametrize(
    ("train", "valid", "words"),
    [
        (["00", "high"], [], r"train.tsv:3: label 'high' is no row of digits"),
        (["00", "1"], [], r"train.tsv:3: label '1' has 1 digits, others have 2"),
        (["00", "00"], [], "one label only"),
        (["00", "11"], ["20"], r"valid.tsv:2: label '20' holds a digit that no training row has there"),
    ],
)
def test_e25_labels_that_are_none(base, tmp_path, train, valid, words):
    write_table(tmp_path / "train.tsv", [("ACGTA", label) for label in train])
    write_table(tmp_path / "valid.tsv", [("ACGTT", label) for label in valid or train])
    with pytest.raises(DataError, match=words):
        finetune(tmp_path / "train.tsv", tmp_path / "o", valid=tmp_path / "valid.tsv", model=base, task="generation")


# --- Options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"task": "classify"}, "--task: is 'classify', which is no task; did you mean classification"),
        ({"metric": "pearson"}, "--metric: classification has no measure 'pearson'"),
        ({"freeze": True, "lora": 4}, "--lora: trains weights that --freeze keeps"),
        ({"adapter_only": True}, "--adapter-only: all weights are trained"),
        ({"epochs": 0}, "--epochs: is 0, must be at least 1"),
        ({"lr": -1.0}, "--lr: is -1.0, must be above 0"),
        ({"label_lr": 0.1}, "--label-lr: is for --task generation"),
        ({"task": "generation", "label_lr": 0.0}, "--label-lr: is 0.0, must be above 0"),
        ({"head": "cnn", "reading": "last"}, "--reading: the cnn head reads every base"),
        ({"task": "generation", "freeze": True}, "--freeze: is for heads"),
        ({"task": "regression", "class_weights": "balanced"}, "--class-weights: regression has no classes"),
        ({"unconditional": True}, "--unconditional: is for --task generation"),
        ({"echos": "rc"}, "no setting is called 'echos'; did you mean 'echo'"),
        ({"seeds": 0}, "--seeds: is 0"),
        ({"head": "svm"}, "head: is 'svm', must be one of linear, mlp, cnn"),
    ],
)
def test_options_that_cannot_be(base, task, tmp_path, options, words):
    with pytest.raises(UsageError, match=words):
        finetune(task, tmp_path / "out", model=base, **options)
    assert not list(tmp_path.iterdir())


def test_a_dry_run_writes_nothing(base, task, tmp_path):
    summary = finetune(task, tmp_path / "out", model=base, dry_run=True)
    assert summary.rows["train"] == 64 and summary.steps == 10 and not list(tmp_path.iterdir())


def test_a_model_that_is_given_stays_as_it_is(base, task):
    model = load_model(base, device="cpu")
    before = copy.deepcopy(model.state_dict())
    finetune(task, model=model, **{**QUICK, "epochs": 1})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(p.requires_grad for p in model.parameters())
    Predictor(model, HeadConfig(SMALL.hidden_size, 2))


def test_the_loss_after_labels_is_that_of_scores():
    """Over A, C, G, T: the head's rows of labels and special tokens get no gradient."""
    model = random_model(labels=[LabelPosition("x", 2)]).requires_grad_(True)
    tokens = torch.tensor([[BOS, 13, *encode("ACGTTGCAN").tolist()], [BOS, 12, *encode("TTGCAACGG").tolist()]])
    total, count = loss_sum(model, tokens, bases_alone=True)
    found, _ = read(model, tokens)
    assert count == 17 and total.item() == pytest.approx(-float(found[:, 2:].nansum()), rel=1e-5)
    assert loss_sum(model, tokens)[0].item() > total.item() + 1
    total.backward()
    rows = model.lm_head.weight.grad.abs().sum(dim=1)
    assert (rows[7:11] > 0).all() and not rows[:7].any() and not rows[11:].any()
