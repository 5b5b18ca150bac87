"""Simple scores beside a model's, worked out by hand on a few alleles."""

import numpy as np
import pytest

from hybridna_core.baselines import gc_change, is_transition, markov_llr
from hybridna_core.data.genome import open_genome
from hybridna_core.data.markov import MarkovModel
from hybridna_core.data.variants import read_alleles
from hybridna_core.data.vcf import Record
from hybridna_core.scoring import Plan
from hybridna_core.tokenizer import encode, reverse_complement

CONTIG = "ACGTTGCAACGGTATTCAGCCATGACGTAT"


@pytest.fixture
def genome(tmp_path):
    (tmp_path / "g.fa").write_text(f">c\n{CONTIG}\n")
    with open_genome(tmp_path / "g.fa") as found:
        yield found


def read(genome, pos, ref, alt, info=".", check_ref="w"):
    columns = [b"c", b"%d" % pos, b".", ref.encode(), alt.encode(), b".", b".", info.encode()]
    (allele,) = read_alleles(Record(1, columns, b""), genome, check_ref=check_ref)
    assert allele.variant is not None, allele
    return allele.variant


@pytest.mark.parametrize(
    ("pos", "ref", "alt", "info", "gained", "transition"),
    [
        (1, "A", "G", ".", 1, True),
        (1, "A", "C", ".", 1, False),
        (1, "A", "T", ".", 0, False),
        (2, "C", "T", ".", -1, True),
        (2, "C", "G", ".", 0, False),
        (2, "C", "A", ".", -1, False),
        # The same change with a base on either side; two changes; an insertion and a deletion.
        (1, "ACG", "ATG", ".", -1, True),
        (2, "CG", "TA", ".", -2, False),
        (1, "A", "ACG", ".", 2, False),
        (9, "ACGG", "A", ".", -3, False),
        (9, "ACG", "GA", ".", -1, False),
        (9, "A", "<DEL>", "SVLEN=-3", -3, False),
        (9, "A", "<DUP>", "SVLEN=3", 3, False),
        (9, "A", "<INV>", "SVLEN=4", 0, False),
    ],
)
def test_by_hand(genome, pos, ref, alt, info, gained, transition):
    variant = read(genome, pos, ref, alt, info)
    assert (gc_change(variant, genome), is_transition(variant, genome)) == (gained, transition)


def test_swapped_alleles_change_their_sign(genome):
    variant = read(genome, 1, "G", "A", check_ref="s")
    assert variant.sign == -1 and gc_change(variant, genome) == -1 and is_transition(variant, genome)
    markov = MarkovModel(2)
    markov.add(encode("ACGTTTGACA" * 30))
    plain = markov_llr(markov, read(genome, 1, "A", "G"), genome, Plan(60, 30, 1))
    assert markov_llr(markov, variant, genome, Plan(60, 30, 1)) == -plain != 0


@pytest.mark.parametrize(("pos", "ref", "alt"), [(12, "G", "T"), (12, "GT", "AA"), (12, "G", "GACA"), (12, "GTA", "G")])
def test_markov_ratio_counts_equally_many_bases_of_both(genome, pos, ref, alt):
    markov = MarkovModel(3)
    markov.add(encode("ACGTTTGACAGGA" * 30))
    changed, ratios = CONTIG[: pos - 1] + alt + CONTIG[pos - 1 + len(ref) :], []
    assert CONTIG[pos - 1 :].startswith(ref)
    for one, other in ((CONTIG, changed), (reverse_complement(CONTIG), reverse_complement(changed))):
        first = next(i for i in range(30) if one[i] != other[i])
        count = min(8, len(one) - first, len(other) - first)
        sums = [np.sum(markov.log2_probs(encode(t))[3][first : first + count]) for t in (one, other)]
        ratios.append((sums[1] - sums[0]) * np.log(2))
    found = markov_llr(markov, read(genome, pos, ref, alt), genome, Plan(20, 8, 1))
    assert found == pytest.approx(np.mean(ratios), abs=1e-10)


def test_markov_ratio_of_a_first_order_table(genome):
    """T after A three times in four, counted without smoothing to speak of."""
    markov = MarkovModel(1)
    markov.add(encode("AT" * 60 + "N" + "ACAG" * 10))
    # G at 12 of CGGTA turns into A: of CGG-G-TA and its reverse complement only the words at the change differ.
    bits = {word: markov.log2_probs(encode(word))[1][1] for word in ("GG", "GT", "GA", "AT", "AC", "CC", "TC", "CT")}
    forward = bits["GA"] + bits["AT"] - bits["GG"] - bits["GT"]
    reverse = bits["AT"] + bits["TC"] - bits["AC"] - bits["CC"]
    found = markov_llr(markov, read(genome, 12, "G", "A"), genome, Plan(20, 8, 1))
    assert found == pytest.approx((forward + reverse) / 2 * np.log(2), abs=1e-12)
