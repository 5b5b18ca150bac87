"""The script for a CUDA machine: what it says without one, and its parts at tiny size in Triton's interpreter."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hybridna_kernels import gpu_check, parity
from hybridna_kernels.reference import causal_conv1d, ssd_scan, ssd_step

SCRIPT = Path(__file__).resolve().parents[2] / "kernels" / "gpu_check.sh"
installed = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
CPU = torch.device("cpu")


def test_without_a_device_it_says_so(tmp_path):
    environment = {**os.environ, "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": ""}
    done = subprocess.run(["bash", SCRIPT], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 5
    assert done.stderr == "gpu_check: error: no CUDA device that torch can use; run it on a CUDA machine\n"
    assert not list(tmp_path.iterdir())


@installed
def test_its_parts(tmp_path):
    rows = gpu_check.parity(CPU, lengths=(17,), shapes=((2, 4, 1, 4),))
    assert [r for r in rows if not r["ok"]] == []
    assert {r["op"] for r in rows} == set(gpu_check.OPS)
    assert len(rows) == len(gpu_check.OPS) * len(gpu_check.LIMITS)

    times = gpu_check.timings(CPU, lengths=(16,), shape=(2, 4, 1, 4), tokens=16, seconds=0)
    assert [r.get("failed") for r in times] == [None] * len(times)
    assert {r["op"] for r in times} == set(gpu_check.PREDICTED)

    rows[0].update(ok=False, error=0.5)
    del rows[-1]["error"]
    rows[-1].update(ok=False, failed="RuntimeError: out of something")
    for part, found in (("parity", rows), ("time", times)):
        (tmp_path / f"{part}.json").write_text(json.dumps({"setting": gpu_check.describe(CPU), "rows": found}))
    text = gpu_check.table(tmp_path)
    assert f"| {rows[0]['op']} | {rows[0]['kernel']} | torch.float32 | 1 | 1 | 5.0e-01 |" in text
    assert "- failed: RuntimeError: out of something" in text
    assert text.count("| 16 | 1 |") == len(gpu_check.PREDICTED)
    assert (tmp_path / "table.md").read_text() == text


@installed
def test_adapters_to_other_packages_are_checked_and_timed(monkeypatch):
    for op in gpu_check.ADAPTERS:
        package, _, refuse, count, name = gpu_check.ADAPTERS[op]
        plain = {"ssd_scan": ssd_scan, "ssd_step": ssd_step, "causal_conv1d": causal_conv1d}[op]
        monkeypatch.setitem(gpu_check.ADAPTERS, op, (package, plain, lambda *given: None, count, name))
        assert refuse(*parity.example(op)) is not None
    rows = gpu_check.parity(CPU, lengths=(5,), shapes=((1, 4, 1, 4),))
    found = {(r["op"], r["kernel"]) for r in rows if r["ok"]}
    assert found >= {("ssd_scan", "mamba_ssm"), ("ssd_step", "mamba_ssm"), ("causal_conv1d", "causal_conv1d")}
    times = gpu_check.timings(CPU, lengths=(16,), shape=(2, 4, 1, 4), tokens=16, seconds=0)
    assert all("mamba_ssm" in r["microseconds"] for r in times if r["op"] in ("ssd_scan", "ssd_step"))


@installed
def test_an_adapter_that_fails_takes_no_other_figures_with_it(monkeypatch, tmp_path):
    def broken(*args, **kwargs):
        raise AttributeError("'NoneType' object has no attribute 'stride'")

    monkeypatch.setitem(gpu_check.ADAPTERS, "ssd_step", ("mamba_ssm", broken, lambda *given: None, 7, "rows"))
    times = gpu_check.timings(CPU, lengths=(16,), shape=(2, 4, 1, 4), tokens=16, seconds=0)
    (step,) = [r for r in times if r["op"] == "ssd_step"]
    assert set(step["microseconds"]) == {"triton", "torch"} and "failed" not in step
    (tmp_path / "time.json").write_text(json.dumps({"setting": gpu_check.describe(CPU), "rows": times}))
    text = gpu_check.table(tmp_path)
    assert "mamba_ssm failed: AttributeError: 'NoneType' object has no attribute 'stride'" in text


@installed
def test_a_wrong_kernel_is_found(monkeypatch):
    kernel, plain = gpu_check.OPS["add_rms_norm"]
    monkeypatch.setitem(gpu_check.OPS, "add_rms_norm", (lambda *t: tuple(1.001 * o for o in kernel(*t)), plain))
    monkeypatch.setattr(gpu_check, "LIMITS", {torch.float32: gpu_check.LIMITS[torch.float32]})
    rows = gpu_check.parity(CPU, lengths=(5,), shapes=((1, 4, 1, 4),))
    assert [r["op"] for r in rows if not r["ok"]] == ["add_rms_norm"]


def test_a_table_of_nothing(tmp_path):
    assert "time: not run" in gpu_check.table(tmp_path)
