"""What is to be embedded: the records of a BED, FASTA or VCF file as stretches of bases with their keys.

file -> kind by content -> records -> Targets (one per BED line or sequence, two per ALT) -> judged: bases, or a status
"""

import os
from typing import NamedTuple

import numpy as np

from hybridna_core.data.inputs import looks_like, read_chunks, warn
from hybridna_core.data.regions import read_bed
from hybridna_core.data.variants import Haplotype, Piece
from hybridna_core.data.vcf import VcfReader
from hybridna_core.errors import DataError, UsageError
from hybridna_core.tokenizer import N, reverse_complement_ids

KINDS = ("bed", "fasta", "vcf")
REGION_COLUMNS = {"contig": str, "start": int, "end": int, "name": str, "score": str, "strand": str}
VARIANT_COLUMNS = {"contig": str, "pos": int, "id": str, "ref": str, "alt": str, "allele": str}


class Target(NamedTuple):
    """One row of the output before its bases are read; spelt as its place.

    cells    values of the key columns
    status   "ok", or why there are no bases
    length   bases that will be read
    read     gives them in reading direction, (n,) uint8
    where    contig:beg-end, 1-based inclusive, or contig:pos and the allele
    line     file:line for messages
    is_last  the last row of its record
    """

    cells: tuple
    status: str
    length: int
    read: object
    where: str
    line: str
    is_last: bool = True

    def __str__(self):
        return self.where


def name_kind(path, kind=None):
    """Return bed, fasta or vcf: what is asked for, else by the file's first bytes; a stream is BED."""
    if kind is not None:
        if kind not in KINDS:
            raise UsageError(f"is {kind!r}, must be {', '.join(KINDS)}", where="--input-type")
        return kind
    if not os.path.isfile(path):
        return "bed"
    chunks = read_chunks(path, allow_missing_eof=True)
    try:
        found = looks_like(next(chunks, b"")[:300].removeprefix(b"\xef\xbb\xbf"))
    except DataError:
        # What is wrong is said by the reader.
        found = None
    finally:
        chunks.close()
    return {"FASTA": "fasta", "FASTQ": "fasta", "VCF": "vcf", "BCF": "vcf"}.get(found, "bed")


def read_regions(path, genome, *, warned=False, **options):
    """Yield the Targets of a BED file's lines; options and errors of read_bed."""
    for region in read_bed(path, genome, warned=warned, **options):
        yield _place(region, genome, f"{path}:{region.line}")


def _place(region, genome, line):
    def read():
        ids = genome.ids(region.contig, region.start, region.end)
        return reverse_complement_ids(ids) if region.strand == "-" else ids

    cells = (*region[:3], region.name, region.score, region.strand)
    where = f"{region.contig}:{region.start + 1}-{region.end}"
    return Target(cells, region.status, region.length, read, where, line)


def read_sequences(genome):
    """Yield the Targets of a FASTA file's records, each as long as it is."""
    for contig, length in genome.contigs.items():

        def read(contig=contig, length=length):
            return genome.ids(contig, 0, length)

        yield Target((contig, 0, length, ".", ".", "+"), "ok", length, read, contig, f"{genome.path}: {contig}")


def read_variants(judged, genome, path, window):
    """Yield the Targets of a VCF's records: for each ALT the reference allele and the alternative one.

    judged  (record, its alleles) as from judge_records
    window  bases of each: half of them before POS - 1, fewer at the contig's start; both alleles begin at the same base
    """
    for record, alleles in judged:
        alts = record.alts or ["."]
        for index, (alt, allele) in enumerate(zip(alts, alleles, strict=True)):
            line = f"{path}:{record.number}: {record.contig}:{record.pos}"
            for name, haplotype, length in _haplotypes(allele, genome, window):
                pos = -1 if record.pos is None else record.pos
                variant_id = record.columns[2].decode("utf-8", "surrogateescape")
                cells = (record.contig, pos, variant_id, record.ref, alt, name)
                where = f"{record.contig}:{record.pos} {name}"
                is_last = name == "alt" and index == len(alts) - 1
                yield Target(cells, allele.status, length, haplotype, where, line, is_last)


def _haplotypes(allele, genome, window):
    """Return (name, function that reads the ids, number of bases) of both alleles."""
    if allele.variant is None:
        return [("ref", None, 0), ("alt", None, 0)]
    variant = allele.variant
    whole = [Piece(0, genome.contigs[variant.contig])]
    changed = [Piece(0, variant.start), *variant.pieces, Piece(variant.end, whole[0].end)]
    start, found = max(0, variant.start - window // 2), []
    for name, pieces in (("ref", whole), ("alt", changed)):
        haplotype = Haplotype(genome, variant.contig, pieces)
        end = min(start + window, haplotype.length)
        found.append((name, lambda h=haplotype, e=end: h.ids(start, e), end - start))
    return found


def read_records(path, *, warned=False, allow_missing_eof=False):
    """Yield the Records of a VCF or BCF, opened for the purpose."""
    with VcfReader(path, allow_missing_eof=allow_missing_eof, warned=warned) as reader:
        yield from reader.records()


class Judged(NamedTuple):
    """A Target with what became of it; spelt as its place.

    unknown  bases that are N
    """

    target: Target
    status: str
    unknown: int

    def __str__(self):
        return self.target.where


def judge_targets(targets, longest, max_n_share):
    """Yield (Judged, ids or None) of every Target, with a warning for those that are marked here.

    longest  bases that can be read, None for any number
    """
    for target in targets:
        status, unknown, ids = target.status, 0, None
        if status == "ok" and longest is not None and target.length > longest:
            status, what = "too_long", f"{longest:,} bases are read at once"
        elif status == "ok":
            ids = target.read()
            unknown = int(np.count_nonzero(ids == N))
            # A vector of nothing but N would say nothing, whatever share is allowed.
            if unknown > max_n_share * len(ids) or unknown == len(ids):
                status, what, ids = "too_many_n", f"{unknown:,} are unknown", None
        if status != target.status:
            warn(status, f"{target.line}: region of {target.length:,} bases, {what}; marked {status}")
        yield Judged(target, status, unknown), ids
