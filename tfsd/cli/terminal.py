"""Output of the commands: errors, warnings, tables and progress, without what TensorFlow logs."""

import contextlib
import errno
import json
import os
import sys
import warnings
from collections.abc import Iterator, Sequence

from tfsd.cli.parsing import UsageError, with_flags
from tfsd.errors import CheckpointError, NotFiniteError, TfsdWarning, printable
from tfsd.progress import Stages, answering_interrupts, aside
from tfsd.runtime.backend import BackendError, require_tensorflow
from tfsd.runtime.private import VersionError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_MAX_MESSAGE = 1000  # letters of an error; a prompt in it may have many more


def cut(message: str) -> str:
    """Returns a message, cut if it is too long to read."""
    return message if len(message) <= _MAX_MESSAGE else message[:_MAX_MESSAGE] + "..."


def describe(error: Exception) -> tuple[int, str]:
    """Returns the exit status and the line for an error."""
    lines = [line.strip() for line in _text(error).splitlines() if line.strip()]
    message = lines[0] if lines else type(error).__name__
    message += "" if message.endswith((".", "?", ")")) else "."
    message = cut(message)
    if isinstance(error, (UsageError, ValueError)):  # the functions behind the commands check their arguments with ValueError
        return 2, message
    if isinstance(error, (CheckpointError, OSError, BackendError, VersionError, NotFiniteError)):
        return 1, message
    if isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError":
        return 1, "out of memory. Smaller images, fewer at once (--batch) or --dtype bfloat16 take less."
    return 1, f"{type(error).__name__}: {message.rstrip('.')} (--debug shows where)"


def _text(error: Exception) -> str:
    """Returns what an error says; one of the system without its number, and with what to do about a full disk."""
    text = str(error)
    if not isinstance(error, OSError) or not error.strerror or not text.startswith("[Errno"):
        return text
    place = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
    return f"{place}{error.strerror}.{' Make room on that disk.' if error.errno in _FULL else ''}"


class OutputError(OSError):
    """Standard output that cannot be written."""


@contextlib.contextmanager
def _naming_output() -> Iterator[None]:
    try:
        yield
    except (BrokenPipeError, OutputError):
        raise
    except OSError as error:
        advice = "Make room on its disk, or redirect it to another" if error.errno in _FULL else "Redirect it to a file"
        raise OutputError(f"standard output cannot be written: {error.strerror or error}. {advice}.") from error


class _Output:
    """A text stream whose errors name standard output."""

    def __init__(self, stream):
        self._stream = stream

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with _naming_output():
            return self._stream.write(text)

    def flush(self):
        with _naming_output():
            self._stream.flush()


@contextlib.contextmanager
def standard_output() -> Iterator[None]:
    """Writes what is printed to standard output to the end of the body; raises `OutputError` where that fails."""
    if sys.stdout is None:
        yield
        return
    with contextlib.redirect_stdout(_Output(sys.stdout)):
        try:
            yield
        finally:
            try:
                sys.stdout.flush()
            except OSError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else Python complains at exit that it cannot flush
                raise


def write_bytes(data: bytes):
    """Writes bytes to standard output. Raises: `OutputError`."""
    with _naming_output():
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


def print_path(path):
    """Prints the path of what was written, with the very bytes of a name that is not UTF-8, so that a shell can use it."""
    text = os.fspath(path)
    with aside():
        if any("\udc80" <= character <= "\udcff" for character in text) and hasattr(sys.stdout, "buffer"):
            write_bytes(os.fsencode(text) + b"\n")
        else:
            print(text, flush=True)


def say(message: str):
    """Writes one line to standard error, above the line that shows progress."""
    with aside():
        print(f"tfsd: {printable(message)}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def own_warnings(flags: dict[str, str], *, everything: bool) -> Iterator[None]:
    """Shows what this package warns of, each text once and on one line, and nothing that its libraries warn of.

    `flags` are the options as they were typed, for arguments that a warning names. With `everything`, Python shows all.
    """
    told = set()

    def show(message, category, *_):
        text = with_flags(" ".join(str(message).split()), flags)
        if issubclass(category, TfsdWarning) and text not in told:
            told.add(text)
            say(f"warning: {cut(text)}")

    with warnings.catch_warnings():
        warnings.simplefilter("default" if everything else "ignore")
        if not everything:
            warnings.simplefilter("always", TfsdWarning)
            warnings.showwarning = show
        yield


@contextlib.contextmanager
def stages(quiet: bool, *, keep: bool = False) -> Iterator[Stages]:
    """Shows what a long command does, and answers Ctrl-C at once."""
    with Stages(not quiet, keep=keep) as shown, answering_interrupts(shown, say):
        yield shown


def quiet_tensorflow(shown: Stages | None = None, *, drawing: bool = True):
    """Imports TensorFlow, as a stage of `shown`, and hides what it logs in Python below errors; `runtime.startup` hides the rest.

    Raises: `BackendError` if the command is `drawing`, or exports what draws, and Keras runs on something else.
    """
    if drawing:
        require_tensorflow()
    if shown is not None and "tensorflow" not in sys.modules:
        shown("importing TensorFlow")
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
