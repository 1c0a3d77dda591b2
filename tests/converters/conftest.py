import shutil
from pathlib import Path

import pytest

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture
def sd1(tmp_path) -> Path:
    """A copy of the small Stable Diffusion 1 of the reference data, as diffusers saved it, that a test may damage."""
    shutil.copytree(DATA / "diffusers" / "a_sd1", tmp_path / "a_sd1")
    return tmp_path / "a_sd1"
