"""Attention, norms and addition: one definition of each, and the form of it that each target runs.

Networks call the functions by name. Which form runs is decided by `using(target)`, in which a pipeline calls its networks; all
forms give the same numbers but for rounding. A new target needs its line in `TARGETS`.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import NamedTuple

import keras
from keras import ops

MASKED = -1e4  # added to masked logits: exp() of it is zero, and float16 still holds it


class Kernels(NamedTuple):
    """The forms of one target, with the arguments of the functions below."""

    attend: Callable
    group_norm: Callable
    layer_norm: Callable
    add: Callable


@contextlib.contextmanager
def using(target: str) -> Iterator[None]:
    """Makes networks that are called, or traced, inside run the forms of `target`, a key of `TARGETS`."""
    before = _kernels.set(TARGETS[target])
    try:
        yield
    finally:
        _kernels.reset(before)


def attend(queries, keys, values, mask=None, *, upcast: bool = False):
    """Scaled dot-product attention, softmax in float32.

    Shapes: queries [B, heads, L, d]; keys, values [B, heads, M, d]; mask, added, [L, M] -> [B, L, heads * d].
    Queries meet keys in float32 if `upcast`, and always in float16, whose largest value, 65504, their products exceed in
    published models. bfloat16 has the range of float32, so its products keep their type unless `upcast`.
    Source: Vaswani et al. 2017, equation 1. diffusers upcasts only where `upcast_attention` is set, since PyTorch's fused
    attention sums in float32 by itself.
    """
    return _kernels.get().attend(queries, keys, values, mask, upcast)


def group_norm(x, gamma, beta, groups: int, epsilon: float):
    """Normalises groups of channels over all positions, in float32.

    Shapes: x [B, h, w, C]; gamma, beta [C] -> [B, h, w, C] float32.
    Source: Wu & He 2018. Keras' own layer makes tensors of five dimensions.
    """
    x, gamma, beta = (ops.cast(one, "float32") for one in (x, gamma, beta))
    return _kernels.get().group_norm(x, gamma, beta, groups, epsilon)


def layer_norm(x, gamma, beta, epsilon: float):
    """Normalises the last axis, in float32.

    Shapes: x [..., W]; gamma, beta [W] -> [..., W] float32.
    Source: Ba et al. 2016.
    """
    x, gamma, beta = (ops.cast(one, "float32") for one in (x, gamma, beta))
    return _kernels.get().layer_norm(x, gamma, beta, epsilon)


def add(x, h):
    """Returns x + h for feature maps [B, h, w, C], of which one may come from a convolution."""
    return _kernels.get().add(x, h)


# -- the definitions, which TensorFlow's own kernels run as they stand -------------------------------------------------


def _attend(queries, keys, values, mask, upcast: bool):
    batch, heads, length, size = ops.shape(queries)
    if upcast or keras.backend.standardize_dtype(queries.dtype) == "float16":
        queries, keys = ops.cast(queries, "float32"), ops.cast(keys, "float32")
    logits = ops.cast(ops.matmul(queries * (size**-0.5), ops.transpose(keys, (0, 1, 3, 2))), "float32")
    if mask is not None:
        logits = logits + ops.cast(mask, "float32")
    weights = ops.cast(ops.softmax(logits, axis=-1), values.dtype)
    mixed = ops.transpose(ops.matmul(weights, values), (0, 2, 1, 3))
    return ops.reshape(mixed, (batch, length, heads * size))


def _group_norm(x, gamma, beta, groups: int, epsilon: float):
    # Means over positions first, over the few channels of a group then: no large tensor is reshaped.
    centred = x - _group_means(ops.mean(x, axis=(1, 2)), groups)
    variance = _group_means(ops.mean(ops.square(centred), axis=(1, 2)), groups)
    return centred * (ops.rsqrt(variance + epsilon) * gamma) + beta


def _group_means(values, groups: int):
    """[B, C] -> the mean over each group, repeated for its channels: [B, 1, 1, C]."""
    batch, channels = ops.shape(values)
    means = ops.mean(ops.reshape(values, (batch, groups, channels // groups)), axis=-1, keepdims=True)
    return ops.reshape(ops.broadcast_to(means, (batch, groups, channels // groups)), (batch, 1, 1, channels))


def _layer_norm(x, gamma, beta, epsilon: float):
    centred = x - ops.mean(x, axis=-1, keepdims=True)
    variance = ops.mean(ops.square(centred), axis=-1, keepdims=True)
    return centred * ops.rsqrt(variance + epsilon) * gamma + beta


def _add_as_tokens(x, h):
    """Adds maps as [B, h * w, C].

    Without XLA, TensorFlow makes one kernel of a convolution and an addition that follows it. oneDNN's (`MklConvOp`, as of
    2.21) keeps the addend in itself: two threads that run it at a time crash, or mix up each other's images.
    """
    batch, height, width, channels = ops.shape(x)
    tokens = (batch, height * width, channels)
    return ops.reshape(ops.reshape(x, tokens) + ops.reshape(h, tokens), (batch, height, width, channels))


# -- forms whose squares half precision holds --------------------------------------------------------------------------

# Norms divide what they square by 8: float16, in which phones' accelerators compute, then holds squares of up to 2047 instead
# of 255. It still holds an epsilon of 1e-5; the VAE's of 1e-6 becomes 0, which only a group of equal values would notice.
# In float32, a power of two changes no digit.
_SQUARED = 1 / 8


def _scaled_group_norm(x, gamma, beta, groups: int, epsilon: float):
    """As `_group_norm`, with smaller squares."""
    centred = (x - _summed_group_means(ops.mean(x, axis=(1, 2)), groups)) * _SQUARED
    variance = _summed_group_means(ops.mean(ops.square(centred), axis=(1, 2)), groups)
    return centred * (ops.rsqrt(variance + epsilon * _SQUARED**2) * gamma) + beta


def _summed_group_means(values, groups: int):
    """As `_group_means`, by adding zeros: delegates add tensors of two shapes, but have no broadcast."""
    batch, channels = ops.shape(values)
    means = ops.mean(ops.reshape(values, (batch, groups, channels // groups)), axis=-1, keepdims=True)
    zeros = ops.zeros((1, groups, channels // groups), "float32")
    return ops.reshape(means + zeros, (batch, 1, 1, channels))


def _scaled_layer_norm(x, gamma, beta, epsilon: float):
    """As `_layer_norm`, with smaller squares.

    gamma comes last: the product of the scale [..., 1] and gamma [W] is one of two tensors of which neither is the larger one,
    which delegates refuse.
    """
    centred = (x - ops.mean(x, axis=-1, keepdims=True)) * _SQUARED
    variance = ops.mean(ops.square(centred), axis=-1, keepdims=True)
    scaled = centred * ops.rsqrt(variance + epsilon * _SQUARED**2)
    return scaled * gamma + beta


TARGETS: dict[str, Kernels] = {
    # The plain forms give the same numbers, but XLA rounds them otherwise: single levels of images would change.
    "xla": Kernels(_attend, _scaled_group_norm, _scaled_layer_norm, _add_as_tokens),
    "cpu": Kernels(_attend, _group_norm, _layer_norm, _add_as_tokens),
    "phone": Kernels(_attend, _scaled_group_norm, _scaled_layer_norm, _add_as_tokens),
}
# Networks that no pipeline calls, as in training, run TensorFlow's own kernels.
_kernels: contextvars.ContextVar[Kernels] = contextvars.ContextVar("kernels", default=TARGETS["cpu"])
