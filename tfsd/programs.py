"""Functions that are compiled once for every set of shapes, and the process in which that can be done."""

import functools
import os
import threading
from collections.abc import Callable
from typing import Any

import tensorflow as tf

_process: int | None = None  # the one in which TensorFlow's threads run


class ForkError(RuntimeError):
    """This process was forked from one in which TensorFlow had begun to compute: its threads are not here."""


def require_own_threads():
    """Raises `ForkError` in a process that was forked after a model was loaded: there TensorFlow would wait for ever."""
    global _process
    if _process is None:
        _process = os.getpid()
    elif _process != os.getpid():
        raise ForkError(
            f"This process ({os.getpid()}) was forked from one ({_process}) that had loaded a model, and TensorFlow cannot "
            'compute here. Load models after the fork alone, or use multiprocessing.get_context("spawn").'
        )


class Programs:
    """A function of tensors that is traced, and compiled with XLA if `jit_compile`, once for each set of shapes.

    Each set has a `tf.function` to itself. One for all would compute the same, but TensorFlow warns of a function that is
    traced for one call in two, as happens to whoever tries several sizes; it counts by Python code, unless it meets a partial.
    """

    def __init__(self, function: Callable, *, jit_compile: bool):
        self._function, self._jit_compile = function, jit_compile
        self._programs: dict[tuple, Any] = {}
        self._lock = threading.Lock()

    def __call__(self, *arguments):
        """Returns what the function returns."""
        leaves = tf.nest.flatten(arguments)
        shapes = tuple(tuple(leaf.shape) if hasattr(leaf, "shape") else leaf for leaf in leaves)
        with self._lock:
            if shapes not in self._programs:
                own = functools.partial(self._function)
                self._programs[shapes] = tf.function(own, jit_compile=self._jit_compile, autograph=False)
        return self._programs[shapes](*arguments)

    def experimental_get_tracing_count(self) -> int:
        """Returns how often the function was traced, as `tf.function`'s method of this name."""
        return sum(one.experimental_get_tracing_count() for one in list(self._programs.values()))
