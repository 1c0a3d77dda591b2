"""Rows of work, one per image, and the batches in which they are computed.

The command line and the clients of servers use it, so it does not import TensorFlow.
"""

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

from tfsd.arguments.table import ARGUMENTS

Row = dict[str, Any]  # arguments of one image by name: prompt, seed, index, and others where they are given
_OWN = {name for name, argument in ARGUMENTS.items() if argument.per_image} | {"index"}  # may differ within a batch


class Batch(NamedTuple):
    """Rows that one call of `text_to_image` computes."""

    numbers: list[int]  # the places of `rows` among all rows
    rows: list[Row]
    size: int  # images that the call makes; those after the rows' own only fill up the batch

    def arguments(self) -> dict[str, Any]:
        """Returns the arguments of the call, by name; lists have one value per image."""
        first, last = self.rows[0], self.rows[-1]
        filled = [*self.rows, *[last] * (self.size - len(self.rows))]
        values = {name: [row[name] for row in filled] if ARGUMENTS[name].per_image else first[name] for name in first}
        if first["index"] != last["index"]:
            values["seed"] = first["seed"]  # with one seed instead of a list, the call counts the indices up
        return values


def batches(rows: Sequence[Row], max_rows: int, *, fill: bool) -> list[Batch]:
    """Returns all rows, in batches of at most `max_rows` rows.

    Rows can share a batch if they have the same arguments, with equal values of those that a call takes one of, such as the
    image size. Their indices must be equal, or count up for one seed from each row to the next. The rows that can share a
    batch are split into batches of one size; only the last may have fewer rows. `fill` fills it up, so that one graph is
    compiled for all of them. What is in a batch with a row never changes its image.
    """
    found = []
    for group in _groups(rows):
        size = max(map(len, evenly(len(group), max_rows)))
        for first in range(0, len(group), size):
            numbers = group[first : first + size]
            found.append(Batch(numbers, [rows[i] for i in numbers], size if fill else len(numbers)))
    return found


def evenly(count: int, max_rows: int) -> list[range]:
    """Returns the numbers from 0 to `count` - 1, split into as few parts as possible, whose sizes differ by one at most."""
    parts = -(-count // max_rows)
    bounds = [count * i // parts for i in range(parts + 1)]
    return [range(*pair) for pair in zip(bounds, bounds[1:])]


def _groups(rows: Sequence[Row]) -> list[list[int]]:
    """Returns groups of rows that can share a batch, by their numbers."""
    follows = [False, *map(_counts_up, rows, rows[1:]), False]  # whether each row counts up from the row before
    groups: dict[Hashable, list[int]] = {}
    key: Hashable = None
    for i, row in enumerate(rows):
        if not follows[i]:
            key = i if follows[i + 1] else (_per_call(row), row["index"])
        groups.setdefault(key, []).append(i)
    return list(groups.values())


def _counts_up(before: Row, row: Row) -> bool:
    """Tells whether a row is the next image of the same seed as the row before it, and one call can make both."""
    place = before["seed"], before["index"] + 1
    return place == (row["seed"], row["index"]) and _per_call(before) == _per_call(row)


def _per_call(row: Row) -> Hashable:
    """Returns what all rows of a call must have in common: the names of their arguments, and the values that cannot differ."""
    return frozenset((name, None if name in _OWN else value) for name, value in row.items())
