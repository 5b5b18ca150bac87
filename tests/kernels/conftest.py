"""Triton's interpreter for the tests of this folder alone: a command started by any other would pay for its import."""

import importlib.util

import pytest

from hybridna_kernels.triton import setting

if importlib.util.find_spec("triton") is not None:
    # Each kernel settles whether it is interpreted when its module is imported.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        if setting.failure() is None:
            from hybridna_kernels.triton import loss, rows, scan, scan_backward, step, training  # noqa: F401


@pytest.fixture(autouse=True)
def interpreter(monkeypatch):
    """Let kernels run in the interpreter; what a test starts inherits that too."""
    if importlib.util.find_spec("triton") is not None:
        monkeypatch.setenv("TRITON_INTERPRET", "1")
