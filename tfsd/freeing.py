"""Gives memory back to the system when something large has gone."""

import ctypes
import gc
import sys


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
