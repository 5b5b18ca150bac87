"""Time `score-variants` with the bundled model: seconds a variant, window 1,024, both strands.

demo chromosome -> single-base changes, one per place -> score_variants, a few times -> median per variant
"""

import argparse
import datetime
import json
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from hybridna_core.checkpoint import load_model
from hybridna_core.commands.score_variants import score_variants
from hybridna_core.data.genome import open_genome

ROOT = Path(__file__).resolve().parent.parent


def write_sites(genome, path, count, window):
    """Write a VCF of single-base changes at different places, none near an end of the first contig."""
    contig, length = next(iter(genome.contigs.items()))
    drawn = random.Random(0)
    places = sorted(drawn.sample(range(window, length - window, window), count))
    lines = ["##fileformat=VCFv4.2", "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO"]
    for place in places:
        ref = genome.fetch(contig, place, place + 1)
        alt = drawn.choice([base for base in "ACGT" if base != ref])
        lines.append(f"{contig}\t{place + 1}\t.\t{ref}\t{alt}\t.\t.\t.")
    path.write_text("\n".join(lines) + "\n")


def time_variants(model, window=1024, sites=20, repeats=5):
    """Return seconds per variant of each repeat, the model being loaded and warm."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        # A copy, so that no index is left in the demo's folder.
        fasta = shutil.copy(ROOT / "demo" / "yeast_chrI.fa.gz", folder)
        vcf = Path(folder) / "sites.vcf"
        with open_genome(fasta) as genome:
            write_sites(genome, vcf, sites, window)
        for number in range(repeats + 1):
            begun = time.perf_counter()
            summary = score_variants(vcf, fasta, Path(folder) / f"{number}.vcf", model=model, window=window)
            # The first pass compiles kernels and fills caches.
            if number:
                found.append((time.perf_counter() - begun) / summary.scored)
    return found


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="base", help="bundled model or folder")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--window", type=int, default=1024, help="bases of prefix and horizon")
    parser.add_argument("--sites", type=int, default=20, help="variants per repeat")
    parser.add_argument("--repeats", type=int, default=5, help="timed repeats")
    parser.add_argument("--limit", type=float, help="exit with 1 if the median is above this many seconds")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    model = load_model(options.model, device="cpu")
    seconds = time_variants(model, options.window, options.sites, options.repeats)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT)
    table = {
        "model": model.name, "model_sha256": model.digest, "seconds_per_variant": statistics.median(seconds),
        "fastest": min(seconds), "slowest": max(seconds), "window": options.window, "threads": options.threads,
        "sites": options.sites, "repeats": options.repeats, "cpu": name_cpu(), "torch": torch.__version__,
        "date": datetime.date.today().isoformat(), "commit": commit.stdout.strip() or "unknown",
    }  # fmt: skip
    print("\t".join(table))
    print("\t".join(f"{value:.4f}" if isinstance(value, float) else str(value) for value in table.values()))
    if options.json:
        options.json.write_text(json.dumps(table, indent=2) + "\n")
    if options.limit is not None and table["seconds_per_variant"] > options.limit:
        sys.exit(f"{table['seconds_per_variant']:.3f} s a variant, at most {options.limit:g} are wanted")


def name_cpu():
    """Return what the system calls its processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    main()
