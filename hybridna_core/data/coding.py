"""Coding sequence: annotated reading frames, and what every single-base change in them does.

GFF3 or BED of CDS -> Transcript (segments, strand, phase) -> codons by a genetic code -> CodingVariants

Classes: synonymous, missense, stop_gained. Left out: first codons (a change there may end translation or not), stop
codons, codons with an unknown base, and bases in the CDS of more than one transcript.
"""

import itertools
from typing import NamedTuple

import numpy as np

from hybridna_core.data.inputs import BYTE_ORDER_MARK, printable, read_chunks, read_lines, warn
from hybridna_core.data.regions import is_bed_name, read_bed
from hybridna_core.errors import DataError, UsageError, nearest
from hybridna_core.tokenizer import A, T, decode, reverse_complement_ids

CLASSES = ("synonymous", "missense", "stop_gained")
SYNONYMOUS, MISSENSE, STOP_GAINED = range(3)
_NONE = 3
_STOP = "*"


class Transcript(NamedTuple):
    """One coding sequence on a contig.

    segments  ((start, end), ...) of its CDS, 0-based half-open, ascending, not overlapping
    phase     bases before the first whole codon, in reading direction
    """

    name: str
    contig: str
    strand: str
    segments: tuple[tuple[int, int], ...]
    phase: int = 0


class CodingVariants(NamedTuple):
    """Single-base changes, one per entry of each array, ordered by transcript, then along it.

    transcript      (n,) number of the transcript
    start           (n,) 0-based place on the contig
    ref, alt        (n,) 0 to 3 for A, C, G, T, on the coding strand
    codon_position  (n,) 1 to 3
    codon           (n,) 0 to 63, first base counting 16
    kind            (n,) index into CLASSES
    """

    transcript: np.ndarray
    start: np.ndarray
    ref: np.ndarray
    alt: np.ndarray
    codon_position: np.ndarray
    codon: np.ndarray
    kind: np.ndarray

    def select(self, chosen):
        """Keep the entries that a mask or an array of numbers names."""
        return CodingVariants(*(column[chosen] for column in self))


def genetic_code(number):
    """Return the amino acids of an NCBI genetic code, `*` for stops, as text of 64 in the order AAA, AAC, ..., TTT."""
    from Bio.Data.CodonTable import unambiguous_dna_by_id

    if number not in unambiguous_dna_by_id:
        known = ", ".join(str(n) for n in sorted(unambiguous_dna_by_id))
        raise UsageError(f"is {number}, no genetic code of that number", where="--codon-table", hint=f"known: {known}")
    table = unambiguous_dna_by_id[number]
    codons = [a + b + c for a in "ACGT" for b in "ACGT" for c in "ACGT"]
    # Some codes use a codon both ways; it then ends the reading frame here.
    return "".join(_STOP if c in table.stop_codons else table.forward_table.get(c, _STOP) for c in codons)


def classify(code):
    """Return what each change of each codon does. (64, 3, 4) index into CLASSES, or 3 for what is left out"""
    kinds = np.full((64, 3, 4), _NONE, dtype=np.uint8)
    for codon in range(64):
        for place, worth in enumerate((16, 4, 1)):
            base = codon // worth % 4
            for alt in range(4):
                changed = codon + (alt - base) * worth
                if code[codon] == _STOP or alt == base:
                    continue
                if code[changed] == _STOP:
                    kinds[codon, place, alt] = STOP_GAINED
                else:
                    kinds[codon, place, alt] = SYNONYMOUS if code[changed] == code[codon] else MISSENSE
    return kinds


def read_transcripts(path, genome, contigs=None):
    """Read the coding sequences of a GFF3 or BED file, in order of their place on the genome.

    contigs  names to keep; all when None
    A BED file has one line per CDS segment, named after its transcript (column 4), with the strand in column 6; its
    reading frames begin with their first base. Raises DataError for broken structure and when nothing is left.
    """
    for name in contigs or ():
        if name not in genome.contigs:
            close = nearest(name, list(genome.contigs)[:2000])
            raise UsageError(f"no contig {name!r} in {genome.path}", where="--contig",
                             hint=f"did you mean {close}?" if close else None)  # fmt: skip
    segments = {}
    unknown = 0
    for where, key, start, end, phase in _read_bed(path) if is_bed_name(path) else _read_gff(path):
        name, contig, strand = key
        if contig not in genome.contigs:
            unknown += 1
            continue
        if end > genome.contigs[contig]:
            what = f"{end:,} is past the end of {contig} ({genome.contigs[contig]:,} bp)"
            raise DataError(what, where=where, hint="is it the right genome?")
        segments.setdefault((contig, name, strand), []).append((start, end, phase))
    if unknown:
        what = f"{path}: {unknown:,} CDS lines on contigs that are not in {genome.path}; left out"
        if not segments:
            raise DataError(f"no CDS is on a contig of {genome.path}", where=path, hint="is it the right genome?")
        warn("unknown_contig", what)
    found = []
    for (contig, name, strand), parts in segments.items():
        parts = sorted(parts)
        places = tuple((start, end) for start, end, _ in parts)
        if any(b[0] < a[1] for a, b in itertools.pairwise(places)):
            warn("overlap", f"{path}: segments of {name} overlap; left out")
            continue
        if contigs is None or contig in contigs:
            found.append(Transcript(name, contig, strand, places, parts[0 if strand == "+" else -1][2]))
    if not found:
        raise DataError("no CDS is left", where=path, hint="GFF3 lines of type CDS, or BED with names and strands")
    rank = {name: i for i, name in enumerate(genome.contigs)}
    return sorted(found, key=lambda t: (rank[t.contig], t.segments[0], t.name))


def _read_bed(path):
    for region in read_bed(path):
        where = f"{path}:{region.line}"
        if region.name == ".":
            raise DataError("column 4 names no transcript", where=where, hint="give names, or a GFF3")
        if region.start < region.end:
            yield where, (region.name, region.contig, region.strand), region.start, region.end, 0


def _read_gff(path):
    seen = False
    for number, raw, _ in read_lines(read_chunks(path), path):
        where = f"{path}:{number}"
        try:
            line = (raw.removeprefix(BYTE_ORDER_MARK) if number == 1 else raw).decode("utf-8").rstrip("\r")
        except UnicodeDecodeError as error:
            raise DataError(f"not UTF-8 at column {error.start + 1}", where=where) from None
        if line.startswith(("##FASTA", ">")):
            if not seen:
                raise DataError("looks like FASTA, not GFF3", where=where)
            return
        if not line.strip() or line.startswith("#"):
            continue
        fields = line.split("\t")
        if len(fields) != 9:
            what = f"{len(fields)} columns, nine are due: {printable(raw)!r}"
            raise DataError(what, where=where, hint="give GFF3, or BED in a file that ends in .bed or .bed.gz")
        seen = True
        contig, _, kind, start, end, _, strand, phase, attributes = fields
        if kind != "CDS":
            continue
        numbers = all(n.isascii() and n.isdigit() and len(n) <= 18 for n in (start, end))
        if not numbers or not 1 <= int(start) <= int(end):
            raise DataError(f"{printable(raw)!r} has no start and end, counted from 1", where=where)
        if strand not in "+-" or phase not in ("0", "1", "2"):
            raise DataError(f"a CDS has strand + or - and phase 0, 1 or 2, not {strand!r}, {phase!r}", where=where)
        named = dict(pair.split("=", 1) for pair in attributes.split(";") if "=" in pair)
        parent = named.get("Parent", named.get("ID"))
        if not parent:
            raise DataError("a CDS has neither Parent nor ID", where=where, hint="GFF3, not GTF")
        # One line may serve several transcripts.
        for name in parent.split(","):
            yield where, (name.strip(), contig, strand), int(start) - 1, int(end), int(phase)


def coding_ids(genome, transcript):
    """Read a transcript's whole codons: places on the contig (n,), and bases 0 to 3 or more for unknown (n,)."""
    places = np.concatenate([np.arange(start, end) for start, end in transcript.segments])
    ids = np.concatenate([genome.ids(transcript.contig, start, end) for start, end in transcript.segments])
    if transcript.strand == "-":
        places, ids = places[::-1], reverse_complement_ids(ids)
    end = len(ids) - (len(ids) - transcript.phase) % 3
    bases = np.where((ids >= A) & (ids <= T), ids - A, 4)
    return places[transcript.phase : end], bases[transcript.phase : end]


def enumerate_variants(genome, transcripts, code, kinds=(SYNONYMOUS, MISSENSE, STOP_GAINED)):
    """List every single-base change of the wanted classes in transcripts; return CodingVariants.

    code   as `genetic_code` gives it
    kinds  indices into CLASSES
    Transcripts with a stop inside are left out with a warning that counts them.
    """
    table = classify(code)
    table[~np.isin(table, kinds)] = _NONE
    stops = np.array([letter == _STOP for letter in code])
    covered, parts, broken = _count_cover(genome, transcripts), [], []
    for number, transcript in enumerate(transcripts):
        places, bases = coding_ids(genome, transcript)
        places, bases = places.reshape(-1, 3), bases.reshape(-1, 3)
        known = (bases < 4).all(axis=1)
        codons = np.where(known, bases @ [16, 4, 1], 0).astype(np.uint8)
        if (stops[codons] & known)[:-1].any():
            broken.append(transcript.name)
            continue
        found = table[codons]
        found[~known] = _NONE
        found[:1] = _NONE
        found[(covered[transcript.contig][places] > 1)] = _NONE
        codon, place, alt = np.nonzero(found != _NONE)
        parts.append(
            CodingVariants(
                np.full(len(codon), number, dtype=np.int32), places[codon, place], bases[codon, place].astype(np.uint8),
                alt.astype(np.uint8), (place + 1).astype(np.uint8), codons[codon], found[codon, place, alt],
            )
        )  # fmt: skip
    if broken:
        what = f"{len(broken):,} of {len(transcripts):,} transcripts have a stop inside and are left out"
        warn("stop-inside", f"{what} (the first: {broken[0]}); is it the right genetic code?")
    if not any(len(part.start) for part in parts):
        raise DataError("no change of the wanted classes is left", where=genome.path, hint="is --codon-table right?")
    return CodingVariants(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _count_cover(genome, transcripts):
    """How many transcripts have each base in their CDS, contig -> (length,) uint8."""
    covered = {}
    for one in transcripts:
        row = covered.setdefault(one.contig, np.zeros(genome.contigs[one.contig], dtype=np.uint8))
        for start, end in one.segments:
            # Two is as good as many.
            row[start:end] = np.minimum(row[start:end] + 1, 2)
    return covered


def sample_variants(variants, counts, seed=0):
    """Draw changes of each class, without repeats; return CodingVariants in their order.

    counts  index into CLASSES -> how many, None for all; a class that is not there is left out
    """
    random = np.random.default_rng(seed)
    chosen = []
    for kind in sorted(counts):
        there = np.flatnonzero(variants.kind == kind)
        count = counts[kind]
        if count is not None and count < len(there):
            there = random.choice(there, size=count, replace=False)
        chosen.append(there)
    return variants.select(np.sort(np.concatenate(chosen)))


def spell_codon(codon):
    """Spell a codon number as three bases."""
    return decode(np.array([codon // 16, codon // 4 % 4, codon % 4]) + A)
