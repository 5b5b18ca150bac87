"""The bundled model's card: generated parts are fresh, and the writer refuses what does not belong together."""

import importlib.util
import json
import re
import shutil
import time
from pathlib import Path

import pytest
from toys import random_model

from hybridna_core.checkpoint import load_model, save_model, verify_manifest
from hybridna_core.data.genome import open_genome
from hybridna_core.model.hybrid import count_parameters

ROOT = Path(__file__).resolve().parent.parent
BASE = ROOT / "hybridna_core" / "bundled" / "base"


def load(name):
    """Import a script of docs/."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CARD, TIMER = load("write_card"), load("time_variants")


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(BASE, tmp_path / "base"))


def test_bundled_card_is_fresh_and_listed():
    text = (BASE / "README.md").read_text(encoding="utf-8")
    assert CARD.write_card(BASE) == text, "run `make card`"
    assert {"README.md", "sources.tsv", "model.safetensors"} <= set(verify_manifest(BASE)["files"])
    assert sorted(re.findall(r"<!-- (\w+) -->", text)) == sorted(CARD.PARTS)


def test_card_says_what_was_measured():
    text = (BASE / "README.md").read_text(encoding="utf-8")
    assert f"{count_parameters(load_model('base', device='cpu').config):,} parameters" in text
    for one in json.loads((BASE / "heldout.json").read_text())["sets"]:
        row = next(line for line in text.splitlines() if f"| {one['bases']:,} | {one['model']:.4f} |" in line)
        bits = {"`base`": one["model"], "Markov": min(one["markov"]), "adaptive": one["adaptive"]}
        assert row.endswith(f"| {min(bits, key=bits.get)} |") or one["compressor"] < min(bits.values())
        assert all(f"{one['markov'][k]:.4f}" in row for k in (0, 3, 6, 9, 12))
    aurocs = json.loads((BASE / "coding.json").read_text())["aurocs"]
    shown = [one for one in aurocs if one["against"] == "stop_gained"]
    assert len(shown) == 12 and all(f"{one['auroc']:.3f} ({one['low']:.3f} to" in text for one in shown)


def test_text_by_hand_is_left_alone_and_parts_are_made_anew(folder):
    old = (folder / "README.md").read_text()
    text = old.replace("# base\n", "# base\n\nBy hand.\n", 1).replace("parameters in", "numbers in")
    (folder / "README.md").write_text(text)
    assert CARD.write_card(folder) == old.replace("# base\n", "# base\n\nBy hand.\n", 1)
    (folder / "coding.json").unlink()
    assert "Not measured (coding.json is not there)." in CARD.write_card(folder)


@pytest.mark.parametrize(
    ("name", "old", "new", "words"),
    [
        ("heldout.json", '"model_sha256": "', '"model_sha256": "0', "measured with other weights"),
        ("sources.tsv", "phix174\t", "phix\t", "no row for phix174"),
        ("README.md", "<!-- /data -->", "", "<!-- data --> has no end"),
        ("README.md", "<!-- data -->", "<!-- date -->", "no part called 'date'"),
    ],
)
def test_what_does_not_belong_together_is_refused(folder, name, old, new, words):
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new))
    with pytest.raises(SystemExit) as caught:
        CARD.write_card(folder)
    assert words in str(caught.value)


def test_time_of_a_variant_is_measured_and_shown(folder, tmp_path, capsys):
    save_model(tmp_path / "toy", random_model(1))
    call = ["--model", str(tmp_path / "toy"), "--window", "64", "--sites", "3", "--repeats", "2", "--threads", "1"]
    begun = time.perf_counter()
    TIMER.main([*call, "--json", str(folder / "speed.json")])
    taken = time.perf_counter() - begun
    table = json.loads((folder / "speed.json").read_text())
    assert 0 < table["fastest"] <= table["seconds_per_variant"] <= table["slowest"] < taken / 3
    assert capsys.readouterr().out.splitlines()[0].split("\t") == list(table)
    with pytest.raises(SystemExit, match="at most 1e-09 are wanted"):
        TIMER.main([*call, "--limit", "1e-9"])
    with pytest.raises(SystemExit, match="measured with other weights"):
        CARD.write_card(folder)
    table["model_sha256"] = load_model("base", device="cpu").digest
    (folder / "speed.json").write_text(json.dumps(table))
    assert f"{table['seconds_per_variant']:.3f} s a variant (median of 2 passes over 3 variants" in CARD.write_card(
        folder
    )


def test_variants_that_are_timed_stand_at_different_places(tmp_path):
    with open_genome(shutil.copy(ROOT / "demo" / "yeast_chrI.fa.gz", tmp_path)) as genome:
        TIMER.write_sites(genome, tmp_path / "v.vcf", 20, 1024)
        rows = [line.split("\t") for line in (tmp_path / "v.vcf").read_text().splitlines() if line[0] != "#"]
        assert len(rows) == 20 and all(genome.fetch(r[0], int(r[1]) - 1, int(r[1])) == r[3] != r[4] for r in rows)
    places = [int(row[1]) for row in rows]
    assert len(set(places)) == 20 and places == sorted(places)
