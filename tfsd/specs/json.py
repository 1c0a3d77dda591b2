"""Specs as JSON: writing them, and reading them from untrusted files."""

import dataclasses
import types
import typing

from tfsd.errors import shown
from tfsd.specs.checks import SpecError
from tfsd.specs.model import ModelSpec


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
