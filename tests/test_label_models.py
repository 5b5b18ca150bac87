"""The bundled label models and the script that makes them: tables without leaks, cards, and what they generate.

made table -> parts by group; bundled folder -> card, size, notice; label -> designs -> the simulated assay's activity
"""

import collections
import csv
import gzip
import json

import numpy as np
import pytest
from test_card import load

from hybridna_core.checkpoint import BUNDLED, bundled_names, load_model, verify_manifest
from hybridna_core.commands.generate import generate_sequences, pick_model
from hybridna_core.commands.models import show_model
from hybridna_core.data.reporter import LINES, activity
from hybridna_core.model.hybrid import count_parameters

MAKER = load("make_label_models")
NAMES = [recipe.name for recipe in MAKER.RECIPES]
DEMO = "human-enhancers-demo"


def test_no_group_of_promoters_is_in_two_parts(tmp_path):
    path = tmp_path / "promoters.tsv.gz"
    columns = ("sequence80", "expr_complex", "expr_defined", "set", "group", "label", "split")
    with gzip.open(path, "wt", newline="") as handle:
        writer = csv.writer(handle, delimiter="\t")
        writer.writerow(columns)
        for i in range(600):
            # The groups that were held out are others than those of the training.
            split = "val" if i % 6 == 0 else "train"
            writer.writerow(("ACGT" * 20, 1.5, 2.5, "s", f"{split}{i // 3}", "12", split))
    rows = list(MAKER.read_yeast(path))
    parts = collections.defaultdict(set)
    for _, label, split, part, group, *values in rows:
        parts[group].add((part, split if part == "generator" else ""))
        assert (label, values) == ("12", ["1.5", "2.5"])
        assert (split == "test") == group.startswith("val")
    assert len(rows) == 600 and all(len(found) == 1 for found in parts.values())
    counts = collections.Counter(part for found in parts.values() for part, _ in found)
    assert 0.2 < counts["oracle"] / sum(counts.values()) < 0.4
    splits = collections.Counter(split for found in parts.values() for part, split in found if part == "generator")
    assert 0.05 < splits["valid"] / (splits["train"] + splits["valid"]) < 0.2 and splits["test"] == 100


def test_tables_are_written_in_two_files(tmp_path):
    rows = [("AC", "0", "train", "generator", "g", "1"), ("GT", "1", "train", "oracle", "h", "2")]
    MAKER.write_table(tmp_path / "t.tsv", ("a",), rows)
    own, other = (
        [line.split("\t") for line in (tmp_path / name).read_text().splitlines()] for name in ("t.tsv", "t.other.tsv")
    )
    assert own == [[*MAKER.COLUMNS, "a"], list(rows[0])] and other == [[*MAKER.COLUMNS, "a"], list(rows[1])]


@pytest.mark.parametrize("name", NAMES)
def test_bundled_models_are_whole_and_small(name):
    assert name in bundled_names()
    files = verify_manifest(BUNDLED / name)["files"]
    assert sum(file["size"] for file in files.values()) < 9.5e6
    about, model = show_model(name), load_model(name, device="cpu")
    assert count_parameters(model.config) < 4.5e6
    record = json.loads((BUNDLED / name / "finetune.json").read_text())
    assert record["base"] == "base" and record["rows"]["test"] > 0
    assert f"{MAKER.spell_bits(record)} bits per base" in about.card
    assert f"{record['measures']['test_label_accuracy']:.1%}" in about.card
    assert record["measures"]["test_label_accuracy"] > record["measures"]["test_commonest_label"]
    (recipe,) = [recipe for recipe in MAKER.RECIPES if recipe.name == name]
    assert [position["name"] for position in about.scheme["positions"]] == list(recipe.digits)
    assert about.scheme["length"] == recipe.length
    assert ("simulated" in about.notice) == (name == DEMO)


def test_a_label_picks_the_model_that_knows_it():
    assert {label: pick_model(label) for label in ("300", "44", "04")} == {
        "300": DEMO, "44": "yeast-promoters", "04": "yeast-promoters",
    }  # fmt: skip


@pytest.mark.parametrize("label", ["300", "030", "003"])
def test_designs_drive_the_line_of_their_label(label, caplog):
    """By the assay's exact function, against windows of the background alone, which drive no line more than another."""
    model = load_model(DEMO, device="cpu")
    assert "simulated" in caplog.text
    designs = generate_sequences(model, label=label, n=6, seed=5)
    assert {len(design.sequence) for design in designs} == {200}
    found = activity([design.sequence for design in designs]).mean(axis=0)
    own = label.index("3")
    assert LINES[int(np.argmax(found))] == LINES[own]
    assert found[own] > 1 + max(np.delete(found, own))
