"""Train `tiny` through the context lengths of the published models, up to 131,072 tokens, and tell the peak of memory.

yeast chromosome I -> 8,192 -> 32,768 -> 131,072 tokens, a few steps each -> peak resident memory of the process

    make long-context      takes a while on one core; ends with an error above 12 GiB
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIMIT_GIB = 12
GENOME = Path(__file__).resolve().parent.parent / "demo" / "yeast_chrI.fa.gz"
RUN = f"""
output = "out"

[model]
preset = "tiny"

[[species]]
name = "yeast"
fasta = "{GENOME}"

[mixture]
max_passes = 100

[[stage]]
context_length = 8192
steps = 3
batch_tokens = 32768

[[stage]]
context_length = 32768
steps = 2
batch_tokens = 32768

[[stage]]
context_length = 131072
steps = 2
batch_tokens = 131072

[optim]
warmup_steps = 2
microbatch_tokens = 8192
checkpoint_activations = true

[save]
log_every = 1
"""


def main():
    """Run it in a folder of its own; return the exit code."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "run.toml").write_text(RUN)
        command = [sys.executable, "-m", "hybridna_cli", "pretrain", "run.toml", "--device", "cpu", *sys.argv[1:]]
        began = time.monotonic()
        code = subprocess.run(command, cwd=folder).returncode
        print((Path(folder) / "out" / "log.jsonl").read_text(), end="")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"exit code {code}, {time.monotonic() - began:.0f} s, peak {peak:.2f} GiB, limit {LIMIT_GIB} GiB")
    return code or int(peak > LIMIT_GIB)


if __name__ == "__main__":
    sys.exit(main())
