"""The variational autoencoder's two halves: images <-> latents."""

from keras import ops

from tfsd.models import kernels
from tfsd.models.layers import (
    Block,
    Dense,
    Downsample,
    GroupNorm,
    Network,
    ResidualBlock,
    Sequence,
    Upsample,
    conv,
    silu,
    split_heads,
)
from tfsd.specs import VAESpec


class MapAttention(Block):
    """Single-head self-attention over the positions of a feature map. Call: x [B, h, w, C] -> the same."""

    def __init__(self, channels: int, groups: int, epsilon: float, **kwargs):
        super().__init__(**kwargs)
        self.norm = GroupNorm(channels, groups, epsilon, name="norm")
        self.query = Dense(channels, channels, name="query")
        self.key = Dense(channels, channels, name="key")
        self.value = Dense(channels, channels, name="value")
        self.out = Dense(channels, channels, name="out")

    def call(self, x):  # noqa: D102
        batch, height, width, channels = ops.shape(x)
        h = ops.reshape(self.norm(x), (batch, height * width, channels))
        h = kernels.attend(*(split_heads(dense(h), 1) for dense in (self.query, self.key, self.value)))
        return x + ops.reshape(self.out(h), (batch, height, width, channels))


def _residual(spec: VAESpec, in_channels: int, channels: int, name: str) -> ResidualBlock:
    return ResidualBlock(in_channels, channels, spec.groups, spec.norm_epsilon, name=name)


def _middle(spec: VAESpec) -> Sequence:
    width = spec.channels[-1]
    return Sequence(
        [
            _residual(spec, width, width, "residual0"),
            MapAttention(width, spec.groups, spec.norm_epsilon, name="attention"),
            _residual(spec, width, width, "residual1"),
        ],
        name="middle",
    )


class Encoder(Network):
    """Compresses images to the mean and log-variance of their latents.

    Call: images [B, H, W, 3] in [-1, 1] -> moments [B, H / f, W / f, 2 * latent_channels], unscaled.
    Source: Rombach et al. 2022; `Encoder`, CompVis model.py.
    """

    def __init__(self, spec: VAESpec, **kwargs):
        super().__init__(name="encoder", **kwargs)
        self.spec = spec
        self.conv_in = conv(3, spec.channels[0], 3, "conv_in")
        width = spec.channels[0]
        for i, channels in enumerate(spec.channels):
            members = []
            for j in range(spec.residuals):
                members.append(_residual(spec, width, channels, f"residual{j}"))
                width = channels
            if i < len(spec.channels) - 1:
                members.append(Downsample(width, pad_before=False, name="downsample"))
            self.attach(Sequence(members, name=f"down{i}"))
        self.middle = _middle(spec)
        self.norm_out = GroupNorm(width, spec.groups, spec.norm_epsilon, name="norm_out")
        self.conv_out = conv(width, 2 * spec.latent_channels, 3, "conv_out")
        self.quant = conv(2 * spec.latent_channels, 2 * spec.latent_channels, 1, "quant")

    def call(self, images):  # noqa: D102
        x = self.conv_in(images)
        for stage in self.series("down"):
            x = stage(x)
        x = self.middle(x)
        return self.quant(self.conv_out(silu(self.norm_out(x))))


class Decoder(Network):
    """Turns latents back into images.

    Call: latents [B, h, w, latent_channels], unscaled -> images [B, f * h, f * w, 3], about [-1, 1].
    Source: Rombach et al. 2022; `Decoder`, CompVis model.py.
    """

    def __init__(self, spec: VAESpec, **kwargs):
        super().__init__(name="decoder", **kwargs)
        self.spec = spec
        self.post_quant = conv(spec.latent_channels, spec.latent_channels, 1, "post_quant")
        self.conv_in = conv(spec.latent_channels, spec.channels[-1], 3, "conv_in")
        self.middle = _middle(spec)
        width = spec.channels[-1]
        for i, channels in enumerate(reversed(spec.channels)):
            members = []
            for j in range(spec.residuals + 1):
                members.append(_residual(spec, width, channels, f"residual{j}"))
                width = channels
            if i < len(spec.channels) - 1:
                members.append(Upsample(width, name="upsample"))
            self.attach(Sequence(members, name=f"up{i}"))
        self.norm_out = GroupNorm(width, spec.groups, spec.norm_epsilon, name="norm_out")
        self.conv_out = conv(width, 3, 3, "conv_out")

    def call(self, latents):  # noqa: D102
        x = self.middle(self.conv_in(self.post_quant(latents)))
        for stage in self.series("up"):
            x = stage(x)
        return self.conv_out(silu(self.norm_out(x)))
