"""Checks that specs share: limits of numbers, names of choices, and sizes that fit each other."""

from dataclasses import Field
from typing import Any, ClassVar, Protocol

from tfsd.errors import shown


class Spec(Protocol):
    """Any spec: the dataclasses of this package, and those that others add to `NETWORKS`."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


class SpecError(ValueError):
    """A spec, or the JSON of one, that cannot describe a model."""


# Lowest and highest value of every number, wherever its field stands: far from any real model's, so that what is outside
# is damage or an attack.
_SIDE = (1, 16384)
_TOKEN = (0, 10**6)
_EPSILON = (1e-12, 1e-1)
_BETA = (1e-9, 0.999)
LIMITS: dict[str, tuple[float, float]] = {
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
    "sigma_shift": (1e-2, 1e2),
    "train_steps": (1, 100_000),
    "steps_offset": (0, 99_999),
    "default_size": (1, 2048),
    "default_steps": (1, 1000),
    "default_guidance": (0.0, 100.0),
}
MAX_LEVELS = 8  # of a U-Net or VAE


def within_limits(spec: Spec) -> None:
    """Raises `SpecError` for a number of `spec` outside `LIMITS`."""
    for name in (name for name in vars(spec) if name in LIMITS):
        value, (low, high) = getattr(spec, name), LIMITS[name]
        for number in value if isinstance(value, tuple) else (value,):
            if not low <= number <= high:  # so written, NaN is out, too
                raise SpecError(f"{type(spec).__name__}.{name} must be from {low} to {high}; got {shown(value)}.")


def one_of(spec: Spec, **allowed: tuple[str, ...]) -> None:
    """Raises `SpecError` unless each named field of `spec` has one of the allowed values."""
    for name, values in allowed.items():
        if getattr(spec, name) not in values:
            got = shown(getattr(spec, name))
            raise SpecError(f"{type(spec).__name__}.{name} must be one of {', '.join(values)}; got {got}.")


def has_levels(kind: str, channels: tuple[int, ...]) -> None:
    """Raises `SpecError` for a network of no levels or of too many."""
    if not 1 <= len(channels) <= MAX_LEVELS:
        raise SpecError(f"{kind}.channels must have 1 to {MAX_LEVELS} levels; got {len(channels)}.")


def divides(kind: str, small_name: str, small: int, large_name: str, large: int) -> None:
    """Raises `SpecError` unless `small` divides `large`."""
    if small < 1 or large < 1 or large % small:
        raise SpecError(f"{kind}.{small_name} ({small}) must divide its {large_name} ({large}).")
