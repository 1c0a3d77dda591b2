"""What a model is, as data: sizes, numbers and schedules. The sole difference between presets.

A spec is frozen, compares by value and travels as `spec.json` in a model folder. Nothing here
imports TensorFlow.
"""

import dataclasses
import types
import typing
from dataclasses import dataclass, field, replace


class SpecError(ValueError):
    """A spec, or the JSON of one, that cannot describe a model."""


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
        if self.activation not in ("quick_gelu", "gelu", "gelu_tanh"):
            raise SpecError(f"activation must be quick_gelu, gelu or gelu_tanh; got {self.activation!r}.")
        _divides("CLIPSpec", "heads", self.heads, "width", self.width)

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

    def __post_init__(self):
        for name in ("attention", "heads"):
            if len(getattr(self, name)) != len(self.channels):
                raise SpecError(f"UNetSpec.{name} needs one entry per level ({len(self.channels)}); got {getattr(self, name)}.")
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

    def __post_init__(self):
        for name, allowed in (
            ("betas", ("scaled_linear", "linear")),
            ("prediction", ("epsilon", "v", "sample")),
            ("spacing", ("leading", "linspace", "trailing", "kerascv")),
        ):
            if getattr(self, name) not in allowed:
                raise SpecError(f"ScheduleSpec.{name} must be one of {', '.join(allowed)}; got {getattr(self, name)!r}.")


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

    def with_numerics(self, numerics: str) -> "ModelSpec":
        """Returns this spec with the numbers of another implementation: "compvis" or "kerascv".

        Source: contracts of KerasCV 0.9 and of CompVis / diffusers; see `NUMERICS`.
        """
        if numerics not in NUMERICS:
            raise SpecError(f"numerics must be one of {', '.join(NUMERICS)}; got {numerics!r}.")
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
        raise SpecError(f"{kind.__name__} has no field {unknown[0]!r}; it has {', '.join(fields)}.")
    if kind is ModelSpec and "name" not in values:
        raise SpecError("ModelSpec.name is missing.")
    return kind(**{name: _value(f"{kind.__name__}.{name}", value, fields[name]) for name, value in values.items()})


def _value(where: str, value, kind):
    if dataclasses.is_dataclass(kind):
        return from_json(value, kind)
    if isinstance(kind, types.GenericAlias):  # tuple[T, ...] or tuple[T, T]
        item = typing.get_args(kind)[0]
        if not isinstance(value, (list, tuple)):
            raise SpecError(f"{where} must be a list; got {value!r}.")
        return tuple(_value(where, v, item) for v in value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        raise SpecError(f"{where} must be {kind.__name__}; got {value!r}.")
    return value
