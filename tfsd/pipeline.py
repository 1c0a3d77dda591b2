"""From tokens to images: encode, begin, advance, finish. The only sampling loop and the only guidance.

Every target is an export of `Pipeline`.
"""

import threading
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfsd.models import kernels
from tfsd.noise import IMAGE_STREAM, INITIAL_STREAM, normal_noise
from tfsd.programs import Programs
from tfsd.samplers.step import empty_history, step, unpack
from tfsd.sharing import WithWeights, shared
from tfsd.specs import ModelSpec, SpecError


class SamplingInputs(NamedTuple):
    """How a batch of images is sampled. Every field is a tensor, so nothing of it is compiled in.

    An image depends on its own row alone: on its conditioning, plan, seed, index and guidance scale.
    """

    plan: tf.Tensor  # [B, R, ROW_SIZE] float32, from `tfsd.samplers.plans.build_plan`; R is at least the number of steps
    init_scale: tf.Tensor  # [B] float32: what the first noise is multiplied by
    seeds: tf.Tensor  # [B] int32, from `tfsd.noise.effective_seed`
    indices: tf.Tensor  # [B] int32: an image's place in its seed's batch
    guidance: tf.Tensor  # [B] float32: guidance scale s of u + s * (c - u)


class State(NamedTuple):
    """What sampling carries from step to step."""

    latents: tf.Tensor  # [B, h, w, c] float32
    history: tuple[tf.Tensor, ...]  # earlier outputs, for samplers of several steps
    prepared: Any  # what the denoiser made of the conditioning: the same at every step


class PipelineFunctions:
    """The four steps of a pipeline, and their parts, before they are compiled. `target`: a key of `kernels.TARGETS`."""

    def __init__(self, spec: ModelSpec, parts: Mapping[str, keras.Model], target: str = "xla"):
        self.spec = spec
        self.parts = types.SimpleNamespace(**parts)
        self.target = target

    def for_target(self, target: str) -> "PipelineFunctions":
        """Returns the functions of the same networks for another target."""
        return PipelineFunctions(self.spec, vars(self.parts), target)

    # -- the four steps --------------------------------------------------------------------------------------------

    def encode(self, tokens) -> dict:
        """Returns the conditioning of tokens [B, L]: {"context": [B, L, W] float32}."""
        with kernels.using(self.target):
            return {"context": tf.cast(self.parts.text_encoder(tokens), tf.float32)}

    def encode_image(self, images, seeds, indices, draws=None):
        """Returns latents [B, h, w, c] float32 of images [B, H, W, 3] in [-1, 1], at the denoiser's scale.

        The encoder gives a normal distribution: the latents are its mean plus its standard deviation times `draws`
        [B, h, w, c], by default noise of `seeds` and `indices` [B]. Zeros give the mean.
        Source: Rombach et al. 2022; `DiagonalGaussianDistribution`, CompVis distributions.py.
        """
        with kernels.using(self.target):
            moments = tf.cast(self.parts.encoder(images), tf.float32)
        mean, log_variance = tf.split(moments, 2, axis=-1)
        if draws is None:
            draws = normal_noise(seeds, indices, IMAGE_STREAM, tuple(mean.shape[1:]))
        deviation = tf.exp(0.5 * tf.clip_by_value(log_variance, -30.0, 20.0))
        return (mean + deviation * draws - self.spec.vae.shift) * self.spec.vae.scale

    def begin(
        self, inputs: SamplingInputs, negative: dict, positive: dict, shape: tuple[int, int, int], noise=None, image=None
    ) -> State:
        """Returns the state before the first step, for latents of `shape` (h, w, c).

        `negative`, `positive`: conditioning from `encode`, B rows each. `noise` [B, h, w, c] replaces the noise of the seeds.
        With `image`, latents [B, h, w, c], sampling begins with these at the noise level of the plans' first rows.
        """
        if noise is None:
            noise = normal_noise(inputs.seeds, inputs.indices, INITIAL_STREAM, shape)
        if image is None:
            latents = _per_image(inputs.init_scale) * noise
        else:
            first = unpack(inputs.plan[:, 0])
            latents = first.alpha * image + first.sigma * noise
        both = tf.nest.map_structure(lambda *halves: tf.concat(halves, axis=0), negative, positive)
        return State(latents, tuple(empty_history(latents)), self.prepare(both))

    def advance(self, inputs: SamplingInputs, state: State, first, last) -> tuple[tf.Tensor, tuple[tf.Tensor, ...]]:
        """Returns latents and history after the rows first ... last - 1 of the plans: the only sampling loop.

        Rows after the end of a plan change nothing.
        """
        shape, denoiser = tuple(state.latents.shape[1:]), self.parts.denoiser

        def body(i, latents, history):
            row = tf.gather(inputs.plan, i, axis=1)
            features = denoiser.timestep_features(row[:, 0])
            output = self.guided(latents, features, state.prepared, inputs.guidance)
            noise = normal_noise(inputs.seeds, inputs.indices, i + 1, shape)
            return i + 1, *step(unpack(row), latents, history, output, noise)

        variables = (first, state.latents, tuple(state.history))
        _, latents, history = tf.while_loop(lambda i, *_: i < last, body, variables)
        return latents, history

    def finish(self, latents):
        """Returns images uint8 [B, H, W, 3] of latents [B, h, w, c], and bool [B]: whether latents and image are finite.

        What is not finite has no image: its levels are undefined. It is not an error here, since XLA drops assertions silently.
        """
        values = self.decode_float(latents)
        return tf.cast(self._levels(values), tf.uint8), all_finite(latents) & all_finite(values)

    # -- their parts -----------------------------------------------------------------------------------------------

    def prepare(self, conditioning: dict):
        """Returns what the denoiser makes of conditioning {name: [2B, ...]}, unconditional rows first: the same at every step."""
        with kernels.using(self.target):
            return self.parts.denoiser.prepare(conditioning)

    def guided(self, latents, features, prepared, guidance):
        """Returns the guided output [B, h, w, c] float32: one pass over the unconditional and the conditional half.

        Source: Ho & Salimans 2022, in the form of CompVis' scripts: u + s * (c - u).
        """
        twice = tf.concat([latents, latents], axis=0), tf.concat([features, features], axis=0)
        with kernels.using(self.target):
            output = self.parts.denoiser.denoise(*twice, prepared)
        unconditional, conditional = tf.split(tf.cast(output, tf.float32), 2, axis=0)
        return unconditional + _per_image(guidance) * (conditional - unconditional)

    def decode_float(self, latents):
        """Returns images [B, H, W, 3] float32, about [-1, 1], of latents [B, h, w, c] at the denoiser's scale."""
        with kernels.using(self.target):
            return tf.cast(self.parts.decoder(latents / self.spec.vae.scale + self.spec.vae.shift), tf.float32)

    def decode_levels(self, latents):
        """Returns images [B, H, W, 3] of latents [B, h, w, c]: float32, whole numbers in [0, 255]."""
        return self._levels(self.decode_float(latents))

    def _levels(self, values):
        levels = tf.clip_by_value((values + 1.0) * 0.5 * 255.0, 0.0, 255.0)
        return tf.floor(levels) if self.spec.rounding == "truncate" else tf.round(levels)


class Pipeline(tf.Module):
    """A model with its sampling loop, as four compiled programs; `functions` has the same before compilation.

    Python, the server and exports call the same programs, so that images are the same bytes whether the steps are made at
    once or in chunks.

    The parts stay outside TensorFlow's tracking, which would find their variables a second time under names that
    TF Serving cannot restore; the module tracks the raw variables instead.
    """

    def __init__(
        self,
        spec: ModelSpec,
        parts: Mapping[str, keras.Model],
        *,
        jit_compile: bool = True,
        load_encoder: Callable[[], keras.Model] | None = None,
    ):
        """`load_encoder` returns the encoder of images, which `parts` need not have; the first image calls it."""
        super().__init__(name="pipeline")
        spec.conditioning()  # raises for several text encoders
        self.spec = spec
        self.functions = PipelineFunctions(spec, parts, "xla" if jit_compile else "cpu")
        self.jit_compile = jit_compile
        self.tracked = [v.value for part in parts.values() for v in part.variables]
        self.programs = self._compiled(parts, ("encode", "begin", "advance", "finish"))
        self._load_encoder = (lambda: parts["encoder"]) if "encoder" in parts else load_encoder
        self._loading = threading.Lock()

    def _compiled(self, parts: Mapping[str, keras.Model], names: tuple[str, ...]) -> dict[str, Programs | WithWeights]:
        """Returns functions of these parts, compiled."""
        programs: Sequence[Programs | WithWeights]
        if self.jit_compile:
            programs = shared(PipelineFunctions, self.spec, parts, names)
        else:
            functions = PipelineFunctions(self.spec, parts, self.functions.target)
            programs = [Programs(getattr(functions, name), jit_compile=False) for name in names]
        return dict(zip(names, programs))

    @property
    def dtype(self) -> str:
        """The float type in which the denoiser multiplies."""
        return self.functions.parts.denoiser.compute_dtype

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Returns the shape [h, w, c] of one image's latents."""
        factor = self.spec.vae.factor
        return height // factor, width // factor, self.spec.vae.latent_channels

    def conditioning_row(self) -> dict[str, tf.TensorSpec]:
        """Returns the shapes and dtypes of one row of what `encode` returns."""
        return {name: tf.TensorSpec(shape, tf.float32) for name, shape in self.spec.conditioning().items()}

    def conditioning_specs(self, batch: int | None, prefix: str = "") -> dict[str, tf.TensorSpec]:
        """Returns the specs of `batch` rows of what `encode` returns; their names begin with `prefix`."""
        rows = self.conditioning_row()
        return {key: tf.TensorSpec([batch, *row.shape], row.dtype, name=f"{prefix}{key}") for key, row in rows.items()}

    def encode(self, tokens) -> dict:
        """Returns the conditioning of tokens [B, L]: {"context": [B, L, W] float32}."""
        return self.programs["encode"](tokens)

    def encode_image(self, images, seeds, indices, draws=None):
        """Returns latents [B, h, w, c] of images [B, H, W, 3] in [-1, 1]: see `PipelineFunctions.encode_image`.

        Raises: `SpecError` for a model without an encoder of images.
        """
        if self._load_encoder is None:
            raise SpecError(
                f"{self.spec.name} has no encoder of images: give it among the parts, or load the model from a folder."
            )
        with self._loading:
            if "encode_image" not in self.programs:
                self.programs |= self._compiled({"encoder": self._load_encoder()}, ("encode_image",))
        return self.programs["encode_image"](images, seeds, indices, draws)

    def begin(
        self, inputs: SamplingInputs, negative: dict, positive: dict, shape: tuple[int, int, int], noise=None, image=None
    ) -> State:
        """Returns the state before the first step, for latents of `shape` (h, w, c).

        `negative`, `positive`: conditioning from `encode`, B rows each. `noise` [B, h, w, c] replaces the noise of the seeds.
        With `image`, latents [B, h, w, c], sampling begins with these at the noise level of the plans' first rows.
        """
        return self.programs["begin"](inputs, negative, positive, shape, noise, image)

    def advance(self, inputs: SamplingInputs, state: State, first, last) -> State:
        """Returns the state after the rows first ... last - 1 of the plans; rows after the end of a plan change nothing."""
        latents, history = self.programs["advance"](inputs, state, first, last)
        return state._replace(latents=latents, history=history)

    def finish(self, latents):
        """Returns images uint8 [B, H, W, 3] of latents [B, h, w, c], and bool [B]: whether latents and image are finite."""
        return self.programs["finish"](latents)


def all_finite(values):
    """Returns bool [B]: whether all numbers of each row of values [B, ...] are finite."""
    return tf.reduce_all(tf.math.is_finite(values), axis=tuple(range(1, len(values.shape))))


def _per_image(numbers):
    """Returns numbers [B] in a shape that multiplies images or latents [B, h, w, c]."""
    return numbers[:, None, None, None]
