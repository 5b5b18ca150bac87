"""Make the tables of the two bundled label models, train both on them, and lay them out with their cards.

yeast promoters, measured | human windows, simulated -> tables -> `hybridna finetune --task generation` -> bundled/NAME

Steps that are done are skipped, so the same command goes on after any stop.
"""

import argparse
import csv
import dataclasses
import gzip
import hashlib
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from hybridna_core.checkpoint import NOTICE, load_model
from hybridna_core.data.genome import open_genome
from hybridna_core.data.reporter import LINES, NOISE, simulate
from hybridna_core.model.hybrid import count_parameters
from hybridna_core.task_files import read_labels, save_labelled_model
from hybridna_core.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = ("sequence", "label", "split", "part", "group")
# Of three groups of promoters one is kept for the oracle; of the generator's, every tenth chooses the step.
ORACLE, CHOOSING = 3, 10
# Windows of the assay; what begins behind the border was never read by `base` in its training.
WINDOWS, BORDER, LENGTH = 34_000, 6_391_880, 200
# Rows that choose the step and that are measured at the end; the likeliest of 64 labels costs 64 readings a row.
CHOSEN, MEASURED = 300, 300


class Recipe(NamedTuple):
    """How one model is trained.

    table    its file below the folder of tables
    digits   names of the label's digits
    options  of `hybridna finetune`
    length   of every sequence, bases
    meaning  of each digit
    notice   what every use of the model says, if anything
    """

    name: str
    table: str
    digits: tuple
    options: tuple
    length: int
    meaning: str
    notice: str


YEAST_OPTIONS = (
    "--epochs", "2", "--lr", "2e-4", "--batch-size", "64", "--valid-every", "10", "--seeds", "3",
)  # fmt: skip
RECIPES = (
    Recipe(
        "yeast-promoters", "yeast.tsv", ("YPD", "SC-Ura"), YEAST_OPTIONS, 80,
        "quintile of measured expression in that medium, 0 the lowest", "",
    ),
    Recipe(
        "human-enhancers-demo", "human.tsv", LINES, ("--epochs", "2", "--lr", "1e-3", "--valid-every", "300"), LENGTH,
        "quartile of simulated activity in that cell line, 0 the lowest",
        "trained on a simulated reporter assay, for trying out only: no number behind its labels was measured",
    ),
)  # fmt: skip


def place_of(group):
    """Return a number that depends on a group's name alone, evenly spread."""
    return int(hashlib.sha256(group.encode()).hexdigest()[:8], 16)


def read_yeast(path):
    """Yield rows of the measured promoters: two thirds of the training groups for the generator, else the oracle."""
    with gzip.open(path, "rt", newline="") as handle:
        for row in csv.DictReader(handle, delimiter="\t"):
            place = place_of(row["group"])
            part = "generator" if place % ORACLE else "oracle"
            split = "valid" if place // ORACLE % CHOOSING == 0 else "train"
            if row["split"] == "val":
                part, split = "generator", "test"
            yield row["sequence80"], row["label"], split, part, row["group"], row["expr_complex"], row["expr_defined"]


def simulate_human(path):
    """Yield rows of the simulated assay over windows of human chromosome 20."""
    with open_genome(path) as genome:
        rows = simulate(genome, WINDOWS, length=LENGTH)
    inner = [i for i, row in enumerate(rows) if row.end <= BORDER]
    chosen = set(random.Random(0).sample(inner, CHOSEN))
    tested = 0
    for i, row in enumerate(rows):
        if row.start < BORDER < row.end:
            continue
        split = "valid" if i in chosen else "train" if row.end <= BORDER else "test"
        tested += split == "test"
        # Of what was held out a part is measured in training; the rest stands by as sequences that nobody designed.
        part = "reserve" if split == "test" and tested > MEASURED else "generator"
        values = (f"{value:.3f}" for value in row.activity)
        yield row.sequence, row.label, split, part, f"{row.contig}:{row.start + 1}-{row.end}", *values


def write_table(path, digits, rows):
    """Write rows for the generator, and all others beside them as NAME.other.tsv. digits: names of the activities"""
    rows = list(rows)
    for name, wanted in ((path, True), (path.with_suffix(".other.tsv"), False)):
        temporary = name.with_suffix(".part")
        with open(temporary, "w", newline="") as handle:
            writer = csv.writer(handle, delimiter="\t", lineterminator="\n")
            writer.writerow((*COLUMNS, *digits))
            writer.writerows(row for row in rows if (row[3] == "generator") == wanted)
        temporary.replace(name)


def list_words(recipe, table, output, is_blind=False):
    """Return the command that trains a model, as a user would type it, word by word."""
    words = ["finetune", str(table), "-o", str(output), "--task", "generation", "--split-column", "split"]
    words += recipe.options
    words += ["--unconditional"] if is_blind else [word for name in recipe.digits for word in ("--label-name", name)]
    return words


def finetune(recipe, table, output, is_blind=False):
    """Train, unless that is done."""
    words = list_words(recipe, table, output, is_blind)
    if not output.exists():
        done = subprocess.run([sys.executable, "-m", "hybridna_cli", *words], cwd=ROOT)
        if done.returncode:
            sys.exit(f"exit {done.returncode}: hybridna {' '.join(words)}")


def spell_bits(record):
    """Spell a training's bits per base on its test rows: mean over seeds, and their standard deviation."""
    bits, sd = record["measures"]["test_bits_per_base"], record["sd"].get("test_bits_per_base_sd")
    return f"{bits:.4f}" if sd is None else f"{bits:.5f} ± {sd:.5f}"


def spell_card(recipe, model, frequencies, record, command, blind):
    """Fill in the card of docs/cards; return the text of README.md.

    record, blind  finetune.json of the model, and of its twin without labels or None
    """
    test, twin, gain = record["measures"], "", ""
    if blind is not None:
        pairs = zip(record["by_seed"], blind["by_seed"], strict=True)
        gains = [without["test_bits_per_base"] - own["test_bits_per_base"] for own, without in pairs]
        twin = f", {spell_bits(blind)} by the same training without labels"
        gain = f"; the labels gain {sum(gains) / len(gains):+.5f} ({', '.join(f'{gain:+.5f}' for gain in gains)})"
    off = sum(n for label, n in frequencies.items() if abs(int(label[0]) - int(label[-1])) > 1)
    fields = {
        "facts": f"{count_parameters(model.config):,} parameters, as `base` but for the tokens of the label.",
        "command": f"hybridna {' '.join(command)}", "train": record["rows"]["train"], "test": record["rows"]["test"],
        "rows": sum(frequencies.values()), "off": off,
        "n40": frequencies.get("40", 0), "n04": frequencies.get("04", 0), "labels": len(frequencies),
        "lines": ", ".join(LINES),
        "noise": NOISE, "bits": spell_bits(record), "accuracy": test["test_label_accuracy"],
        "commonest": test["test_commonest_label"], "blind": twin, "gain": gain,
    }  # fmt: skip
    return (ROOT / "docs" / "cards" / f"{recipe.name}.md").read_text().format(**fields)


def lay_out(recipe, out, bundled):
    """Write the trained model, its card and what it is called below the folder of bundled models."""
    trained, twin = out / recipe.name, out / f"{recipe.name}-blind"
    model = load_model(trained, device="cpu")
    frequencies = read_labels(model)
    positions = [
        dataclasses.replace(position, name=name, meaning=recipe.meaning)
        for position, name in zip(model.tokenizer.label_positions, recipe.digits, strict=True)
    ]
    model.tokenizer, model.name = Tokenizer(label_positions=tuple(positions)), recipe.name
    record, blind = (
        json.loads((folder / "finetune.json").read_text()) if folder.exists() else None for folder in (trained, twin)
    )
    command = list_words(recipe, Path(recipe.table), Path(recipe.name))
    card = spell_card(recipe, model, frequencies, record, command, blind)
    extra = {name: trained / name for name in ("finetune.json", "measures.tsv")}
    if recipe.notice:
        extra[NOTICE] = recipe.notice + "\n"
    save_labelled_model(
        bundled / recipe.name, model, frequencies, length=recipe.length, card=card, extra=extra, force=True
    )


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--genome", type=Path, required=True, help="human chromosome 20, FASTA")
    parser.add_argument("--yeast", type=Path, required=True, help="table of yeast promoters and their expression")
    parser.add_argument("--out", type=Path, required=True, help="scratch folder: tables and models")
    parser.add_argument("--only", choices=[recipe.name for recipe in RECIPES], help="make this one")
    parser.add_argument("--tables", action="store_true", help="make the tables, train nothing")
    parser.add_argument("--bundled", type=Path, help="lay the models out below this folder")
    parser.add_argument("--blind", action="store_true", help="also train each without labels, for comparison")
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    for recipe in RECIPES:
        if options.only not in (None, recipe.name):
            continue
        table = options.out / recipe.table
        if not table.exists():
            is_yeast = recipe.name == "yeast-promoters"
            write_table(table, recipe.digits, read_yeast(options.yeast) if is_yeast else simulate_human(options.genome))
        if options.tables:
            continue
        finetune(recipe, table, options.out / recipe.name)
        if options.blind:
            finetune(recipe, table, options.out / f"{recipe.name}-blind", is_blind=True)
        if options.bundled:
            lay_out(recipe, options.out, options.bundled)


if __name__ == "__main__":
    main()
