"""Snapshots of a training run: whole or not there, whatever the disk, the power or another process does."""

import errno
import multiprocessing
import os
import re
import shutil
import socket
import subprocess

import numpy as np
import pytest
import torch
from genome_files import warnings_of
from storm import flip_bits
from toys import SMALL

from hybridna_core.data import lock
from hybridna_core.errors import ModelError, SystemFault, UsageError
from hybridna_core.model.hybrid import HybridLM
from hybridna_core.run_config import OptimConfig
from hybridna_core.tokenizer import BOS
from hybridna_core.train import snapshots
from hybridna_core.train.loop import train_step, with_start
from hybridna_core.train.optim import make_optimizer, optimizer_tensors
from hybridna_core.train.snapshots import (
    check_space,
    find_snapshot,
    hold_folder,
    restore_snapshot,
    save_snapshot,
    snapshot_bytes,
)


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


# --- Stale and foreign locks -----------------------------------------------------------------------------------------


@pytest.fixture
def gone():
    """Number of a process that is no more."""
    with subprocess.Popen(["true"]) as child:
        pass
    return child.pid


@pytest.mark.parametrize("has_locks", [True, False])
def test_a_stale_lock_is_told_and_taken_over(tmp_path, monkeypatch, caplog, gone, has_locks):
    if not has_locks:
        monkeypatch.setattr(lock, "fcntl", None)
    caplog.set_level("INFO", "hybridna")
    holder = f"process {gone} on {socket.gethostname()}"
    (tmp_path / "lock").write_text(holder + "\n")
    with hold_folder(tmp_path):
        assert (tmp_path / "lock").read_text() == f"process {os.getpid()} on {socket.gethostname()}\n"
    assert caplog.messages == [f"{tmp_path}: held by {holder}, which is gone; its lock is stale"]
    caplog.clear()
    with hold_folder(tmp_path):
        pass
    assert caplog.messages == []


@pytest.mark.parametrize("own", [True, False])
def test_without_locks_a_process_that_may_live_holds_the_folder(tmp_path, monkeypatch, own):
    monkeypatch.setattr(lock, "fcntl", None)
    holder = f"process {os.getppid()} on {socket.gethostname()}" if own else "process 1 on another.host"
    (tmp_path / "lock").write_text(holder)
    with pytest.raises(UsageError) as caught, hold_folder(tmp_path):
        pass
    due = f"{tmp_path}: {holder} is training in this folder; if it is gone, delete {tmp_path / 'lock'}"
    assert str(caught.value) == due and (tmp_path / "lock").read_text() == holder
    (tmp_path / "lock").unlink()
    with hold_folder(tmp_path):
        pass


# --- Disks -----------------------------------------------------------------------------------------------------------


def free(monkeypatch, count):
    usage = shutil.disk_usage("/")._replace(free=count)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)


def test_bytes_needed_and_free_are_told_before_a_snapshot_is_begun(tmp_path, monkeypatch):
    model, optimizer = trained(1)
    path = save_snapshot(tmp_path, model, optimizer, {"step": 10}, keep=2)
    needed = snapshot_bytes(model)
    # The tensors alone, and little more than a real snapshot takes.
    real = sum(p.stat().st_size for p in path.iterdir())
    assert 3 * 4 * sum(p.numel() for p in model.parameters()) < real < needed < real + 2**20
    free(monkeypatch, real)
    monkeypatch.setattr(snapshots, "write_tensors", None)
    with pytest.raises(SystemFault) as caught:
        save_snapshot(tmp_path, model, optimizer, {"step": 20}, keep=2)
    assert caught.value.exit_code == 5
    words = f"the disk is too full: the weights and optimiser of step 20 need [0-9,]+ bytes, {real:,} are free; free"
    assert re.search(words, str(caught.value))
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["step-000000010"] and find_snapshot(tmp_path)[1] == {"step": 10}


def test_space_for_the_whole_run_is_checked(tmp_path, monkeypatch):
    model, optimizer = trained(1)
    one = snapshot_bytes(model)
    # Three snapshots while the third is written and the first still there, and the finished model.
    needed = 3 * one + one // 3
    free(monkeypatch, needed)
    check_space(tmp_path, model, keep=2)
    free(monkeypatch, needed - 1)
    with pytest.raises(SystemFault, match=f"need {needed:,} bytes, {needed - 1:,} are free"):
        check_space(tmp_path, model, keep=2)
    monkeypatch.undo()
    (tmp_path / "snapshots").mkdir()
    path = save_snapshot(tmp_path / "snapshots", model, optimizer, {"step": 1}, keep=2)
    # What is there already needs no more room.
    there = sum(p.stat().st_size for p in path.iterdir())
    free(monkeypatch, needed - there)
    check_space(tmp_path, model, keep=2)
    free(monkeypatch, needed - there - 1)
    with pytest.raises(SystemFault, match="the disk is too full: the run's snapshots and model need "):
        check_space(tmp_path, model, keep=2)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ESTALE, errno.EIO])
@pytest.mark.parametrize("call", ["open", "fsync", "rename", "mkdir"])
def test_a_disk_that_fails_leaves_the_older_ones(tmp_path, monkeypatch, code, call):
    model, optimizer = trained(1)
    for step in (10, 20):
        save_snapshot(tmp_path, model, optimizer, {"step": step}, keep=2)
    honest = getattr(os, call)

    def failing(path, *rest, **named):
        writes = call != "open" or rest[0] & (os.O_WRONLY | os.O_RDWR)
        if writes:
            raise OSError(code, os.strerror(code), str(path))
        return honest(path, *rest, **named)

    monkeypatch.setattr(os, call, failing)
    if call == "open":
        # safetensors writes by itself; this is what the system says to it.
        monkeypatch.setattr("safetensors.torch.save_file", lambda *_, **__: failing("x", os.O_WRONLY))
    with pytest.raises(SystemFault) as caught:
        save_snapshot(tmp_path, model, optimizer, {"step": 30}, keep=2)
    monkeypatch.undo()
    assert caught.value.exit_code == 5 and "step-000000030" in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["step-000000010", "step-000000020"]
    assert find_snapshot(tmp_path)[1] == {"step": 20}


# --- Power cuts ------------------------------------------------------------------------------------------------------


class Disk:
    """What a power cut would leave of a folder: content as of each file's last fsync, names as of each folder's.

    Renames and deletions reach the disk with the fsync of their folder, or any time before: `images` makes both.
    """

    def __init__(self, root, patch):
        self.root, self.content, self.names, self.cuts = root, {}, {}, []
        self._sync_all()
        for name in ("fsync", "rename", "replace", "unlink", "rmdir", "mkdir"):
            self._watch(patch, name)

    def _sync_all(self):
        for folder, _, files in os.walk(self.root):
            self._sync(folder)
            for file in files:
                self._sync(os.path.join(folder, file))

    def _sync(self, path):
        status = os.stat(path)
        if os.path.isdir(path):
            self.names[status.st_ino] = {e.name: (e.inode(), e.is_dir()) for e in os.scandir(path)}
        else:
            with open(path, "rb") as handle:
                self.content[status.st_ino] = handle.read()

    def _watch(self, patch, name):
        honest = getattr(os, name)

        def watched(*args, **named):
            self.cut()
            found = honest(*args, **named)
            if name == "fsync":
                self._sync(os.readlink(f"/proc/self/fd/{args[0]}"))
            return found

        patch.setattr(os, name, watched)

    def cut(self):
        """Note what the disk may hold at this moment: names as last synced, and names as they are now."""
        late = self._read(os.stat(self.root).st_ino, self.names.get)
        now = {os.stat(d).st_ino: {e.name: (e.inode(), e.is_dir()) for e in os.scandir(d)} for d, _, _ in
               os.walk(self.root)}  # fmt: skip
        early = self._read(os.stat(self.root).st_ino, now.get)
        self.cuts += [late, early]

    def _read(self, inode, names_of, prefix=""):
        found = {}
        for name, (number, is_folder) in (names_of(inode) or {}).items():
            if is_folder:
                found[f"{prefix}{name}/"] = None
                found |= self._read(number, names_of, f"{prefix}{name}/")
            else:
                found[prefix + name] = self.content.get(number, b"")
        return found


def lay_down(image, folder):
    """Make files of an image."""
    for name, content in image.items():
        if content is None:
            (folder / name).mkdir(parents=True, exist_ok=True)
        else:
            (folder / name).write_bytes(content)
    return folder


def test_a_power_cut_at_any_moment_leaves_a_whole_snapshot(tmp_path, monkeypatch, caplog):
    model, optimizer = trained(1)
    folder = tmp_path / "snapshots"
    folder.mkdir()
    for step in (10, 20):
        save_snapshot(folder, model, optimizer, {"step": step}, keep=2)
    with monkeypatch.context() as patch:
        disk = Disk(folder, patch)
        save_snapshot(folder, model, optimizer, {"step": 30}, keep=2)
        disk.cut()
    steps = []
    for number, image in enumerate(disk.cuts):
        _, position = find_snapshot(lay_down(image, tmp_path / str(number)))
        steps.append(position["step"])
        shutil.rmtree(tmp_path / str(number))
    # Old until the new one is named, new from then on; with names as last synced and as they are now.
    assert len(steps) > 20 and set(steps) == {20, 30} and steps[:2] == [20, 20] and steps[-2:] == [30, 30]
    assert steps[::2] == sorted(steps[::2]) and steps[1::2] == sorted(steps[1::2])
    # Nothing that carries a snapshot's name was ever damaged.
    assert warnings_of(caplog, "snapshot") == []


def test_the_power_cut_finds_a_name_given_too_early(tmp_path, monkeypatch):
    """The same check on a way of saving that forgets to force content to disk."""
    model, optimizer = trained(1)
    folder = tmp_path / "snapshots"
    folder.mkdir()
    monkeypatch.setattr("hybridna_core.checkpoint.sync_file", lambda path: None)
    with monkeypatch.context() as patch:
        disk = Disk(folder, patch)
        save_snapshot(folder, model, optimizer, {"step": 30}, keep=2)
        disk.cut()
    with pytest.raises(ModelError, match="damaged"):
        find_snapshot(lay_down(disk.cuts[-1], tmp_path / "image"))


# --- Kills while deleting, clocks, flipped bits ----------------------------------------------------------------------


class Killed(BaseException):
    """Stands in for kill -9: nothing catches it."""


@pytest.mark.parametrize("moment", [1, 2, 3, 4, 5])
def test_killed_while_an_old_snapshot_is_deleted(tmp_path, monkeypatch, caplog, moment):
    model, optimizer = trained(1)
    with hold_folder(tmp_path):
        for step in (10, 20):
            save_snapshot(tmp_path / "snapshots", model, optimizer, {"step": step}, keep=2)
    calls = []

    def dying(name, honest):
        def call(*args, **named):
            gone = str(args[0]).endswith("step-000000010") or "step-000000030" in os.listdir(tmp_path / "snapshots")
            calls.append(name) if gone else None
            if len(calls) == moment:
                raise Killed
            return honest(*args, **named)

        return call

    with monkeypatch.context() as patch, pytest.raises(Killed):
        for name in ("rename", "unlink", "rmdir"):
            patch.setattr(os, name, dying(name, getattr(os, name)))
        save_snapshot(tmp_path / "snapshots", model, optimizer, {"step": 30}, keep=2)
    with hold_folder(tmp_path):
        assert find_snapshot(tmp_path / "snapshots")[1] == {"step": 30}
        save_snapshot(tmp_path / "snapshots", model, optimizer, {"step": 40}, keep=2)
        assert sorted(os.listdir(tmp_path / "snapshots")) == ["step-000000030", "step-000000040"]
    assert warnings_of(caplog, "snapshot") == []


@pytest.mark.parametrize("times", [(3, 2, 1), (1, 1, 1), (2, 3, 1)])
def test_the_newest_is_that_of_the_highest_step(tmp_path, times):
    model, optimizer = trained(1)
    for step in (9, 10, 100):
        save_snapshot(tmp_path, model, optimizer, {"step": step}, keep=3)
    for step, seconds in zip((9, 10, 100), times, strict=True):
        for path in (*(tmp_path / f"step-{step:09d}").iterdir(), tmp_path / f"step-{step:09d}"):
            os.utime(path, (seconds, seconds))
    assert find_snapshot(tmp_path)[1] == {"step": 100}
    save_snapshot(tmp_path, model, optimizer, {"step": 101}, keep=2)
    assert sorted(os.listdir(tmp_path)) == ["step-000000100", "step-000000101"]


def test_flipped_bits_are_refused(tmp_path):
    table = flip_bits(tmp_path, 60, seed=1)
    assert sum(row.flips for row in table) == 60 and len(table) == 4
    assert all(row.refused == row.fell_back == row.flips for row in table)
