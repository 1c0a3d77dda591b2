"""What commands say, and keeping TensorFlow from saying more."""

import json
from collections.abc import Sequence

from tfsd.cli.parsing import UsageError
from tfsd.errors import CheckpointError, printable

_MAX_MESSAGE = 1000  # letters of an error; a prompt in it may have many more


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
    """Imports TensorFlow and hides what its Python part logs below errors; `tfsd.startup` hides the rest."""
    import tensorflow as tf

    tf.get_logger().setLevel("ERROR")


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
