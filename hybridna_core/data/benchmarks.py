"""Folders of published benchmarks, as they are published: which tasks lie there, and the tables of each.

folder -> {task: where it lies} -> tables of training, validation and test rows, or variants with labels
"""

import csv
import gzip
import hashlib
import tomllib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hybridna_core.data.inputs import check_input, warn
from hybridna_core.data.labelled import Columns, Row, Table, canonical, find_table, read_labelled, split_table
from hybridna_core.errors import DataError, SystemFault, UsageError, nearest

PROTOCOLS = Path(__file__).parents[1] / "protocols"
BENCHMARKS = ("gue", "bend", "lrb", "genomic-benchmarks", "table")
# Names of LRB's files of variants.
LRB_FILES = {
    "causal_eqtl": "variant_effect_causal_eqtl/All_Tissues.csv",
    "pathogenic_clinvar": "variant_effect_pathogenic/vep_pathogenic_coding.csv",
    "pathogenic_omim": "variant_effect_pathogenic/vep_pathogenic_non_coding.csv",
}
# Share of the training rows that stands in for validation rows where a benchmark has none.
VALID_SHARE = 0.1


class Protocol(NamedTuple):
    """How a task is run: its group and metric, and settings of TuneConfig; None: not said by anyone.

    warmup_steps, max_steps  become shares and epochs when the number of rows is known
    """

    group: str = "-"
    metric: str | None = None
    epochs: int | None = None
    max_steps: int | None = None
    batch_size: int = 32
    warmup_steps: int | None = None
    schedule: str = "cosine"
    freeze: bool = False
    head: str = "linear"
    lr: float | None = None
    group_size: int = 1


class LabelledVariant(NamedTuple):
    """A variant with its class; pos is 1-based. tissue is empty where there is none."""

    contig: str
    pos: int
    ref: str
    alt: str
    label: int
    split: str
    tissue: str
    line: int


# --- Presets ---------------------------------------------------------------------------------------------------------


def read_protocol(benchmark, task):
    """Return the published Protocol of a task; a benchmark's general one for a task that nobody names."""
    preset = tomllib.loads((PROTOCOLS / "evaluate.toml").read_text(encoding="utf-8"))[benchmark]
    groups = preset.pop("group", [])
    for group in groups:
        folder = group.pop("folder", None)
        tasks = group.pop("tasks")
        name = group.pop("name")
        known = [task_name if folder is None else f"{folder}/{task_name}" for task_name in tasks]
        if any(task == one or task.endswith(f"/{one}") for one in known):
            size = sum(len(other.get("tasks", tasks)) for other in _groups_of(benchmark, name))
            return Protocol(group=name, group_size=size, **{**preset, **group})
    return Protocol(**preset)


def _groups_of(benchmark, name):
    preset = tomllib.loads((PROTOCOLS / "evaluate.toml").read_text(encoding="utf-8"))[benchmark]
    return [group for group in preset["group"] if group["name"] == name]


def read_published(benchmark):
    """Return the paper's figures of a benchmark's groups: dicts of group, model, metric, value (float), from."""
    lines = (PROTOCOLS / "published.tsv").read_text(encoding="utf-8").splitlines()
    rows = list(csv.DictReader([line for line in lines if not line.startswith("#")], delimiter="\t"))
    return [{**row, "value": float(row["value"])} for row in rows if row["benchmark"] == benchmark]


# --- Tasks of a folder -----------------------------------------------------------------------------------------------


def find_tasks(benchmark, folder, wanted=()):
    """Return {name: path} of a benchmark folder's tasks, in order of name; `wanted` names some, or their last parts.

    Raises SystemFault without the folder, DataError for one that holds no task, UsageError for unknown names.
    """
    path = Path(check_input(folder) if Path(folder).is_file() else folder)
    if not path.exists():
        raise SystemFault("no such file or folder", where=folder)
    if benchmark == "table":
        found = {path.name.split(".")[0] or "table": path}
    elif not path.is_dir():
        raise SystemFault("is no folder", where=folder, hint="name the folder that holds the tasks")
    else:
        found = {"gue": _find_gue, "genomic-benchmarks": _find_class_folders, "bend": _find_bend, "lrb": _find_lrb}[
            benchmark
        ](path)
    if not found:
        raise DataError(f"holds no task laid out as {benchmark} publishes them", where=folder, hint=_LAYOUTS[benchmark])
    if not wanted:
        return found
    chosen = {}
    for word in wanted:
        names = [name for name in found if name == word or name.endswith(f"/{word}")]
        if len(names) != 1:
            close = nearest(word, [*found, *(name.split("/")[-1] for name in found)])
            what = f"{word!r} is {'more than one task' if names else 'no task here'}"
            hint = f"did you mean {close!r}?" if close and not names else f"they are {', '.join(names or found)}"
            raise UsageError(what, where="--tasks", hint=hint)
        chosen[names[0]] = found[names[0]]
    return chosen


_LAYOUTS = {
    "gue": "a folder per task with train.csv, dev.csv and test.csv",
    "genomic-benchmarks": "DATASET/train/CLASS/*.txt and DATASET/test/CLASS/*.txt",
    "bend": "TASK.bed with columns chromosome, start, end, split, and label or TASK.hdf5 beside it",
    "lrb": ", ".join(LRB_FILES.values()),
    "table": "a table, or a folder with train.csv, dev.csv and test.csv",
}


def _find_gue(folder):
    """Every folder with a training table; one with a test table alone is told of."""
    found = {}
    for one in sorted([folder, *(p for p in folder.rglob("*") if p.is_dir())]):
        name = one.relative_to(folder).as_posix() if one != folder else folder.name
        if find_table(one, "train") and find_table(one, "test"):
            found[name] = one
        elif find_table(one, "test"):
            warn("no-train", f"{one}: no training table; left out")
    return found


def _find_class_folders(folder):
    folders = [folder, *(p for p in sorted(folder.iterdir()) if p.is_dir())]
    return {p.name: p for p in folders if (p / "train").is_dir() and (p / "test").is_dir()}


def _find_bend(folder):
    names = ("chromatin_accessibility", "histone_modification", "cpg_methylation")
    places = {p.name.split(".")[0]: p for p in sorted(folder.rglob("*.bed"))}
    for name in places:
        if name not in names:
            warn("bend-task", f"{places[name]}: a label per base or bin is not read; left out")
    return {name: places[name] for name in names if name in places}


def _find_lrb(folder):
    return {name: folder / file for name, file in LRB_FILES.items() if (folder / file).is_file()}


# --- Tables of a task ------------------------------------------------------------------------------------------------


def read_tables(benchmark, path, *, columns=Columns(), genome=None, rna=False, seed=0, limit=None):
    """Return {train, valid, test: Table} of a task; validation rows are taken from training where there are none.

    columns  Columns, of `table` alone
    genome   of BEND's regions, and of tables of regions
    limit    at most so many training rows, drawn by `seed`
    """
    if benchmark == "genomic-benchmarks":
        tables = {part: _read_class_folders(path / part) for part in ("train", "test")}
    elif benchmark == "bend":
        tables = _read_bend(path, genome, rna)
    else:
        tables = _read_split(path, columns, genome, rna, seed)
    if "valid" not in tables:
        tables["train"], tables["valid"] = split_by_sequence(tables["train"], VALID_SHARE, f"valid {seed}")
        warn("no-valid", f"{path}: no validation rows; {VALID_SHARE:.0%} of the training rows are taken for them")
    if limit is not None and len(tables["train"].rows) > limit:
        order = np.sort(np.random.default_rng(seed).permutation(len(tables["train"].rows))[:limit])
        rows = tables["train"].rows
        tables["train"] = tables["train"]._replace(rows=[rows[i] for i in order])
    return {name: tables[name] for name in ("train", "valid", "test")}


def _read_split(path, columns, genome, rna, seed):
    """Read a folder of tables, or one table with a split column, or one that is cut by its sequences."""
    if path.is_dir():
        paths = {name: find_table(path, name) for name in ("train", "valid", "test")}
        if paths["train"] is None or paths["test"] is None:
            raise DataError("a training and a test table are needed", where=path, hint=_LAYOUTS["gue"])
        return {
            name: read_labelled(one, columns, genome=genome, rna=rna) for name, one in paths.items() if one is not None
        }
    table = read_labelled(path, columns, genome=genome, rna=rna)
    if columns.split is not None:
        parts = dict(zip(("train", "valid", "test"), split_table(table), strict=True))
        if parts["test"] is None:
            raise DataError("no row is for the test", where=path, hint="its split column must say test")
        return {name: part for name, part in parts.items() if part is not None}
    train, test = split_by_sequence(table, 2 * VALID_SHARE, f"test {seed}")
    warn("no-test", f"{path}: no split column; a fifth of the rows, by a digest of their sequence, is the test")
    return {"train": train, "test": test}


def split_by_sequence(table, share, salt):
    """Cut a table in two by a digest of salt and sequence: equal ones, or reverse complements, stay together."""
    parts = [], []
    for row in table.rows:
        digest = hashlib.sha256(f"{salt}\n{canonical(row.sequence.upper())}".encode()).digest()
        parts[int.from_bytes(digest[:4], "big") < share * 2**32].append(row)
    if not parts[0] or not parts[1]:
        raise DataError(f"{len(table.rows):,} rows are too few to hold some out", where=table.path)
    return table._replace(rows=parts[0]), table._replace(rows=parts[1])


def _read_class_folders(folder):
    """Read CLASS/*.txt, one sequence per file."""
    rows = []
    for one in sorted(p for p in folder.iterdir() if p.is_dir()):
        for path in sorted(one.glob("*.txt")):
            try:
                text = path.read_text(encoding="ascii").strip()
            except UnicodeDecodeError:
                raise DataError("is not plain text", where=path) from None
            rows.append(Row(text, (one.name,), line=len(rows) + 1, keys=(path.stem,)))
    if not rows:
        raise DataError("no CLASS/*.txt", where=folder, hint=_LAYOUTS["genomic-benchmarks"])
    return Table(str(folder), rows, ("label",), ("name",))


def _read_bend(path, genome, rna):
    """Read BEND's regions with their split; labels stand in the table, or in rows of the HDF5 file beside it."""
    if genome is None:
        raise UsageError("holds regions, whose bases are in a genome", where=path, hint="give -f FASTA")
    table = read_labelled(path, Columns(split="split"), genome=genome, need_labels=False, rna=rna)
    beside = path.with_suffix(".hdf5")
    if not table.labels:
        labels = _read_hdf5(beside, len(table.rows))
        names = tuple(f"track{i + 1}" for i in range(labels.shape[1]))
        rows = [
            row._replace(labels=tuple("1" if value else "0" for value in cells))
            for row, cells in zip(table.rows, labels > 0, strict=True)
        ]
        table = table._replace(rows=rows, labels=names)
    parts = dict(zip(("train", "valid", "test"), split_table(table), strict=True))
    if parts["test"] is None:
        raise DataError("no row is for the test", where=path)
    return {name: part for name, part in parts.items() if part is not None}


def _read_hdf5(path, rows):
    try:
        import h5py
    except ImportError:
        hint = "pip install hybridna[formats]"
        raise SystemFault("reading HDF5 needs h5py, which is not installed", where=path, hint=hint) from None
    if not path.is_file():
        raise SystemFault("no such file", where=path, hint="labels stand there, as the table has no label column")
    try:
        with h5py.File(path, "r") as handle:
            labels = np.asarray(handle["labels"])
    except (OSError, KeyError) as error:
        raise DataError(f"no labels can be read ({error})", where=path) from None
    labels = labels.reshape(len(labels), -1)
    if len(labels) != rows:
        raise DataError(f"{len(labels):,} rows of labels, the table beside it has {rows:,}", where=path)
    return labels


# --- Variants --------------------------------------------------------------------------------------------------------


def read_variant_table(path):
    """Return the LabelledVariants of one of LRB's files: CHROM, POS, REF, ALT, label (or INT_LABEL), split, tissue."""
    opener = gzip.open if str(path).endswith(".gz") else open
    with opener(path, "rt", encoding="utf-8", newline="") as handle:
        reader = csv.reader(handle)
        names = {name.strip().lower(): i for i, name in enumerate(next(reader, []))}
        label = "label" if "label" in names else "int_label"
        for name in ("chrom", "pos", "ref", "alt", label, "split"):
            if name not in names:
                raise DataError(f"no column {name.upper()!r}", where=f"{path}:1", hint="is it a file of LRB's?")
        found = []
        for cells in reader:
            where = f"{path}:{reader.line_num}"
            if len(cells) != len(names):
                raise DataError(f"{len(cells)} columns, the header has {len(names)}", where=where)
            text = {name: cells[i].strip() for name, i in names.items()}
            if not text["pos"].isdigit() or text[label] not in ("0", "1", "0.0", "1.0", "True", "False"):
                raise DataError(
                    f"POS {text['pos']!r}, label {text[label]!r}: a number and 0 or 1 are needed", where=where
                )
            ref, alt = text["ref"].upper(), text["alt"].upper()
            if not ref or not alt or set(ref + alt) - set("ACGT"):
                raise DataError(f"{ref!r} to {alt!r}: bases are needed", where=where)
            positive = int(text[label] in ("1", "1.0", "True"))
            tissue = text.get("tissue", "")
            found.append(
                LabelledVariant(text["chrom"], int(text["pos"]), ref, alt, positive, text["split"], tissue,
                                reader.line_num)
            )  # fmt: skip
    if not found:
        raise DataError("no row", where=path)
    return found
