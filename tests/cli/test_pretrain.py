"""`hybridna pretrain` from the command line: exit codes, messages, kills and signals."""

import json
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest
from runs import TINY_RUN, lay_out, outcome, weights

from hybridna_cli import console
from hybridna_cli.app import run

# Steps of some milliseconds each, so that a process lives long enough to be hit; saving is half of the work.
LONG = ["stage.0.steps=40", "save.every=4", "save.log_every=1", "valid.every=16", "mixture.max_passes=100"]


def options(settings):
    return [word for text in settings for word in ("--set", text)]


@pytest.fixture(scope="module", autouse=True)
def like_a_process_of_its_own():
    """One thread, and kernels that nothing need be compiled for, here as in the processes below."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HYBRIDNA_KERNELS", "reference")
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(before)


@pytest.fixture
def call(tmp_path, capfd, monkeypatch):
    """Run `pretrain run.toml` in a fresh folder; return exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    lay_out(tmp_path)

    def call(*settings, path="run.toml", more=()):
        code = run(["pretrain", path, "--device", "cpu", *options(settings), *more])
        streams = capfd.readouterr()
        assert "Traceback" not in streams.err
        return code, streams.out, streams.err

    return call


def start(folder, *settings, **more):
    """Start `pretrain` as a process of its own."""
    command = [sys.executable, "-m", "hybridna_cli", "pretrain", "run.toml", "--device", "cpu", *options(settings)]
    return subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True, **more)


def wait_for_lines(folder, process, count):
    """Wait until the log of a running process has so many lines."""
    end = time.monotonic() + 90
    while time.monotonic() < end and process.poll() is None:
        try:
            if (folder / "out" / "log.jsonl").read_bytes().count(b"\n") >= count:
                return
        except FileNotFoundError:
            pass
        time.sleep(0.002)
    pytest.fail(f"the run ended or stood still before it had logged {count} lines: {process.poll()}")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Output folder of the long run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    assert run(["pretrain", str(lay_out(folder)), "-q", "--device", "cpu", *options(LONG)]) == 0
    return folder / "out"


# --- Kills and signals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_killed_at_a_random_moment(call, tmp_path, whole, seed):
    dice = random.Random(seed)
    with start(tmp_path, *LONG) as process:
        wait_for_lines(tmp_path, process, dice.randrange(1, 36))
        time.sleep(dice.random() * 0.05)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    code, _, err = call(*LONG)
    assert code == 0
    assert "going on from step " in err or "no snapshot was written yet; starting from step 0" in err
    assert outcome(tmp_path / "out") == outcome(whole)
    assert not [p for p in (tmp_path / "out" / "snapshots").iterdir() if not p.name.startswith("step-")]


def test_terminated_and_interrupted(call, tmp_path, whole):
    lines = 3
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        with start(tmp_path, *LONG) as process:
            wait_for_lines(tmp_path, process, lines)
            process.send_signal(number)
            _, err = process.communicate(timeout=60)
        assert process.returncode == code
        step = weights(tmp_path / "out")[0].removeprefix("step-").lstrip("0")
        words = f"hybridna pretrain: error: step {step}: stopped by {number.name}, saved; the same command goes on"
        assert words in err and "Traceback" not in err
        lines += 20
    assert call(*LONG)[0] == 0
    assert outcome(tmp_path / "out") == outcome(whole)


def test_one_run_per_folder(tmp_path, call):
    with start(tmp_path, *LONG) as process:
        wait_for_lines(tmp_path, process, 1)
        process.send_signal(signal.SIGSTOP)
        code, _, err = call(*LONG)
        process.kill()
    assert code == 2 and f"out: process {process.pid} on " in err and "is training in this folder" in err
    assert call(*LONG)[0] == 0


def test_a_full_disk_keeps_the_last_snapshot(call, tmp_path):
    """A limit on the size of files stands in for a disk without room: the log can be written, a snapshot cannot."""
    short = "save.every=6", "stage.0.steps=6", "stage.1.steps=1"
    assert call(*short)[0] == 0
    shutil.rmtree(tmp_path / "out" / "snapshots" / "step-000000007")
    shutil.rmtree(tmp_path / "out" / "model")
    before = weights(tmp_path / "out")

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))

    with start(tmp_path, *short, preexec_fn=limit) as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 5 and "step-000000007: File too large" in err
    assert weights(tmp_path / "out") == before
    assert [p.name for p in (tmp_path / "out" / "snapshots").iterdir()] == ["step-000000006"]
    code, _, err = call(*short)
    assert code == 0 and "going on from step 6 of 7" in err


# --- What is said ----------------------------------------------------------------------------------------------------


def test_summary_and_progress(call, tmp_path, monkeypatch):
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 0.0)
    code, out, err = call(more=["--summary-json", "s.json"])
    assert (code, out) == (0, "")
    lines = [line for line in err.splitlines() if " of 20 (" in line]
    assert lines[-1].startswith("hybridna pretrain: 20 of 20 (100 %), ")
    assert "/s, 0 s left, " in lines[-1] and "bits/base" in lines[-1]
    assert re.search(r" tokens/s, [0-9,.]+ [MG]iB$", lines[-1])
    last = err.splitlines()[-1]
    summary = json.loads((tmp_path / "s.json").read_text())
    assert last.startswith("hybridna pretrain: output out/model, steps 20, tokens 5,120, parameters ")
    assert f"bug {summary['bits_per_base']['bug']:.3g}" in last
    assert summary["output"] == "out/model" and summary["steps"] == 20
    code, out, err = call(more=["-q"])
    assert (code, out, err) == (0, "", "")


def test_dry_run(call, tmp_path):
    code, out, err = call(more=["--dry-run", "-q", "--summary-json", "s.json"])
    assert code == 0
    header, *rows = [line.split("\t") for line in out.splitlines()]
    assert header == ["species", "bases", "held_out", "share", "passes"]
    # Shares are as 4100^0.7 to 1500^0.7.
    assert rows == [["bug", "4100", "900", "0.6690", "0.82"], ["bee", "1500", "0", "0.3310", "1.11"]]
    plan = json.loads((tmp_path / "s.json").read_text())
    assert (plan["steps"], plan["tokens"]) == (20, 5120) and plan["parameters"] > 1000
    assert plan["species"][0]["share"] == pytest.approx(0.6690, abs=1e-4)
    assert not (tmp_path / "out").exists()
    code, out, err = call(more=["--dry-run", "-o", "other"])
    assert "hybridna pretrain: output other, steps 20, tokens 5,120, parameters " in err and "memory about" in err
    assert "'bug'" not in err and not (tmp_path / "other").exists()


def test_overrides_and_output(call, tmp_path):
    assert call("stage.0.steps=1", "stage.1.steps=1", "optim.warmup_steps=0", more=["-q", "-o", "there"])[0] == 0
    assert sorted(p.name for p in (tmp_path / "there" / "snapshots").iterdir()) == ["step-000000002"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "code", "words"),
    [
        (["optim.lrr=1"], 2, "run.toml: optim: unknown key 'lrr'; did you mean 'lr'?"),
        (["optim.lr=fast"], 2, "run.toml: optim: lr: is 'fast', must be a finite number"),
        (["optim.lr"], 2, "--set: 'optim.lr' is not KEY=VALUE"),
        (["stage.7.steps=1"], 2, "--set: stage.7.steps: '7' is not the number of a table"),
        (["model.preset=tinny"], 2, "run.toml: model.preset: no preset called 'tinny'; did you mean 'tiny'?"),
        (["model.layer_types=['mamba', 'moe']"], 2, "run.toml: model: layer_types[1]: is 'moe'"),
        (["mixture.max_passes=0.5"], 2, "mixture.max_passes: is 0.5, but 5,120 tokens read the 5,600 bases 0.9 times"),
        (["species.0.valid=['c9']"], 2, "species bug: region 'c9': no contig 'c9' in bug.fa"),
        (["species.0.fasta=bog.fa"], 5, "bog.fa: no such file; did you mean "),
        (["species.0.fasta=/"], 5, "/: is a folder; give a file"),
        (["stage.1.context_length=4096", "stage.1.batch_tokens=4096"], 3, "stage 1: every contig is shorter than"),
        (["output=run.toml"], 2, "run.toml: exists and is no folder; give another output"),
        (["output=run.toml/x"], 5, "run.toml: is no folder"),
        (["output="], 2, "run.toml: no output folder; give -o DIR"),
    ],
)  # fmt: skip
def test_faults(call, tmp_path, settings, code, words):
    found, out, err = call(*settings)
    assert (found, out) == (code, "")
    last = err.splitlines()[-1]
    assert last.startswith("hybridna pretrain: error: ") and words in last
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("path", "code", "words"),
    [
        ("rum.toml", 5, "rum.toml: no such file; did you mean run.toml?"),
        (".", 5, ".: is a folder; give a file"),
        ("-", 2, "-: standard input cannot be read at random; give a file"),
        ("broken.toml", 2, "broken.toml: not TOML ("),
        ("bug.fa", 2, "bug.fa: not TOML ("),
        ("twice.toml", 2, "twice.toml: not TOML ("),
    ],
)
def test_run_files_that_do_not_do(call, tmp_path, path, code, words):
    (tmp_path / "broken.toml").write_text(TINY_RUN.rstrip() + " windows\n")
    (tmp_path / "twice.toml").write_text("seed = 1\nseed = 1\n" + TINY_RUN)
    found, out, err = call(path=path)
    assert (found, out) == (code, "") and words in err


def test_cuda_that_is_not_there(call):
    import torch

    if torch.cuda.is_available():
        pytest.skip("a CUDA device is there")
    found = run(["pretrain", "run.toml", "--device", "cuda"])
    assert found == 5


def test_a_changed_run_and_a_finished_one(call, tmp_path):
    assert call()[0] == 0
    before = weights(tmp_path / "out")
    code, _, err = call("seed=1")
    assert code == 2 and "out: seed (0 before, 1 now) changed since the run began; undo the change, or " in err
    assert "accept it with --override seed" in err
    code, _, err = call()
    assert code == 0 and "hybridna pretrain: finished already; nothing is left to train" in err
    assert weights(tmp_path / "out") == before
    (tmp_path / "bee.fa").write_text((tmp_path / "bee.fa").read_text().replace("AC", "CA"))
    code, _, err = call()
    assert code == 3 and "the genomes' content changed since the run began" in err


def test_the_newest_snapshot_is_damaged(call, tmp_path):
    assert call()[0] == 0
    shutil.rmtree(tmp_path / "out" / "model")
    due = weights(tmp_path / "out")
    (tmp_path / "out" / "snapshots" / "step-000000020" / "manifest.json").unlink()
    code, _, err = call()
    assert code == 0 and "warning: snapshot of step 20 passed over: " in err and "2 steps are lost to damage" in err
    assert weights(tmp_path / "out") == due
    for path in (tmp_path / "out" / "snapshots").glob("*/position.json"):
        path.write_text("{}")
    code, _, err = call()
    assert code == 4 and "snapshots: all 2 snapshots are damaged; delete the folder to start afresh" in err


def test_numbers_that_are_not_finite(call, tmp_path, monkeypatch):
    from hybridna_core.train import loop

    honest = loop.loss_sum
    monkeypatch.setattr(loop, "loss_sum", lambda *a: (honest(*a)[0] * float("nan"), honest(*a)[1]))
    code, _, err = call()
    assert code == 6 and "hybridna pretrain: error: step 1: loss nan and gradient norm nan are not finite" in err
    assert list((tmp_path / "out" / "snapshots").iterdir()) == []


def test_curves_are_drawn_without_training(call, tmp_path):
    pytest.importorskip("matplotlib")
    code, _, err = call(more=["--plot"])
    assert code == 5 and "out/log.jsonl: No such file or directory; give a run's folder or run file" in err
    assert call()[0] == 0 and not (tmp_path / "out" / "loss.png").exists()
    for path in ("run.toml", "out"):
        code, out, err = call(path=path, more=["--plot"])
        assert (code, out) == (0, "")
        assert err.startswith("hybridna pretrain: picture out/loss.png, tokens 5,120, bug ")
        assert (tmp_path / "out" / "loss.png").read_bytes()[:4] == b"\x89PNG"
        (tmp_path / "out" / "loss.png").unlink()
    assert call(path="out")[0] == 5


def test_a_template(call, tmp_path, capfd):
    assert run(["pretrain", "--template", "7b"]) == 0
    text = capfd.readouterr().out
    (tmp_path / "7b.toml").write_text(text)
    assert 'preset = "7b"' in text
    code, _, err = call(path="7b.toml")
    assert code == 5 and "genomes/human.fa.gz" in err
    code = run(["pretrain", "--template", "7"])
    assert code == 2 and "no preset called '7'" in capfd.readouterr().err
