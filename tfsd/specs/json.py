"""Specs as JSON: writing them, and reading them from untrusted files.

A network or schedule of another class than the field's default says so: {"kind": "flow", ...}.
"""

import dataclasses
import types
from typing import Any, get_args, get_type_hints, overload

from tfsd.errors import shown
from tfsd.specs.checks import Spec, SpecError
from tfsd.specs.model import AnySpec, ModelSpec, kinds_of

COMPONENTS = ("text", "denoiser", "vae", "schedule")  # the fields of `ModelSpec` that are specs


def to_json(spec: Spec) -> dict[str, Any]:
    """Returns `spec` as JSON-ready nested dicts; `from_json` gives it back."""
    values = dataclasses.asdict(spec)
    if isinstance(spec, ModelSpec):
        values |= {name: _with_kind(name, getattr(spec, name)) for name in COMPONENTS if name != "text"}
        values["text"] = [_with_kind("text", one) for one in spec.text]
    return values


@overload
def from_json(values: dict[str, Any]) -> ModelSpec: ...


@overload
def from_json(values: dict[str, Any], kind: type[AnySpec]) -> AnySpec: ...


def from_json(values: dict[str, Any], kind: type[Spec] = ModelSpec) -> Spec:
    """Builds a spec from nested dicts.

    Raises: `SpecError` naming an unknown field or a value of the wrong type.
    """
    if not isinstance(values, dict):
        raise SpecError(f"{kind.__name__} must be a JSON object; got {type(values).__name__}.")
    hints = get_type_hints(kind)
    fields = {field.name: hints[field.name] for field in dataclasses.fields(kind)}  # without class variables
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise SpecError(f"{kind.__name__} has no field {shown(unknown[0])}; it has {', '.join(fields)}.")
    if kind is ModelSpec and "name" not in values:
        raise SpecError("ModelSpec.name is missing.")
    read = _component if kind is ModelSpec else _value
    return kind(**{name: read(f"{kind.__name__}.{name}", value, fields[name]) for name, value in values.items()})


def _with_kind(name: str, spec: Spec) -> dict[str, Any]:
    """Returns a component of a model as JSON, with its kind unless that is the default."""
    (default, _), *_ = kinds_of(name).items()
    kind = next(kind for kind, cls in kinds_of(name).items() if cls is type(spec))
    return ({} if kind == default else {"kind": kind}) | dataclasses.asdict(spec)


def _component(where: str, value: Any, hint: Any) -> Any:
    """Reads a field of `ModelSpec`."""
    name = where.partition(".")[2]
    if name not in COMPONENTS:
        return _value(where, value, hint)
    if name == "text":
        several = value if isinstance(value, list) else [value]  # files of tfsd 0.1 have one text encoder, not in a list
        return tuple(_of_kind(where, one, kinds_of(name)) for one in several)
    return _of_kind(where, value, kinds_of(name))


def _of_kind(where: str, values: Any, kinds: dict[str, type[Spec]]) -> Spec:
    if not isinstance(values, dict):
        raise SpecError(f"{where} must be a JSON object; got {type(values).__name__}.")
    kind = values.get("kind", next(iter(kinds)))
    if not isinstance(kind, str) or kind not in kinds:
        raise SpecError(f"{where}.kind must be one of {', '.join(kinds)}; got {shown(kind)}.")
    return from_json({name: value for name, value in values.items() if name != "kind"}, kinds[kind])


def _value(where: str, value: Any, kind: Any) -> Any:
    if isinstance(kind, types.GenericAlias):  # tuple[T, ...] or tuple[T, T]
        item, *rest = get_args(kind)
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
