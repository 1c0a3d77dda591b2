"""The signatures of a SavedModel: the same pipeline as in Python, behind inputs that a client can fill in."""

import functools
import inspect
import types
from collections.abc import Callable
from pathlib import Path

import tensorflow as tf

from converters.requests import Drawing, Limits, Requests, rows_of
from tfsd.arguments import TRUNCATED
from tfsd.encoding import encode_png
from tfsd.finite import not_finite
from tfsd.pipeline import Pipeline, Request, all_finite
from tfsd.specs import ModelSpec

CHUNK = 5  # steps between two places where a request can be stopped; 0.1 ms each
DEFAULT = "serving_default"  # TensorFlow Serving's key of what a request means that names no signature
PARALLEL = 64  # pictures of an exact batch that may be computed side by side; the machine's cores are the real limit


class Signatures(tf.Module):
    """What is exported. Sampling, guidance and noise are the pipeline's; here is what a server needs around them.

    `prepare`, `advance` and `advance_contexts`, which begins with contexts as `denoise` does, are for a server that runs the
    loop itself, to tell of progress and to stop: functions of the loaded object, which run the same compiled program as the
    signatures. Files of assets are written to `assets`, where
    they must last until the module is saved.
    """

    def __init__(self, pipeline: Pipeline, limits: Limits, *, assets: Path | None = None, progress: bool = False):
        super().__init__(name="tfsd")
        self.weights = pipeline.tracked
        self.requests = Requests(pipeline.spec, limits, assets=assets, progress=progress)
        decode = tf.function(pipeline.decode, jit_compile=pipeline.jit_compile, autograph=False)
        # In a namespace, since a tracked pipeline would bring all graphs that Python has traced so far.
        self._own = types.SimpleNamespace(pipeline=pipeline, spec=pipeline.spec, limits=limits, decode=decode)
        self.prepare = tf.function(self._prepare, input_signature=self._text_inputs() + self._drawing_inputs(), autograph=False)
        draw = [functools.partial(self._pictures, size=size) for size in range(len(limits.sizes))]
        self._own.draw = [tf.function(one, autograph=False, reduce_retracing=True) for one in draw]
        self.advance = {f"{batch}x{height}x{width}": self._advance(batch, height, width) for batch, height, width in self.jobs()}
        self.advance_contexts = {name: self._advance(*job, own_contexts=True) for name, job in zip(self.advance, self.jobs())}

    @property
    def model_spec(self) -> ModelSpec:
        """The spec of the model behind the signatures."""
        return self._own.spec

    def jobs(self) -> list[tuple[int, int, int]]:
        """Returns what `advance` is compiled for: (pictures, height, width)."""
        limits = self._own.limits
        batches = (1,) if limits.exact else limits.batch_sizes
        return [(batch, *size) for size in limits.sizes for batch in batches]

    # -- inputs ----------------------------------------------------------------------------------------------------

    def _text_inputs(self) -> list[tf.TensorSpec]:
        return [tf.TensorSpec([None], tf.string, name=name) for name in ("prompt", "negative_prompt")]

    def _drawing_inputs(self) -> list[tf.TensorSpec]:
        kinds = {"seed": tf.int64, "index": tf.int32, "guidance_scale": tf.float32, "num_steps": tf.int32}
        kinds |= {"sampler": tf.string, "height": tf.int32, "width": tf.int32}
        return [tf.TensorSpec([None], kind, name=name) for name, kind in kinds.items()]

    def defaults(self) -> dict:
        """Returns the values of inputs that a request leaves out, one row each."""
        spec, limits = self._own.spec, self._own.limits
        return {
            "negative_prompt": tf.constant([""]),
            "seed": tf.constant([0], tf.int64),
            "index": tf.constant([0]),
            "guidance_scale": tf.constant([spec.default_guidance], tf.float32),
            "num_steps": tf.constant([min(spec.default_steps, limits.max_steps)]),
            "sampler": tf.constant([spec.default_sampler]),
            "height": tf.constant([limits.sizes[0][0]]),
            "width": tf.constant([limits.sizes[0][1]]),
        }

    def functions(self) -> dict:
        """Returns the signatures {name: tf.function}."""
        spec, whole = self._own.spec, self._text_inputs() + self._drawing_inputs()
        context = [None, spec.text.length, spec.denoiser.context_width]
        contexts = [tf.TensorSpec(context, tf.float32, name=name) for name in ("context", "negative_context")]
        latents = tf.TensorSpec([None, None, None, spec.vae.latent_channels], tf.float32, name="latents")
        inputs = {
            self.text_to_png: whole,
            self.text_to_image: whole,
            self.encode: whole[:1],
            self.denoise: contexts + self._drawing_inputs(),
            self.decode: [latents],
        }
        functions = {
            call.__name__: tf.function(self._with_defaults(call), input_signature=specs, autograph=False)
            for call, specs in inputs.items()
        }
        return functions | {DEFAULT: functions["text_to_png"]}  # the same function: nothing is compiled for it

    def _with_defaults(self, method: Callable) -> Callable:
        """Returns the method with default arguments, which is where TensorFlow looks for the defaults of a signature."""
        known, function = self.defaults(), method.__func__
        values = tuple(known[name] for name in inspect.signature(method).parameters if name in known)
        copy = types.FunctionType(function.__code__, function.__globals__, function.__name__, values, function.__closure__)
        return types.MethodType(copy, self)

    # -- signatures ------------------------------------------------------------------------------------------------

    def text_to_png(self, prompt, negative_prompt, seed, index, guidance_scale, num_steps, sampler, height, width):
        """Prompts to PNG files; pictures of one request may have different sizes."""
        arguments = prompt, negative_prompt, seed, index, guidance_scale, num_steps, sampler, height, width
        tokens, negative, cut, drawing = self.prepare(*arguments)
        places = tf.dynamic_partition(tf.range(tf.shape(tokens)[0]), drawing.size, len(self._own.draw))
        files = []
        for draw, place in zip(self._own.draw, places):
            rows = tf.nest.map_structure(lambda value, place=place: tf.gather(value, place), (tokens, negative, drawing))
            files.append(encode_png(self._finite(*draw(*rows))))
        return {"png_bytes": tf.dynamic_stitch(places, files), **cut}

    def text_to_image(self, prompt, negative_prompt, seed, index, guidance_scale, num_steps, sampler, height, width):
        """Prompts to pictures uint8 [B, H, W, 3], all of one size."""
        arguments = prompt, negative_prompt, seed, index, guidance_scale, num_steps, sampler, height, width
        tokens, negative, cut, drawing = self.prepare(*arguments)
        branches = [lambda draw=draw: self._finite(*draw(tokens, negative, drawing)) for draw in self._own.draw]
        return {"images": tf.switch_case(self.requests.one_size(drawing), branches), **cut}

    def encode(self, prompt):
        """Prompts to contexts float32 [B, L, W]."""
        spec, pipeline = self._own.spec, self._own.pipeline
        tokens, truncated = self.requests.texts(prompt, self.requests.batch(prompt=prompt), "prompt")
        shape = tf.TensorSpec([spec.text.length, spec.denoiser.context_width], tf.float32)
        context = self._in_batches(lambda rows: tf.cast(pipeline.encode(rows), tf.float32), tokens, shape)
        return {"context": self._finite(context, all_finite(context), "context"), "truncated_tokens": truncated}

    def denoise(self, context, negative_context, seed, index, guidance_scale, num_steps, sampler, height, width):
        """Contexts to latents float32 [B, h, w, c], all of one size."""
        given = {"context": context, "negative_context": negative_context}
        batch, drawing = self._drawing(given, (seed, index, guidance_scale, num_steps, sampler, height, width))
        with tf.control_dependencies([self.requests.finite(value, name) for name, value in given.items()]):
            contexts = rows_of(context, batch), rows_of(negative_context, batch)
        sizes = range(len(self._own.limits.sizes))
        branches = [lambda size=size: self._latents(*contexts, drawing, size) for size in sizes]
        latents = tf.switch_case(self.requests.one_size(drawing), branches)
        return {"latents": self._finite(latents, all_finite(latents))}

    def decode(self, latents):
        """Latents to pictures uint8 [B, H, W, 3] and PNG files."""
        batch, sizes = self.requests.batch(latents=latents), self._own.limits.sizes
        with tf.control_dependencies([batch, self.requests.finite(latents, "latents")]):
            which = self.requests.size_of_latents(latents)
        images = tf.switch_case(which, [lambda size=size: self._decoded(latents, size) for size in range(len(sizes))])
        return {"images": images, "png_bytes": encode_png(images)}

    def _decoded(self, latents, size: int):
        height, width = self._own.limits.sizes[size]
        latents = tf.ensure_shape(latents, [None, *self._own.pipeline.latent_shape(height, width)])
        return self._finite(*self._in_batches(self._own.decode, latents, self._checked_image(height, width)), "images", "latents")

    def _finite(self, values, finite, what: str = "latents", given: str = ""):
        """Returns `values`, after the check that `finite` [B] holds. It runs outside XLA, which drops assertions silently.

        The error is INVALID_ARGUMENT, as TensorFlow's operations have no other; `serving.engine` makes INTERNAL of it.
        """
        message = not_finite(what, self._own.pipeline.dtype, given)
        with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(finite), [message])]):
            return tf.identity(values)

    @staticmethod
    def _checked_image(height: int, width: int) -> tuple[tf.TensorSpec, tf.TensorSpec]:
        """What is made of one row: an image, and whether it is finite."""
        return tf.TensorSpec([height, width, 3], tf.uint8), tf.TensorSpec([], tf.bool)

    # -- what they share -------------------------------------------------------------------------------------------

    def _prepare(self, prompt, negative_prompt, seed, index, guidance_scale, num_steps, sampler, height, width):
        """Returns tokens and negative tokens [B, L], the numbers of tokens cut off both {output's name: [B]}, and the drawing."""
        texts = {"prompt": prompt, "negative_prompt": negative_prompt}
        batch, drawing = self._drawing(texts, (seed, index, guidance_scale, num_steps, sampler, height, width))
        (tokens, cut), (negative, negative_cut) = (self.requests.texts(text, batch, name) for name, text in texts.items())
        return tokens, negative, dict(zip(TRUNCATED, (cut, negative_cut))), drawing

    def _drawing(self, others: dict, values: tuple) -> tuple[tf.Tensor, Drawing]:
        numbers = dict(zip((spec.name for spec in self._drawing_inputs()), values))
        batch = self.requests.batch(**others, **numbers)
        return batch, self.requests.drawing(batch, **numbers)

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

    def _pictures(self, tokens, negative, drawing: Drawing, size: int):
        """Returns images [B, H, W, 3], and whether they are finite [B], for tokens [B, L] and negative tokens."""
        height, width = self._own.limits.sizes[size]
        spec = self._own.spec

        def draw(rows):
            contexts = tf.zeros((2 * rows[0].shape[0], spec.text.length, spec.denoiser.context_width))
            images, latents = self._loop(*rows, contexts, height, width)
            return images, all_finite(latents)

        return self._in_batches(draw, (tokens, negative, drawing), self._checked_image(height, width))

    def _latents(self, context, negative, drawing: Drawing, size: int):
        """Returns latents [B, h, w, c] for contexts [B, L, W] and negative contexts."""
        height, width = self._own.limits.sizes[size]

        def draw(rows):
            context, negative, drawing = rows
            tokens = tf.zeros((context.shape[0], self._own.spec.text.length), tf.int32)
            contexts = tf.concat([negative, context], axis=0)
            return self._loop(tokens, tokens, drawing, contexts, height, width, own_contexts=True)[1]

        shape = self._own.pipeline.latent_shape(height, width)
        return self._in_batches(draw, (context, negative, drawing), tf.TensorSpec(shape, tf.float32))

    def _loop(self, tokens, negative, drawing: Drawing, contexts, height: int, width: int, own_contexts: bool = False):
        """Runs all steps in chunks: a compiled program cannot be stopped, but what calls it again and again can."""
        pipeline, batch = self._own.pipeline, tokens.shape[0]
        steps = tf.reduce_max(drawing.count)
        count = tf.constant(-1) if own_contexts else steps  # contexts become latents: decoding them would be in vain
        numbers = drawing._asdict()
        del numbers["size"]
        request = Request(tokens, negative, **(numbers | {"count": count}))
        request = request._replace(own_latents=tf.constant(False), own_contexts=tf.constant(own_contexts))

        def body(first, _, state):
            last = tf.minimum(first + CHUNK, steps)
            return last, *pipeline.generate(request, state, contexts, first, last)

        start = 0, tf.zeros((batch, height, width, 3), tf.uint8), pipeline.empty_state(batch, height, width)
        _, images, state = tf.while_loop(lambda first, *_: first < steps, body, start)
        return images, state.latents

    def _advance(self, batch: int, height: int, width: int, *, own_contexts: bool = False):
        """Returns the function that takes a job of so many pictures some steps further.

        Call: the fields of `Request` up to `guidance`, with `own_contexts` negative contexts and contexts [B, L, W], the leaves
        of `State`, first, last -> images, the leaves of `State`. With `own_contexts` nothing is decoded: the latents, the first
        of the leaves, are the result.
        """
        pipeline, spec = self._own.pipeline, self._own.spec
        empty = pipeline.empty_state(batch, height, width)
        context = (batch, spec.text.length, spec.denoiser.context_width)
        inputs = [tf.TensorSpec([batch, *one.shape[1:]], one.dtype, name=name) for name, one in self._job_inputs().items()]
        contexts = [tf.TensorSpec(context, name=name) for name in ("negative_context", "context")] if own_contexts else []
        leaves = [tf.TensorSpec(leaf.shape, leaf.dtype) for leaf in tf.nest.flatten(empty)]
        numbers = [tf.TensorSpec([], tf.int32, name=name) for name in ("first", "last")]

        def advance(*values):
            tokens, negative, plan, count, *rest = values[: len(inputs)]
            given = values[len(inputs) : len(inputs) + len(contexts)]
            both = tf.concat(given, axis=0) if own_contexts else tf.zeros((2 * batch, *context[1:]))
            count = tf.constant(-1) if own_contexts else tf.reduce_max(count)
            state = tf.nest.pack_sequence_as(empty, values[len(inputs) + len(contexts) : -2])
            request = Request(tokens, negative, plan, count, *rest, tf.constant(False), tf.constant(own_contexts))
            images, state = pipeline.generate(request, state, both, *values[-2:])
            return [images, *tf.nest.flatten(state)]

        return tf.function(advance, input_signature=inputs + contexts + leaves + numbers, autograph=False)

    def _job_inputs(self) -> dict[str, tf.TensorSpec]:
        """Returns what a job is told of each of its pictures: of what `prepare` returns, all but sizes and truncated tokens."""
        tokens, negative, _, drawing = self.prepare.get_concrete_function().structured_outputs
        return {"tokens": tokens, "negative_tokens": negative} | {k: v for k, v in drawing._asdict().items() if k != "size"}
