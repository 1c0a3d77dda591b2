"""Functions of an export for a server that runs the sampling loop itself, to report progress and to stop between steps."""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf
from tensorflow.types.experimental import PolymorphicFunction

from tfsd.pipeline import Pipeline, SamplingInputs


class JobFunctions(NamedTuple):
    """The functions for jobs of one batch and size. A state is passed as the list of its tensors."""

    begin: Callable  # tokens, negative tokens [B, L], fields of `SamplingInputs` -> state
    begin_from_contexts: Callable  # conditioning, negative conditioning, fields of `SamplingInputs` -> state
    advance: Callable  # fields of `SamplingInputs`, state, first, last -> the tensors at the front of the state, advanced
    finish: Callable  # latents, the first tensor of the state -> images uint8 [B, H, W, 3], whether they are finite [B]


def job_functions(pipeline: Pipeline, inputs: SamplingInputs, batch: int, height: int, width: int) -> JobFunctions:
    """Returns the functions for `batch` images of a size. They call the programs that the signatures call.

    `inputs`: the specs of what requests are made into.
    """
    shape = pipeline.latent_shape(height, width)
    fields = [tf.TensorSpec([batch, *one.shape[1:]], one.dtype, name=name) for name, one in inputs._asdict().items()]
    tokens = [tf.TensorSpec([batch, pipeline.spec.text[0].length], tf.int32, name=name) for name in ("tokens", "negative_tokens")]
    halves = [pipeline.conditioning_specs(batch, prefix) for prefix in ("", "negative_")]
    contexts = [one for half in halves for one in half.values()]
    structure = None

    def begin_with(positive: dict, negative: dict, values) -> list:
        nonlocal structure
        state = pipeline.begin(SamplingInputs(*values), negative, positive, shape)
        structure = tf.nest.map_structure(lambda leaf: leaf.name, state)
        return tf.nest.flatten(state)

    def begin(tokens, negative, *values):
        return begin_with(pipeline.encode(tokens), pipeline.encode(negative), values)

    def begin_from_contexts(*values):
        each = len(halves[0])
        positive, negative = (dict(zip(halves[0], values[i * each : (i + 1) * each])) for i in range(2))
        return begin_with(positive, negative, values[2 * each :])

    def advance(*values):
        state = tf.nest.pack_sequence_as(structure, values[len(fields) : -2])
        state = pipeline.advance(SamplingInputs(*values[: len(fields)]), state, *values[-2:])
        return [state.latents, *state.history]

    def function(call: Callable, inputs: list) -> PolymorphicFunction:
        return tf.function(call, input_signature=inputs, autograph=False)

    begins = function(begin, tokens + fields)
    leaves = [tf.TensorSpec(leaf.shape, leaf.dtype) for leaf in begins.get_concrete_function().outputs]
    numbers = [tf.TensorSpec([], tf.int32, name=name) for name in ("first", "last")]
    return JobFunctions(
        begin=begins,
        begin_from_contexts=function(begin_from_contexts, contexts + fields),
        advance=function(advance, fields + leaves + numbers),
        finish=function(pipeline.finish, [tf.TensorSpec([batch, *shape], tf.float32, name="latents")]),
    )
