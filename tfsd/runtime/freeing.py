"""Returns the memory of large objects to the system."""

import ctypes
import gc
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any


def free_memory():
    """Frees what only reference cycles keep, and hands the freed memory to the system, where glibc can do that.

    Layers of Keras and functions of TensorFlow are such cycles. glibc keeps freed memory for itself without `malloc_trim`,
    and a process that loads one model after another would grow by that.
    """
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)


class OwnHeap:
    """A thread in which something large is made, and which waits until that has gone.

    glibc gives a thread a heap that no other living thread uses, as long as there are few threads. What is made there lies
    apart from what was made in others and leaves no holes between that, so that all of its memory can be given back.
    """

    def __init__(self, name: str):
        self._name = name
        self._gone = threading.Event()

    def make(self, call: Callable[[], object]):
        """Returns what `call` returns in the thread, or raises what it raises. To be called once."""
        made: list[tuple[Any, BaseException | None]] = []
        done = threading.Event()
        threading.Thread(target=self._make, args=(call, made, done), name=self._name, daemon=True).start()
        done.wait()
        value, error = made.pop()  # the thread keeps the list
        if error is not None:
            raise error
        return value

    def _make(self, call: Callable[[], object], made: list, done: threading.Event):
        try:
            made.append((call(), None))
        except BaseException as error:  # of the caller's, whatever it is
            made.append((None, error))
            self._gone.set()
        done.set()
        self._gone.wait()

    def close(self):
        """Ends the thread, whose heap the next one may use; safe to call again."""
        self._gone.set()


def free_tables_with(owner, model):
    """Destroys the lookup tables of a SavedModel that was loaded when `owner` goes, without which none can be used.

    TensorFlow keeps such tables by their names until the process ends, whether or not the model is still there.
    """
    import tensorflow as tf

    descendants = tf.train.TrackableView(model).descendants()
    tables = [found for found in descendants if isinstance(found, tf.saved_model.experimental.TrackableResource)]
    weakref.finalize(owner, _destroy, [table.resource_handle for table in tables]).atexit = False


def _destroy(handles: list):
    import tensorflow as tf

    with tf.init_scope():  # the garbage collector may call this while a function is traced
        for handle in handles:
            tf.raw_ops.DestroyResourceOp(resource=handle, ignore_lookup_error=True)
