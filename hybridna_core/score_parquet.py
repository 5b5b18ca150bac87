"""Scores as Parquet: the rows and columns of the table, typed, with what the numbers are in the file's metadata.

Scores of a record -> rows -> row groups of bounded size -> Parquet
"""

import json

from hybridna_core.data.vcf import Header, to_text
from hybridna_core.data.writers import ParquetTable
from hybridna_core.errors import DataError
from hybridna_core.score_fields import FIELDS, read_runs

# Of one row group, so that memory stays flat whatever the alleles are.
ROWS, CHARACTERS = 2**14, 2**24
_TYPES = {"Float": "float", "Integer": "int8", "String": str}


class ScoreParquet:
    """Writes scores as Parquet to an open binary handle, one row per allele; `close` completes it.

    path    of the output, for messages
    lines   `##` lines that say how the numbers came about; none with --no-version
    fields  keys of FIELDS
    facts   dict that their texts need

    Columns: chrom pos ref alt id, then those of the fields; pos counts from 1; null where there is no number. The key
    `hybridna` of the schema's metadata holds as JSON: `columns`, what they are; `run`, the facts of the run; `header`,
    the lines.
    """

    def __init__(self, handle, path, lines, fields, facts):
        self.fields = [FIELDS[name] for name in fields]
        columns = {"chrom": str, "pos": int, "ref": str, "alt": str, "id": str}
        columns |= {field.column: _TYPES[field.kind] for field in self.fields}
        runs = read_runs(Header(lines))
        meaning = {field.column: field.text.format(prefix="", **facts) for field in self.fields}
        meta = {"columns": meaning, **({"run": runs[0], "header": list(lines)} if runs else {})}
        self.table = ParquetTable(handle, path, columns, None, 0, meta, rows=ROWS)
        self.table.begin()
        self.held = 0

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        try:
            if kind is None:
                self.table.finish()
        finally:
            self.table.close()

    def write_record(self, record, scores):
        """Write every ALT of a record."""
        contig, name, ref, alts = (to_readable(record.columns[i]) for i in (0, 2, 3, 4))
        for alt, score in zip(alts.split(","), scores, strict=True):
            values = (getattr(score, field.attribute) for field in self.fields)
            values = (int(value) if isinstance(value, bool) else value for value in values)
            self.table.add((contig, record.pos, ref, alt, None if name == "." else name, *values))
            self.held += len(ref) + len(alt)
            if self.held >= CHARACTERS:
                self.table.flush()
                self.held = 0


def read_parquet_header(path):
    """Return the Header of a Parquet file of scores, empty where it holds none, and its column names."""
    from pyarrow import ArrowInvalid, parquet

    try:
        schema = parquet.read_schema(path)
    except ArrowInvalid:
        raise DataError("is no whole Parquet file", where=path, hint="was it cut?") from None
    meta = json.loads((schema.metadata or {}).get(b"hybridna", b"{}"))
    return Header(meta.get("header", [])), schema.names


def to_readable(raw):
    """Decode bytes of a VCF; Parquet holds no text that is not UTF-8."""
    return to_text(raw).encode("utf-8", "replace").decode()
