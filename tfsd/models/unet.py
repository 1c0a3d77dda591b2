"""The U-Net denoiser of Stable Diffusion: latents, timestep, context -> output."""

import math

from keras import ops

from tfsd.models import kernels
from tfsd.models.layers import (
    Block,
    Dense,
    Downsample,
    GroupNorm,
    LayerNorm,
    Network,
    ResidualBlock,
    Upsample,
    activation,
    conv,
    silu,
    split_heads,
)
from tfsd.specs import UNetSpec


class TimeEmbedding(Block):
    """Turns timesteps into vectors: cosines, sines, then two dense layers.

    Call: features [T, width] float32 of timesteps, from `features` -> [T, 4 * width].
    Source: Ho et al. 2020; cosines come first, as in CompVis' code.
    """

    def __init__(self, width: int, **kwargs):
        super().__init__(autocast=False, **kwargs)  # bfloat16 would round timestep 981 to 980
        half = width // 2
        self.frequencies = [math.exp(-math.log(10000.0) * k / half) for k in range(half)]
        self.dense0 = Dense(width, 4 * width, name="dense0")
        self.dense1 = Dense(4 * width, 4 * width, name="dense1")

    def features(self, timesteps):
        """Returns cosines and sines [T, width] float32 of timesteps [T]. An accelerator's half precision cannot make them."""
        angles = ops.cast(timesteps, "float32")[:, None] * ops.convert_to_tensor([self.frequencies], "float32")
        return ops.concatenate([ops.cos(angles), ops.sin(angles)], axis=-1)

    def call(self, features):  # noqa: D102
        return self.dense1(silu(self.dense0(ops.cast(features, self.compute_dtype))))


class Attention(Block):
    """Multi-head attention without biases on queries, keys and values.

    Call: x [B, L, W], source [B, M, S] or what `keys_values` made of it -> [B, L, W].
    Keys and values can be made apart, since those of the context are the same at every step.
    """

    def __init__(self, width: int, source_width: int, heads: int, *, upcast: bool, **kwargs):
        super().__init__(**kwargs)
        self.heads, self.upcast = heads, upcast
        self.query = Dense(width, width, use_bias=False, name="query")
        self.key = Dense(source_width, width, use_bias=False, name="key")
        self.value = Dense(source_width, width, use_bias=False, name="value")
        self.out = Dense(width, width, name="out")

    def keys_values(self, source):
        """Returns keys and values [B, heads, M, d] of source [B, M, S]."""
        return split_heads(self.key(source), self.heads), split_heads(self.value(source), self.heads)

    def call(self, x, source):  # noqa: D102
        keys, values = source if isinstance(source, (tuple, list)) else self.keys_values(source)
        return self.out(kernels.attend(split_heads(self.query(x), self.heads), keys, values, upcast=self.upcast))


class FeedForward(Block):
    """GEGLU, then back to the width. Call: x [B, L, W] -> [B, L, W]. Source: Shazeer 2020."""

    def __init__(self, width: int, gelu: str, **kwargs):
        super().__init__(**kwargs)
        self.gelu = activation(gelu)
        self.dense1 = Dense(width, 8 * width, name="dense1")
        self.dense2 = Dense(4 * width, width, name="dense2")

    def call(self, x):  # noqa: D102
        values, gates = ops.split(self.dense1(x), 2, axis=-1)
        return self.dense2(values * self.gelu(gates))


class TransformerBlock(Block):
    """Self-attention, attention to the context, feed-forward, each on a normed copy.

    Call: x [B, L, W], context [B, M, S] or its keys and values -> [B, L, W].
    """

    def __init__(self, width: int, heads: int, spec: UNetSpec, **kwargs):
        super().__init__(**kwargs)
        upcast = spec.upcast_attention
        self.norm1 = LayerNorm(width, 1e-5, name="norm1")
        self.attention1 = Attention(width, width, heads, upcast=upcast, name="attention1")
        self.norm2 = LayerNorm(width, 1e-5, name="norm2")
        self.attention2 = Attention(width, spec.context_width, heads, upcast=upcast, name="attention2")
        self.norm3 = LayerNorm(width, 1e-5, name="norm3")
        self.feed_forward = FeedForward(width, spec.gelu, name="feed_forward")

    def call(self, x, context):  # noqa: D102
        normed = self.norm1(x)
        x = x + self.attention1(normed, normed)
        x = x + self.attention2(self.norm2(x), context)
        return x + self.feed_forward(self.norm3(x))


class SpatialTransformer(Block):
    """Transformer blocks over the positions of a feature map.

    Call: x [B, h, w, C], contexts: for every block the context or its keys and values -> [B, h, w, C].
    Source: `SpatialTransformer`, CompVis attention.py.
    """

    def __init__(self, channels: int, heads: int, spec: UNetSpec, **kwargs):
        super().__init__(**kwargs)
        self.linear = spec.linear_projection
        self.norm = GroupNorm(channels, spec.groups, spec.transformer_norm_epsilon, name="norm")
        self.proj_in = self._projection(channels, "proj_in")
        for i in range(spec.transformer_layers):
            self.attach(TransformerBlock(channels, heads, spec, name=f"block{i}"))
        self.proj_out = self._projection(channels, "proj_out")

    def _projection(self, channels: int, name: str):
        return Dense(channels, channels, name=name) if self.linear else conv(channels, channels, 1, name)

    def call(self, x, contexts):  # noqa: D102
        batch, height, width, channels = ops.shape(x)
        as_tokens, as_map = (batch, height * width, channels), (batch, height, width, channels)
        h = self.norm(x)
        # A dense layer on four dimensions crashes some releases of Keras on oneDNN.
        h = self.proj_in(ops.reshape(h, as_tokens)) if self.linear else ops.reshape(self.proj_in(h), as_tokens)
        for block, context in zip(self.series("block"), contexts):
            h = block(h, context)
        h = ops.reshape(self.proj_out(h), as_map) if self.linear else self.proj_out(ops.reshape(h, as_map))
        return kernels.add(x, h)


def _residual(in_channels: int, channels: int, spec: UNetSpec, name: str) -> ResidualBlock:
    return ResidualBlock(in_channels, channels, spec.groups, spec.norm_epsilon, embedding=4 * spec.channels[0], name=name)


class Stage(Block):
    """One level of the U-Net: residual blocks, each followed by attention where the spec has it, then a resize.

    Call: x [B, h, w, C], embedding [B or 1, E], contexts: one per transformer block; on the way up also
    skips, one per residual block, and the size [2] to resize to -> list of outputs: after every
    residual block (with its attention) and after the resize; the last one goes on.
    """

    def __init__(self, in_channels: list[int], channels: int, level: int, spec: UNetSpec, *, attention: bool, **kwargs):
        super().__init__(**kwargs)
        self.transformer_layers = spec.transformer_layers
        for j, width in enumerate(in_channels):
            self.attach(_residual(width, channels, spec, f"residual{j}"))
            if attention:
                self.attach(SpatialTransformer(channels, spec.heads[level], spec, name=f"attention{j}"))
        self.downsample: Downsample | None = None
        self.upsample: Upsample | None = None

    def call(self, x, embedding, contexts, skips=(), size=None):  # noqa: D102
        contexts, skips, outputs = list(contexts), list(skips), []
        for j, residual in enumerate(self.series("residual")):
            x = residual(ops.concatenate([x, skips[j]], axis=-1) if skips else x, embedding)
            attention = getattr(self, f"attention{j}", None)
            if attention is not None:
                x = attention(x, [contexts.pop(0) for _ in range(self.transformer_layers)])
            outputs.append(x)
        if self.downsample is not None:
            outputs.append(self.downsample(x))
        if self.upsample is not None:
            outputs.append(self.upsample(x, size=size))
        return outputs


class Middle(Block):
    """The lowest point: residual block, attention, residual block. Call: as `Stage`, returns x alone."""

    def __init__(self, channels: int, spec: UNetSpec, **kwargs):
        super().__init__(**kwargs)
        for j in range(2):
            self.attach(_residual(channels, channels, spec, f"residual{j}"))
        self.attach(SpatialTransformer(channels, spec.heads[-1], spec, name="attention0"))

    def call(self, x, embedding, contexts):  # noqa: D102
        x = self.attention0(self.residual0(x, embedding), contexts)
        return self.residual1(x, embedding)


class UNet(Network):
    """Predicts what the schedule's `prediction` names: the noise, or v.

    Call: latents [B, h, w, c], timesteps [B] or [1] float32, context [B, L, W] -> [B, h, w, out_channels].
    The sampling loop calls `prepare` once, `timestep_features` and `denoise` at every step: see `tfsd.models.Denoiser`.
    Source: Rombach et al. 2022; `UNetModel`, CompVis openaimodel.py.
    """

    def __init__(self, spec: UNetSpec, **kwargs):
        super().__init__(name="unet", autocast=False, **kwargs)  # so that timesteps reach their embedding as they are
        top, width = len(spec.channels) - 1, spec.channels[0]
        self.spec = spec
        self.time = TimeEmbedding(width, name="time")
        self.conv_in = conv(spec.in_channels, width, 3, "conv_in")
        skips = [width]  # channels of what the way up gets from the way down
        for i, channels in enumerate(spec.channels):
            widths = [width] + [channels] * (spec.residuals - 1)
            stage = Stage(widths, channels, i, spec, attention=spec.attention[i], name=f"down{i}")
            if i < top:
                stage.downsample = Downsample(channels, pad_before=True, name="downsample")
            skips += [channels] * (spec.residuals + (i < top))
            width = channels
            self.attach(stage)
        self.middle = Middle(width, spec, name="middle")
        for i in range(top, -1, -1):
            channels = spec.channels[i]
            widths = [(channels if j else width) + skips.pop() for j in range(spec.residuals + 1)]
            stage = Stage(widths, channels, i, spec, attention=spec.attention[i], name=f"up{top - i}")
            if i > 0:
                stage.upsample = Upsample(channels, name="upsample")
            width = channels
            self.attach(stage)
        self.norm_out = GroupNorm(width, spec.groups, spec.norm_epsilon, name="norm_out")
        self.conv_out = conv(width, spec.out_channels, 3, "conv_out", zero=True)

    def _transformer_blocks(self) -> list:
        stages = (*self.series("down"), self.middle, *self.series("up"))
        return [block for stage in stages for transformer in stage.series("attention") for block in transformer.series("block")]

    def prepare(self, conditioning: dict) -> list:
        """Returns keys and values for every attention to the context, in calling order.

        `conditioning`: {"context": [B, L, W]}.
        """
        return [block.attention2.keys_values(conditioning["context"]) for block in self._transformer_blocks()]

    def timestep_features(self, timesteps):
        """Returns the features [T, width] float32 of timesteps [T]: their cosines and sines."""
        return self.time.features(timesteps)

    def denoise(self, latents, features, prepared: list):
        """Returns the output [B, h, w, out_channels] for latents [B, h, w, c].

        `features` [B or 1, width] from `timestep_features`; `prepared` from `prepare`.
        """
        embedding = self.time(features)
        contexts, per_attention = list(prepared), self.spec.transformer_layers

        def take(stage):
            count = per_attention * len(list(stage.series("attention")))
            return [contexts.pop(0) for _ in range(count)]

        skips = [self.conv_in(latents)]
        for stage in self.series("down"):
            skips += stage(skips[-1], embedding, take(stage))
        x = self.middle(skips[-1], embedding, take(self.middle))
        for stage in self.series("up"):
            own = [skips.pop() for _ in stage.series("residual")]
            size = ops.shape(skips[-1])[1:3] if skips else None
            x = stage(x, embedding, take(stage), skips=own, size=size)[-1]
        return self.conv_out(silu(self.norm_out(x)))

    def call(self, latents, timesteps, context):  # noqa: D102
        return self.denoise(latents, self.timestep_features(timesteps), [context] * len(self._transformer_blocks()))
