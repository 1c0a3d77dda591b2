"""Checks of a caller's arguments. Each error names the argument, the allowed values and the given one."""

import difflib
import operator
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np

from tfsd.arguments.table import TEXT_TO_IMAGE, Argument, arguments_of
from tfsd.errors import shown
from tfsd.runtime.memory import available_memory
from tfsd.specs.limits import INT64, MAX_BATCH, MAX_INDEX, MAX_SIDE


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


def real(name: str, value, low: float, high: float, hint: str = "") -> float:
    """Returns `value` as a float if it is a number from `low` to `high`; raises `TypeError` or `ValueError`."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name} must be a number; got {shown(value)}.")
    if not low <= value <= high:  # false for NaN too
        raise ValueError(f"{name} must be from {low} to {high}; got {shown(value)}.{' ' * bool(hint)}{hint}")
    return float(value)


def choice(name: str, value, allowed: Sequence[str]) -> str:
    """Returns `value` if it is one of `allowed`; raises `ValueError` listing them."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {shown(value)}.")
    return value


def switch(name: str, value) -> bool:
    """Returns `value` if it is True or False; raises `TypeError`."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False; got {shown(value)}.")
    return bool(value)


def named_choice(name: str, value, allowed: Sequence[str], aliases: Mapping[str, str]) -> str:
    """Returns the one of `allowed` that `value` names, by its own name or an alias, in upper or lower case.

    Raises: `ValueError` listing them, and the closest name if there is one.
    """
    known = {one.lower(): one for one in (*allowed, *aliases)}
    if isinstance(value, str) and value.lower() in known:
        found = known[value.lower()]
        return found if found in allowed else aliases[found]
    close = difflib.get_close_matches(value[:100].lower(), known, n=1) if isinstance(value, str) else []
    hint = f" Did you mean {known[close[0]]!r}?" if close else ""
    raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {shown(value)}.{hint}")


def _unpacked(value):
    """Returns the list of an array's items, or the one item of an array without dimensions; else `value`."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value


def batch_of(value, high: int) -> int:
    """Returns `batch_size` as an int. Raises: as `whole`, with a hint for a text: KerasCV's second argument is one."""
    if value is None or isinstance(_unpacked(value), (str, list)):
        hint = "It is the second argument here; a negative prompt goes by its name, negative_prompt=..."
        raise TypeError(f"batch_size must be a whole number; got {shown(value)}. {hint}")
    return whole("batch_size", value, 1, high)


def prompts_of(prompt, batch_size) -> list[str]:
    """Returns the prompt of each image of a batch. Raises: as `per_prompt`; `ValueError` for a batch that is too large."""
    prompts = per_prompt(prompt, batch_of(batch_size, MAX_BATCH))
    require_batch(len(prompts))
    return prompts


def require_batch(count: int):
    """Raises `ValueError` for more images than fit in a batch."""
    if count > MAX_BATCH:
        raise ValueError(f"A batch has at most {MAX_BATCH} images; got {count}. Make several batches.")


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
    """Returns one value per image from one for all, or from a list of as many; raises for another length."""
    if kind is str:
        _require_texts(name, value)
    values = _unpacked(value)
    values = values if isinstance(values, list) else [values] * batch
    if len(values) != batch:
        raise ValueError(f"{name} must be one for all or one for each of the {batch} images; got {len(values)}.")
    for i, item in enumerate(values):
        if kind is str and not isinstance(item, str):
            raise TypeError(f"{name}[{i}] must be a text; got {shown(item)}.")
    return [str(item) for item in values] if kind is str else values


def seeds_of(seed, index, batch: int, highest: int = MAX_INDEX) -> tuple[list[int], list[int]]:
    """Returns the seed and the index of each image. For None, one seed is drawn at random.

    Raises: `TypeError`, `ValueError` for a seed that is not an int64, or an index above `highest`.
    """
    index = whole("index", 0 if index is None else index, 0, highest)
    if seed is None:
        seed = secrets.randbelow(2**31 - 2)
    seeds = one_each("seed", seed, int, batch)
    indices = [index + (0 if isinstance(_unpacked(seed), list) else i) for i in range(batch)]
    return [whole("seed", one, *INT64) for one in seeds], indices


NO_LIMITS: Mapping[str, int] = MappingProxyType({})
# Kind of argument -> its check: name, value and row of the table -> the value. A list of values has one per image.
KINDS: dict[str, Callable[[str, Any, Argument], Any]] = {
    "text": lambda name, value, row: value,  # `one_each` has checked it
    "whole": lambda name, value, row: whole(name, value, row.low, row.high),
    "real": lambda name, value, row: real(name, value, row.low, row.high, row.hint),
    "choice": lambda name, value, row: named_choice(name, value, row.choices, row.aliases),
    "switch": lambda name, value, row: switch(name, value),
    "image": lambda name, value, row: value,  # `tfsd.images.inputs.read_images` checks it, which knows the size
}


def checked(
    seed,
    options: Mapping[str, Any],
    batch: int,
    target: str,
    defaults: Mapping[str, Any],
    limits: Mapping[str, int] = NO_LIMITS,
    task: str = TEXT_TO_IMAGE,
) -> dict[str, Any]:
    """Returns the values of the arguments of a target and task except for the prompt, by name, in the order of the table.

    `defaults` are the model's own values, `limits` its highest ones. A list has one value per image; None stands for a value
    that the model chooses.
    Raises: `TypeError`, `ValueError` naming the argument.
    """
    rows = {name: replace(row, high=limits.get(name, row.high)) for name, row in arguments_of(target, task).items()}
    own = dict(zip(("seed", "index"), seeds_of(seed, options.get("index"), batch, rows["index"].high)))
    values = {}
    for name, row in rows.items():
        if name in own:
            values[name] = own[name]
        elif name != "prompt":
            given = options.get(name)
            values[name] = _checked(name, defaults.get(name, row.default) if given is None else given, row, batch)
    return values


def _checked(name: str, value, row: Argument, batch: int):
    if value is None:
        return None
    if not row.per_image:
        return KINDS[row.kind](name, value, row)
    values = one_each(name, value, str if row.kind == "text" else object, batch)
    return [KINDS[row.kind](name, one, row) for one in values]


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
        raise ValueError(f"{name} has {len(array)} rows for {batch} images. Give one row, or one per image.")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} has values that are NaN or infinite.")
    return np.repeat(array, batch, axis=0) if len(array) == 1 else array
