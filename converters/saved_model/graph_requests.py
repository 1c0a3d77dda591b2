"""Requests in the graph: what a server is asked for, checked, and made into what the pipeline takes.

Strings and checks stay outside XLA, which knows no strings and drops assertions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow as tf

from tfsd.arguments.table import ARGUMENTS, columns, model_defaults
from tfsd.converters.saved_model.plan_bank import PlanBank
from tfsd.noise import LAST_VALUE, SEED_PERIOD
from tfsd.pipeline import SamplingInputs
from tfsd.specs import ModelSpec
from tfsd.specs.limits import MAX_INDEX
from tfsd.text.graph import MAX_GRAPH_PROMPT_BYTES, GraphTokenizer

_LIMITED_HERE = ("seed", "index", "height", "width")  # by the size of the image and by the export; a seed is any int64


@dataclass(frozen=True, kw_only=True)
class ExportLimits:
    """What an export answers: each size and number of images is compiled, so there are few."""

    sizes: tuple[tuple[int, int], ...]  # (height, width) in pixels; the first one is the default
    batch_sizes: tuple[int, ...]  # rising; a batch is filled up to the next one
    max_steps: int
    exact: bool  # every image computed alone, so that its bytes do not depend on its batch

    @property
    def max_batch(self) -> int:
        """The most images of one request, or of several that a server puts together."""
        return self.batch_sizes[-1]


def request_defaults(spec: ModelSpec, limits: ExportLimits) -> dict[str, Any]:
    """Returns the values of inputs that a request leaves out."""
    own = model_defaults(spec)
    own |= {"num_steps": min(own["num_steps"], limits.max_steps)} | dict(zip(("height", "width"), limits.sizes[0]))
    rows = {name: ARGUMENTS[name] for name in columns()}
    fixed = {name: row.graph_default if row.default is None else row.default for name, row in rows.items()}
    return {name: value for name, value in (fixed | own).items() if value is not None}


class Sampling(NamedTuple):
    """What a checked request asks of the sampling loop, one row per image."""

    inputs: SamplingInputs  # its plans have as many rows as the longest one of the export
    steps: tf.Tensor  # [B] int32: how many rows of the plan are made
    size: tf.Tensor  # [B] int32: which of the allowed sizes

    def plain(self) -> tuple:
        """Returns the values in plain tuples. TensorFlow makes a class of each named one for a SavedModel, and keeps it."""
        return tuple(self.inputs), self.steps, self.size

    @classmethod
    def of(cls, plain: tuple) -> "Sampling":
        """Returns what `plain` was made of."""
        inputs, steps, size = plain
        return cls(SamplingInputs(*inputs), steps, size)


class Requests(tf.Module):
    """Checks and prepares requests. An argument of one row counts for all images."""

    def __init__(self, spec: ModelSpec, limits: ExportLimits, *, assets: Path | None = None, progress: bool = False):
        super().__init__(name="requests")
        self.limits, self.factor = limits, spec.vae.factor
        self.tokenizer = GraphTokenizer(spec.text[0], folder=assets)
        self.plans = PlanBank(spec.schedule, limits.max_steps, progress=progress)
        values = [height * width // spec.vae.factor**2 * spec.vae.latent_channels for height, width in limits.sizes]
        self._last_index = [min(MAX_INDEX, LAST_VALUE // count - 1) for count in values]

    def batch(self, **arguments):
        """Returns how many images a request asks for.

        Raises (in the graph, as all checks here): INVALID_ARGUMENT if that is none, more than allowed, or not clear.
        """
        rows = [tf.shape(value)[0] for value in arguments.values()]
        most = tf.reduce_max(rows)
        checks = [
            _check(tf.equal(row, 1) | tf.equal(row, most), f"{name} must have one row for all images or one for each; got", row)
            for name, row in zip(arguments, rows)
        ]
        allowed = f"a request must be for 1 to {self.limits.max_batch} images; got"
        checks.append(_check((most >= 1) & (most <= self.limits.max_batch), allowed, most))
        with tf.control_dependencies(checks):
            return tf.identity(most)

    def texts(self, prompt, batch, name: str):
        """Returns tokens [B, L] and the number of tokens cut off [B] of prompts string, for a batch that was checked."""
        with tf.control_dependencies([batch]):
            longest = tf.reduce_max(tf.strings.length(prompt))
        message = f"{name} must be at most {MAX_GRAPH_PROMPT_BYTES} bytes of UTF-8; got"
        with tf.control_dependencies([_check(longest <= MAX_GRAPH_PROMPT_BYTES, message, longest)]):
            tokens, truncated = self.tokenizer(prompt)
        return broadcast_rows(tokens, batch), broadcast_rows(truncated, batch)

    def sampling(self, batch, given: Mapping[str, tf.Tensor]) -> Sampling:
        """Returns the checked numbers of a request, by the names of the table of arguments."""
        sizes = tf.constant(self.limits.sizes)
        pairs = tf.stack([broadcast_rows(given[side], batch) for side in ("height", "width")], axis=1)
        fits = tf.reduce_all(pairs[:, None] == sizes[None], axis=2)
        size = tf.argmax(fits, axis=1, output_type=tf.int32)
        index = broadcast_rows(given["index"], batch)
        last_index = tf.gather(tf.constant(self._last_index), size)
        shown = ", ".join(f"{height} x {width}" for height, width in self.limits.sizes)
        checks = [_check(tf.reduce_all(tf.reduce_any(fits, axis=1)), f"height and width must be one of {shown}; got", pairs)]
        checks += [self._in_range(name, value) for name, value in given.items() if name not in _LIMITED_HERE]
        with tf.control_dependencies(checks):
            in_range = tf.reduce_all((index >= 0) & (index <= last_index))
            check = _check(in_range, "index must be from 0 to", last_index, "; got", index)
        with tf.control_dependencies([*checks, check]):
            sampler, num_steps = given["sampler"], given["num_steps"]
            plans = tf.maximum(tf.shape(sampler)[0], tf.shape(num_steps)[0])  # one for all images where both have one row
            plan, count, init_scale = self.plans(broadcast_rows(sampler, plans), broadcast_rows(num_steps, plans))
            seeds = tf.cast(tf.math.floormod(given["seed"], tf.constant(SEED_PERIOD, tf.int64)), tf.int32)
            inputs = SamplingInputs(plan, init_scale, seeds, index, given["guidance_scale"])
            return tf.nest.map_structure(lambda value: broadcast_rows(value, batch), Sampling(inputs, count, size))

    def _in_range(self, name: str, value):
        """Returns the check that an argument is what its row of the table allows, and this export."""
        row = ARGUMENTS[name]
        if row.kind == "choice":
            known = self.plans.known(value) if name == "sampler" else tf.reduce_any(value[:, None] == row.choices, axis=1)
            choices = self.plans.samplers if name == "sampler" else row.choices
            return _check(tf.reduce_all(known), f"{name} must be one of {', '.join(choices)}; got", value)
        high = self.limits.max_steps if name == "num_steps" else row.high
        fits = (value >= tf.cast(row.low, value.dtype)) & (value <= tf.cast(high, value.dtype))  # false for NaN too
        return _check(tf.reduce_all(fits), f"{name} must be from {row.low} to {high}; got", value)

    def one_size(self, sampling: Sampling):
        """Returns the size that all rows have, as its place among the allowed ones."""
        message = "height and width must be the same for all images of this request; got"
        sizes = tf.gather(tf.constant(self.limits.sizes), sampling.size)
        with tf.control_dependencies([_check(tf.reduce_all(sampling.size == sampling.size[0]), message, sizes)]):
            return tf.identity(sampling.size[0])

    def size_of_latents(self, latents):
        """Returns the size of latents [B, h, w, c], as its place among the allowed ones."""
        sides, factor = tf.shape(latents)[1:3], self.factor
        sizes = tf.constant([(height // factor, width // factor) for height, width in self.limits.sizes])
        fits = tf.reduce_all(sizes == sides, axis=1)
        shown = ", ".join(f"{height // factor} x {width // factor}" for height, width in self.limits.sizes)
        with tf.control_dependencies([_check(tf.reduce_any(fits), f"latents must have height x width {shown}; got", sides)]):
            return tf.argmax(fits, output_type=tf.int32)

    def finite(self, value, name: str):
        """Returns the check that nothing in `value` is NaN or infinite."""
        return _check(tf.reduce_all(tf.math.is_finite(value)), f"{name} must hold finite numbers")


def _check(condition, *message):
    """Fails the request with INVALID_ARGUMENT unless the condition holds."""
    return tf.debugging.Assert(condition, list(message), summarize=8)


def broadcast_rows(value, batch):
    """Returns [B, ...] of a value with B rows, or with one that stands for all."""
    return tf.gather(value, tf.minimum(tf.range(batch), tf.shape(value)[0] - 1))
