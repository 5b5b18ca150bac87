"""`hybridna pretrain` on a disk that is too small or fills up: a real one, in memory, mounted for the test alone.

unshare -> mount a small tmpfs -> run -> fill it -> what is said, what is left
"""

import json
import subprocess
import sys

import pytest
from runs import lay_out

# Runs as a process of its own, in which the mount is seen. Arguments: folder, size of the disk, lines of the log after
# which the disk is filled (0: never), settings.
DRIVER = """
import json, os, shutil, subprocess, sys, time
folder, size, lines, *settings = sys.argv[1:]
subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", f"{folder}/disk"], check=True)
words = [word for text in settings for word in ("--set", text)]
command = [sys.executable, "-m", "hybridna_cli", "pretrain", f"{folder}/run.toml", "-o", f"{folder}/disk/out", *words]
log = f"{folder}/disk/out/log.jsonl"

def count():
    return open(log, "rb").read().count(b"\\n") if os.path.exists(log) else 0

def left():
    folders = f"{folder}/disk/out/snapshots"
    return sorted(os.listdir(folders)) if os.path.exists(folders) else []

process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
while process.poll() is None and (not int(lines) or count() < int(lines)):
    time.sleep(0.001)
if int(lines):
    with open(f"{folder}/disk/filler", "wb", buffering=0) as handle:
        try:
            while True:
                handle.write(bytes(4096))
        except OSError:
            pass
_, said = process.communicate()
found = {"code": process.returncode, "said": said, "left": left()}
if int(lines):
    os.unlink(f"{folder}/disk/filler")
    again = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    found |= {"again": again.returncode, "said_again": again.stderr}
    if again.returncode == 0:
        shutil.copytree(f"{folder}/disk/out", f"{folder}/out")
print(json.dumps(found))
"""


@pytest.fixture
def on_a_disk(tmp_path, monkeypatch):
    """Run on a disk of some bytes; return what was said and left."""
    tried = subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True)
    if tried.returncode != 0:
        pytest.skip("this system lets no user mount anything")
    monkeypatch.setenv("HYBRIDNA_KERNELS", "reference")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def on_a_disk(size, lines, *settings):
        lay_out(tmp_path)
        (tmp_path / "disk").mkdir()
        command = ["unshare", "-rm", sys.executable, "-c", DRIVER, str(tmp_path), str(size), str(lines), *settings]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=300)
        return json.loads(done.stdout)

    return on_a_disk


def test_e9_too_small_a_disk_is_told_before_the_run(on_a_disk):
    found = on_a_disk(2**20, 0)
    assert found["code"] == 5 and found["left"] == []
    last = found["said"].splitlines()[-1]
    assert "the disk is too full: the run's snapshots and model need " in last and " bytes, 1,0" in last
    assert last.endswith("are free; free some space, then rerun")


def test_e9_a_disk_that_fills_while_training(on_a_disk, tmp_path):
    settings = ["stage.0.steps=54", "save.every=6", "save.log_every=1", "valid.every=300", "mixture.max_passes=100"]
    found = on_a_disk(8 * 2**20, 7, *settings)
    assert found["code"] == 5, found["said"]
    last = found["said"].splitlines()[-1]
    assert "the disk is too full: the weights and optimiser of step " in last and "are free; free some space" in last
    # What was there before is there still, and nothing half written.
    assert found["left"] and all(name.startswith("step-") for name in found["left"])
    assert found["again"] == 0 and f"going on from step {int(found['left'][-1][5:])} of 60" in found["said_again"]
    entries = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert [e["step"] for e in entries if "bits_per_base" in e] == list(range(1, 61))
