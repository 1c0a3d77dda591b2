"""Keras' backend: generating images, exports and servers require TensorFlow; training also runs on other backends."""

import json
import os
import sys
from pathlib import Path

from tfsd.errors import shown


class BackendError(ImportError):
    """Keras is set to a backend on which this package cannot generate images."""


def backend() -> tuple[str, str]:
    """Returns the name of Keras' backend and where it was set, without importing Keras, which imports the backend."""
    if "keras" in sys.modules and hasattr(sys.modules["keras"], "config"):
        return sys.modules["keras"].config.backend(), "Keras is imported"
    if os.environ.get("KERAS_BACKEND"):
        return os.environ["KERAS_BACKEND"], "KERAS_BACKEND is set"
    path = Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser() / "keras.json"
    try:
        name = json.loads(path.read_text(encoding="utf-8")).get("backend", "tensorflow")
    except (OSError, ValueError, AttributeError):  # Keras passes over a file that it cannot read, too
        return "tensorflow", "it is the default"
    return str(name), f"{path} says so"


def require_tensorflow() -> None:
    """Raises `BackendError` unless Keras runs on TensorFlow."""
    name, why = backend()
    if name != "tensorflow":
        raise BackendError(
            f"Drawing and exporting need Keras on TensorFlow, but its backend is {shown(name)} ({why}). "
            "Set KERAS_BACKEND=tensorflow before Python starts; only `tfsd train` runs on other backends."
        )
