"""Rules that match the tensors of another package exactly with our variables; every importer uses them."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tfsd.storage.h5 import FLOATS, CheckpointError, StoredTensor


class Layout(NamedTuple):
    """How a foreign tensor becomes ours: a transposition, then dropping axes of size one."""

    axes: tuple[int, ...] | None = None
    ones: tuple[int, ...] = ()

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """Returns our shape for a foreign tensor's shape, or None if this layout cannot apply."""
        if self.axes is not None:
            if len(shape) != len(self.axes):
                return None
            shape = tuple(shape[axis] for axis in self.axes)
        if any(axis >= len(shape) or shape[axis] != 1 for axis in self.ones):
            return None
        return tuple(size for axis, size in enumerate(shape) if axis not in self.ones)

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Returns foreign values in our layout."""
        if self.axes is not None:
            values = values.transpose(self.axes)
        return np.ascontiguousarray(values.squeeze(self.ones) if self.ones else values)

    def undo(self, values: np.ndarray) -> np.ndarray:
        """Returns our values in the foreign layout; the inverse of `apply`."""
        if self.ones:
            values = np.expand_dims(values, self.ones)
        if self.axes is not None:
            values = values.transpose(np.argsort(self.axes))
        return np.ascontiguousarray(values)


SAME = Layout()
LINEAR = Layout((1, 0))  # [out, in] -> [in, out]
CONV = Layout((2, 3, 1, 0))  # OIHW -> HWIO


class Rule(NamedTuple):
    """One line of an importer's table: `{i}` stands for the same number in the foreign name and in our path."""

    name: str
    path: str
    layout: Layout = SAME


class Match(NamedTuple):
    """What a rule says about a tensor: its name on the other side, and the layout."""

    target: str
    layout: Layout


class Rules:
    """A compiled table, read in both directions.

    Raises: `ValueError` if the sides of a rule do not have the same placeholders.
    """

    def __init__(self, rules: Iterable[Rule]):
        self._fixed: tuple[dict[str, Rule], dict[str, Rule]] = {}, {}  # rules without a placeholder, by either side
        self._open: list[tuple[re.Pattern, re.Pattern, Rule]] = []
        for rule in rules:
            placeholders = sorted(re.findall(r"\{(\w+)\}", rule.name))
            if placeholders != sorted(re.findall(r"\{(\w+)\}", rule.path)):
                raise ValueError(f"Both sides of a rule need the same placeholders; got {rule.name!r} and {rule.path!r}.")
            if placeholders:
                self._open.append((_pattern(rule.name), _pattern(rule.path), rule))
            else:
                self._fixed[0][rule.name], self._fixed[1][rule.path] = rule, rule

    def ours(self, name: str) -> Match | None:
        """Returns our path for a foreign name, or None."""
        return self._match(name, 0)

    def theirs(self, path: str) -> Match | None:
        """Returns the foreign name for a path of ours, or None."""
        return self._match(path, 1)

    def _match(self, text: str, side: int) -> Match | None:
        rule = self._fixed[side].get(text)
        if rule is not None:
            return Match((rule.path, rule.name)[side], rule.layout)
        for *patterns, rule in self._open:
            found = patterns[side].fullmatch(text)
            if found:
                return Match((rule.path, rule.name)[side].format(**found.groupdict()), rule.layout)
        return None


def _pattern(template: str) -> re.Pattern:
    return re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>0|[1-9][0-9]*)", re.escape(template)))


def assign(
    source: Mapping[str, StoredTensor],
    expected: Mapping[str, tuple[int, ...]],
    rules: Rules,
    *,
    where: str,
    model: str,
) -> dict[str, StoredTensor]:
    """Returns {variable path: tensor in our layout} in the order of `expected`; values are read one by one on demand.

    Raises: `CheckpointError` unless both sides match exactly, in names, shapes and types.
    """
    found: dict[str, tuple[str, Layout]] = {}
    unknown, wrong, twice = [], [], []
    for name, tensor in source.items():
        match = rules.ours(name)
        if match is None or match.target not in expected:
            unknown.append(name)
        elif match.target in found:
            twice.append(name)
        elif match.layout.shape(tensor.shape) != tuple(expected[match.target]):
            wrong.append(f"{name} {list(tensor.shape)} for {match.target} {list(expected[match.target])}")
        elif tensor.dtype not in FLOATS:
            wrong.append(f"{name} of type {tensor.dtype}")
        if match is not None:
            found.setdefault(match.target, (name, match.layout))
    unset = [path for path in expected if path not in found]
    if unknown or unset or wrong or twice:
        raise CheckpointError(_misfit(where, model, unknown=unknown, unset=unset, wrong=wrong, twice=twice))
    return {path: _laid_out(source[found[path][0]], found[path][1], shape) for path, shape in expected.items()}


def _laid_out(tensor: StoredTensor, layout: Layout, shape: tuple[int, ...]) -> StoredTensor:
    return StoredTensor(tuple(shape), tensor.dtype, lambda: layout.apply(tensor.read()))


def _misfit(where: str, model: str, *, unknown: Sequence, unset: Sequence, wrong: Sequence, twice: Sequence) -> str:
    problems = []
    for items, what in (
        (unknown, "unknown tensors"),
        (unset, "variables left unset"),
        (wrong, "wrong shapes or types"),
        (twice, "tensors given twice"),
    ):
        if items:
            problems.append(f"{len(items)} {what} ({', '.join(items[:3])}{', ...' if len(items) > 3 else ''})")
    return f"{where} does not fit {model}: {'; '.join(problems)}."


def invert(tensors: Iterable[tuple[str, np.ndarray]], rules: Rules) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (foreign name, values) for our variables: the inverse of `assign`.

    Raises: `CheckpointError` naming a variable that no rule fits.
    """
    for path, values in tensors:
        match = rules.theirs(path)
        if match is None:
            raise CheckpointError(f"No rule exports the variable {path}.")
        yield match.target, match.layout.undo(values)
