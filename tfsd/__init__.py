"""Stable Diffusion, deployed with TensorFlow.

The names below load what they need when they are first used: importing this package does not import TensorFlow.
"""

import importlib
from typing import TYPE_CHECKING, Any

from tfsd.runtime.backend import require_tensorflow
from tfsd.runtime.startup import quiet_imports

if TYPE_CHECKING:  # for editors and type checkers; at run time `__getattr__` finds these
    from tfsd.api import StableDiffusion, load
    from tfsd.cached_model import image_to_image, text_to_image
    from tfsd.converters import convert
    from tfsd.converters.device.export import export_tflite
    from tfsd.converters.saved_model.export import export_saved_model
    from tfsd.images import Images, Picture
    from tfsd.progress import Cancelled
    from tfsd.serving.client.aio import AsyncClient
    from tfsd.serving.client.sync import Client

__version__ = "0.1.0"  # the one place; setup.py reads it here

_HOMES = {
    "AsyncClient": "tfsd.serving.client.aio",
    "Cancelled": "tfsd.progress",
    "Client": "tfsd.serving.client.sync",
    "Images": "tfsd.images",
    "Picture": "tfsd.images",
    "StableDiffusion": "tfsd.api",
    "convert": "tfsd.converters",
    "export_saved_model": "tfsd.converters.saved_model.export",
    "export_tflite": "tfsd.converters.device.export",
    "image_to_image": "tfsd.cached_model",
    "load": "tfsd.api",
    "text_to_image": "tfsd.cached_model",
}
_COMPUTING = ("tfsd.api", "tfsd.cached_model", "tfsd.converters.saved_model.export", "tfsd.converters.device.export")
__all__ = [
    "AsyncClient",
    "Cancelled",
    "Client",
    "Images",
    "Picture",
    "StableDiffusion",
    "__version__",
    "convert",
    "export_saved_model",
    "export_tflite",
    "image_to_image",
    "load",
    "text_to_image",
]


quiet_imports()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute '{name}'")
    if _HOMES[name] in _COMPUTING:
        require_tensorflow()  # before Keras is imported: it fails in many lines where its backend is not installed
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    modules = {name for name, value in globals().items() if getattr(value, "__name__", "") == f"{__name__}.{name}"}
    return sorted({*__all__, *modules, *(name for name in globals() if name.startswith("__"))})
