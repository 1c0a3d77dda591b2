"""What all of the package raises and warns of, and how errors show a caller's values. Imports nothing."""

_LETTERS = 60  # of a value in a message


class CheckpointError(Exception):
    """Weights that are damaged, do not fit the model, cannot be found or cannot be written."""


class TfsdWarning(UserWarning):
    """The base of all warnings of this package, by which the command line tells them from those of its libraries."""


def shown(value) -> str:
    """Returns a value as messages show it: its repr, cut short; of an array the type, dtype and shape alone."""
    if getattr(value, "shape", ()) and hasattr(value, "dtype"):
        return f"{type(value).__name__} {value.dtype} {list(value.shape)}"
    if isinstance(value, (str, bytes)):
        value = value[: _LETTERS + 1]
    elif isinstance(value, (list, tuple)) and len(value) > _LETTERS:
        value = value[:_LETTERS]
    elif isinstance(value, int) and abs(value) >> 256:
        return f"a whole number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= _LETTERS + 2 else text[: _LETTERS - 3] + "..."


def printable(text: str) -> str:
    """Returns a text on one line in which nothing can steer a terminal or begin a line: other characters become escapes."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
