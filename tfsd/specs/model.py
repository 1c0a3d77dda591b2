"""The spec of a whole model, and the numeric profiles of the implementations that it can follow."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from tfsd.errors import shown
from tfsd.specs.checks import Spec, SpecError, one_of, within_limits
from tfsd.specs.networks import CLIPSpec, UNetSpec, VAESpec
from tfsd.specs.parts import NETWORKS, Part, parts_of
from tfsd.specs.schedule import SCHEDULES, ScheduleSpec, VPSpec

MAX_TEXT_ENCODERS = 3
AnySpec = TypeVar("AnySpec", bound=Spec)


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Everything needed to build and run one model. Sizes in pixels, (height, width).

    `text` has one spec per text encoder. The classes of networks' specs are those in `tfsd.specs.parts.NETWORKS`.
    """

    name: str
    text: tuple[CLIPSpec, ...] = (CLIPSpec(),)
    denoiser: UNetSpec = field(default_factory=UNetSpec)
    vae: VAESpec = field(default_factory=VAESpec)
    schedule: ScheduleSpec = field(default_factory=VPSpec)
    default_size: tuple[int, int] = (512, 512)
    default_sampler: str = "pndm"
    default_steps: int = 50
    default_guidance: float = 7.5
    rounding: str = "nearest"  # of decoded images to uint8; KerasCV and CompVis' scripts: "truncate"
    numerics: str = "compvis"
    licence: str = ""

    def __post_init__(self) -> None:
        within_limits(self)
        one_of(self, rounding=("nearest", "truncate"), numerics=tuple(NUMERICS))
        self._require_kinds()
        if len(self.default_size) != 2 or any(side % self.vae.factor for side in self.default_size):
            size = shown(self.default_size)
            raise SpecError(f"ModelSpec.default_size must be two multiples of the VAE's {self.vae.factor}; got {size}.")
        if not self.default_sampler.isidentifier():
            raise SpecError(f"ModelSpec.default_sampler must be the name of a sampler; got {shown(self.default_sampler)}.")

    def _require_kinds(self) -> None:
        """Raises `SpecError` for a network or schedule that the field cannot have."""
        if not isinstance(self.text, tuple) or not 1 <= len(self.text) <= MAX_TEXT_ENCODERS:
            raise SpecError(f"ModelSpec.text must be a tuple of 1 to {MAX_TEXT_ENCODERS} specs; got {shown(self.text)}.")
        for name, spec in self.components():
            allowed = kinds_of(name)
            if type(spec) not in allowed.values():
                names = ", ".join(kind.__name__ for kind in allowed.values())
                raise SpecError(f"ModelSpec.{name} must be one of {names}; got {type(spec).__name__}.")

    def components(self) -> list[tuple[str, Any]]:
        """Returns the specs in this one, each with the name of its field."""
        return [
            *(("text", one) for one in self.text),
            ("denoiser", self.denoiser),
            ("vae", self.vae),
            ("schedule", self.schedule),
        ]

    def parts(self, names: Iterable[str] | None = None) -> tuple[Part, ...]:
        """Returns the networks, or those of the given names in their order, each with its builder and its file.

        Raises: `ValueError` for a name that the model does not have.
        """
        parts = {part.name: part for part in parts_of(*self.text, self.denoiser, self.vae)}
        names = tuple(parts) if names is None else tuple(names)
        for name in names:
            if name not in parts:
                raise ValueError(f"A model's parts are {', '.join(parts)}; got {shown(name)}.")
        return tuple(parts[name] for name in names)

    def conditioning(self) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of what the text encoder makes of one prompt: {"context": (L, W)}.

        Raises: `SpecError` for several text encoders, whose outputs nothing joins yet.
        """
        if len(self.text) != 1:
            raise SpecError(f"{shown(self.name)} has {len(self.text)} text encoders; images can be made with one.")
        return {"context": (self.text[0].length, self.text[0].width)}

    def attention_bytes(self, batch: int, height: int, width: int) -> int:
        """Returns the memory that the largest attention needs for latents of this size: logits and weights, float32."""
        return 2 * 4 * batch * max(part.kind.attention(part.spec, height, width) for part in self.parts())

    def with_numerics(self, numerics: str) -> "ModelSpec":
        """Returns this spec with the numbers of another implementation: "compvis" or "kerascv".

        Raises: `SpecError` for another name.
        Source: contracts of KerasCV 0.9 and of CompVis / diffusers; see `NUMERICS`.
        """
        if not isinstance(numerics, str) or numerics not in NUMERICS:
            keras = isinstance(numerics, str) and "keras" in numerics.lower()
            older = " kerascv is KerasCV 0.9; the timesteps of its earlier releases are missing here." if keras else ""
            raise SpecError(f"numerics must be one of {', '.join(NUMERICS)}; got {shown(numerics)}.{older}")
        changed = {name: apply_numerics(spec, numerics) for name, spec in self.components() if name != "text"}
        text = tuple(apply_numerics(one, numerics) for one in self.text)
        sampler = NUMERICS_SAMPLERS[numerics].get(type(self.schedule), self.default_sampler)
        return replace(apply_numerics(self, numerics), numerics=numerics, default_sampler=sampler, text=text, **changed)


def kinds_of(field_name: str) -> dict[str, type[Spec]]:
    """Returns the spec classes that a field of `ModelSpec` can have, by their kinds in spec.json; the first is the default."""
    if field_name == "schedule":
        return SCHEDULES
    return {entry.kind: cls for cls, entry in NETWORKS.items() if entry.field == field_name}


def apply_numerics(spec: AnySpec, numerics: str) -> AnySpec:
    """Returns a spec with the values that `NUMERICS` has for its class."""
    return replace(spec, **NUMERICS[numerics].get(type(spec), {}))


# Every numeric difference between the two implementations of Stable Diffusion 1.x, by the class of the spec that has the field.
NUMERICS: dict[str, dict[type, dict[str, Any]]] = {
    "compvis": {
        CLIPSpec: {"ftfy": True},
        UNetSpec: {"gelu": "gelu", "transformer_norm_epsilon": 1e-6},
        VAESpec: {"norm_epsilon": 1e-6},
        VPSpec: {"spacing": "leading", "steps_offset": 1, "final_alpha_one": False},
        ModelSpec: {"rounding": "nearest"},
    },
    "kerascv": {
        CLIPSpec: {"ftfy": False},
        UNetSpec: {"gelu": "gelu_tanh", "transformer_norm_epsilon": 1e-5},
        VAESpec: {"norm_epsilon": 1e-5},
        VPSpec: {"spacing": "kerascv", "steps_offset": 0, "final_alpha_one": True},
        ModelSpec: {"rounding": "truncate"},
    },
}
NUMERICS_SAMPLERS: dict[str, dict[type, str]] = {"compvis": {VPSpec: "pndm"}, "kerascv": {VPSpec: "ddim"}}  # their defaults
