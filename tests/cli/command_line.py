"""What the tests of the command share beside its fixtures."""

import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
LONG = "a red star, " * 30  # 122 tokens


def toy(*argv):
    return (*argv, "--model", "toy", "--no-jit")


def made(folder) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name != "toy")


def one_line(text: str) -> bool:
    return text.startswith("tfsd: ") and text.endswith("\n") and text.count("\n") == 1


def start(*argv, output=subprocess.PIPE, extra=None, **kwargs) -> subprocess.Popen:
    """Starts the command in a process of its own, with `extra` in its environment."""
    command = [sys.executable, "-m", "tfsd", *argv]
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"} | (extra or {})
    kwargs |= {"stdout": output, "stderr": subprocess.PIPE, "text": True}
    # A shell's background jobs, and so these tests in one, are born deaf to Ctrl-C; the command under test must not be.
    return subprocess.Popen(command, env=env, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), **kwargs)
