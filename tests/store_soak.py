"""Memory and reading time over a large genome: `make store-soak BASES=10000000000`.

synthetic FASTA -> packed in one process -> windows drawn all over it in another -> a short training in a third

Prints a line per measurement and fails when memory grows: python tests/store_soak.py FOLDER BASES. FOLDER keeps FASTA
and store, of 1.5 bytes a base; delete it afterwards.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

CONTIGS = 20
LINE = 100
# What memory may grow by from the first quarter of the windows to the last.
GROWTH_LIMIT = 16 * 2**20

RUN = """
output = "out"

[model]
preset = "tiny"
hidden_size = 32
intermediate_size = 64
layer_types = ["mamba", "attention"]
num_attention_heads = 2
mamba_n_heads = 1

[[species]]
name = "big"
fasta = "big.fa"

[[stage]]
context_length = 8192
steps = {steps}
batch_tokens = 8192

[optim]
warmup_steps = 2

[save]
every = 1000
log_every = {log_every}

[log]
plot = false
"""

PACK = """
import resource, sys, time
from hybridna_core.data.store import open_store
began = time.monotonic()
store = open_store(sys.argv[1])
print(int(store.lengths.sum()), time.monotonic() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""

WINDOWS = """
import sys, time
from hybridna_core.data.corpus import Corpus, load_species
from hybridna_core.run_config import SpeciesConfig
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
one = load_species(SpeciesConfig("big", sys.argv[1]))
corpus = Corpus([one], bases=8191, tokens=1, max_passes=1e12)
count = int(sys.argv[2])
for quarter in range(4):
    began, most = time.monotonic(), 0
    for i in range(quarter * count // 4, (quarter + 1) * count // 4):
        corpus.window(i)
        if i % 64 == 0:
            most = max(most, resident())
    print(most, (time.monotonic() - began) / (count // 4))
"""


def write_genome(path, bases):
    """Write a FASTA of random contigs, lower case and runs of N among them; a tenth of a gigabase is drawn anew."""
    random = np.random.default_rng(1)
    with open(path, "wb") as handle:
        for contig in range(CONTIGS):
            handle.write(f">chr{contig + 1}\n".encode())
            left = bases // CONTIGS
            while left:
                rows = min(left, 50_000_000) // LINE
                text = np.frombuffer(b"ACGT" * 8 + b"acgt" * 8, dtype=np.uint8)[
                    random.integers(0, 64, (rows, LINE + 1))
                ]
                text[:, LINE] = 10
                text[: max(1, rows // 1000), :LINE] = ord("N")
                for _ in range(2):
                    take = min(rows, left // LINE)
                    handle.write(text[:take].tobytes())
                    left -= take * LINE
                    text = text[::-1]
                if left < LINE:
                    left = 0


def run(script, *words):
    done = subprocess.run([sys.executable, "-c", script, *map(str, words)], capture_output=True, text=True, check=True)
    return [[float(word) for word in line.split()] for line in done.stdout.splitlines()]


def main(folder, bases, windows=40_000, steps=40):
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    genome = folder / "big.fa"
    if not genome.exists():
        write_genome(genome, bases)
    ((found, seconds, peak),) = run(PACK, genome)
    print(f"packed {found:,.0f} bases in {seconds:,.1f} s, peak of memory {peak / 2**20:,.0f} MiB", flush=True)
    quarters = run(WINDOWS, genome, windows)
    for number, (most, each) in enumerate(quarters, start=1):
        words = f"windows of 8,191 bases, quarter {number} of {windows:,}: resident at most {most / 2**20:,.0f} MiB"
        print(f"{words}, {1e6 * each:,.0f} us a window", flush=True)
    growth = quarters[3][0] - quarters[0][0]
    (folder / "run.toml").write_text(RUN.format(steps=steps, log_every=steps // 4))
    command = [sys.executable, "-m", "hybridna_cli", "pretrain", str(folder / "run.toml"), "--device", "cpu", "-q"]
    began = time.monotonic()
    process = subprocess.Popen(command)
    resident = []
    while process.poll() is None:
        time.sleep(0.2)
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            break
        found = [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:")]
        resident += [(time.monotonic() - began, value * 1024) for value in found]
    if process.wait():
        raise SystemExit(f"training ended with {process.returncode}")
    quarter = len(resident) // 4
    first, last = (max(r for _, r in part) for part in (resident[quarter : 2 * quarter], resident[-quarter:]))
    entries = [json.loads(line) for line in (folder / "out" / "log.jsonl").read_text().splitlines()]
    shares = ", ".join(f"{100 * e['loader_share']:.2f} %" for e in entries if "loader_share" in e)
    print(f"training: resident {first / 2**20:,.0f} MiB in the second quarter, {last / 2**20:,.0f} MiB in the last")
    print(f"training: reading windows took {shares} of the time of steps")
    if growth > GROWTH_LIMIT:
        raise SystemExit(f"memory grew by {growth / 2**20:,.0f} MiB from the first quarter of the windows to the last")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
