"""Calling the signatures of an export as TensorFlow's own users do."""

import functools

import tensorflow as tf


@functools.lru_cache(maxsize=1)
def _loaded(folder: str):
    return tf.saved_model.load(folder)


def called(folder, signature: str, inputs: dict) -> dict:
    """Returns the outputs of a signature as arrays."""
    outputs = _loaded(str(folder)).signatures[signature](**{name: tf.constant(value) for name, value in inputs.items()})
    return {name: value.numpy() for name, value in outputs.items()}
