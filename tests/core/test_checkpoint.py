"""Model folders of ours: written whole, verified, and refused with exit code and message (faults.md D1 to D19, D22-25).

random toy model -> save_model -> folder, damaged in one way -> load_model -> error kind, text
"""

import errno
import hashlib
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from toys import random_model

from hybridna_core import checkpoint
from hybridna_core.checkpoint import (
    atomic_folder,
    choose_device,
    load_model,
    read_description,
    read_notice,
    save_model,
    verify_manifest,
    write_json,
    write_manifest,
    write_tensors,
)
from hybridna_core.commands.models import show_model
from hybridna_core.errors import DataError, HybriDNAError, ModelError, SystemFault, UsageError
from hybridna_core.tokenizer import LabelPosition, Tokenizer
from hybridna_core.weight_files import looks_like, read_header

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1234\n"


@pytest.fixture
def folder(toy_model_folder, tmp_path):
    """A copy of the toy model's folder that a test may damage."""
    return Path(shutil.copytree(toy_model_folder, tmp_path / "toy"))


def refused(path, code, *words, **options):
    """Load a model that must be refused; check exit code and words of the one-line message; return the message."""
    with pytest.raises(HybriDNAError) as caught:
        load_model(path, device="cpu", **options)
    message = str(caught.value)
    assert caught.value.exit_code == code, message
    assert "\n" not in message
    for word in words:
        assert str(word) in message
    return message


def edit_json(path, change):
    """Let `change` alter a parsed JSON file, and write it back; the manifest is renewed."""
    table = json.loads(path.read_text("utf-8"))
    change(table)
    path.write_text(json.dumps(table), "utf-8")
    write_manifest(path.parent)


def seal(folder, change):
    """Let `change` alter the manifest's table of files; the manifest stays as whole as an honest one."""
    path = folder / "manifest.json"
    table = json.loads(path.read_text())
    change(table["files"])
    del table["digest"]
    table["digest"] = hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(table))


def edit_weights(folder, change):
    """Let `change` alter the dict of tensors, and write it back; the manifest is renewed."""
    from safetensors.torch import load_file

    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    write_tensors(folder / "model.safetensors", tensors)
    write_manifest(folder)


class TestRoundTrip:
    def test_weights_config_tokenizer_and_outputs_come_back(self, tmp_path):
        labels = (LabelPosition("K562", 4, "activity"), LabelPosition("HepG2", 3))
        model = random_model(labels=labels)
        save_model(tmp_path / "m", model, card="# Card\n", extra_files={"run.toml": "a = 1\n", "b": b"\0\1"})
        again = load_model(tmp_path / "m", device="cpu")
        assert again.config == model.config
        assert again.tokenizer == model.tokenizer
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, again.state_dict()[name]), name
        tokens = torch.randint(0, 12, (2, 33))
        assert torch.equal(model(tokens)[0], again(tokens)[0])
        assert (tmp_path / "m" / "README.md").read_text() == "# Card\n"
        assert (tmp_path / "m" / "run.toml").read_text() == "a = 1\n"
        assert (tmp_path / "m" / "b").read_bytes() == b"\0\1"

    def test_a_loaded_model_is_ready_for_use(self, toy_model_folder):
        model = load_model(toy_model_folder, device="cpu")
        assert not model.training
        assert not any(p.requires_grad for p in model.parameters())
        assert model.name == "toy"
        assert model.folder == toy_model_folder
        assert model.digest == checkpoint.sha256(toy_model_folder / "model.safetensors")
        assert model.device.type == "cpu"
        assert not any(t.is_meta for t in model.state_dict().values())

    def test_the_card_is_never_empty(self, toy_model_folder):
        elements = sum(p.numel() for p in random_model().parameters())
        assert f"{elements:,} parameters" in (toy_model_folder / "README.md").read_text()

    def test_manifest_lists_size_and_digest_of_every_file(self, toy_model_folder):
        table = json.loads((toy_model_folder / "manifest.json").read_text())
        assert table["format"] == 1
        assert table["hybridna"] == checkpoint.version()
        assert set(table["files"]) == {"config.json", "model.safetensors", "tokenizer.json", "README.md"}
        assert {p.name for p in toy_model_folder.iterdir()} == {*table["files"], "manifest.json"}
        for name, entry in table["files"].items():
            assert entry["size"] == (toy_model_folder / name).stat().st_size
            assert entry["sha256"] == checkpoint.sha256(toy_model_folder / name)

    def test_bfloat16_keeps_sensitive_parameters_wide(self, tmp_path):
        model = random_model()
        save_model(tmp_path / "m", model, dtype="bfloat16")
        kinds = {name: entry.dtype for name, entry in read_header(tmp_path / "m" / "model.safetensors")[0].items()}
        wide = {name for name, kind in kinds.items() if kind == "F32"}
        assert wide == {n for n in kinds if n.endswith(("A_log", ".D", "dt_bias", "norm.weight"))}
        assert set(kinds.values()) == {"F32", "BF16"}
        again = load_model(tmp_path / "m", device="cpu")
        for name, tensor in model.state_dict().items():
            due = tensor if name in wide else tensor.bfloat16().float()
            assert torch.equal(again.state_dict()[name], due), name

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
    def test_dtype_on_loading(self, toy_model_folder, dtype):
        model = load_model(toy_model_folder, device="cpu", dtype=dtype)
        assert model.dtype == getattr(torch, dtype)
        assert model.model.layers[0].mamba.A_log.dtype == (torch.float64 if dtype == "float64" else torch.float32)

    def test_tied_head_is_stored_once_and_tied_again(self, tmp_path):
        model = random_model(tie_word_embeddings=True)
        save_model(tmp_path / "m", model)
        assert "lm_head.weight" not in read_header(tmp_path / "m" / "model.safetensors")[0]
        again = load_model(tmp_path / "m", device="cpu")
        assert again.lm_head.weight is again.model.embed_tokens.weight
        tokens = torch.randint(0, 12, (1, 9))
        assert torch.equal(again.head(again(tokens)[0]), model.head(model(tokens)[0]))

    def test_shards_with_an_index_load_too(self, folder):
        whole = load_model(folder, device="cpu")
        tensors = whole.state_dict()
        names = sorted(tensors)
        (folder / "model.safetensors").unlink()
        shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
        for shard, members in shards.items():
            write_tensors(folder / shard, {n: tensors[n] for n in members})
        weight_map = {n: shard for shard, members in shards.items() for n in members}
        write_json(folder / "model.safetensors.index.json", {"weight_map": weight_map})
        write_manifest(folder)
        again = load_model(folder, device="cpu")
        assert all(torch.equal(t, again.state_dict()[n]) for n, t in tensors.items())
        assert len(again.digest) == 64 and again.digest != whole.digest

        (folder / "model-00002-of-00002.safetensors").unlink()
        refused(folder, 4, "model-00002-of-00002.safetensors: file is missing")
        # A shard of another save: the index places a tensor in it that it does not hold.
        write_tensors(folder / "model-00002-of-00002.safetensors", {"stray": torch.zeros(1)})
        write_manifest(folder)
        refused(folder, 4, "model-00002-of-00002.safetensors: the index places", "not of one save")

    def test_files_follow_the_umask(self, tmp_path):
        before = os.umask(0o022)
        try:
            save_model(tmp_path / "m", random_model())
        finally:
            os.umask(before)
        assert {
            p.name: p.stat().st_mode & 0o777 for p in (tmp_path / "m").iterdir() if p.stat().st_mode & 0o777 != 0o644
        } == {}
        assert (tmp_path / "m").stat().st_mode & 0o777 == 0o755

    @pytest.mark.parametrize("name", ["with blank", "q'u\"ote", "line\nbreak", "Größe 基因", "-dash", "x" * 255])
    def test_odd_names_d25(self, tmp_path, name):
        save_model(tmp_path / name, random_model())
        assert load_model(tmp_path / name, device="cpu").name == name
        assert [p.name for p in tmp_path.iterdir()] == [name]

    def test_loading_leaves_the_compiler_alone(self, toy_model_folder):
        code = (
            "import sys; from hybridna_core.checkpoint import load_model;"
            f"load_model({str(toy_model_folder)!r}, device='cpu'); sys.exit('torch._dynamo' in sys.modules)"
        )
        assert subprocess.run([sys.executable, "-c", code]).returncode == 0


class TestWriting:
    def test_nothing_is_left_after_an_error_and_the_old_folder_stands(self, folder):
        before = (folder / "manifest.json").read_bytes()
        with pytest.raises(ValueError, match="mid-way"), atomic_folder(folder, force=True) as temporary:
            (temporary / "half").write_bytes(b"x")
            raise ValueError("mid-way")
        assert [p.name for p in folder.parent.iterdir()] == ["toy"]
        assert (folder / "manifest.json").read_bytes() == before

    def test_a_full_disk_is_one_line_and_leaves_the_old_folder(self, folder, monkeypatch):
        def full(*_, **__):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(checkpoint, "write_tensors", full)
        with pytest.raises(SystemFault, match=r"the disk is full \([\d,]+ bytes free\); free some space") as caught:
            save_model(folder, random_model(), force=True)
        assert caught.value.exit_code == 5
        assert [p.name for p in folder.parent.iterdir()] == ["toy"]
        verify_manifest(folder)

    def test_other_errors_of_the_caller_pass_unchanged(self, tmp_path):
        with pytest.raises(FileNotFoundError), atomic_folder(tmp_path / "m"):
            (tmp_path / "absent").read_bytes()
        assert list(tmp_path.iterdir()) == []

    def test_killed_while_writing_leaves_no_folder_at_the_name(self, tmp_path):
        code = (
            "import os, signal; from hybridna_core.checkpoint import atomic_folder\n"
            f"with atomic_folder({str(tmp_path / 'm')!r}) as t:\n"
            "    (t / 'config.json').write_text('{}'); os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        assert subprocess.run([sys.executable, "-c", code]).returncode == -9
        assert not (tmp_path / "m").exists()
        refused(tmp_path / "m", 4, "no such model folder")

    def test_the_manifest_comes_after_every_fsync(self, tmp_path, monkeypatch):
        steps = []
        fsync, rename = os.fsync, os.rename
        paths = {}
        opened = os.open

        def note_open(path, *args, **kwargs):
            handle = opened(path, *args, **kwargs)
            paths[handle] = os.path.basename(path)
            return handle

        monkeypatch.setattr(os, "open", note_open)
        monkeypatch.setattr(os, "fsync", lambda f: (steps.append(("fsync", paths.get(f, f))), fsync(f))[1])
        monkeypatch.setattr(os, "rename", lambda a, b: (steps.append(("rename", os.path.basename(b))), rename(a, b))[1])
        save_model(tmp_path / "m", random_model())
        marker = steps.index(("rename", "manifest.json"))
        for name in ("model.safetensors", "config.json", "tokenizer.json", "README.md"):
            assert ("fsync", name) in steps[:marker], name
        assert ("rename", "m") in steps[marker:]
        assert steps[-1] == ("fsync", tmp_path.name)

    def test_an_existing_folder_needs_force_and_must_be_ours(self, folder, tmp_path):
        with pytest.raises(UsageError, match="exists; give another name, or --force"):
            save_model(folder, random_model(1))
        save_model(folder, random_model(1), force=True)
        assert torch.equal(load_model(folder, device="cpu").lm_head.weight, random_model(1).lm_head.weight)
        mine = tmp_path / "thesis"
        mine.mkdir()
        (mine / "chapter1.tex").write_text("x")
        with pytest.raises(UsageError, match="no model folder of ours; not replaced"):
            save_model(mine, random_model(), force=True)
        assert (mine / "chapter1.tex").exists()

    def test_targets_that_cannot_be_g6_g7(self, tmp_path):
        with pytest.raises(SystemFault, match="no such folder; make it first") as caught:
            save_model(tmp_path / "absent" / "m", random_model())
        assert caught.value.exit_code == 5
        (tmp_path / "file").write_text("x")
        with pytest.raises(UsageError, match="exists and is no folder"):
            save_model(tmp_path / "file", random_model(), force=True)
        (tmp_path / "empty").mkdir()
        save_model(tmp_path / "empty", random_model())
        verify_manifest(tmp_path / "empty")

    def test_wrong_dtype_or_tokenizer_is_refused_before_writing(self, tmp_path):
        with pytest.raises(UsageError, match="cannot be stored as 'int8'; one of float32, bfloat16"):
            save_model(tmp_path / "m", random_model(), dtype="int8")
        model = random_model()
        model.tokenizer = Tokenizer((LabelPosition("x", 5),))
        with pytest.raises(ModelError, match="the tokenizer has 17 tokens, the embedding 12 rows"):
            save_model(tmp_path / "m", model)
        assert list(tmp_path.iterdir()) == []


class TestNotAModel:
    def test_d1_missing_folder_names_the_nearest(self, folder):
        message = refused(folder.parent / "tyo", 4, "no such model folder", "did you mean", folder)
        assert message.startswith(str(folder.parent / "tyo"))

    def test_d1_no_bundled_model_of_that_name(self, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)
        refused("qqqq", 4, "qqqq: no such model folder; bundled models:")

    def test_d1_folder_without_a_model(self, tmp_path):
        (tmp_path / "notes.txt").write_text("x")
        refused(tmp_path, 4, "no model folder: config.json and model.safetensors expected, notes.txt found")

    def test_a_file_in_place_of_the_folder(self, folder):
        refused(folder / "model.safetensors", 4, "is a file; a model folder is expected; give the folder")

    @pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors", "README.md"])
    def test_d1_one_file_missing(self, folder, missing):
        (folder / missing).unlink()
        refused(folder, 4, f"{missing}: file is missing; copy or download it again")

    def test_d2_no_completeness_marker(self, folder):
        (folder / "manifest.json").unlink()
        refused(folder, 4, "manifest.json is missing: saving was cut short")

    @pytest.mark.parametrize("name", ["model.safetensors", "config.json", "README.md"])
    def test_d4_truncated(self, folder, name):
        size = (folder / name).stat().st_size
        os.truncate(folder / name, size - 7)
        refused(folder, 4, f"{name}: truncated: {size - 7:,} bytes there, {size:,} due")

    @pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
    def test_d5_one_flipped_bit(self, folder, name):
        raw = bytearray((folder / name).read_bytes())
        for place in (len(raw) - 3, len(raw) // 2):
            raw[place] ^= 4
            (folder / name).write_bytes(raw)
            refused(folder, 4, f"{name}: checksum differs from the manifest")
            raw[place] ^= 4

    def test_d5_a_flipped_bit_in_any_byte_of_the_manifest(self, folder):
        path = folder / "manifest.json"
        raw = bytearray(path.read_bytes())
        for place in range(len(raw)):
            raw[place] ^= 1 << place % 8
            path.write_bytes(raw)
            with pytest.raises(ModelError):
                verify_manifest(folder)
            raw[place] ^= 1 << place % 8
        path.write_bytes(raw)
        verify_manifest(folder)

    def test_manifests_of_the_first_release_have_no_digest(self, folder):
        path = folder / "manifest.json"
        table = json.loads(path.read_text())
        assert list(table) == ["format", "hybridna", "files", "digest"]
        del table["digest"]
        path.write_text(json.dumps(table))
        verify_manifest(folder)

    def test_d5_a_zeroed_page(self, folder):
        path = folder / "model.safetensors"
        raw = bytearray(path.read_bytes())
        raw[4096:8192] = bytes(4096)
        path.write_bytes(raw)
        refused(folder, 4, "checksum differs")

    @pytest.mark.parametrize(
        "content, words",
        [
            (b"", "looks like an empty file; copy or download"),
            (LFS, "looks like a Git LFS pointer, not the file itself; run `git lfs pull`"),
            (b"<!DOCTYPE html><html>404</html>", "looks like an HTML page; download it again"),
        ],
    )
    @pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "manifest.json"])
    def test_d6_another_thing_under_the_name(self, folder, name, content, words):
        (folder / name).write_bytes(content)
        refused(folder, 4, f"{name}: {words}")
        if name != "manifest.json":
            write_manifest(folder)
            refused(folder, 4, f"{name}: {words}")


def safetensors_bytes(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


class TestHeaders:
    """D7: headers that lie."""

    @pytest.mark.parametrize(
        "raw, words",
        [
            (safetensors_bytes({}, length=2**30) + bytes(64), "header of 1,073,741,824 bytes, at most 104,857,600"),
            (safetensors_bytes({}, length=5000), "truncated: 10 bytes there, 5,008 due for the header alone"),
            (b"\x07\0\0", "is no safetensors file"),
            (b"not a safetensors file at all, rather text", "is no safetensors file"),
            (safetensors_bytes(b"{broken"), "the header is damaged"),
            (safetensors_bytes(b'{"a": 1, "a": 2}'), "stands twice"),
            (safetensors_bytes({"a": tensor(), "b": tensor(offsets=(4, 12))}, bytes(12)), "b: tensor overlaps"),
            (safetensors_bytes({"a": tensor(), "b": tensor(offsets=(16, 24))}, bytes(24)), "b: tensor leaves a hole"),
            (safetensors_bytes({"a": tensor(offsets=(8, 16))}, bytes(16)), "a: tensor leaves a hole"),
            (safetensors_bytes({"a": tensor(shape=(2**40, 2**40))}, bytes(8)), "does not fit 8 bytes"),
            (safetensors_bytes({"a": tensor(shape=(-2, -1))}, bytes(8)), "impossible shape"),
            (safetensors_bytes({"a": tensor(offsets=(8, 0))}, bytes(8)), "does not fit -8 bytes"),
            (safetensors_bytes({"a": tensor(dtype="F128")}, bytes(8)), "unknown number format 'F128'"),
            (safetensors_bytes({"a": "x"}, bytes(8)), "unknown number format None"),
            (safetensors_bytes({"a": tensor()}, bytes(6)), "truncated: 6 bytes of tensors there, 8 due"),
            (safetensors_bytes({"a": tensor()}, bytes(9)), "1 bytes after the last tensor belong to none"),
            (safetensors_bytes(b"[" * 100_000), "is no safetensors file"),
            (safetensors_bytes(b'{"a":' * 100_000), "the header is damaged"),
        ],
    )
    def test_d7(self, folder, raw, words):
        (folder / "model.safetensors").write_bytes(raw)
        write_manifest(folder)
        refused(folder, 4, "model.safetensors", words)

    def test_agrees_with_the_library_on_a_good_file(self, toy_model_folder):
        from safetensors import safe_open

        entries, metadata = read_header(toy_model_folder / "model.safetensors")
        with safe_open(toy_model_folder / "model.safetensors", "pt") as handle:
            assert {n: tuple(handle.get_slice(n).get_shape()) for n in handle.keys()} == {  # noqa: SIM118
                n: e.shape for n, e in entries.items()
            }
            assert metadata == handle.metadata()


class TestAgainstConfig:
    def test_d8_names_five_tensors_with_both_shapes(self, folder):
        def change(tensors):
            tensors["model.layers.0.mamba.in_proj.weight"] = tensors["model.layers.0.mamba.in_proj.weight"].T
            del tensors["model.final_layernorm.weight"]
            tensors["stray"] = torch.zeros(3)

        rows, columns = random_model().model.layers[0].mamba.in_proj.weight.shape
        edit_weights(folder, change)
        shapes = f"model.layers.0.mamba.in_proj.weight is [{columns}, {rows}], config says [{rows}, {columns}]"
        refused(
            folder,
            4,
            "weights do not fit config.json: model.final_layernorm.weight is missing, stray is unexpected",
            shapes,
        )

    def test_d8_more_than_five(self, folder):
        edit_weights(folder, lambda tensors: [tensors.pop(n) for n in sorted(tensors)[:8]])
        message = refused(folder, 4, "and 3 more")
        assert message.count("is missing") == 5

    @pytest.mark.parametrize("value, kind", [(float("nan"), "nan"), (float("inf"), "inf"), (float("-inf"), "inf")])
    def test_d9_non_finite_weights(self, folder, value, kind, caplog):
        def change(tensors):
            tensors["model.layers.1.self_attn.q_proj.weight"][3, 1:3] = value

        edit_weights(folder, change)
        name = "model.layers.1.self_attn.q_proj.weight"
        refused(folder, 4, f"{name}: 2 of 1,024 weights are NaN or infinite; --allow-nonfinite loads it all the same")
        model = load_model(folder, device="cpu", allow_nonfinite=True)
        assert not torch.isfinite(model.state_dict()[name]).all()
        assert [r.message for r in caplog.records] == [f"{name}: 2 weights are NaN or infinite"]

    def test_d9_large_finite_weights_pass(self, folder):
        def change(tensors):
            tensors["lm_head.weight"].fill_(3.0e38)

        edit_weights(folder, change)
        load_model(folder, device="cpu")

    def test_d10_vocabulary(self, folder):
        positions = [{"name": "K562", "digits": 4, "meaning": ""}]
        edit_json(folder / "tokenizer.json", lambda table: table.update(label_positions=positions))
        refused(folder, 4, "the tokenizer has 16 tokens, the embedding 12 rows")


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, canary):
        self.canary = str(canary)

    def __reduce__(self):
        return (open, (self.canary, "w"))


def write_pickle(kind, path, bomb):
    """Write a hostile pickle in one of its disguises."""
    import numpy as np

    raw = {p: pickle.dumps(bomb, protocol=p) for p in (0, 2, 3, 4, 5)}
    if kind.startswith("protocol"):
        path.write_bytes(raw[int(kind[-1])])
    elif kind == "torch zip":
        torch.save({"w": bomb}, path)
    elif kind == "torch legacy":
        torch.save({"w": bomb}, path, _use_new_zipfile_serialization=False)
    elif kind == "torch dict first":
        torch.save({"w": torch.zeros(2), "z": bomb}, path)
    elif kind == "zip by hand":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", raw[2])
    elif kind == "numpy object":
        np.save(path.with_suffix(".npy"), np.array([bomb], dtype=object), allow_pickle=True)
        os.replace(path.with_suffix(".npy"), path)


PICKLES = ["protocol 0", "protocol 2", "protocol 3", "protocol 4", "protocol 5", "torch zip", "torch legacy",
           "torch dict first", "zip by hand", "numpy object"]  # fmt: skip


class TestNothingIsExecuted:
    @pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "manifest.json"])
    @pytest.mark.parametrize("kind", PICKLES)
    def test_d12_a_pickle_under_each_name(self, folder, tmp_path, kind, name):
        canary = tmp_path / "canary"
        write_pickle(kind, folder / name, Bomb(canary))
        refused(folder, 4, name)
        if name != "manifest.json":
            write_manifest(folder)
            with pytest.raises(HybriDNAError) as caught:
                load_model(folder, device="cpu")
            # Text that is no JSON is a wrong configuration (2); what is recognised as a pickle is not trusted (4).
            assert caught.value.exit_code == (2 if kind == "protocol 0" and name != "model.safetensors" else 4)
        assert not canary.exists()

    @pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt", ".pkl", ".distcp", ".npy"])
    def test_d11_a_folder_or_file_of_pickles(self, tmp_path, suffix):
        canary = tmp_path / "canary"
        folder = tmp_path / "published"
        folder.mkdir()
        path = folder / f"pytorch_model{suffix}"
        path.write_bytes(pickle.dumps(Bomb(canary)))
        (folder / "config.json").write_text("{}")
        refused(folder, 4, f"the weights are a pickle (pytorch_model{suffix}); save it as safetensors first")
        refused(path, 4, "looks like a pickle; a model folder is expected; save it as safetensors first")
        assert not canary.exists()

    def test_a_good_file_is_not_taken_for_a_pickle(self, tmp_path):
        # A header of 0x0280 bytes begins with the two bytes of a pickle of protocol 2.
        header = json.dumps({"a": tensor()}).encode().ljust(0x280)
        (tmp_path / "x").write_bytes(safetensors_bytes(header, bytes(8)))
        assert looks_like(tmp_path / "x") is None
        assert read_header(tmp_path / "x")[0]["a"].shape == (2,)

    @pytest.mark.parametrize(
        "key, value, where",
        [
            ("auto_map", {"AutoModel": "modeling_x.X"}, "auto_map"),
            ("_target_", "os.system", "_target_"),
            ("extra", {"deep": [{"class_path": "x.Y"}]}, "extra.deep[0].class_path"),
            ("bos_token_id", "!!python/object/apply:os.system ['true']", "bos_token_id"),
        ],
    )
    def test_d13_keys_that_name_code(self, folder, key, value, where):
        edit_json(folder / "config.json", lambda table: table.update({key: value}))
        refused(
            folder, 4, f"config.json: key '{where}' names code to import; take the key out; remote code is never run"
        )

    @pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tar.gz", "x.tgz"])
    def test_d21_archives_are_not_unpacked(self, tmp_path, name):
        import tarfile

        path = tmp_path / name
        if name.endswith("zip"):
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("../outside", "x")
        else:
            with tarfile.open(path, "w" if name.endswith("tar") else "w:gz") as archive:
                (tmp_path / "member").write_text("x")
                archive.add(tmp_path / "member", "../outside")
        refused(path, 4, "archive; a model folder is expected; unpack it yourself")
        assert not (tmp_path.parent / "outside").exists()

    @pytest.mark.parametrize("name", ["org/name", "org/name@main", "hf://org/name", "https://example.org/org/name"])
    def test_d14_a_remote_name_needs_its_commit(self, tmp_path, monkeypatch, name):
        monkeypatch.chdir(tmp_path)
        refused(name, 2, f"no folder {name!r}; as a remote name it lacks the commit", "40 hex digits of the commit")

    def test_d14_g20_with_the_commit_nothing_is_fetched(self, tmp_path, monkeypatch):
        import socket

        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(socket, "socket", lambda *a, **k: pytest.fail("the network was touched"))
        refused(f"org/name@{'0a' * 20}", 5, "downloading is not built in; fetch the folder", "models import")


class TestConfig:
    @pytest.mark.parametrize("key, close", [("hiden_size", "hidden_size"), ("rms_norm_epsilon", "rms_norm_eps")])
    def test_d16_unknown_key_names_the_nearest(self, folder, key, close):
        edit_json(folder / "config.json", lambda table: table.update({key: 1}))
        refused(folder, 2, "config.json", f"unknown key {key!r}; did you mean {close!r}?")

    @pytest.mark.parametrize(
        "key, value, words",
        [
            ("hidden_size", "32", "hidden_size: is '32', must be a whole number"),
            ("hidden_size", 32.0, "hidden_size: is 32.0, must be a whole number"),
            ("hidden_size", True, "hidden_size: is True, must be a whole number"),
            ("hidden_size", 0, "hidden_size: is 0, must be a whole number of at least 1"),
            ("intermediate_size", -4, "intermediate_size: is -4, must be a whole number of at least 1"),
            ("num_attention_heads", 5, "hidden_size: is 32, must be a multiple of num_attention_heads (5)"),
            ("mamba_n_groups", 3, "mamba_n_heads: is 2, must be a multiple of mamba_n_groups (3)"),
            ("layer_types", ["mamba", "attention"], "num_hidden_layers: is 3, but layer_types has 2 entries"),
            ("layer_types", ["mamba", "rnn", "mamba"], "layer_types[1]: is 'rnn', must be 'mamba' or 'attention'"),
            ("time_step_limit", [0.1, 0.01], "time_step_limit"),
            ("vocab_size", 4, "vocab_size: is 4, must be 12 or more"),
        ],
    )
    def test_d17_wrong_values(self, folder, key, value, words):
        edit_json(folder / "config.json", lambda table: table.update({key: value}))
        refused(folder, 2, "config.json", words)

    def test_d17_a_missing_key(self, folder):
        edit_json(folder / "config.json", lambda table: table.pop("mamba_d_state"))
        refused(folder, 2, "config.json: key 'mamba_d_state' is missing")

    @pytest.mark.parametrize(
        "text, words",
        [
            ('{"hidden_size": 1, "hidden_size": 2}', "key 'hidden_size' stands twice"),
            ('{"rms_norm_eps": NaN}', "NaN is not a number in JSON"),
            ('{"rms_norm_eps": -Infinity}', "-Infinity is not a number in JSON"),
            ("[" * 10_000 + "]" * 10_000, "nested too deeply"),
            ('{"a": ' * 10_000 + "1" + "}" * 10_000, "nested too deeply"),
            ('{"a": "' + "x" * 9_000_000 + '"}', "bytes of JSON, at most"),
            ('{"hidden_size": ' + "9" * 5000 + "}", "config.json"),
            ("{", "not JSON"),
            ("[1, 2]", "must hold one table"),
        ],
    )
    def test_d18_json_that_is_not_sound(self, folder, text, words):
        (folder / "config.json").write_text(text)
        write_manifest(folder)
        refused(folder, 2, "config.json", words)

    def test_d18_in_the_manifest_it_is_damage(self, folder):
        for text in ('{"a": 1, "a": 2}', "{}", '{"files": {"x": 3}}', "null", "[" * 10_000):
            (folder / "manifest.json").write_text(text)
            refused(folder, 4, "manifest.json: the manifest is damaged")

    def test_d19_newer_manifest(self, folder):
        table = json.loads((folder / "manifest.json").read_text())
        table.update(format=2, hybridna="9.1.0")
        (folder / "manifest.json").write_text(json.dumps(table))
        now = checkpoint.version()
        refused(folder, 4, f"written by hybridna 9.1.0 (format 2), this is {now} (format 1); upgrade hybridna")

    def test_d19_newer_config_or_tokenizer(self, folder):
        edit_json(folder / "config.json", lambda table: table.update(hybridna_format=2, new_key=1))
        refused(folder, 4, "config.json: written by hybridna", "(format 2)", "upgrade hybridna")
        edit_json(folder / "config.json", lambda table: (table.update(hybridna_format=1), table.pop("new_key")))
        edit_json(folder / "tokenizer.json", lambda table: table.update(version=2, merges=[]))
        refused(folder, 4, "tokenizer.json: tokenizer version 2 is newer than 1; upgrade hybridna")

    def test_errors_in_config_are_never_data_errors(self, folder):
        edit_json(folder / "config.json", lambda table: table.update(layer_types=[]))
        with pytest.raises(UsageError) as caught:
            read_description(folder)
        assert not isinstance(caught.value, DataError)


class TestLinksAndPermissions:
    def test_d22_links_inside_the_folder(self, folder):
        (folder / "blobs").mkdir()
        os.rename(folder / "model.safetensors", folder / "blobs" / "w")
        os.symlink("blobs/w", folder / "model.safetensors")
        write_manifest(folder)
        load_model(folder, device="cpu")

    def test_d22_a_hub_cache(self, folder, tmp_path):
        cache = tmp_path / "models--org--name"
        (cache / "blobs").mkdir(parents=True)
        snapshot = cache / "snapshots" / ("0" * 40)
        snapshot.mkdir(parents=True)
        for i, path in enumerate(sorted(folder.iterdir())):
            shutil.copy(path, cache / "blobs" / f"b{i}")
            os.symlink(f"../../blobs/b{i}", snapshot / path.name)
        load_model(snapshot, device="cpu")

    @pytest.mark.parametrize("name", ["model.safetensors", "config.json", "manifest.json"])
    def test_d22_links_outside(self, folder, tmp_path, name):
        os.rename(folder / name, tmp_path / "outside")
        os.symlink(tmp_path / "outside", folder / name)
        refused(
            folder, 4, f"{name}: is a link out of the model folder, to {tmp_path / 'outside'}; copy the file itself"
        )

    def test_a_manifest_that_names_files_outside(self, folder):
        for name in ("../toy/config.json", "/etc/hostname"):
            seal(folder, lambda files, name=name: (files.clear(), files.update({name: {"size": 1, "sha256": "0"}})))
            refused(folder, 4, f"manifest.json: names '{name}', which leads out of the folder")

    def test_weights_that_the_manifest_does_not_list(self, folder):
        seal(folder, lambda files: files.pop("model.safetensors"))
        refused(folder, 4, "model.safetensors is not in the manifest")

    def test_config_that_the_manifest_does_not_list(self, folder):
        seal(folder, lambda files: files.pop("config.json"))
        refused(folder, 4, "config.json is not in the manifest")

    @pytest.mark.skipif(os.geteuid() == 0, reason="the superuser reads everything")
    def test_d23_unreadable_as_a_user(self, folder):
        (folder / "model.safetensors").chmod(0)
        refused(folder, 5, "model.safetensors: not readable (owner", "mode 0000); ask its owner")

    def test_d23_the_message_names_owner_and_mode(self, folder, monkeypatch):
        import builtins

        (folder / "model.safetensors").chmod(0o600)
        opened = builtins.open

        def deny(path, *args, **kwargs):
            if str(path).endswith("model.safetensors"):
                raise PermissionError(errno.EACCES, "Permission denied")
            return opened(path, *args, **kwargs)

        monkeypatch.setattr(builtins, "open", deny)
        refused(folder, 5, "model.safetensors: not readable (owner", "mode 0600); ask its owner for read permission")


class TestDevice:
    def test_g1_cuda_that_is_not_there(self, toy_model_folder, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        for device in ("cuda", "cuda:3"):
            with pytest.raises(
                SystemFault, match=f"no device {device} \\(0 CUDA devices are there\\); use --device cpu"
            ):
                load_model(toy_model_folder, device=device)
        assert choose_device("auto").type == "cpu"

    @pytest.mark.parametrize("device", ["gpu", "cuda:x", "mps", ""])
    def test_unknown_device(self, toy_model_folder, device):
        with pytest.raises(UsageError, match="is unknown; one of auto, cpu, cuda"):
            load_model(toy_model_folder, device=device)

    def test_unknown_dtype(self, toy_model_folder):
        refused(toy_model_folder, 2, "dtype 'float23' is unknown; did you mean 'float32'?", dtype="float23")
        refused(toy_model_folder, 2, "dtype 'qqqq' is unknown; float32, bfloat16", dtype="qqqq")


def test_bundled_name_goes_before_a_folder_of_that_name(folder, tmp_path, monkeypatch):
    bundled = tmp_path / "bundled"
    bundled.mkdir()
    save_model(bundled / "base", random_model(5))
    monkeypatch.setattr(checkpoint, "BUNDLED", bundled)
    monkeypatch.chdir(tmp_path)
    os.rename(folder, tmp_path / "base")
    assert torch.equal(load_model("base", device="cpu").lm_head.weight, random_model(5).lm_head.weight)
    assert torch.equal(load_model("./base", device="cpu").lm_head.weight, random_model().lm_head.weight)
    assert checkpoint.bundled_names() == ["base"]


def test_python_without_asserts_g21(folder):
    raw = bytearray((folder / "model.safetensors").read_bytes())
    raw[-1] ^= 1
    (folder / "model.safetensors").write_bytes(raw)
    code = f"from hybridna_core.checkpoint import load_model; load_model({str(folder)!r}, device='cpu')"
    done = subprocess.run([sys.executable, "-O", "-c", code], capture_output=True, text=True)
    assert "checksum differs" in done.stderr


def test_a_notice_is_said_at_each_use(tmp_path, caplog):
    """One line, without what a terminal would obey; nothing of a file that the manifest does not list."""
    model, text = random_model(), "simulated \x1b[31mdata\x1b[0m only" + "!" * 400 + "\nsecond line\n"
    folder = save_model(tmp_path / "toy", model, extra_files={"notice.txt": text})
    load_model(folder, device="cpu")
    (record,) = caplog.records
    assert record.getMessage().startswith("toy: simulated [31mdata[0m only!") and record.kind == "notice"
    assert "second" not in record.getMessage() and len(record.getMessage()) <= 305
    notice = read_notice(folder, verify_manifest(folder))
    assert len(notice) <= 300 and f"notice      {notice}" in list(show_model(folder).lines())
    caplog.clear()
    plain = save_model(tmp_path / "plain", model)
    (plain / "notice.txt").write_text("not listed")
    load_model(plain, device="cpu")
    assert not caplog.records and not show_model(plain).notice
