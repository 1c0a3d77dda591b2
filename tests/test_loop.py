"""Checkpoints are whole or not there, and a damaged one is named."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
from faults import refusals

from tfsd.training.loop import Trainer
from tfsd.training.recipe import TrainingRecipe

ROOT = Path(__file__).parents[1]
RECIPE = TrainingRecipe(steps=2, batch=1, learning_rate=1e-3)


def trainer(folder) -> Trainer:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)])
    return Trainer(model, RECIPE, lambda step: (np.zeros((1, 4)), np.zeros((1, 4))), folder)


def empty(path):
    path.write_bytes(b"")


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def flipped(path):
    with np.load(path) as saved:
        values = saved["v0"].tobytes()
    data = bytearray(path.read_bytes())
    data[data.index(values)] ^= 1
    path.write_bytes(data)


def text(path):
    path.write_bytes(b"no archive at all")


def single(path):
    with open(path, "wb") as file:
        np.save(file, np.zeros(3))


def without_step(path):
    with np.load(path) as saved:
        kept = {name: saved[name] for name in saved.files if name != "step"}
    np.savez(path, **kept)


def not_an_array(path):
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("v99.npy", b"nothing")


@pytest.mark.parametrize("damage", [empty, cut, flipped, text, single, without_step, not_an_array])
def test_damaged_checkpoint_is_named_and_nothing_is_taken_from_it(damage, tmp_path):
    first = trainer(tmp_path)
    first.step = 7
    first.save()
    damage(tmp_path / "checkpoint.npz")
    other = trainer(tmp_path)
    before = [np.array(v) for v in other.model.weights]
    with pytest.raises(ValueError, match=r"checkpoint\.npz") as caught:
        other.restore()
    assert "elete it to begin anew" in str(caught.value)
    assert other.step == 0
    for mine, kept in zip(other.model.weights, before):
        np.testing.assert_array_equal(mine, kept)


@pytest.mark.skipif(sys.platform == "win32", reason="limits of file sizes are POSIX")
def test_full_disk_keeps_the_checkpoint_before_and_nothing_else(tmp_path):
    """A limit on the size of files makes writing fail as a full disk does."""
    first = trainer(tmp_path)
    first.save()
    before = (tmp_path / "checkpoint.npz").read_bytes()
    script = f"""
import resource, signal, sys
sys.path.insert(0, {str(ROOT / "tests")!r})
from test_loop import trainer
from pathlib import Path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
other = trainer(Path({str(tmp_path)!r}))
resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))
try:
    other.save()
except OSError:
    print("refused")
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "refused\n", done.stderr
    assert os.listdir(tmp_path) == ["checkpoint.npz"]
    assert (tmp_path / "checkpoint.npz").read_bytes() == before


@pytest.mark.parametrize("forever", [False, True], ids=["one-call", "all-later-calls"])
def test_whichever_call_of_the_system_fails_a_whole_checkpoint_stays(tmp_path, forever):
    saved, read, calls = trainer(tmp_path), trainer(tmp_path), 0

    def save(step: int):
        saved.step = step
        saved.save()

    for call, error in refusals(lambda: save(2), lambda: save(1), forever=forever):
        calls += 1
        assert read.restore() and read.step == (2 if error is None else 1), call
        assert error is None or isinstance(error, OSError), call
    assert calls > 5
