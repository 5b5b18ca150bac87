"""score-variants: numbers worked out by hand, one meaning for every spelling, every allele accounted for.

toy models with known answers -> VCF -> fields; real variants with a random model -> counts
"""

import json
import math
import random
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pysam
import pysam.bcftools
import pytest
from genome_files import put, warnings_of
from toys import markov_log_prob, markov_model, random_model, uniform_model

import hybridna_core
from hybridna_core import score_fields, score_parquet, scoring
from hybridna_core.commands import score_variants as module
from hybridna_core.commands.explain import explain
from hybridna_core.commands.score_variants import score_variants
from hybridna_core.data.inputs import read_chunks
from hybridna_core.data.variants import REASONS, SCORED
from hybridna_core.errors import DataError, GuardError, SystemFault, UsageError
from hybridna_core.score_fields import spell_number
from hybridna_core.scoring import make_plan
from hybridna_core.skipped import MEANINGS
from hybridna_core.tokenizer import reverse_complement

TABLE = np.array([[0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.4, 0.1], [0.7, 0.1, 0.1, 0.1], [0.05, 0.15, 0.5, 0.3]])
SEQUENCE = "".join(random.Random(5).choices("ACGT", k=900))
CONTIGS = {"chr1": SEQUENCE, "chr2": "ACGT" * 60 + "N" * 200 + "ACGT" * 60}
HEADER = "##fileformat=VCFv4.2\n##contig=<ID=chr1,length=900>\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"


@pytest.fixture(scope="module")
def model():
    return random_model(4)


@pytest.fixture(autouse=True)
def genome(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return put(tmp_path, "".join(f">{name}\n{text}\n" for name, text in CONTIGS.items()).encode(), "ref.fa")


def write(*records, header=HEADER, name="in.vcf"):
    """Write a VCF of (contig, pos, ref, alt[, info]); `ref` None: what the contig has there."""
    lines = []
    for contig, pos, ref, alt, *info in records:
        ref = CONTIGS[contig][pos - 1] if ref is None else ref
        lines.append("\t".join([contig, str(pos), ".", ref, alt, ".", ".", *(info or ["."])]))
    Path(name).write_text(header + "".join(line + "\n" for line in lines))
    return name


def put_genome(sequence):
    """Replace the genome by one contig."""
    Path("ref.fa").write_text(f">chr1\n{sequence}\n")
    Path("ref.fa.fai").unlink(missing_ok=True)


def other(base):
    return "ACGT"["ACGT".index(base) - 1]


def run(vcf, model, output="out.vcf", **options):
    options = {"window": 64, "force": True, **options}
    return score_variants(vcf, "ref.fa", output, model=model, **options)


def infos(path="out.vcf"):
    """INFO of every record of a text VCF, as dict of text."""
    lines = [line.split("\t") for line in Path(path).read_text().splitlines() if not line.startswith("#")]
    return [dict(f.partition("=")[::2] for f in line[7].split(";")) for line in lines]


def scores(path="out.vcf", key="HD_LLR"):
    return [value for info in infos(path) for value in info[key].split(",")]


# --- Numbers ---------------------------------------------------------------------------------------------------------

MIXED = [
    ("chr1", 300, None, "A,C,G,T"), ("chr1", 310, SEQUENCE[309:313], "T"), ("chr1", 320, None, "ACGTTGCA"),
    ("chr1", 330, SEQUENCE[329:334], "GATTACA"), ("chr1", 3, None, "<DEL>", "END=700"), ("chr1", 899, None, "A"),
    ("chr1", 400, None, "<INV>", "END=440"), ("chr1", 400, None, "<DUP:TANDEM>", "SVLEN=300"), ("chr2", 9, None, "G"),
]  # fmt: skip


def test_uniform_model_scores_zero():
    summary = run(write(*MIXED), uniform_model())
    assert set(scores()) == {"0", "."}
    assert summary.scored == scores().count("0") == 11 and summary.statuses == {"ok": 11, "no_change": 1}


def on_paper(ref, alt, start, end, window=64, horizon=32):
    """Score of one substitution under the Markov model, from whole windows, both strands."""
    found = []
    whole = SEQUENCE[:start] + alt + SEQUENCE[end:]
    for r, a in ((SEQUENCE, whole), (reverse_complement(SEQUENCE), reverse_complement(whole))):
        c = next(i for i in range(len(r)) if r[i] != a[i])
        first = max(0, c - (window - horizon))
        h = min(horizon, len(r) - c, len(a) - c)
        found.append(markov_log_prob(TABLE, a[first : c + h]) - markov_log_prob(TABLE, r[first : c + h]))
    return found


@pytest.mark.parametrize(
    "pos, length, alt", [(300, 1, "G"), (300, 1, "ACGT"), (500, 7, "T"), (2, 1, "C"), (880, 3, "AA")]
)
def test_markov_model_on_paper(pos, length, alt):
    ref = SEQUENCE[pos - 1 : pos - 1 + length]
    run(write(("chr1", pos, ref, alt)), markov_model(TABLE), per_strand=True)
    forward, reverse = on_paper(ref, alt, pos - 1, pos - 1 + length)
    (info,) = infos()
    assert float(info["HD_FWD"]) == pytest.approx(forward, abs=2e-5)
    assert float(info["HD_REV"]) == pytest.approx(reverse, abs=2e-5)
    assert float(info["HD_LLR"]) == pytest.approx((forward + reverse) / 2, abs=2e-5)
    assert info["HD_EDGE"] == str(int(pos < 33 or pos + length > 869)) and info["HD_ST"] == "ok"


def test_snv_equals_the_public_function(model):
    """A script of a few lines, through the public API, gives the number that the command writes."""
    pos, alt, window, horizon = 450, other(SEQUENCE[449]), 128, 64
    values = []
    for strand in "+-":
        sequence, c, base = SEQUENCE, pos - 1, alt
        if strand == "-":
            sequence, c, base = reverse_complement(SEQUENCE), len(SEQUENCE) - pos, reverse_complement(alt)
        first, last = c - (window - horizon), c + horizon
        reference = sequence[first:last]
        alternative = sequence[first:c] + base + sequence[c + 1 : last]
        r, a = hybridna_core.log_probs(model, [reference, alternative])
        values.append((a - r).sum())
    hybridna_core.score_variants(write(("chr1", pos, None, alt)), "ref.fa", "out.vcf", model=model, window=window)
    assert float(scores()[0]) == pytest.approx(sum(values) / 2, abs=1e-4)
    assert abs(sum(values)) > 0.1


def test_model_without_start_token():
    """The first base then has log 1/4, the same for both alleles."""
    run(write(("chr1", 1, None, other(SEQUENCE[0]))), markov_model(TABLE, bos_token_id=None), per_strand=True)
    (info,) = infos()
    alt = other(SEQUENCE[0])
    after = [math.log(TABLE["ACGT".index(b), "ACGT".index(SEQUENCE[1])]) for b in (alt, SEQUENCE[0])]
    assert float(info["HD_FWD"]) == pytest.approx(after[0] - after[1], abs=2e-5)
    assert info["HD_EDGE"] == "1"


def test_start_token_takes_one_place_of_the_context(model):
    assert make_plan(model.config, None, None, 1) == (4095, 2047, 1)
    assert make_plan(random_model(bos_token_id=None).config, None, None, 1).window == 4096
    assert make_plan(random_model(max_position_embeddings=20_000).config, None, None, 1) == (8192, 4096, 1)
    for window, horizon, stride, option in ((4096, None, 1, "window"), (0, None, 1, "window"), (10, 11, 1, "horizon"),
                                            (10, 0, 1, "horizon"), (10, 5, 0, "stride")):  # fmt: skip
        with pytest.raises(UsageError, match=f"--{option}: is "):
            make_plan(model.config, window, horizon, stride)


def test_bit_equal_whatever_order_and_neighbours(model):
    """Shuffled, doubled, split or merged into one record: the same text for every allele."""
    snvs = [("chr1", pos, None, alt) for pos in range(200, 240, 3) for alt in "ACGT" if alt != SEQUENCE[pos - 1]]
    run(write(*snvs), model)
    alone = dict(zip([(r[1], r[3]) for r in snvs], scores(), strict=True))
    assert len(set(alone.values())) > 30
    mixed = snvs + snvs[:7]
    random.Random(2).shuffle(mixed)
    run(write(*mixed), model)
    assert scores() == [alone[r[1], r[3]] for r in mixed]
    run(write(*[("chr1", pos, None, "A,C,*,G,T") for pos in range(200, 240, 3)]), model)
    joined = iter(scores())
    for pos in range(200, 240, 3):
        found = {alt: next(joined) for alt in "AC*GT"}
        assert {alt: v for alt, v in found.items() if v != "."} == {a: v for (p, a), v in alone.items() if p == pos}


def test_every_spelling_has_one_score(model):
    """Padded, shifted in a repeat, spelt out or symbolic: the same text."""
    at = 400
    repeat = SEQUENCE[:at] + "CAG" * 8 + SEQUENCE[at:]
    put_genome(repeat)
    r = repeat
    spelt = [(at, r[at - 1 : at + 3], r[at - 1]), (at + 9, r[at + 8 : at + 12], r[at + 8])]
    spelt += [(at - 4, r[at - 5 : at + 7], r[at - 5 : at] + r[at + 3 : at + 7]), (at + 3, "GCAG", "G")]
    records = [("chr1", pos, ref, alt) for pos, ref, alt in spelt]
    records.append(("chr1", at, r[at - 1], "<DEL>", f"SVLEN=-3;END={at + 3}"))
    run(write(*records, header=HEADER.replace("900", "924")), model)
    assert len(set(scores())) == 1 and scores()[0] not in (".", "0")


def test_both_directions_mirror(model):
    """The reverse complement of a contig and its variant has the two directions exchanged."""
    run(write(("chr1", 300, SEQUENCE[299:302], "GATC")), model, per_strand=True)
    (forward,) = infos()
    put_genome(reverse_complement(SEQUENCE))
    mirrored = ("chr1", 900 - 302 + 1, reverse_complement(SEQUENCE[299:302]), reverse_complement("GATC"))
    run(write(mirrored), model, per_strand=True)
    (reverse,) = infos()
    assert (forward["HD_FWD"], forward["HD_REV"], forward["HD_LLR"]) == (
        reverse["HD_REV"], reverse["HD_FWD"], reverse["HD_LLR"],
    )  # fmt: skip


def test_swapped_alleles_change_sign(model):
    alt = other(SEQUENCE[299])
    run(write(("chr1", 300, None, alt)), model, per_strand=True)
    (plain,) = infos()
    vcf = write(("chr1", 300, alt, SEQUENCE[299]))
    summary = run(vcf, model, check_ref="s", per_strand=True)
    (swapped,) = infos()
    # P(ALT) / P(REF) as the record has them: what the genome holds is ALT now.
    for key in ("HD_LLR", "HD_FWD", "HD_REV"):
        assert float(swapped[key]) == -float(plain[key]) != 0
    assert swapped["HD_ST"] == "swapped" and summary.statuses == {"swapped": 1} and summary.scored == 1
    assert Path("out.vcf").read_text().splitlines()[-1].split("\t")[3:5] == [alt, SEQUENCE[299]]
    assert run(vcf, model).statuses == {"ref_mismatch": 1}


def test_stride_and_horizon_are_other_scores(model):
    vcf = write(("chr1", 301, None, other(SEQUENCE[300])))
    found = []
    for options in ({}, {"horizon": 8}, {"stride": 16}, {"window": 96, "horizon": 32}):
        run(vcf, model, **options)
        found += scores()
    assert len(set(found)) == 4


def test_reference_is_read_once_per_record(model, monkeypatch):
    counted = []
    monkeypatch.setattr(scoring, "read", lambda *a, **k: counted.append(a[1].shape[1]) or read(*a, **k))
    read = hybridna_core.model.likelihood.read
    run(write(("chr1", 300, None, ",".join(b for b in "ACGT" if b != SEQUENCE[299]))), model)
    # Per direction one prefix with its start token, one reference and three alternatives.
    assert sorted(counted) == sorted([33, 32, 32, 32, 32] * 2)


def test_numbers_that_are_not_finite_stop_the_run(model):
    broken = random_model(4)
    broken.lm_head.weight[8] = float("nan")
    with pytest.raises(GuardError, match=r"chr1:300: the model gives no finite number") as caught:
        run(write(("chr1", 300, None, other(SEQUENCE[299]))), broken)
    assert caught.value.exit_code == 6 and not Path("out.vcf").exists()


def test_spelling_of_numbers():
    for value in (1.0, -2.5, 1e-9, 1 / 3, -123.456789, 1e20, 0.1 + 0.2):
        assert np.float32(spell_number(value)) == np.float32(value)
    assert [spell_number(v) for v in (None, 0.0, -0.0, 3.0, -0.25)] == [".", "0", "0", "3", "-0.25"]


# --- What is written -------------------------------------------------------------------------------------------------


def test_every_allele_has_a_score_or_a_reason(model):
    records = [
        ("chr1", 300, None, f"{other(SEQUENCE[299])},*,<NON_REF>"), ("chr1", 310, None, "."), ("chr1", 5000, "A", "C"),
        ("chrX", 5, "A", "C,G"), ("chr1", 320, "N", "C"), ("chr1", 321, "X", "C"), ("chr1", "x", "A", "C"),
        ("chr1", 330, None, "A" * 40), ("chr1", 340, None, SEQUENCE[339]), ("chr1", 350, None, "C?"),
        ("chr1", 360, None, "A[chr1:9["), ("chr1", 370, None, "<DEL>", "IMPRECISE;END=400"), ("chr2", 239, None, "C"),
        ("chr1", 380, other(SEQUENCE[379]), "C"),
    ]  # fmt: skip
    summary = run(write(*records), model)
    found = scores(key="HD_ST")
    assert set(found) == {*REASONS, "ok"} - {"excluded"}
    assert summary.records == 14 and summary.alleles == len(found) == 17
    assert summary.alleles == summary.scored + sum(n for s, n in summary.statuses.items() if s not in SCORED)
    assert {s: found.count(s) for s in set(found)} == summary.statuses
    for info in infos():
        assert len(info["HD_LLR"].split(",")) == len(info["HD_ST"].split(",")) == len(info["HD_EDGE"].split(","))
        for status, llr, edge in zip(*(info[k].split(",") for k in ("HD_ST", "HD_LLR", "HD_EDGE")), strict=True):
            assert (llr == ".") == (edge == ".") == (status not in SCORED)


def test_records_are_kept_and_readable(model):
    run(write(*MIXED), model)
    before, after = (Path(p).read_text().splitlines() for p in ("in.vcf", "out.vcf"))
    kept = [line.split("\t")[:7] for line in before if line[0] != "#"]
    assert [line.split("\t")[:7] for line in after if line[0] != "#"] == kept
    with pysam.VariantFile("out.vcf") as file:
        assert file.header.info["HD_LLR"].number == "A" and file.header.info["HD_ST"].type == "String"
        records = list(file)
    assert records[0].info["HD_ST"] == tuple("no_change" if b == SEQUENCE[299] else "ok" for b in "ACGT")
    assert len(pysam.bcftools.view("-i", "HD_LLR!=0 && HD_EDGE=1", "-H", "out.vcf").splitlines()) >= 2


def test_header_says_what_the_numbers_are(model, monkeypatch):
    monkeypatch.setenv("HYBRIDNA_KERNELS", "ssd_scan=chunked")
    run(write(*MIXED), model, output="a.vcf", horizon=16, stride=2)
    text = Path("a.vcf").read_text()
    (line,) = re.findall(r"^##hybridna=<ID=run,.*>$", text, re.M)
    for part in (
        f'Model="toy",ModelSHA256="{model.digest}"', "Window=64,Horizon=16,Stride=2", 'Unit="nats"',
        'Precision="float32"', 'StartToken="yes"', 'Reference="ref.fa"', "ssd_scan:chunked",
    ):  # fmt: skip
        assert part in line
    with hybridna_core.data.genome.open_genome("ref.fa") as genome:
        assert f'ReferenceMD5="chr1:{genome.digest("chr1")} chr2:{genome.digest("chr2")}"' in line
    command = re.findall(r"^##hybridna_score_variantsCommand=(.*)$", text, re.M)
    assert command == [
        "score-variants --fasta-ref ref.fa --model toy --window 64 --horizon 16 --stride 2 --check-ref w "
        "--info-prefix HD_ in.vcf"
    ]
    # The contig that was not declared comes from the FASTA, the other stays as it was.
    assert re.findall(r"##contig=.*", text) == ["##contig=<ID=chr1,length=900>", "##contig=<ID=chr2,length=680>"]
    assert 'Source="hybridna",Version="' in text
    run(write(*MIXED), model, output="b.vcf", no_version=True)
    assert not re.search("##hybridna|Version=", Path("b.vcf").read_text())


def test_equal_runs_give_equal_bytes(model):
    vcf = write(*MIXED)
    for name in ("a.vcf", "b.vcf"):
        run(vcf, model, output=name)
    assert Path("a.vcf").read_bytes() == Path("b.vcf").read_bytes()


def test_fields_that_are_there_already(model):  # C35
    run(write(*MIXED), model, output="a.vcf", per_strand=True)
    with pytest.raises(UsageError, match="the header has the field HD_LLR already; --replace"):
        run("a.vcf", model, output="b.vcf")
    assert not Path("b.vcf").exists()
    run("a.vcf", model, output="b.vcf", replace=True, per_strand=True)
    again = (
        Path("b.vcf")
        .read_text()
        .replace("HD_ a.vcf", "HD_ in.vcf")
        .replace("--per-strand a.vcf", "--per-strand in.vcf")
    )
    first = Path("a.vcf").read_text()
    assert again.count("##hybridna=") == 1 and "HD_FWD" in again
    assert [line for line in again.splitlines() if "Command=" not in line] == [
        line for line in first.splitlines() if "Command=" not in line
    ]
    run("a.vcf", model, output="c.vcf", info_prefix="OTHER_")
    (info, *_) = infos("c.vcf")
    assert info["HD_LLR"] == info["OTHER_LLR"]
    assert re.findall("##hybridna=<ID=(\\w+)", Path("c.vcf").read_text()) == ["run", "run2"]
    # A field without its declaration is as much in the way.
    undeclared = write(("chr1", 300, None, "A,C", "HD_ST=ok"))
    with pytest.raises(UsageError, match=r"in\.vcf:4: INFO has HD_ST already"):
        run(undeclared, model, output="d.vcf")
    run(undeclared, model, output="d.vcf", replace=True)
    assert Path("d.vcf").read_text().count("HD_ST=") == 1


@pytest.mark.parametrize("prefix", ["", "1X", "A-B", "é", "A;B", "A B"])
def test_prefix_must_make_keys(model, prefix):
    vcf = write(*MIXED)
    if prefix == "":
        assert run(vcf, model, info_prefix="").scored == 11
        return
    with pytest.raises(UsageError, match="--info-prefix"):
        run(vcf, model, info_prefix=prefix)


@pytest.mark.parametrize("kind, name", [("z", "o.vcf.gz"), ("b", "o.bcf"), ("u", "o.u")])
def test_other_output_types(model, kind, name):
    records = [("chr1", 300, None, other(SEQUENCE[299])), ("chr1", 310, None, "."), ("chr2", 7, None, "A,*")]
    vcf = write(*records)
    run(vcf, model)
    expected = pysam.bcftools.view("--no-version", "out.vcf")
    run(vcf, model, output=name, output_type=None if kind != "u" else "u", write_index=kind != "u")
    assert pysam.bcftools.view("--no-version", name) == expected
    if kind != "u":
        assert len(pysam.bcftools.view("-H", "-r", "chr2", name).splitlines()) == 1
    # And in again.
    run(name, model, output="again.vcf", replace=True)
    assert scores("again.vcf") == scores()


@pytest.mark.parametrize("name, options", [("o.tsv.gz", {}), ("o.tsv", {}), ("o.gz", {"output_type": "t"})])
def test_table(model, name, options):
    """One line per allele, what a VCF's fields say, sorted as the input; bgzip and index where the name says so."""
    records = [*MIXED[:4], ("chr1", 400, None, "<INV>", "END=440"), ("chr1", "x", "A", "C,*"), ("chr2", 9, None, "G")]
    vcf = write(*records)
    due = run(vcf, model, per_strand=True)
    summary = run(vcf, model, output=name, per_strand=True, **options)
    assert summary._replace(output="", seconds=0) == due._replace(output="", seconds=0)
    lines = b"".join(read_chunks(name)).decode().splitlines()
    assert Path(name).read_bytes()[:2] == (b"\x1f\x8b" if name.endswith(".gz") else b"##")
    assert lines[0].startswith("##hybridna=<ID=run,") and lines[1].startswith("##hybridna_score_variantsCommand=score-")
    assert lines[2].split("\t") == ["#chrom", "pos", "ref", "alt", "id", "llr", "edge", "status", "fwd", "rev"]
    keys = [(r[0], str(r[1]), r[2] or CONTIGS[r[0]][r[1] - 1], alt, ".") for r in records for alt in r[3].split(",")]
    values = zip(*(scores(key=key) for key in ("HD_LLR", "HD_EDGE", "HD_ST", "HD_FWD", "HD_REV")), strict=True)
    assert [tuple(line.split("\t")) for line in lines[3:]] == [k + v for k, v in zip(keys, values, strict=True)]


def test_parquet(model, monkeypatch):
    """The rows of the table, typed, in row groups of bounded size."""
    monkeypatch.setattr(score_parquet, "ROWS", 4)
    monkeypatch.setattr(score_parquet, "CHARACTERS", 50)
    strange = ("chr1", 500, None, "*,<CNV>"), ("chr9", "x", "A", "C"), ("chr1", 510, None, "A" * 60 + "\xe9")
    vcf = write(*MIXED, *strange)
    summary = run(vcf, model, "o.parquet", per_strand=True)
    run(vcf, model, "o.tsv", per_strand=True)
    *lines, names = [line for line in Path("o.tsv").read_text().splitlines() if line[0] == "#"]
    file = pyarrow.parquet.ParquetFile("o.parquet")
    schema, rows = file.schema_arrow, file.read().to_pylist()
    assert schema.names == names[1:].split("\t") == list(rows[0])
    assert [str(t) for t in schema.types] == [
        "string", "int64", "string", "string", "string", "float", "int8", "string", "float", "float"
    ]  # fmt: skip

    def spell(name, value):
        if name == "pos" and value is None:
            return "x"
        return spell_number(value) if name in ("llr", "fwd", "rev") else "." if value is None else str(value)

    found = ["\t".join(spell(*cell) for cell in row.items()) for row in rows]
    assert found == [line for line in Path("o.tsv").read_text().splitlines() if line[0] != "#"]
    assert len(rows) == summary.alleles and [row["llr"] for row in rows].count(None) == len(rows) - summary.scored > 3
    assert max(file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)) <= 4
    meta = json.loads(schema.metadata[b"hybridna"])
    # The command names what was read, not what was written.
    assert meta["header"] == lines and meta["run"]["Window"] == "64" and "nats" in meta["columns"]["llr"]
    assert explain("o.parquet")[1:] == explain("o.tsv")[1:]
    run(vcf, model, "o.parquet", no_version=True)
    with pytest.raises(DataError, match="does not say that hybridna scored"):
        explain("o.parquet")
    Path("o.parquet").write_bytes(Path("o.parquet").read_bytes()[:-9])
    with pytest.raises(DataError, match="is no whole Parquet file"):
        explain("o.parquet")
    with pytest.raises(UsageError, match="an index is made for"):
        run(vcf, model, "o.parquet", write_index=True)


def test_parquet_needs_pyarrow(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(SystemFault, match=r"pip install hybridna\[formats\]"):
        run(write(*MIXED), "absent", "o.parquet")


def test_table_with_an_index(model):
    vcf = write(*MIXED[:4], ("chr2", 9, None, "G"))
    run(vcf, model, output="o.tsv.gz", write_index=True, no_version=True)
    with pysam.TabixFile("o.tsv.gz") as table:
        assert [line.split("\t")[3] for line in table.fetch("chr1", 299, 300)] == list("ACGT")
        assert [line.split("\t")[:2] for line in table.fetch("chr2")] == [["chr2", "9"]]
    assert b"".join(read_chunks("o.tsv.gz")).startswith(b"#chrom\tpos")
    with pytest.raises(UsageError, match="--write-index: an index is made for a bgzip VCF or TSV or a BCF in a file"):
        run(vcf, model, output="o.tsv", write_index=True)
    # An earlier run's fields are no matter where none are written.
    run(vcf, model)
    assert run("out.vcf", model, output="again.tsv").scored == run(vcf, model, output="o.tsv").scored
    assert Path("again.tsv").read_text().splitlines()[2:] == Path("o.tsv").read_text().splitlines()[2:]


def test_index_needs_sorted_records(model):
    for records in ([("chr1", 300, None, "A"), ("chr1", 200, None, "A")],
                    [("chr1", 300, None, "A"), ("chr2", 2, None, "A"), ("chr1", 400, None, "A")]):  # fmt: skip
        vcf = write(*records)
        with pytest.raises(DataError, match=rf"in\.vcf:{len(records) + 3}: records are not sorted"):
            run(vcf, model, output="o.vcf.gz", write_index=True)
        assert not list(Path().glob("o.vcf.gz*"))
        assert run(vcf, model, output="p.vcf.gz").records == len(records)
    with pytest.raises(UsageError, match="--write-index: an index is made for"):
        run(vcf, model, output="o.vcf", write_index=True)


def test_old_index_is_not_left_unsaid(model, caplog):
    vcf = write(*MIXED)
    run(vcf, model, output="o.vcf.gz", write_index=False)
    Path("o.vcf.gz.tbi").write_bytes(b"old")
    run(vcf, model, output="o.vcf.gz")
    assert "o.vcf.gz.tbi will not fit the new output" in warnings_of(caplog, "old-index")[0]


def test_regions(model, caplog):
    vcf = write(*MIXED)
    assert run(vcf, model, regions="chr1:300-310").records == 3
    assert run(vcf, model, regions="chr1:800-810").records == 0
    assert warnings_of(caplog, "empty-input") == ["in.vcf: no records in the regions asked for"]
    Path("r.bed").write_text("chr1\t299\t300\nchr2\t0\t100\n")
    assert run(vcf, model, regions_file="r.bed").records == 3
    with pytest.raises(DataError, match="no contig 'chr12' in the header or the genome; did you mean chr"):
        run(vcf, model, regions="chr12:1-5")


# --- Guards ----------------------------------------------------------------------------------------------------------


def wrong(count, total):
    records = [("chr1", pos, None, other(SEQUENCE[pos - 1])) for pos in range(100, 100 + total)]
    for i in range(count):
        pos = records[i][1]
        records[i] = ("chr1", pos, other(SEQUENCE[pos - 1]), SEQUENCE[pos - 1])
    return records


@pytest.mark.parametrize("count, total, stops", [(19, 100, False), (20, 100, True), (20, 400, False), (21, 400, True)])
def test_wrong_assembly_stops_before_the_model_loads(model, monkeypatch, count, total, stops):  # C11
    vcf = write(*wrong(count, total))
    if not stops:
        assert run(vcf, model, dry_run=True).statuses["ref_mismatch"] == count
        return
    monkeypatch.setattr(module, "load_model", lambda *a, **k: pytest.fail("the model was loaded"))
    monkeypatch.setattr(module, "read_config", lambda name: model.config)
    with pytest.raises(DataError, match=f"{count} of the first {total} records .* another REF") as caught:
        run(vcf, "base")
    assert "the wrong genome build" in str(caught.value)
    # Swapping and excluding are decisions about single records, not about a genome.
    with pytest.raises(DataError, match="another REF"):
        run(vcf, model, check_ref="x")
    assert run(vcf, model, dry_run=True, check_ref="s").statuses["swapped"] == count


def test_check_ref_e_stops_at_the_first(model):  # C10
    vcf = write(*wrong(1, 3))
    with pytest.raises(DataError, match=r"in\.vcf:4: chr1:100: REF is .*, ref\.fa has "):
        run(vcf, model, check_ref="e")
    with pytest.raises(UsageError, match="--check-ref: is 'q'"):
        run(vcf, model, check_ref="q")


def test_unknown_bases_nearby_are_told(model):  # C21
    # 32 bases count from the change on and 32 are read before it; N begins at 241, behind at most 3 known bases.
    vcf = write(("chr2", 100, None, "A"), ("chr2", 207, None, "A"), ("chr2", 212, None, "A"), ("chr2", 238, None, "G"))
    summary = run(vcf, model, dry_run=True)
    assert summary.statuses == {"ok": 2, "too_many_n": 2} and summary.unknown == 0
    put_genome(SEQUENCE[:319] + "N" + SEQUENCE[320:])
    vcf = write(("chr1", 100, None, other(SEQUENCE[99])), ("chr1", 300, None, other(SEQUENCE[299])))
    for dry_run in (True, False):
        summary = run(vcf, model, dry_run=dry_run)
        assert (summary.scored, summary.unknown) == (2, 1) and summary.to_dict()["unknown"] == 1
    # 3 of 67 bases are within 5 %, 4 of 68 are not.
    for count, status in ((3, "ok"), (4, "too_many_n")):
        put_genome(SEQUENCE[:280] + "N" * count + SEQUENCE[280 + count :])
        assert run(write(("chr1", 300, None, other(SEQUENCE[299]))), model).statuses == {status: 1}


def test_unknown_contigs(model, caplog):  # C22
    named = HEADER.replace("chr1", "1")
    vcf = write(("1", 300, "A", "C"), ("2", 4, "T", "C"), header=named)
    with pytest.raises(DataError, match=r"no record has a contig of ref\.fa") as caught:
        run(vcf, model)
    assert "(the first has 1, there it is chr1); give --rename-chrs FILE" in str(caught.value)
    Path("names.txt").write_text("1 chr1\n2\tchr2\n")
    summary = run(vcf, model, rename_chrs="names.txt", check_ref="x")
    assert "unknown_contig" not in summary.statuses
    text = Path("out.vcf").read_text()
    # Records keep their names, and the header lines that are added use them.
    assert "##contig=<ID=2,length=680>" in text and "chr1," not in text.replace("ID=chr1", "")
    caplog.clear()
    run(write(("1", 300, "A", "C"), ("1", 301, "A", "C"), ("chr1", 300, None, "A,C")), model)
    assert len(warnings_of(caplog, "unknown_contig")) == 1


def test_unknown_contigs_at_the_start_of_a_long_file(model, monkeypatch):
    monkeypatch.setattr(module, "GUARD_RECORDS", 5)
    strange = [("chrU", pos, "A", "C") for pos in range(1, 9)]
    vcf = write(*strange, ("chr1", 300, None, other(SEQUENCE[299])))
    assert run(vcf, model).statuses == {"ok": 1, "unknown_contig": 8}
    with pytest.raises(DataError, match="no record has a contig"):
        run(write(*strange), model, output="none.vcf")
    with pytest.raises(DataError, match="the first has chrU"):
        run(write(*strange, header=HEADER.replace("chr1", "chrV")), model, output="none.vcf")
    assert not Path("none.vcf").exists()


def test_contig_length_that_differs(model, caplog):  # C23
    vcf = write(*MIXED, header=HEADER.replace("900", "901"))
    run(vcf, model)
    (message,) = warnings_of(caplog, "contig-length")
    assert "contig chr1 has 901 bp in the header and 900 in ref.fa" in message
    with pytest.raises(DataError, match="901 bp in the header"):
        run(vcf, model, strict=True)


def test_strict_writes_and_complains(model):
    vcf = write(("chr1", 300, None, "A,C,G,T"))
    with pytest.raises(DataError, match=r"1 of 4 alleles have no score \(no_change 1\)") as caught:
        run(vcf, model, strict=True)
    assert caught.value.exit_code == 3 and len(infos()) == 1
    assert run(write(("chr1", 300, None, other(SEQUENCE[299]))), model, strict=True).scored == 1


SKIPPED = [
    ("chr1", 300, None, f"{SEQUENCE[299]},{other(SEQUENCE[299])},*"), ("chr1", 310, other(SEQUENCE[309]), "N"),
    ("chr1", 320, None, "."), ("chr9", 3, "A", "C"), ("chr1", 330, None, "<CNV>"), ("chr1", 900, None, "AA"),
]  # fmt: skip


def test_alleles_without_a_score_are_listed(model):
    summary = run(write(*SKIPPED), model, skipped="skipped.tsv")
    first, *lines = [line.split("\t") for line in Path("skipped.tsv").read_text().splitlines()]
    assert first == ["#chrom", "pos", "id", "ref", "alt", "status", "why"]
    assert [(int(line[1]), line[4], line[5]) for line in lines] == [
        (300, SEQUENCE[299], "no_change"), (300, "*", "spanning"), (310, "N", "ref_mismatch"), (320, ".", "no_alt"),
        (3, "C", "unknown_contig"), (330, "<CNV>", "symbolic"),
    ]  # fmt: skip
    assert lines[2][3] == other(SEQUENCE[309])
    assert lines[2][6] == f"REF is {other(SEQUENCE[309])}, the FASTA has {SEQUENCE[309]}"
    assert len(lines) == summary.alleles - summary.scored and summary.scored == 2
    text = Path("skipped.tsv").read_bytes()
    run(write(*SKIPPED), model, skipped="skipped.tsv.gz")
    assert Path("skipped.tsv.gz").read_bytes()[12:14] == b"BC"
    assert b"".join(read_chunks("skipped.tsv.gz")) == text


def test_every_reason_has_a_meaning():
    assert set(MEANINGS) == set(REASONS)


def test_list_of_skipped_alleles_follows_the_rules_of_outputs(model, monkeypatch):
    vcf = write(*SKIPPED)
    with pytest.raises(UsageError, match="--skipped: is the output itself"):
        run(vcf, model, skipped="./out.vcf")
    with pytest.raises(UsageError, match="--skipped: would go to standard output"):
        run(vcf, model, output="-", skipped="-")
    with pytest.raises(UsageError, match="the output is the input"):
        run(vcf, model, skipped="ref.fa")
    Path("skipped.tsv").write_text("old")
    with pytest.raises(UsageError, match=r"skipped.tsv: the output exists already"):
        run(vcf, model, skipped="skipped.tsv", force=False)
    # A run that breaks off leaves neither.
    monkeypatch.setattr(score_fields, "spell_fields", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(vcf, model, skipped="skipped.tsv")
    assert Path("skipped.tsv").read_text() == "old" and not Path("out.vcf").exists()


def test_fail_on_is_told_at_the_end(model):
    vcf = write(*SKIPPED)
    with pytest.raises(DataError, match=r"2 of 8 .* as --fail-on names \(spanning 1, symbolic 1\)") as caught:
        run(vcf, model, fail_on="spanning,symbolic,too_long")
    assert caught.value.exit_code == 3 and len(infos()) == 6
    assert run(vcf, model, fail_on=["too_long", "swapped"]).scored == 2
    swapped = write(("chr1", 340, other(SEQUENCE[339]), SEQUENCE[339]))
    with pytest.raises(DataError, match=r"1 of 1 alleles ended as --fail-on names \(swapped 1\)"):
        run(swapped, model, check_ref="s", fail_on="swapped")
    with pytest.raises(UsageError, match=r"--fail-on: 'ref_mismach' is no status .* did you mean ref_mismatch"):
        run(vcf, model, fail_on="no_alt,ref_mismach")
    with pytest.raises(UsageError, match="'ok' is no status"):
        run(vcf, model, fail_on="ok")


def test_header_alone_gives_a_header(model, caplog):  # C4
    summary = run(write(), model)
    assert (summary.records, summary.alleles, summary.scored) == (0, 0, 0)
    assert warnings_of(caplog, "empty-input") == ["in.vcf: no records"]
    with pysam.VariantFile("out.vcf") as file:
        assert list(file) == [] and "HD_LLR" in file.header.info


def test_any_order_of_records_is_kept(model):  # C24
    places = [("chr1", 300), ("chr2", 40), ("chr1", 300), ("chr1", 20), ("chr2", 40), ("chr1", 880)]
    records = [(contig, pos, None, other(CONTIGS[contig][pos - 1])) for contig, pos in places]
    summary = run(write(*records), model)
    assert summary.records == summary.scored == 6
    lines = [line.split("\t") for line in Path("out.vcf").read_text().splitlines() if line[0] != "#"]
    assert [(line[0], int(line[1])) for line in lines] == places
    found = scores()
    assert found[0] == found[2] and found[1] == found[4] and len(set(found)) == 4


def test_genome_that_changes_while_running(model, monkeypatch):
    vcf = write(*MIXED)
    original = score_fields.spell_fields

    def meddle(*arguments):
        Path("ref.fa").write_text(Path("ref.fa").read_text() + "\n")
        return original(*arguments)

    monkeypatch.setattr(score_fields, "spell_fields", meddle)
    with pytest.raises(DataError, match="changed since the start"):
        run(vcf, model)
    assert not Path("out.vcf").exists()


def test_output_rules(model):  # C36, C37
    vcf = write(*MIXED)
    Path("out.vcf").write_text("old")
    with pytest.raises(UsageError, match="the output exists already; give --force"):
        run(vcf, model, force=False)
    assert Path("out.vcf").read_text() == "old"
    Path("link.vcf").hardlink_to(vcf)
    for output in (vcf, "link.vcf", f"../{Path.cwd().name}/{vcf}"):
        with pytest.raises(UsageError, match=r"the output is the input in\.vcf"):
            run(vcf, model, output=output)


def test_broken_end_leaves_the_old_output(model):  # C27
    vcf = write(*MIXED)
    Path("out.vcf").write_text("old")
    Path(vcf).write_text(Path(vcf).read_text() + "chr1\t500\t.\tA")
    with pytest.raises(DataError, match="the file ends inside line"):
        run(vcf, model)
    assert Path("out.vcf").read_text() == "old"


def test_dry_run_loads_and_writes_nothing(model, monkeypatch):
    monkeypatch.setattr(module, "load_model", lambda *a, **k: pytest.fail("the model was loaded"))
    monkeypatch.setattr(module, "read_config", lambda name: model.config)
    vcf = write(("chr1", 300, None, other(SEQUENCE[299]) + ",*"), ("chr1", 899, None, "."))
    summary = score_variants(vcf, "ref.fa", "out.vcf", model="base", window=64, dry_run=True)
    assert summary.statuses == {"ok": 1, "spanning": 1, "no_alt": 1} and summary.tokens == 2 * (33 + 32 + 32)
    assert summary.memory.startswith("about ") and summary.time.startswith("about ")
    assert not Path("out.vcf").exists()


def test_summary_names_what_it_counts(model):
    table = run(write(*MIXED), model).to_dict()
    assert table["alleles"] == table["scored"] + table["statuses"]["no_change"]
    assert table["window"] == 64 and table["horizon"] == 32 and table["model"] == "toy" and table["edge"] >= 2
    assert "tokens" not in table


def test_progress_counts_records(model):
    seen = []
    run(write(*MIXED), model, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, None) for i in range(1, 10)]


# --- Real variants ---------------------------------------------------------------------------------------------------


def first_records(path, count, name="real.vcf"):
    """The first records of a bgzip VCF."""
    lines = []
    with pysam.BGZFile(str(path)) as file:
        while count and (line := file.readline()):
            lines.append(line)
            count -= not line.startswith(b"#")
    Path(name).write_bytes(b"\n".join(lines) + b"\n")
    return name


@pytest.mark.parametrize(
    "vcf, fasta, count, scored",
    [
        ("yeast_promoter_mpra/native_promoter_snvs_train_val.vcf.gz", "fungi/scerevisiae_r64.fa.gz", 500, 500),
        ("1000g/human_grch37_chr20_1-2mb_1000g_phase3.vcf.gz", "mammalian/human_grch37_chr20_7.39mb.fa.gz", 300, 290),
        ("candida_auris/B12681.g.vcf.gz", "fungi/candida_auris_b11205_chr1_4_5_6_7.fa.gz", 2000, 1),
    ],
)
def test_real_variants_are_all_accounted_for(shared_data, model, vcf, fasta, count, scored):
    path = first_records(shared_data / "variants" / vcf, count)
    # A copy, so that no index is written beside the original.
    fasta = shutil.copy(shared_data / "genomes" / fasta, "genome.fa.gz")
    summary = score_variants(path, fasta, "out.vcf.gz", model=model, window=16, write_index=True)
    assert summary.records == count and summary.scored >= scored
    assert sum(summary.statuses.values()) == summary.alleles
    with pysam.VariantFile("out.vcf.gz") as file:
        records = list(file)
    assert len(records) == count == len(pysam.bcftools.view("-H", "out.vcf.gz").splitlines())
    assert sum(len(record.info["HD_ST"]) for record in records) == summary.alleles
    found = [v for record in records for v in record.info["HD_LLR"] if v is not None]
    assert len(found) == summary.scored and np.isfinite(found).all() and np.std(found) > 0
    # Nothing but the fields was added.
    before = [line.split(b"\t")[:7] for line in b"".join(read_chunks(path)).splitlines() if line[:1] != b"#"]
    after = [line.split(b"\t")[:7] for line in b"".join(read_chunks("out.vcf.gz")).splitlines() if line[:1] != b"#"]
    assert before == after
