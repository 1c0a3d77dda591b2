"""From tokens to pictures in one graph: the text encoder, the whole sampling loop and the decoder.

Every target is an export of `Pipeline`: there is no other loop and no other guidance.
"""

import types
from collections.abc import Mapping
from typing import NamedTuple

import keras
import tensorflow as tf

from tfsd.noise import INITIAL_STREAM, normal_noise
from tfsd.samplers.plans import MAX_ROWS
from tfsd.samplers.step import empty_history, step, unpack
from tfsd.specs import ModelSpec


class Request(NamedTuple):
    """What a batch of pictures is made from. Every field is a tensor, so nothing of it is compiled in.

    A picture depends on its own row alone: on its tokens, plan, seed, index and guidance scale.
    """

    tokens: tf.Tensor  # [B, L] int32
    negative_tokens: tf.Tensor  # [B, L] int32
    plan: tf.Tensor  # [B, MAX_ROWS, ROW_SIZE] float32, from `tfsd.samplers.plans.build_plan`
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
    embeddings: tf.Tensor  # [B, MAX_ROWS, E]: of every row's timestep


class Pipeline(tf.Module):
    """A model with its sampling loop.

    The parts stay outside TensorFlow's tracking, which would find their variables a second time under names that
    TF Serving cannot restore; the module tracks the raw variables instead.
    """

    def __init__(self, spec: ModelSpec, parts: Mapping[str, keras.Model], *, jit_compile: bool = True):
        super().__init__(name="pipeline")
        self.spec = spec
        self.jit_compile = jit_compile
        self.parts = types.SimpleNamespace(**parts)
        self.tracked = [v.value for part in parts.values() for v in part.variables]
        self.generate = tf.function(self._generate, jit_compile=jit_compile, autograph=False)
        self.encode = tf.function(self._encode, jit_compile=jit_compile, autograph=False)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Returns the shape [h, w, c] of one picture's latents."""
        factor = self.spec.vae.factor
        return height // factor, width // factor, self.spec.vae.latent_channels

    # -- the stages ------------------------------------------------------------------------------------------------

    def _encode(self, tokens):
        """Returns the context [B, L, W] of tokens [B, L]."""
        return self.parts.text_encoder(tokens)

    def prepare(self, contexts, plan) -> tuple[list, tf.Tensor]:
        """Returns what no step changes: keys and values of contexts [2B, L, W], and the timesteps' embeddings."""
        embeddings = self.parts.unet.embed_time(tf.reshape(plan[:, :, 0], [-1]))
        return self.parts.unet.keys_values(contexts), tf.reshape(embeddings, (*plan.shape[:2], -1))

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
            embedding = tf.gather(state.embeddings, i, axis=1)
            output = self.denoise(latents, embedding, state.keys_values, request.guidance)
            noise = normal_noise(request.seeds, request.indices, i + 1, shape)
            return i + 1, *step(unpack(tf.gather(request.plan, i, axis=1)), latents, history, output, noise)

        variables = (first, state.latents, tuple(state.history))
        _, latents, history = tf.while_loop(lambda i, *_: i < last, body, variables)
        return state._replace(latents=latents, history=history)

    def decode_float(self, latents):
        """Returns images [B, H, W, 3] float32, about [-1, 1], of latents [B, h, w, c] as the U-Net knows them."""
        return tf.cast(self.parts.decoder(latents / self.spec.vae.scale + self.spec.vae.shift), tf.float32)

    def decode_levels(self, latents):
        """Returns images [B, H, W, 3] of latents [B, h, w, c]: float32, whole numbers in [0, 255]."""
        levels = tf.clip_by_value((self.decode_float(latents) + 1.0) * 0.5 * 255.0, 0.0, 255.0)
        return tf.floor(levels) if self.spec.rounding == "truncate" else tf.round(levels)

    def decode(self, latents):
        """Returns images [B, H, W, 3] uint8 of latents [B, h, w, c]."""
        return tf.cast(self.decode_levels(latents), tf.uint8)

    # -- the graph -------------------------------------------------------------------------------------------------

    def empty_state(self, batch: int, height: int, width: int) -> State:
        """Returns the state to begin with: zeros of the right shapes."""
        latents = tf.zeros((batch, *self.latent_shape(height, width)))
        unet = self.parts.unet
        keys = [tf.zeros((2 * batch, *shape), unet.compute_dtype) for shape in unet.key_shapes(self.spec.text.length)]
        embeddings = tf.zeros((batch, MAX_ROWS, 4 * self.spec.denoiser.channels[0]), unet.compute_dtype)
        return State(latents, empty_history(latents), [(zeros, zeros) for zeros in keys], embeddings)

    def _generate(self, request: Request, given: State, contexts, first, last) -> tuple[tf.Tensor, State]:
        """Runs the plan's rows first ... last - 1 for a batch; returns images and the state to go on from.

        Called with `first` 0 and `last` `request.count` this is all of text to image. Called in chunks, the same
        compiled graph encodes in the first chunk alone and decodes in the last: the pictures are the same bytes.
        `given.latents` and `contexts` [2B, L, W] (negative, positive) count where the request says so.
        """

        def begin():
            tokens = tf.concat([request.negative_tokens, request.tokens], axis=0)
            context = tf.cond(
                tf.cast(request.own_contexts, tf.bool),
                lambda: contexts,
                lambda: tf.cast(self._encode(tokens), tf.float32),
            )
            keys_values, embeddings = self.prepare(context, request.plan)
            noise = tf.cond(
                tf.cast(request.own_latents, tf.bool),
                lambda: _per_picture(request.init_scale) * given.latents,
                lambda: self.initial_latents(request, tuple(given.latents.shape[1:])),
            )
            return State(noise, given.history, keys_values, embeddings)

        state = tf.cond(tf.equal(first, 0), begin, lambda: given)
        state = self.sample(request, state, first, last)
        pixels = [side * self.spec.vae.factor for side in given.latents.shape[1:3]]
        blank = tf.zeros((given.latents.shape[0], *pixels, 3), tf.uint8)
        images = tf.cond(tf.equal(last, request.count), lambda: self.decode(state.latents), lambda: blank)
        return images, state


def _per_picture(numbers):
    """Returns numbers [B] in a shape that multiplies pictures or latents [B, h, w, c]."""
    return numbers[:, None, None, None]
