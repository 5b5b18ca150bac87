"""VCF and BCF written: what was read, changed in nothing but what is added.

Header, Record -> VcfWriter (text, bgzip, BCF) -> file -> index
"""

import os
import re
import struct
import zlib

from hybridna_core.data.bcf import BcfEncoder
from hybridna_core.data.inputs import BGZF_EOF, printable
from hybridna_core.data.vcf import Header, to_bytes, to_text
from hybridna_core.data.writers import is_stdout
from hybridna_core.errors import DataError, UsageError, nearest

OUTPUT_TYPES = {"v": "VCF", "z": "VCF, bgzip", "b": "BCF", "u": "BCF, uncompressed", "t": "TSV", "p": "Parquet"}
_QUAL = re.compile(rb"\.|[-+]?[0-9.]+([eE][-+]?[0-9]+)?|[-+]?(?i:inf|infinity|nan)")


def choose_output_type(output, output_type=None):
    """Return a letter of OUTPUT_TYPES: what is asked for, else what the suffix says; standard output is v.

    Raises UsageError.
    """
    if output_type is not None:
        if output_type not in OUTPUT_TYPES:
            known = ", ".join(f"{letter} ({name})" for letter, name in OUTPUT_TYPES.items())
            raise UsageError(f"is {output_type!r}", where="--output-type", hint=f"one of {known}")
        return output_type
    if is_stdout(output):
        return "v"
    name = os.fspath(output).lower()
    known = {"v": (".vcf",), "z": (".vcf.gz", ".vcf.bgz"), "b": (".bcf",), "t": (".tsv", ".tsv.gz", ".tsv.bgz")}
    for letter, suffixes in {**known, "p": (".parquet",)}.items():
        if name.endswith(suffixes):
            return letter
    # Devices and named pipes have no suffix to choose by.
    if os.path.exists(output) and not os.path.isfile(output):
        return "v"
    suffix = os.path.splitext(name)[1]
    close = nearest(suffix, [".vcf", ".vcf.gz", ".bcf", ".parquet"])
    hint = (
        f"did you mean {close}?"
        if close
        else "end it in .vcf, .vcf.gz, .bcf, .tsv.gz or .parquet, or give -O v|z|b|u|t|p"
    )
    raise UsageError(f"the suffix {suffix!r} is no VCF, BCF, TSV or Parquet", where=os.fspath(output), hint=hint)


class BgzfWriter:
    """Writes bgzip blocks to a binary handle; the end block comes with `close`.

    held   bytes that wait for their block to be full, of a file that is gone on with
    level  of compression, 0 to 9

    Every block but the last holds equally much, so the file depends on what is written alone, however it comes.
    """

    BLOCK = 65280  # bytes of data; any deflate of so many fits a block

    def __init__(self, handle, held=b"", level=6):
        self.handle, self._held, self.size, self.level = handle, [held], len(held), level

    @property
    def held(self):
        """Bytes that are in no block yet."""
        return b"".join(self._held)

    def write(self, data):
        self._held.append(data)
        self.size += len(data)
        if self.size >= self.BLOCK:
            self._flush(self.size - self.size % self.BLOCK)

    def _flush(self, count):
        data = self.held
        for start in range(0, count, self.BLOCK):
            self._block(data[start : min(start + self.BLOCK, count)])
        self._held, self.size = [data[count:]], self.size - count

    def _block(self, data):
        deflate = zlib.compressobj(self.level, zlib.DEFLATED, -15)
        body = deflate.compress(data) + deflate.flush()
        head = bytes.fromhex("1f8b08040000000000ff060042430200") + struct.pack("<H", len(body) + 25)
        self.handle.write(head + body + struct.pack("<II", zlib.crc32(data), len(data)))

    def close(self):
        self._flush(self.size)
        self.handle.write(BGZF_EOF)


class PlainWriter:
    """Writes to a binary handle, as BgzfWriter does, without compression."""

    held = b""

    def __init__(self, handle):
        self.write = handle.write

    def close(self):
        pass


def open_lines(handle, is_bgzf, held=None, level=6):
    """Return a BgzfWriter or a PlainWriter on a binary handle; held: as BgzfWriter has it, None for nothing."""
    return BgzfWriter(handle, held or b"", level) if is_bgzf else PlainWriter(handle)


class VcfWriter:
    """Writes header and lines as text, bgzip or BCF to an open binary handle; `close` completes the file.

    kind  v, z, b or u
    held  None for a new file; of one that is gone on with, whose header is there, what `settle` returned
    """

    def __init__(self, handle, kind, header, held=None):
        self.sink = open_lines(handle, kind != "v", held, 0 if kind == "u" else 6)
        self.encoder = None
        text = Header(header.lines, b"\n" if kind in "bu" else header.newline).to_bytes()
        if kind in "bu":
            self.declared = {k: set(header.ids(k)) for k in ("contig", "FILTER", "INFO", "FORMAT")}
            self.declared["FILTER"] |= {"PASS", "."}
            self.encoder = BcfEncoder(text, self.sink, is_begun=held is not None)
        elif held is None:
            self.write(text)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        try:
            if kind is None:
                self.close()
        finally:
            if self.encoder is not None:
                self.encoder.stop()

    def write(self, data):
        """Write lines, newlines included."""
        (self.encoder or self.sink).write(data)

    def write_record(self, record, added, removed=()):
        """Write a record with INFO fields added; for BCF, raise DataError when the header lacks what it needs."""
        if self.encoder is not None:
            self._check_declared(record)
            record = record._replace(ending=b"")
        self.write(record.with_info(added, removed))

    def _check_declared(self, record):
        """BCF refers to header lines by number; htslib would make them up or drop the value."""
        columns = record.columns
        used = [("contig", [columns[0]]), ("FILTER", columns[6].split(b";"))]
        used.append(("INFO", [f.partition(b"=")[0] for f in columns[7].split(b";") if f not in (b"", b".")]))
        if len(columns) > 8:
            used.append(("FORMAT", [f for f in columns[8].partition(b"\t")[0].split(b":") if f != b"."]))
        where = f"{record.contig}:{to_text(columns[1])}"
        for kind, names in used:
            for name in map(to_text, names):
                if name not in self.declared[kind]:
                    what = f"{kind} {printable(to_bytes(name))!r} is not declared in the header, so BCF cannot hold it"
                    raise DataError(what, where=where, hint="write VCF instead (-O z), or mend the header")
        if record.pos is None or not _QUAL.fullmatch(columns[5]):
            raise DataError("POS or QUAL is no number, so BCF cannot hold it", where=where, hint="write VCF (-O z)")

    def settle(self):
        """Hand on all that was written but for what waits for its block to be full; return that."""
        if self.encoder is not None:
            self.encoder.settle()
        return self.sink.held

    def close(self):
        self.settle()
        self.sink.close()


def build_index(path, index, kind):
    """Index a finished bgzip VCF (kind z), BCF (b) or table (t) into the file `index`, .tbi or .csi.

    Raises DataError when it cannot be indexed.
    """
    import pysam

    table = {"seq_col": 0, "start_col": 1, "end_col": 1, "meta_char": "#"}
    layout = {"z": {"preset": "vcf"}, "b": {"preset": "bcf"}, "t": table}[kind]
    try:
        pysam.tabix_index(path, csi=index.endswith(".csi"), index=index, force=True, keep_original=True, **layout)
    except (OSError, ValueError) as error:
        hint = "are the records sorted (bcftools sort), and every POS a number?"
        raise DataError(f"cannot be indexed ({error})", where="--write-index", hint=hint) from None
