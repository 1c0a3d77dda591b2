"""What a model is, as data: sizes, numbers and schedules. The sole difference between presets.

A spec is frozen, compares by value and travels as `spec.json` in a model folder. Nothing here
imports TensorFlow.
"""

import dataclasses
import types
import typing
from dataclasses import dataclass, field, replace

from tfsd.errors import shown


class SpecError(ValueError):
    """A spec, or the JSON of one, that cannot describe a model."""


# Lowest and highest value of every number, wherever its field stands: far from any real model's, so that what is outside
# is damage or an attack.
_SIDE = (1, 16384)
_TOKEN = (0, 10**6)
_EPSILON = (1e-12, 1e-1)
_BETA = (1e-9, 0.999)
LIMITS = {
    **dict.fromkeys(("width", "context_width", "channels", "in_channels", "out_channels", "latent_channels"), _SIDE),
    **dict.fromkeys(("heads", "groups"), _SIDE),
    **dict.fromkeys(("start_token", "end_token", "pad_token"), _TOKEN),
    **dict.fromkeys(("epsilon", "norm_epsilon", "transformer_norm_epsilon"), _EPSILON),
    **dict.fromkeys(("beta_start", "beta_end"), _BETA),
    **dict.fromkeys(("layers", "transformer_layers"), (1, 200)),
    "vocabulary": (1, 10**6),
    "length": (2, 4096),
    "mlp_width": (1, 4 * _SIDE[1]),
    "residuals": (1, 16),
    "scale": (1e-6, 1e6),
    "shift": (-1e6, 1e6),
    "train_steps": (1, 100_000),
    "steps_offset": (0, 99_999),
    "default_size": (1, 2048),
    "default_steps": (1, 1000),
    "default_guidance": (0.0, 100.0),
}
MAX_LEVELS = 8  # of a U-Net or VAE


def _within_limits(spec):
    for name in (name for name in vars(spec) if name in LIMITS):
        value, (low, high) = getattr(spec, name), LIMITS[name]
        for number in value if isinstance(value, tuple) else (value,):
            if not low <= number <= high:  # so written, NaN is out, too
                raise SpecError(f"{type(spec).__name__}.{name} must be from {low} to {high}; got {shown(value)}.")


def _one_of(spec, **allowed: tuple[str, ...]):
    for name, values in allowed.items():
        if getattr(spec, name) not in values:
            got = shown(getattr(spec, name))
            raise SpecError(f"{type(spec).__name__}.{name} must be one of {', '.join(values)}; got {got}.")


def _has_levels(spec):
    if not 1 <= len(spec.channels) <= MAX_LEVELS:
        raise SpecError(f"{type(spec).__name__}.channels must have 1 to {MAX_LEVELS} levels; got {len(spec.channels)}.")


def _divides(kind: str, small_name: str, small: int, large_name: str, large: int):
    if small < 1 or large < 1 or large % small:
        raise SpecError(f"{kind}.{small_name} ({small}) must divide its {large_name} ({large}).")


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

    def __post_init__(self):
        _within_limits(self)
        _one_of(self, activation=("quick_gelu", "gelu", "gelu_tanh"))
        _divides("CLIPSpec", "heads", self.heads, "width", self.width)
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

    def __post_init__(self):
        _has_levels(self)
        _within_limits(self)
        _one_of(self, gelu=("gelu", "gelu_tanh"))
        for name in ("attention", "heads"):
            if len(getattr(self, name)) != len(self.channels):
                got = shown(getattr(self, name))
                raise SpecError(f"UNetSpec.{name} needs one entry per level ({len(self.channels)}); got {got}.")
        for channels, heads in zip(self.channels, self.heads):
            _divides("UNetSpec", "heads", heads, "channels", channels)
            _divides("UNetSpec", "groups", self.groups, "channels", channels)


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

    def __post_init__(self):
        _has_levels(self)
        _within_limits(self)
        for channels in self.channels:
            _divides("VAESpec", "groups", self.groups, "channels", channels)

    @property
    def factor(self) -> int:
        """Pixels along one side of the patch that one latent stands for."""
        return 2 ** (len(self.channels) - 1)


@dataclass(frozen=True, kw_only=True)
class ScheduleSpec:
    """The noise levels of training and where samplers put their steps on them."""

    betas: str = "scaled_linear"  # or "linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    train_steps: int = 1000
    prediction: str = "epsilon"  # or "v", "sample"
    spacing: str = "leading"  # or "linspace", "trailing", "kerascv" (linspace from 0, rounded, its own predecessor)
    steps_offset: int = 1
    final_alpha_one: bool = False  # the step after the last one is noise-free (KerasCV) or at timestep 0 (CompVis)
    final_sigma: str = "zero"  # what Euler and DPM-Solver++ end at: no noise, or "sigma_min", the noise of timestep 0
    zero_snr: bool = False  # the betas are rescaled, so that the last timestep is pure noise (Lin et al. 2023, algorithm 1)

    def __post_init__(self):
        _within_limits(self)
        _one_of(
            self,
            betas=("scaled_linear", "linear"),
            prediction=("epsilon", "v", "sample"),
            spacing=("leading", "linspace", "trailing", "kerascv"),
            final_sigma=("zero", "sigma_min"),
        )
        if self.zero_snr and self.prediction == "epsilon":
            raise SpecError("ScheduleSpec.zero_snr needs the prediction v or sample: from noise alone, epsilon tells nothing.")
        if self.beta_start > self.beta_end:
            raise SpecError(f"ScheduleSpec.beta_start ({self.beta_start}) must not exceed its beta_end ({self.beta_end}).")
        if self.steps_offset >= self.train_steps:
            raise SpecError(
                f"ScheduleSpec.steps_offset ({self.steps_offset}) must be below its train_steps ({self.train_steps})."
            )


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Everything needed to build and run one model. Sizes in pixels, (height, width)."""

    name: str
    text: CLIPSpec = field(default_factory=CLIPSpec)
    denoiser: UNetSpec = field(default_factory=UNetSpec)
    vae: VAESpec = field(default_factory=VAESpec)
    schedule: ScheduleSpec = field(default_factory=ScheduleSpec)
    default_size: tuple[int, int] = (512, 512)
    default_sampler: str = "pndm"
    default_steps: int = 50
    default_guidance: float = 7.5
    rounding: str = "nearest"  # of decoded images to uint8; KerasCV and CompVis' scripts: "truncate"
    numerics: str = "compvis"
    licence: str = ""

    def __post_init__(self):
        _within_limits(self)
        _one_of(self, rounding=("nearest", "truncate"), numerics=tuple(NUMERICS))
        if len(self.default_size) != 2 or any(side % self.vae.factor for side in self.default_size):
            size = shown(self.default_size)
            raise SpecError(f"ModelSpec.default_size must be two multiples of the VAE's {self.vae.factor}; got {size}.")
        if not self.default_sampler.isidentifier():
            raise SpecError(f"ModelSpec.default_sampler must be the name of a sampler; got {shown(self.default_sampler)}.")

    def with_numerics(self, numerics: str) -> "ModelSpec":
        """Returns this spec with the numbers of another implementation: "compvis" or "kerascv".

        Raises: `SpecError` for another name.
        Source: contracts of KerasCV 0.9 and of CompVis / diffusers; see `NUMERICS`.
        """
        if not isinstance(numerics, str) or numerics not in NUMERICS:
            keras = isinstance(numerics, str) and "keras" in numerics.lower()
            older = " kerascv is KerasCV 0.9; the timesteps of its earlier releases are missing here." if keras else ""
            raise SpecError(f"numerics must be one of {', '.join(NUMERICS)}; got {shown(numerics)}.{older}")
        profile = NUMERICS[numerics]
        parts = {part: replace(getattr(self, part), **fields) for part, fields in profile.items() if isinstance(fields, dict)}
        own = {name: value for name, value in profile.items() if not isinstance(value, dict)}
        return replace(self, numerics=numerics, **parts, **own)


# Every numeric difference between the two implementations of Stable Diffusion 1.x.
NUMERICS = {
    "compvis": {
        "text": {"ftfy": True},
        "denoiser": {"gelu": "gelu", "transformer_norm_epsilon": 1e-6},
        "vae": {"norm_epsilon": 1e-6},
        "schedule": {"spacing": "leading", "steps_offset": 1, "final_alpha_one": False},
        "default_sampler": "pndm",
        "rounding": "nearest",
    },
    "kerascv": {
        "text": {"ftfy": False},
        "denoiser": {"gelu": "gelu_tanh", "transformer_norm_epsilon": 1e-5},
        "vae": {"norm_epsilon": 1e-5},
        "schedule": {"spacing": "kerascv", "steps_offset": 0, "final_alpha_one": True},
        "default_sampler": "ddim",
        "rounding": "truncate",
    },
}

SD_1_4 = ModelSpec(name="sd-1.4", licence="CreativeML Open RAIL-M")
PRESETS: dict[str, ModelSpec] = {
    "sd-1.4": SD_1_4,
    "sd-1.5": replace(SD_1_4, name="sd-1.5"),
}


def to_json(spec) -> dict:
    """Returns `spec` as JSON-ready nested dicts; `from_json` gives it back."""
    return dataclasses.asdict(spec)


def from_json(values: dict, kind: type = ModelSpec):
    """Builds a spec from nested dicts.

    Raises: `SpecError` naming an unknown field or a value of the wrong type.
    """
    if not isinstance(values, dict):
        raise SpecError(f"{kind.__name__} must be a JSON object; got {type(values).__name__}.")
    fields = typing.get_type_hints(kind)
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise SpecError(f"{kind.__name__} has no field {shown(unknown[0])}; it has {', '.join(fields)}.")
    if kind is ModelSpec and "name" not in values:
        raise SpecError("ModelSpec.name is missing.")
    return kind(**{name: _value(f"{kind.__name__}.{name}", value, fields[name]) for name, value in values.items()})


def _value(where: str, value, kind):
    if dataclasses.is_dataclass(kind):
        return from_json(value, kind)
    if isinstance(kind, types.GenericAlias):  # tuple[T, ...] or tuple[T, T]
        item, *rest = typing.get_args(kind)
        if not isinstance(value, (list, tuple)):
            raise SpecError(f"{where} must be a list; got {shown(value)}.")
        if rest != [...] and len(value) != 1 + len(rest):
            raise SpecError(f"{where} must have {1 + len(rest)} entries; got {shown(value)}.")
        return tuple(_value(where, v, item) for v in value)
    if kind is float and type(value) is int and abs(value) < 2**53:
        return float(value)
    if type(value) is not kind:
        raise SpecError(f"{where} must be {kind.__name__}; got {shown(value)}.")
    return value
