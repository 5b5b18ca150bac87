"""`hybridna models`: list, show, import, check; exit codes, streams, reports, and planted faults that check finds.

toy folder or a model taught the probes -> command line -> exit code, stdout, JSON
"""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from published import publish, publish_headers, publish_model, published_config
from toys import SMALL, random_model

from hybridna_cli.app import run
from hybridna_core import checkpoint
from hybridna_core.checkpoint import load_model, save_model
from hybridna_core.config import PRESETS, ModelConfig
from hybridna_core.hf_check import read_probes
from hybridna_core.model.hybrid import HybridLM
from hybridna_core.task_files import save_labelled_model
from hybridna_core.tokenizer import LabelPosition, encode


@pytest.fixture
def call(tmp_path, capfd, monkeypatch):
    """Run `hybridna models ...` in an empty folder; return exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*argv):
        code = run(["models", *map(str, argv)])
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture(scope="session")
def taught():
    """A small model that has learnt the default probes by heart, so that every wrong reading of it is worse."""
    config = ModelConfig(
        32, 48, ("mamba", "attention", "mamba"), 4, 2, mamba_n_heads=4, mamba_d_state=16, mamba_d_head=16,
        max_position_embeddings=2048, bos_token_id=None,
    )  # fmt: skip
    model = HybridLM(config, seed=0)
    starts = [(p, i) for p in read_probes() for i in range(0, len(p.sequence) - 96, 48)]
    windows = torch.stack([torch.tensor(encode(p.sequence)[i : i + 96]).long() for p, i in starts])
    steps = 150
    optimizer = torch.optim.AdamW(model.parameters(), lr=8e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 8e-3, total_steps=steps)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        batch = windows[torch.randint(0, len(windows), (24,), generator=generator)]
        logits = model.head(model(batch)[0])
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return model.eval().requires_grad_(False)


def permuted(model, letters):
    """Return the tensors of a model with embedding and head rows moved, so that ids 7 to 10 mean other letters."""
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rows = [7 + "ACGT".index(c) for c in letters]
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name][7:11] = model.state_dict()[name][rows]
    return tensors


class TestList:
    def test_bundled_models(self, call, tmp_path, monkeypatch):
        bundled = tmp_path / "bundled"
        bundled.mkdir()
        save_model(bundled / "one", random_model())
        save_model(bundled / "two", random_model())
        (bundled / "probes.tsv").write_text("x")
        os.truncate(bundled / "two" / "model.safetensors", 100)
        monkeypatch.setattr(checkpoint, "BUNDLED", bundled)
        code, out, err = call("list")
        assert (code, err) == (0, "")
        elements = sum(p.numel() for p in random_model().parameters())
        lines = out.splitlines()
        assert lines[0].split() == ["name", "elements", "layers", "width", "context", "labels", "state"]
        assert lines[1].split() == ["one", f"{elements:,}", "3", "32", "4,096", "none", "ok"]
        assert lines[2].startswith("two") and "truncated: 100 bytes there" in lines[2]

    def test_what_ships_is_sound(self, call):
        code, out, _ = call("list")
        assert code == 0
        assert [line.split()[0] for line in out.splitlines()[1:]] == checkpoint.bundled_names()
        assert all(line.endswith("ok") for line in out.splitlines()[1:])


class TestShow:
    def test_own_folder(self, call, toy_model_folder):
        code, out, err = call("show", toy_model_folder)
        assert (code, err) == (0, "")
        facts = dict(line.split(maxsplit=1) for line in out.split("\n\n")[0].splitlines())
        assert facts["name"] == "toy"
        assert facts["folder"] == f"{toy_model_folder} (ours)"
        assert facts["layers"] == "3, attention at 1 (counted from 0)"
        assert facts["mamba"] == "2 heads x 32, state 1 groups x 8"
        assert facts["weights"] == f"SHA-256 {checkpoint.sha256(toy_model_folder / 'model.safetensors')}"
        assert (toy_model_folder / "README.md").read_text().strip() in out

    def test_the_label_scheme(self, call, tmp_path):
        positions = [LabelPosition("complex", 5, "quintile of expression in YPD"), LabelPosition("defined", 5)]
        frequencies = {"00": 7, "44": 1200, "33": 7}
        save_labelled_model(
            tmp_path / "yeast", random_model(labels=positions), frequencies, length=80, card="# y", extra={}
        )
        code, out, _ = call("show", tmp_path / "yeast")
        lines = out.splitlines()
        assert code == 0 and "vocabulary  22; labels: 2 digits (complex 0-4, defined 0-4)" in lines
        at = lines.index("digit 1     complex: 0-4, quintile of expression in YPD")
        assert lines[at + 1 : at + 5] == [
            "digit 2     defined: 0-4", "length      80 bases, as most sequences of the training",
            "trained on  1,214 sequences with 3 of 25 labels",
            "            44 (1,200), 00 (7), 33 (7)",
        ]  # fmt: skip

    def test_json(self, call, toy_model_folder, tmp_path):
        code, out, _ = call("show", toy_model_folder, "--json", "-")
        assert code == 0
        table = json.loads(out)
        assert table["kind"] == "ours"
        assert table["config"]["hidden_size"] == 32
        assert call("show", toy_model_folder, "--json", "x.json")[0] == 0
        assert json.loads((tmp_path / "x.json").read_text()) == table
        code, _, err = call("show", toy_model_folder, "--json", "x.json")
        assert code == 2 and "x.json: the output exists already; give --force" in err

    def test_published_folder_of_official_size(self, call, tmp_path):
        publish_headers(tmp_path / "p", PRESETS["7b"], {}, shards=2)
        code, out, _ = call("show", tmp_path / "p")
        assert code == 0
        assert "6,253,397,504 elements: matches official 7B" in out
        assert "ASSUMED mamba_n_groups = 1" in out
        assert "layers      32, attention at 4, 12, 20, 28 (counted from 0)" in out

    def test_damage_and_absence(self, call, toy_model_folder, tmp_path):
        folder = shutil.copytree(toy_model_folder, tmp_path / "toy")
        raw = bytearray((folder / "model.safetensors").read_bytes())
        raw[-5] ^= 16
        (folder / "model.safetensors").write_bytes(raw)
        code, out, err = call("show", folder)
        assert (code, out) == (4, "")
        assert err.startswith(f"hybridna models show: error: {folder}/model.safetensors: checksum differs")
        assert err.count("\n") == 1
        code, _, err = call("show", "nowhere")
        assert code == 4 and "nowhere: no such model folder" in err
        code, _, err = call("show", "org/name")
        assert code == 2 and "lacks the commit" in err


class TestImport:
    def test_outputs_stay_equal(self, call, tmp_path):
        model = random_model(bos_token_id=None)
        publish_model(tmp_path / "p", model)
        code, out, err = call("import", "p", "-o", "ours", "--json", "report.json", "--summary-json", "s.json")
        assert code == 0, err
        assert "tensors fit; stored as float32" in out
        assert "ASSUMED token ids" in out
        again = load_model("ours", device="cpu")
        assert all(torch.equal(t, again.state_dict()[n]) for n, t in model.state_dict().items())
        assert again.config == model.config
        report = json.loads((tmp_path / "report.json").read_text())
        assert report["ok"] is True
        assert json.loads((tmp_path / "ours" / "import_report.json").read_text()) == report
        summary = json.loads((tmp_path / "s.json").read_text())
        assert summary["digest"] == again.digest
        assert summary["loaded"] == len(model.state_dict())
        card = (tmp_path / "ours" / "README.md").read_text()
        assert "Imported from the published folder `p`" in card
        assert checkpoint.sha256(tmp_path / "p" / "model.safetensors") in card

    @pytest.mark.parametrize("kind, due", [(torch.bfloat16, "BF16"), (torch.float32, "F32"), (torch.float16, "F32")])
    def test_stored_precision_is_kept(self, call, tmp_path, kind, due):
        model = random_model(bos_token_id=None)
        tensors = {n: t.to(kind) for n, t in model.state_dict().items()}
        publish(tmp_path / "p", tensors, published_config(model.config))
        assert call("import", "p", "-o", "ours", "-q")[0] == 0
        headers = checkpoint.read_headers(tmp_path / "ours")
        assert headers["model.layers.0.mamba.in_proj.weight"].dtype == due
        again = load_model("ours", device="cpu")
        assert all(torch.equal(t.float(), again.state_dict()[n]) for n, t in tensors.items())

    def test_a_misfit_prints_the_report_and_writes_nothing(self, call, tmp_path):
        model = random_model()
        tensors = dict(model.state_dict())
        del tensors["model.final_layernorm.weight"]
        tensors["score.weight"] = torch.zeros(2, 32)
        publish(tmp_path / "p", tensors, published_config(model.config))
        code, out, err = call("import", "p", "-o", "ours", "--json", "report.json")
        assert code == 4
        assert "MISSING model.final_layernorm.weight [32]" in out
        assert "UNEXPECTED score.weight [2, 32]" in out
        assert "error: p: tensors do not fit: 1 missing, 1 unexpected" in err
        assert not (tmp_path / "ours").exists()
        report = json.loads((tmp_path / "report.json").read_text())
        assert report["ok"] is False
        assert report["missing"] == [{"key": "model.final_layernorm.weight", "expected": [32]}]
        assert call("import", "p", "-o", "ours", "--allow-partial", "-q")[0] == 0
        load_model("ours", device="cpu")

    def test_conflicts_need_a_flag(self, call, tmp_path):
        model = random_model(bos_token_id=None)
        publish_model(tmp_path / "p", model, mamba_n_groups=3)
        code, out, err = call("import", "p", "-o", "ours")
        assert code == 4
        assert "CONFLICT mamba_n_groups: config.json has 3, used 1" in out
        assert "config.json has mamba_n_groups 3" in err
        assert call("import", "p", "-o", "ours", "--n-groups", "2", "-q")[0] == 0
        assert load_model("ours", device="cpu").config.mamba_n_groups == 2
        assert call("import", "p", "-o", "other", "--accept-conflicts", "-q")[0] == 0
        assert load_model("other", device="cpu").config.mamba_n_groups == 1
        code, _, err = call("import", "p", "-o", "third", "--n-groups", "7")
        assert code == 2 and "--n-groups: is 7, the shapes allow 1, 2" in err

    def test_targets(self, call, tmp_path, toy_model_folder):
        publish_model(tmp_path / "p", random_model())
        (tmp_path / "thesis").mkdir()
        (tmp_path / "thesis" / "a.tex").write_text("x")
        for argv, due, words in (
            (("p", "-o", "absent/ours"), 5, "no such folder"),
            (("p", "-o", "thesis", "--force"), 2, "no model folder of ours; not replaced"),
            (("p", "-o", "p", "--force"), 2, "no model folder of ours; not replaced"),
            ((toy_model_folder, "-o", "ours"), 2, "is a model folder of ours already"),
            (("p",), 2, "missing option '-o'"),
            (("p", "-o", "ours", "--dtype", "int4"), 2, "dtype 'int4' is unknown; one of auto, float32, bfloat16"),
            (("p", "-o", "ours", "--json", "absent/r.json"), 5, "does not exist"),
        ):
            code, _, err = call("import", *argv)
            assert (code, words in err) == (due, True), err
        assert call("import", "p", "-o", "ours", "-q")[0] == 0
        assert call("import", "p", "-o", "ours", "-q")[0] == 2
        assert call("import", "p", "-o", "ours", "-q", "--force")[0] == 0
        assert sorted(p.name for p in tmp_path.iterdir()) == ["ours", "p", "thesis"]

    def test_nonfinite(self, call, tmp_path):
        tensors = {n: t.clone() for n, t in random_model().state_dict().items()}
        tensors["lm_head.weight"][0, 0] = float("inf")
        publish(tmp_path / "p", tensors, published_config(SMALL))
        code, _, err = call("import", "p", "-o", "ours", "-q")
        assert code == 4 and "lm_head.weight: 1 of 384 weights are NaN or infinite; --allow-nonfinite" in err
        assert call("import", "p", "-o", "ours", "-q", "--allow-nonfinite")[0] == 0


class TestCheck:
    """Faults planted in a model that knows the probes by heart."""

    def test_a_sound_model(self, call, taught, tmp_path):
        publish_model(tmp_path / "p", taught)
        before = {path.name: path.read_bytes() for path in (tmp_path / "p").iterdir()}
        code, out, err = call("check", "p", "--device", "cpu", "--json", "check.json")
        assert code == 0, err
        assert "better than a uniform guess" in out
        assert "no other setting tried does better: the model is read as it was trained" in out
        assert out.rstrip().endswith("nothing was changed")
        rows = [line.split() for line in out.splitlines()]
        heading = next(i for i, row in enumerate(rows) if row[:1] == ["groups"])
        assert rows[heading + 1][:5] == ["1", "4", "ACGT", "none", "1"]
        table = json.loads((tmp_path / "check.json").read_text())
        assert table["verdict"]["suspicious"] is False
        assert table["verdict"]["default"]["nats"] < 1.2
        assert table["probes"] == 8
        assert {path.name: path.read_bytes() for path in (tmp_path / "p").iterdir()} == before

    @pytest.mark.parametrize("letters", ["TGCA", "CATG"])
    def test_permuted_letters(self, call, taught, tmp_path, letters):
        publish(tmp_path / "p", permuted(taught, letters), published_config(taught.config))
        code, out, _ = call("check", "p", "--device", "cpu", "--json", "check.json")
        assert code == 0
        assert f"with letters {letters}" in out
        verdict = json.loads((tmp_path / "check.json").read_text())["verdict"]
        assert verdict["suspicious"] is True
        assert verdict["best_differs_in"] == [f"letters {letters}"]
        assert verdict["better_than_uniform"] is True
        assert verdict["default"]["nats"] > 1.3863

    @pytest.mark.parametrize("groups", [2, 4])
    def test_wrong_groups(self, call, taught, tmp_path, groups):
        publish_model(tmp_path / "p", taught, mamba_n_groups=groups, mamba_d_state=16 // groups)
        code, out, _ = call("check", "p", "--device", "cpu", "--json", "check.json")
        assert code == 0
        verdict = json.loads((tmp_path / "check.json").read_text())["verdict"]
        assert verdict["best_differs_in"] == ["n_groups 1"]
        assert verdict["suspicious"] is True
        assert "with n_groups 1" in out

    def test_an_impossible_group_count_is_searched_all_the_same(self, call, taught, tmp_path):
        publish_model(tmp_path / "p", taught, mamba_n_groups=3)
        code, out, _ = call("check", "p", "--device", "cpu", "-q")
        assert code == 0
        assert "CONFLICT mamba_n_groups: config.json has 3, used 1" in out
        assert "read as it was trained" in out

    def test_wrong_attention_heads(self, call, taught, tmp_path):
        publish_model(tmp_path / "p", taught, num_attention_heads=2, num_key_value_heads=1)
        code, _, _ = call("check", "p", "--device", "cpu", "-q", "--json", "check.json")
        assert code == 0
        assert json.loads((tmp_path / "check.json").read_text())["verdict"]["best_differs_in"] == ["attention_heads 4"]

    def test_own_folder_and_streams(self, call, taught, tmp_path):
        save_model(tmp_path / "ours", taught)
        code, out, err = call("check", "ours", "--device", "cpu", "--json", "-")
        assert code == 0
        assert json.loads(out)["report"] is None
        assert "hybridna models check: settings" in err
        code, _, err = call("check", "ours", "--n-groups", "2")
        assert code == 2 and "goes with published folders only" in err

    def test_a_misfit_is_refused(self, call, taught, tmp_path):
        tensors = dict(taught.state_dict())
        del tensors["lm_head.weight"]
        publish(tmp_path / "p", tensors, published_config(taught.config))
        code, out, err = call("check", "p", "--device", "cpu")
        assert code == 4 and "1 missing, first lm_head.weight" in err
        assert "MISSING lm_head.weight [12, 32]" in out

    def test_g1_no_cuda(self, call, toy_model_folder, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        code, _, err = call("check", toy_model_folder, "--device", "cuda")
        assert code == 5
        assert "no device cuda (0 CUDA devices are there); use --device cpu" in err


@pytest.fixture(scope="module")
def base():
    return load_model("base", device="cpu")


class TestCheckOnTheBundledModel:
    """The same faults planted in the model that ships."""

    def test_sound(self, call, base, tmp_path):
        code, _, _ = call("check", "base", "--device", "cpu", "-q", "--json", "check.json")
        assert code == 0
        verdict = json.loads((tmp_path / "check.json").read_text())["verdict"]
        assert verdict["better_than_uniform"] is True
        assert [d for d in verdict["best_differs_in"] if not d.startswith("before")] == []

    def test_permuted_letters(self, call, base, tmp_path):
        publish(tmp_path / "p", permuted(base, "GTAC"), published_config(base.config))
        assert call("check", "p", "--device", "cpu", "-q", "--json", "check.json")[0] == 0
        assert json.loads((tmp_path / "check.json").read_text())["verdict"]["best_differs_in"] == ["letters GTAC"]

    def test_wrong_groups(self, call, base, tmp_path):
        state = base.config.mamba_d_state
        publish_model(tmp_path / "p", base, mamba_n_groups=2, mamba_d_state=state // 2)
        assert call("check", "p", "--device", "cpu", "-q", "--json", "check.json")[0] == 0
        assert json.loads((tmp_path / "check.json").read_text())["verdict"]["best_differs_in"] == ["n_groups 1"]


class TestCommandLine:
    @pytest.mark.parametrize(
        "argv, words",
        [
            (["models", "lst"], "no command called 'lst'; did you mean 'list'?"),
            (["models", "check", "x", "--exhaustiv"], "no option called '--exhaustiv'; did you mean '--exhaustive'?"),
            (["models", "show"], "missing argument 'NAME'"),
        ],
    )
    def test_g27(self, argv, words, capfd):
        assert run(argv) == 2
        assert words in capfd.readouterr().err

    def test_list_and_show_need_no_torch(self, toy_model_folder):
        code = (
            "import sys; from hybridna_cli.app import run;"
            f"assert run(['models', 'list']) == 0 and run(['models', 'show', {str(toy_model_folder)!r}]) == 0;"
            "sys.exit('torch' in sys.modules)"
        )
        assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0
