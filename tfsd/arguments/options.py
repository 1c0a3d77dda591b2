"""Keyword arguments as signatures show them: the table's, and those that say how a call is made."""

import difflib
import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, TypedDict, TypeVar, get_args

from tfsd.arguments.table import (
    ARGUMENTS,
    TEXT_TO_IMAGE,
    EditArguments,
    GuidanceArguments,
    ImageArguments,
    Option,
    names_elsewhere,
    rows_of,
)
from tfsd.errors import shown

Callback = Callable[[int, int], bool | None]
_Function = TypeVar("_Function", bound=Callable)
_BATCH_SIZE = Option(default=1, help="images of each prompt")
_CALLS = {"num_images_per_prompt": "batch_size", "n_samples": "batch_size", "callback_on_step_end": "callback"}


class CallOptions(TypedDict, total=False):
    """How a call tells of its progress."""

    progress: Annotated[bool, Option(default=False, help="shows a progress bar")]
    callback: Annotated[
        Callback | None,
        Option(help="a function of (done, steps), called about once a second; returning False cancels the call"),
    ]


class ModelOptions(GuidanceArguments, ImageArguments, CallOptions):
    """Keyword arguments of a model's or a bundle's `text_to_image`."""


class EditOptions(ModelOptions, EditArguments):
    """Keyword arguments of a model's `image_to_image`."""


class GenerateOptions(ImageArguments, CallOptions):
    """Keyword arguments of `generate_image`, which takes the others by position, too."""


class ServerOptions(ModelOptions, total=False):
    """Keyword arguments of a client's methods."""

    timeout: Annotated[float | None, Option(help="seconds for the whole call, instead of the client's own")]


class LoadOptions(TypedDict, total=False):
    """The arguments of `tfsd.load`."""

    model: Annotated[str | Path, Option(default="tiny", help="a preset's name or a model folder")]
    dtype: Annotated[str, Option(default="float32", help="of weights and multiplications")]
    jit_compile: Annotated[bool, Option(default=True, help="compile with XLA")]
    numerics: Annotated[str | None, Option(help='"compvis" or "kerascv" instead of the model\'s own')]


class FunctionOptions(ModelOptions, LoadOptions):
    """Keyword arguments of `tfsd.text_to_image`."""


class EditFunctionOptions(EditOptions, LoadOptions):
    """Keyword arguments of `tfsd.image_to_image`."""


def options_of(kind: type, target: str) -> dict[str, tuple[Any, Option]]:
    """Returns the fields of a TypedDict that apply to a target, with their types and rows."""
    return {name: (type_, row) for name, (type_, row) in rows_of(kind).items() if target in getattr(row, "targets", (target,))}


def takes_options(target: str) -> Callable[[_Function], _Function]:
    """Makes `help()` and `inspect.signature` of a function show every argument that `**options: Unpack[...]` stands for.

    Its docstring gets a list of the arguments that are in the table.
    """

    def show(function: _Function) -> _Function:
        own = inspect.signature(function)
        (unpacked,) = (one for one in own.parameters.values() if one.kind is inspect.Parameter.VAR_KEYWORD)
        options = options_of(get_args(unpacked.annotation)[0], target)
        named = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=row.default, annotation=kind)
            for name, (kind, row) in options.items()
        ]
        fixed = [one for one in own.parameters.values() if one is not unpacked]
        function.__signature__ = own.replace(parameters=[*fixed, *named])  # type: ignore[attr-defined]
        known = ARGUMENTS | {"batch_size": _BATCH_SIZE}
        first = [name for name in own.parameters if name in known]
        rows = {name: known[name] for name in first} | {name: row for name, (_, row) in options.items()}
        listed = "\n".join(f"- `{name}`: {row.full_help}." for name, row in rows.items())
        function.__doc__ = f"{inspect.cleandoc(function.__doc__ or '')}\n\nArguments:\n\n{listed}\n"
        return function

    return show


def require_known(function: Callable, given: Iterable[str]):
    """Raises `TypeError` for a keyword argument that a function does not take, with the name that was probably meant."""
    known = inspect.signature(function).parameters
    for name in given:
        if name in known:
            continue
        theirs = {their: our for their, our in (names_elsewhere() | _CALLS).items() if our in known}
        close = difflib.get_close_matches(name[:100], known, 1)
        near = theirs.get(name) or (close[0] if close else None)
        hint = f" Did you mean {shown(near)}?" if near else ""
        if name in ARGUMENTS:
            of_text = TEXT_TO_IMAGE in ARGUMENTS[name].tasks
            hint = " It is fixed for this model." if of_text else f" It is for {' and '.join(ARGUMENTS[name].tasks)}."
        raise TypeError(f"{function.__name__}() got an unexpected keyword argument {shown(name)}.{hint}")
