"""Building blocks that two or more networks share. Channels last; written with keras.ops alone."""

import collections
import contextlib
import contextvars
import itertools
from collections.abc import Iterator

import keras
from keras import layers, ops

from tfsd.models import kernels

_zeros = contextvars.ContextVar("zeros", default=False)


@contextlib.contextmanager
def zero_weights() -> Iterator[None]:
    """Gives networks that are made meanwhile zeros as weights, for those who fill them: random numbers take seconds."""
    token = _zeros.set(True)
    try:
        yield
    finally:
        _zeros.reset(token)


def initializer(fresh):
    """Returns the Keras initializer of fresh weights, or that of zeros within `zero_weights`."""
    return "zeros" if _zeros.get() else fresh


class Block(layers.Layer):
    """A layer made of layers.

    Each sub-layer is an attribute with the name of the layer: a variable's path is then its place in the code,
    in `variable.path` and in Keras' weight files alike.

    `build` creates all variables. Every layer knows the shape of its inputs, because the call that would tell it takes
    seconds for a U-Net.
    """

    def build(self, shape=None):  # noqa: D102
        for member in vars(self).values():
            if isinstance(member, layers.Layer):
                member.build()

    def attach(self, layer: layers.Layer):
        """Makes `layer` an attribute named as the layer is."""
        setattr(self, layer.name, layer)

    def series(self, prefix: str):
        """Yields the layers named prefix0, prefix1, ... in order."""
        for i in itertools.count():
            layer = getattr(self, f"{prefix}{i}", None)
            if layer is None:
                return
            yield layer


class Network(Block, keras.Model):
    """The base of the networks, each of which is stored in a file."""

    @property
    def layers(self):
        """The direct sub-layers. A list would make Keras file those whose names sort after it under class names."""
        return collections.UserList(super().layers)


class Dense(layers.Dense):
    """A dense layer. Call: x [..., inputs] -> [..., width]."""

    def __init__(self, inputs: int, width: int, **kwargs):
        super().__init__(width, kernel_initializer=initializer("glorot_uniform"), **kwargs)
        self.inputs = inputs

    def build(self, shape=None):  # noqa: D102
        super().build((None, self.inputs))


class Conv(layers.Conv2D):
    """A convolution. Call: x [B, h, w, inputs] -> [B, h', w', channels]."""

    def __init__(self, inputs: int, channels: int, kernel: int, *, zero: bool = False, **kwargs):
        start = initializer("zeros" if zero else "glorot_uniform")
        super().__init__(channels, kernel, data_format="channels_last", kernel_initializer=start, **kwargs)
        self.inputs = inputs

    def build(self, shape=None):  # noqa: D102
        super().build((None, None, None, self.inputs))


class Norm(layers.Layer):
    """The base of the norms: a scale and a shift per channel, and an epsilon."""

    def __init__(self, width: int, epsilon: float, **kwargs):
        super().__init__(**kwargs)
        self.width, self.epsilon = width, epsilon

    def build(self, shape=None):  # noqa: D102
        self.gamma = self.add_weight(shape=(self.width,), initializer="ones", name="gamma")
        self.beta = self.add_weight(shape=(self.width,), initializer="zeros", name="beta")


class GroupNorm(Norm):
    """Normalises groups of channels over all positions of an image, in float32. Call: x [B, h, w, C] -> the same."""

    def __init__(self, channels: int, groups: int, epsilon: float, **kwargs):
        super().__init__(channels, epsilon, **kwargs)
        self.groups = groups

    def call(self, x):  # noqa: D102
        return ops.cast(kernels.group_norm(x, self.gamma, self.beta, self.groups, self.epsilon), self.compute_dtype)


class LayerNorm(Norm):
    """Normalises the last axis, in float32. Call: x [..., W] -> the same."""

    def call(self, x):  # noqa: D102
        return ops.cast(kernels.layer_norm(x, self.gamma, self.beta, self.epsilon), self.compute_dtype)


class Sequence(Block):
    """Runs layers one after the other. Call: x -> what the last of them returns."""

    def __init__(self, members: list[layers.Layer], **kwargs):
        super().__init__(**kwargs)
        self.order = ",".join(member.name for member in members)  # a string: a list of layers Keras would save, too
        for member in members:
            self.attach(member)

    def call(self, x):  # noqa: D102
        for name in self.order.split(","):
            x = getattr(self, name)(x)
        return x


def conv(inputs: int, channels: int, kernel: int, name: str, *, zero: bool = False) -> Conv:
    """Returns a convolution of stride 1 that keeps the size; `zero` starts it at zero."""
    return Conv(inputs, channels, kernel, zero=zero, padding="same", name=name)


def silu(x):
    """Returns x * sigmoid(x).

    Source: Hendrycks & Gimpel 2016. `tf.nn.silu`, which `keras.ops.silu` and `swish` call, is a `tf.custom_gradient`: every
    traced call adds a closure to TensorFlow's registry of gradients, which keeps the graph and all its weights for ever.
    """
    return x * ops.sigmoid(x)


def activation(name: str):
    """Returns the function of an activation's name in a spec."""
    return {
        "quick_gelu": lambda x: x * ops.sigmoid(1.702 * x),
        "gelu": lambda x: ops.gelu(x, approximate=False),
        "gelu_tanh": lambda x: ops.gelu(x, approximate=True),
    }[name]


def split_heads(x, heads: int):
    """[B, L, W] -> [B, heads, L, W / heads]."""
    batch, length, width = ops.shape(x)
    return ops.transpose(ops.reshape(x, (batch, length, heads, width // heads)), (0, 2, 1, 3))


class ResidualBlock(Block):
    """Two 3x3 convolutions, with the timestep embedding, if any, added between them.

    Call: x [B, h, w, in_channels], embedding [B or 1, E] or None -> [B, h, w, channels]. `embedding` is E.
    Source: `ResBlock` of CompVis' openaimodel.py and `ResnetBlock` of its model.py.
    """

    def __init__(self, in_channels: int, channels: int, groups: int, epsilon: float, *, embedding: int | None = None, **kwargs):
        super().__init__(**kwargs)
        self.norm1 = GroupNorm(in_channels, groups, epsilon, name="norm1")
        self.conv1 = conv(in_channels, channels, 3, "conv1")
        self.embed = Dense(embedding, channels, name="embed") if embedding else None
        self.norm2 = GroupNorm(channels, groups, epsilon, name="norm2")
        self.conv2 = conv(channels, channels, 3, "conv2", zero=True)
        self.skip = conv(in_channels, channels, 1, "skip") if in_channels != channels else None

    def call(self, x, embedding=None):  # noqa: D102
        h = self.conv1(silu(self.norm1(x)))
        if self.embed is not None:
            h = h + self.embed(silu(embedding))[:, None, None, :]
        h = self.conv2(silu(self.norm2(h)))
        return kernels.add(h, x if self.skip is None else self.skip(x))


class Downsample(Block):
    """Halves height and width with a 3x3 convolution of stride 2.

    Call: x [B, h, w, C] -> [B, ceil(h / 2), ceil(w / 2), C].
    The U-Net pads both sides, the VAE only below and to the right, as in CompVis' code.
    """

    def __init__(self, channels: int, *, pad_before: bool, **kwargs):
        super().__init__(**kwargs)
        self.pad_before = pad_before
        self.conv = Conv(channels, channels, 3, strides=2, padding="valid", name="conv")

    def call(self, x):  # noqa: D102
        pad = (1 if self.pad_before else 0, 1)
        return self.conv(ops.pad(x, ((0, 0), pad, pad, (0, 0))))


class Upsample(Block):
    """Doubles height and width by repeating pixels, crops to `size` if given, then a 3x3 convolution.

    Call: x [B, h, w, C] -> [B, 2h, 2w, C], or [B, *size, C].
    Cropping is how diffusers serves sizes that the levels do not divide: its nearest-neighbour
    resize to 2h - 1 picks the same pixels.
    """

    def __init__(self, channels: int, **kwargs):
        super().__init__(**kwargs)
        self.conv = conv(channels, channels, 3, "conv")

    def call(self, x, size=None):  # noqa: D102
        _, height, width, _ = ops.shape(x)
        x = ops.image.resize(x, (2 * height, 2 * width), interpolation="nearest", data_format="channels_last")
        if size is not None:
            x = x[:, : size[0], : size[1], :]
        return self.conv(x)
