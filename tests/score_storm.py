"""score-variants killed at random moments, until it comes to its end: what it left is compared with a run left alone.

toy model, VCF -> process forked from a server that has loaded everything -> SIGKILL, SIGTERM, SIGINT -> same command

    python tests/score_storm.py 50
"""

import hashlib
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from multiprocessing import forkserver
from pathlib import Path
from typing import NamedTuple

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HYBRIDNA_KERNELS": "reference", "PYTHONPATH": os.path.dirname(__file__)}
KINDS = {"v": "out.vcf", "z": "out.vcf.gz", "b": "out.bcf", "u": "raw.bcf", "t": "out.tsv.gz"}
SEQUENCE = "".join(random.Random(8).choices("ACGT", k=3000))
HEADER = "##fileformat=VCFv4.2\n##contig=<ID=chr1,length=3000>\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"


class Kill(NamedTuple):
    """One run that was hit: the kind of its output, the signal, its exit code, whether there was something to go on."""

    kind: str
    signal: str
    code: int
    is_kept: bool


def lay_out(folder, records):
    """Write a model, a genome and a VCF."""
    from toys import random_model

    from hybridna_core.checkpoint import save_model

    save_model(folder / "toy", random_model())
    (folder / "ref.fa").write_text(f">chr1\n{SEQUENCE}\n")
    lines = []
    for pos in range(200, 200 + 2 * records, 2):
        ref = SEQUENCE[pos - 1]
        lines.append(f"chr1\t{pos}\t.\t{ref}\t{'ACGT'['ACGT'.index(ref) - 1]}\t.\t.\t.\n")
    (folder / "in.vcf").write_text(HEADER + "".join(lines))


def score_once(folder, words):
    """Run the command in this process, which ends with its exit code; it saves after every record or two."""
    from hybridna_cli.app import main
    from hybridna_core.data import partial

    os.chdir(folder)
    partial.SECONDS, partial.PATIENCE = 0.01, 1
    said = os.open("said.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(said, 2)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    try:
        main(["score-variants", "in.vcf", "-f", "ref.fa", "-m", "toy", "--device", "cpu", "--window", "64", *words])
    except SystemExit as leaving:
        os._exit(leaving.code)


class Storm:
    """Starts runs as processes that are there in no time, and knows what each kind of output is to hold."""

    def __init__(self, folder, records=60, kinds=tuple(KINDS)):
        self.folder, self.kinds, self.whole, self.seconds = Path(folder), kinds, {}, {}
        lay_out(self.folder, records)
        self.server = multiprocessing.get_context("forkserver")
        self.server.set_forkserver_preload(["hybridna_core.commands.score_variants", "hybridna_cli.app", "toys"])
        before = dict(os.environ)
        try:
            os.environ |= ENVIRONMENT
            forkserver.ensure_running()
        finally:
            os.environ.clear()
            os.environ |= before
        for kind in kinds:
            for _ in range(2):
                began = time.monotonic()
                process = self.start(kind)
                process.join()
                if process.exitcode != 0:
                    raise RuntimeError((self.folder / "said.txt").read_text())
                self.seconds[kind] = time.monotonic() - began
            self.whole[kind] = self.take(kind)

    def start(self, kind):
        words = ["-O", kind, "-o", KINDS[kind], "--force", *(["-W"] if kind in "zbt" else [])]
        process = self.server.Process(target=score_once, args=(str(self.folder), words))
        process.start()
        return process

    def take(self, kind):
        """Return the digests of an output and its index, and delete them."""
        found = {}
        for path in sorted(self.folder.glob(f"{KINDS[kind]}*")):
            found[path.name] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
            if path.is_file():
                path.unlink()
        return found

    def kill(self, kind, number, dice):
        """Hit one run at a random moment; return the Kill, None when it had ended."""
        process = self.start(kind)
        time.sleep(dice.random() * self.seconds[kind])
        if process.is_alive():
            os.kill(process.pid, number)
        process.join()
        if process.exitcode == 0:
            return None
        kept = (self.folder / f"{KINDS[kind]}.partial" / "journal").exists()
        return Kill(kind, signal.Signals(number).name, process.exitcode, kept)

    def go_on(self, kind):
        """Run to the end; return whether what is there equals what a run left alone writes."""
        process = self.start(kind)
        process.join()
        return process.exitcode == 0 and self.take(kind) == self.whole[kind]


def kill_storm(folder, count, *, seed=0, records=60, kinds=tuple(KINDS)):
    """Kill `count` runs, some of them several times; yield each Kill, and whether the output was equal in the end."""
    storm, dice, kills = Storm(folder, records, kinds), random.Random(seed), 0
    numbers = [signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT]
    while kills < count:
        kind, hits = kinds[kills % len(kinds)], []
        for _ in range(min(dice.randrange(1, 4), count - kills)):
            hit = storm.kill(kind, numbers[dice.randrange(4)], dice)
            if hit is None:
                break
            hits.append(hit)
        equal = storm.go_on(kind)
        kills += len(hits)
        yield from ((hit, equal) for hit in hits)


def report(count):
    """Print a table of kills and what came of them; return whether nothing was lost."""
    with tempfile.TemporaryDirectory() as folder:
        rows = list(kill_storm(folder, count))
    print("kind\tsignal\tkills\thad_saved\tequal")
    for (kind, name), kills in sorted(Counter((k.kind, k.signal) for k, _ in rows).items()):
        mine = [(k, equal) for k, equal in rows if (k.kind, k.signal) == (kind, name)]
        print(kind, name, kills, sum(k.is_kept for k, _ in mine), sum(e for _, e in mine), sep="\t")
    print("all", "", len(rows), sum(k.is_kept for k, _ in rows), sum(e for _, e in rows), sep="\t")
    return all(equal for _, equal in rows)


if __name__ == "__main__":
    sys.exit(0 if report(int(sys.argv[1])) else 1)
