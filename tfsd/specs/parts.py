"""The registry of networks: how each is built, called and stored, by the class of its spec.

A new family needs its spec class, its network in `tfsd/models`, and its line in `NETWORKS`. Builders are named, not imported,
because what reads specs must not load TensorFlow.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from tfsd.specs.checks import Spec
from tfsd.specs.networks import CLIPSpec, UNetSpec, VAESpec


class PartKind(NamedTuple):
    """A network that a spec class describes. Each function takes a spec of that class.

    `fewest_values`: a lower bound of the number of its weights, without building it. `attention`: how many logits its largest
    attention has for one image with latents of height h and width w, both halves of the guidance included:
    (spec, h, w) -> number.
    """

    name: str
    file: str  # in model folders, without ".weights.h5"
    builder: str  # "module:class"; the class takes the spec
    fewest_values: Callable[[Any], int]
    attention: Callable[[Any, int, int], int]


class NetworkKind(NamedTuple):
    """What a spec class is for: the field of `ModelSpec`, its "kind" in spec.json, and the networks that it describes."""

    field: str
    kind: str
    parts: tuple[PartKind, ...]


class Part(NamedTuple):
    """A network of one model."""

    name: str  # "text_encoder", "text_encoder_2", "denoiser", "decoder", "encoder"
    file: str  # in the model folder
    kind: PartKind
    spec: Any

    @property
    def fewest_values(self) -> int:
        """A lower bound of the number of weights."""
        return self.kind.fewest_values(self.spec)


def _fewest_of_text(spec: CLIPSpec) -> int:
    return spec.rows * spec.width + spec.layers * spec.width * (4 * spec.width + 2 * spec.mlp_width)


def _fewest_of_levels(spec: UNetSpec | VAESpec) -> int:
    return sum(spec.residuals * 9 * width**2 for width in spec.channels)  # the second convolutions of residual blocks alone


def _text_attention(spec: CLIPSpec, height: int, width: int) -> int:
    return 2 * spec.heads * spec.length**2


def _unet_attention(spec: UNetSpec, height: int, width: int) -> int:
    levels = enumerate(zip(spec.attention, spec.heads))
    return max(2 * heads * ((height >> i) * (width >> i)) ** 2 if attends else 0 for i, (attends, heads) in levels)


def _vae_attention(spec: VAESpec, height: int, width: int) -> int:
    return (height * width) ** 2


NETWORKS: dict[type[Spec], NetworkKind] = {
    CLIPSpec: NetworkKind(
        "text",
        "clip",
        (PartKind("text_encoder", "text_encoder", "tfsd.models.clip:TextEncoder", _fewest_of_text, _text_attention),),
    ),
    UNetSpec: NetworkKind(
        "denoiser",
        "unet",
        (PartKind("denoiser", "unet", "tfsd.models.unet:UNet", _fewest_of_levels, _unet_attention),),
    ),
    VAESpec: NetworkKind(
        "vae",
        "vae",
        (
            PartKind("decoder", "decoder", "tfsd.models.vae:Decoder", _fewest_of_levels, _vae_attention),
            PartKind("encoder", "encoder", "tfsd.models.vae:Encoder", _fewest_of_levels, _vae_attention),
        ),
    ),
}


def parts_of(*specs: Spec) -> tuple[Part, ...]:
    """Returns the networks that the specs describe, in this order; a second of one name is called and stored with a "_2"."""
    parts: list[Part] = []
    seen: dict[str, int] = {}
    for spec in specs:
        for kind in NETWORKS[type(spec)].parts:
            seen[kind.name] = seen.get(kind.name, 0) + 1
            number = f"_{seen[kind.name]}" if seen[kind.name] > 1 else ""
            parts.append(Part(kind.name + number, f"{kind.file}{number}.weights.h5", kind, spec))
    return tuple(parts)
