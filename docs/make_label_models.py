"""Make the tables of the two bundled label models, train both on them, and lay them out with their cards.

yeast promoters, measured | human windows, simulated -> tables -> `hybridna finetune --task generation` -> bundled/NAME

Steps that are done are skipped, so the same command goes on after any stop.
"""

import argparse
import csv
import gzip
import hashlib
import random
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from hybridna_core.data.genome import open_genome
from hybridna_core.data.reporter import LINES, simulate

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = ("sequence", "label", "split", "part", "group", "values")
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
    """

    name: str
    table: str
    digits: tuple
    options: tuple


RECIPES = (
    Recipe(
        "yeast-promoters", "yeast.tsv", ("YPD", "SC-Ura"), ("--epochs", "6", "--lr", "1e-3", "--valid-every", "60"),
    ),
    Recipe(
        "human-enhancers-demo", "human.tsv", LINES, ("--epochs", "2", "--lr", "1e-3", "--valid-every", "300"),
    ),
)  # fmt: skip


def place_of(group):
    """Return a number that depends on a group's name alone, evenly spread."""
    return int(hashlib.sha256(group.encode()).hexdigest()[:8], 16)


def read_yeast(path):
    """Yield rows of the measured promoters: two thirds of the training groups for the generator, others for the oracle."""
    with gzip.open(path, "rt", newline="") as handle:
        for row in csv.DictReader(handle, delimiter="\t"):
            place = place_of(row["group"])
            part = "generator" if place % ORACLE else "oracle"
            split = "valid" if place // ORACLE % CHOOSING == 0 else "train"
            if row["split"] == "val":
                part, split = "generator", "test"
            values = f"{row['expr_complex']},{row['expr_defined']}"
            yield row["sequence80"], row["label"], split, part, row["group"], values


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
        values = ",".join(f"{value:.3f}" for value in row.activity)
        yield row.sequence, row.label, split, part, f"{row.contig}:{row.start + 1}-{row.end}", values


def write_table(path, rows):
    """Write rows for the generator, and all others beside them as NAME.other.tsv."""
    rows = list(rows)
    for name, wanted in ((path, True), (path.with_suffix(".other.tsv"), False)):
        temporary = name.with_suffix(".part")
        with open(temporary, "w", newline="") as handle:
            writer = csv.writer(handle, delimiter="\t", lineterminator="\n")
            writer.writerow(COLUMNS)
            writer.writerows(row for row in rows if (row[3] == "generator") == wanted)
        temporary.replace(name)


def finetune(recipe, table, output, is_blind=False):
    """Train by the command that a user would type; return the words of it."""
    words = ["finetune", str(table), "-o", str(output), "--task", "generation", "--split-column", "split"]
    words += recipe.options
    words += ["--unconditional"] if is_blind else [word for name in recipe.digits for word in ("--label-name", name)]
    if not output.exists():
        done = subprocess.run([sys.executable, "-m", "hybridna_cli", *words], cwd=ROOT)
        if done.returncode:
            sys.exit(f"exit {done.returncode}: hybridna {' '.join(words)}")
    return words


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--genome", type=Path, required=True, help="human chromosome 20, FASTA")
    parser.add_argument("--yeast", type=Path, required=True, help="table of yeast promoters and their expression")
    parser.add_argument("--out", type=Path, required=True, help="scratch folder: tables and models")
    parser.add_argument("--only", choices=[recipe.name for recipe in RECIPES], help="make this one")
    parser.add_argument("--tables", action="store_true", help="make the tables, train nothing")
    parser.add_argument("--blind", action="store_true", help="also train each without labels, for comparison")
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    for recipe in RECIPES:
        if options.only not in (None, recipe.name):
            continue
        table = options.out / recipe.table
        if not table.exists():
            is_yeast = recipe.name == "yeast-promoters"
            write_table(table, read_yeast(options.yeast) if is_yeast else simulate_human(options.genome))
        if options.tables:
            continue
        finetune(recipe, table, options.out / recipe.name)
        if options.blind:
            finetune(recipe, table, options.out / f"{recipe.name}-blind", is_blind=True)


if __name__ == "__main__":
    main()
