"""`hybridna evaluate` from the command line: the table, exit codes and messages."""

import json
import math

import pytest
from toys import random_model

from hybridna_cli.app import run
from hybridna_core.checkpoint import save_model

SEQUENCE = "ACGTTGCAAC" * 60
RUN = """
[model]
preset = "tiny"
[[stage]]
context_length = 64
steps = 1
batch_tokens = 64
[[species]]
name = "ant"
fasta = "g.fa"
valid = ["held"]
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "toy"
    save_model(folder, random_model(max_position_embeddings=65))
    return str(folder)


@pytest.fixture
def call(tmp_path, model, capfd, monkeypatch):
    """Run `evaluate genome` on a run file; return exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "g.fa").write_text(f">train\n{SEQUENCE}\n>held\n{SEQUENCE[:200]}\n>unknown\n{'N' * 200}\n")

    def call(*options, text=RUN, path="run.toml"):
        (tmp_path / "run.toml").write_text(text)
        code = run(["evaluate", "genome", path, "-m", model, "--device", "cpu", "--max-order", "2", "-q", *options])
        streams = capfd.readouterr()
        assert "Traceback" not in streams.err
        return code, streams.out, streams.err

    return call


def test_table_and_summary(call, tmp_path):
    code, out, _ = call("--summary-json", "s.json")
    assert code == 0
    header, row = (line.split("\t") for line in out.splitlines())
    baselines = ["best_markov", "best_order", "compressor", "by", "adaptive", "order_0", "order_1", "order_2"]
    assert header == ["set", "bases", "model", *baselines]
    cells = dict(zip(header, row, strict=True))
    assert (cells.pop("set"), cells["bases"]) == ("ant", "200") and cells.pop("by").startswith("xz of ")
    assert all(math.isfinite(float(cell)) for cell in cells.values())
    summary = json.loads((tmp_path / "s.json").read_text())
    (one,) = summary["sets"]
    assert one["bases"] == 200 and f"{one['model']:.4f}" == cells["model"]
    assert summary["gain"] == pytest.approx(one["best_markov"] - one["model"]) and summary["tokens_per_second"] > 0


def test_markdown_and_output_rules(call, tmp_path):
    code, out, _ = call()
    assert call("-o", "t.md")[:2] == (code, "") and call("-o", "t.tsv")[:2] == (0, "")
    assert (tmp_path / "t.tsv").read_text() == out
    rows = [line.strip("| ").split(" | ") for line in (tmp_path / "t.md").read_text().splitlines()]
    assert [rows[0], *rows[2:]] == [line.split("\t") for line in out.splitlines()]
    assert set(rows[1]) == {"---"} and len(rows[1]) == len(rows[0])
    code, _, err = call("-o", "t.md")
    assert code == 2 and "t.md: the output exists already" in err
    assert call("-o", "t.md", "--force")[0] == 0
    code, _, err = call("-o", "t.csv")
    assert code == 2 and "end it in .tsv or .md" in err
    code, _, err = call("-o", "run.toml", "--force")
    assert code == 2 and "is the input" in err


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--max-order", "13"], 2, "--max-order: is 13, must be 0 to 12"),
        (["--max-order", "-1"], 2, "--max-order: is -1"),
        (["--limit", "0"], 2, "--max-bases: is 0, must be at least 1"),
        (["--max-bases", "0"], 2, "--max-bases: is 0, must be at least 1"),
        (["--window", "0"], 2, "--window: is 0, must be at least 1"),
        (["--window", "65"], 2, "--window: is 65, but this model reads 64 bases at once"),
        (["--device", "cuda:99"], 5, "no device cuda:99 ("),
        (["-m", "no-such-model"], 4, "no-such-model: no such model folder"),
        (["--windw", "3"], 2, "no option called '--windw'; did you mean '--window'?"),
    ],
)
def test_options_that_do_not_do(call, options, code, words):
    found, out, err = call(*options)
    errors = [line for line in err.splitlines() if ": error: " in line]
    assert (found, out, len(errors)) == (code, "", 1)
    assert errors[0].startswith("hybridna evaluate genome: error: ") and words in errors[0]


@pytest.mark.parametrize(
    ("path", "text", "code", "words"),
    [
        ("rum.toml", RUN, 5, "rum.toml: no such file; did you mean run.toml?"),
        (".", RUN, 5, ".: is a folder; give a file"),
        ("g.fa", RUN, 2, "g.fa: not TOML ("),
        ("run.toml", "", 2, "run.toml: key 'model' is missing"),
        ("run.toml", RUN.replace("valid", "vaild"), 2, "species[0]: unknown key 'vaild'; did you mean 'valid'?"),
        ("run.toml", RUN.replace("g.fa", "f.fa"), 5, "f.fa: no such file; did you mean g.fa?"),
        ("run.toml", RUN.replace('["held"]', "[]"), 3, "run.toml: no known base is held out; give a species `valid`"),
        ("run.toml", RUN.replace("held", "unknown"), 3, "run.toml: no known base is held out"),
        ("run.toml", RUN.replace("held", "hold"), 2, "no contig 'hold' in g.fa; did you mean held?"),
    ],
)
def test_run_files_that_do_not_do(call, path, text, code, words):
    found, out, err = call(path=path, text=text)
    assert (found, out) == (code, "") and words in err


def test_a_set_of_unknown_bases_is_left_out(call, tmp_path):
    (tmp_path / "n.fa").write_text(f">a\n{SEQUENCE}\n>b\n{'N' * 100}\n")
    more = '[[species]]\nname = "bee"\nfasta = "n.fa"\nvalid = ["b"]\n'
    code, out, err = call(text=RUN + more)
    assert code == 0 and [line.split("\t")[0] for line in out.splitlines()] == ["set", "ant"]
    assert "warning: bee: every held-out base is unknown; left out" in err
    (tmp_path / "n.fa").write_text(f">a\n{SEQUENCE}\n>b\n{'N' * 400}ACGT\n")
    code, out, err = call("--max-bases", "32", text=RUN + more)
    assert code == 0 and "nan" not in out and out.count("\n") == 2
    assert "warning: bee: no known base in the windows measured; left out" in err


def test_fasta_options(call, tmp_path):
    (tmp_path / "g.fa").write_text(f">train\n{SEQUENCE}\n>held\n{SEQUENCE[:200]}UE\n")
    code, _, err = call()
    assert code == 3 and "give --rna" in err
    assert call("--rna", "--other-letters", "n")[0] == 0


CODING = "ATG" + "TACCTGTTGGCAGGATGTCGA" * 8 + "TAA"


@pytest.fixture
def call_coding(tmp_path, model, capfd, monkeypatch):
    """Run `evaluate coding` on a genome of one gene; return exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.fa").write_text(f">c\n{SEQUENCE[:60]}{CODING}{SEQUENCE[:60]}\n")
    (tmp_path / "b.fa").write_text(f">b\n{SEQUENCE}\n")
    (tmp_path / "c.gff3").write_text(f"c\tx\tCDS\t61\t{60 + len(CODING)}\t.\t+\t0\tParent=g\n")

    def call(*options, cds="c.gff3"):
        always = ["-f", "c.fa", "--cds", cds, "-m", model, "--device", "cpu", "--window", "32", "-q"]
        code = run(["evaluate", "coding", *always, *options])
        streams = capfd.readouterr()
        assert "Traceback" not in streams.err
        return code, streams.out, streams.err

    return call


def test_coding_table_variants_and_summary(call_coding, tmp_path):
    options = ["--sites", "8", "--missense", "4", "--background", "b.fa", "--codon-table", "12"]
    code, out, _ = call_coding(*options, "--variants", "v.tsv", "--summary-json", "s.json")
    assert code == 0
    header, *rows = (line.split("\t") for line in out.splitlines())
    assert header == ["score", "against", "strata", "auroc", "low", "high", "compared", "changes", "synonymous"]
    kinds = [(row[0], row[1], row[2]) for row in rows]
    strata = ("all", "substitution", "codon_position", "both")
    scores = ("hybridna", "markov", "regression")
    assert kinds == [(s, a, h) for a in ("stop_gained", "missense") for s in scores for h in strata]
    summary = json.loads((tmp_path / "s.json").read_text())
    assert summary["counts"] == {"synonymous": 8, "missense": 4, "stop_gained": 8}
    header, *lines = (line.split("\t") for line in (tmp_path / "v.tsv").read_text().splitlines())
    names = "contig pos ref alt class transcript strand codon_position codon substitution"
    assert header == [*names.split(), "llr", "markov_llr", "regression_log_odds"]
    assert len(lines) == 20 and all((line[-1] == "") == (line[4] == "missense") for line in lines)
    code, again, _ = call_coding(*options, "-o", "t.md")
    assert (code, again) == (0, "") and (tmp_path / "t.md").read_text().startswith("| score | against |")


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--codon-table", "7"], 2, "--codon-table: is 7, no genetic code of that number"),
        (["--sites", "0"], 2, "--sites: is 0"),
        (["--contig", "d"], 2, "--contig: no contig 'd' in c.fa"),
        (["--background", "c.fa"], 2, "c.fa: is the genome that is measured"),
        (["--background", "d.fa"], 5, "d.fa: no such file"),
        (["--variants", "c.fa"], 2, "the output is the input"),
        (["--window", "100"], 2, "--window"),
        (["-o", "t.csv"], 2, "end it in .tsv or .md"),
    ],
)
def test_coding_options_that_do_not_do(call_coding, options, code, words):
    found, out, err = call_coding(*options)
    assert (found, out) == (code, "") and "hybridna evaluate coding: error: " in err and words in err


def test_coding_annotation_that_does_not_fit(call_coding, tmp_path):
    (tmp_path / "d.gff3").write_text("d\tx\tCDS\t1\t9\t.\t+\t0\tParent=g\n")
    code, out, err = call_coding(cds="d.gff3")
    assert (code, out) == (3, "") and "no CDS is on a contig of c.fa" in err
    code, out, err = call_coding("--codon-table", "1", "--sites", "3", cds="e.gff3")
    assert (code, out) == (5, "") and "e.gff3: no such file" in err


@pytest.fixture
def call_effects(tmp_path, model, capfd, monkeypatch):
    """Run `evaluate effects` on twelve measured changes; return exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "g.fa").write_text(f">c\n{SEQUENCE}\n")
    (tmp_path / "b.fa").write_text(f">d\n{'ACGGT' * 60}\n")
    head = '##fileformat=VCFv4.2\n##INFO=<ID=EFFECT,Number=A,Type=Float,Description="x">\n'
    alts = {at: "C" if SEQUENCE[at] == "A" else "A" for at in range(50, 62)}
    lines = [f"c\t{at + 1}\t.\t{SEQUENCE[at]}\t{alt}\t.\t.\tEFFECT={at % 7};G={at // 3}\n" for at, alt in alts.items()]
    columns = "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
    (tmp_path / "v.vcf").write_text(head + columns + "".join(lines))

    def call(*options, text=None):
        if text is not None:
            (tmp_path / "v.vcf").write_text(head + columns + text)
        always = ["-f", "g.fa", "-m", model, "--device", "cpu", "--window", "32", "--draws", "20", "-q"]
        code = run(["evaluate", "effects", "v.vcf", *always, *options])
        streams = capfd.readouterr()
        assert "Traceback" not in streams.err
        return code, streams.out, streams.err

    return call


def test_effects_table_variants_and_summary(call_effects, tmp_path):
    options = ["--effect", "EFFECT", "--positive", "EFFECT<2", "--group", "G", "--background", "b.fa"]
    code, out, _ = call_effects(*options, "--variants", "v.tsv", "--summary-json", "s.json")
    assert code == 0
    header, *rows = (line.split("\t") for line in out.splitlines())
    names = "score statistic against scope group value low high alleles positives clusters reason"
    assert header == names.split()
    scores = ["HD_LLR", "HD_FWD", "HD_REV", "markov", "gc_change", "transition"]
    sizes, turned = [f"|{name}|" for name in scores], [f"-{name}" for name in scores]
    due = [(name, "spearman", "EFFECT", scope) for scope in ("all", "within") for name in scores]
    due += [(name, "spearman", "|EFFECT|", scope) for scope in ("all", "within") for name in sizes]
    due += [(name, "auroc", "EFFECT<2", scope) for scope in ("all", "within") for name in turned + sizes]
    assert [tuple(row[:4]) for row in rows] == due
    summary = json.loads((tmp_path / "s.json").read_text())
    assert (summary["measured"], summary["groups"], summary["horizon"]) == (12, 5, 16)
    first = summary["measures"][0]
    assert [f"{first[name]:.4f}" for name in ("value", "low", "high")] == rows[0][5:8]
    lines = (tmp_path / "v.tsv").read_text().splitlines()
    assert lines[0].split("\t") == ["contig", "pos", "ref", "alt", "group", "effect", "positive", *scores]
    assert len(lines) == 13
    assert call_effects(*options, "-o", "t.md")[:2] == (0, "")
    assert (tmp_path / "t.md").read_text().startswith("| score | statistic |")


def test_e28_without_positives_there_is_na(call_effects):
    code, out, _ = call_effects("--positive", "EFFECT>7")
    assert code == 0 and {tuple(line.split("\t")[5:8]) for line in out.splitlines()[1:]} == {("NA",) * 3}
    assert {line.split("\t")[-1] for line in out.splitlines()[1:]} == {"no positives"}


@pytest.mark.parametrize(
    ("options", "text", "code", "words"),
    [
        ([], None, 2, "--effect: nothing to compare the scores with"),
        (
            ["--effect", "EFECT"],
            None,
            3,
            "no allele is left to measure (not_measured 12); its header has no INFO EFECT",
        ),
        (["--effect", "EFFECT"], "c\t1\t.\tA\tG\t.\t.\tEFFECT=NaN\n", 3, "v.vcf:4: EFFECT is 'NaN', not a finite"),
        (["--effect", "EFFECT"], "", 3, "v.vcf: no allele is left to measure (no records)"),
        (["--effect", "EFFECT"], "d\t1\t.\tA\tG\t.\t.\tEFFECT=1\n", 3, "no record has a contig of g.fa"),
        (["--positive", "EFFECT"], None, 2, "--positive: is 'EFFECT'; KEY=VALUE"),
        (["--effect", "EFFECT", "--background", "g.fa"], None, 2, "g.fa: is the genome that is measured"),
        (["--effect", "EFFECT", "--variants", "v.vcf"], None, 2, "the output is the input"),
        (["--effect", "EFFECT", "--window", "100"], None, 2, "--window"),
        (["--effect", "EFFECT", "--sites", "0"], None, 2, "--sites: is 0"),
    ],
)
def test_effects_that_do_not_do(call_effects, options, text, code, words):
    found, out, err = call_effects(*options, text=text)
    assert (found, out) == (code, "") and "hybridna evaluate effects: error: " in err and words in err
