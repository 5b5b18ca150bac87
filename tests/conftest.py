"""Fixtures that the whole suite shares."""

import os
import signal
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

if "PYTEST_XDIST_WORKER" in os.environ:
    # One worker per core: more threads in each, and in what it starts, would only wait for one another.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def heeded_signals():
    """Heed signals that a background job or nohup had this process ignore: the commands tested would inherit that."""
    ignored = [n for n in (signal.SIGINT, signal.SIGHUP) if signal.getsignal(n) is signal.SIG_IGN]
    for number in ignored:
        # With a handler, not the default action, so that the suite itself goes on; a new program starts without it.
        signal.signal(number, lambda *_: None)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.fixture(scope="session")
def shared_data():
    """Folder of the larger development data, which live outside the repository; skips when absent."""
    folder = Path(os.environ.get("HYBRIDNA_SHARED", ROOT.parent / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip("the development data folder (../shared/data) is absent")
    return folder


@pytest.fixture(scope="session")
def toy_model_folder(tmp_path_factory):
    """A complete model folder of ours, small and random; copy it before changing anything in it."""
    from toys import random_model

    from hybridna_core.checkpoint import save_model

    return save_model(tmp_path_factory.mktemp("models") / "toy", random_model())
