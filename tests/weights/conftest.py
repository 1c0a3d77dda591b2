import numpy as np
import pytest
from small_model import SPEC

from tfsd import models
from tfsd.storage.model_folders import save_model


@pytest.fixture(scope="session")
def parts():
    built = models.build(SPEC)
    random = np.random.default_rng(0)
    for part in built.values():
        for variable in part.variables:
            variable.assign(random.normal(size=variable.shape).astype("float32"))
    return built


@pytest.fixture(scope="session")
def saved(parts, tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models") / "small", SPEC, parts, notes={"loss": 0.5})


@pytest.fixture
def folder(saved, tmp_path):
    """A copy that a test may damage."""
    copy = tmp_path / "small"
    copy.mkdir()
    for file in saved.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy
