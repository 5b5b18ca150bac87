"""Pretraining runs of a second or two, and how to tell whether two of them came to the same.

genome.fa, run.toml -> pretrain -> folder -> weights, optimiser, position, log
"""

import json
from pathlib import Path

import numpy as np

TINY_RUN = """
output = "out"

[model]
preset = "tiny"
hidden_size = 16
intermediate_size = 16
layer_types = ["mamba", "attention"]
num_attention_heads = 2
mamba_n_heads = 1
mamba_d_head = 16
mamba_d_state = 4

[[species]]
name = "bug"
fasta = "bug.fa"
valid = ["c2:1-900"]

[[species]]
name = "bee"
fasta = "bee.fa"

[[stage]]
context_length = 64
steps = 14
batch_tokens = 256

[[stage]]
context_length = 128
steps = 6
batch_tokens = 256

[optim]
lr = 5e-3
warmup_steps = 4
microbatch_tokens = 128

[save]
every = 6
log_every = 4

[valid]
every = 8
windows = 2

[log]
plot = false
"""


def random_genome(seed, *lengths):
    random = np.random.default_rng(seed)
    return "".join(f">c{i} x\n{''.join(random.choice(list('ACGT'), n))}\n" for i, n in enumerate(lengths, start=1))


def lay_out(folder, text=TINY_RUN):
    """Write a run file and its genomes into a folder; return the run file's path."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bug.fa").write_text(random_genome(1, 3000, 2000))
    (folder / "bee.fa").write_text(random_genome(2, 1500))
    (folder / "run.toml").write_text(text)
    return folder / "run.toml"


SPEEDS = ("tokens_per_second", "loader_share")


def log_lines(folder):
    """Lines of a run's log, without the speeds, which no two runs share."""
    entries = [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in entry.items() if k not in SPEEDS} for entry in entries]


def outcome(folder):
    """Everything that must be equal, bit for bit, between a run that was stopped and one that was not."""
    folder = Path(folder)
    newest = sorted((folder / "snapshots").glob("step-*"))[-1]
    position = json.loads((newest / "position.json").read_text())
    # The digest of this part knows where the genomes lie.
    del position["run"]["species"]
    files = [newest / "model.safetensors", newest / "optimizer.safetensors", folder / "model" / "model.safetensors",
             folder / "model" / "training.json", folder / "model" / "ledger.tsv", folder / "ledger.tsv"]  # fmt: skip
    return {
        "position": position, "log": log_lines(folder), **{"/".join(f.parts[-2:]): f.read_bytes() for f in files}
    }  # fmt: skip


def weights(folder):
    """Weights and optimiser of a run's last snapshot, as bytes."""
    newest = sorted((Path(folder) / "snapshots").glob("step-*"))[-1]
    return newest.name, *((newest / f"{name}.safetensors").read_bytes() for name in ("model", "optimizer"))
