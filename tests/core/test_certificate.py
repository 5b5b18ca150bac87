"""Certificates: what is counted on each design, nearest neighbours, the table and the FASTA.

toy model -> generate -> table and FASTA read again; distances by the plain definition
"""

import itertools
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from constrained import satisfies
from plain import edit_distance
from toys import random_model

from hybridna_core.certificate import Design, Reference, certify, read_certificates, table_columns
from hybridna_core.checkpoint import load_model
from hybridna_core.commands.generate import generate, generate_sequences
from hybridna_core.constraints import parse_constraints
from hybridna_core.errors import DataError, GuardError, ModelError
from hybridna_core.metrics import jensen_shannon, kmer_spectrum, nearest, pairwise_distances
from hybridna_core.model.likelihood import read
from hybridna_core.task_files import save_labelled_model
from hybridna_core.tokenizer import LabelPosition, encode


@pytest.fixture(scope="module")
def model():
    return random_model(3, layer_types=("mamba",))


def read_table(path):
    header, *lines = path.read_text().splitlines()
    return [dict(zip(header.split("\t"), line.split("\t"), strict=True)) for line in lines]


def test_the_table_says_what_the_fasta_says_and_more(model, tmp_path):
    known = tmp_path / "known.fa"
    known.write_text(">one some words\nACGTACGTACGTACGTACGTAA\n>two\nTTTTTTTTTTTTTTTTTTTTTTTNN\n")
    out, table = tmp_path / "out.fa", tmp_path / "out.tsv"
    options = {"gc": "0.3:0.6", "forbid": "EcoRI,CA", "max_homopolymer": 4}
    generate(str(out), model=model, prompt="GATT", num_sequences=5, length=20, seed=2, table=str(table),
             reference=str(known), **options)  # fmt: skip
    rows, records = read_table(table), out.read_text().split(">")[1:]
    assert list(rows[0]) == table_columns() and len(rows) == len(records) == 5
    references = {"one": "ACGTACGTACGTACGTACGTAA", "two": "TTTTTTTTTTTTTTTTTTTTTTTNN"}
    turned = {"one": "TTACGTACGTACGTACGTACGT", "two": "NNAAAAAAAAAAAAAAAAAAAAAAA"}
    for row, record in zip(rows, records, strict=True):
        head, *lines = record.splitlines()
        (again,) = read_certificates([f">{head}", *lines])
        assert (again.name, again.sequence) == (row["name"], row["sequence"])
        assert {**row, **again.fields} == row
        sequence = row["sequence"]
        assert satisfies(sequence, 4, gc="0.3:0.6", forbid="GAATTC,CA", max_homopolymer=4)
        assert float(row["gc"]) == pytest.approx(sum(b in "GC" for b in sequence) / 24, abs=6e-4)
        assert int(row["longest_homopolymer"]) == max(len(list(run)) for _, run in itertools.groupby(sequence))
        assert (row["forbidden_sites"], row["length"], row["status"], row["label"]) == ("0", "24", "ok", ".")
        others = {other["name"]: edit_distance(sequence, other["sequence"]) for other in rows if other is not row}
        assert int(row["design_distance"]) == min(others.values()) == others[row["nearest_design"]]
        distances = {key: min(edit_distance(sequence, references[key]), edit_distance(sequence, turned[key]))
                     for key in references}  # fmt: skip
        assert int(row["reference_distance"]) == min(distances.values()) == distances[row["nearest_reference"]]
        assert (row["method"], row["seed"], row["num_beams"], row["gc_range"]) == ("sample", "2", ".", "0.3:0.6")
        assert (row["forbid"], row["prompt_bases"]) == ("EcoRI,CA", "4")
        assert row["model"] == "toy:000000000000" and row["model_sha256"] == f"{3:064x}"


def test_f14_a_prompt_that_cannot_satisfy_the_constraints_is_marked(model, tmp_path):
    prompts, out, table = tmp_path / "p.fa", tmp_path / "o.fa", tmp_path / "o.tsv"
    prompts.write_text(">good\nACG\n>bad\nAGAATTCA\n>other\nT\n")
    options = {"model": model, "prompts": str(prompts), "num_sequences": 2, "length": 12}
    summary = generate(str(out), forbid="EcoRI", table=str(table), **options)
    assert summary.marked == {"unsatisfiable": 1} and summary.sequences == 4
    heads = [line.split()[:2] for line in out.read_text().splitlines() if line.startswith(">")]
    assert heads == [[">good_1", "status=ok"], [">good_2", "status=ok"], [">bad", "status=unsatisfiable"],
                     [">other_1", "status=ok"], [">other_2", "status=ok"]]  # fmt: skip
    rows = read_table(table)
    assert [row["name"] for row in rows] == ["good_1", "good_2", "bad", "other_1", "other_2"]
    assert rows[2]["status"] == "unsatisfiable" and set(rows[2].values()) == {"bad", "unsatisfiable", "AGAATTCA", "."}
    # Neighbours are those of the same prompt.
    assert rows[0]["nearest_design"] == "good_2" and rows[3]["nearest_design"] == "other_2"
    with pytest.raises(DataError, match="none of 3 prompts can be used \\(unsatisfiable\\)"):
        generate(str(tmp_path / "x.fa"), require="GGGGG@1", **options)


def test_a_single_design_has_no_neighbour():
    (alone,) = certify("x", [Design("ACGT", -3.0, 0.5, "44", 0, 0.25)], None, None, {"method": "beam"})
    assert "nearest_design" not in alone.fields
    assert alone.to_record() == (
        ">x_1 status=ok label=44 log_prob=-3.0000 posterior=0.25 length=4 gc=0.500 longest_homopolymer=1 "
        "forbidden_sites=0 method=beam\nACGT\n"
    )


def test_words_that_are_no_fields_are_left_out():
    lines = [">a some words label=44 gc=0.5 x=1=2\n", "AC\n", "GT\n", ">\n", "TT\n", ">b\n", "GG\n"]
    assert [tuple(one) for one in read_certificates(lines)] == [
        ("a", "ACGT", {"label": "44", "gc": "0.5", "x": "1=2"}), ("", "TT", {}), ("b", "GG", {}),
    ]  # fmt: skip


def test_blanks_in_a_value_come_back_from_the_fasta():
    how = {"model": "/data/my models/100% yeast", "method": "sampling"}
    (made,) = certify("d", [Design("ACGTAC", -3.0, 0.5, None, 0)], None, None, how)
    record = made.to_record()
    assert " model=/data/my%20models/100%25%20yeast" in record.splitlines()[0]
    (found,) = read_certificates(record.splitlines(keepends=True))
    assert found.fields["model"] == how["model"] and found.fields["method"] == "sampling"
    assert set(found.fields) == set(made.fields)


def test_a_design_that_breaks_a_constraint_stops_the_run():
    with pytest.raises(GuardError, match="x_1: does not satisfy --forbid"):
        certify("x", [Design("GGAATTCC", -3.0, 0.5, None, 0)], parse_constraints(forbid="EcoRI"), None, {})


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """A model of the labels 00 to 22, trained on four of them."""
    folder = tmp_path_factory.mktemp("models") / "labelled"
    known = random_model(6, layer_types=("mamba",), labels=[LabelPosition("a", 3), LabelPosition("b", 3)])
    save_labelled_model(folder, known, FREQUENCIES, length=12, card="# x", extra={})
    return load_model(folder)


FREQUENCIES = {"00": 50, "11": 30, "22": 19, "02": 1}


def test_the_posterior_of_the_label_by_hand(labelled):
    for design in generate_sequences(labelled, label="11", prompt="ACG", n=3, length=9):
        joint = {}
        for label, count in FREQUENCIES.items():
            first, second = (int(digit) for digit in label)
            tokens = torch.tensor([[2, 12 + first, 15 + second, *encode(design.sequence).tolist()]])
            joint[label] = count * math.exp(float(read(labelled, tokens)[0][0, 3:].sum()))
        assert design.posterior == pytest.approx(joint["11"] / sum(joint.values()), rel=1e-5)
    assert generate_sequences(labelled, n=1, length=9)[0].posterior is None


def test_the_length_after_a_label_is_that_of_the_training(labelled, tmp_path):
    (design,) = generate_sequences(labelled, label="11", n=1)
    assert len(design.sequence) == 12
    folder = Path(shutil.copytree(labelled.folder, tmp_path / "labelled"))
    generate(str(tmp_path / "o.fa"), model=folder, label="11", num_sequences=1)
    assert len((tmp_path / "o.fa").read_text().splitlines()[1]) == 12
    assert len(generate_sequences(labelled, label="11", n=1, template="NNNN")[0].sequence) == 4
    assert len(generate_sequences(labelled, n=1, top_k=1)[0].sequence) == 200
    scheme = json.loads((folder / "labels.json").read_text())
    (folder / "labels.json").write_text(json.dumps(scheme | {"length": "12"}))
    with pytest.raises(ModelError, match="length '12' is no number of bases"):
        generate(str(tmp_path / "p.fa"), model=folder, label="11")


def test_a_label_that_no_training_row_had(labelled, tmp_path, caplog):
    generate(str(tmp_path / "o.fa"), model=labelled, label="20", num_sequences=1, length=9)
    assert "label=20" in (tmp_path / "o.fa").read_text() and " posterior=0 " in (tmp_path / "o.fa").read_text()
    assert "no sequence that the model was trained on has the label 20; its posterior is 0" in caplog.text


def test_nearest_and_pairs():
    assert nearest("ACGT", ["AAAA", "ACGA", "TCGT"]) == (1, 1)
    assert nearest("ACGT", ["ACGT", "AAGT"], skip=0) == (1, 1)
    assert nearest("ACGT", []) is None
    assert Reference([("a", "AAAA"), ("b", "ACCC")]).nearest("GGGT") == ("b", 0)
    texts = ["ACGT", "ACG", "TTTT", "CGTA"]
    expected = [edit_distance(a, b) for a, b in itertools.combinations(texts, 2)]
    assert pairwise_distances(texts).tolist() == expected


def test_spectra():
    spectrum = kmer_spectrum(["ACGT", "AC", "ANAC", "A"], 2)
    assert spectrum.sum() == pytest.approx(1) and spectrum[1] == pytest.approx(3 / 5)
    assert jensen_shannon(spectrum, spectrum) == 0
    assert jensen_shannon(kmer_spectrum(["AA"], 2), kmer_spectrum(["CC"], 2)) == pytest.approx(1)
