"""VCF and BCF read: header, and records as the text that they came as.

file -> bytes -> lines -> Header, Record -> INFO fields appended; `vcf_output` writes them

Records are kept as the text they came as, since htslib drops or rewrites much of what real files hold (undeclared
keys, odd numbers, other encodings). Only BCF goes through it.
"""

import itertools
import os
import re
import struct
from typing import NamedTuple

from hybridna_core.data.bcf import Transcoder
from hybridna_core.data.inputs import (
    BYTE_ORDER_MARK,
    bgzf_blocks,
    check_input,
    is_bgzf,
    looks_like,
    open_input,
    printable,
    read_chunks,
    read_lines,
    warn,
)
from hybridna_core.data.regions import Region, is_bed_name, parse_region, read_bed
from hybridna_core.errors import DataError, SystemFault

COLUMNS = ["#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO"]
INFO_KEY = re.compile(r"[A-Za-z_][0-9A-Za-z_.]*")
# Names that the specification allows; others cannot stand in a record.
CONTIG_NAME = re.compile(r"[0-9A-Za-z!#$%&+./:;?@^_|~-][0-9A-Za-z!#$%&*+./:;=?@^_|~-]*")


def to_text(raw):
    """Decode bytes of a VCF so that `to_bytes` gives them back, whatever their encoding."""
    return raw.decode("utf-8", "surrogateescape")


def to_bytes(text):
    return text.encode("utf-8", "surrogateescape")


class Record(NamedTuple):
    """One line of a VCF.

    number   line number in the file (of a BCF: of its text form), from 1
    columns  the first eight columns, then the rest in one piece if there is one; bytes
    ending   b"" or b"\\r", what stood before the newline
    """

    number: int
    columns: list
    ending: bytes

    @property
    def contig(self):
        return to_text(self.columns[0])

    @property
    def pos(self):
        """POS as a whole number of at least 0 and below 2^63, or None for anything else."""
        text = self.columns[1]
        # Compared by length first: int() refuses very long digit strings.
        if not text.isdigit() or len(text.lstrip(b"0")) > 19 or int(text[-19:]) >= 2**63:
            return None
        return int(text[-19:])

    @property
    def ref(self):
        return to_text(self.columns[3])

    @property
    def alts(self):
        """Alternative alleles as they stand; none for `.`."""
        text = to_text(self.columns[4])
        return [] if text == "." else text.split(",")

    def info(self, key):
        """Text of an INFO key, "" for a flag, None when absent."""
        wanted = to_bytes(key)
        for field in self.columns[7].split(b";"):
            name, _, value = field.partition(b"=")
            if name == wanted:
                return to_text(value)
        return None

    def with_info(self, added, removed=()):
        """Return the line, newline included, with INFO fields appended and others taken out.

        added    text such as `A=1;B=2`
        removed  keys, bytes
        """
        info = self.columns[7]
        if removed:
            info = b";".join(field for field in info.split(b";") if field.partition(b"=")[0] not in removed)
        if info in (b"", b"."):
            info = to_bytes(added)
        else:
            info += (b"" if info.endswith(b";") else b";") + to_bytes(added)
        return b"\t".join([*self.columns[:7], info, *self.columns[8:]]) + self.ending + b"\n"


class Declaration(NamedTuple):
    """A header line such as `##INFO=<ID=DP,...>`; `fields` without quotes."""

    kind: str
    fields: dict


class Header:
    """The lines before the records.

    lines    text without newlines, `#CHROM` last
    newline  bytes that end each
    """

    def __init__(self, lines, newline=b"\n"):
        self.lines, self.newline = list(lines), newline

    def declarations(self, *kinds):
        """Yield the structured lines of the given kinds (INFO, contig, ...)."""
        for line in self.lines:
            found = _parse_declaration(line)
            if found is not None and found.kind in kinds:
                yield found

    def ids(self, kind):
        """IDs declared for a kind, in order."""
        return [d.fields["ID"] for d in self.declarations(kind) if "ID" in d.fields]

    @property
    def contigs(self):
        """Declared contigs: name -> length in bp, None where it is not a number."""
        found = {}
        for declaration in self.declarations("contig"):
            length = declaration.fields.get("length", "")
            if "ID" in declaration.fields:
                found[declaration.fields["ID"]] = int(length) if length.isascii() and length.isdigit() else None
        return found

    def without(self, unwanted):
        """Return a copy without the declarations for which `unwanted(declaration)` holds."""
        kept = [line for line in self.lines if not ((d := _parse_declaration(line)) and unwanted(d))]
        return Header(kept, self.newline)

    def extended(self, lines):
        """Return a copy with further lines before `#CHROM`."""
        return Header([*self.lines[:-1], *lines, self.lines[-1]], self.newline)

    def to_bytes(self):
        return b"".join(to_bytes(line) + self.newline for line in self.lines)


def _parse_declaration(line):
    match = re.match(r"##([^=<]+)=<(.*)>\s*$", line)
    if match is None:
        return None
    fields = {}
    for name, value in re.findall(r'([^=,]+)=("(?:[^"\\]|\\.)*"|[^,]*),?', match[2]):
        fields.setdefault(name.strip(), value[1:-1] if value[:1] == '"' else value)
    return Declaration(match[1], fields)


class VcfReader:
    """An open VCF or BCF: `header`, then `records()` once.

    path     as given, `-` for standard input
    regions  (contig, start, end) to keep, 0-based half-open, merged and in order; None for all. A bgzip VCF or a BCF
             is read through its index then, a text stream from end to end
    warned   the file was read before, so nothing is warned of again
    """

    def __init__(self, path, *, regions=None, allow_missing_eof=False, warned=False):
        self.path, self.regions, self._warned = path, regions, warned
        self._chunks, self._transcoder, self._index = read_chunks(path, allow_missing_eof=allow_missing_eof), None, None
        try:
            first = next(self._chunks, b"")
            while first and len(first) < 64 and (more := next(self._chunks, b"")):
                first += more
            chunks = itertools.chain([first], self._chunks)
            self.is_bcf = _recognise(first, path)
            if regions is not None and path != "-" and _is_seekable_bgzf(path):
                self._index = check_index(path)
            if self.is_bcf:
                self._transcoder = Transcoder(chunks, None, "w", name=path)
                chunks = self._transcoder.chunks()
            self._lines = read_lines(chunks, path)
            self.header = self._read_header()
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Let go of the file."""
        if self._transcoder is not None:
            self._transcoder.stop()
        self._chunks.close()

    def _warn(self, kind, message):
        if not self._warned:
            warn(kind, message)

    def _read_header(self):
        lines, newline = [], b"\n"
        for number, raw, ended in self._lines:
            if number == 1 and raw.startswith(BYTE_ORDER_MARK):
                self._warn("byte-order-mark", f"{self.path}: a byte-order mark before the header; left out")
                raw = raw.removeprefix(BYTE_ORDER_MARK)
            where = f"{self.path}:{number}"
            if b"\0" in raw:
                raise DataError("binary content (a NUL byte) in the header", where=where)
            text = to_text(raw)
            if text.endswith("\r"):
                text, newline = text[:-1], b"\r\n"
            if text.startswith("##"):
                lines.append(text)
                continue
            _check_column_line(text, where)
            if not ended:
                self._warn("no-newline", f"{where}: the file does not end in a newline; is it complete?")
            lines.append(text)
            return _mend_fileformat(Header(lines, newline), self.path, self._warn)
        raise DataError("no #CHROM line", where=self.path, hint="is the file complete?")

    def records(self):
        """Yield the Records, in file order; those that overlap the regions if there are any.

        Raises DataError for a line that is no record, for a cut or damaged file.
        """
        if self._index is not None:
            self.close()
            yield from self._fetch()
        elif self.regions is not None:
            yield from filter(self._is_wanted, self._parse(self._lines))
        else:
            yield from self._parse(self._lines)

    def _parse(self, lines):
        blank = None
        for number, raw, ended in lines:
            where = f"{self.path}:{number}"
            if raw.endswith(b"\r"):
                raw, ending = raw[:-1], b"\r"
            else:
                ending = b""
            if not raw:
                blank = blank or number
                continue
            if blank is not None:
                raise DataError("an empty line between records", where=f"{self.path}:{blank}", hint="remove it")
            columns = raw.split(b"\t", 8)
            if len(columns) < 8:
                if not ended:
                    raise DataError(f"the file ends inside line {number}", where=where, hint="fetch it again")
                what = f"{len(columns)} column{'s' * (len(columns) > 1)}, at least eight are needed"
                hint = "columns are separated by tabs" if len(raw.split()) >= 8 else None
                raise DataError(what, where=where, hint=hint)
            if b"\0" in raw:
                raise DataError("binary content (a NUL byte)", where=where)
            if not ended:
                self._warn("no-newline", f"{where}: the file does not end in a newline; is it complete?")
            yield Record(number, columns, ending)

    def _is_wanted(self, record):
        """Tell whether a record overlaps a region, as htslib's index would have it."""
        pos = record.pos
        if pos is None:
            return False
        start, end = reach(record)
        return any(c == record.contig and start < e and s < end for c, s, e in self.regions)

    def _fetch(self):
        if self.is_bcf:
            self._transcoder = Transcoder(self.path, None, "w", name=self.path, regions=self.regions)
            lines = read_lines(self._transcoder.chunks(), self.path)
            yield from self._parse(line for line in lines if not line[1].startswith(b"#"))
            return
        import pysam

        last = None
        with pysam.TabixFile(self.path, index=self._index, encoding="latin-1") as file:
            known = set(file.contigs)
            for contig, start, end in self.regions:
                # Names in the index are bytes that pysam was told to take for latin-1.
                name = to_bytes(contig).decode("latin-1")
                if name not in known:
                    continue
                for line in self._fetch_lines(file, name, start, end):
                    # The index does not know line numbers.
                    for record in self._parse([(0, line, True)]):
                        begin, stop = reach(record)
                        if record.contig != contig or not (begin < end and start < stop):
                            raise _foreign_index(self._index, self.path)
                        # One that spans two regions came with the first.
                        if last is None or last[0] != contig or begin >= last[1]:
                            yield record
                last = contig, end

    def _fetch_lines(self, file, contig, start, end):
        try:
            for line in file.fetch(contig, start, min(end, 2**31 - 1)):
                yield line.encode("latin-1")
        except (OSError, ValueError) as error:
            raise _foreign_index(self._index, self.path) from error


def reach(record):
    """Return the stretch that a record covers, 0-based half-open: REF, or up to END when that is further."""
    start = max((record.pos or 0) - 1, 0)
    end = start + max(len(record.columns[3]), 1)
    stop = record.info("END")
    if stop is not None and stop.isascii() and stop.isdigit() and len(stop) < 19:
        end = max(end, int(stop))
    return start, end


def _recognise(first, path):
    """Tell whether the first bytes are BCF (else VCF text); raise DataError for anything else."""
    if not first:
        raise DataError("the file is empty", where=path, hint="was the download complete?")
    if first[:3] == b"BCF":
        if first[3:4] != b"\x02":
            raise DataError("a BCF of an old version", where=path, hint="convert it with an old bcftools")
        return True
    text = first.removeprefix(BYTE_ORDER_MARK)
    if not text.startswith(b"#"):
        name = looks_like(text)
        if name is None:
            begin = printable(text.split(b"\n")[0].replace(b"\t", b" "))
            raise DataError(f"not VCF: it begins with {begin!r}", where=path, hint="a VCF begins with ##fileformat")
        raise DataError(f"looks like {name}, not VCF", where=path)
    if looks_like(text) not in (None, "VCF"):
        raise DataError(f"looks like {looks_like(text)}, not VCF", where=path)
    return False


def _check_column_line(text, where):
    names = text.split("\t")
    if names[:8] == COLUMNS and names[8:9] in ([], ["FORMAT"]):
        return
    if not text.startswith("#"):
        raise DataError("a record before the #CHROM line", where=where, hint="the header is not complete")
    if text.split()[:8] == COLUMNS and len(names) < 8:
        raise DataError("the #CHROM line has blanks instead of tabs", where=where)
    wrong = next((a for a, b in itertools.zip_longest(names[:8], COLUMNS) if a != b), names[8] if names[8:] else None)
    what = f"the line of column names is wrong at {repr(printable(to_bytes(wrong))) if wrong else 'its end'}"
    raise DataError(what, where=where, hint=f"it is {' '.join(COLUMNS)}, separated by tabs")


def _mend_fileformat(header, path, warn):
    """Put a good ##fileformat line first, where every reader looks for it."""
    if re.match(r"##fileformat=VCFv\d", header.lines[0]):
        return header
    good = next((line for line in header.lines if re.match(r"##fileformat=VCFv\d", line)), None)
    if good is None:
        warn("fileformat", f"{path}: ##fileformat is missing or empty; read as VCF 4.2")
    rest = [line for line in header.lines if not line.startswith("##fileformat=")]
    return Header([good or "##fileformat=VCFv4.2", *rest], header.newline)


def read_regions(regions=None, regions_file=None):
    """Read the regions of -r (text or list of `chr:beg-end`) and -R; return merge_regions of them, None without any.

    A file is BED when its name says so, else a table `contig beg [end]`, 1-based, both ends included.
    """
    if regions is None and regions_file is None:
        return None
    found = []
    if regions is not None:
        words = regions.split(",") if isinstance(regions, str) else regions
        found += [parse_region(word) for word in words]
    if regions_file is not None:
        if is_bed_name(regions_file):
            found += [region for region in read_bed(regions_file, use_strand=False) if region.length > 0]
        else:
            found += _read_table(regions_file)
    return merge_regions(found)


def _read_table(path):
    for number, raw, _ in read_lines(read_chunks(path), path):
        words = to_text(raw).removesuffix("\r").split("\t")
        if not raw.strip() or raw.startswith(b"#"):
            continue
        numbers = [int(word) for word in words[1:3] if re.fullmatch("[0-9]{1,18}", word)]
        if len(words) < 2 or len(numbers) < len(words[1:3]) or numbers[0] < 1 or numbers[-1] < numbers[0]:
            hint = "each line is `contig beg end`, tab-separated, counted from 1; or name the file .bed"
            raise DataError(f"no region: {printable(raw)!r}", where=f"{path}:{number}", hint=hint)
        yield Region(words[0], numbers[0] - 1, numbers[-1], line=number)


def merge_regions(regions):
    """Sort regions and join those that overlap or touch: (contig, start, end), contigs in order of appearance."""
    order, merged = {}, []
    for region in regions:
        order.setdefault(region.contig, len(order))
    for region in sorted(regions, key=lambda r: (order[r.contig], r.start, r.end)):
        if merged and merged[-1][0] == region.contig and region.start <= merged[-1][2]:
            merged[-1][2] = max(merged[-1][2], region.end)
        else:
            merged.append([region.contig, region.start, region.end])
    return [tuple(item) for item in merged]


# Indices of bgzip files


def _is_seekable_bgzf(path):
    with open_input(path) as handle:
        return is_bgzf(handle.read(64))


def check_index(path):
    """Return the index file of a bgzip VCF or a BCF.

    Raises SystemFault when there is none, DataError when it is older than the file or belongs to another one.
    """
    path = check_input(path, random_access=True)
    index = next((path + suffix for suffix in (".tbi", ".csi") if os.path.exists(path + suffix)), None)
    if index is None:
        hint = f"make one: {'bcftools index' if path.endswith('.bcf') else 'tabix -p vcf'} {path}"
        raise SystemFault("regions need an index, and there is none", where=path, hint=hint)
    if os.stat(index).st_mtime_ns < os.stat(path).st_mtime_ns:
        raise DataError(f"older than {path}", where=index, hint="make the index anew (tabix -f)")
    try:
        end = _last_offset(b"".join(read_chunks(index)))
    except (struct.error, ValueError):
        raise DataError("damaged, or no index", where=index, hint="make it anew (tabix -f)") from None
    if not _ends_at(path, end >> 16):
        raise _foreign_index(index, path)
    return index


def _foreign_index(index, path):
    return DataError(f"is not the index of {path}", where=index, hint="make it anew (tabix -f)")


def _last_offset(data):
    """Return the largest virtual file offset of a .tbi or .csi index, decompressed. Raises ValueError, struct.error."""
    if data[:4] == b"TBI\x01":
        (references,), at, meta_bin, has_loffset = struct.unpack_from("<i", data, 4), 36, 37450, False
        at += struct.unpack_from("<i", data, 32)[0]
    elif data[:4] == b"CSI\x01":
        _, depth, aux = struct.unpack_from("<3i", data, 4)
        at = 16 + aux
        (references,) = struct.unpack_from("<i", data, at)
        at, meta_bin, has_loffset = at + 4, ((1 << (3 * depth + 3)) - 1) // 7 + 1, True
    else:
        raise ValueError("no index")
    last = 0
    for _ in range(references):
        (bins,) = struct.unpack_from("<i", data, at)
        at += 4
        for _ in range(bins):
            (number,) = struct.unpack_from("<I", data, at)
            at += 12 if has_loffset else 4
            (chunks,) = struct.unpack_from("<i", data, at)
            # The bin of counts holds offsets in its first pair only.
            pairs = struct.unpack_from(f"<{2 * chunks}Q", data, at + 4)
            last = max([last, *pairs[: 2 if number == meta_bin else None]])
            at += 4 + 16 * chunks
        if not has_loffset:
            (intervals,) = struct.unpack_from("<i", data, at)
            at += 4 + 8 * intervals
    return last


def _ends_at(path, offset):
    """Tell whether the data of a BGZF file end in the block at a byte offset, as the last entry of its index must."""
    size = os.path.getsize(path)
    if offset == 0 or offset >= size:
        return offset in (0, size)
    with open(path, "rb") as handle:
        handle.seek(offset)
        try:
            blocks = bgzf_blocks(handle, path, offset=offset, allow_missing_eof=True)
            return all(not data for _, data in itertools.islice(itertools.islice(blocks, 1, None), 3))
        except DataError:
            return False
