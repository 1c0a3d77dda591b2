"""The networks, each built from its spec: text encoder, denoiser, VAE encoder and decoder."""

import contextlib
import functools
import importlib
import types
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import keras
import numpy as np

from tfsd.specs import ModelSpec, Part
from tfsd.specs.model import apply_numerics

DTYPES = ("float32", "bfloat16", "float16")


class Denoiser(Protocol):
    """What the sampling loop needs of a network that predicts noise or velocity. `UNet` is one.

    `prepare` makes once what is the same at every step; its structure is the denoiser's own.
    """

    compute_dtype: str

    def prepare(self, conditioning: dict) -> Any:
        """Returns a nest of tensors for `denoise`, of conditioning {name: [B, ...]} from the text encoders."""

    def timestep_features(self, timesteps) -> Any:
        """Returns features [T, width] float32 of timesteps [T]."""

    def denoise(self, latents, features, prepared) -> Any:
        """Returns the output [B, h, w, c] for latents [B, h, w, c], features [B or 1, width] and what `prepare` returned."""


def build(spec: ModelSpec, *, dtype: str = "float32", parts: Iterable[str] | None = None) -> dict[str, keras.Model]:
    """Returns the named parts, or all, with fresh weights, stored and multiplied in `dtype`.

    Norms and softmaxes compute in float32 whatever the dtype. Keras' global settings (dtype policy, `floatx`,
    `image_data_format`) change nothing: the policy is set here, and layers and operations name the rest themselves.
    """
    with _policy(dtype):
        return {part.name: _built(part) for part in spec.parts(parts)}


def _built(part: Part) -> keras.Model:
    module, _, name = part.kind.builder.partition(":")
    model = getattr(importlib.import_module(module), name)(part.spec)
    model.build()
    return model


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


def part_shapes(spec: ModelSpec, parts: Iterable[str] | None = None) -> dict[str, Mapping[str, tuple[int, ...]]]:
    """Returns {part: {variable path below the part: shape}} in the order of creation, without allocating any variable."""
    # Building a U-Net takes seconds: one entry for all specs that differ in nothing but numerics.
    return {part.name: _shapes(part._replace(spec=apply_numerics(part.spec, "compvis"))) for part in spec.parts(parts)}


@functools.lru_cache(maxsize=32)
def _shapes(part: Part) -> Mapping[str, tuple[int, ...]]:
    def shapes():
        with keras.StatelessScope(initialize_variables=False), _policy("float32"):
            return {path(variable): tuple(variable.shape) for variable in _built(part).variables}

    # Keras notes such variables per thread, and would allocate them all with the next model built in this one.
    with ThreadPoolExecutor(1) as thread:
        return types.MappingProxyType(thread.submit(shapes).result())


def path(variable) -> str:
    """Returns a variable's path below its part: "down/down0/residual0/norm1/gamma"."""
    return variable.path.split("/", 1)[1]


def parameter_count(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Returns how many numbers the variables of these shapes hold."""
    return sum(int(np.prod(shape)) for shape in shapes.values())
