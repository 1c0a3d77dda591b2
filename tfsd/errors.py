"""What all of the package raises and warns of, and how errors show a caller's values. Imports nothing of the package."""

import os
import reprlib
import sys
import warnings
from typing import Any

LIMIT = 60  # characters of a value in a message
_PACKAGES = ("tfsd",)
_MAX_BITS = 256  # of a number that is written out


class CheckpointError(Exception):
    """Weights that are damaged, do not fit the model, cannot be found or cannot be written."""


class NotFiniteError(ArithmeticError):
    """Latents or images are NaN or infinite."""


class TfsdWarning(UserWarning):
    """The base of all warnings of this package, by which the command line tells them from those of its libraries."""


def warn(message: str, category: type[TfsdWarning]) -> None:
    """Warns of something in the code that called this package, at the line that did."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in _PACKAGES:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


class _Short(reprlib.Repr):
    def __init__(self, limit: int):
        super().__init__()
        self.maxstring = self.maxother = limit
        self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = self.maxdict = self.maxdeque = self.maxarray = 6
        self.maxlevel = 3

    def repr1(self, x: Any, level: int) -> str:
        """Returns the text of a value, or of one inside another."""
        if isinstance(x, os.PathLike):
            x = os.fspath(x)
        if isinstance(x, str):
            return repr(str(x if len(x) <= self.maxstring else x[: self.maxstring - 3] + "..."))
        if isinstance(x, (bytes, bytearray)):
            return repr(bytes(x[: self.maxstring])) + ("..." if len(x) > self.maxstring else "")
        if isinstance(x, int) and x.bit_length() > _MAX_BITS:  # Python refuses to write out the largest
            return f"a number of {x.bit_length()} bits"
        if hasattr(x, "dtype") and hasattr(x, "shape"):
            return self._array(x, level)
        return super().repr1(x, level)

    def _array(self, x: Any, level: int) -> str:
        if type(x).__module__.split(".")[0] == "numpy" and x.shape == () and not x.dtype.hasobject:
            item = x.item()
            return str(x) if isinstance(item, float) else self.repr1(item, level)  # float32's 0.1 is no other number
        return f"{type(x).__name__} {getattr(x.dtype, 'name', x.dtype)} [{', '.join(map(str, x.shape))}]"


def shown(value: object, limit: int = LIMIT) -> str:
    """Returns a value as messages show it: on one line of at most about `limit` characters.

    Arrays and tensors are shown by type, dtype and shape: `ndarray int32 [1, 77]`.
    """
    try:
        text = _Short(limit).repr(value)
    except Exception:  # a value whose own methods fail; the error that is about to be raised says more
        text = f"a {type(value).__name__}"
    text = "".join(c if c.isprintable() else " " if c.isspace() else repr(c)[1:-1] for c in text[: limit + 10])
    return text if len(text) <= limit + 2 else text[: limit - 3] + "..."


def printable(text: str) -> str:
    """Returns a text on one line in which nothing can steer a terminal or begin a line: other characters become escapes."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
