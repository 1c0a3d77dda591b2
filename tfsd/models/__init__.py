"""The networks, each built from its spec: text encoder, U-Net, VAE encoder and decoder."""

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import keras
import numpy as np

from tfsd.models.clip import TextEncoder
from tfsd.models.unet import UNet
from tfsd.models.vae import Decoder, Encoder
from tfsd.specs import ModelSpec

PARTS = ("text_encoder", "unet", "decoder", "encoder")
DTYPES = ("float32", "bfloat16", "float16")


class Denoiser(Protocol):
    """What the sampling loop needs of a network that predicts noise or velocity. `UNet` is one.

    Whatever does not change from step to step is made once by `prepare`; only the denoiser knows what it is.
    """

    compute_dtype: str

    def prepare(self, conditioning: dict) -> Any:
        """Returns a nest of tensors for `denoise`, of conditioning {name: [B, ...]} from the text encoders."""

    def timestep_features(self, timesteps) -> Any:
        """Returns features [T, width] float32 of timesteps [T]."""

    def denoise(self, latents, features, prepared) -> Any:
        """Returns the output [B, h, w, c] for latents [B, h, w, c], features [B or 1, width] and what `prepare` returned."""


def build(spec: ModelSpec, *, dtype: str = "float32", parts: Sequence[str] = PARTS) -> dict[str, keras.Model]:
    """Returns the named parts with fresh weights, stored and multiplied in `dtype`.

    Norms and softmaxes compute in float32 whatever the dtype. Keras' global settings (dtype policy, `floatx`,
    `image_data_format`) change nothing: the policy is set here, and layers and operations name the rest themselves.
    """
    with _policy(dtype):
        return {part: _BUILDERS[part](spec) for part in parts}


@contextlib.contextmanager
def _policy(dtype: str) -> Iterator[None]:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype)  # of this thread alone
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


@contextlib.contextmanager
def default_settings() -> Iterator[None]:
    """Gives Keras its own defaults meanwhile: float32, channels last. In all threads, so this is for training alone.

    Keras takes the dtype of losses, metrics, optimizers and batches from there, and from nowhere else.
    """
    floatx, data_format = keras.config.floatx(), keras.config.image_data_format()
    keras.config.set_floatx("float32")
    keras.config.set_image_data_format("channels_last")
    try:
        with _policy("float32"):
            yield
    finally:
        keras.config.set_floatx(floatx)
        keras.config.set_image_data_format(data_format)


def variable_shapes(spec: ModelSpec, parts: Sequence[str] = PARTS) -> dict[str, dict[str, tuple[int, ...]]]:
    """Returns {part: {variable path below the part: shape}} without allocating any variable."""

    def shapes():
        with keras.StatelessScope(initialize_variables=False):
            models = build(spec, parts=parts)
        return {part: {path(v): tuple(v.shape) for v in model.variables} for part, model in models.items()}

    # Keras notes such variables per thread, and would allocate them all with the next model built in this one.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(shapes).result()


def fewest_values(spec: ModelSpec, part: str) -> int:
    """Returns a number of values that the part surely has at least, by its largest kernels and without building it."""
    if part == "text_encoder":
        text = spec.text
        return text.rows * text.width + text.layers * text.width * (4 * text.width + 2 * text.mlp_width)
    network = spec.denoiser if part == "unet" else spec.vae
    return sum(network.residuals * 9 * width**2 for width in network.channels)  # the second convolutions alone


def path(variable) -> str:
    """Returns a variable's path below its part: "down/down0/residual0/norm1/gamma"."""
    return variable.path.split("/", 1)[1]


def _text_encoder(spec: ModelSpec) -> TextEncoder:
    model = TextEncoder(spec.text)
    model(keras.KerasTensor((1, spec.text.length), "int32"))
    return model


def _unet(spec: ModelSpec) -> UNet:
    model = UNet(spec.denoiser)
    side = 2 ** len(spec.denoiser.channels)
    model(
        keras.KerasTensor((1, side, side, spec.denoiser.in_channels), "float32"),
        keras.KerasTensor((1,), "float32"),
        keras.KerasTensor((1, spec.text.length, spec.denoiser.context_width), "float32"),
    )
    return model


def _decoder(spec: ModelSpec) -> Decoder:
    model = Decoder(spec.vae)
    model(keras.KerasTensor((1, 2, 2, spec.vae.latent_channels), "float32"))
    return model


def _encoder(spec: ModelSpec) -> Encoder:
    model = Encoder(spec.vae)
    model(keras.KerasTensor((1, 2 * spec.vae.factor, 2 * spec.vae.factor, 3), "float32"))
    return model


_BUILDERS = {"text_encoder": _text_encoder, "unet": _unet, "decoder": _decoder, "encoder": _encoder}


def parameter_count(shapes: dict[str, tuple[int, ...]]) -> int:
    """Returns how many numbers the variables of these shapes hold."""
    return sum(int(np.prod(shape)) for shape in shapes.values())
