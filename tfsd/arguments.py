"""Checks of a caller's arguments, made once, at the edge: each error names the argument, what fits and what came."""

import operator
import secrets
from collections.abc import Sequence

import numpy as np

from tfsd.errors import shown
from tfsd.runtime.memory import available_memory
from tfsd.specs.limits import INT64, MAX_INDEX, MAX_SCALE, MAX_SIDE

TRUNCATED = ("truncated_tokens", "truncated_negative_tokens")  # what counts tokens cut off a prompt and a negative prompt


def whole(name: str, value, low: int, high: int) -> int:
    """Returns `value` as an int if it is a whole number from `low` to `high`; raises `TypeError` or `ValueError`."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number; got {shown(value)}.")
    if not low <= number <= high:
        raise ValueError(f"{name} must be from {low} to {high}; got {shown(number)}.")
    return number


def choice(name: str, value, allowed: Sequence[str]) -> str:
    """Returns `value` if it is one of `allowed`; raises `ValueError` listing them."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {shown(value)}.")
    return value


def _unpacked(value):
    """Returns the list of an array's items, or the one item of an array without dimensions; else `value`."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value


def batch_of(value, high: int) -> int:
    """Returns `batch_size` as an int; raises as `whole`, for a text with a hint: KerasCV's second argument is another."""
    if value is None or isinstance(_unpacked(value), (str, list)):
        hint = "It is the second argument here; a negative prompt goes by its name, negative_prompt=..."
        raise TypeError(f"batch_size must be a whole number; got {shown(value)}. {hint}")
    return whole("batch_size", value, 1, high)


def per_prompt(prompt, batch_size: int) -> list[str]:
    """Returns each prompt `batch_size` times, in order, from one text or several; raises `TypeError` or `ValueError`.

    One text may be an array without dimensions, several a list, a tuple or an array of one dimension.
    """
    _require_texts("prompt", prompt)
    prompts = _unpacked(prompt)
    prompts = prompts if isinstance(prompts, list) else [prompts]
    if not prompts:
        raise ValueError("prompt must hold at least one text; got an empty list.")
    for i, text in enumerate(prompts):
        if not isinstance(text, str):
            raise TypeError(f"prompt[{i}] must be a text; got {shown(text)}.")
    return [str(text) for text in prompts for _ in range(batch_size)]


def _require_texts(name: str, value):
    """Raises `TypeError` for what can be neither a text nor several, such as arrays of tokens."""
    is_array = isinstance(value, np.ndarray)
    if not (value.dtype.kind in "UTO" if is_array else isinstance(value, (str, list, tuple))):
        hint = " Pass the text itself: it is made into tokens here." if hasattr(value, "dtype") else ""
        raise TypeError(f"{name} must be a text or a list of texts; got {shown(value)}.{hint}")


def one_each(name: str, value, kind: type, batch: int) -> list:
    """Returns one value per picture from one for all, or from a list of as many; raises for another length."""
    if kind is str:
        _require_texts(name, value)
    values = _unpacked(value)
    values = values if isinstance(values, list) else [values] * batch
    if len(values) != batch:
        raise ValueError(f"{name} must be one for all or one for each of the {batch} pictures; got {len(values)}.")
    for i, item in enumerate(values):
        if kind is str and not isinstance(item, str):
            raise TypeError(f"{name}[{i}] must be a text; got {shown(item)}.")
    return [str(item) for item in values] if kind is str else values


def scales(value, batch: int) -> list[float]:
    """Returns one guidance scale per picture, finite and from 0 to 100; raises `TypeError` or `ValueError`."""
    values = one_each("guidance_scale", value, float, batch)
    for scale in values:
        if isinstance(scale, bool) or not isinstance(scale, (int, float, np.integer, np.floating)):
            raise TypeError(f"guidance_scale must be a number; got {shown(scale)}.")
        if not 0 <= scale <= MAX_SCALE:  # false for NaN too
            raise ValueError(f"guidance_scale must be from 0 to {MAX_SCALE}; got {shown(scale)}. Values from 3 to 10 are usual.")
    return [float(scale) for scale in values]


def seeds_of(seed, index, batch: int) -> tuple[list[int], list[int]]:
    """Returns each picture's seed, as given or drawn where None was, and its index; raises for what is no int64."""
    index = whole("index", index, 0, MAX_INDEX)
    if seed is None:
        seed = secrets.randbelow(2**31 - 2)
    seeds = one_each("seed", seed, int, batch)
    indices = [index + (0 if isinstance(_unpacked(seed), list) else i) for i in range(batch)]
    return [whole("seed", one, *INT64) for one in seeds], indices


def side_of(name: str, value, own: int, factor: int) -> int:
    """Returns a side in pixels, `own` for None; raises `ValueError` naming the nearest multiples of `factor`."""
    if value is None:
        return own
    side = whole(name, value, factor, MAX_SIDE)
    if side % factor:
        below = side - side % factor
        raise ValueError(f"{name} must be a multiple of {factor}; got {side}. Use {below or factor} or {below + factor}.")
    return side


def require_memory(needed: int, what: str):
    """Raises `ValueError` if less memory than `needed` bytes is free, where that can be found out."""
    free = available_memory()
    if free is not None and needed > free:
        raise ValueError(
            f"The attention of {what} needs {needed / 2**30:.0f} GB of memory; {free / 2**30:.1f} GB are free. "
            "Make fewer or smaller ones."
        )


def float_rows(name: str, value, batch: int, shape: tuple, *, grow: bool = False) -> np.ndarray:
    """Returns float32 [B, *shape], one row repeated to the batch; `grow` lets more rows set a batch of 1.

    None in `shape` is any size. Raises: `TypeError`, `ValueError` for what has another shape or is not finite.
    """
    try:
        array = np.asarray(value, "float32")
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be an array of numbers; got {type(value).__name__}.") from None
    if array.ndim == len(shape):
        array = array[None]
    fits = array.ndim == len(shape) + 1 and all(want in (None, got) for want, got in zip(shape, array.shape[1:]))
    if not fits or not array.size:
        wanted = ", ".join("any" if side is None else str(side) for side in shape)
        raise ValueError(f"{name} must have shape [B, {wanted}]; got {list(array.shape)}.")
    if len(array) not in (1, batch) and not (grow and batch == 1):
        raise ValueError(f"{name} has {len(array)} rows for {batch} pictures. Give one row, or one per picture.")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} has values that are NaN or infinite.")
    return np.repeat(array, batch, axis=0) if len(array) == 1 else array
