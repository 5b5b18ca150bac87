"""score-variants --haplotypes: joint scores by hand, by brute force and by one record; every call accounted for.

toy models and phased VCFs -> HD_HAP, HD_EPI -> numbers from whole strings; real phased calls -> counts
"""

import itertools
import math
import random
import shutil
from pathlib import Path

import numpy as np
import pysam
import pysam.bcftools
import pytest
from genome_files import put, warnings_of
from toys import markov_log_prob, markov_model, random_model, uniform_model

import hybridna_core
from hybridna_core import haplotype_scores, scoring
from hybridna_core.commands.explain import explain
from hybridna_core.commands.score_variants import score_variants
from hybridna_core.commands.verify import verify
from hybridna_core.data import haplotypes
from hybridna_core.errors import DataError, UsageError
from hybridna_core.tokenizer import reverse_complement

TABLE = np.array([[0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.4, 0.1], [0.7, 0.1, 0.1, 0.1], [0.05, 0.15, 0.5, 0.3]])
SEQUENCE = "".join(random.Random(5).choices("ACGT", k=900))
HEADER = (
    "##fileformat=VCFv4.2\n##contig=<ID=chr1,length=900>\n"
    '##FORMAT=<ID=GT,Number=1,Type=String,Description="Genotype">\n'
    '##FORMAT=<ID=DP,Number=1,Type=Integer,Description="Depth">\n'
    '##FORMAT=<ID=PS,Number=1,Type=Integer,Description="Phase set">\n'
    '##INFO=<ID=END,Number=1,Type=Integer,Description="End">\n'
    "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO"
)


@pytest.fixture(scope="module")
def model():
    return random_model(4)


@pytest.fixture(autouse=True)
def genome(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return put(tmp_path, f">chr1\n{SEQUENCE}\n>chr2\n{SEQUENCE[::-1]}\n".encode(), "ref.fa")


def other(base):
    return "ACGT"["ACGT".index(base) - 1]


def snv(pos, *samples):
    return pos, SEQUENCE[pos - 1], other(SEQUENCE[pos - 1]), *samples


def write(*records, layout="GT", name="in.vcf"):
    """Write a VCF of (pos, ref, alt, sample, ...) on chr1; a ref `<DEL>` style ALT takes its END from layout's use."""
    count = len(records[0]) - 3 if records else 1
    lines = [HEADER + "\tFORMAT" + "".join(f"\ts{i + 1}" for i in range(count))]
    for pos, ref, alt, *samples in records:
        info = f"END={pos + 20}" if alt.startswith("<DEL") else "."
        lines.append("\t".join(["chr1", str(pos), ".", ref, alt, ".", ".", info, layout, *samples]))
    Path(name).write_text("".join(f"{line}\n" for line in lines))
    return name


def run(vcf, model, output="out.vcf", **options):
    options = {"window": 64, "force": True, "haplotypes": True, **options}
    return score_variants(vcf, "ref.fa", output, model=model, **options)


def lines(path="out.vcf"):
    return [line.split("\t") for line in Path(path).read_text().splitlines() if not line.startswith("#")]


def values(key="HD_HAP", path="out.vcf"):
    """Values of every record and sample, as lists of text; `.` where there is none."""
    found = []
    for line in lines(path):
        keys = line[8].split(":")
        for sample in line[9:]:
            given = dict(zip(keys, sample.split(":"), strict=False))
            found.append(given.get(key, ".").split(","))
    return found


def number(text):
    return math.nan if text == "." else float(text)


# --- Numbers ---------------------------------------------------------------------------------------------------------


def change(sequence, variants):
    """Put variants (pos, ref, alt), sorted, into a sequence."""
    for pos, ref, alt in sorted(variants, reverse=True):
        assert sequence[pos - 1 : pos - 1 + len(ref)] == ref
        sequence = sequence[: pos - 1] + alt + sequence[pos - 1 + len(ref) :]
    return sequence


def brute(variants, log_prob, window=64, horizon=32, sequence=SEQUENCE):
    """HAP and EPI from whole strings. log_prob: string, number of the first base that counts -> nats"""
    joint, excess = [], []
    sets = [variants, *([variant] for variant in variants)]
    for turn in (str, reverse_complement):
        reference = turn(sequence)
        haplotypes = [turn(change(sequence, some)) for some in sets]
        places = [next(i for i, (a, b) in enumerate(itertools.zip_longest(h, reference)) if a != b) for h in haplotypes]
        first, last = min(places), max(places)
        start = max(0, first - (window - horizon))
        count = min(last - first + horizon, *(len(h) - first for h in (reference, *haplotypes)))
        due, together, *alone = (log_prob(h[start : first + count], first - start) for h in (reference, *haplotypes))
        joint.append(together - due)
        excess.append(together - due - sum(one - due for one in alone))
    return np.mean(joint), np.mean(excess)


def by_model(model):
    return lambda text, first: hybridna_core.log_probs(model, [text])[0][first:].sum()


PAIRS = {
    "near": [snv(300), snv(301)],
    "apart": [snv(300), snv(330)],
    "three": [snv(300), snv(310), snv(340)],
    "deletions": [(300, SEQUENCE[299:304], SEQUENCE[299]), (320, SEQUENCE[319:322], SEQUENCE[319])],
    "frame restored": [(300, SEQUENCE[299], SEQUENCE[299] + "GA"), (312, SEQUENCE[311:314], SEQUENCE[311])],
    "insertions": [(300, SEQUENCE[299], SEQUENCE[299] + "GATTACA"), (309, SEQUENCE[308], SEQUENCE[308] + "CC")],
    "first base": [snv(1), snv(5)],
    "last base": [snv(890), snv(900)],
    "MNV and deletion": [(400, SEQUENCE[399:402], "GATC"), (402 + 5, SEQUENCE[406:416], SEQUENCE[406])],
}


@pytest.mark.parametrize("name", PAIRS)
def test_joint_scores_equal_whole_strings(model, name):
    variants = PAIRS[name]
    summary = run(write(*((*variant, "0|1") for variant in variants)), model)
    hap, epi = brute(variants, by_model(model))
    found = [(number(h[1]), number(e[1])) for h, e in zip(values(), values("HD_EPI"), strict=True)]
    assert found == [pytest.approx((hap, epi), abs=1e-4)] * len(variants)
    assert abs(epi) > 1e-3 and [h[0] for h in values()] == ["."] * len(variants)
    assert summary.haplotypes == {"clusters": 1, "clusters_read": 1, "clusters_ok": 1}


def test_markov_model_on_paper():
    """Two neighbours meet in one transition; two further apart do not meet at all."""
    run(write(*((*variant, "1|0") for variant in PAIRS["near"])), markov_model(TABLE))
    before, a, b, after = SEQUENCE[298:302]
    x, y = other(a), other(b)

    def step(one, two):
        return math.log(TABLE["ACGT".index(one), "ACGT".index(two)])

    def turned(one, two):
        return step(reverse_complement(two), reverse_complement(one))

    due, excess = 0, 0
    for s in (step, turned):
        due += s(before, x) + s(x, y) + s(y, after) - s(before, a) - s(a, b) - s(b, after)
        excess += s(x, y) + s(a, b) - s(x, b) - s(a, y)
    for hap, epi in zip(values(), values("HD_EPI"), strict=True):
        assert number(hap[0]) == pytest.approx(due / 2, abs=3e-5)
        assert number(epi[0]) == pytest.approx(excess / 2, abs=3e-5) and abs(excess) > 0.1
    run(write(*((*variant, "1|0") for variant in PAIRS["three"])), markov_model(TABLE))
    hap, _ = brute(PAIRS["three"], lambda text, first: markov_log_prob(TABLE, text))
    assert [number(h[0]) for h in values()] == [pytest.approx(hap, abs=5e-5)] * 3 and abs(hap) > 0.1
    assert [number(e[0]) for e in values("HD_EPI")] == [pytest.approx(0, abs=5e-5)] * 3


@pytest.mark.parametrize("name", ["three", "frame restored", "last base"])
def test_uniform_model_scores_zero(name):
    run(write(*((*variant, "0|1") for variant in PAIRS[name])), uniform_model())
    assert values() == values("HD_EPI") == [[".", "0"]] * len(PAIRS[name])


@pytest.mark.parametrize("distance", [1, 4, 31])
def test_two_records_equal_one(model, distance):
    """A cluster counts H bases from its last change on: with as much more of window and horizon, one record does."""
    pair = [snv(300), snv(300 + distance)]
    run(write(*((*variant, "1") for variant in pair)), model, stride=4)
    found = {value for (value,) in values()}
    text = SEQUENCE[299 : 300 + distance]
    (merged,) = [(300, text, other(text[0]) + text[1:-1] + other(text[-1]), "1")]
    run(write(merged), model, window=64 + distance, horizon=32 + distance, stride=4)
    (llr,) = {line[7].split(";")[0] for line in lines()}
    assert {f"HD_LLR={value}" for value in found} == {llr}


def test_lone_variant_has_its_own_score(model):
    """... which is what reading it as a cluster gives, bit for bit."""
    records = [snv(300), (400, SEQUENCE[399:403], SEQUENCE[399]), (500, SEQUENCE[499], "GATTACA"), snv(899)]
    summary = run(write(*((*record, "1|1") for record in records)), model)
    llrs = [line[7].split(";")[0].removeprefix("HD_LLR=") for line in lines()]
    assert values() == [[llr, llr] for llr in llrs] and len(set(llrs)) == 4
    assert values("HD_EPI") == [["0", "0"]] * 4
    assert summary.haplotypes == {"clusters": 8, "clusters_read": 0, "clusters_ok": 8}
    plan = scoring.make_plan(model.config, 64, None, 1)
    with hybridna_core.data.genome.open_genome("ref.fa") as genome:
        scorer = scoring.Scorer(model, genome, plan)
        for (pos, ref, alt), llr in zip(records, llrs, strict=True):
            piece = haplotypes.Piece(0, len(alt), ids=hybridna_core.tokenizer.encode(alt))
            variant = haplotypes.trim(
                hybridna_core.data.variants.Variant("chr1", pos - 1, pos - 1 + len(ref), (piece,)), genome
            )
            score = haplotype_scores.score_jointly(scorer, [variant], 4095)
            assert (haplotype_scores.spell_number(score.llr), score.excess) == (llr, 0)


def test_distance_makes_the_cluster(model):
    """Fewer than H unchanged bases between two changes."""
    for distance, count in ((32, 1), (33, 2)):
        summary = run(write(*((*v, "0|1") for v in (snv(300), snv(300 + distance)))), model)
        assert summary.haplotypes["clusters"] == count
    # A deletion counts from its end.
    for distance, count in ((24 + 32, 1), (24 + 33, 2)):
        deletion = (300, SEQUENCE[299:324], SEQUENCE[299])
        summary = run(write((*deletion, "0|1"), snv(300 + distance, "0|1")), model)
        assert summary.haplotypes["clusters"] == count


def test_spelling_changes_nothing(model):
    """Padded on either side, also so far that POS changes the order of the records."""
    plain = [snv(300), (310, SEQUENCE[309:313], SEQUENCE[309]), snv(322)]
    run(write(*((*record, "1|0") for record in plain)), model)
    due = values(), values("HD_EPI")
    padded = [
        (300, SEQUENCE[299:304], other(SEQUENCE[299]) + SEQUENCE[300:304]),
        (290, SEQUENCE[289:316], SEQUENCE[289:310] + SEQUENCE[313:316]),
        (321, SEQUENCE[320:322], SEQUENCE[320] + other(SEQUENCE[321])),
    ]
    run(write(*((*record, "1|0") for record in sorted(padded))), model)
    assert (values(), values("HD_EPI")) == due
    # 32 bases before its first change, and so outside the cluster however it is spelt.
    far = (250, SEQUENCE[249:267], SEQUENCE[249:266] + other(SEQUENCE[266]))
    summary = run(write(*((*record, "1|0") for record in sorted([far, *padded]))), model)
    assert summary.haplotypes["clusters"] == 2 and values()[1:] == due[0]


def test_haplotypes_are_scored_once(model, monkeypatch):
    """Many samples, few haplotypes; and no haplotype changes another."""
    pair = [snv(300), snv(310)]
    run(write(*((*variant, "0|1") for variant in pair)), model)
    due = values()[0][1]
    counted = []
    original = haplotype_scores.score_jointly
    monkeypatch.setattr(haplotype_scores, "score_jointly", lambda *a: counted.append(1) or original(*a))
    calls = [["1|1", "0|1", "1|0"] * 40, ["1|1", "0|1", "0|1"] * 40]
    summary = run(write(*((*variant, *call) for variant, call in zip(pair, calls, strict=True))), model)
    assert counted == [1] and summary.haplotypes["clusters"] == 40 * (2 + 1 + 2)
    first = values()[:120]
    assert first[:2] == [[due, due], [".", due]] and first[2] == [lines()[0][7].split(";")[0][7:], "."]


# --- Calls -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "phase, call, due",
    [
        ("a", "0/1", "01"), ("m", "0/1", "1"), ("R", "0/1", "11"), ("s", "0/1", ""), ("r", "0/0", ""),
        ("r", "0|1", "01"), ("m", "0|1", "1"), ("R", "0|1", "01"), ("m", "2|1", "2"), ("a", "1/2", "12"),
        ("r", ".|1", "01"), ("s", "./1", ""), ("a", "./1", "01"), ("R", "./1", "01"), ("m", "./1", "1"),
        ("r", "1", "1"), ("r", "0|1|1|0", "0110"), ("R", "0/0/1", "111"), ("m", "0/0/2", "2"), ("r", ".", ""),
        ("r", "|0|1", "01"), ("s", "/0/1", ""), ("r", "0|9", ""), ("r", "x|1", ""), ("r", "", ""),
        ("r", "1/1", "11"), ("r", "1/1/1", "111"), ("R", "2/1", "21"), ("r", "./.", ""),
    ],
)  # fmt: skip
def test_calls(model, phase, call, due):
    """due: the ALT whose score stands on each haplotype, 0 for none; empty without any."""
    bases = [base for base in "ACGT" if base != SEQUENCE[299]]
    summary = run(write((300, SEQUENCE[299], ",".join(bases[:2]), call)), model, phase=phase)
    llrs = lines()[0][7].split(";")[0].removeprefix("HD_LLR=").split(",")
    assert values() == [[([".", *llrs])[int(allele)] for allele in due] or ["."]]
    if not due:
        # Nothing to say: the columns stay as they are.
        assert lines()[0][8:] == ["GT", call]
    counts = summary.haplotypes
    assert counts["clusters"] == counts.get("clusters_ok", 0) == len(due.replace("0", ""))
    is_open = "/" in call and len(set(call.strip("/").split("/"))) > 1
    assert counts.get("calls_unphased", 0) == is_open
    assert counts.get("calls_missing", 0) == ("." in call)
    assert counts.get("calls_bad", 0) == (call in ("0|9", "x|1", ""))


def test_unphased_calls_are_refused(model):
    vcf = write(snv(300, "1|1", "0|1"), snv(305, "1/1", "1/0"))
    with pytest.raises(DataError, match=r"in\.vcf:9: chr1:305: sample s2 is heterozygous and not phased \(1/0\)") as e:
        run(vcf, model)
    assert e.value.exit_code == 3 and "--phase s skips" in str(e.value) and not Path("out.vcf").exists()


def test_merged_calls_have_one_haplotype(model):
    run(write(snv(300, "0|1"), snv(310, "1/0")), model, phase="m")
    hap, epi = brute([snv(300), snv(310)], by_model(model))
    assert [number(value) for (value,) in values()] == [pytest.approx(hap, abs=1e-4)] * 2
    assert [number(value) for (value,) in values("HD_EPI")] == [pytest.approx(epi, abs=1e-4)] * 2


@pytest.mark.parametrize(
    "reason, records, options",
    [
        ("overlap", [(300, SEQUENCE[299:310], SEQUENCE[299], "0|1"), snv(305, "0|1")], {}),
        ("overlap", [snv(300, "0|1"), snv(300, "0|1")], {}),
        ("overlap", [(300, SEQUENCE[299], SEQUENCE[299] + "CAG", "0|1")] * 2, {}),
        ("unknown_allele", [snv(300, "0|1"), (310, SEQUENCE[309], "<INS:ME>", "0|1")], {}),
        ("unknown_allele", [snv(300, "0|1"), (310, SEQUENCE[309], "*", "0|1")], {}),
        ("unknown_allele", [snv(300, "0|1"), (310, other(SEQUENCE[309]), SEQUENCE[309], "0|1")], {}),
        ("phase_sets", [snv(300, "0|1:7"), snv(310, "0|1:8")], {}),
        ("phase_sets", [snv(300, "0|1:7"), snv(310, "0|1")], {"phase": "R"}),
        ("ploidy", [snv(300, "1|0"), snv(310, "1")], {}),
        ("too_long", [(p, SEQUENCE[p - 1], SEQUENCE[p - 1] + "ACGGT" * 4, "0|1") for p in (300, 305)], {}),
        ("too_wide", [snv(300, "0|1"), snv(310, "0|1"), snv(330, "0|1")], {"room": 31 + 32 - 1}),
        ("too_many_variants", [snv(p, "0|1") for p in (300, 310, 320, 321)], {"limit": 3}),
    ],
)  # fmt: skip
def test_haplotypes_without_a_score(model, monkeypatch, reason, records, options):
    """The reason holds for the whole cluster, and for nothing else; alleles keep their own scores."""
    if "room" in options:
        monkeypatch.setattr(type(model.config), "bases_at_once", options.pop("room"))
        options["window"] = 62
    if "limit" in options:
        monkeypatch.setattr(haplotypes, "VARIANTS_LIMIT", options.pop("limit"))
    alone = snv(500, "1|1:7")
    summary = run(write(*records, alone, layout="GT:PS"), model, **{"horizon": 32, **options})
    assert summary.haplotypes[f"clusters_{reason}"] == 1 and summary.haplotypes["clusters_ok"] == 2
    found = values()
    assert found[:-1] == [["."]] * len(records) and "." not in found[-1]
    assert [line[8] for line in lines()] == ["GT:PS"] * len(records) + ["GT:PS:HD_HAP:HD_EPI"]
    assert reason in haplotypes.REASONS


def test_rules_that_know_no_phase_sets(model):
    for phase in "am":
        assert run(write(snv(300, "0|1:7"), snv(310, "0|1:8"), layout="GT:PS"), model, phase=phase).haplotypes == {
            "clusters": 1, "clusters_read": 1, "clusters_ok": 1,
        }  # fmt: skip
    # Homozygous calls belong to any.
    assert run(write(snv(300, "0|1:7"), snv(310, "1|1:8"), layout="GT:PS"), model).haplotypes["clusters_ok"] == 2


def test_star_under_a_deletion_of_the_same_haplotype(model):
    deletion = (300, SEQUENCE[299:310], SEQUENCE[299])
    base = other(SEQUENCE[304])
    run(write((*deletion, "1|0"), (305, SEQUENCE[304], f"*,{base}", "1|2"), snv(315, "1|0")), model)
    hap, _ = brute([deletion, snv(315)], by_model(model))
    found = [[number(value) for value in one] for one in values()]
    assert [one[0] for one in found] == [pytest.approx(hap, abs=1e-4)] * 3
    llr = float(lines()[1][7].split(";")[0].split(",")[1])
    assert found[1][1] == llr


def test_stars_count_for_nothing(model, monkeypatch):
    """However many stand under a deletion, or if it is wider than what is read at once, it stands alone."""
    monkeypatch.setattr(haplotypes, "VARIANTS_LIMIT", 3)
    monkeypatch.setattr(type(model.config), "bases_at_once", 64)
    deletion = (300, SEQUENCE[299:350], SEQUENCE[299], "1|0")
    stars = [(p, SEQUENCE[p - 1], f"{other(SEQUENCE[p - 1])},*", "2|0") for p in range(302, 320, 2)]
    summary = run(write(deletion, *stars), model)
    llr = lines()[0][7].split(";")[0].removeprefix("HD_LLR=")
    assert [one[0] for one in values()] == [llr] * 10 and summary.haplotypes["clusters_ok"] == 1


@pytest.mark.parametrize("places, outcome", [(128, "too_wide"), (512, "ok")])
def test_a_repeat_is_not_read_beyond_what_the_model_reads(monkeypatch, places, outcome):
    """A base of a run of A is taken out: from the left it is the last one that differs, 200 bases on."""
    text = SEQUENCE[:300] + "A" * 200 + SEQUENCE[300:]
    Path("ref.fa").write_text(f">chr1\n{text}\n")
    Path("ref.fa.fai").unlink(missing_ok=True)
    taken, original = [], scoring.Scorer.compare

    def compare(self, contig, comparison, plan=None):
        taken.append(len(comparison.prefix) + len(comparison.alternative))
        return original(self, contig, comparison, plan)

    monkeypatch.setattr(scoring.Scorer, "compare", compare)
    variants = [(*snv(298), "0|1"), (300, SEQUENCE[299] + "A", SEQUENCE[299], "0|1")]
    summary = run(write(*variants), random_model(4, max_position_embeddings=places), window=100)
    assert summary.haplotypes == {"clusters": 1, "clusters_read": 1, f"clusters_{outcome}": 1}
    assert all(count < places for count in taken) and bool(taken) == (outcome == "ok")


def test_base_before_a_deletion_does_not_overlap_it(model):
    pair = [snv(300), (300, SEQUENCE[299:304], SEQUENCE[299])]
    run(write(*((*record, "0|1") for record in pair)), model)
    # The same deletion with the base behind it.
    hap, _ = brute([snv(300), (301, SEQUENCE[300:305], SEQUENCE[304])], by_model(model))
    assert [number(value[1]) for value in values()] == [pytest.approx(hap, abs=1e-4)] * 2


def test_changes_that_cancel(model):
    """A base taken out and put in again: the haplotype is the reference."""
    run_of = "A" * 12
    text = SEQUENCE[:300] + run_of + SEQUENCE[300:]
    Path("ref.fa").write_text(f">chr1\n{text}\n")
    Path("ref.fa.fai").unlink(missing_ok=True)
    summary = run(write((301, "AA", "A", "0|1"), (308, "A", "AA", "0|1")), model)
    assert summary.haplotypes == {"clusters": 1, "clusters_read": 1, "clusters_no_change": 1}


def test_unknown_bases(model):
    text = SEQUENCE[:302] + "N" * 20 + SEQUENCE[322:]
    Path("ref.fa").write_text(f">chr1\n{text}\n")
    Path("ref.fa.fai").unlink(missing_ok=True)
    summary = run(write(snv(300, "0|1"), snv(330, "0|1")), model)
    assert summary.haplotypes["clusters_too_many_n"] == 1 and summary.statuses == {"too_many_n": 2}


# --- Records ---------------------------------------------------------------------------------------------------------


def test_sample_columns_are_kept(model):
    """FORMAT in any order, dropped trailing values, CRLF: what was there stands as it was."""
    text = Path(write(snv(300, "3:1|0", "", "9"), snv(310, "3:1|0:5", "4:0|0", "."), layout="DP:GT:GQ")).read_bytes()
    Path("in.vcf").write_bytes(text.replace(b"\n", b"\r\n"))
    run("in.vcf", model)
    found = [line.split(b"\t")[8:] for line in Path("out.vcf").read_bytes().split(b"\n") if line[:4] == b"chr1"]
    hap, epi = values()[0][0], values("HD_EPI")[0][0].removesuffix("\r")
    added = f":{hap},.:{epi},.".encode()
    assert found == [
        [b"DP:GT:GQ:HD_HAP:HD_EPI", b"3:1|0:." + added, b"", b"9\r"],
        [b"DP:GT:GQ:HD_HAP:HD_EPI", b"3:1|0:5" + added, b"4:0|0", b".\r"],
    ]


@pytest.mark.parametrize("output", ["o.vcf.gz", "o.bcf"])
def test_other_output_types(model, output):
    calls = [("0|1:3", "1|1:4", "."), ("0|1:3", "0|0", "1|0:7"), ("0|0:1", "0|0", "./.")]
    run(write(*(snv(p, *c) for p, c in zip((300, 310, 320), calls, strict=True)), layout="GT:DP"), model)
    due = pysam.bcftools.query("-f", "%POS[ %HD_HAP %HD_EPI]\n", "out.vcf")
    run("in.vcf", model, output=output, write_index=True)
    assert pysam.bcftools.query("-f", "%POS[ %HD_HAP %HD_EPI]\n", output) == due
    with pysam.VariantFile(output) as file:
        records = list(file)
        assert file.header.formats["HD_HAP"].number == "." and file.header.formats["HD_EPI"].type == "Float"
    assert [number(value) for value in values()[0]][1] == pytest.approx(records[0].samples["s1"]["HD_HAP"][1], rel=1e-5)
    assert records[0].samples["s1"]["HD_HAP"][0] is None and records[0].samples["s1"]["DP"] == 3
    # And in again.
    again = run(output, model, output="again.vcf", replace=True)
    assert values(path="again.vcf") == values() and values("HD_EPI", "again.vcf") == values("HD_EPI")
    assert again.records == 3
    run(output, model, output="again.vcf", replace=True, haplotypes=False)
    assert "HD_HAP" not in Path("again.vcf").read_text()
    assert [line[8] for line in lines("again.vcf")] == ["GT:DP"] * 3


def test_fields_that_are_there_already(model):
    run(write(snv(300, "0|1")), model)
    with pytest.raises(UsageError, match="the header has the field HD_LLR already"):
        run("out.vcf", model, output="b.vcf")
    text = Path("out.vcf").read_text().splitlines()
    Path("bare.vcf").write_text(
        "".join(f"{line}\n" for line in text if "ID=HD_LLR" not in line and "=HD_E" not in line)
    )
    with pytest.raises(UsageError, match=r"the header has the field HD_(ST|HAP) already"):
        run("bare.vcf", model, output="b.vcf")
    Path("bare.vcf").write_text("".join(f"{line}\n" for line in text if "##" not in line or "HD_" not in line))
    with pytest.raises(UsageError, match=r"bare\.vcf:\d+: FORMAT has HD_HAP already, undeclared"):
        run("bare.vcf", model, output="b.vcf")
    run("out.vcf", model, output="b.vcf", info_prefix="X_")
    assert lines("b.vcf")[0][8] == "GT:HD_HAP:HD_EPI:X_HAP:X_EPI"


def test_header_and_words(model):
    run(write(snv(300, "0|1"), snv(310, "0|1")), model, phase="s")
    text = Path("out.vcf").read_text()
    assert '##FORMAT=<ID=HD_HAP,Number=.,Type=Float,Description="log P(haplotype) - log P(reference)' in text
    assert 'Haplotypes="phase s, clusters of up to 32 variants"' in text and "--haplotypes --phase s in.vcf" in text
    words = "\n".join(explain("out.vcf"))
    assert "HD_HAP, one number for each haplotype of a sample" in words and "less than 32 bases apart" in words
    assert "HD_EPI: that minus the sum of the same alternatives alone" in words and "Haplotypes by phase s" in words
    assert verify("out.vcf", "ref.fa", model=model).checked == 2
    run("in.vcf", model, haplotypes=False)
    assert "HD_HAP" not in Path("out.vcf").read_text() and "HD_HAP" not in "\n".join(explain("out.vcf"))


def test_what_does_not_go_together(model):
    vcf = write(snv(300, "0|1"))
    for options, message in (
        ({"phase": "q"}, "--phase: is 'q'; one of a "), ({"output": "o.tsv"}, "--haplotypes: a table has no samples"),
        ({"check_ref": "s"}, "--haplotypes: haplotypes are compared with the genome"),
        ({"haplotypes": False, "phase": "a"}, "--phase: means nothing without --haplotypes"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=message):
            run(vcf, model, **options)
    with pytest.raises(DataError, match=r"in\.vcf: the file has no samples; haplotypes are read from GT"):
        run(write((300, SEQUENCE[299], "A")), model)
    assert not Path("out.vcf").exists()


def test_files_without_genotypes(model, caplog):
    summary = run(write(snv(300, "3"), layout="DP"), model)
    assert warnings_of(caplog, "no-genotypes") == ["in.vcf: no record has genotypes (GT), so there are no haplotypes"]
    assert summary.haplotypes == {"clusters": 0, "clusters_read": 0}


def test_records_must_be_sorted(model):
    for records in ([snv(310, "0|1"), snv(300, "0|1")], [snv(310, "0|0"), snv(300, "0|0")]):
        with pytest.raises(DataError, match=r"in\.vcf:9: records are not sorted, so --haplotypes is not possible"):
            run(write(*records), model)
    # What has no place is in nobody's way.
    text = Path(write(snv(300, "0|1"), snv(310, "0|1"))).read_text()
    Path("in.vcf").write_text(text.replace("chr1\t310", "chr1\tx") + "chr9" + text.splitlines()[-1][4:] + "\n")
    summary = run("in.vcf", model)
    assert summary.haplotypes == {"clusters": 3, "clusters_read": 0, "clusters_unknown_allele": 2, "clusters_ok": 1}
    assert [value[-1] == "." for value in values()] == [False, True, True]


def test_no_more_records_wait_than_belong_together(model, monkeypatch):
    """Order is kept, and a record leaves as soon as its clusters are closed; a chain without end is given up."""
    held = []
    original = haplotype_scores.HaplotypeScorer._release

    def release(self):
        yield from original(self)
        held.append(len(self.queue))

    monkeypatch.setattr(haplotype_scores.HaplotypeScorer, "_release", release)
    monkeypatch.setattr(haplotypes, "VARIANTS_LIMIT", 4)
    chain = [snv(pos, "0|1", "0|0") for pos in range(100, 160, 5)]
    summary = run(write(*chain), model)
    assert [int(line[1]) for line in lines()] == list(range(100, 160, 5))
    assert max(held) == 4 and summary.haplotypes["clusters_too_many_variants"] == 1
    assert summary.haplotypes["clusters"] == 1 and values() == [["."]] * 24
    monkeypatch.setattr(haplotype_scores, "HELD_LIMIT", 50)
    with pytest.raises(DataError, match=r"take more than 50 bytes; a smaller --horizon") as caught:
        run(write(*chain), model, output="none.vcf")
    assert caught.value.exit_code == 3 and not Path("none.vcf").exists()


def test_dry_run_counts_haplotypes(model):
    vcf = write(snv(300, "0|1"), snv(310, "0|1"))
    alone = run(vcf, model, dry_run=True, haplotypes=False)
    summary = run(vcf, model, dry_run=True)
    assert summary.haplotypes["clusters_read"] == 1 and summary.tokens > alone.tokens and not Path("out.vcf").exists()


# --- Real calls ------------------------------------------------------------------------------------------------------


def test_real_phased_calls(shared_data, model):
    """NA12878 around BRCA1: every haplotype of a cluster counted, every number that of bcftools' own haplotype."""
    source = shared_data / "edge_vcf/fulcrumgenomics__fgbio/src/test/resources/com/fulcrumgenomics/vcf/testdata"
    text = (source / "NA12878.GIABPedigreev0.2.17.41100000.41300000.hapcut.gatk.vcf").read_text()
    # Those that stand closest.
    text = "".join(f"{line}\n" for line in text.splitlines() if line[0] == "#" or "\t4127" in line)
    Path("real.vcf").write_text(text)
    fasta = shutil.copy(shared_data / "variants/brca/hg19_brca1_brca2_padded.fa.gz", "genome.fa.gz")
    for suffix in (".fai", ".gzi"):
        shutil.copy(shared_data / f"variants/brca/hg19_brca1_brca2_padded.fa.gz{suffix}", f"genome.fa.gz{suffix}")
    Path("names.txt").write_text("17 chr17\n")
    options = {"haplotypes": True, "phase": "s", "rename_chrs": "names.txt"}
    summary = score_variants("real.vcf", fasta, "out.vcf", model=model, window=512, **options)
    counts = summary.haplotypes
    assert summary.records == sum(not line.startswith("#") for line in text.splitlines())
    assert counts["clusters"] == sum(
        n for key, n in counts.items() if key.startswith("clusters_") and key[9:] != "read"
    )
    assert counts["clusters_ok"] > 5 and counts["clusters_read"] > 3 and counts["calls_unphased"] == 4
    with pysam.VariantFile("out.vcf") as file:
        found = [v for r in file for v in r.samples[0].get("HD_HAP", ()) if v is not None]
    assert len(found) >= counts["clusters_ok"] and np.isfinite(found).all()
