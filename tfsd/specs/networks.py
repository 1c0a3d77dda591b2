"""The specs of the networks: text encoder, denoiser and VAE."""

from dataclasses import dataclass

from tfsd.errors import shown
from tfsd.specs.checks import SpecError, divides, has_levels, one_of, within_limits


@dataclass(frozen=True, kw_only=True)
class CLIPSpec:
    """A CLIP text transformer. Defaults: ViT-L/14, as Stable Diffusion 1.x uses it."""

    vocabulary: int = 49408
    length: int = 77
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_width: int = 3072
    activation: str = "quick_gelu"  # "quick_gelu", "gelu" (erf) or "gelu_tanh"
    epsilon: float = 1e-5
    start_token: int = 49406
    end_token: int = 49407
    pad_token: int = 49407  # SD 2.x pads with 0
    ftfy: bool = True  # KerasCV does not repair text
    kept_tokens: tuple[int, ...] = ()  # if given: only these have rows of their own, the rest share row 0

    def __post_init__(self) -> None:
        within_limits(self)
        one_of(self, activation=("quick_gelu", "gelu", "gelu_tanh"))
        divides("CLIPSpec", "heads", self.heads, "width", self.width)
        if len(set(self.kept_tokens)) < len(self.kept_tokens):
            raise SpecError("CLIPSpec.kept_tokens must name no token twice.")
        for token in self.kept_tokens:
            if not 0 <= token < self.vocabulary:
                raise SpecError(f"CLIPSpec.kept_tokens must be below the vocabulary ({self.vocabulary}); got {token}.")

    @property
    def rows(self) -> int:
        """Rows of the token embedding table."""
        return len(self.kept_tokens) + 1 if self.kept_tokens else self.vocabulary


@dataclass(frozen=True, kw_only=True)
class UNetSpec:
    """A U-Net denoiser. Defaults: Stable Diffusion 1.x. One entry per level, finest first."""

    in_channels: int = 4
    out_channels: int = 4
    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    residuals: int = 2  # residual blocks per level going down; one more going up
    attention: tuple[bool, ...] = (True, True, True, False)
    heads: tuple[int, ...] = (8, 8, 8, 8)
    transformer_layers: int = 1
    context_width: int = 768
    linear_projection: bool = False  # SD 2.x projects with a dense layer, SD 1.x with a 1x1 convolution
    gelu: str = "gelu"  # of GEGLU; KerasCV: "gelu_tanh"
    groups: int = 32
    norm_epsilon: float = 1e-5
    transformer_norm_epsilon: float = 1e-6  # KerasCV: 1e-5
    upcast_attention: bool = False  # queries meet keys in float32, as SD 2.1 needs; in float16 they always do

    def __post_init__(self) -> None:
        has_levels("UNetSpec", self.channels)
        within_limits(self)
        one_of(self, gelu=("gelu", "gelu_tanh"))
        for name in ("attention", "heads"):
            if len(getattr(self, name)) != len(self.channels):
                got = shown(getattr(self, name))
                raise SpecError(f"UNetSpec.{name} needs one entry per level ({len(self.channels)}); got {got}.")
        for channels, heads in zip(self.channels, self.heads):
            divides("UNetSpec", "heads", heads, "channels", channels)
            divides("UNetSpec", "groups", self.groups, "channels", channels)


@dataclass(frozen=True, kw_only=True)
class VAESpec:
    """The autoencoder between images in [-1, 1] and latents. Defaults: Stable Diffusion 1.x and 2.x."""

    latent_channels: int = 4
    channels: tuple[int, ...] = (128, 256, 512, 512)  # finest first; one halving between neighbours
    residuals: int = 2  # per level in the encoder; one more in the decoder
    groups: int = 32
    norm_epsilon: float = 1e-6  # KerasCV: 1e-5
    scale: float = 0.18215  # 1 / std of the latents; applied by the pipeline, never in a layer
    shift: float = 0.0

    def __post_init__(self) -> None:
        has_levels("VAESpec", self.channels)
        within_limits(self)
        for channels in self.channels:
            divides("VAESpec", "groups", self.groups, "channels", channels)

    @property
    def factor(self) -> int:
        """Pixels along one side of the patch that one latent stands for."""
        return 1 << (len(self.channels) - 1)
