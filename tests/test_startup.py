"""TensorFlow starts in silence from Python as from the command line, unless the user asked for its lines."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DRAW = "import tensorflow as tf; print(tf.function(lambda x: x + 1, jit_compile=True)(tf.constant(1.0)).numpy())"


def python(script: str, level: str | None = None) -> subprocess.CompletedProcess:
    env = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"} | {"PYTHONPATH": str(ROOT)}
    env |= {} if level is None else {"TF_CPP_MIN_LOG_LEVEL": level}
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env)


FIRST = ["import tfsd.converters.saved_model.plan_bank", "import tfsd.noise", "import tfsd", "import tfsd.serving.server.engine"]


@pytest.mark.parametrize("first", [FIRST[0], *(pytest.param(one, marks=pytest.mark.slow) for one in FIRST[1:])])
def test_tensorflow_writes_nothing_while_it_starts_and_compiles(first):
    done = python(f"{first}; {DRAW}")
    assert (done.returncode, done.stdout, done.stderr) == (0, "2.0\n", "")


@pytest.mark.slow
@pytest.mark.parametrize("level", ["0", "1"])
def test_level_that_the_user_set_is_kept(level):
    done = python(f"import tfsd.noise; {DRAW}; import os; print(os.environ['TF_CPP_MIN_LOG_LEVEL'])", level)
    assert done.stdout.split() == ["2.0", level]
    assert "InitializeLog" in done.stderr or "tensorflow" in done.stderr


@pytest.mark.slow
def test_tensorflow_that_was_imported_before_is_left_alone():
    done = python(f"import tensorflow, sys; before = list(sys.meta_path); import tfsd; assert sys.meta_path == before; {DRAW}")
    assert (done.returncode, done.stdout) == (0, "2.0\n") and done.stderr != ""


def test_level_and_standard_error_are_as_before():
    script = "import os, sys, tfsd.noise; print('TF_CPP_MIN_LOG_LEVEL' in os.environ)"
    done = python(f"{script}; os.write(2, b'low'); print('high', file=sys.stderr)")
    assert (done.stdout, done.stderr) == ("False\n", "lowhigh\n")


def test_tensorflow_is_found_without_being_imported():
    script = "import importlib.util, sys, tfsd; print(bool(importlib.util.find_spec('tensorflow').origin))"
    assert python(f"{script}; print('tensorflow' in sys.modules)").stdout == "True\nFalse\n"
