import hashlib
import shutil
from pathlib import Path

import pytest

from tfsd.cli import main


@pytest.fixture(scope="session")
def loaded_once():
    """`tfsd.load`, which gives the same model again for the same folder's content and options.

    Loading and tracing the toy model takes some seconds, and is not what the tests of the command are about; those that
    start a process of their own load as users do.
    """
    from tfsd.api import load

    models = {}

    def loaded(model, **options):
        files = sorted(path for path in Path(model).glob("*") if path.is_file())
        if not files:
            return load(model, **options)
        content = hashlib.sha256(b"".join(path.read_bytes() for path in files)).digest()
        key = (str(model), tuple(path.name for path in files), content, *sorted(options.items()))
        if key not in models:
            models[key] = load(model, **options)
        return models[key]

    return loaded


@pytest.fixture
def place(tmp_path, toy_folder, loaded_once, monkeypatch):
    """An empty folder to work in, where the model folder `toy` lies beside, with an empty cache."""
    monkeypatch.setattr("tfsd.api.load", loaded_once)
    (tmp_path / "work").mkdir()
    shutil.copytree(toy_folder, tmp_path / "work" / "toy")
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("TFSD_HOME", str(tmp_path / "home"))
    return tmp_path / "work"


@pytest.fixture
def run(capsys):
    """Runs the command; returns its status, output and errors."""

    def run(*argv):
        capsys.readouterr()
        status = main([str(word) for word in argv])
        return status, *capsys.readouterr()

    return run
