"""Gives memory back to the system when something large has gone."""

import ctypes
import gc
import sys
import weakref


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
