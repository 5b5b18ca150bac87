"""Scores of score_variants that must be equal, at the numbers that were asked for.

1,000 random variants in three spellings; symbolic alleles beside the same spelt out; float32 beside float64 at a window
of 8,192
"""

import random
from pathlib import Path

import numpy as np
import pytest
from genome_files import put
from toys import random_model

from hybridna_core.commands.score_variants import score_variants
from hybridna_core.data.genome import open_genome
from hybridna_core.data.variants import Allele, Piece, Variant
from hybridna_core.scoring import Plan, Scorer
from hybridna_core.tokenizer import encode, reverse_complement

RANDOM = random.Random(17)
UNITS = ["A" * 14, "CA" * 11, "TTAGGG" * 6, "GAA" * 9, "ACGTACGATT" * 4]
# Stretches without repeats and with, in turn.
SEQUENCE = "".join("".join(RANDOM.choices("ACGT", k=90)) + unit for unit in UNITS * 4)
HEADER = "##fileformat=VCFv4.2\n##contig=<ID=1>\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"


@pytest.fixture(autouse=True)
def genome(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return put(tmp_path, f">1\n{SEQUENCE}\n".encode(), "ref.fa")


def draw_variant(rng):
    """Return start, reference and alternative bases of a random change: SNV, MNV, insertion, deletion, complex."""
    kind, start = rng.choice(["snv", "mnv", "ins", "del", "complex"]), rng.randrange(20, len(SEQUENCE) - 60)
    if kind in ("ins", "del") and rng.random() < 0.5:
        # A unit more or less of a repeat, which can be spelt at many places.
        unit = rng.choice([2, 3, 6])
        found = SEQUENCE[start : start + unit]
        return (start, found, found * 2) if kind == "ins" else (start, found, "")
    size = {"snv": 1, "ins": 0}.get(kind, rng.randrange(2, 9))
    ref = SEQUENCE[start : start + size]
    count = {"del": 0, "complex": rng.randrange(1, 9), "ins": rng.randrange(1, 9)}.get(kind, size)
    while (alt := "".join(rng.choices("ACGT", k=count))) == ref:
        pass
    return start, ref, alt


def slide(start, ref, alt, step):
    """Move a change as far as it goes to the left (step -1) or right (1) without changing the result."""
    while ref == "" or alt == "":
        bases = ref or alt
        if step < 0 and start > 1 and SEQUENCE[start - 1] == bases[-1]:
            start, bases = start - 1, bases[-1] + bases[:-1]
        elif step > 0 and start + len(ref) < len(SEQUENCE) - 1 and SEQUENCE[start + len(ref)] == bases[0]:
            start, bases = start + 1, bases[1:] + bases[0]
        else:
            break
        ref, alt = (bases, "") if ref else ("", bases)
    return start, ref, alt


def trim(start, ref, alt):
    """Take away what both begin and end with."""
    while ref and alt and ref[-1] == alt[-1]:
        ref, alt = ref[:-1], alt[:-1]
    while ref and alt and ref[0] == alt[0]:
        start, ref, alt = start + 1, ref[1:], alt[1:]
    return start, ref, alt


def pad(start, ref, alt, left, right):
    """Spell a change with so many bases before and after it, and at least one each, as VCF needs."""
    end = start + len(ref)
    left = max(left, 0 if ref and alt else 1)
    before, after = SEQUENCE[start - left : start], SEQUENCE[end : end + right]
    return start - left, before + ref + after, before + alt + after


def write(name, changes):
    """Write a VCF of changes (start, ref, alt[, info]), start 0-based, in the given order."""
    lines = [f"1\t{start + 1}\t.\t{ref}\t{alt}\t.\t.\t{''.join(info) or '.'}\n" for start, ref, alt, *info in changes]
    Path(name).write_text(HEADER + "".join(lines))
    return name


def score(changes, model, **options):
    options = {"window": 48, "horizon": 24, "force": True, "output_type": "t", **options}
    score_variants(write("in.vcf", changes), "ref.fa", "out.tsv", model=model, **options)
    lines = [line.split("\t") for line in Path("out.tsv").read_text().splitlines() if line[0] != "#"]
    assert {line[7] for line in lines} == {"ok"}
    return np.array([float(line[5]) for line in lines])


def test_three_spellings_of_1000_variants_have_one_score():
    rng, model = random.Random(5), random_model(4, layer_types=("mamba",))
    drawn = [trim(*draw_variant(rng)) for _ in range(1000)]
    left = [pad(*slide(*change, -1), 0, 0) for change in drawn]
    right = [pad(*slide(*change, 1), 1, rng.randrange(1, 7)) for change in drawn]
    padded = [pad(*change, rng.randrange(2, 9), rng.randrange(9)) for change in drawn]
    assert sum(a[0] + len(a[1]) < b[0] for a, b in zip(left, right, strict=True)) > 100
    # The oracle: each result is the same text.
    for spellings in zip(left, right, padded, strict=True):
        assert len({SEQUENCE[:s] + alt + SEQUENCE[s + len(ref) :] for s, ref, alt in spellings}) == 1
        assert all(SEQUENCE[s : s + len(ref)] == ref for s, ref, _ in spellings)
    # One after the other, so that what is read of the reference is shared.
    mixed = [change for spellings in zip(left, right, padded, strict=True) for change in spellings]
    found = score(mixed, model).reshape(1000, 3).T
    assert np.abs(found[0] - found[1]).max() <= 1e-6 and np.abs(found[0] - found[2]).max() <= 1e-6
    assert np.std(found[0]) > 0.5 and len(np.unique(found[0])) > 900


def test_symbolic_alleles_have_the_scores_of_the_same_spelt_out():
    inner = SEQUENCE[300:317]
    put_in = {
        ("<DEL>", "END=317"): "", ("<DEL>", "SVLEN=-17"): "", ("<DEL>", "SVLEN=17"): "",
        ("<DUP>", "END=317"): inner * 2, ("<DUP:TANDEM>", "SVLEN=17"): inner * 2,
        ("<INV>", "SVLEN=17;END=317"): reverse_complement(inner), ("<INS>", "SVINSSEQ=GATTACA"): "GATTACA" + inner,
        ("<INS>", "INSSEQ=GATTACA;SVLEN=7;END=300;CIPOS=0,0"): "GATTACA" + inner,
        ("<DEL>", "END=317;SVINSSEQ=TTT;CIPOS=0,2;CIEND=0,2;HOMLEN=2"): "TTT",
    }  # fmt: skip
    before = SEQUENCE[299]
    symbolic = [(299, before, alt, info) for alt, info in put_in]
    spelt = [(299, before + inner, before + text) for text in put_in.values()]
    found = score([*symbolic, *spelt], random_model(4))
    assert np.array_equal(found[: len(spelt)], found[len(spelt) :])
    assert len(np.unique(found)) == 5


def test_float32_is_within_a_ten_thousandth_of_float64_at_a_window_of_8192(tmp_path):
    text = "".join(random.Random(3).choices("ACGT", k=9000))
    plan, start = Plan(8192, 4096, 1), 4400
    model = random_model(4, max_position_embeddings=16384)
    change = Variant("1", start, start + 2, (Piece(0, 3, ids=encode("GAT")),))
    with open_genome(put(tmp_path, f">1\n{text}\n".encode(), "long.fa")) as genome:
        single = Scorer(model, genome, plan).score(Allele("ok", change))
        double = Scorer(model.double(), genome, plan).score(Allele("ok", change))
    for a, b in ((single.llr, double.llr), (single.forward, double.forward), (single.reverse, double.reverse)):
        assert abs(a - b) <= 1e-4 * max(abs(b), 1) and abs(b) > 0.1
