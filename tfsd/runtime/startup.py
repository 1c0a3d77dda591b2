"""Keeps TensorFlow from writing to standard error while it starts, wherever it is imported from."""

import contextlib
import functools
import os
import sys
from collections.abc import Iterator

LEVEL = "TF_CPP_MIN_LOG_LEVEL"  # 0 shows everything, 1 hides information, 2 warnings, 3 errors


def quiet_imports() -> None:
    """Makes the next `import tensorflow` a quiet one, unless it was imported before or the user set `LEVEL` below 2.

    TensorFlow reads `LEVEL` when it is imported, so it is set for that moment alone. Some lines are written past it:
    standard error leads nowhere meanwhile. Importing it here instead would cost users of the light modules seconds.
    """
    if "tensorflow" not in sys.modules and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder:
    """Finds TensorFlow as the other finders do, and lets its module run in silence."""

    def find_spec(self, name: str, path=None, target=None):
        if name != "tensorflow":
            return None
        specs = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader.exec_module = functools.partial(_run_quietly, spec.loader.exec_module)  # type: ignore[method-assign]
        return spec


def wants_information() -> bool:
    """Tells whether the user set `LEVEL` so that TensorFlow, and what belongs to it, says more than warnings."""
    return os.environ.get(LEVEL, "3") in ("0", "1")


def _run_quietly(run, module):
    if wants_information():
        run(module)
        return
    given = os.environ.get(LEVEL)
    os.environ[LEVEL] = given or "3"  # set to nothing, it is not set
    try:
        with no_stderr():
            run(module)
    finally:
        if given is None:
            os.environ.pop(LEVEL, None)
        else:
            os.environ[LEVEL] = given


@contextlib.contextmanager
def no_stderr() -> Iterator[None]:
    """Lets what is written to standard error, by libraries in C++ too, lead nowhere."""
    if sys.stderr is not None:
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
