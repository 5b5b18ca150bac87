"""Memory of score-variants over many records: `python tests/vcf_soak.py 10000 1000000`, with no network behind.

made records on standard input -> score_variants in a process of its own -> /dev/null -> peak of resident memory

Prints the peak for each number of records, and fails where the largest is over 5 % above the smallest.
"""

import itertools
import math
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parent
LENGTH = 200_000


def measure(count, kind="z"):
    """Score so many records in a process of its own; return its peak of resident memory, bytes."""
    with tempfile.TemporaryDirectory() as folder:
        text = "".join(random.Random(1).choices("ACGT", k=LENGTH))
        Path(folder, "ref.fa").write_text(f">1\n{text}\n")
        command = [sys.executable, str(Path(__file__).resolve()), "--child", folder, kind]
        places = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]), "OMP_NUM_THREADS": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "env": places}
        with subprocess.Popen(command, **pipes) as child:
            head = "##fileformat=VCFv4.2\n##contig=<ID=1>\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
            child.stdin.write(head.encode())
            for number in range(count):
                # Sorted, several at a place where there are more records than bases.
                start = number * LENGTH // count
                ref = text[start]
                alts = "ACGT".replace(ref, "")[number % 3], f"{ref}T", "*"
                child.stdin.write(f"1\t{start + 1}\tv{number}\t{ref}\t{','.join(alts)}\t.\t.\tDP=7\n".encode())
            child.stdin.close()
            scored, peak = child.stdout.read().split()
        if child.returncode or int(scored) != 2 * count:
            raise SystemExit(f"{count:,} records: exit {child.returncode}, {scored} scored")
    return int(peak) * 1024


def run_child(folder, kind):
    """Score standard input with no network behind; print how many alleles were scored, and the peak in KiB."""
    from toys import random_model

    from hybridna_core import scoring
    from hybridna_core.commands.score_variants import score_variants

    os.chdir(folder)
    scoring.read = lambda model, tokens, _, **options: (tokens.double().fill_(math.log(0.25)), None)
    options = {"model": random_model(), "window": 16, "horizon": 8, "output_type": kind}
    # A suffix that Parquet and tables need, and one for the alleles without a score.
    summary = score_variants("-", "ref.fa", "out", skipped="skipped.tsv.gz", **options)
    print(summary.scored, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def main(counts):
    peaks = []
    for count in counts:
        start = time.monotonic()
        peaks.append(measure(count))
        print(f"{count:>10,} records  {peaks[-1] / 2**20:8.1f} MiB  {time.monotonic() - start:7.0f} s", flush=True)
    if any(b > 1.05 * a for a, b in itertools.combinations(peaks, 2)):
        raise SystemExit("memory grows with the number of records")


if __name__ == "__main__":
    if sys.argv[1] == "--child":
        run_child(*sys.argv[2:])
    else:
        main([int(word) for word in sys.argv[1:]])
