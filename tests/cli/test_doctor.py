"""`hybridna doctor`: the tables it prints, and how it says that something is wrong."""

import json
import sys

import pytest

from hybridna_cli.app import run
from hybridna_core.commands import doctor as core
from hybridna_kernels import dispatch


def test_everything_is_shown_on_stdout(capsys, tmp_path):
    path = tmp_path / "doctor.json"
    assert run(["doctor", "--json", str(path)]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    for heading in ("Packages", "Devices", "Kernels", "Parity with the definition", "Problems"):
        assert f"\n{heading}\n" in captured.out
    assert captured.out.endswith("Problems\n  none\n")
    found = json.loads(path.read_text())
    assert {row["name"] for row in found["packages"]} >= {"torch", "pysam", "mamba-ssm", "pyarrow"}
    assert found["devices"][0]["device"] == "cpu"
    assert found["problems"] == []
    in_use = {row["op"] for row in found["kernels"] if row["state"] == "in use"}
    assert in_use == {*dispatch.OPS, "product", "mamba_block", "attention_block"}
    for row in found["kernels"]:
        if row["backend"] in ("mamba_ssm", "causal_conv1d", "flash_attn"):
            assert row["state"] not in ("in use", "")


def test_each_usable_backend_was_compared():
    found = core.doctor()
    usable = {(r["op"], r["backend"]) for r in found.kernels if r["state"] in ("in use", "usable")}
    assert {(r["op"], r["backend"]) for r in found.parity} == usable
    assert all(0 <= r["error"] <= r["limit"] < 1e-3 for r in found.parity)


def test_a_wrong_kernel_is_found(capsys, monkeypatch):
    right = {name: function for name, function, _ in dispatch._CANDIDATES["gated_rms_norm"]}["reference"]
    wrong = [("reference", lambda *args: right(*args) * 1.01, None)]
    monkeypatch.setitem(dispatch._CANDIDATES, "gated_rms_norm", wrong)
    assert run(["doctor"]) == 5
    captured = capsys.readouterr()
    assert "gated_rms_norm    reference       wrong, largest error" in captured.out
    assert captured.err.startswith("hybridna doctor: error: gated_rms_norm on reference computes wrong numbers; 1 in")


@pytest.mark.parametrize("found, words", [
    ("2.1.2", "torch>=2.6 is needed, 2.1.2 is installed; pip install 'torch>=2.6'"),
    (None, "torch>=2.6 is needed, none is installed"),
])  # fmt: skip
def test_old_or_absent_packages_are_problems(capsys, monkeypatch, found, words):
    true = core.installed_version
    monkeypatch.setattr(core, "installed_version", lambda name: found if name == "torch" else true(name))
    assert run(["doctor"]) == 5
    captured = capsys.readouterr()
    assert words in captured.out and words in captured.err


def test_a_torch_that_cannot_be_imported_is_reported(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "hybridna_kernels.parity", raising=False)
    assert run(["doctor"]) == 5
    captured = capsys.readouterr()
    assert "Packages\n  torch" in captured.out
    assert "torch cannot be used: ModuleNotFoundError: " in captured.out


@pytest.mark.parametrize("older, newer", [
    ("2.9.1", "2.13"), ("2.6", "2.13.0+cpu"), ("0.9.2.2", "0.10"), ("1.26", "2.4.6"), ("2.6", "2.6"),
    ("2.6", "2.6.0rc1"),
])  # fmt: skip
def test_versions_compare_by_number(older, newer):
    assert core._numbers(older) <= core._numbers(newer)
