"""Training on several ranks: it equals training on one, and what happens when one of them fails."""

import json
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from ranks import _begin, command, run, start, step_of, take_steps
from runs import lay_out, log_lines, outcome
from safetensors.torch import load_file

from hybridna_core.commands.pretrain import pretrain
from hybridna_core.errors import Elsewhere, HybriDNAError, Stopped, UsageError
from hybridna_core.run_config import OptimConfig
from hybridna_core.train.parallel import ALONE, SHARDS, World, _buckets, join
from hybridna_core.train.snapshots import save_snapshot

WORDS = ["pretrain", "run.toml", "--device", "cpu", "--set", "save.log_every=1", "--set", "stage.0.steps=12"]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("HYBRIDNA_KERNELS", "reference")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# --- Equal results ---------------------------------------------------------------------------------------------------


# Muon turns matrices in bfloat16, where a last bit of difference becomes a hundredth of an update: gradient norms drift
# apart by a thousandth, weights by some 2e-4 in 50 steps. For it the loss alone is held, not as close.
@pytest.mark.parametrize(
    ("optimizer", "shards", "count", "close"),
    [
        ("adamw", ("full",), 16, 1e-5),
        pytest.param("adamw", SHARDS, 50, 1e-5, marks=pytest.mark.slow),
        pytest.param("muon", SHARDS, 50, 1e-4, marks=pytest.mark.slow),
    ],
)
def test_every_way_to_split_a_model_equals_one_process(tmp_path, optimizer, shards, count, close):
    config = OptimConfig(optimizer=optimizer)
    codes, said = run(2, tmp_path, take_steps, config, shards, count, str(tmp_path), seconds=300)
    assert codes == [0, 0], said
    found = json.loads((tmp_path / "losses.json").read_text())
    model, adam = _begin(config, ALONE)
    due = [step_of(model, adam, step, ALONE) for step in range(count)]
    assert due[-1][0] < due[0][0] - 0.2
    (tmp_path / "one").mkdir()
    one = save_snapshot(tmp_path / "one", model, adam, {"step": count}, keep=2)
    for shard in shards:
        for have, want in zip(found[shard], due, strict=True):
            assert have[0] == pytest.approx(want[0], rel=close) and have[1] == want[1]
            assert optimizer == "muon" or have[2] == pytest.approx(want[2], rel=1e-3)
        for name in ("model", "optimizer"):
            tensors = load_file(tmp_path / shard / f"step-{count:09d}" / f"{name}.safetensors")
            wanted = load_file(one / f"{name}.safetensors")
            assert {k: (v.shape, v.dtype) for k, v in tensors.items()} == {
                k: (v.shape, v.dtype) for k, v in wanted.items()
            }
            for key, value in tensors.items():
                near = torch.allclose(value, wanted[key], rtol=1e-2, atol=2e-4)
                assert optimizer == "muon" or near, (shard, key)


def stop_at(step):
    from ranks import os

    def progress(done, total, note=""):
        if done == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return progress


def go_on(shard, stop):
    """Train until rank 1 alone is sent a signal; the code to leave with, and on the first rank what is said."""
    from ranks import os

    from hybridna_core.train import loop

    if os.environ["RANK"] == "1":
        honest, taken = loop.train_step, []

        def stopping(*args, **options):
            result = honest(*args, **options)
            taken.append(1)
            if len(taken) == stop:
                os.kill(os.getpid(), signal.SIGTERM)
            return result

        loop.train_step = stopping
    try:
        pretrain("run.toml", device="cpu", shard=shard, set=SETTINGS)
    except HybriDNAError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


SETTINGS = ["save.log_every=1", "stage.0.steps=36", "stage.1.steps=14", "mixture.max_passes=100"]


@pytest.mark.parametrize("shard", ["none", pytest.param("full", marks=pytest.mark.slow)])
def test_the_number_of_ranks_may_change(tmp_path, shard):
    """1 -> 2 -> 1 over 50 steps; a signal to one rank stops both."""
    lay_out(tmp_path / "one")
    pretrain(tmp_path / "one" / "run.toml", device="cpu", set=SETTINGS)
    path = lay_out(tmp_path / "two")
    with pytest.raises(Stopped):
        pretrain(path, device="cpu", set=SETTINGS, progress=stop_at(15))
    codes, said = run(2, path.parent, go_on, shard, 22)
    assert codes == [143, 143]
    assert said[0].endswith("Stopped: step 37: stopped by SIGTERM, saved; the same command goes on from here\n")
    assert said[1] == "Elsewhere: stopped by another process of this run\n"
    pretrain(path, device="cpu", set=SETTINGS)
    assert (path.parent / "out" / "ledger.tsv").read_text() == (tmp_path / "one" / "out" / "ledger.tsv").read_text()
    have, want = log_lines(path.parent / "out"), log_lines(tmp_path / "one" / "out")
    assert len([e for e in have if "lr" in e]) == 50
    for entry, due in zip(have, want, strict=True):
        assert entry.keys() == due.keys() and entry["step"] == due["step"]
        if "valid" in due:
            assert entry["valid"] == {"bug": pytest.approx(due["valid"]["bug"], rel=1e-5)}
        else:
            assert entry["bits_per_base"] == pytest.approx(due["bits_per_base"], rel=1e-5)
            assert (entry["tokens"], entry["lr"]) == (due["tokens"], due["lr"])


@pytest.mark.slow
def test_torchrun(tmp_path):
    lay_out(tmp_path)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    launch += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "-m", "hybridna_cli"]
    done = subprocess.run([*launch, *WORDS, "--shard", "optim"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("hybridna pretrain: ")]
    assert len([line for line in said if "packing ./bug.fa" in line or "packing bug.fa" in line]) == 1
    assert said[-1].startswith("hybridna pretrain: output out/model, steps 18,") and len(said) == len(set(said))
    assert outcome(tmp_path / "out")["position"]["step"] == 18


# --- One rank fails --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spoil", "value"), [("nan", "loss nan"), pytest.param("gradient", "gradient norm nan", marks=pytest.mark.slow)]
)
def test_numbers_that_are_not_finite_on_one_rank_reach_none(tmp_path, spoil, value):
    lay_out(tmp_path)
    # Two windows a step on each rank, read together: the eighth step, after the snapshot of the sixth.
    codes, said = run(2, tmp_path, command, WORDS, spoil, 8)
    assert codes == [6, 6]
    (line,) = [line for line in said[0].splitlines() if "error" in line]
    assert line.startswith("hybridna pretrain: error: step 8: loss ") and value in line
    assert "are not finite on rank 1 (windows 29 to 31 by 2 of stage 0); begin again" in line
    assert "error" not in said[1]
    assert [p.name for p in (tmp_path / "out" / "snapshots").iterdir()] == ["step-000000006"]


@pytest.mark.slow
def test_with_split_weights_too(tmp_path):
    lay_out(tmp_path)
    codes, said = run(2, tmp_path, command, [*WORDS, "--shard", "full"], "nan", 8)
    assert codes == [6, 6] and "on rank 1 (windows 29 to 31 by 2 of stage 0)" in said[0]


@pytest.mark.slow
def test_memory_that_runs_out_on_one_rank_halves_all(tmp_path):
    lay_out(tmp_path)
    codes, said = run(2, tmp_path, command, WORDS, "memory", 3)
    assert codes == [0, 0]
    assert "warning: step 3: out of memory with 2 windows at once; from here on 1" in said[0] and said[1] == ""
    codes, said = run(2, tmp_path, command, [*WORDS, "-o", "other", "--shard", "full"], "memory", 3, seconds=30)
    assert codes[1] == 137 and codes[0] != 0
    words = "rank 1, step 3: out of memory with 2 windows of 64 tokens at once; --set optim.microbatch_tokens=64"
    assert words in said[1]


@pytest.mark.parametrize("shard", ["none", pytest.param("full", marks=pytest.mark.slow)])
def test_a_rank_that_dies_is_named(tmp_path, shard):
    lay_out(tmp_path)
    began = time.monotonic()
    codes, said = run(2, tmp_path, command, [*WORDS, "--shard", shard], "SIGKILL", 8)
    assert codes == [5, -signal.SIGKILL] and time.monotonic() - began < 30
    (line,) = [line for line in said[0].splitlines() if "error" in line]
    assert re.search(r"error: step 8: rank 1 died or stands still \(.*\); its own messages say more; the same", line)
    assert [p.name for p in (tmp_path / "out" / "snapshots").iterdir()] == ["step-000000006"]


def test_a_rank_that_stands_still_is_named(tmp_path):
    lay_out(tmp_path)
    processes = start(2, tmp_path, command, [*WORDS, "--rank-timeout", "4"], "SIGSTOP", 8)
    processes[0].join(40)
    assert processes[0].exitcode == 5
    assert "error: step 8: rank 1 died or stands still" in (tmp_path / "rank-0.err").read_text()
    processes[1].kill()
    processes[1].join()


def test_rows_must_divide_among_the_ranks(tmp_path):
    lay_out(tmp_path)
    codes, said = run(2, tmp_path, command, [*WORDS, "--set", "stage.1.batch_tokens=384"])
    assert codes == [2, 2] and said[1] == ""
    due = (
        "stage[1]: 3 windows a step cannot be divided among 2 ranks; batch_tokens = 256 can be, or start another number"
    )
    assert due in said[0]
    assert not (tmp_path / "out").exists()


def test_an_error_of_one_rank_stops_all(tmp_path):
    codes, said = run(3, tmp_path, fail_on, 1)
    assert codes == [4, 4, 4]
    assert said == ["Elsewhere \n", "HybriDNAError rank 1, there: broken\n", "Elsewhere \n"]


def fail_on(rank):
    with join("cpu") as world:
        try:
            with world.together():
                if world.rank == rank:
                    error = HybriDNAError("broken", where="there")
                    error.exit_code = 4
                    raise error
        except HybriDNAError as error:
            print(type(error).__name__, error if world.rank == rank else "", file=sys.stderr)
            sys.exit(error.exit_code)


# --- Parts -----------------------------------------------------------------------------------------------------------


def test_one_process_is_a_world():
    with join("cpu", shard="full") as world:
        assert (world.rank, world.size, world.shard, world.is_first) == (0, 1, "none", True)
        assert world.gather(3) == [3] and world.share("x") == "x" and world.sum(2.5) == 2.5
        assert world.in_turn(lambda: 7) == 7
    with pytest.raises(UsageError, match="shard 'al' is unknown; one of none, optim, full"), join("cpu", shard="al"):
        pass
    error = UsageError("x")
    assert ALONE.spoken(error) is error
    silent = World(rank=1, size=2).spoken(error)
    assert isinstance(silent, Elsewhere) and silent.exit_code == 2


def test_buckets_hold_everything_once():
    tensors = [torch.zeros(n) for n in (3, 2**24, 5, 2**24 - 5)] + [torch.zeros(4, dtype=torch.float64)]
    buckets = list(_buckets(tensors))
    assert [[t.numel() for t in bucket] for bucket in buckets] == [[3], [2**24], [5, 2**24 - 5], [4]]
