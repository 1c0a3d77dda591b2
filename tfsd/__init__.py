"""Stable Diffusion, deployed with TensorFlow.

The names below load what they need when they are first used: importing this package does not import TensorFlow.
"""

import importlib
from typing import TYPE_CHECKING, Any

from tfsd.backend import require_tensorflow
from tfsd.startup import quiet_imports

if TYPE_CHECKING:  # for editors and type checkers; at run time `__getattr__` finds these
    from tfsd.api import StableDiffusion, load, text_to_image
    from tfsd.images import Images, Picture
    from tfsd.progress import Cancelled

__version__ = "0.1.0"  # the one place; setup.py reads it here

_HOMES = {
    "Cancelled": "tfsd.progress",
    "Images": "tfsd.images",
    "Picture": "tfsd.images",
    "StableDiffusion": "tfsd.api",
    "load": "tfsd.api",
    "text_to_image": "tfsd.api",
}
__all__ = ["Cancelled", "Images", "Picture", "StableDiffusion", "__version__", "load", "text_to_image"]


quiet_imports()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute '{name}'")
    if _HOMES[name] == "tfsd.api":
        require_tensorflow()  # before Keras is imported: it fails in many lines where its backend is not installed
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
