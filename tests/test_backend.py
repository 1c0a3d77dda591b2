"""Keras on another backend: one line at loading and at the command line, and training is not asked."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tfsd.runtime.backend import BackendError, backend, require_tensorflow

ROOT = Path(__file__).parents[1]
LOADS = ["import tfsd; tfsd.load", "import tfsd; tfsd.text_to_image('a star')", "from tfsd import StableDiffusion"]


def run(*command, **environment) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KERAS_")} | environment
    environment["PYTHONPATH"] = str(ROOT)
    return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("name", ["jax", "torch"])
@pytest.mark.parametrize("script", LOADS, ids=["load", "text_to_image", "class"])
def test_loading_says_in_one_line_which_backend_is_needed(script, name):
    done = run("-c", script, KERAS_BACKEND=name)
    last = done.stderr.strip().splitlines()[-1]
    assert "need Keras on TensorFlow" in last and f"is '{name}' (KERAS_BACKEND is set). Set KERAS_BACKEND=tensorflow" in last
    assert "No module named" not in done.stderr


@pytest.mark.parametrize(
    "argv",
    [("a star",), ("export", "saved_model", "--out", "x"), ("export", "tflite", "--out", "x"), ("eval",), ("serve", ".")],
    ids=lambda argv: argv[0],
)
def test_commands_that_draw_say_it_too(argv, tmp_path):
    done = run("-m", "tfsd", *argv, KERAS_BACKEND="jax")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("tfsd: ") and done.stderr.count("\n") == 1 and "need Keras on TensorFlow" in done.stderr


def test_the_file_of_keras_is_read_as_well(tmp_path):
    (tmp_path / "keras.json").write_text(json.dumps({"backend": "jax"}))
    done = run("-c", LOADS[0], KERAS_HOME=str(tmp_path))
    assert f"is 'jax' ({tmp_path / 'keras.json'} says so)" in done.stderr


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"backend": "tensorflow"}'])
def test_a_file_that_says_nothing_else_leaves_tensorflow(text, tmp_path):
    (tmp_path / "keras.json").write_text(text)
    script = "from tfsd.runtime.backend import *; require_tensorflow(); print(backend()[0])"
    assert run("-c", script, KERAS_HOME=str(tmp_path)).stdout.strip() == "tensorflow"


def test_the_backend_that_is_imported_counts(monkeypatch):
    import keras

    monkeypatch.setenv("KERAS_BACKEND", "jax")  # too late: Keras has read it
    assert backend() == (keras.config.backend(), "Keras is imported")
    require_tensorflow()
    monkeypatch.delitem(sys.modules, "keras")
    with pytest.raises(BackendError):
        require_tensorflow()


def test_training_is_not_kept_from_another_backend():
    """Keras itself fails here, where JAX is not installed, and not this package."""
    done = run("-m", "tfsd", "--debug", "train", "x", "--steps", "1", KERAS_BACKEND="jax")
    assert "need Keras on TensorFlow" not in done.stderr
    assert "jax" in done.stderr
