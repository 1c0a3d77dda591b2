import shutil
from pathlib import Path

import pytest

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture
def sd1(tmp_path) -> Path:
    """A copy of the small Stable Diffusion 1 of the reference data, as diffusers saved it, that a test may damage."""
    shutil.copytree(DATA / "diffusers" / "a_sd1", tmp_path / "a_sd1")
    return tmp_path / "a_sd1"


@pytest.fixture
def configurations(tmp_path) -> Path:
    """A copy of the configurations of that folder alone: reading them needs no weights."""
    source = DATA / "diffusers" / "a_sd1"
    for path in source.rglob("*.json"):
        target = tmp_path / "configurations" / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(path.read_text())
    return tmp_path / "configurations"
