"""`tfsd.text_to_image` and `image_to_image`, with a model that is loaded once and kept for the next call."""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from typing_extensions import Unpack

from tfsd import api
from tfsd.api import StableDiffusion
from tfsd.arguments.checks import choice
from tfsd.arguments.options import EditFunctionOptions, FunctionOptions, LoadOptions, require_known, takes_options
from tfsd.arguments.table import PYTHON, Seeds, Texts
from tfsd.compat.kerascv import kerascv_names
from tfsd.images import Images
from tfsd.models import DTYPES
from tfsd.runtime.freeing import free_memory
from tfsd.specs import NUMERICS

_KEPT: dict[tuple[Any, ...], StableDiffusion] = {}  # the model of the last call, by all that it depends on
_LOADING = threading.Lock()


@kerascv_names
@takes_options(PYTHON)
def text_to_image(prompt: Texts, batch_size: int = 1, seed: Seeds = None, **options: Unpack[FunctionOptions]) -> Images:
    """Returns images of a prompt: uint8 [B, H, W, 3], with the recipe of each, and keeps the model for the next call.

    A call with another model frees the last one before it loads. If several threads make the first call, one of them loads
    the model. `model`, `dtype`, `jit_compile` and `numerics` are the arguments of `load`; all others are those of
    `StableDiffusion.text_to_image`.

    Raises: the errors of these two functions.
    """
    require_known(text_to_image, options)
    model, rest = _model_and_rest(options)
    return model.text_to_image(prompt, batch_size, seed, **rest)


@takes_options(PYTHON)
def image_to_image(
    prompt: Texts, image: Any, batch_size: int = 1, seed: Seeds = None, **options: Unpack[EditFunctionOptions]
) -> Images:
    """Returns images made of another image and a prompt: uint8 [B, H, W, 3], and keeps the model for the next call.

    `model`, `dtype`, `jit_compile` and `numerics` are the arguments of `load`; all others are those of
    `StableDiffusion.image_to_image`.

    Raises: the errors of these two functions.
    """
    require_known(image_to_image, options)
    model, rest = _model_and_rest(options)
    return model.image_to_image(prompt, image, batch_size, seed, **rest)


def _model_and_rest(options: Mapping[str, Any]) -> tuple[StableDiffusion, dict[str, Any]]:
    """Returns the model that options ask for, and the other options."""
    own = {name: value for name, value in options.items() if name in LoadOptions.__annotations__}
    return _loaded(**own), {name: value for name, value in options.items() if name not in own}


def _loaded(
    model: str | Path = "tiny", dtype: str = "float32", jit_compile: bool = True, numerics: str | None = None
) -> StableDiffusion:
    """Returns the last model again, or loads another one in its place.

    The last model goes before the next one is loaded, so that memory holds one, and threads that need the same one wait for
    one of them to load it.
    """
    choice("dtype", dtype, DTYPES)
    folder = api.model_folder(model).resolve()
    numerics = None if numerics is None else choice("numerics", numerics, tuple(NUMERICS))
    options: dict[str, Any] = {"dtype": dtype, "jit_compile": bool(jit_compile), "numerics": numerics}
    # Folder and fingerprint tell when the same name has come to mean another model.
    key = (model, folder, api.fingerprint(folder), *options.items())
    with _LOADING:
        if key not in _KEPT:
            _KEPT.clear()
            free_memory()
            _KEPT[key] = api.load(model, **options)
        return _KEPT[key]
