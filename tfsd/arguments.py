"""Checks of a caller's arguments, made once, at the edge: each error names the argument, what fits and what came."""

import operator
import os
import secrets
from collections.abc import Sequence

import numpy as np

MAX_SIDE = 2048  # pixels
MAX_SCALE = 100  # of guidance
MAX_INDEX = 2**20  # of a picture in its seed's batch
INT64 = (-(2**63), 2**63 - 1)  # lowest and highest seed


def whole(name: str, value, low: int, high: int) -> int:
    """Returns `value` as an int if it is a whole number from `low` to `high`; raises `TypeError` or `ValueError`."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number; got {value!r}.")
    if not low <= number <= high:
        shown = number if abs(number) < 2**64 else f"one of {number.bit_length()} bits"
        raise ValueError(f"{name} must be from {low} to {high}; got {shown}.")
    return number


def choice(name: str, value, allowed: Sequence[str]) -> str:
    """Returns `value` if it is one of `allowed`; raises `ValueError` listing them."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {value!r}.")
    return value


def _as_list(value) -> list | None:
    """Returns the items of a list, tuple or array of one dimension, None for a single value."""
    if isinstance(value, np.ndarray):
        value = value.tolist() if value.ndim else value.item()
    return list(value) if isinstance(value, (list, tuple)) else None


def per_prompt(prompt, batch_size: int) -> list[str]:
    """Returns each prompt `batch_size` times, in order, from one text or a list; raises `TypeError` or `ValueError`."""
    prompts = [prompt] if isinstance(prompt, str) else _as_list(prompt)
    if prompts is None:
        raise TypeError(f"prompt must be a text or a list of texts; got {type(prompt).__name__}.")
    if not prompts:
        raise ValueError("prompt must hold at least one text; got an empty list.")
    for i, text in enumerate(prompts):
        if not isinstance(text, str):
            raise TypeError(f"prompt[{i}] must be a text; got {text!r}.")
    return [str(text) for text in prompts for _ in range(batch_size)]


def one_each(name: str, value, kind: type, batch: int) -> list:
    """Returns one value per picture from one for all, or from a list of as many; raises for another length."""
    values = _as_list(value)
    if values is None:
        values = [value.item() if isinstance(value, np.ndarray) else value] * batch
    if len(values) != batch:
        raise ValueError(f"{name} must be one for all or one for each of the {batch} pictures; got {len(values)}.")
    for item in values:
        if kind is str and not isinstance(item, str):
            raise TypeError(f"{name} must be a text, or a list of texts; got {item!r}.")
    return values


def scales(value, batch: int) -> list[float]:
    """Returns one guidance scale per picture, finite and from 0 to 100; raises `TypeError` or `ValueError`."""
    values = one_each("guidance_scale", value, float, batch)
    for scale in values:
        if isinstance(scale, bool) or not isinstance(scale, (int, float, np.integer, np.floating)):
            raise TypeError(f"guidance_scale must be a number; got {scale!r}.")
        if not 0 <= scale <= MAX_SCALE:  # false for NaN too
            raise ValueError(
                f"guidance_scale must be from 0 to {MAX_SCALE}; got {str(scale)[:30]}. Values from 3 to 10 are usual."
            )
    return [float(scale) for scale in values]


def seeds_of(seed, index, batch: int) -> tuple[list[int], list[int]]:
    """Returns each picture's seed, as given or drawn where None was, and its index; raises for what is no int64."""
    index = whole("index", index, 0, MAX_INDEX)
    if seed is None:
        seed = secrets.randbelow(2**31 - 2)
    seeds = one_each("seed", seed, int, batch)
    indices = [index + (0 if _as_list(seed) is not None else i) for i in range(batch)]
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
    """Raises `ValueError` if this machine has less memory than `needed` bytes, where that can be found out."""
    try:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return
    if needed > there:
        need, have = (f"{size / 2**30:.0f} GB" for size in (needed, there))
        raise ValueError(f"The attention of {what} needs {need} of memory; this machine has {have}. Make fewer or smaller ones.")


def rows_of(name: str, value, batch: int, shape: tuple, *, grow: bool = False) -> np.ndarray:
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
