"""Runs a function again and again while the system refuses its first, second, ... call, or the process is killed there."""

import builtins
import contextlib
import errno
import functools
import itertools
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

CALLS = (
    *((os, name) for name in ("mkdir", "rename", "replace", "link", "unlink", "rmdir", "chmod", "fsync", "open", "listdir")),
    (builtins, "open"),
)


@contextlib.contextmanager
def system_calls(at: Callable[[int, str], None]) -> Iterator[list[str]]:
    """Calls `at(number, name)` before each call of the system that changes files; yields the names of all so far."""
    seen: list[str] = []

    def wrapped(name: str, call: Callable):
        def run(*args, **options):
            seen.append(name)
            at(len(seen) - 1, name)
            return call(*args, **options)

        return run

    with contextlib.ExitStack() as stack:
        for module, name in CALLS:
            stack.enter_context(mock.patch.object(module, name, wrapped(name, getattr(module, name))))
        yield seen


def refusals(run: Callable[[], object], reset: Callable[[], object], *, forever: bool) -> Iterator[tuple[str, Exception | None]]:
    """Yields, for every call that `run` makes, the call's name and what `run` raised when the system refused it.

    `forever`: all later calls are refused as well.
    """
    for number in itertools.count():
        reset()
        refused: list[str] = []
        error = None
        with system_calls(functools.partial(_refuse, number, forever, refused)):
            try:
                run()
            except Exception as caught:
                error = caught
        if not refused:
            return
        yield f"{number}: {refused[0]}", error


def _refuse(number: int, forever: bool, refused: list[str], place: int, name: str):
    if place == number or forever and place > number:
        refused.append(name)
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def kills(run: Callable[[], object], reset: Callable[[], object]) -> Iterator[str]:
    """Yields after the process that executes `run` was killed at its first call of the system, its second, and so on.

    For processes without threads: it forks.
    """
    for number in itertools.count():
        reset()
        child = os.fork()
        if child == 0:
            with system_calls(functools.partial(_kill, number)):
                run()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            return
        yield f"killed at call {number}"


def _kill(number: int, place: int, name: str):
    if place == number:
        os.kill(os.getpid(), signal.SIGKILL)


def entries(folder: Path) -> list[str]:
    """The names in a folder, hidden ones too."""
    return sorted(path.name for path in folder.iterdir())
