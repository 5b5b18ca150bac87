"""Embed very many regions with a small model, and hold memory to what the first few thousand took.

random genome, BED of COUNT regions -> embed, process memory noted as it goes -> table; fails when it grows
"""

import argparse
import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np
from toys import random_model

from hybridna_core.commands.embed import embed
from hybridna_core.memory import spell_bytes, used_bytes

# Growth that is allowed after the first tenth, what lays out the format included; a third of the vectors.
ALLOWED = 32 * 2**20


def make_inputs(folder, count, length):
    """Write a genome and a BED of so many regions of it; return both paths."""
    draw = np.random.default_rng(0)
    bases = draw.choice(np.frombuffer(b"ACGT", dtype=np.uint8), 2_000_000).tobytes()
    fasta, bed = folder / "genome.fa", folder / "regions.bed"
    fasta.write_bytes(b">chr1\n" + bases + b"\n")
    with open(bed, "w") as handle:
        for i, start in enumerate(draw.integers(0, len(bases) - length, count)):
            handle.write(f"chr1\t{start}\t{start + length}\tregion{i}\t{i}\t{'+-'[i % 2]}\n")
    return fasta, bed


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--length", type=int, default=40)
    parser.add_argument("--suffix", default=".h5ad")
    options = parser.parse_args()
    folder = Path(options.folder)
    folder.mkdir(parents=True, exist_ok=True)
    fasta, bed = make_inputs(folder, options.count, options.length)
    start, seen = time.monotonic(), []

    def progress(done, total):
        if done % (options.count // 20) == 0:
            seen.append(used_bytes("cpu"))
            print(f"{done:>9,} {spell_bytes(seen[-1]):>10} {time.monotonic() - start:8.0f} s", flush=True)

    output = folder / f"vectors{options.suffix}"
    shutil.rmtree(f"{output}.partial", ignore_errors=True)
    # Wide vectors, so that keeping them would show: 100,000 of 256 numbers are 98 MiB.
    model = random_model(hidden_size=256, intermediate_size=16, layer_types=("mamba",))
    summary = embed(bed, fasta, output, model=model, force=True, progress=progress)
    seen.append(used_bytes("cpu"))
    print(f"  written {spell_bytes(seen[-1]):>10} {time.monotonic() - start:8.0f} s, {output.stat().st_size:,} bytes")
    growth = max(seen) - seen[1]
    kept = spell_bytes(options.count * model.config.hidden_size * 4)
    print(f"{summary.embedded:,} regions; memory grew by {spell_bytes(max(growth, 0))} (the vectors are {kept})")
    os.unlink(output)
    return int(growth > ALLOWED)


if __name__ == "__main__":
    sys.exit(main())
