"""Harm done to pretraining runs on purpose: kills, stops and flipped bits, each with what came of it.

tiny run as a process of its own -> SIGKILL or SIGTERM at a random moment -> same command again -> compared with the
run that nothing interrupted

    python tests/storm.py kill 200
    python tests/storm.py stop 20
    python tests/storm.py flip 1000
"""

import logging
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from multiprocessing import forkserver
from pathlib import Path
from typing import NamedTuple

from runs import lay_out, outcome

# Steps of some milliseconds each; saving is half of the work.
SETTINGS = ("stage.0.steps=12", "save.every=2", "save.log_every=1", "valid.every=8", "mixture.max_passes=100")
SAVES = 9
# One thread, and kernels that nothing need be compiled for, so that runs are equal and forking is safe.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HYBRIDNA_KERNELS": "reference", "PYTHONPATH": os.path.dirname(__file__)}
STOP_LIMIT = 25.0


class Harm(NamedTuple):
    """What became of one run that was killed or stopped.

    moment   where it was hit: `loading`, `training`, `saving` (a snapshot half written), `deleting` (an old one half
             deleted), `finishing` (the model half written) or `over` (it had ended)
    step     of the snapshot that it could go on from, 0 without one
    code     exit code of the process that was hit, seconds it took to end
    resumed  exit code of the same command, run again
    equal    whether all that was left is equal, bit for bit, to what the uninterrupted run left
    """

    moment: str
    step: int
    code: int
    seconds: float
    resumed: int
    equal: bool


class Flips(NamedTuple):
    """Bits flipped in one file of the newest snapshot, how many were refused, and how often the older one was taken."""

    file: str
    flips: int
    refused: int
    fell_back: int


def train_once(folder, settings):
    """Run the command in this process, which ends with its exit code; what it says goes to a file."""
    from hybridna_cli.app import run

    os.chdir(folder)
    said = os.open("said.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(said, 2)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    words = [word for text in settings for word in ("--set", text)]
    code = run(["pretrain", "run.toml", "--device", "cpu", *words])
    sys.stderr.flush()
    os._exit(code)


class Storm:
    """Starts tiny runs as processes that are there in no time: a server has loaded everything and forks."""

    def __init__(self, folder, settings=SETTINGS):
        self.folder, self.settings = Path(folder), settings
        self._server = multiprocessing.get_context("forkserver")
        self._server.set_forkserver_preload(["storm_warm"])
        before = dict(os.environ)
        try:
            os.environ |= ENVIRONMENT
            forkserver.ensure_running()
        finally:
            os.environ.clear()
            os.environ |= before
        self.run(self.folder / "first")
        began = time.monotonic()
        # The second one tells how long a run takes when nothing is loaded any more.
        self.whole = self.run(self.folder / "whole")
        self.seconds = time.monotonic() - began

    def run(self, folder):
        """Train to the end without harm; return what it left."""
        lay_out(folder)
        code = self.again(folder)
        if code != 0:
            raise RuntimeError(f"the run ended with {code}: {(folder / 'said.txt').read_text()}")
        return outcome(folder / "out")

    def start(self, folder):
        process = self._server.Process(target=train_once, args=(str(folder), self.settings))
        process.start()
        return process

    def again(self, folder):
        """Run the command to its end; return its exit code."""
        process = self.start(folder)
        process.join()
        return process.exitcode

    def kill(self, name, dice, *, at_a_save):
        """Kill a run, at any moment or while a snapshot is being written; return the Harm."""
        folder = self.folder / name
        lay_out(folder)
        process = self.start(folder)
        if at_a_save:
            _wait_for_a_save(folder / "out" / "snapshots", process, dice)
        else:
            time.sleep(dice.random() * self.seconds)
        return self._hit(folder, process, signal.SIGKILL)

    def stop(self, name, dice, number=signal.SIGTERM):
        """Send a run a signal while it trains; return the Harm."""
        folder = self.folder / name
        lay_out(folder)
        process = self.start(folder)
        lines = dice.randrange(1, 14)
        while process.is_alive() and _count_lines(folder / "out" / "log.jsonl") < lines:
            time.sleep(0.0005)
        time.sleep(dice.random() * 0.02)
        return self._hit(folder, process, number)

    def _hit(self, folder, process, number):
        alive = process.is_alive()
        began = time.monotonic()
        if alive:
            os.kill(process.pid, number)
        process.join()
        seconds = time.monotonic() - began
        # A run that has ended meanwhile was not hit.
        over = process.exitcode == 0
        moment, step = "over" if over else find_moment(folder / "out"), newest_step(folder / "out")
        code = self.again(folder)
        equal = code == 0 and outcome(folder / "out") == self.whole
        if equal:
            # What was lost otherwise stays to be looked at.
            shutil.rmtree(folder)
        return Harm(moment, step, process.exitcode, seconds, code, equal)


def _count_lines(path):
    try:
        return path.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def _wait_for_a_save(folder, process, dice):
    """Wait until a run has begun to write a snapshot, any of them, and then a little."""
    saves, seen = dice.randrange(1, SAVES + 1), set()
    while process.is_alive():
        try:
            seen |= {name for name in os.listdir(folder) if name.endswith(".partial")}
        except FileNotFoundError:
            continue
        if len(seen) >= saves:
            time.sleep(dice.random() * 0.01)
            return


def find_moment(out):
    """Tell from what a dead process left where it was hit."""
    left = [p.name for p in (out / "snapshots").glob(".hybridna-*")]
    if any(name.endswith(".partial") for name in left):
        return "saving"
    if left:
        return "deleting"
    if list(out.glob(".hybridna-*")):
        return "finishing"
    return "training" if (out / "log.jsonl").exists() else "loading"


def newest_step(out):
    """Return the step of the newest finished snapshot, 0 without one."""
    return max((int(p.name[5:]) for p in (out / "snapshots").glob("step-*")), default=0)


def kill_storm(folder, count, *, inside, seed=0, settings=SETTINGS):
    """Kill `count` runs, at least `inside` of them while a snapshot is being written; yield each Harm."""
    storm, dice, kills, hits = Storm(folder, settings), random.Random(seed), 0, 0
    while kills < count or hits < inside:
        # Half of them are aimed at a save until there are enough: some come too late.
        harm = storm.kill(f"kill-{kills}", dice, at_a_save=hits < inside and kills % 2 == 0)
        if harm.moment != "over":
            kills, hits = kills + 1, hits + (harm.moment == "saving")
            yield harm


def stop_storm(folder, count, *, seed=0, settings=SETTINGS):
    """Send SIGTERM to `count` runs; yield each Harm."""
    storm, dice = Storm(folder, settings), random.Random(seed)
    stops = 0
    while stops < count:
        harm = storm.stop(f"stop-{stops}", dice)
        if harm.moment != "over":
            stops += 1
            yield harm


def flip_bits(folder, count, *, seed=0):
    """Flip single bits of the newest of two snapshots, in each of its files in turn; return the Flips of each file."""
    from toys import SMALL

    from hybridna_core.errors import ModelError
    from hybridna_core.model.hybrid import HybridLM
    from hybridna_core.run_config import OptimConfig
    from hybridna_core.train.loop import train_step, with_start
    from hybridna_core.train.optim import make_optimizer
    from hybridna_core.train.snapshots import check_snapshot, find_snapshot, save_snapshot

    model = HybridLM(SMALL, seed=1)
    optimizer = make_optimizer(model, OptimConfig())
    paths = []
    for step in (10, 20):
        tokens = with_start([[7, 8, 9, 10, 7, 7, 9], [8, 8, 10, 7, 10, 9, 9]], 2)
        train_step(model, optimizer, tokens, lr=1e-3, clip=1.0, microbatch_tokens=100)
        position = {"step": step, "seen": {"bug": 7 * step}, "since": {"bits": 0.1 * step, "bases": 7}}
        paths.append(save_snapshot(folder, model, optimizer, position, keep=2))
    older, newest = paths
    files = sorted(p for p in newest.rglob("*") if p.is_file())
    dice, table = random.Random(seed), {p.name: [0, 0, 0] for p in files}
    for number in range(count):
        path = files[number % len(files)]
        raw = path.read_bytes()
        place = dice.randrange(len(raw))
        harmed = bytearray(raw)
        harmed[place] ^= 1 << dice.randrange(8)
        path.write_bytes(harmed)
        row = table[path.name]
        row[0] += 1
        try:
            check_snapshot(newest)
        except ModelError:
            row[1] += 1
        row[2] += find_snapshot(folder)[0] == older
        path.write_bytes(raw)
    check_snapshot(newest)
    return [Flips(name, *row) for name, row in table.items()]


def report(kind, count):
    """Do one kind of harm and print a table of what came of it; return whether nothing was lost."""
    with tempfile.TemporaryDirectory() as folder:
        if kind == "flip":
            logging.disable()
            rows = flip_bits(Path(folder), count)
            print("file\tflips\trefused\tfell_back")
            for row in rows:
                print(*row, sep="\t")
            return all(row.refused == row.fell_back == row.flips for row in rows)
        if kind == "stop":
            harms = list(stop_storm(folder, count))
            good = [h for h in harms if h.code == 143 and h.seconds < STOP_LIMIT and h.step > 0]
            print("stopped\tsaved_and_143\tslowest_seconds\tequal")
            slowest = max(h.seconds for h in harms)
            print(len(harms), len(good), f"{slowest:.2f}", sum(h.equal for h in harms), sep="\t")
            return len(good) == len(harms) and all(h.equal for h in harms)
        harms = list(kill_storm(folder, count, inside=count // 4))
    moments = Counter(h.moment for h in harms)
    print("killed_while\truns\tresumed\tequal")
    for moment, runs in moments.most_common():
        mine = [h for h in harms if h.moment == moment]
        print(moment, runs, sum(h.resumed == 0 for h in mine), sum(h.equal for h in mine), sep="\t")
    print("all", len(harms), sum(h.resumed == 0 for h in harms), sum(h.equal for h in harms), sep="\t")
    return all(h.equal for h in harms) and moments["saving"] >= count // 4


if __name__ == "__main__":
    sys.exit(0 if report(sys.argv[1], int(sys.argv[2])) else 1)
