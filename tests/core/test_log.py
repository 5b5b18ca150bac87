"""The log of a training run: cut at the snapshot on resume, never a reason to stop."""

import json
import sys
import types

import pytest
from genome_files import warnings_of
from runs import lay_out, outcome, weights

from hybridna_core.commands.pretrain import pretrain
from hybridna_core.errors import SystemFault
from hybridna_core.run_config import LogConfig
from hybridna_core.train.log import Log, check_sinks, open_sinks


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_log_is_cut_at_the_snapshot(tmp_path):
    path = tmp_path / "log.jsonl"
    first = Log(path, 0)
    for step in (10, 20, 30):
        first.write(step=step, bits_per_base=2.0 / step)
        first.write(step=step, valid={"bug": 1.9})
    first.close()
    with path.open("a") as handle:
        handle.write('{"step": 3')
    again = Log(path, 20)
    assert [entry["step"] for entry in lines(path)] == [10, 10, 20, 20]
    assert again.valid_at(20) == {"bug": 1.9} and again.valid_at(10) is None and again.valid_at(30) is None
    again.write(step=30)
    again.close()
    assert [entry["step"] for entry in lines(path)] == [10, 10, 20, 20, 30]
    before = path.stat().st_ino
    Log(path, 30).close()
    assert path.stat().st_ino == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("rest", ["\0\0\0\n", "[]\n", '{"step": "x"}\n', '"text"\n', '{"stp": 3}\n', "\xff\n"])
def test_lines_that_are_none_of_ours_are_dropped(tmp_path, rest):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"step": 1}\n' + rest.encode("latin-1") + b'{"step": 2}\n')
    Log(path, 9).close()
    assert lines(path) == [{"step": 1}, {"step": 2}]


def test_a_log_that_cannot_be_written_costs_a_warning(tmp_path, caplog):
    log = Log(tmp_path / "log.jsonl", 0)
    log._handle.close()
    with open("/dev/full", "w") as full:
        log._handle = full
        log.write(step=1)
        log.sync()
        log.close()
    (said,) = warnings_of(caplog, "log")
    assert said == f"{tmp_path / 'log.jsonl'}: a line could not be written: No space left on device"


# --- Other places that get the log -----------------------------------------------------------------------------------

ENTRIES = [
    {"step": 10, "stage": 0, "bits_per_base": 1.95, "lr": 1e-3, "tokens": 640},
    {"step": 10, "stage": 0, "valid": {"bug": 1.93, "bee": 1.9}},
    {"step": 11, "stage": 0, "skipped": {"bits": 3.5, "mean": 1.9, "sigma": 0.01}},
    {"step": 20, "stage": 1, "bits_per_base": None, "lr": 5e-4, "tokens": 1280},
]
DUE = {
    ("train/bits_per_base", 10): 1.95, ("train/lr", 10): 1e-3, ("train/lr", 20): 5e-4, ("train/stage", 20): 1,
    ("valid/bug", 10): 1.93, ("valid/bee", 10): 1.9, ("skipped/bits", 11): 3.5, ("train/tokens", 20): 1280,
}  # fmt: skip


def test_tensorboard_gets_every_number(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = Log(tmp_path / "log.jsonl", 0, open_sinks(LogConfig(tensorboard=True), tmp_path, 0, "base"))
    for entry in ENTRIES:
        log.write(**entry)
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    found = {(tag, e.step): e.value for tag in events.Tags()["scalars"] for e in events.Scalars(tag)}
    assert {key: found[key] for key in DUE} == pytest.approx(DUE)
    assert ("train/bits_per_base", 20) not in found and len(lines(tmp_path / "log.jsonl")) == 4


class FakeWandb(types.ModuleType):
    """Stands in for wandb: remembers what it is told."""

    def __init__(self, fault=None):
        super().__init__("wandb")
        self.begun, self.logged, self.finished, self.fault = [], [], 0, fault

    def init(self, **options):
        if self.fault:
            raise self.fault
        self.begun.append(options)
        return self

    def log(self, numbers, step):
        if step > 15:
            raise ConnectionError("no route to host")
        self.logged += [((name, step), value) for name, value in numbers.items()]

    def finish(self):
        self.finished += 1


def test_wandb_gets_every_number_and_goes_on_in_the_same_run(tmp_path, monkeypatch, caplog):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    config = LogConfig(wandb="genomes")
    check_sinks(config)
    log = Log(tmp_path / "log.jsonl", 0, open_sinks(config, tmp_path, 0, "base"))
    for entry in ENTRIES[:3]:
        log.write(**entry)
    log.close()
    assert {key: value for key, value in DUE.items() if key[1] < 15}.items() <= dict(fake.logged).items()
    assert fake.finished == 1
    again = Log(tmp_path / "log.jsonl", 11, open_sinks(config, tmp_path, 11, "base"))
    first, second = fake.begun
    assert first == second and first["project"] == "genomes" and first["name"] == "base" and first["resume"] == "allow"
    assert len(first["id"]) == 16
    # A network that is gone costs a warning, and the lines stay.
    for _ in range(3):
        again.write(**ENTRIES[3])
    again.close()
    assert len(lines(tmp_path / "log.jsonl")) == 6
    assert warnings_of(caplog, "log") == ["WeightsAndBiases gets no more lines: ConnectionError: no route to host"]


@pytest.mark.parametrize("key", ["tensorboard", "wandb"])
def test_a_package_that_is_asked_for_and_not_there(tmp_path, monkeypatch, key):
    for name in ("wandb", "tensorboard", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)
    path = lay_out(tmp_path)
    with pytest.raises(SystemFault) as caught:
        pretrain(path, device="cpu", set=[f"log.{key}={'genomes' if key == 'wandb' else 'true'}"])
    assert caught.value.exit_code == 5
    assert str(caught.value) == f"log.{key}: {key} is not installed; pip install {key}, or leave log.{key} out"
    # Before any work: nothing is packed or made.
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bee.fa", "bug.fa", "run.toml"]


def test_wandb_that_does_not_start(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb(RuntimeError("api_key not configured")))
    with pytest.raises(SystemFault, match=r"log.wandb: wandb did not start: api_key not configured; log in with"):
        open_sinks(LogConfig(wandb="genomes"), tmp_path, 0, "base")


def test_a_run_that_logs_elsewhere_comes_to_the_same(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb())
    settings = ["stage.0.steps=4", "stage.1.steps=2", "valid.every=3", "save.log_every=1"]
    for name, more in (("plain", []), ("wandb", ["log.wandb=genomes"])):
        pretrain(lay_out(tmp_path / name), device="cpu", set=settings + more)
    (tmp_path / "wandb" / "out" / "wandb.id").unlink()
    due, found = (outcome(tmp_path / name / "out") for name in ("plain", "wandb"))
    # The model folder says how the run was called.
    del due["model/training.json"], found["model/training.json"]
    assert found == due and len(sys.modules["wandb"].logged) > 30


def test_e10_a_full_disk_under_the_log_stops_no_run(tmp_path, monkeypatch, caplog):
    settings = ["stage.0.steps=4", "stage.1.steps=2", "save.log_every=2", "valid.every=9"]
    pretrain(lay_out(tmp_path / "plain"), device="cpu", set=settings)
    with open("/dev/full", "w") as full:

        class FullLog(Log):
            def __init__(self, *args):
                super().__init__(*args)
                self._handle.close()
                self._handle = full

        monkeypatch.setattr("hybridna_core.train.loop.Log", FullLog)
        pretrain(lay_out(tmp_path / "full"), device="cpu", set=settings)
    assert weights(tmp_path / "full" / "out") == weights(tmp_path / "plain" / "out")
    # Three lines and the last validation.
    assert len(warnings_of(caplog, "log")) == 4 and "No space left on device" in warnings_of(caplog, "log")[0]
