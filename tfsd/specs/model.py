"""The spec of a whole model, and the numeric profiles of the implementations that it can follow."""

from dataclasses import dataclass, field, replace

from tfsd.errors import shown
from tfsd.specs.checks import SpecError, one_of, within_limits
from tfsd.specs.networks import CLIPSpec, UNetSpec, VAESpec
from tfsd.specs.schedule import ScheduleSpec


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
        within_limits(self)
        one_of(self, rounding=("nearest", "truncate"), numerics=tuple(NUMERICS))
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
