"""KerasCV's names of arguments, and hints for those who call this package as they call KerasCV."""

import functools
import inspect
from collections.abc import Callable
from typing import TypeVar

from tfsd.arguments.table import names_elsewhere
from tfsd.specs import ModelSpec

KERASCV_NAMES = names_elsewhere("kerascv")  # KerasCV's name -> ours, in every method that has the argument
_Function = TypeVar("_Function", bound=Callable)


def kerascv_names(function: _Function) -> _Function:
    """Lets `function` take KerasCV's argument names as well as its own; an error tells of KerasCV's order of arguments."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY)
    places = [name for name, one in inspect.signature(function).parameters.items() if one.kind in kinds]

    @functools.wraps(function)
    def renamed(*args, **kwargs):
        if len(args) > len(places):
            own = [name for name in places if name != "self"]
            raise TypeError(
                f"{function.__name__} takes {', '.join(own)} by position, which is not KerasCV's order; "
                f"got {len(args) - len(places) + len(own)} values. Pass all others by their names."
            )
        for theirs, ours in KERASCV_NAMES.items():
            if theirs in kwargs:
                if kwargs.get(ours) is not None:
                    raise TypeError(f"{theirs} is another name of {ours}; got both. Leave one out.")
                kwargs[ours] = kwargs.pop(theirs)
        return function(*args, **kwargs)

    return renamed  # type: ignore[return-value]


def points_to_load(init: _Function) -> _Function:
    """Tells those who make a model as KerasCV does where it is made here."""

    @functools.wraps(init)
    def checked(self, *args, **kwargs):
        if not isinstance(args[0] if args else kwargs.get("spec"), ModelSpec):
            raise TypeError(
                'A StableDiffusion is made by `tfsd.load`, such as load("sd-1.4", numerics="kerascv"); '
                "sizes go to each call: text_to_image(..., height=512, width=512)."
            )
        init(self, *args, **kwargs)

    return checked  # type: ignore[return-value]
