import shutil

import pytest

from tfsd.cli import main


@pytest.fixture
def place(tmp_path, toy_folder, monkeypatch):
    """An empty folder to work in, where the model folder `toy` lies beside, with an empty cache."""
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
