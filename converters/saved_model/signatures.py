"""The signatures of a SavedModel: the same pipeline as in Python, behind inputs that a client can fill in."""

import functools
import inspect
import types
from collections.abc import Callable, Mapping
from pathlib import Path

import tensorflow as tf

from tfsd.arguments.table import ARGUMENTS, TRUNCATED, columns
from tfsd.converters.saved_model.graph_requests import ExportLimits, Requests, Sampling, broadcast_rows, request_defaults
from tfsd.converters.saved_model.job_functions import JobFunctions, job_functions
from tfsd.finite import not_finite
from tfsd.images.encoding import encode_png
from tfsd.pipeline import Pipeline, all_finite
from tfsd.specs import ModelSpec

CHUNK = 5  # steps between two places where a request can be stopped; 0.1 ms each
DEFAULT = "serving_default"  # TensorFlow Serving's key of what a request means that names no signature
_TEXTS = ("prompt", "negative_prompt")
PARALLEL = 64  # images of an exact batch that may be computed side by side; the machine's cores are the real limit


class Signatures(tf.Module):
    """What is exported. Sampling, guidance and noise are the pipeline's; here is what a server needs around them.

    `prepare`, `begin`, `begin_from_contexts`, `advance` and `finish` are for a server that runs the loop itself, to tell of
    progress and to stop: functions of the loaded object, which call the same compiled programs as the signatures. All but
    `prepare` are dictionaries by batch and size: "1x512x512". Files of assets are written to `assets`, where they must last
    until the module is saved.
    """

    def __init__(self, pipeline: Pipeline, limits: ExportLimits, *, assets: Path | None = None, progress: bool = False):
        super().__init__(name="tfsd")
        self.weights = pipeline.tracked
        self.requests = Requests(pipeline.spec, limits, assets=assets, progress=progress)
        # In a namespace, since a tracked pipeline would bring all graphs that Python has traced so far.
        self._own = types.SimpleNamespace(pipeline=pipeline, spec=pipeline.spec, limits=limits)
        self.prepare = _function(self._prepare, self._inputs())
        draw = [functools.partial(self._images, size=size) for size in range(len(limits.sizes))]
        self._own.draw = [tf.function(one, autograph=False, reduce_retracing=True) for one in draw]
        inputs = Sampling.of(self.prepare.get_concrete_function().structured_outputs[3]).inputs
        jobs = {"{}x{}x{}".format(*job): job_functions(pipeline, inputs, *job) for job in self.jobs()}
        for name in JobFunctions._fields:
            setattr(self, name, {job: getattr(functions, name) for job, functions in jobs.items()})

    @property
    def model_spec(self) -> ModelSpec:
        """The spec of the model behind the signatures."""
        return self._own.spec

    def jobs(self) -> list[tuple[int, int, int]]:
        """Returns what `begin`, `advance` and `finish` are compiled for: (images, height, width)."""
        limits = self._own.limits
        batches = (1,) if limits.exact else limits.batch_sizes
        return [(batch, *size) for size in limits.sizes for batch in batches]

    # -- inputs ----------------------------------------------------------------------------------------------------

    def _inputs(self) -> list[tf.TensorSpec]:
        return [tf.TensorSpec([None], kind, name=name) for name, kind in columns().items()]

    def defaults(self) -> dict:
        """Returns the values of inputs that a request leaves out, one row each."""
        values = request_defaults(self._own.spec, self._own.limits)
        return {name: tf.constant([value], columns()[name]) for name, value in values.items()}

    def functions(self) -> dict:
        """Returns the signatures {name: tf.function}."""
        spec, whole = self._own.spec, self._inputs()
        contexts = [one for prefix in ("", "negative_") for one in self._own.pipeline.conditioning_specs(None, prefix).values()]
        latents = tf.TensorSpec([None, None, None, spec.vae.latent_channels], tf.float32, name="latents")
        inputs: dict[Callable, list[tf.TensorSpec]] = {
            self.text_to_png: whole,
            self.text_to_image: whole,
            self.encode: [one for one in whole if one.name == "prompt"],
            self.denoise: contexts + [one for one in whole if ARGUMENTS[one.name].kind != "text"],
            self.decode: [latents],
        }
        functions = {call.__name__: _function(call, specs, self.defaults()) for call, specs in inputs.items()}
        return functions | {DEFAULT: functions["text_to_png"]}  # the same function: nothing is compiled for it

    # -- signatures ------------------------------------------------------------------------------------------------

    def text_to_png(self, **inputs):
        """Prompts to PNG files; images of one request may have different sizes."""
        tokens, negative, cut, plain = self.prepare(**inputs)
        sampling = Sampling.of(plain)
        places = tf.dynamic_partition(tf.range(tf.shape(tokens)[0]), sampling.size, len(self._own.draw))
        files = []
        for draw, place in zip(self._own.draw, places):
            rows = tf.nest.map_structure(lambda value, place=place: tf.gather(value, place), (tokens, negative, sampling))
            files.append(encode_png(self._finite(*draw(*rows))))
        return {"png_bytes": tf.dynamic_stitch(places, files), **cut}

    def text_to_image(self, **inputs):
        """Prompts to images uint8 [B, H, W, 3], all of one size."""
        tokens, negative, cut, plain = self.prepare(**inputs)
        sampling = Sampling.of(plain)
        branches = [lambda draw=draw: self._finite(*draw(tokens, negative, sampling)) for draw in self._own.draw]
        return {"images": tf.switch_case(self.requests.one_size(sampling), branches), **cut}

    def encode(self, prompt):
        """Prompts to contexts float32 [B, L, W]."""
        pipeline = self._own.pipeline
        tokens, truncated = self.requests.texts(prompt, self.requests.batch(prompt=prompt), "prompt")
        made = self._in_batches(pipeline.encode, tokens, pipeline.conditioning_row())
        checked = {name: self._finite(value, all_finite(value), name) for name, value in made.items()}
        return checked | {"truncated_tokens": truncated}

    def denoise(self, context, negative_context, **inputs):
        """Contexts to latents float32 [B, h, w, c], all of one size."""
        given = {"context": context, "negative_context": negative_context}
        batch = self.requests.batch(**given, **inputs)
        sampling = self.requests.sampling(batch, inputs)
        with tf.control_dependencies([self.requests.finite(value, name) for name, value in given.items()]):
            negative, positive = ({"context": broadcast_rows(value, batch)} for value in (negative_context, context))
        sizes = range(len(self._own.limits.sizes))
        branches = [lambda size=size: self._latents(negative, positive, sampling, size) for size in sizes]
        latents = tf.switch_case(self.requests.one_size(sampling), branches)
        return {"latents": self._finite(latents, all_finite(latents))}

    def decode(self, latents):
        """Latents to images uint8 [B, H, W, 3] and PNG files."""
        batch, sizes = self.requests.batch(latents=latents), self._own.limits.sizes
        with tf.control_dependencies([batch, self.requests.finite(latents, "latents")]):
            which = self.requests.size_of_latents(latents)
        images = tf.switch_case(which, [lambda size=size: self._decoded(latents, size) for size in range(len(sizes))])
        return {"images": images, "png_bytes": encode_png(images)}

    def _decoded(self, latents, size: int):
        height, width = self._own.limits.sizes[size]
        latents = tf.ensure_shape(latents, [None, *self._own.pipeline.latent_shape(height, width)])
        images, finite = self._in_batches(self._own.pipeline.finish, latents, self._checked_image(height, width))
        return self._finite(images, finite, "images", "latents")

    def _finite(self, values, finite, what: str = "latents", given: str = ""):
        """Returns `values`, after the check that `finite` [B] holds. It runs outside XLA, which drops assertions silently.

        The error is INVALID_ARGUMENT, as TensorFlow's operations have no other; a server
        may make INTERNAL of it.
        """
        message = not_finite(what, self._own.pipeline.dtype, given)
        with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(finite), [message])]):
            return tf.identity(values)

    @staticmethod
    def _checked_image(height: int, width: int) -> tuple[tf.TensorSpec, tf.TensorSpec]:
        """What is made of one row: an image, and whether it is finite."""
        return tf.TensorSpec([height, width, 3], tf.uint8), tf.TensorSpec([], tf.bool)

    # -- what they share -------------------------------------------------------------------------------------------

    def _prepare(self, **inputs):
        """Returns tokens and negative tokens [B, L], how many tokens were cut off {output's name: [B]}, and the sampling."""
        batch = self.requests.batch(**inputs)
        sampling = self.requests.sampling(
            batch, {name: value for name, value in inputs.items() if ARGUMENTS[name].kind != "text"}
        )
        (tokens, cut), (negative, negative_cut) = (self.requests.texts(inputs[name], batch, name) for name in _TEXTS)
        return tokens, negative, dict(zip(TRUNCATED, (cut, negative_cut))), sampling.plain()

    def _in_batches(self, call: Callable, rows, one_row):
        """Returns `call(rows)` for a nest of rows [B, ...], in batches of the allowed sizes, or each row alone.

        `one_row`: nest of TensorSpecs, what one row becomes.
        """
        limits, nest = self._own.limits, tf.nest.map_structure
        if limits.exact:

            def alone(row):
                return nest(lambda value: value[0], call(nest(lambda value: value[None], row)))

            return tf.map_fn(alone, rows, fn_output_signature=one_row, parallel_iterations=PARALLEL)
        count = tf.shape(tf.nest.flatten(rows)[0])[0]

        def filled_up(batch: int):
            place = tf.minimum(tf.range(batch), count - 1)
            full = nest(lambda value: tf.ensure_shape(tf.gather(value, place), [batch, *value.shape[1:]]), rows)
            return nest(lambda value: value[:count], call(full))

        def none():
            return nest(lambda spec: tf.zeros([0, *spec.shape], spec.dtype), one_row)

        which = tf.reduce_sum(tf.cast(count > tf.constant((0, *limits.batch_sizes[:-1])), tf.int32))
        return tf.switch_case(which, [none, *(lambda batch=batch: filled_up(batch) for batch in limits.batch_sizes)])

    def _images(self, tokens, negative, sampling: Sampling, size: int):
        """Returns images [B, H, W, 3], and whether they are finite [B], for tokens [B, L] and negative tokens."""
        pipeline, (height, width) = self._own.pipeline, self._own.limits.sizes[size]

        def draw(rows):
            tokens, negative, sampling = rows
            return pipeline.finish(self._loop(pipeline.encode(negative), pipeline.encode(tokens), sampling, height, width))

        return self._in_batches(draw, (tokens, negative, sampling), self._checked_image(height, width))

    def _latents(self, negative: dict, positive: dict, sampling: Sampling, size: int):
        """Returns latents [B, h, w, c] for the conditioning of negative prompts and of prompts."""
        height, width = self._own.limits.sizes[size]
        shape = self._own.pipeline.latent_shape(height, width)

        def latents(rows):
            negative, positive, sampling = rows
            return self._loop(negative, positive, sampling, height, width)

        return self._in_batches(latents, (negative, positive, sampling), tf.TensorSpec(shape, tf.float32))

    def _loop(self, negative: dict, positive: dict, sampling: Sampling, height: int, width: int):
        """Returns the latents after all steps, made in chunks: a compiled program cannot be stopped, but its caller can."""
        pipeline, steps, inputs = self._own.pipeline, tf.reduce_max(sampling.steps), sampling.inputs
        begun = pipeline.begin(inputs, negative, positive, pipeline.latent_shape(height, width))

        def body(first, latents, history):
            last = tf.minimum(first + CHUNK, steps)
            state = pipeline.advance(inputs, begun._replace(latents=latents, history=history), first, last)
            return last, state.latents, state.history

        return tf.while_loop(lambda first, *_: first < steps, body, (0, begun.latents, begun.history))[1]


def _function(call: Callable, inputs: list[tf.TensorSpec], defaults: Mapping[str, tf.Tensor] = types.MappingProxyType({})):
    """Returns `call`, which takes its inputs by name, as a `tf.function` whose signature has these inputs and defaults.

    TensorFlow looks for names and defaults of a signature in the Python function's own, which is made here from the specs.
    """
    names = [one.name for one in inputs]

    def with_names(*values):
        return call(**dict(zip(names, values)))

    kind, empty = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.empty
    parameters = [inspect.Parameter(name, kind, default=defaults.get(name, empty)) for name in names]
    with_names.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # which inspect reads
    with_names.__name__ = call.__name__
    return tf.function(with_names, input_signature=inputs, autograph=False)
