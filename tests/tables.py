"""Tables of sequences whose labels a small model learns at once, and the runs that learn them.

seed -> sequences rich in A or in T -> table files, or `finetune` on a toy model
"""

import json
from pathlib import Path

import numpy as np

SPEEDS = ("tokens_per_second", "loader_share")


def draw(count, seed, classes=2, shortest=12, longest=24):
    """Draw sequences and their classes: class c holds the c-th base of A, T, C, G more often than the others."""
    random = np.random.default_rng(seed)
    found = []
    for i in range(count):
        chances = np.full(4, 0.1)
        chances[i % classes] = 0.7
        length = int(random.integers(shortest, longest + 1))
        found.append(("".join(random.choice(list("ATCG"), length, p=chances)), str(i % classes)))
    return found


def write_table(path, rows, header=("sequence", "label")):
    """Write rows as TSV or CSV, as the name says."""
    separator = "," if ".csv" in str(path) else "\t"
    Path(path).write_text("".join(separator.join(map(str, row)) + "\n" for row in [header, *rows]))
    return path


def lay_out_task(folder, train=64, valid=24, test=24, **drawn):
    """Write train.csv, dev.csv and test.csv as GUE has them; return the folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (name, count) in enumerate((("train", train), ("dev", valid), ("test", test))):
        write_table(folder / f"{name}.csv", draw(count, seed, **drawn))
    return folder


def outcome(folder):
    """Everything of a finished folder that must be equal, bit for bit, between a run that was stopped and one not."""
    folder = Path(folder)
    found = {}
    for path in sorted(folder.iterdir()):
        if path.name.endswith(".log.jsonl"):
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            found[path.name] = [{k: v for k, v in line.items() if k not in SPEEDS} for line in lines]
        elif path.name not in ("manifest.json", "README.md"):
            found[path.name] = path.read_bytes()
    return found
