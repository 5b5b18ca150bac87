"""calibrate: alleles of every class drawn evenly, scores that paper gives, percentiles worked out by hand, refusals."""

import math
import random
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from genome_files import put, warnings_of
from toys import markov_model, random_model

import hybridna_core
from hybridna_core.calibration import Calibration
from hybridna_core.commands import calibrate as module
from hybridna_core.commands.calibrate import calibrate, find_stretches
from hybridna_core.commands.explain import explain
from hybridna_core.commands.score_variants import score_variants
from hybridna_core.commands.verify import verify
from hybridna_core.data.genome import open_genome
from hybridna_core.data.inputs import read_chunks
from hybridna_core.data.matched import classify, draw_indels, draw_matches, draw_substitutions, list_classes
from hybridna_core.data.variants import Piece, Variant, read_alleles
from hybridna_core.data.vcf import VcfReader
from hybridna_core.errors import DataError, ModelError, UsageError
from hybridna_core.tokenizer import encode, reverse_complement

TABLE = np.array([[0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.4, 0.1], [0.7, 0.1, 0.1, 0.1], [0.05, 0.15, 0.5, 0.3]])
SEQUENCE = "".join(random.Random(12).choices("ACGT", k=1500))
CONTIGS = {"chr1": SEQUENCE, "chr2": "N" * 70 + SEQUENCE[:200] + "N" * 70}
OPTIONS = {"window": 24, "horizon": 12}


@pytest.fixture(scope="module")
def model():
    return markov_model(TABLE)


@pytest.fixture(autouse=True)
def genome(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    put(tmp_path, "".join(f">{name}\n{text}\n" for name, text in CONTIGS.items()).encode(), "ref.fa")
    with open_genome("ref.fa") as genome:
        yield genome


def run(model, output="cal.tsv", **options):
    return calibrate("ref.fa", output, model=model, **{**OPTIONS, "per_class": 2, "force": True, **options})


def rows(path="cal.tsv"):
    lines = b"".join(read_chunks(path)).decode().splitlines()
    names, *found = (line.split("\t") for line in lines if not line.startswith("##"))
    return [dict(zip(names, row, strict=True)) for row in found]


def fold(context, alt):
    """The class of a substitution, by the strand on which the middle base is C or T."""
    if context[1] in "AG":
        context, alt = reverse_complement(context), reverse_complement(alt)
    return f"{context[0]}[{context[1]}>{alt}]{context[2]}"


def on_paper(context, alt):
    """Score of a substitution under the Markov model: two transitions per direction."""
    found = []
    for text, base in ((context, alt), (reverse_complement(context), reverse_complement(alt))):
        a, r, b, x = ("ACGT".index(letter) for letter in (*text, base))
        found.append(math.log(TABLE[a, x] * TABLE[x, b]) - math.log(TABLE[a, r] * TABLE[r, b]))
    return sum(found) / 2


# --- What is drawn ---------------------------------------------------------------------------------------------------


def test_every_class_and_the_scores_of_paper(model):
    summary = run(model, regions="chr1")
    found = rows()
    counts = Counter(row["class"] for row in found)
    # Insertions of 13 bases or more do not fit a horizon of 12.
    due = [name for name in list_classes() if name not in ("ins13-16", "ins17-24", "ins25-32", "ins33-50")]
    assert len(due) == 96 + 8 + 12 and set(counts) == set(due) and set(counts.values()) == {2}
    assert (summary.alleles, summary.scored, summary.classes, summary.fewest) == (232, 232, 116, 2)
    for row in found:
        contig, start = CONTIGS[row["#chrom"]], int(row["pos"]) - 1
        assert contig[start : start + len(row["ref"])] == row["ref"] and "N" not in row["ref"] + row["alt"]
        length = len(row["alt"]) - len(row["ref"])
        if length == 0:
            context = contig[start - 1 : start + 2]
            assert row["class"] == fold(context, row["alt"])
            assert float(row["llr"]) == pytest.approx(on_paper(context, row["alt"]), abs=2e-5)
        else:
            kind, first, last = re.fullmatch(r"(ins|del)([0-9]+)(?:-([0-9]+))?", row["class"]).groups()
            assert int(first) <= abs(length) <= int(last or first) and (length > 0) == (kind == "ins")
            assert row["ref"][0] == row["alt"][0] and min(len(row["ref"]), len(row["alt"])) == 1
    keys = [(list(CONTIGS).index(row["#chrom"]), int(row["pos"])) for row in found]
    assert keys == sorted(keys) and len({tuple(row.values()) for row in found}) == len(found)


def test_what_is_drawn_has_the_class_it_was_drawn_for(genome):
    matches = draw_matches(genome, find_stretches(genome, None, None, {}), 3, 1, 64)
    assert len(matches) == 3 * 120 and len({match.group for match in matches}) == 120
    for match in matches:
        assert classify(match.allele.variant, genome) == match.group


def test_bases_are_drawn_evenly(genome):
    """400 draws of two bases of each trinucleotide: each base of it as often as the others."""
    text = CONTIGS["chr1"][:120]
    stretches, times = [("chr1", 0, 120)], Counter()
    for seed in range(400):
        times.update({match.pos - 1 for match in draw_substitutions(genome, stretches, 2, seed)})
    groups = {}
    for place in range(1, 120):
        groups.setdefault(fold(SEQUENCE[place - 1 : place + 2], "N")[0:3], []).append(place)
    assert set(times) == set(range(1, 120)) and text
    for places in groups.values():
        by_context = {}
        for place in places:
            by_context.setdefault(fold(SEQUENCE[place - 1 : place + 2], "N"), []).append(times[place])
        for counts in by_context.values():
            due = 400 * min(2, len(counts)) / len(counts)
            # Hypergeometric, so less than binomial: five standard deviations.
            assert all(abs(count - due) <= 5 * math.sqrt(due * (1 - due / 400)) for count in counts)


def test_places_of_indels_are_drawn_evenly(genome):
    stretches, times = [("chr1", 100, 120), ("chr1", 300, 310)], Counter()
    for seed in range(300):
        times.update(match.pos for match in draw_indels(genome, stretches, 2, seed, "del", 3, 3))
    # The base before the deletion, counted from 1, has the number of the first one deleted, counted from 0.
    assert set(times) == {*range(100, 118), *range(300, 308)}
    due = 600 / len(times)
    assert all(abs(count - due) < 5 * math.sqrt(due) for count in times.values())
    given = [match.alt[1:] for match in draw_indels(genome, stretches, 30, 0, "ins", 4, 4)]
    places = SEQUENCE[100:120], SEQUENCE[300:310]
    assert all(any(text in place or reverse_complement(text) in place for place in places) for text in given)
    assert any(text not in places[0] + "-" + places[1] for text in given) and len(given) == 30


@pytest.mark.parametrize(
    ("start", "end", "text", "due"),
    [
        (500, 501, "A", "snv"), (500, 503, "!A!", "snv"), (500, 502, "!!", None), (500, 500, "GATTACA", "ins7-8"),
        (500, 540, "", "del33-50"), (500, 551, "", None), (500, 500, "A" * 51, None), (500, 504, "G", None),
        (0, 1, "A", None), (1499, 1500, "A", None), (1, 2, "A", "snv"), (0, 3, "", "del3"), (1496, 1500, "", "del4"),
    ],
)  # fmt: skip
def test_classes(genome, start, end, text, due):
    """`!`: the base that is not there. snv: by the trinucleotide; between two changed bases there is no class."""
    other = {base: "ACGT"["ACGT".index(base) - 1] for base in "ACGT"}
    here = SEQUENCE[start:end]
    if due == "snv" and len(text) == 3:
        text = here[0] + other[here[1]] + here[2]
    elif len(text) == end - start:
        text = "".join(other[base] for base in here)
    variant = Variant("chr1", start, end, (Piece(0, len(text), ids=encode(text)),))
    if due == "snv":
        at = start + (len(text) == 3)
        due = fold(SEQUENCE[at - 1 : at + 2], other[SEQUENCE[at]])
    assert classify(variant, genome) == due
    assert classify(variant._replace(sign=-1), genome) is None


def test_one_class_for_every_spelling(genome):
    """A duplication is an insertion, a symbolic deletion a deletion, wherever in a repeat it is put."""
    s = SEQUENCE
    lines = [f"chr1\t700\t.\t{s[699]}\t<DEL>\t.\t.\tSVLEN=-5", f"chr1\t700\t.\t{s[699:705]}\t{s[699]}\t.\t.\t."]
    lines += [f"chr1\t700\t.\t{s[699]}\t<DUP>\t.\t.\tSVLEN=5", f"chr1\t705\t.\t{s[704]}\t{s[704]}{s[700:705]}\t.\t.\t."]
    lines += [f"chr1\t700\t.\t{s[699]}\t<INV>\t.\t.\tSVLEN=40", f"chr2\t71\t.\t{s[0]}\tA,C,G,T\t.\t.\t."]
    header = "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
    Path("in.vcf").write_text(header + "".join(f"{line}\n" for line in lines))
    with VcfReader("in.vcf") as reader:
        alleles = [allele for record in reader.records() for allele in read_alleles(record, genome)]
    found = [classify(allele.variant, genome) for allele in alleles if allele.variant is not None]
    # The last three stand beside an unknown base.
    assert found == ["del5", "del5", "ins5", "ins5", None, None, None, None]


# --- Regions, seeds ---------------------------------------------------------------------------------------------------


def test_regions_and_holes(model, genome, caplog):
    Path("x.bed").write_text("chr1\t120\t140\nchr1\t130\t150\nchr1\t1490\t9999\nchr9\t1\t2\n")
    found = find_stretches(genome, [("chr2", 10, 20), ("chr1", 100, 200), ("chr1", 1400, 2**62)], "x.bed", {})
    assert found == [("chr1", 100, 120), ("chr1", 150, 200), ("chr1", 1400, 1490), ("chr2", 10, 20)]
    assert len(warnings_of(caplog, "unknown_contig")) == 1
    run(model, regions="chr1:101-400", exclude_bed="x.bed", per_class=1)
    places = {int(row["pos"]) for row in rows() if len(row["ref"]) == len(row["alt"]) == 1}
    assert places and all(100 < pos <= 400 and not 120 < pos <= 150 for pos in places)
    assert "no alleles of class" in " ".join(warnings_of(caplog, "empty-class"))
    text = Path("cal.tsv").read_text()
    assert 'ReferenceMD5="chr1:' in text and "chr2:" not in text
    with pytest.raises(DataError, match=r"--regions: no contig '1' in ref.fa; did you mean chr1"):
        run(model, regions="1:5-9")
    with pytest.raises(DataError, match="no known bases to draw from"):
        run(model, "new.tsv", regions="chr2:1-50")
    assert not Path("new.tsv").exists()


def test_the_seed_alone_decides(model):
    run(model, "a.tsv.gz", seed=3, per_class=1)
    run(model, "b.tsv.gz", seed=3, per_class=1)
    assert Path("a.tsv.gz").read_bytes() == Path("b.tsv.gz").read_bytes()
    run(model, "c.tsv.gz", seed=4, per_class=1)
    alleles = [{tuple(row.values())[:4] for row in rows(name)} for name in ("a.tsv.gz", "c.tsv.gz")]
    assert len(alleles[0] & alleles[1]) < 60


def test_dry_run(model, monkeypatch):
    due = run(model, per_class=1)
    monkeypatch.setattr(module, "load_model", lambda *a, **k: pytest.fail("the model was loaded"))
    monkeypatch.setattr(module, "read_config", lambda name: model.config)
    summary = run("base", "dry.tsv", per_class=1, dry_run=True)
    assert (summary.tokens, summary.alleles) == (due.tokens, due.alleles) and not Path("dry.tsv").exists()
    assert summary.memory.startswith("about ") and hybridna_core.calibrate is calibrate


# --- Percentiles -----------------------------------------------------------------------------------------------------


def make(scores, **options):
    """Write a calibration by hand: class -> scores, in any order; return its path."""
    text = Path("cal.tsv").read_text().splitlines()
    run_line = next(line for line in text if line.startswith("##hybridna="))
    for old, new in options.items():
        run_line, times = re.subn(f"{old}=[^,>]*", f"{old}={new}", run_line)
        assert times == 1
    lines = [run_line, *(f"##hybridna_class=<ID={name},Count={len(s)}>" for name, s in scores.items())]
    lines.append("#chrom\tpos\tref\talt\tclass\tllr\tedge")
    lines += [f"chr1\t1\tA\tC\t{name}\t{score}\t0" for name, values in scores.items() for score in values]
    Path("hand.tsv").write_text("\n".join(lines) + "\n")
    return "hand.tsv"


def write_vcf():
    """Three substitutions of one place, a deletion of three bases and an allele without a class."""
    s = SEQUENCE
    lines = ["##fileformat=VCFv4.2", "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO"]
    lines += [f"chr1\t800\t.\t{s[799]}\tA,C,G,T\t.\t.\t.", f"chr1\t900\t.\t{s[899:903]}\t{s[899]}\t.\t.\t."]
    lines.append(f"chr1\t1000\t.\t{s[999:1001]}\t{''.join('CATG'['ACGT'.index(b)] for b in s[999:1001])}\t.\t.\t.")
    Path("in.vcf").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("output", ["out.vcf", "out.bcf"])
def test_percentiles_by_hand(model, output):
    run(model, per_class=1)
    context = SEQUENCE[798:801]
    alts = "ACGT".replace(context[1], "")
    scores = {fold(context, alt): on_paper(context, alt) for alt in alts}
    low, high, tied = scores
    # Lower than all of nine; higher than all of four; as two of four and above one.
    hand = {
        low: [scores[low] + i for i in range(1, 10)],
        high: [scores[high] - i for i in range(1, 5)],
        tied: [scores[tied] - 1, np.float32(scores[tied]) + 1e-4, scores[tied] - 1e-4, scores[tied] + 1],
    }
    make(hand)
    write_vcf()
    score_variants("in.vcf", "ref.fa", output, model=model, **OPTIONS, calibration="hand.tsv")
    with VcfReader(output) as reader:
        records = list(reader.records())
    order = [fold(context, alt) if alt != context[1] else None for alt in "ACGT"]
    due = {low: 10, high: 100, tied: 60, None: None}
    for name, value in (("HD_PCT", lambda p: p), ("HD_PHRED", lambda p: -10 * math.log10(p / 100))):
        found = [None if text == "." else float(text) for text in records[0].info(name).split(",")]
        for got, key in zip(found, order, strict=True):
            assert got == (None if key is None else pytest.approx(value(due[key]), rel=1e-5, abs=1e-9))
        assert [record.info(name) for record in records[1:]] == [".", "."]
    assert records[2].info("HD_LLR") != "."
    words = "\n".join(explain(output))
    assert "HD_PCT: percent of matched alleles" in words and "of hand.tsv" in words and "HD_PHRED: -10 log10" in words
    assert verify(output, "ref.fa", model=model, calibration="hand.tsv").checked == 5


def test_in_tables_and_after_another_run(model):
    run(model, per_class=1)
    write_vcf()
    score_variants("in.vcf", "ref.fa", "out.tsv", model=model, **OPTIONS, calibration="cal.tsv", per_strand=True)
    names = Path("out.tsv").read_text().splitlines()[2].split("\t")
    assert names[5:] == ["llr", "edge", "status", "fwd", "rev", "pct", "phred"]
    assert "pct: percent of matched alleles" in "\n".join(explain("out.tsv"))
    # All substitutions of one class score alike here, so that none is lower: 100 and 0.
    found = {tuple(line.split("\t")[-2:]) for line in Path("out.tsv").read_text().splitlines()[3:]}
    assert ("100", "0") in found
    score_variants("in.vcf", "ref.fa", "a.vcf", model=model, **OPTIONS, calibration="cal.tsv")
    assert ',Calibration="cal.tsv",CalibrationSHA256="' in Path("a.vcf").read_text()
    assert "--calibration cal.tsv" in Path("a.vcf").read_text()
    score_variants("a.vcf", "ref.fa", "b.vcf", model=model, **OPTIONS, replace=True)
    assert "PCT" not in Path("b.vcf").read_text() and "PHRED" not in Path("b.vcf").read_text()


def test_verify_compares_percentiles(model, caplog):
    run(model, per_class=2)
    write_vcf()
    score_variants("in.vcf", "ref.fa", "a.vcf", model=model, **OPTIONS, calibration="cal.tsv")
    assert verify("a.vcf", "ref.fa", model=model).checked == 5
    assert "percentiles are not compared; give --calibration cal.tsv" in warnings_of(caplog, "not-compared")[0]
    text = Path("a.vcf").read_text()
    Path("a.vcf").write_text(re.sub(r"HD_PCT=(\.,)?[0-9.]+", r"HD_PCT=\g<1>20", text, count=1))
    with pytest.raises(DataError, match=r"1 of 5 scores .*chr1:800 .* HD_PCT is 20, now "):
        verify("a.vcf", "ref.fa", model=model, calibration="cal.tsv")
    Path("a.vcf").write_text(text)
    run(model, "other.tsv", per_class=1)
    with pytest.raises(DataError, match=r"other.tsv: is not the calibration .* called cal.tsv"):
        verify("a.vcf", "ref.fa", model=model, calibration="other.tsv")
    score_variants("in.vcf", "ref.fa", "plain.vcf", model=model, **OPTIONS)
    with pytest.raises(UsageError, match="--calibration: the file was scored without one"):
        verify("plain.vcf", "ref.fa", model=model, calibration="cal.tsv")


def test_percentiles_are_even(model, genome):
    """Of the alleles of the file itself: each rank once. Of others drawn alike: each percentile as often."""
    run(model, per_class=1)
    rng = np.random.default_rng(5)
    context = SEQUENCE[798:801]
    alt = "ACGT".replace(context[1], "")[0]
    calibration = Calibration(make({fold(context, alt): rng.normal(size=99).astype(np.float32)}))
    variant = Variant("chr1", 799, 800, (Piece(0, 1, ids=encode(alt)),))
    own = sorted(calibration.rank(variant, score, genome)[0] for score in calibration.scores[fold(context, alt)])
    assert own == pytest.approx(range(2, 101))
    # Many calibrations, each asked for one fresh score.
    counts = np.zeros(10)
    for _ in range(4000):
        calibration.scores = {fold(context, alt): np.sort(rng.normal(size=99).astype(np.float32))}
        percentile, phred = calibration.rank(variant, rng.normal(), genome)
        assert 1 <= percentile <= 100 and phred == pytest.approx(-10 * math.log10(percentile / 100), abs=1e-9)
        counts[math.ceil(round(percentile, 6) / 10) - 1] += 1
    # Chi-squared with nine degrees of freedom passes 27.9 once in a thousand.
    assert ((counts - 400) ** 2 / 400).sum() < 27.9


# --- Refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"window": 26}, "made with --window 24, this run has 26"), ({"horizon": 11}, "--horizon 12, this run has 11"),
        ({"stride": 2}, "made with --stride 1, this run has 2"),
    ],
)  # fmt: skip
def test_another_setting_is_refused(model, options, words):
    run(model, per_class=1)
    write_vcf()
    with pytest.raises(UsageError, match=rf"cal\.tsv: the calibration was .*{words}; score with the same"):
        score_variants("in.vcf", "ref.fa", "out.vcf", model=model, calibration="cal.tsv", **{**OPTIONS, **options})
    assert not Path("out.vcf").exists()


def test_another_model_precision_or_reference_is_refused(model):
    run(model, per_class=1)
    write_vcf()
    options = {"calibration": "cal.tsv", **OPTIONS}
    other = random_model(7)
    with pytest.raises(ModelError, match=r"model toy \(SHA-256 0+\), this run has toy \(0+7\); give that --model"):
        score_variants("in.vcf", "ref.fa", "out.vcf", model=other, **options)
    make({"del1": [1.0]}, Precision='"bfloat16"')
    with pytest.raises(UsageError, match="made with --dtype bfloat16, this run has float32"):
        score_variants("in.vcf", "ref.fa", "out.vcf", model=model, **{**options, "calibration": "hand.tsv"})
    for text, words in (
        (f">chr1\n{SEQUENCE}\n>chr2\nACGT\n", "is another sequence in"),
        (f">chr1\n{SEQUENCE}\n", "is not in"),
    ):
        Path("new.fa").write_text(text)
        Path("new.fa.fai").unlink(missing_ok=True)
        with pytest.raises(UsageError, match=rf"chr2, which the calibration was drawn from \(ref.fa\), {words} new.fa"):
            score_variants("in.vcf", "new.fa", "out.vcf", model=model, **options)
    # One drawn from chr1 alone goes with both.
    run(model, per_class=1, regions="chr1")
    score_variants("in.vcf", "new.fa", "out.vcf", model=model, **options)


def test_damaged_files(model):
    run(model, per_class=1)
    write_vcf()
    whole = Path("cal.tsv").read_text()
    damages = (
        (whole[: whole.index("\n", len(whole) - 60) + 1], "the scores are not those that its header counts"),
        (whole[:-3], "no score: "), (re.sub(r"\t[-0-9.]+\t0\n$", "\tnan\t0\n", whole), "no score: "),
        (whole.replace("PerClass", "Perhaps"), "is no calibration"), ("#chrom\tpos\n", "is no calibration"),
        ("chr1\t5\n", "is no calibration"), ("", "is no calibration"),
    )  # fmt: skip
    for text, words in damages:
        Path("cal.tsv").write_text(text)
        with pytest.raises(DataError, match=words) as caught:
            score_variants("in.vcf", "ref.fa", "out.vcf", model=model, calibration="cal.tsv", **OPTIONS)
        assert caught.value.exit_code == 3 and "cal.tsv" in str(caught.value)


def test_options_that_do_not_do(model):
    for options, option in (({"per_class": 0}, "per-class"), ({"seed": -1}, "seed"), ({"stride": 0}, "stride")):
        with pytest.raises(UsageError, match=f"--{option}: is "):
            run(model, **options)
    with pytest.raises(UsageError, match="the output is a table"):
        run(model, "out.vcf")
    Path("r.tsv").write_text("chr1\t5\t60\n")
    with pytest.raises(UsageError, match=r"the output is the input r\.tsv"):
        run(model, "r.tsv", regions_file="r.tsv")
    with pytest.raises(UsageError, match="exists already; give --force"):
        run(model, "r.tsv", force=False)
