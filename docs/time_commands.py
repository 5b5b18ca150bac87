"""Time the commands with their kernels and without: what users gain, and that results stay the same.

demo files -> each command with HYBRIDNA_KERNELS=reference (plain torch) and as it is, in turn, each in a process of
its own -> results compared -> seconds, and their ratio
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pysam
from time_variants import name_cpu

ROOT = Path(__file__).resolve().parent.parent
WAYS = {"plain torch": "reference", "kernels": ""}


# Each returns what must be the same in both ways, and numbers that may differ a little.


def read_scores(path):
    """Scores of all alleles; NaN where there is none."""
    with pysam.VariantFile(str(path)) as file:
        scores = [score for record in file for score in record.info["HD_LLR"]]
    numbers = np.array([np.nan if score is None else score for score in scores], dtype=np.float64)
    return np.isfinite(numbers).tolist(), numbers


def read_vectors(path):
    with np.load(path) as found:
        return None, found["embedding"]


def read_sequences(path):
    """Sequences, and the log-probability of each."""
    headers, sequences = zip(*(block.split("\n", 1) for block in path.read_text().split(">")[1:]), strict=True)
    return sequences, np.array([float(header.split("log_prob=")[1].split()[0]) for header in headers])


def read_losses(path):
    rows = [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]
    return None, np.array([row["bits_per_base"] for row in rows if "bits_per_base" in row])


# command, its arguments, what reads its result, largest difference of a number
CASES = (
    (
        "score-variants",
        ["demo/promoter_variants.vcf", "-f", "yeast_chrI.fa.gz", "--window", "1024", "-o", "OUT.vcf"],
        read_scores,
        1e-3,
    ),
    ("embed", ["demo/promoters.bed", "-f", "yeast_chrI.fa.gz", "-o", "OUT.npz"], read_vectors, 1e-4),
    ("generate", ["--label", "44", "-n", "64", "--seed", "1", "-o", "OUT.fa"], read_sequences, 1e-3),
    ("pretrain", ["demo/pretrain.toml", "-o", "OUT"], read_losses, 1e-4),
)


def run(command, arguments, kernels, folder, threads):
    """Run a command once; return seconds and the path of its result."""
    out = Path(folder) / f"out-{len(list(Path(folder).iterdir()))}"
    placed = [
        str(a).replace("OUT", str(out)).replace("yeast_chrI.fa.gz", f"{folder}/yeast_chrI.fa.gz") for a in arguments
    ]
    made = next(Path(a) for a in placed if a.startswith(str(out)))
    environment = {**os.environ, "HYBRIDNA_KERNELS": kernels}
    threaded = [] if command == "pretrain" else ["--threads", str(threads)]
    begun = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "hybridna_cli", command, *placed, "-q", *threaded], check=True, cwd=ROOT,
        env={**environment, "OMP_NUM_THREADS": str(threads)},
    )  # fmt: skip
    return time.perf_counter() - begun, made


def compare(command, arguments, read, limit, folder, threads, repeats):
    """Return a row of the table; exit where the results of the two ways differ."""
    seconds, results = {way: [] for way in WAYS}, {}
    for _ in range(repeats):
        for way, kernels in WAYS.items():
            taken, made = run(command, arguments, kernels, folder, threads)
            seconds[way].append(taken)
            results[way] = read(made)
    (due, slow), (found, fast) = results.values()
    if due != found:
        sys.exit(f"{command}: results differ")
    largest = float(np.nanmax(abs(slow - fast)))
    if not largest < limit:
        sys.exit(f"{command}: results differ by {largest:.1e}")
    slow, fast = (statistics.median(seconds[way]) for way in WAYS)
    return f"| `{command}` | {slow:.1f} s | {fast:.1f} s | {slow / fast:.2f} | {largest:.1e} |"


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each, in turn")
    parser.add_argument("--only", action="append", help="of the commands; repeatable")
    options = parser.parse_args(argv)
    print(f"{name_cpu()}, {options.threads} threads, medians of {options.repeats}\n")
    print("| command | plain torch | kernels | ratio | largest difference |\n|---|---|---|---|---|")
    for case in CASES:
        if options.only and case[0] not in options.only:
            continue
        with tempfile.TemporaryDirectory() as folder:
            # A copy, so that no index is left in the demo's folder.
            shutil.copy(ROOT / "demo" / "yeast_chrI.fa.gz", folder)
            print(compare(*case, folder, options.threads, options.repeats), flush=True)


if __name__ == "__main__":
    main()
