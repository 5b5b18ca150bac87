"""Regions: BED files and region strings to values inside.

BED line -> checked columns -> Region (0-based half-open) -> compared with the genome -> status
"""

import os
import re
from typing import NamedTuple

from hybridna_core.data.inputs import BYTE_ORDER_MARK, looks_like, printable, read_chunks, read_lines, warn
from hybridna_core.errors import DataError, UsageError

MAX_POSITION = 2**63 - 1


class Region(NamedTuple):
    """A stretch of a contig, 0-based half-open; strand `-` means its reverse complement is read.

    status  "ok", or why it cannot be used: empty_region, out_of_range, unknown_contig (or what a command adds)
    line    1-based line of the file it came from, 0 when from none
    """

    contig: str
    start: int
    end: int
    strand: str = "+"
    name: str = "."
    score: str = "."
    status: str = "ok"
    line: int = 0

    @property
    def length(self):
        """Length in bp."""
        return self.end - self.start


def read_bed(path, genome=None, *, clip=False, renames=None, use_strand=True, allow_missing_eof=False, warned=False):
    """Yield the Regions of a BED file (plain, gzip, bgzip, or `-`) in input order; memory stays flat.

    genome             compare with its contigs: regions that do not fit get a status, and the contig its name there
    clip               cut regions at the contig's ends instead of marking them out_of_range
    renames            dict of contig names, old -> new, from --rename-chrs
    use_strand         False: column 6 is not looked at, all is `+`
    allow_missing_eof  take a bgzip file without its end block for whole
    warned             the file was read before, so nothing is warned of again
    Raises DataError with file and line for broken structure, and at the end if no contig at all is known.
    """
    total = unknown = aliased = 0
    example = None
    for region in _parse(path, use_strand, allow_missing_eof, warned):
        total += 1
        if genome is not None:
            region = _place(region, genome, clip, renames)
            if region.status == "unknown_contig":
                unknown += 1
                example = example or region
                # Counted only while it can still decide between the two messages below.
                aliased += unknown == total and genome.alias(region.contig) is not None
            if region.status != "ok" and not warned:
                warn(region.status, f"{path}:{region.line}: {_reason(region, genome, clip, unknown)}")
        yield region
    if total and unknown == total:
        where = f"{path}:{example.line}"
        close = genome.suggest(example.contig)
        if aliased == total:
            what = f"contigs are named otherwise here and in {genome.path} ({example.contig}, there {close})"
            raise DataError(what, where=where, hint="give --rename-chrs FILE with lines `old new`")
        hint = f"did you mean {close}?" if close else "is it the right genome?"
        raise DataError(
            f"no region has a contig of {genome.path} (the first: {example.contig})", where=where, hint=hint
        )


def _place(region, genome, clip, renames):
    """Name the region's contig as the genome does and set the status."""
    contig = genome.resolve(region.contig, renames)
    if contig is None:
        return region._replace(status="unknown_contig")
    region = region._replace(contig=contig)
    if region.start == region.end:
        return region._replace(status="empty_region")
    length = genome.contigs[contig]
    if region.end <= length:
        return region
    if not clip or region.start >= length:
        return region._replace(status="out_of_range")
    return region._replace(end=length)


def _reason(region, genome, clip, unknown):
    """Spell why a region got its status, and how to mend it; `unknown` regions had contigs that are not there."""
    if region.status == "empty_region":
        return f"start and end are both {region.start:,}; marked empty_region"
    if region.status == "unknown_contig":
        # Looking for the nearest name takes long, and only the first warnings are shown.
        close = genome.suggest(region.contig) if unknown <= 10 else None
        hint = f"; did you mean {close}? give --rename-chrs FILE" if close else ""
        return f"contig {region.contig} is not in {genome.path}; marked unknown_contig{hint}"
    what = f"{region.end:,} is past the end of {region.contig} ({genome.contigs[region.contig]:,} bp)"
    return f"{what}; marked out_of_range{'' if clip else '; --clip cuts such regions'}"


def _parse(path, use_strand, allow_missing_eof, warned):
    first, found, cut = True, False, None
    for number, raw, ended in read_lines(read_chunks(path, allow_missing_eof=allow_missing_eof), path):
        if number == 1:
            raw = raw.removeprefix(BYTE_ORDER_MARK)
            format_name = looks_like(raw)
            if format_name:
                raise DataError(f"looks like {format_name}, not BED", where=path)
        if not ended:
            cut = number
        if b"\0" in raw:
            raise DataError("binary content (a NUL byte)", where=f"{path}:{number}", hint="is this BED?")
        try:
            line = raw.decode("utf-8").removesuffix("\r")
        except UnicodeDecodeError as error:
            raise DataError(f"not UTF-8 at column {error.start + 1}", where=f"{path}:{number}") from None
        if not line.strip() or line.startswith(("#", "track\t", "track ", "browser\t", "browser ")) or line == "track":
            continue
        found = True
        yield _region(line, number, path, first, use_strand)
        first = False
    if warned:
        return
    if not found:
        warn("empty-input", f"{path}: 0 regions")
    if cut is not None:
        warn("no-newline", f"{path}:{cut}: the file does not end in a newline; is it complete?")


def _region(line, number, path, first, use_strand):
    """Parse one BED line; `first` tells that no region came before, so that it may be a column header."""
    fields = line.split("\t")
    where = f"{path}:{number}"
    if len(fields) < 3:
        if len(line.split()) >= 3:
            raise DataError("columns are separated by blanks", where=where, hint="BED needs tabs")
        what = f"{len(fields)} column{'s' * (len(fields) > 1)}, at least three are needed"
        raise DataError(f"{what}: {printable(line.encode())!r}", where=where)
    contig, start, end = fields[:3]
    if first and not re.search(r"\d", start + end):
        what = f"line {number} is not a region ({printable(line.encode())!r})"
        raise DataError(what, where=where, hint="start a header line with '#'")
    if not contig.strip():
        raise DataError("the contig name is empty", where=where)
    start, end = _whole(start, "start", 2, where), _whole(end, "end", 3, where)
    if start > end:
        raise DataError(f"start {start:,} is after end {end:,}", where=where, hint="are the two columns swapped?")
    strand = fields[5] if use_strand and len(fields) > 5 and fields[5] else "."
    if strand not in ("+", "-", "."):
        what = f"strand {strand!r}, must be '+', '-' or '.'"
        raise DataError(what, where=where, hint="column 6 of BED is the strand")
    strand = "-" if strand == "-" else "+"
    name = (fields[3] if len(fields) > 3 else "") or "."
    score = (fields[4] if len(fields) > 4 else "") or "."
    status = "empty_region" if start == end else "ok"
    return Region(contig, start, end, strand, name, score, status, number)


def _whole(text, column, position, where):
    if text.isascii() and text.isdigit():
        # Compared by length first: int() refuses very long digit strings.
        if len(text) <= 19 and int(text) <= MAX_POSITION:
            return int(text)
        raise DataError(f"column {position} ({column}): {printable(text.encode())} is over 64 bits", where=where)
    if re.fullmatch(r"-[0-9]+", text):
        what = f"column {position} ({column}): {printable(text.encode())} is negative"
        raise DataError(what, where=where, hint="BED counts from 0")
    raise DataError(f"column {position} ({column}): {printable(text.encode())!r} is not a whole number", where=where)


def parse_region(text, genome=None):
    """Turn `chr`, `chr:beg`, `chr:beg-` or `chr:beg-end` (1-based, inclusive) into a Region.

    genome  when given, the contig must be in it, the end must not pass it, and a name that itself holds a colon is
            found; `{name}:beg-end` marks such a name where both readings are possible
    Raises UsageError.
    """
    hint = "write chr:beg-end, counted from 1, both ends included"
    contig, beg, end = _split_region(text, genome)
    if not contig:
        raise UsageError(f"region {text!r} names no contig", hint=hint)
    length = MAX_POSITION
    if genome is not None:
        if contig not in genome.contigs:
            close = genome.suggest(contig)
            where = f"did you mean {close}?" if close else "see the FASTA file's names"
            raise UsageError(f"region {text!r}: no contig {contig!r} in {genome.path}", hint=where)
        length = genome.contigs[contig]
    values = []
    for word, default in ((beg, 1), (end, length)):
        digits = (word or "").replace(",", "")
        if digits and not (digits.isascii() and digits.isdigit() and len(digits) <= 19):
            raise UsageError(f"region {text!r}: {word!r} is not a whole number", hint=hint)
        values.append(int(digits) if digits else default)
    first, last = values
    if first < 1 or last < first:
        raise UsageError(
            f"region {text!r} ends before it begins" if first else f"region {text!r} begins at 0", hint=hint
        )
    if last > length:
        raise UsageError(f"region {text!r} passes the end of {contig} ({length:,} bp)", hint=hint)
    return Region(contig, first - 1, last)


def _split_region(text, genome):
    braces = re.fullmatch(r"\{(.+)\}(?::([^:]*))?", text)
    if braces:
        contig, span = braces[1], braces[2]
    else:
        contig, colon, span = text.rpartition(":")
        known = genome is not None and text in genome.contigs
        if known and colon and contig in genome.contigs:
            hint = f"write {{{text}}} or {{{contig}}}:{span}"
            raise UsageError(f"region {text!r} can be read in two ways", hint=hint)
        if known or not colon:
            contig, span = text, None
    if span is None:
        return contig, None, None
    beg, _, end = span.partition("-")
    if not beg:
        raise UsageError(f"region {text!r} has no beginning", hint="write chr:beg-end, counted from 1")
    return contig, beg, end if "-" in span else None


def is_bed_name(path):
    """Tell whether a file name is that of a BED file (`.bed`, `.bed.gz`)."""
    return os.fspath(path).endswith((".bed", ".bed.gz", ".bed.bgz"))
