"""TensorFlow's registry of gradients, which is never emptied: what it holds keeps its graph and all weights for ever."""

import sys


def custom_gradients() -> set[str]:
    """Returns the names in the registry that traced calls of `tf.custom_gradient` functions have added, one each.

    The registry is private, as of TensorFlow 2.21; `require_registry` says when it has moved.
    """
    if "tensorflow" not in sys.modules:
        return set()
    from tensorflow.python.framework import ops

    return {name for name in ops.gradient_registry.list() if name.startswith("CustomGradient")}


def require_registry():
    """Fails unless a custom gradient shows in `custom_gradients`."""
    import tensorflow as tf

    @tf.custom_gradient
    def unchanged(x):
        return x, lambda upstream: upstream

    try:
        before = custom_gradients()
        tf.function(unchanged).get_concrete_function(tf.constant(1.0))
        added = len(custom_gradients() - before)
    except (ImportError, AttributeError) as error:
        added = error
    assert added == 1, (
        f"TensorFlow {tf.__version__} does not keep custom gradients in tensorflow.python.framework.ops.gradient_registry as "
        f"tests/gradient_registry.py assumes ({added}). Find where they are registered, and whether they are freed."
    )
