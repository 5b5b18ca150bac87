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
