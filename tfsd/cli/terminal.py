"""What commands say, and keeping TensorFlow from saying more."""

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence

from tfsd.cli.parsing import UsageError
from tfsd.h5 import CheckpointError

_MAX_MESSAGE = 1000  # letters of an error; a prompt in it may have many more


def printable(text: str) -> str:
    """Returns a text on one line in which nothing can steer a terminal: other characters become escapes."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def describe(error: Exception) -> tuple[int, str]:
    """Returns the exit status and the line for an error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    message = lines[0] if lines else type(error).__name__
    message += "" if message.endswith((".", "?", ")")) else "."
    message = message if len(message) <= _MAX_MESSAGE else message[:_MAX_MESSAGE] + "..."
    if isinstance(error, (UsageError, ValueError)):  # the functions behind the commands check their arguments with ValueError
        return 2, message
    if isinstance(error, (CheckpointError, OSError)):
        return 1, message
    if isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError":
        return 1, "out of memory. Smaller pictures, fewer at once (--batch) or --dtype bfloat16 take less."
    return 1, f"{type(error).__name__}: {message.rstrip('.')} (--debug shows where)"


def quiet_tensorflow():
    """Imports TensorFlow without the lines that it writes while it starts; its errors are still shown later.

    Some are written past its own settings, so standard error leads nowhere for that moment.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # at 2 it complains where there is no GPU
    with _no_stderr():
        import tensorflow as tf

    tf.get_logger().setLevel("ERROR")


@contextlib.contextmanager
def _no_stderr() -> Iterator[None]:
    sys.stderr.flush()
    try:
        kept = os.dup(2)
    except OSError:  # closed: nothing to silence
        yield
        return
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def print_json(value):
    """Prints a value as JSON, one line for each of its items."""
    print(json.dumps(value, indent=2, ensure_ascii=True, default=float))


def print_table(rows: Sequence[Sequence[str]], header: Sequence[str]):
    """Prints rows of text in columns."""
    rows = [[printable(str(cell)) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def print_values(values: dict, indent: str = ""):
    """Prints nested values by their names."""
    width = max((len(str(name)) for name in values), default=0)
    for name, value in values.items():
        if isinstance(value, dict):
            print(f"{indent}{printable(str(name))}:")
            print_values(value, indent + "  ")
            continue
        value = value if isinstance(value, str) else json.dumps(value, default=str)
        print(f"{indent}{printable(str(name)).ljust(width)}  {printable(value)}")
