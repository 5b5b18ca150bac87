"""Fixtures that the whole suite shares."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


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
