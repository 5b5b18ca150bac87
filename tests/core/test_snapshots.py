"""Snapshots of a training run: whole or not there, whatever the disk, the power or another process does."""

import multiprocessing
import os
import shutil

import numpy as np
import pytest
import torch
from genome_files import warnings_of
from toys import SMALL

from hybridna_core.errors import ModelError, UsageError
from hybridna_core.model.hybrid import HybridLM
from hybridna_core.run_config import OptimConfig
from hybridna_core.tokenizer import BOS
from hybridna_core.train import snapshots
from hybridna_core.train.loop import train_step, with_start
from hybridna_core.train.optim import make_optimizer, optimizer_tensors
from hybridna_core.train.snapshots import find_snapshot, hold_folder, restore_snapshot, save_snapshot


def drawn(seed):
    """Two rows of random bases with a start token."""
    return with_start(np.random.default_rng(seed).integers(7, 11, (2, 20)).astype(np.uint8), BOS)


def trained(steps=2, **changes):
    model = HybridLM(SMALL if not changes else type(SMALL)(**{**SMALL.__dict__, **changes}), seed=1)
    optimizer = make_optimizer(model, OptimConfig())
    for number in range(steps):
        train_step(model, optimizer, drawn(number), lr=1e-3, clip=1.0, microbatch_tokens=100)
    return model, optimizer


def all_tensors(model, optimizer):
    return {**dict(model.named_parameters()), **optimizer_tensors(optimizer, model)}


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True}])
def test_a_snapshot_brings_everything_back(tmp_path, changes):
    model, optimizer = trained(**changes)
    position = {"step": 2, "since": {"bits": 0.1 + 0.2, "bases": 7}}
    path = save_snapshot(tmp_path, model, optimizer, position, keep=2)
    assert path.name == "step-000000002"
    found, again = find_snapshot(tmp_path)
    assert (found, again) == (path, position)
    other, other_optimizer = trained(0, **changes)
    restore_snapshot(found, other, other_optimizer)
    due, have = all_tensors(model, optimizer), all_tensors(other, other_optimizer)
    assert due.keys() == have.keys() and len(due) > 40
    for name in due:
        assert torch.equal(due[name], have[name]) and due[name].dtype == have[name].dtype, name
    for each in ((model, optimizer), (other, other_optimizer)):
        train_step(*each, drawn(9), lr=1e-3, clip=1.0, microbatch_tokens=100)
    due, have = all_tensors(model, optimizer), all_tensors(other, other_optimizer)
    assert all(torch.equal(due[name], have[name]) for name in due)


def test_the_newest_are_kept(tmp_path):
    model, optimizer = trained(1)
    (tmp_path / "step-notes").mkdir()
    (tmp_path / "step-7").write_text("a file")
    for step in (5, 10, 100, 1000):
        save_snapshot(tmp_path, model, optimizer, {"step": step}, keep=3)
    left = sorted(p.name for p in tmp_path.iterdir())
    assert left == ["step-000000010", "step-000000100", "step-000001000", "step-7", "step-notes"]
    assert find_snapshot(tmp_path)[1] == {"step": 1000}


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[:-9])


def remove(path):
    path.unlink()


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "position.json", "manifest.json"])
@pytest.mark.parametrize("harm", [flip, cut, remove])
def test_a_damaged_snapshot_is_passed_over(tmp_path, caplog, name, harm):
    model, optimizer = trained(1)
    for step in (10, 20):
        save_snapshot(tmp_path, model, optimizer, {"step": step}, keep=2)
    harm(tmp_path / "step-000000020" / name)
    found, position = find_snapshot(tmp_path)
    assert position == {"step": 10}
    passed, lost = warnings_of(caplog, "snapshot")
    assert passed.startswith("snapshot of step 20 passed over: ")
    assert lost == "going on from step 10: 10 steps are lost to damage"
    # The run goes on: the damaged one makes way and does not count among those that are kept.
    save_snapshot(tmp_path, model, optimizer, {"step": 20}, keep=2)
    assert find_snapshot(tmp_path)[1] == {"step": 20} and found.is_dir()


def test_damaged_snapshots_of_a_lost_future_are_deleted(tmp_path):
    model, optimizer = trained(1)
    for step in (10, 20, 30):
        save_snapshot(tmp_path, model, optimizer, {"step": step}, keep=3)
    for step in (20, 30):
        flip(tmp_path / f"step-{step:09d}" / "position.json")
    assert find_snapshot(tmp_path)[1] == {"step": 10}
    save_snapshot(tmp_path, model, optimizer, {"step": 15}, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000000010", "step-000000015"]


def test_no_snapshot_and_none_that_is_whole(tmp_path):
    assert find_snapshot(tmp_path / "none") == (None, None)
    assert find_snapshot(tmp_path) == (None, None)
    model, optimizer = trained(1)
    for step in (10, 20):
        flip(save_snapshot(tmp_path, model, optimizer, {"step": step}, keep=2) / "model.safetensors")
    with pytest.raises(ModelError, match="all 2 snapshots are damaged; delete the folder to start afresh") as caught:
        find_snapshot(tmp_path)
    assert caught.value.exit_code == 4


def test_a_snapshot_that_cannot_be_read_back_deletes_nothing(tmp_path, monkeypatch):
    model, optimizer = trained(1)
    for step in (10, 20):
        save_snapshot(tmp_path, model, optimizer, {"step": step}, keep=2)
    check = snapshots.verify_manifest

    def failing(folder):
        flip(folder / "model.safetensors")
        return check(folder)

    monkeypatch.setattr(snapshots, "verify_manifest", failing)
    with pytest.raises(ModelError, match="checksum"):
        save_snapshot(tmp_path, model, optimizer, {"step": 30}, keep=2)
    monkeypatch.undo()
    assert find_snapshot(tmp_path)[1] == {"step": 20} and (tmp_path / "step-000000010").is_dir()


def test_what_a_killed_run_left_half_written_is_cleared(tmp_path):
    left = tmp_path / "run" / "snapshots" / ".hybridna-123-abcd.partial"
    shutil.copytree(os.path.dirname(__file__), left)
    with hold_folder(tmp_path / "run"):
        assert not left.exists()


def hold_until_told(folder, connection):
    with hold_folder(folder):
        connection.send(os.getpid())
        connection.recv()


def test_one_run_per_folder(tmp_path):
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    holder = multiprocessing.get_context("spawn").Process(target=hold_until_told, args=(tmp_path, theirs))
    holder.start()
    try:
        assert ours.poll(60)
        number = ours.recv()
        with pytest.raises(UsageError) as caught, hold_folder(tmp_path):
            pass
        assert caught.value.exit_code == 2
        assert (
            f"{tmp_path}: process {number} on " in str(caught.value)
            and "is training in this folder" in caught.value.what
        )
    finally:
        holder.kill()
        holder.join()
    # The lock ends with its process, killed or not.
    for _ in range(2):
        with hold_folder(tmp_path):
            pass
    assert (tmp_path / "lock").read_text() == ""
