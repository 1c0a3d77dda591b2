"""Reads a configuration file of a diffusers folder field by field: each field is used, has no effect, or is refused by name."""

import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from tfsd.errors import CheckpointError, shown
from tfsd.storage.files import read_json

Tell = Callable[[str], None]  # called with what is ignored or repaired
NEWEST = (0, 42)  # release of diffusers whose fields are known here
UNSUPPORTED = "Such models are not supported."


class Config:
    """A configuration file that remembers which of its fields were read.

    An absent field has the default of the class that it configures. An explicit null does not: diffusers would pass it on.
    """

    def __init__(self, path: Path, tell: Tell):
        self.path, self.tell = path, tell
        values = read_json(path, infinite=True)
        # Fields that were saved with their default get the default of the class that reads them, as in diffusers.
        defaults = values.get("_use_default_values")
        defaults = defaults if isinstance(defaults, list) else []
        self.values = {name: value for name, value in values.items() if name not in defaults}
        self.read: set[str] = set()

    def get(self, name: str, kind: type | tuple[type, ...], default=None):
        """Returns a field of this type, or `default` if it is absent; without a default, it must be there.

        Raises: `CheckpointError` naming the field.
        """
        self.read.add(name)
        if name not in self.values and default is not None:
            return default
        value, kinds = self.values.get(name), kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise self.unsupported(name, " or ".join(k.__name__ for k in kinds))
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """Returns a number; infinite ones are refused."""
        value = self.get(name, (int, float), default)
        if abs(value) > 1e300:
            raise self.unsupported(name, "a number")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """Returns a boolean; null is false, as in Python."""
        self.read.add(name)
        return False if self.values.get(name, default) is None else self.get(name, bool, default)

    def numbers(self, name: str, count: int | None = None, default=None) -> tuple[int, ...]:
        """Returns a list of integers; with `count`, one integer stands for that many."""
        value = self.get(name, (int, list) if count else list, default)
        numbers = [value] * count if count and isinstance(value, int) else value
        if not numbers or any(type(n) is not int for n in numbers) or (count and len(numbers) != count):
            raise self.unsupported(name, f"a list of {count or 'some'} integers")
        return tuple(numbers)

    def same(self, name: str, count: int, default: int) -> int:
        """Returns the integer that a field has on all of `count` levels."""
        numbers = set(self.numbers(name, count, default))
        if len(numbers) != 1:
            raise self.unsupported(name, "the same on all levels")
        return numbers.pop()

    def one_of(self, name: str, allowed: Collection, default=None, *, advice: str = UNSUPPORTED):
        """Returns a field that must have one of these values; absent, it is `default`."""
        self.read.add(name)
        value = self.values.get(name, default)
        if isinstance(value, (list, dict)) or not any(
            value is one or (value == one and type(value) in _alike(one)) for one in allowed
        ):
            raise self.unsupported(name, " or ".join(map(repr, allowed)), advice)
        return value

    def fixed(self, fields: Mapping[str, tuple], *, advice: str = UNSUPPORTED):
        """Checks fields that must have one of the values given for them, of which the first is their default."""
        for name, allowed in fields.items():
            self.one_of(name, allowed, allowed[0], advice=advice)

    def off(self, names: Collection[str]):
        """Checks fields that must be absent, null, false, 0 or empty, on every level where they are lists."""
        self.read.update(names)
        for name in names:
            value = self.values.get(name)
            if any(value) if isinstance(value, list) else value:
                raise self.unsupported(name, "absent")

    def ignore_rest(self, owner: str, free: Collection[str], silent: Collection[str] = ()):
        """Tells which fields were not read and are not `free` or `silent`: `owner` ignores them.

        Raises: `CheckpointError` if a later release of diffusers wrote such a field, which may have a meaning there.
        """
        version = version_of(self.values)
        for name, value in self.values.items():
            if name.startswith("_") or name in self.read or name in free or name in silent or not value:
                continue
            if version is not None and version[: len(NEWEST)] > NEWEST:
                written = self.values["_diffusers_version"]
                raise self.unsupported(name, f"a field of diffusers {'.'.join(map(str, NEWEST))} (this file is from {written})")
            self.tell(f"{self.path}: {name} ({shown(value)}) is ignored, as in diffusers: {owner} has no such field.")

    def unsupported(self, name: str, expected: str, advice: str = UNSUPPORTED) -> CheckpointError:
        """Returns the error about a field."""
        got = shown(self.values[name]) if name in self.values else "nothing"
        return CheckpointError(f"{self.path}: {name} must be {expected}; got {got}. {advice}")


def version_of(values: Mapping) -> tuple[int, ...] | None:
    """Returns the release of diffusers that wrote a configuration, for instance (0, 6, 0); None if it does not say."""
    numbers = re.match(r"\d{1,6}(\.\d{1,6})*", str(values.get("_diffusers_version")))
    return tuple(map(int, numbers[0].split("."))) if numbers else None


def _alike(value) -> tuple[type, ...]:
    """Returns the types in which JSON may write a value; true is not 1."""
    return (int, float) if type(value) in (int, float) else (type(value),)
