"""From tokens to pictures in one graph: the text encoder, the whole sampling loop and the decoder.

Every target is an export of `Pipeline`: there is no other loop and no other guidance.
"""

import math
import types
from collections.abc import Mapping
from typing import NamedTuple

import keras
import tensorflow as tf

from tfsd.noise import INITIAL_STREAM, normal_noise
from tfsd.programs import Programs
from tfsd.samplers.step import empty_history, step, unpack
from tfsd.sharing import shared
from tfsd.specs import ModelSpec


class Request(NamedTuple):
    """What a batch of pictures is made from. Every field is a tensor, so nothing of it is compiled in.

    A picture depends on its own row alone: on its tokens, plan, seed, index and guidance scale.
    """

    tokens: tf.Tensor  # [B, L] int32
    negative_tokens: tf.Tensor  # [B, L] int32
    plan: tf.Tensor  # [B, R, ROW_SIZE] float32, from `tfsd.samplers.plans.build_plan`; R is at least `count`
    count: tf.Tensor  # int32: how many rows the longest plan has; in the others the rest changes nothing
    init_scale: tf.Tensor  # [B] float32: what the first noise is multiplied by
    seeds: tf.Tensor  # [B] int32, from `tfsd.noise.effective_seed`
    indices: tf.Tensor  # [B] int32: a picture's place in its seed's batch
    guidance: tf.Tensor  # [B] float32: guidance scale s of u + s * (c - u)
    own_latents: tf.Tensor | bool = False  # begin with the latents of the given state, not with a seed's noise
    own_contexts: tf.Tensor | bool = False  # take the given contexts, not those of the tokens


class State(NamedTuple):
    """What the loop carries from one chunk of steps to the next."""

    latents: tf.Tensor  # [B, h, w, c] float32
    history: tuple[tf.Tensor, ...]
    keys_values: list  # of the context in every cross-attention; the same at every step


class Steps:
    """The way from tokens to pictures, as functions of a model's networks. Whoever calls them compiles them."""

    def __init__(self, spec: ModelSpec, parts: Mapping[str, keras.Model]):
        self.spec = spec
        self.parts = types.SimpleNamespace(**parts)

    @property
    def dtype(self) -> str:
        """The float type in which the U-Net multiplies."""
        return self.parts.unet.compute_dtype

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Returns the shape [h, w, c] of one picture's latents."""
        factor = self.spec.vae.factor
        return height // factor, width // factor, self.spec.vae.latent_channels

    # -- the stages ------------------------------------------------------------------------------------------------

    def _encode(self, tokens):
        """Returns the context [B, L, W] of tokens [B, L]."""
        return self.parts.text_encoder(tokens)

    def initial_latents(self, request: Request, shape: tuple[int, int, int]):
        """Returns the noise [B, h, w, c] from which the pictures of a request are made."""
        noise = normal_noise(request.seeds, request.indices, INITIAL_STREAM, shape)
        return _per_picture(request.init_scale) * noise

    def denoise(self, latents, embedding, keys_values: list, guidance):
        """Returns the guided output [B, h, w, c] float32: one pass over the unconditional and the conditional half.

        Source: Ho & Salimans 2022, in the form of CompVis' scripts: u + s * (c - u).
        """
        twice = tf.concat([latents, latents], axis=0), tf.concat([embedding, embedding], axis=0)
        output = self.parts.unet.denoise(*twice, keys_values)
        unconditional, conditional = tf.split(tf.cast(output, tf.float32), 2, axis=0)
        return unconditional + _per_picture(guidance) * (conditional - unconditional)

    def sample(self, request: Request, state: State, first, last) -> State:
        """Returns the state after the plan's rows first ... last - 1: the only sampling loop."""
        shape = tuple(state.latents.shape[1:])

        def body(i, latents, history):
            row = tf.gather(request.plan, i, axis=1)
            # Each step embeds its own timesteps: of a long plan, most would be embedded in vain.
            output = self.denoise(latents, self.parts.unet.embed_time(row[:, 0]), state.keys_values, request.guidance)
            noise = normal_noise(request.seeds, request.indices, i + 1, shape)
            return i + 1, *step(unpack(row), latents, history, output, noise)

        variables = (first, state.latents, tuple(state.history))
        _, latents, history = tf.while_loop(lambda i, *_: i < last, body, variables)
        return state._replace(latents=latents, history=history)

    def decode_float(self, latents):
        """Returns images [B, H, W, 3] float32, about [-1, 1], of latents [B, h, w, c] as the U-Net knows them."""
        return tf.cast(self.parts.decoder(latents / self.spec.vae.scale + self.spec.vae.shift), tf.float32)

    def decode_levels(self, latents):
        """Returns images [B, H, W, 3] of latents [B, h, w, c]: float32, whole numbers in [0, 255]."""
        return self._levels(self.decode_float(latents))

    def _levels(self, values):
        levels = tf.clip_by_value((values + 1.0) * 0.5 * 255.0, 0.0, 255.0)
        return tf.floor(levels) if self.spec.rounding == "truncate" else tf.round(levels)

    def decode(self, latents):
        """Returns images [B, H, W, 3] uint8 of latents [B, h, w, c], and bool [B]: whether latents and image are finite.

        What is not finite has no picture: its levels are undefined.
        """
        values = self.decode_float(latents)
        return tf.cast(self._levels(values), tf.uint8), all_finite(latents) & all_finite(values)

    # -- the graph -------------------------------------------------------------------------------------------------

    def empty_state(self, batch: int, height: int, width: int) -> State:
        """Returns the state to begin with: zeros of the right shapes."""
        latents = tf.zeros((batch, *self.latent_shape(height, width)))
        unet = self.parts.unet
        keys = [tf.zeros((2 * batch, *shape), unet.compute_dtype) for shape in unet.key_shapes(self.spec.text.length)]
        return State(latents, empty_history(latents), [(zeros, zeros) for zeros in keys])

    def _generate(self, request: Request, given: State, contexts, first, last) -> tuple[tf.Tensor, State]:
        """Runs the plan's rows first ... last - 1 for a batch; returns images and the state to go on from.

        Called with `first` 0 and `last` `request.count` this is all of text to image. Called in chunks, the same
        compiled graph encodes in the first chunk alone and decodes in the last: the pictures are the same bytes.
        The last latents of a picture that is not finite are NaN, even if only its decoding is: who looks at the latents with
        `all_finite` knows whether there is a picture. It is not checked here, since XLA drops assertions silently.
        `given.latents` and `contexts` [2B, L, W] (negative, positive) count where the request says so.
        """

        def begin():
            tokens = tf.concat([request.negative_tokens, request.tokens], axis=0)
            context = tf.cond(
                tf.cast(request.own_contexts, tf.bool),
                lambda: contexts,
                lambda: tf.cast(self._encode(tokens), tf.float32),
            )
            noise = tf.cond(
                tf.cast(request.own_latents, tf.bool),
                lambda: _per_picture(request.init_scale) * given.latents,
                lambda: self.initial_latents(request, tuple(given.latents.shape[1:])),
            )
            return State(noise, given.history, self.parts.unet.keys_values(context))

        state = tf.cond(tf.equal(first, 0), begin, lambda: given)
        state = self.sample(request, state, first, last)
        pixels = [side * self.spec.vae.factor for side in given.latents.shape[1:3]]
        blank = tf.zeros((given.latents.shape[0], *pixels, 3), tf.uint8)

        def end():
            images, finite = self.decode(state.latents)
            return images, tf.where(_per_picture(finite), state.latents, math.nan)

        images, latents = tf.cond(tf.equal(last, request.count), end, lambda: (blank, state.latents))
        return images, state._replace(latents=latents)


class Pipeline(Steps, tf.Module):
    """A model with its sampling loop, compiled: `generate` and `encode`.

    The parts stay outside TensorFlow's tracking, which would find their variables a second time under names that
    TF Serving cannot restore; the module tracks the raw variables instead.
    """

    def __init__(self, spec: ModelSpec, parts: Mapping[str, keras.Model], *, jit_compile: bool = True):
        tf.Module.__init__(self, name="pipeline")
        Steps.__init__(self, spec, parts)
        self.jit_compile = jit_compile
        self.tracked = [v.value for part in parts.values() for v in part.variables]
        if jit_compile:
            self.generate, self.encode = shared(Steps, spec, parts, ("_generate", "_encode"))
        else:
            self.generate = Programs(self._generate, jit_compile=False)
            self.encode = Programs(self._encode, jit_compile=False)


def all_finite(values):
    """Tells of each row of values [B, ...] whether all its numbers are finite: bool [B]."""
    return tf.reduce_all(tf.math.is_finite(values), axis=tuple(range(1, len(values.shape))))


def _per_picture(numbers):
    """Returns numbers [B] in a shape that multiplies pictures or latents [B, h, w, c]."""
    return numbers[:, None, None, None]
