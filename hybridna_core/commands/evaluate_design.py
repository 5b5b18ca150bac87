"""What designed sequences are worth, per label, beside held-out real sequences and other designs.

designs, real table -> labels, sets -> oracle, distances, posteriors -> a row per label and set -> TSV, Markdown
"""

import time
from typing import NamedTuple

import numpy as np

from hybridna_core.checkpoint import load_model
from hybridna_core.data.designs import read_designs
from hybridna_core.data.inputs import check_input, warn
from hybridna_core.data.labelled import Columns, mark_rows, parse_number, read_labelled, split_table, usable
from hybridna_core.design_measures import (
    compare,
    compare_real,
    draw,
    measure_activity,
    measure_oracle,
    nearest_distances,
    spell_lengths,
)
from hybridna_core.errors import DataError, ModelError, UsageError
from hybridna_core.model.labels import label_posterior
from hybridna_core.oracle import load_oracle, score_label, split_outputs
from hybridna_core.reports import check_report, write_report
from hybridna_core.sequence_baselines import gc_content
from hybridna_core.task_files import read_labels
from hybridna_core.task_report import spell_cell

DESIGNS, REAL, ANY = "designs", "real", "real, any label"
COLUMNS = (
    "label", "set", "n", "of", "distinct", "length", "target", "top_1", "top_100", "mean", "sd", "specificity",
    "specificity_100", "diversity", "diversity_100", "pairs", "nearest_real", "nearest_real_min", "gc",
    "gc_difference", "kmer_divergence", "fidelity", "measured", "oracle_r",
)  # fmt: skip
SEED_LIMIT = 2**64


class Item(NamedTuple):
    """One sequence.

    label     it was made for or measured to have, empty where none is named
    place     among the real sequences, None for one that is none of them
    measured  activity of each output as measured, None where it was not
    """

    name: str
    sequence: str
    label: str
    place: int | None = None
    measured: tuple | None = None


class Group(NamedTuple):
    """The items of one set for one label, and how many they were drawn from."""

    label: str
    name: str
    items: list
    total: int


class Readings(NamedTuple):
    """What was computed: outputs of the oracle and likeliest label by sequence, distances by (sequence, place)."""

    values: dict
    likely: dict
    near: dict


class DesignEvaluation(NamedTuple):
    """What was measured; `rows` are dicts with COLUMNS, `mean_` and each output's name, and `why`."""

    designs: int
    real: int
    labels: int
    oracle: str
    oracle_sha256: str | None
    model: str | None
    model_sha256: str | None
    outputs: tuple
    rows: tuple
    output: str | None
    seconds: float

    def to_dict(self):
        return self._asdict()


def evaluate_design(
    designs, output=None, *, real, oracle, label=(), model=None, beside=(), sequence_column=None, label_column=(),
    value_column=(), split_column=None, base=None, markdown=None, sequences=None, max_sequences=1000, pairs=1_000_000,
    batch_size="auto", seed=0, device="auto", dtype="float32", rna=False, force=False, progress=None,
):  # fmt: skip
    """Measure designs for each label, and real sequences beside them; write a table and return a DesignEvaluation.

    designs        FASTA or certificate table that `generate` wrote, or a list of such; see `read_designs`
    output         .tsv or .md; `-` is standard output, None: not written
    real           table of held-out real sequences with labels, see `read_labelled`
    oracle         folder that `finetune --task regression` wrote, or `simulated`
    label          labels to measure; those that the designs name when empty
    model          name or folder of the generator, for label fidelity
    beside         texts NAME=FILE: designs of another model; those that name no label stand beside every label
    label_column   of the real table; several are read as the digits of one label
    value_column   of the real table: measured activity, a column per output of the oracle
    split_column   of the real table: only its rows for testing are read
    base           where the base of an oracle that is an adapter folder lies
    markdown       .md to write the same table to as well
    sequences      .tsv to write a line per sequence to
    max_sequences  of each set; where there are more, so many are drawn by the seed
    pairs          for the mean distance of two sequences; where there are more, so many are drawn by the seed

    Raises HybriDNAError kinds.
    """
    started = time.monotonic()
    designs = [designs] if isinstance(designs, str) or not isinstance(designs, list | tuple) else list(designs)
    others = parse_beside(beside)
    if not designs:
        raise UsageError("no file", where="DESIGNS")
    for option, value, least in (("--max-sequences", max_sequences, 1), ("--pairs", pairs, 1)):
        if value < least:
            raise UsageError(f"is {value}, must be at least {least}", where=option)
    if not 0 <= seed < SEED_LIMIT:
        raise UsageError(f"is {seed}, must be 0 to 2^64 - 1", where="--seed")
    check_outputs(output, markdown, sequences, [*designs, real, *others.values()], force)
    asked = [check_label(text, "--label") for text in dict.fromkeys(label)]
    for path in (*designs, real, *others.values()):
        check_input(path, random_access=True)
    made = [read_designs(path, rna) for path in designs]
    rivals = {name: read_designs(path, rna) for name, path in others.items()}
    columns = Columns(sequence_column, (*(label_column or ("label",)), *value_column), split_column)
    known = read_real(real, columns, rna)
    options = {"device": device, "dtype": dtype}
    judge = load_oracle(oracle, base, **options)
    if value_column and len(value_column) != len(judge.outputs):
        what = f"{len(value_column)} columns, the oracle gives {len(judge.outputs)} numbers"
        raise UsageError(what, where="--value-column", hint=f"they are {', '.join(judge.outputs)}")
    generator, frequencies, longest = load_generator(model, **options)
    longest = min((n for n in (judge.longest, longest) if n is not None), default=None)
    made, known, *more = (shorten(one, longest) for one in (made, [known], *([one] for one in rivals.values())))
    items = [item for table in made for item in list_designs(table)]
    truth = list_real(known[0], len(value_column), judge.outputs)
    rivals = {name: list_designs(tables[0]) for name, tables in zip(rivals, more, strict=True)}
    labels = choose_labels(asked, items, judge.outputs, generator, designs[0])
    groups = list(make_groups(labels, items, truth, rivals, max_sequences, seed))
    texts = [item.sequence for item in truth]
    readings = read_groups(groups, judge, batch_size, generator, frequencies, texts, progress)
    rows = []
    for asked_for in labels:
        like = [item.sequence for item in truth if item.label == asked_for]
        count = sum(len(group.items) for group in groups if (group.label, group.name) == (asked_for, DESIGNS))
        rows += [measure_group(group, readings, judge.outputs, like, count, frequencies, pairs, seed)
                 for group in groups if group.label == asked_for]  # fmt: skip
    names = table_columns(judge.outputs)
    cells = [[spell_cell(row[name]) for name in names] for row in rows]
    write_report(output, names, cells, force)
    write_report(markdown, names, cells, force)
    write_report(sequences, *list_sequences(groups, readings, judge.outputs), force)
    return DesignEvaluation(
        len(items), len(truth), len(labels), judge.name, judge.digest, generator and generator.name,
        generator and generator.digest, judge.outputs, tuple(rows), None if output is None else str(output),
        time.monotonic() - started,
    )  # fmt: skip


# --- What is given ---------------------------------------------------------------------------------------------------


def parse_beside(words):
    """Return {name: path} of texts NAME=FILE; raise UsageError for others."""
    found = {}
    for text in words:
        name, sign, path = text.partition("=")
        if not (sign and name.strip() and path) or not name.isprintable() or "|" in name:
            raise UsageError(f"is {text!r}, must be NAME=FILE", where="--beside")
        if name in (DESIGNS, REAL, ANY) or name in found:
            raise UsageError(f"two sets are called {name!r}", where="--beside", hint="give each its own name")
        found[name] = path
    return found


def check_outputs(output, markdown, sequences, inputs, force):
    """Raise where a table cannot or must not be written."""
    for path, suffix in ((output, None), (markdown, ".md"), (sequences, ".tsv")):
        check_report(path, inputs, force)
        if suffix is not None and path is not None and not str(path).endswith(suffix):
            raise UsageError("the name tells another format", where=path, hint=f"end it in {suffix}")
    paths = [str(path) for path in (output, markdown, sequences) if path is not None]
    if len(set(paths)) < len(paths):
        raise UsageError("two outputs have one name", where=paths[0], hint="give each its own")


def check_label(text, where, fault=UsageError):
    """Return a label if it is a row of digits."""
    if not (text.isascii() and text.isdigit()):
        raise fault(f"label {text[:40]!r} is no row of digits", where=where)
    return text


def check_digits(label, outputs, where, fault=UsageError):
    """Raise where a label has another number of digits than the oracle has outputs."""
    if len(label) != len(outputs):
        what = f"label {label!r} has {len(label)} digits, the oracle gives {len(outputs)} numbers"
        raise fault(what, where=where, hint=f"a digit each is needed, for {', '.join(outputs)}")


def read_real(path, columns, rna):
    """Return the Table of real sequences that can be read; of a table with a split column those for testing."""
    table = read_labelled(path, columns, rna=rna)
    if columns.split is not None:
        table = split_table(table)[2]
        if table is None:
            raise DataError("no row is for testing", where=path, hint="its split column must say test")
    return table._replace(rows=usable(table))


def load_generator(model, **options):
    """Return a network that knows labels, how often each stood in training, and how many bases it reads; or Nones."""
    if model is None:
        return None, None, None
    network = load_model(model, **options)
    frequencies = read_labels(network)
    if not frequencies:
        hint = "hybridna finetune --task generation makes one that does; or leave out --model"
        raise ModelError("this model knows no labels", where=model, hint=hint)
    return network, frequencies, network.config.bases_at_once - len(network.tokenizer.label_positions)


def shorten(tables, longest):
    """Leave out rows that are too long to be read, with a warning; over 5 % of them stop the run."""
    return [table._replace(rows=usable(mark_rows(table, longest))) for table in tables]


def list_designs(table):
    """Return the Items of a table of designs; raise DataError for a label that is no row of digits."""
    for row in table.rows:
        if row.labels[0]:
            check_label(row.labels[0], table.where(row), DataError)
    return [Item(row.keys[-1], row.sequence, row.labels[0]) for row in table.rows]


def list_real(table, values, outputs):
    """Return the Items of the real sequences; raise DataError for labels and values that are none.

    values  how many of the label columns, the last ones, are measured activity
    """
    found, digits = [], len(table.labels) - values
    for place, row in enumerate(table.rows):
        label = check_label("".join(row.labels[:digits]), table.where(row), DataError)
        check_digits(label, outputs, table.where(row), DataError)
        measured = tuple(parse_number(text, table, row) for text in row.labels[digits:])
        found.append(Item(row.keys[-1], row.sequence, label, place, measured or None))
    return found


def choose_labels(asked, items, outputs, generator, where):
    """Return the labels to measure; raise for those that the designs, the oracle or the generator do not know."""
    named = list(dict.fromkeys(item.label for item in items if item.label))
    labels = asked or named
    if not labels:
        raise UsageError("the designs name no label", where=where, hint="give --label")
    if len(labels) > 1 and len({item.label for item in items} - {""}) < len({item.label for item in items}):
        what = "some designs name no label, and there are several"
        raise DataError(what, where=where, hint="give one --label, or designs that name theirs")
    for label in labels:
        check_digits(label, outputs, "--label" if asked else where)
        if generator is not None:
            generator.tokenizer.encode_label(label)
        if not any(item.label in (label, "") for item in items):
            raise DataError(f"no design has label {label}", where=where, hint=f"they have {', '.join(named)}")
    return labels


# --- Sets ------------------------------------------------------------------------------------------------------------


def make_groups(labels, items, truth, rivals, limit, seed):
    """Yield the Group of each label and set: designs, real sequences of the label, of any, others' designs."""
    for label in labels:
        mine = [item for item in items if item.label in (label, "")]
        like = [item for item in truth if item.label == label]
        if not like:
            warn("no-real", f"no real sequence has label {label}; nothing is compared with those of it")
        sets = {DESIGNS: mine, REAL: like, ANY: truth}
        for name, theirs in rivals.items():
            sets[name] = [item for item in theirs if item.label in (label, "")]
            if not sets[name]:
                warn("no-design", f"{name} has no design for label {label}")
        for name, found in sets.items():
            yield Group(label, name, draw(found, limit, seed), len(found))
        lengths = {name: spell_lengths([item.sequence for item in found]) for name, found in sets.items() if found}
        if len(set(lengths.values())) > 1 or any("-" in text for text in lengths.values()):
            told = ", ".join(f"{name} {text}" for name, text in lengths.items())
            warn("lengths", f"label {label}: lengths differ ({told} bases), and edit distances count the difference")


def read_groups(groups, oracle, batch_size, generator, frequencies, real, progress):
    """Compute what is needed of every sequence once; return Readings."""
    keys = list(dict.fromkeys((item.sequence, item.place) for group in groups for item in group.items))
    texts = list(dict.fromkeys(text for text, _ in keys))
    total = len(keys) + len(texts) * (1 if generator is None else 2)

    def report(before):
        return None if progress is None else lambda done, _: progress(before + done, total)

    values = dict(zip(texts, oracle.compute(texts, batch_size, report(0)), strict=True))
    places = [place for _, place in keys]
    near = nearest_distances([text for text, _ in keys], places, real, report(len(texts)))
    likely, tell = {}, report(len(texts) + len(keys))
    for done, text in enumerate(texts if generator is not None else (), start=1):
        chances, _ = label_posterior(generator, text, frequencies)
        likely[text] = list(frequencies)[int(chances.argmax())]
        if tell is not None:
            tell(done, total)
    return Readings(values, likely, dict(zip(keys, near, strict=True)))


def measure_group(group, readings, outputs, like, count, frequencies, pairs, seed):
    """Return the row of a set, a dict by `table_columns`.

    like   the real sequences of the label
    count  designs of the label, as many of which the real ones are compared with each other
    """
    label, items = group.label, group.items
    high, others = split_outputs(label)
    row = dict.fromkeys(table_columns(outputs)) | {
        "label": label, "set": group.name, "n": len(items), "of": group.total, "pairs": 0,
        "target": "+".join(outputs[i] for i in high),
    }  # fmt: skip
    if not items:
        return row | {"why": f"no sequence with label {label}"}
    texts, why = [item.sequence for item in items], []
    values = np.array([readings.values[text] for text in texts])
    near = np.array([readings.near[item.sequence, item.place] for item in items])
    row |= {"distinct": len(set(texts)), "length": spell_lengths(texts), "gc": float(gc_content(texts).mean())}
    row |= measure_activity(values, label, texts, pairs, seed)
    row |= {f"mean_{name}": float(mean) for name, mean in zip(outputs, values.mean(axis=0), strict=True)}
    if not np.isnan(near).any():
        row |= {"nearest_real": float(near.mean()), "nearest_real_min": float(near.min())}
    if not others:
        why.append(f"specificity: label {label} asks the same of all")
    compared = None
    if like:
        compared = compare_real(like, count, seed) if group.name == REAL else compare(texts, like)
    if compared is None:
        why.append(f"comparison: {'one' if like else 'no'} real sequence with label {label}")
    row["gc_difference"], row["kmer_divergence"] = compared or (None, None)
    if readings.likely and label in frequencies:
        row["fidelity"] = sum(readings.likely[text] == label for text in texts) / len(texts)
    else:
        reason = f"label {label} was not in the model's training" if readings.likely else "no --model"
        why.append(f"fidelity: {reason}")
    if items[0].measured is not None:
        row["measured"], row["oracle_r"] = measure_oracle(values, np.array([i.measured for i in items]), label)
    return row | {"why": "; ".join(why)}


# --- What is written -------------------------------------------------------------------------------------------------


def table_columns(outputs):
    """Return the names of the table's columns, in order."""
    return [*COLUMNS, *(f"mean_{name}" for name in outputs), "why"]


def list_sequences(groups, readings, outputs):
    """Return names and rows of cells of a table with a line per label, set and sequence."""
    names = ["label", "set", "name", "target", "specificity", *outputs, "nearest_real", "gc", "likeliest", "sequence"]
    rows = []
    for group in groups:
        for item in group.items:
            values = readings.values[item.sequence]
            target, specificity = score_label(values[None], group.label)
            numbers = [float(target[0]), None if specificity is None else float(specificity[0]), *values.tolist()]
            numbers += [float(readings.near[item.sequence, item.place]), float(gc_content([item.sequence])[0, 0])]
            cells = [group.label, group.name, item.name, *map(spell_cell, numbers)]
            rows.append([*cells, readings.likely.get(item.sequence, "NA"), item.sequence])
    return names, rows
