"""Pretraining from a run file: what it learns, where it stops, and that going on changes nothing."""

import itertools
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from genome_files import warnings_of
from runs import TINY_RUN, lay_out, log_lines, outcome, weights

import hybridna_core as hd
from hybridna_core.commands import pretrain as module
from hybridna_core.commands.pretrain import PretrainPlan, pretrain
from hybridna_core.data.corpus import load_species, validation_windows
from hybridna_core.errors import (
    DataError,
    GuardError,
    HybriDNAError,
    ModelError,
    OutOfMemory,
    Stopped,
    SystemFault,
    UsageError,
)
from hybridna_core.model.hybrid import HybridLM
from hybridna_core.run_config import read_run
from hybridna_core.tokenizer import decode
from hybridna_core.train import fingerprint, loop, pretraining
from hybridna_core.train.optim import make_optimizer
from hybridna_core.train.snapshots import restore_snapshot


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Folder of a run that nothing interrupted."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("whole")
    summary = pretrain(lay_out(folder), device="cpu")
    torch.set_num_threads(before)
    assert summary.output == str(folder / "out" / "model")
    return folder


def stop_at(*steps, number=signal.SIGTERM):
    """A progress callable that sends this process a signal when the given steps are done."""

    def progress(done, total, note=""):
        if done in steps:
            os.kill(os.getpid(), number)

    return progress


def failing(*steps):
    """A progress callable that fails when the given steps are done, as if the process had been killed there."""

    def progress(done, total, note=""):
        if done in steps:
            raise RuntimeError("killed")

    return progress


# --- A run from start to end -----------------------------------------------------------------------------------------


def test_what_a_run_leaves(whole, tmp_path):
    out = whole / "out"
    assert sorted(p.name for p in out.iterdir()) == [
        "ledger.tsv",
        "lock",
        "log.jsonl",
        "model",
        "run.json",
        "snapshots",
    ]
    assert sorted(p.name for p in (out / "snapshots").iterdir()) == ["step-000000018", "step-000000020"]
    assert (out / "model" / "run.toml").read_text() == TINY_RUN
    run = read_run(whole / "run.toml")
    model = hd.load_model(str(out / "model"), device="cpu")
    assert model.config == run.model
    record = json.loads((out / "model" / "training.json").read_text())
    assert record["set"] == [] and sum(record["seen_bases"].values()) == 14 * 4 * 63 + 6 * 2 * 127
    assert record["valid"] == log_lines(out)[-1]["valid"]


def test_the_log(whole):
    entries = log_lines(whole / "out")
    assert [(e["step"], "valid" in e) for e in entries] == [
        (4, False), (8, False), (8, True), (12, False), (16, False), (16, True), (20, False), (20, True)
    ]  # fmt: skip
    assert [e["stage"] for e in entries] == [0, 0, 0, 0, 1, 1, 1, 1]
    plain = [e for e in entries if "valid" not in e]
    assert [e["tokens"] for e in plain] == [1024, 2048, 3072, 4096, 5120]
    # Rates of steps 3, 7, ...: the top of the warm-up, then the cosine.
    assert plain[0]["lr"] == 5e-3 and all(a["lr"] > b["lr"] for a, b in itertools.pairwise(plain))
    # Logits start near 0 over twelve tokens: log2(12) bits.
    assert 3.0 < plain[0]["bits_per_base"] < 3.7


@pytest.mark.parametrize("step", [8, 20])
def test_validation_is_what_the_public_function_says(whole, tmp_path, step):
    run = read_run(whole / "run.toml")
    if step == 8:
        path = lay_out(tmp_path)
        with pytest.raises(Stopped):
            pretrain(path, device="cpu", progress=stop_at(8))
        model = HybridLM(run.model)
        snapshot = tmp_path / "out" / "snapshots" / "step-000000008"
        restore_snapshot(snapshot, model, make_optimizer(model, run.optim))
    else:
        model = hd.load_model(str(whole / "out" / "model"), device="cpu")
    bases = {8: 63, 20: 127}[step]
    windows = validation_windows(load_species(run.species[0]), bases, 2)
    assert len(windows) == 2
    found = [values[-(bases // 2) :] for values in hd.log_probs(model, [decode(w) for w in windows])]
    bits = -np.mean(np.concatenate(found)) / np.log(2)
    (entry,) = [e for e in log_lines(whole / "out") if e["step"] == step and "valid" in e]
    assert entry["valid"] == {"bug": pytest.approx(bits, rel=1e-6)}


def test_it_learns(tmp_path):
    # A unit of 50 bases, repeated: after one unit everything is known.
    unit = "".join(np.random.default_rng(7).choice(list("ACGT"), 50))
    text = (
        TINY_RUN.replace("hidden_size = 16", "hidden_size = 32").replace("mamba_d_state = 4", "mamba_d_state = 16")
        + "\n[mixture]\nmax_passes = 1000\nreverse_complement = 0\n"
    )
    path = lay_out(tmp_path, text)
    for name in ("bug", "bee"):
        (tmp_path / f"{name}.fa").write_text(f">c1\n{unit * 40}\n>c2\n{unit * 40}\n")
    summary = pretrain(
        path, device="cpu", set=["stage.0.steps=60", "stage.1.steps=10", "stage.0.batch_tokens=1024", "optim.lr=1e-2"]
    )
    assert summary.bits_per_base["bug"] < 0.5
    plain = [e["bits_per_base"] for e in log_lines(tmp_path / "out") if "valid" not in e]
    assert plain[0] > 2.5 and plain[-1] < 1.0
    # The model that was written is the one that was measured.
    run = read_run(path)
    model = hd.load_model(summary.output, device="cpu")
    windows = validation_windows(load_species(run.species[0]), 127, 2)
    found = [values[-63:] for values in hd.log_probs(model, [decode(w) for w in windows])]
    assert summary.bits_per_base["bug"] == pytest.approx(-np.mean(found) / np.log(2), rel=1e-6)


# --- Stopped and gone on ---------------------------------------------------------------------------------------------


def test_two_runs_are_equal(whole, tmp_path):
    path = lay_out(tmp_path)
    pretrain(path, device="cpu")
    assert outcome(tmp_path / "out") == outcome(whole / "out")


# 1: before anything was saved or logged; 6: as a snapshot is due; 8: as validation is due; 13, 14, 15: around the end
# of a stage, within a line of the log; 20: at the very end.
@pytest.mark.parametrize("steps", [(1,), (6,), (8,), (13, 14, 15), (20,), tuple(range(1, 21))])
def test_stopped_runs_go_on_as_if_nothing_had_happened(whole, tmp_path, steps):
    path = lay_out(tmp_path)
    stops = 0
    for _ in range(len(steps) + 1):
        try:
            pretrain(path, device="cpu", progress=stop_at(*(s for s in steps if s > saved_step(tmp_path / "out"))))
        except Stopped as error:
            stops += 1
            assert error.exit_code == 143
            assert error.where == f"step {saved_step(tmp_path / 'out')}"
    assert stops == len(steps)
    assert outcome(tmp_path / "out") == outcome(whole / "out")


def saved_step(folder):
    return max((int(p.name[5:]) for p in (folder / "snapshots").glob("step-*")), default=0)


@pytest.mark.parametrize("step", [1, 7, 12, 19])
def test_killed_runs_go_on_from_the_last_snapshot(whole, tmp_path, caplog, step):
    path = lay_out(tmp_path)
    with pytest.raises(RuntimeError, match="killed"):
        pretrain(path, device="cpu", progress=failing(step))
    caplog.set_level("INFO", "hybridna")
    pretrain(path, device="cpu")
    said = [r.getMessage() for r in caplog.records]
    first = {1: "no snapshot was written yet; starting from step 0", 7: "going on from step 6 of 20",
             12: "going on from step 6 of 20", 19: "going on from step 18 of 20"}[step]  # fmt: skip
    assert first in said
    assert outcome(tmp_path / "out") == outcome(whole / "out")


def test_a_signal_during_validation_leaves_it_for_later(whole, tmp_path, monkeypatch):
    path = lay_out(tmp_path)
    measure, calls = pretraining.window_bits, []

    def interrupted(*arguments):
        calls.append(1)
        os.kill(os.getpid(), signal.SIGINT)
        return measure(*arguments)

    monkeypatch.setattr(pretraining, "window_bits", interrupted)
    with pytest.raises(Stopped) as caught:
        pretrain(path, device="cpu")
    assert caught.value.exit_code == 130 and len(calls) == 1 and saved_step(tmp_path / "out") == 8
    assert [e["step"] for e in log_lines(tmp_path / "out")] == [4, 8]
    monkeypatch.undo()
    pretrain(path, device="cpu")
    assert outcome(tmp_path / "out") == outcome(whole / "out")


def test_a_damaged_snapshot_costs_its_steps(whole, tmp_path, caplog):
    path = lay_out(tmp_path)
    with pytest.raises(RuntimeError, match="killed"):
        pretrain(path, device="cpu", progress=failing(13))
    newest = tmp_path / "out" / "snapshots" / "step-000000012"
    data = bytearray((newest / "model.safetensors").read_bytes())
    data[-5] ^= 4
    (newest / "model.safetensors").write_bytes(data)
    pretrain(path, device="cpu")
    assert [text.split(":")[0] for text in warnings_of(caplog, "snapshot")] == [
        "snapshot of step 12 passed over", "going on from step 6"
    ]  # fmt: skip
    assert outcome(tmp_path / "out") == outcome(whole / "out")


def test_numbers_that_are_not_finite_stop_the_run(whole, tmp_path, monkeypatch):
    path = lay_out(tmp_path)
    calls, honest = [], loop.loss_sum

    def spoilt(model, tokens, *rest):
        calls.append(1)
        total, count = honest(model, tokens, *rest)
        # Two microbatches a step: the tenth step.
        return (total * float("nan") if len(calls) == 20 else total), count

    monkeypatch.setattr(loop, "loss_sum", spoilt)
    with pytest.raises(GuardError) as caught:
        pretrain(path, device="cpu")
    assert caught.value.exit_code == 6
    said = str(caught.value)
    assert said.startswith("step 10: loss nan and gradient norm nan are not finite (windows 36 to 39 of stage 0); ")
    assert "the last snapshot is good" in said and saved_step(tmp_path / "out") == 6
    monkeypatch.undo()
    pretrain(path, device="cpu")
    assert outcome(tmp_path / "out") == outcome(whole / "out")


MEMORY_ERRORS = [
    MemoryError(), torch.OutOfMemoryError("CUDA"), RuntimeError("DefaultCPUAllocator: can't allocate memory")
]  # fmt: skip


@pytest.mark.parametrize("error", MEMORY_ERRORS)
def test_memory_that_runs_out(tmp_path, monkeypatch, error):
    def greedy(model, tokens, *rest):
        raise error

    monkeypatch.setattr(loop, "loss_sum", greedy)
    with pytest.raises(OutOfMemory) as caught:
        pretrain(lay_out(tmp_path), device="cpu")
    assert caught.value.exit_code == 137
    due = "step 1: out of memory with 1 window of 64 tokens at once; begin again with a shorter context_length, or "
    assert str(caught.value) == due + "optim.checkpoint_activations = true"
    error = RuntimeError("something else")
    with pytest.raises(RuntimeError, match="something else"):
        pretrain(tmp_path / "run.toml", device="cpu")


@pytest.mark.parametrize("error", MEMORY_ERRORS)
def test_microbatches_are_halved_when_memory_runs_out(tmp_path, monkeypatch, caplog, error):
    """Halved after the first microbatch of the third step is done, so that what it left behind would show."""
    lay_out(tmp_path / "roomy")
    pretrain(tmp_path / "roomy" / "run.toml", device="cpu", set=["optim.microbatch_tokens=64"])
    rows, honest = [], loop.loss_sum

    def tight(model, tokens, *rest):
        rows.append(len(tokens))
        if len(rows) > 5 and len(tokens) > 1:
            raise error
        return honest(model, tokens, *rest)

    monkeypatch.setattr(loop, "loss_sum", tight)
    path = lay_out(tmp_path / "tight")
    with pytest.raises(Stopped):
        pretrain(path, device="cpu", progress=stop_at(8))
    assert rows == [2] * 6 + [1] * 24
    (said,) = warnings_of(caplog, "memory")
    assert said == "step 3: out of memory with 2 windows at once; from here on 1"
    # What fits is remembered; a window of the second stage is longer than a microbatch and read alone.
    pretrain(path, device="cpu")
    assert set(rows[6:]) == {1} and len(warnings_of(caplog, "memory")) == 1
    for entry, due in zip(log_lines(tmp_path / "tight" / "out"), log_lines(tmp_path / "roomy" / "out"), strict=True):
        for key, value in due.items():
            assert entry[key] == (pytest.approx(value, rel=1e-5) if isinstance(value, float) else value) or (
                key == "valid" and entry[key] == pytest.approx(value, rel=1e-5)
            )


def test_a_finished_run_is_not_trained_again(whole, tmp_path, caplog):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*") if p.name != "lock"}
    calls = []
    caplog.set_level("INFO", "hybridna")
    summary = pretrain(tmp_path / "run.toml", device="cpu", progress=lambda *a, **k: calls.append(a))
    assert summary.bits_per_base == log_lines(whole / "out")[-1]["valid"] and summary.steps == 20
    assert calls == [] and "finished already; nothing is left to train" in caplog.messages
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*") if p.name != "lock"}


def test_a_lost_model_folder_comes_back_from_the_snapshot(whole, tmp_path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "out" / "model")
    pretrain(tmp_path / "run.toml", device="cpu")
    assert outcome(tmp_path / "out") == outcome(whole / "out")
    weights = tmp_path / "out" / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    pretrain(tmp_path / "run.toml", device="cpu")
    assert outcome(tmp_path / "out") == outcome(whole / "out")


# --- What may change before going on, and what not -------------------------------------------------------------------


@pytest.fixture
def begun(tmp_path):
    """Run file of a run that was stopped after 9 steps."""
    path = lay_out(tmp_path)
    with pytest.raises(Stopped):
        pretrain(path, device="cpu", progress=stop_at(9))
    return path


UNDO = " changed since the run began; undo the change, or give another output folder"


@pytest.mark.parametrize(
    ("change", "words", "accept"),
    [
        ("seed=1", "seed (0 before, 1 now)", "--override seed"),
        ("optim.lr=2e-3", "optim.lr (0.005 before, 0.002 now)", "--override optim.lr"),
        ("optim.microbatch_tokens=64", "optim.microbatch_tokens (128 before, 64 now)",
         "--override optim.microbatch_tokens"),
        ("optim.precision=bf16", 'precision ("fp32" before, "bf16" now)', "--override precision"),
        ("model.intermediate_size=32", "model.intermediate_size (16 before, 32 now)", None),
        ("model.bos_token_id=3", "model.bos_token_id (the default before, 3 now)", None),
        ("stage.1.steps=7", "stage.1.steps (6 before, 7 now)", "--override stage.1.steps"),
        ("stage.0.batch_tokens=512", "stage.0.batch_tokens (256 before, 512 now)", "--override stage.0.batch_tokens"),
        ("stage.1.context_length=64", "stage.1.context_length (128 before, 64 now)",
         "--override stage.1.context_length"),
        ("mixture.power=0.5", "mixture.power (the default before, 0.5 now)", "--override mixture.power"),
        ("species.0.weight=0.5", "species.0.weight (the default before, 0.5 now)", "--new-data"),
        ("species.1.valid=['c1:1-200']", 'species.1.valid (the default before, ["c1:1-200"] now)', "--new-data"),
        ("species.0.name=bugs", 'species.0.name ("bug" before, "bugs" now)', "--new-data"),
    ],
)  # fmt: skip
def test_a_changed_configuration_is_refused(begun, change, words, accept):
    kept = {p: p.read_bytes() for p in (begun.parent / "out").rglob("*") if p.is_file() and p.name != "lock"}
    with pytest.raises(UsageError) as caught:
        pretrain(begun, device="cpu", set=[change])
    assert caught.value.exit_code == 2
    due = f"{begun.parent / 'out'}: {words}{UNDO}"
    assert str(caught.value) == (due if accept is None else f"{due}, or accept it with {accept}")
    assert kept == {p: p.read_bytes() for p in (begun.parent / "out").rglob("*") if p.is_file() and p.name != "lock"}


def test_several_changes_are_all_named(begun):
    changes = ["seed=1", "optim.clip=2.0", "stage.1.steps=7"]
    with pytest.raises(UsageError, match=r"stage\.1\.steps .*seed .*optim\.clip .* changed") as caught:
        pretrain(begun, device="cpu", set=changes)
    keys = ["stage.1.steps", "seed", "optim.clip"]
    assert str(caught.value).endswith(" ".join(f"--override {key}" for key in keys))
    with pytest.raises(UsageError, match=r"out: seed \(0 before, 1 now\) changed"):
        pretrain(begun, device="cpu", set=changes, override=["optim", "stage.1.steps"])


def test_a_change_that_is_stated_is_accepted(begun, caplog):
    caplog.set_level("INFO")
    pretrain(begun, device="cpu", set=["optim.lr=2e-3", "stage.1.steps=8"], override=["optim.lr", "stage"])
    assert "optim.lr (0.005 before, 0.002 now) changed since the run began, as --override allows" in caplog.messages
    entries = [e for e in log_lines(begun.parent / "out") if "lr" in e]
    assert entries[1]["lr"] > 2e-3 and max(e["lr"] for e in entries[2:]) < 2e-3
    assert entries[-1]["step"] == 22
    # From here on it is the run's own setting.
    pretrain(begun, device="cpu", set=["optim.lr=2e-3", "stage.1.steps=8"])
    with pytest.raises(UsageError, match=r"optim\.lr"):
        pretrain(begun, device="cpu", set=["stage.1.steps=8"])


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("model.hidden_size", "begin again in another folder"),
        ("species.0.fasta", "--new-data accepts other genomes"),
        ("optm.lr", "did you mean 'optim'?"),
        ("output", "known are stage, seed, mixture, optim, precision, version"),
    ],
)
def test_what_cannot_be_overridden(begun, key, hint):
    with pytest.raises(UsageError) as caught:
        pretrain(begun, device="cpu", override=[key])
    assert str(caught.value) == f"--override: {key!r} cannot be overridden; {hint}"


def test_another_version_is_refused(begun, monkeypatch):
    monkeypatch.setattr(fingerprint, "version", lambda: "9.0")
    with pytest.raises(UsageError, match=r'out: version \("[^"]+" before, "9.0" now\) changed.*--override version$'):
        pretrain(begun, device="cpu")
    pretrain(begun, device="cpu", override=["version"])


def test_how_blocks_are_remembered_may_change(begun, whole):
    pretrain(begun, device="cpu", set=["optim.checkpoint_activations=true"])
    assert weights(begun.parent / "out") == weights(whole / "out")


def test_changed_genomes_are_refused(begun):
    genome = begun.parent / "bee.fa"
    text = genome.read_text()
    genome.write_text(text.replace("A", "C", 1))
    with pytest.raises(DataError, match="the genomes' content changed since the run began") as caught:
        pretrain(begun, device="cpu")
    assert caught.value.exit_code == 3


def test_genomes_may_move(begun, whole):
    folder = begun.parent / "elsewhere"
    folder.mkdir()
    shutil.move(begun.parent / "bee.fa", folder / "bee.fa")
    pretrain(begun, device="cpu", set=["species.1.fasta=elsewhere/bee.fa"])
    assert weights(begun.parent / "out") == weights(whole / "out")


def test_how_often_things_are_written_may_change(begun, whole):
    pretrain(begun, device="cpu", set=["save.every=1", "save.keep=3", "save.log_every=1", "valid.every=3", "name=x"])
    assert weights(begun.parent / "out") == weights(whole / "out")


def test_snapshots_of_the_first_release_go_on(begun, whole):
    """They hold neither the genomes' digest nor the sums since the last line of the log."""
    from hybridna_core.checkpoint import write_manifest

    newest = begun.parent / "out" / "snapshots" / "step-000000009"
    position = json.loads((newest / "position.json").read_text())
    assert position.keys() == {"step", "seen", "ledger", "run", "since", "guard"}
    for key in ("genomes", "init", "settings"):
        del position["run"][key]
    del position["since"], position["ledger"]
    (newest / "position.json").write_text(json.dumps(position))
    (newest / "manifest.json").unlink()
    write_manifest(newest)
    shutil.copy(begun.parent / "bee.fa", begun.parent / "copy.fa")
    with pytest.raises(UsageError, match="species changed"):
        pretrain(begun, device="cpu", set=["species.1.fasta=copy.fa"])
    pretrain(begun, device="cpu")
    assert weights(begun.parent / "out") == weights(whole / "out")


def test_the_fingerprint_stays_as_published(tmp_path, monkeypatch):
    # Runs that were begun must go on: change this only together with a way for them.
    lay_out(tmp_path)
    monkeypatch.chdir(tmp_path)
    run = read_run("run.toml")
    found = fingerprint.take_fingerprint(run, [load_species(s) for s in run.species])
    assert found.pop("init") == "" and found.pop("settings")["optim.lr"] == 5e-3
    assert found.pop("genomes") == "e1461a60ca54ab1e"
    assert found == {
        "model": "1f2786f57dd0d7c5", "species": "9120a1765e977ea0", "stage": "e5778454890cdc35",
        "seed": "5feceb66ffc86f38", "mixture": "155005fcd4d105e3", "optim": "ae29b1ed69cab1b3",
    }  # fmt: skip


def test_the_run_file_is_kept_as_it_was_at_the_start(tmp_path):
    path = lay_out(tmp_path)

    def rewrite(done, total, note=""):
        path.write_text("changed = true\n")

    summary = pretrain(path, device="cpu", set=["stage.0.steps=2"], progress=rewrite)
    assert (Path(summary.output) / "run.toml").read_text() == TINY_RUN
    assert json.loads((Path(summary.output) / "training.json").read_text())["set"] == ["stage.0.steps=2"]


# --- Beginning from a model ------------------------------------------------------------------------------------------


def test_a_warm_start(whole, tmp_path):
    """The weights are those of the folder, the optimiser is fresh, and the folder's digest is part of the run."""
    path = lay_out(tmp_path)
    text = path.read_text()
    shutil.copytree(whole / "out" / "model", tmp_path / "first")
    path.write_text('init = "first"\n' + text)
    longer = "model.max_position_embeddings=4096"
    pretrain(path, device="cpu", set=["optim.lr=1e-12", "stage.0.steps=1", "stage.1.steps=1", longer])
    first, then = (hd.load_model(str(f / "model"), device="cpu") for f in (whole / "out", tmp_path / "out"))
    assert then.config.context_length == 4096
    for (name, due), found in zip(first.named_parameters(), then.parameters(), strict=True):
        assert torch.allclose(due, found, rtol=0, atol=1e-10), name
    assert f"from {tmp_path / 'first'}" in (tmp_path / "out" / "model" / "README.md").read_text()
    with pytest.raises(UsageError, match="init") as caught:
        pretrain(lay_out(tmp_path), device="cpu", set=["optim.lr=1e-12", "stage.0.steps=1", "stage.1.steps=1", longer])
    assert caught.value.exit_code == 2


def test_a_warm_start_that_does_not_fit(whole, tmp_path):
    path = lay_out(tmp_path)
    with pytest.raises(ModelError, match=r"the run's \[model\]: intermediate_size is 16, the run's 32") as caught:
        pretrain(path, device="cpu", set=[f"init={whole / 'out' / 'model'}", "model.intermediate_size=32"])
    assert caught.value.exit_code == 4
    with pytest.raises(HybriDNAError, match="nowhere"):
        pretrain(path, device="cpu", set=["init=nowhere"])
    assert not list((tmp_path / "out" / "snapshots").iterdir())


# --- Before anything is trained --------------------------------------------------------------------------------------


def test_a_dry_run(tmp_path):
    path = lay_out(tmp_path)
    before = sorted(tmp_path.iterdir())
    plan = pretrain(path, device="cpu", dry_run=True, set=["mixture.power=1"])
    assert isinstance(plan, PretrainPlan)
    assert sorted(p.suffix for p in tmp_path.iterdir() if p not in before) == [".fai", ".fai"]
    assert (plan.steps, plan.tokens) == (20, 20 * 256)
    assert plan.parameters == sum(p.numel() for p in HybridLM(read_run(path).model).parameters())
    assert plan.memory.startswith("about ") and plan.output == str(tmp_path / "out")
    read = 14 * 4 * 63 + 6 * 2 * 127
    bug, bee = plan.species
    # 5,000 bases less 900, and 1,500.
    assert (bug.name, bug.bases, bug.held_out, bee.bases, bee.held_out) == ("bug", 4100, 900, 1500, 0)
    assert bug.share == pytest.approx(4100 / 5600) and bee.share == pytest.approx(1500 / 5600)
    assert bug.passes == pytest.approx(read / 5600) == bee.passes
    assert plan.to_dict()["species"][1]["name"] == "bee"
    json.dumps(plan.to_dict())


def test_a_dry_run_of_a_large_model_allocates_none_of_it(tmp_path):
    path = lay_out(tmp_path, '[model]\npreset = "7b"\n' + TINY_RUN[TINY_RUN.index("[[species]]") :])
    plan = pretrain(path, output=tmp_path / "o", device="cpu", dry_run=True)
    assert plan.parameters == 6_253_397_504
    # Weights, gradients and two moments in float32 are 16 bytes each.
    assert 93.2 < float(plan.memory.split()[1]) < 100 and plan.memory.endswith("GiB")


def test_too_little_memory_is_told(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(module, "free_bytes", lambda device: 2**20)
    pretrain(lay_out(tmp_path), device="cpu", dry_run=True)
    (said,) = warnings_of(caplog, "memory")
    assert said.endswith("of memory are needed, 1.0 MiB are free")


def test_traps_are_told(tmp_path, caplog):
    pretrain(lay_out(tmp_path), device="cpu", dry_run=True,
             set=["optim.warmup_steps=20", "species.0.valid=['c2:1-100']"])  # fmt: skip
    assert warnings_of(caplog, "warm-up") == ["warm-up takes 20 steps and the run has 20: optim.lr is never reached"]
    assert warnings_of(caplog, "nothing-measured") == [
        "bug: nothing is measured in stage 1, no held-out window of 127 known bases"
    ]


def refused(path, kind, code, *, output=None, overrides=()):
    with pytest.raises(kind) as caught:
        pretrain(path, output=output, device="cpu", set=overrides)
    assert isinstance(caught.value, HybriDNAError) and caught.value.exit_code == code
    return str(caught.value)


def test_output_folders_that_do_not_do(tmp_path):
    path = lay_out(tmp_path, TINY_RUN.replace('output = "out"', ""))
    assert "run.toml: no output folder; give -o DIR" in refused(path, UsageError, 2)
    assert f"{path}: exists and is no folder" in refused(path, UsageError, 2, output=path)
    assert f"{path}: is no folder" in refused(path, SystemFault, 5, output=path / "x")
    assert "is not writable" in refused(path, SystemFault, 5, output="/proc/1/out") or os.geteuid() == 0
    # A folder `model` that is none of ours is found before the training, not after it.
    (tmp_path / "o" / "model").mkdir(parents=True)
    (tmp_path / "o" / "model" / "precious.txt").write_text("x")
    assert "no model folder of ours; not replaced" in refused(path, UsageError, 2, output=tmp_path / "o")
    assert not (tmp_path / "o" / "log.jsonl").exists()


def test_data_that_do_not_do(tmp_path):
    path = lay_out(tmp_path)
    said = refused(path, DataError, 3, overrides=["model.max_position_embeddings=4096", "stage.1.context_length=4096",
                                                  "stage.1.batch_tokens=4096"])  # fmt: skip
    assert said == (
        "stage 1: every contig is shorter than the window: longest 3,000 bases, window 4,095; "
        "shorten the stage's context_length"
    )
    said = refused(path, UsageError, 2, overrides=["stage.0.steps=1000"])
    assert said.startswith("mixture.max_passes: is 15, but 257,536 tokens read the 5,600 bases 46.0 times")
    assert "species bug: region 'c9'" in refused(path, UsageError, 2, overrides=["species.0.valid=['c9']"])
    said = refused(path, SystemFault, 5, overrides=["species.0.fasta=bog.fa"])
    assert said.startswith(f"{tmp_path}/bog.fa: no such file; did you mean {tmp_path}/bug.fa?")
    (tmp_path / "bee.fa").write_text(">c1\nMKVLE\n" + ">c2\n" + "N" * 200 + "\n")
    (tmp_path / "bee.fa.fai").unlink()
    assert f"{tmp_path}/bee.fa:2:4: the letter 'L' is no nucleotide" in refused(path, DataError, 3)
    assert pretrain(path, device="cpu", dry_run=True, other_letters="n").species[1].bases == 0
    assert not (tmp_path / "out").exists()
