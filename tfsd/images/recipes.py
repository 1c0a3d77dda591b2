"""The recipe of an image: everything that is needed to make it again."""

import importlib.metadata
from collections.abc import Mapping
from typing import Any

from tfsd import __version__
from tfsd.arguments.table import ARGUMENTS


def recipes_of(values: Mapping[str, Any], more: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns one recipe per image from the values of arguments, as `tfsd.arguments.checks.checked` has them.

    A list has one value per image; `more` is what else all images have in common.
    """
    shared = {**more, "tfsd": __version__, "tensorflow": importlib.metadata.version("tensorflow")}
    return [own | shared for own in per_image(values)]


def per_image(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the arguments of each image that belong to its recipe."""
    kept = {name: value for name, value in values.items() if ARGUMENTS[name].in_recipe}
    count = next(len(value) for value in kept.values() if isinstance(value, list))
    return [{name: value[i] if isinstance(value, list) else value for name, value in kept.items()} for i in range(count)]
