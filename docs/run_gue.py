"""Fine-tune a model on the GUE tasks that are at hand, probe it frozen on two more, and write docs/gue.md.

data -> `hybridna evaluate gue` by three readings, `evaluate table` frozen -> tables; cost of echo -> docs/gue.md
"""

import argparse
import csv
import gzip
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
READINGS = ("--reading", "mean", "--echo", "none,same,rc")
RATES = "5e-4,2e-3"
# Tasks, seeds, training rows, epochs. About 28 million tokens in all, an hour and a half at 5,000 a second.
RUNS = (
    ("prom_core_tata,mouse/2", 3, 2000, 2),
    ("mouse/0,tf/2", 1, 2000, 2),
    ("prom_300_tata", 1, 1000, 2),
)
TRIAL = ("--trial-rows", "500", "--trial-epochs", "1")
# Every tenth group of the yeast table's training rows is for validation.
YEAST_VALID = 10


def hybridna(*words):
    """Run a command of this checkout; return its seconds of CPU and the peak of its memory in bytes."""
    command = [sys.executable, "-m", "hybridna_cli", *map(str, words)]
    print("hybridna", *words, flush=True)
    child = subprocess.Popen(command, cwd=ROOT)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"exit {child.returncode}: {' '.join(command)}")
    return {"cpu": usage.ru_utime + usage.ru_stime, "bytes": usage.ru_maxrss * 1024}


def prepare_tables(data, out):
    """Write E. coli promoters and both yeast media as `evaluate table` reads them; return {name: (path, options)}."""
    out.mkdir(parents=True, exist_ok=True)
    ecoli = out / "ecoli_promoters.tsv"
    with open(data / "classify/other/ecoli_promoters_81bp.csv", newline="") as handle:
        rows = [(row["seqs"].upper(), row["labels"]) for row in csv.DictReader(handle)]
    write_table(ecoli, ("sequence", "label"), rows)
    found = {"ecoli_promoters": (ecoli, ())}
    with gzip.open(data / "reglm/yeast_promoters_train_val.tsv.gz", "rt", newline="") as handle:
        table = list(csv.DictReader(handle, delimiter="\t"))
    number = {name: i for i, name in enumerate(sorted({row["group"] for row in table if row["split"] == "train"}))}
    for medium in ("complex", "defined"):
        path = out / f"yeast_{medium}.tsv"
        # Mutants of one sequence stay together; what was held out with them is the test.
        splits = ["test" if row["split"] == "val" else "train" if number[row["group"]] % YEAST_VALID else "valid"
                  for row in table]  # fmt: skip
        rows = [(row["sequence80"], row[f"expr_{medium}"], part) for row, part in zip(table, splits, strict=True)]
        write_table(path, ("sequence", "label", "split"), rows)
        found[f"yeast_{medium}"] = (path, ("--task", "regression", "--split-column", "split"))
    return found


def write_table(path, header, rows):
    path.write_text("".join("\t".join(cells) + "\n" for cells in [header, *rows]))


def measure_echo(data, scratch, model, rows):
    """Return {reading: seconds of CPU and peak of memory} of one epoch on some rows, what is done once taken off."""
    found = {}
    for name, echo in (("standard", "none"), ("echo", "same"), ("RC echo", "rc")):
        cost = [
            hybridna(
                "evaluate", "gue", data / "classify/GUE", "-o", scratch / f"{echo}-{count}", "-m", model, "--tasks",
                "prom_300_tata", "--echo", echo, "--limit", count, "--epochs", 1, "--lr", "1e-4", "--no-baselines",
                "--threads", 1, "-q",
            )
            for count in (rows, 3 * rows)
        ]  # fmt: skip
        found[name] = {"cpu": (cost[1]["cpu"] - cost[0]["cpu"]) / (2 * rows), "bytes": cost[1]["bytes"]}
    return found


def describe_cost(cost):
    plain = cost["standard"]
    lines = ["| reading | CPU per 1,000 training sequences of 300 bp, s | ratio | peak of memory, MiB |\n",
             "|---|---|---|---|\n"]  # fmt: skip
    for name, one in cost.items():
        lines.append(
            f"| {name} | {1000 * one['cpu']:.1f} | {one['cpu'] / plain['cpu']:.2f} | {one['bytes'] / 2**20:.0f} |\n"
        )
    return "".join(lines)


def describe_counts(folder):
    """Say on how many tasks each reading is above the k-mers, and echo at least level with standard."""
    with open(folder / "results.tsv", newline="") as handle:
        rows = [row for row in csv.DictReader(handle, delimiter="\t") if row["test"] != "NA"]
    tests = {}
    for row in rows:
        tests.setdefault(row["task"], {})[row["method"]] = float(row["test"])
    ways = sorted({row["method"] for row in rows if row["model"] != "baseline"})
    lines = []
    for way in ways:
        beaten = {
            b: [t for t in tests.values() if way in t and b in t and t[way] > t[b]] for b in ("k-mers", "one-hot")
        }
        there = [t for t in tests.values() if way in t]
        plain = [t for t in there if ways[0] in t and t[way] >= t[ways[0]]]
        words = (
            f"- {way}: above the k-mers on {len(beaten['k-mers'])} of {len(there)} tasks, above the bases by place on "
        )
        words += f"{len(beaten['one-hot'])}"
        lines.append(words + (f"; at least level with {ways[0]} on {len(plain)}.\n" if way != ways[0] else ".\n"))
    return "".join(lines)


def write_page(scratch, model, cost, seconds, limited):
    """Write docs/gue.md from its head, which is kept, and what was measured."""
    page = ROOT / "docs" / "gue.md"
    head = page.read_text(encoding="utf-8").split("<!-- measured -->")[0]
    facts = [json.loads(path.read_text())["facts"] for path in sorted((scratch / "gue/units").glob("*.json"))]
    digest = next((one["model"] for one in facts if "model" in one), None)
    parts = [head, "<!-- measured -->\n\n## Measured\n\n"]
    small = f" This was a trial on {limited} training rows a task, too few for more than a look." if limited else ""
    parts.append(f"Model `{model}`, {seconds / 60:.0f} minutes of wall clock in all.{small}\n\n### GUE\n\n")
    parts += [(scratch / "gue/results.md").read_text(), "\n", describe_counts(scratch / "gue")]
    parts.append(
        "\nBeside the paper's figures, means over a group's tasks:\n\n" + (scratch / "gue/compare.md").read_text()
    )
    parts.append("\n### The cost of echo\n\n" + describe_cost(cost))
    parts.append("\n### Frozen\n\n")
    parts += [
        (scratch / "frozen" / name / "results.md").read_text() + "\n" for name in sorted(os.listdir(scratch / "frozen"))
    ]
    if digest:
        parts.append(f"Weights: SHA-256 {digest[:16]}.\n")
    page.write_text("".join(parts).rstrip() + "\n", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with classify/ and reglm/")
    parser.add_argument("--out", type=Path, default=Path("runs/gue"), help="where results go; run again to go on")
    parser.add_argument("--model", default="base")
    parser.add_argument("--limit", type=int, help="training rows of every task, for a trial")
    parser.add_argument("--rows", type=int, help="training rows of every task, where there is time or little of it")
    parser.add_argument("--epochs", type=int, help="epochs of every task")
    parser.add_argument("--rates", default=RATES, help="learning rates that are tried")
    parser.add_argument("--tasks", help="GUE tasks, instead of those of the protocol")
    parser.add_argument("--no-page", action="store_true", help="leave docs/gue.md as it is")
    given = parser.parse_args()
    begun, data, out = time.monotonic(), given.data.resolve(), given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    common = ("-m", given.model, "--threads", 1)
    for tasks, seeds, rows, epochs in RUNS:
        if given.tasks:
            tasks = ",".join(task for task in tasks.split(",") if task in given.tasks.split(","))
        if not tasks:
            continue
        sizes = ("--limit", given.limit or given.rows or rows, "--epochs", given.epochs or epochs, "--batch-size", 32)
        hybridna(
            "evaluate", "gue", data / "classify/GUE", "-o", out / "gue", "--tasks", tasks, *READINGS, *sizes, *TRIAL,
            "--lr", given.rates, "--seeds", seeds, "--compare", *common,
        )  # fmt: skip
    for name, (path, options) in prepare_tables(data, out / "tables").items():
        limit = ("--limit", given.limit) if given.limit else ()
        hybridna(
            "evaluate", "table", path, "-o", out / "frozen" / name, "--freeze", "--echo", "none,rc", "--head", "mlp",
            "--lr", "1e-3,3e-3", "--epochs", 20, *options, *limit, *common,
        )  # fmt: skip
    kept = out / "cost.json"
    if not kept.is_file():
        kept.write_text(json.dumps(measure_echo(data, out / "cost", given.model, min(200, given.limit or 200))))
    if not given.no_page:
        seconds = time.monotonic() - begun
        write_page(out, given.model, json.loads(kept.read_text()), seconds, given.limit)


if __name__ == "__main__":
    main()
