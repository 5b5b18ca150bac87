"""Tables of sequences with labels, as fine-tuning and prediction read them.

TSV, CSV, Parquet, or regions and a genome -> Rows -> unusable ones marked -> label scheme -> arrays of labels
"""

import collections
import csv
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hybridna_core.data.inputs import BYTE_ORDER_MARK, check_input, looks_like, read_chunks, read_lines, warn
from hybridna_core.data.letters import explain_letter, first_bad
from hybridna_core.data.regions import Region, is_bed_name, read_bed
from hybridna_core.errors import DataError, SystemFault, UsageError, nearest
from hybridna_core.tokenizer import reverse_complement

# The sets of a task, and what their tables are called.
SETS = {"train": ("train",), "valid": ("dev", "valid", "val"), "test": ("test",)}
TASKS = ("classification", "multilabel", "regression", "generation")
SEQUENCE_NAMES = ("sequence", "seq")
LABEL_NAMES = ("label", "labels", "target")
CONTIG_NAMES = ("contig", "chrom", "chromosome", "chr", "#chrom", "#chromosome")
# What a cell holds that holds nothing.
MISSING = frozenset(("", ".", "na", "nan", "n/a", "none", "null"))
# Share of unusable rows that training puts up with.
UNUSABLE_LIMIT = 0.05
FEW_CLASSES = 20


class Row(NamedTuple):
    """One line of a table.

    sequence  letters in upper case, in reading direction; empty where status is not ok
    labels    text of each label column
    split     text of the split column, or empty
    status    ok, or why the sequence cannot be read: empty, bad_letters, too_long, or what a Region says
    line      1-based, of the file
    keys      what names the row in an output: name, or contig, start, end, name, strand
    """

    sequence: str
    labels: tuple[str, ...] = ()
    split: str = ""
    status: str = "ok"
    line: int = 0
    keys: tuple = ()


class Columns(NamedTuple):
    """Which columns are read; None: the first of the usual names."""

    sequence: str | None = None
    labels: tuple[str, ...] | None = None
    split: str | None = None


class Table(NamedTuple):
    """A table that was read: its path, rows, the names of label columns and of what names a row."""

    path: str
    rows: list
    labels: tuple[str, ...]
    keys: tuple[str, ...]

    def where(self, row):
        return f"{self.path}:{row.line}"


@dataclass(frozen=True)
class Scheme:
    """What labels mean: the task, the columns they stand in, and the classes in the order of the outputs.

    mean, sd  of each column, in training; regression is learned on (label - mean) / sd
    """

    task: str
    columns: tuple[str, ...]
    classes: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    sd: tuple[float, ...] = ()

    @property
    def outputs(self):
        """Names of the numbers that a head gives."""
        return self.columns if self.task == "regression" else self.classes


# --- Reading ---------------------------------------------------------------------------------------------------------


def read_labelled(path, columns=Columns(), *, genome=None, need_labels=True, longest=None, rna=False):
    """Read a table of sequences; return a Table. Rows that cannot be read are marked, with a warning.

    path         TSV, CSV (plain or gzip), Parquet, with a header; or BED, with `genome`, whose name or score is the
                 label. A table of regions (contig, start, end, maybe strand) needs the genome too
    columns      Columns
    need_labels  a table without label columns is refused
    longest      bases that are read at once; longer rows are marked too_long
    rna          read U as T
    Raises DataError for a table that is broken, lacks a column or has no row; UsageError, SystemFault.
    """
    path = check_input(path)
    if is_bed_name(path) and not _has_header(path):
        table = _read_regions(path, columns, genome)
    else:
        header, lines = _open_table(path)
        table = _read_columns(path, header, lines, columns, genome, need_labels)
    for row in table.rows:
        if row.status != "ok":
            _tell(table, row, longest)
    return mark_rows(table, longest, rna)


def find_table(folder, name):
    """Return the table of a set (train, valid or test) in a folder laid out as GUE's are, or None."""
    for stem in SETS[name]:
        for suffix in (".csv", ".tsv", ".parquet", ".csv.gz", ".tsv.gz"):
            if (Path(folder) / (stem + suffix)).is_file():
                return Path(folder) / (stem + suffix)
    return None


def mark_rows(table, longest=None, rna=False):
    """Return a Table whose rows that cannot be read are marked and warned of; options as in `read_labelled`.

    Of rows that are marked already nothing is said again.
    """
    rows = [_check(row, longest, rna) for row in table.rows]
    if not rows:
        raise DataError("no row", where=table.path, hint="is it the right file?")
    for before, row in zip(table.rows, rows, strict=True):
        if before.status == "ok" != row.status:
            _tell(table, row, longest)
    return table._replace(rows=[row if row.status == "ok" else row._replace(sequence="") for row in rows])


def _has_header(path):
    for _, raw, _ in read_lines(read_chunks(path), path):
        words = raw.decode("utf-8", "replace").lower().rstrip("\r").split("\t")
        return "start" in words and "end" in words
    return False


def _open_table(path):
    """Return the names of a table's columns and (line, cells) of each row."""
    if os.fspath(path).endswith(".parquet"):
        return _open_parquet(path)
    lines = read_lines(read_chunks(path), path)
    _, raw, _ = next(lines, (0, None, True))
    if raw is None or not raw.strip():
        raise DataError("is empty", where=path, hint="a header and rows are needed")
    raw = raw.removeprefix(BYTE_ORDER_MARK)
    kind = looks_like(raw)
    if kind:
        raise DataError(f"looks like {kind}, not a table", where=path)
    first = _decode(raw, path, 1)
    separator = "\t" if "\t" in first else ","

    def rows():
        for number, raw, _ in lines:
            line = _decode(raw, path, number)
            if line.strip():
                yield number, next(csv.reader([line], delimiter=separator))

    return next(csv.reader([first], delimiter=separator)), rows()


def _decode(raw, path, number):
    if b"\0" in raw:
        raise DataError("binary content (a NUL byte)", where=f"{path}:{number}", hint="is this a table?")
    try:
        return raw.decode("utf-8").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 at column {error.start + 1}", where=f"{path}:{number}") from None


def _open_parquet(path):
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        hint = "pip install hybridna[formats]"
        raise SystemFault("reading Parquet needs pyarrow, which is not installed", hint=hint) from None
    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"not Parquet ({error})", where=path) from None
    cells = [["" if value is None else str(value) for value in column.to_pylist()] for column in table.columns]
    return table.column_names, enumerate(map(list, zip(*cells, strict=True)), start=1)


def _find(header, wanted, usual, path, what, option):
    """Return the number of a column, by its name or one of the usual names; raise DataError without it."""
    lower = [name.strip().lower() for name in header]
    for name in (wanted,) if wanted is not None else usual:
        if name.lower() in lower:
            return lower.index(name.lower())
    name = wanted if wanted is not None else usual[0]
    close = nearest(name.lower(), lower)
    hint = f"did you mean {close!r}?" if close else f"its columns are {', '.join(header[:12])}; give {option} NAME"
    raise DataError(f"no column {name!r} for the {what}", where=f"{path}:1", hint=hint)


def _read_columns(path, header, lines, columns, genome, need_labels):
    """Read a table with a header: sequences, or regions of a genome."""
    lower = [name.strip().lower() for name in header]
    is_regions = columns.sequence is None and not set(SEQUENCE_NAMES) & set(lower) and set(CONTIG_NAMES) & set(lower)
    if is_regions and genome is None:
        raise UsageError("holds regions, whose bases are in a genome", where=path, hint="give -f FASTA")
    if is_regions:
        places = [_find(header, None, CONTIG_NAMES, path, "contig", "")]
        places += [_find(header, name, (), path, name, "") for name in ("start", "end")]
    else:
        places = [_find(header, columns.sequence, SEQUENCE_NAMES, path, "sequences", "--sequence-column")]
    if columns.labels is None and not need_labels:
        found = [lower.index(name) for name in LABEL_NAMES if name in lower][:1]
    else:
        wanted = columns.labels or (None,)
        found = [_find(header, name, LABEL_NAMES, path, "labels", "--label-column") for name in wanted]
    split = None if columns.split is None else _find(header, columns.split, (), path, "split", "--split-column")
    named = [lower.index(name) for name in ("name", "id") if name in lower][:1]
    strand = lower.index("strand") if is_regions and "strand" in lower else None
    rows = []
    for number, cells in lines:
        if len(cells) != len(header):
            what = f"{len(cells)} columns, the header has {len(header)}"
            raise DataError(what, where=f"{path}:{number}", hint="is it cut, or separated otherwise?")
        cells = [cell.strip() for cell in cells]
        row = Row("", tuple(cells[i] for i in found), cells[split] if split is not None else "", line=number)
        name = cells[named[0]] if named else "."
        if is_regions:
            where = f"{path}:{number}"
            start, end = (_whole(cells[i], header[i], where) for i in places[1:])
            sign = "-" if strand is not None and cells[strand] == "-" else "+"
            region = Region(cells[places[0]], start, end, sign, name, line=number)
            rows.append(_fetch(row, region, genome))
        else:
            rows.append(row._replace(sequence=cells[places[0]], keys=(name,)))
    keys = ("contig", "start", "end", "name", "strand") if is_regions else ("name",)
    return Table(path, rows, tuple(header[i].strip() for i in found), keys)


def _whole(text, column, where):
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise DataError(f"column {column}: {text[:40]!r} is not a whole number", where=where)
    return int(text)


def _read_regions(path, columns, genome):
    """Read a BED file; its column name or score is the label."""
    if genome is None:
        raise UsageError("holds regions, whose bases are in a genome", where=path, hint="give -f FASTA")
    labels = columns.labels or ("name",)
    for label in labels:
        if label not in ("name", "score"):
            hint = "a table with a header (contig, start, end, label) can have any"
            raise UsageError(f"BED has no column {label!r}; labels are its name or score", where=path, hint=hint)
    rows = []
    for region in read_bed(path, genome):
        row = Row("", tuple(getattr(region, label) for label in labels), line=region.line)
        rows.append(_fetch(row, region, genome))
    return Table(path, rows, labels, ("contig", "start", "end", "name", "strand"))


def _fetch(row, region, genome):
    """Fill in a region's bases, or why there are none."""
    contig, status = genome.resolve(region.contig, None), region.status
    if status == "ok" and contig is None:
        status = "unknown_contig"
    elif status == "ok" and region.end > genome.contigs[contig]:
        status = "out_of_range"
    elif status == "ok" and region.start >= region.end:
        status = "empty_region"
    row = row._replace(keys=(region.contig, region.start, region.end, region.name, region.strand), status=status)
    if status != "ok":
        return row
    bases = genome.fetch(contig, region.start, region.end)
    return row._replace(sequence=reverse_complement(bases) if region.strand == "-" else bases)


def _check(row, longest, rna):
    """Mark a row whose sequence cannot be read; else its letters in upper case."""
    if row.status != "ok":
        return row
    if not row.sequence:
        return row._replace(status="empty")
    raw = row.sequence.encode("utf-8", "replace")
    if first_bad(raw, None, rna) is not None:
        return row._replace(status="bad_letters")
    if longest is not None and len(raw) > longest:
        return row._replace(status="too_long")
    text = row.sequence.upper()
    return row._replace(sequence=text.replace("U", "T") if rna else text)


def _tell(table, row, longest):
    warn(row.status, f"{table.where(row)}: {_reason(row, longest)}; marked {row.status}")


def _reason(row, longest):
    if row.status == "empty":
        return "no sequence"
    if row.status == "too_long":
        return f"{len(row.sequence):,} bases, {longest:,} are read at once"
    if row.status == "bad_letters":
        raw = row.sequence.encode("utf-8", "replace")
        place = first_bad(raw, None, False)
        place = first_bad(raw, None, True) if place is None else place
        return f"{explain_letter(raw.upper()[place])[0]} at position {place + 1}"
    return "its region has no bases"


def usable(table):
    """Return the rows that can be trained on; raise DataError when over 5 % cannot, or none can."""
    good = [row for row in table.rows if row.status == "ok"]
    if len(table.rows) - len(good) > UNUSABLE_LIMIT * len(table.rows) or not good:
        counts = collections.Counter(row.status for row in table.rows if row.status != "ok")
        words = ", ".join(f"{status} {count:,}" for status, count in counts.items())
        what = f"{len(table.rows) - len(good):,} of {len(table.rows):,} rows cannot be used ({words})"
        raise DataError(what, where=table.path, hint="at most 5 % are left out; mend the table")
    return good


def split_table(table, names=(("train",), ("valid", "val", "dev", "validation"), ("test",))):
    """Cut a table by its split column; return Tables of training, validation and test rows, None for an absent one."""
    known = {name: i for i, group in enumerate(names) for name in group}
    parts = [[], [], []]
    for row in table.rows:
        number = known.get(row.split.lower())
        if number is None:
            hint = f"known are {', '.join(known)}"
            raise DataError(f"split {row.split!r} is unknown", where=table.where(row), hint=hint)
        parts[number].append(row)
    if not parts[0]:
        raise DataError("no row is for training", where=table.path, hint="its split column must say train")
    return [table._replace(rows=rows) if rows else None for rows in parts]


# --- Labels ----------------------------------------------------------------------------------------------------------


def learn_scheme(task, table, rows):
    """Return the Scheme of training rows; raise DataError for labels that are missing, no numbers, or all the same."""
    columns = table.labels
    _refuse_missing(table, rows)
    if task == "regression":
        values = np.array([[parse_number(text, table, row) for text in row.labels] for row in rows])
        sd = values.std(axis=0)
        if not (sd > 0).all():
            column = int(np.argmin(sd > 0))
            what = f"column {columns[column]} is {values[0, column]:g} in every row"
            raise DataError(what, where=table.path, hint="nothing can be learned from it")
        return Scheme(task, columns, (), tuple(values.mean(axis=0).tolist()), tuple(sd.tolist()))
    if task == "multilabel" and len(columns) > 1:
        for row in rows:
            for text in row.labels:
                _is_set(text, table, row)
        return Scheme(task, columns, columns)
    if len(columns) > 1:
        raise UsageError(
            f"{len(columns)} label columns, one is read", where="--label-column", hint="or --task multilabel"
        )
    found = collections.Counter(text for row in rows for text in _classes_of(task, row))
    classes = tuple(sorted(found, key=_class_order))
    if len(classes) < 2 and task == "classification":
        what = f"one class only ({classes[0]!r})"
        raise DataError(what, where=table.path, hint="two or more are needed to tell apart")
    if task == "classification" and len(classes) > max(FEW_CLASSES, len(rows) // 2):
        what = f"{len(classes):,} classes in {len(rows):,} rows"
        raise DataError(what, where=table.path, hint="numbers to predict? --task regression")
    if not classes:
        raise DataError("no row has a class", where=table.path)
    return Scheme(task, columns, classes)


def _refuse_missing(table, rows):
    for row in rows:
        for column, text in zip(table.labels, row.labels, strict=True):
            if text.lower() in MISSING:
                raise DataError(f"the label is missing ({column} is {text!r})", where=table.where(row),
                                hint="leave such rows out")  # fmt: skip


def _class_order(text):
    """Numbers by value, before words."""
    try:
        return 0, float(text), text
    except ValueError:
        return 1, 0.0, text


def _classes_of(task, row):
    if task == "multilabel":
        return [word for word in re.split(r"[,;|\s]+", row.labels[0]) if word and word != "-"]
    return row.labels[:1]


def parse_number(text, table, row):
    """Return the number that a cell of a row holds; raise DataError where it holds none that is finite."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise DataError(
            f"label {text[:40]!r} is no finite number", where=table.where(row), hint="regression needs numbers"
        )
    return value


def _is_set(text, table, row):
    if text not in ("0", "1", "0.0", "1.0", "True", "False"):
        raise DataError(f"label {text[:40]!r} is neither 0 nor 1", where=table.where(row),
                        hint="several label columns say which classes a row has")  # fmt: skip
    return text in ("1", "1.0", "True")


def encode_labels(scheme, table, rows):
    """Turn the labels of rows into numbers by a scheme; raise DataError for those that it does not know.

    returns  (rows,) int64 class numbers; multilabel (rows, classes) float32 of 0 and 1; regression (rows, columns)
             float32, standardised
    """
    _refuse_missing(table, rows)
    if scheme.task == "regression":
        values = np.array([[parse_number(text, table, row) for text in row.labels] for row in rows])
        return ((values - np.array(scheme.mean)) / np.array(scheme.sd)).astype(np.float32)
    if scheme.task == "multilabel" and len(scheme.columns) > 1:
        return np.array([[_is_set(text, table, row) for text in row.labels] for row in rows], dtype=np.float32)
    number = {name: i for i, name in enumerate(scheme.classes)}
    found = np.zeros((len(rows), len(number)), dtype=np.float32)
    for i, row in enumerate(rows):
        for text in _classes_of(scheme.task, row):
            if text not in number:
                names = ", ".join(scheme.classes[:12])
                raise DataError(f"class {text[:40]!r} is not among those trained on", where=table.where(row),
                                hint=f"they are {names}")  # fmt: skip
            found[i, number[text]] = 1
    return found if scheme.task == "multilabel" else found.argmax(axis=1)


def count_shared(rows, others):
    """Count the rows of `others` whose sequence, or its reverse complement, stands among `rows`."""
    known = {canonical(row.sequence) for row in rows}
    return sum(canonical(row.sequence) in known for row in others)


def canonical(sequence):
    """Return a sequence or its reverse complement, whichever is first in the alphabet."""
    return min(sequence, reverse_complement(sequence))
