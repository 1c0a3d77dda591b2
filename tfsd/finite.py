"""Errors for latents and images that are NaN or infinite: they name the float type, and another that may work."""

from collections.abc import Mapping, Sequence

import numpy as np

from tfsd.errors import NotFiniteError

__all__ = ["NotFiniteError", "is_not_finite", "not_finite", "require_finite", "require_rows"]

_FACT = "are NaN or infinite in"
_HUGE = 1000.0  # noise ends at 6, latents at about 30 and the contexts of published text encoders at a few hundred
_ADVICE = {
    "float16": "float16 ends at 65504. Use dtype bfloat16 or float32",
    "bfloat16": "Use dtype float32; if that fails, too, the weights are damaged",
    "float32": "The weights are damaged or were read wrongly. Convert or download the model again",
}


def not_finite(what: str, dtype: str, given: str = "") -> str:
    """Returns the sentence about values, such as "latents", that are not finite in a model of `dtype`.

    `given` names values of the caller's own from which these were made, and which may be the cause.
    It has no apostrophe: TensorFlow would write a backslash before it in the message of a failed check.
    """
    advice = _ADVICE.get(dtype, "Use dtype float32")
    if given:
        advice = f"If the {given} hold numbers beyond {_HUGE:g}, give smaller ones. Otherwise: {advice}"
    return f"The {what} of the model {_FACT} {dtype}: {advice}."


def is_not_finite(message: str) -> bool:
    """Tells whether a message begins with a sentence of `not_finite`; a caller's own values stand at the end of a message."""
    return message.startswith("The ") and f" of the model {_FACT}" in message


def require_finite(rows: np.ndarray, what: str, dtype: str):
    """Raises `NotFiniteError` naming the rows of `rows` [B, ...] that hold NaN or infinite numbers."""
    require_rows(np.array([bool(np.isfinite(row).all()) for row in rows]), what, dtype)


def require_rows(finite: np.ndarray, what: str, dtype: str, given: Mapping[str, np.ndarray] | None = None):
    """Raises `NotFiniteError` naming the rows for which `finite` bool [B] is False.

    `given` are arrays of the caller from which they were made. Huge numbers in one of them, not the weights, are the cause.
    """
    bad = np.flatnonzero(~finite).tolist()
    if not bad:
        return
    for name, values in (given or {}).items():
        largest = float(np.abs(values).max())
        if largest > _HUGE:
            raise NotFiniteError(
                f"The {what} of the model {_FACT} {dtype}: {name} has numbers up to {largest:.3g}, which no model expects. "
                f"Give numbers of at most {_HUGE:g}."
            )
    raise NotFiniteError(not_finite(what, dtype) + (f" {_places(bad, len(finite))}." if len(finite) > 1 else ""))


def _places(bad: Sequence[int], count: int) -> str:
    shown = ", ".join(map(str, bad[:8])) + (", ..." if len(bad) > 8 else "")
    return f"This concerns {len(bad)} of {count} rows: {shown}"
