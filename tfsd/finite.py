"""What is said of pictures whose numbers are not finite: there is no picture, and another float type may make one."""

from collections.abc import Sequence

import numpy as np

from tfsd.errors import NotFiniteError

__all__ = ["NotFiniteError", "is_not_finite", "not_finite", "require_finite"]

_FACT = "are NaN or infinite in"
_ADVICE = {
    "float16": "float16 ends at 65504. Use dtype bfloat16 or float32",
    "bfloat16": "Use dtype float32; if that fails, too, the weights are damaged",
    "float32": "The weights are damaged or were read wrongly. Convert or download the model again",
}


def not_finite(what: str, dtype: str) -> str:
    """Returns the sentence about values, such as "latents", that are not finite in a model of `dtype`.

    It has no apostrophe: TensorFlow would write a backslash before it in the message of a failed check.
    """
    advice = _ADVICE.get(dtype, "Use dtype float32")
    return f"The {what} of the model {_FACT} {dtype}: {advice}."


def is_not_finite(message: str) -> bool:
    """Tells whether a message begins with a sentence of `not_finite`; a caller's own values stand at the end of a message."""
    return message.startswith("The ") and f" of the model {_FACT}" in message


def require_finite(rows: np.ndarray, what: str, dtype: str):
    """Raises `NotFiniteError` naming the rows of `rows` [B, ...] that hold NaN or infinite numbers."""
    bad = [i for i, row in enumerate(rows) if not np.isfinite(row).all()]
    if bad:
        raise NotFiniteError(not_finite(what, dtype) + (f" {_places(bad, len(rows))}." if len(rows) > 1 else ""))


def _places(bad: Sequence[int], count: int) -> str:
    shown = ", ".join(map(str, bad[:8])) + (", ..." if len(bad) > 8 else "")
    return f"This concerns {len(bad)} of {count} rows: {shown}"
