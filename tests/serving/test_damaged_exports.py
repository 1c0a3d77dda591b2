import logging
import shutil
from pathlib import Path

import pytest

from tfsd.cli import main


def flip(path: Path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path):
    path.write_bytes(path.read_bytes()[:-100])


DAMAGES = {
    "flipped weight": (flip, "variables/variables.data-00000-of-00001"),
    "truncated weights": (truncate, "variables/variables.data-00000-of-00001"),
    "no index": (Path.unlink, "variables/variables.index"),
    "flipped graph": (flip, "saved_model.pb"),
    "truncated graph": (truncate, "saved_model.pb"),
    "empty graph": (lambda path: path.write_bytes(b""), "saved_model.pb"),
    "flipped vocabulary": (flip, "assets/clip_merges.txt"),
    "truncated manifest": (truncate, "assets.extra/manifest.json"),
    "manifest of another kind": (lambda path: path.write_text("[1]"), "assets.extra/manifest.json"),
}


@pytest.fixture
def loggers():
    """The loggers as they were: the command sends them to its own standard error."""
    found = [logging.getLogger(name) for name in ("tfsd.serving", "aiohttp.server", "grpc")]
    before = [(logger, logger.handlers, logger.propagate, logger.level) for logger in found]
    yield
    for logger, logger.handlers, logger.propagate, level in before:
        logger.setLevel(level)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_export_is_not_served_and_the_file_is_named(damage, toy_export, tmp_path, capsys, loggers):
    shutil.copytree(toy_export, tmp_path / "models")
    change, name = DAMAGES[damage]
    change(tmp_path / "models/toy/1" / name)
    assert main(["serve", str(tmp_path / "models"), "--grpc-port", "0", "--rest-port", "0"]) == 1
    out, err = capsys.readouterr()
    last = err.splitlines()[-1]
    assert out == "" and last.startswith("tfsd: ") and Path(name).name in last
    assert "Traceback" not in err
