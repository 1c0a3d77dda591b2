"""The tests themselves: what they are called does not depend on when, where or in which process they are collected."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# A clock that is three years off, as far as modules ask `time.time`: gzip does, for the header of what it compresses.
COLLECT = """
import sys, time
real, ahead = time.time, float(sys.argv.pop(1))
time.time = lambda: real() + ahead
import pytest
sys.exit(pytest.main(["--collect-only", "-q", "-n", "0", "-m", "", "-p", "no:cacheprovider", *sys.argv[1:]]))
"""


def collect(folder: Path, hash_seed: int, clock: float, *arguments: str) -> tuple[list[str], str]:
    """Returns the names of all tests below `folder`, in order, and what pytest said besides."""
    command = [sys.executable, "-c", COLLECT, str(clock), *arguments]
    environment = os.environ | {"PYTHONHASHSEED": str(hash_seed)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    lines = done.stdout.splitlines()
    return [line for line in lines if "::" in line], lines[-1]


@pytest.mark.slow
def test_names_and_order_of_tests_are_the_same_at_any_time_and_for_any_hash_seed():
    first, _ = collect(ROOT, 0, 0.0)
    second, _ = collect(ROOT, 12345, 1e8)
    assert len(first) > 3000
    assert first == second
    assert len(set(first)) == len(first)


@pytest.mark.parametrize("body", ["time.time()", "hash('a')"])
def test_names_that_depend_on_time_or_hash_seed_are_found(tmp_path, body):
    (tmp_path / "test_it.py").write_text(f"import time, pytest\n@pytest.mark.parametrize('x', [{body}])\ndef test_it(x): pass\n")
    assert collect(tmp_path, 0, 0.0)[0] != collect(tmp_path, 1, 1e8)[0]
