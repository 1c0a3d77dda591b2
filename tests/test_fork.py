"""A process that was forked from one that has drawn says so, where TensorFlow would wait for ever."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = """
import os, sys, tfsd
model = tfsd.load(sys.argv[1], jit_compile=False)
model.text_to_image("a red star", num_steps=1, seed=1)
for call in sys.argv[2:]:
    if (child := os.fork()) == 0:
        try:
            eval(call)
        except RuntimeError as error:
            print(type(error).__name__, error, flush=True)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
print(model.text_to_image("a red star", num_steps=1, seed=1).shape)
"""
CALLS = ['model.text_to_image("a", num_steps=1)', 'model.encode_text("a")', "tfsd.load(sys.argv[1])", 'tfsd.text_to_image("a")']


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="this system does not fork")
def test_a_forked_child_gets_an_error_and_the_parent_goes_on(toy_folder):
    command = [sys.executable, "-c", SCRIPT, str(toy_folder), *CALLS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)  # else it hangs
    *children, parent = done.stdout.strip().splitlines()
    assert len(children) == len(CALLS), children
    for child in children:
        assert child.startswith("ForkError This process (") and "had loaded a model" in child and '"spawn"' in child
    assert parent == "(1, 32, 32, 3)"
