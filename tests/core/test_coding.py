"""Coding sequence: reading frames and classes of change, against Biopython's translation of the changed sequence."""

import gzip

import numpy as np
import pytest
from Bio.Seq import Seq

from hybridna_core.data import coding
from hybridna_core.data.coding import CLASSES, enumerate_variants, genetic_code, read_transcripts, sample_variants
from hybridna_core.data.genome import open_genome
from hybridna_core.errors import DataError, HybriDNAError, UsageError
from hybridna_core.tokenizer import reverse_complement

# Two exons of a plus-strand gene of 12 codons that split a codon, one exon of a minus-strand gene of 6 codons.
GENE = "ATGCTGTCATTATGGAAACGAAGANNNGGACTATAA"
LEFT, INTRON, RIGHT = GENE[:10], "GTAAGTTTTAG", GENE[10:]
MINUS = "ATGTTGCTGCGATACTGA"
CONTIG = "CCCCC" + LEFT + INTRON + RIGHT + "GGGG" + reverse_complement(MINUS) + "TTTT"
PLUS_AT, MINUS_AT = 5, 5 + len(GENE) + len(INTRON) + 4
LINES = [
    ("c1", 6, 15, "+", 0, "g1"),
    ("c1", 6 + 10 + len(INTRON), 5 + len(GENE) + len(INTRON), "+", 2, "g1"),
    ("c1", MINUS_AT + 1, MINUS_AT + len(MINUS), "-", 0, "g2"),
]


def write_gff(path, lines):
    rows = [
        f"{contig}\tx\tCDS\t{start}\t{end}\t.\t{strand}\t{phase}\tID=c{i};Parent={name}"
        for i, (contig, start, end, strand, phase, name) in enumerate(lines)
    ]
    path.write_text("##gff-version 3\n" + "\n".join(rows) + "\n")
    return path


@pytest.fixture
def genome(tmp_path):
    (tmp_path / "g.fa").write_text(f">c1\n{CONTIG}\n>c2\n{'ACGT' * 10}\n")
    with open_genome(tmp_path / "g.fa") as genome:
        yield genome


def read(tmp_path, genome, lines=LINES):
    return read_transcripts(write_gff(tmp_path / "a.gff3", lines), genome)


def classes_by_translation(gene, first, table):
    """Every change of a coding sequence and its class, by translating the whole changed sequence."""
    found = {}
    before = str(Seq(gene).translate(table))
    for place in range(3, len(gene)):
        for alt in "ACGT":
            codon = gene[place // 3 * 3 : place // 3 * 3 + 3]
            if alt == gene[place] or "N" in codon or before[place // 3] == "*":
                continue
            after = str(Seq(gene[:place] + alt + gene[place + 1 :]).translate(table))
            kind = "stop_gained" if after[place // 3] == "*" else "synonymous" if after == before else "missense"
            found[first(place), gene[place], alt, place % 3 + 1, codon] = kind
    return found


@pytest.mark.parametrize("table", [1, 12, 4, 2])
def test_classes_are_those_of_a_translation(tmp_path, genome, table):
    transcripts = read(tmp_path, genome)
    variants = enumerate_variants(genome, transcripts, genetic_code(table))
    found = {}
    for number, start, ref, alt, place, codon, kind in zip(*variants, strict=True):
        key = (int(start), "ACGT"[ref], "ACGT"[alt], int(place), coding.spell_codon(int(codon)))
        assert transcripts[number].strand == ("+" if start < MINUS_AT else "-")
        found[key] = CLASSES[kind]
    due = {}
    for gene, first in (
        (GENE, lambda at: PLUS_AT + at + (len(INTRON) if at >= 10 else 0)),
        (MINUS, lambda at: MINUS_AT + len(MINUS) - 1 - at),
    ):
        if "*" not in str(Seq(gene).translate(table))[:-1]:
            due |= classes_by_translation(gene, first, table)
    assert found == due and set(due.values()) == set(CLASSES)
    for start, ref, *_ in found:
        base = CONTIG[start]
        assert ref == (base if start < MINUS_AT else reverse_complement(base))


def test_genetic_codes_differ_where_they_should():
    codons = [a + b + c for a in "ACGT" for b in "ACGT" for c in "ACGT"]
    differ = [c for c, a, b in zip(codons, genetic_code(1), genetic_code(12), strict=True) if a != b]
    assert differ == ["CTG"] and genetic_code(12)[codons.index("CTG")] == "S"
    with pytest.raises(UsageError, match="no genetic code"):
        genetic_code(7)


def test_bases_of_two_transcripts_are_left_out(tmp_path, genome):
    alone = enumerate_variants(genome, read(tmp_path, genome), genetic_code(12))
    twice = [*LINES, ("c1", PLUS_AT + 7, PLUS_AT + 9, "+", 0, "g3")]
    both = enumerate_variants(genome, read(tmp_path, genome, twice), genetic_code(12))
    gone = set(alone.start.tolist()) - set(both.start.tolist())
    assert gone == set(range(PLUS_AT + 6, PLUS_AT + 9))


def test_phase_and_cut_ends(tmp_path, genome):
    """A CDS that starts inside a codon and ends inside one: frames come from the phase."""
    cut = [("c1", PLUS_AT + 2, PLUS_AT + 8, "+", 2, "g")]
    (one,) = read(tmp_path, genome, cut)
    places, bases = coding.coding_ids(genome, one)
    assert places.tolist() == list(range(PLUS_AT + 3, PLUS_AT + 6))
    assert "".join("ACGT"[b] for b in bases) == GENE[3:6]


def test_bed_gives_the_same_frames(tmp_path, genome):
    rows = [f"{c}\t{start - 1}\t{end}\t{name}\t0\t{strand}" for c, start, end, strand, _, name in LINES]
    with gzip.open(tmp_path / "a.bed.gz", "wt") as handle:
        handle.write("\n".join(rows) + "\n")
    found = read_transcripts(tmp_path / "a.bed.gz", genome)
    assert found == read(tmp_path, genome)


def test_transcripts_with_a_stop_inside_are_left_out(tmp_path, genome, caplog):
    # TAAGTTTTA in the intron: a stop, and two more codons.
    more = [*LINES, ("c1", PLUS_AT + 12, PLUS_AT + 20, "+", 0, "g3")]
    variants = enumerate_variants(genome, read(tmp_path, genome, more), genetic_code(12))
    assert not set(variants.start.tolist()) & set(range(PLUS_AT + 11, PLUS_AT + 20))
    assert "1 of 3 transcripts have a stop inside" in caplog.text


def test_sample_is_drawn_per_class_and_repeatable(tmp_path, genome):
    variants = enumerate_variants(genome, read(tmp_path, genome), genetic_code(12))
    counts = {coding.STOP_GAINED: 5, coding.SYNONYMOUS: None}
    first, again, other = (sample_variants(variants, counts, seed) for seed in (1, 1, 2))
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first.start, other.start)
    kinds = np.bincount(first.kind, minlength=3)
    assert kinds[coding.STOP_GAINED] == 5 and kinds[coding.MISSENSE] == 0
    assert kinds[coding.SYNONYMOUS] == np.count_nonzero(variants.kind == coding.SYNONYMOUS)
    assert len(set(zip(first.start, first.alt, strict=True))) == len(first.start)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (">c1\nACGT\n", "looks like FASTA"),
        ("c1\tx\tCDS\t1\t9\n", ":1: 5 columns, nine are due"),
        ("c1\tx\tCDS\t9\t1\t.\t+\t0\tParent=g\n", "counted from 1"),
        ("c1\tx\tCDS\t1\t9\t.\t.\t0\tParent=g\n", "strand + or -"),
        ("c1\tx\tCDS\t1\t9\t.\t+\t.\tParent=g\n", "phase 0, 1 or 2"),
        ('c1\tx\tCDS\t1\t9\t.\t+\t0\tgene_id "g"\n', "GFF3, not GTF"),
        ("c1\tx\tCDS\t1\t99999\t.\t+\t0\tParent=g\n", "past the end of c1"),
        ("c9\tx\tCDS\t1\t9\t.\t+\t0\tParent=g\n", "no CDS is on a contig"),
        ("c1\tx\tgene\t1\t9\t.\t+\t.\tID=g\n", "no CDS is left"),
        ("", "no CDS is left"),
    ],
)
def test_annotations_that_do_not_do(tmp_path, genome, text, words):
    (tmp_path / "a.gff3").write_text(text)
    with pytest.raises(DataError) as caught:
        read_transcripts(tmp_path / "a.gff3", genome)
    assert words in str(caught.value)


def test_other_trouble(tmp_path, genome, caplog):
    path = write_gff(tmp_path / "a.gff3", [*LINES, ("c9", 1, 9, "+", 0, "g9"), LINES[0]])
    found = read_transcripts(path, genome)
    assert [one.name for one in found] == ["g2"]
    assert "1 CDS lines on contigs that are not in" in caplog.text and "segments of g1 overlap" in caplog.text
    with pytest.raises(UsageError, match="no contig"):
        read_transcripts(path, genome, contigs=["c7"])
    (tmp_path / "b.bed").write_text("c1\t0\t9\n")
    with pytest.raises(DataError, match="names no transcript"):
        read_transcripts(tmp_path / "b.bed", genome)
    with pytest.raises(HybriDNAError, match="no change of the wanted classes"):
        enumerate_variants(genome, found, genetic_code(12), kinds=())
