"""Designed sequences with the labels they were made for.

FASTA with label=... behind the names | TSV, CSV or Parquet with a column `label` -> Rows, unusable ones left out
"""

import itertools

from hybridna_core.data.inputs import BYTE_ORDER_MARK, check_input, looks_like, read_chunks, read_lines, warn
from hybridna_core.data.labelled import MISSING, Columns, Row, Table, mark_rows, read_labelled, usable
from hybridna_core.errors import DataError


def read_designs(path, rna=False):
    """Return a Table of the designs of a file; `labels` of a row is (label,), an empty text where none is named.

    path  FASTA or table, as `generate` writes them, or any other with names and sequences; plain or gzip
    rna   read U as T

    Records whose status is not ok are prompts without designs: they are left out with a warning. Raises DataError for a
    file that is broken or has no design, and where over 5 % cannot be read; SystemFault.
    """
    path = check_input(path, random_access=True)
    _, first, _ = next(read_lines(read_chunks(path), path), (0, b"", True))
    first = first.removeprefix(BYTE_ORDER_MARK)
    if not first:
        raise DataError("no sequence found", where=path, hint="was the download complete?")
    is_fasta = looks_like(first) == "FASTA"
    if is_fasta:
        table = Table(path, list(_read_fasta(path)), ("label",), ("name",))
    else:
        has_status = "status" in first.decode("utf-8", "replace").lower().split("\t")
        table = read_labelled(path, Columns(split="status" if has_status else None), need_labels=False, rna=rna)
    rows = [row._replace(labels=(_spell_label(row.labels),), split="") for row in table.rows if row.split in ("", "ok")]
    if len(rows) < len(table.rows):
        warn("no-design", f"{path}: {len(table.rows) - len(rows):,} prompts without designs are left out")
    if not rows:
        raise DataError("no design", where=path, hint="is it the right file?")
    table = table._replace(rows=rows, labels=("label",))
    table = mark_rows(table, rna=rna) if is_fasta else table
    return table._replace(rows=usable(table))


def _spell_label(labels):
    text = "".join(labels)
    return "" if text.lower() in MISSING else text


def _read_fasta(path):
    """Yield the Row of each record, its status= as `split`."""
    head, parts, where = None, [], 0
    for number, raw, _ in itertools.chain(read_lines(read_chunks(path), path), [(0, b">", True)]):
        text = raw.removeprefix(BYTE_ORDER_MARK).decode("utf-8", "replace").strip()
        if not text.startswith(">"):
            parts.append(text)
            continue
        if head is not None:
            name, *words = head.split() or [""]
            fields = dict(word.split("=", 1) for word in words if "=" in word)
            labels = (fields.get("label", ""),)
            yield Row("".join(parts), labels, fields.get("status", ""), line=where, keys=(name or ".",))
        head, parts, where = text[1:], [], number
