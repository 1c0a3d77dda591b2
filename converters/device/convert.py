"""Turns a part into a TFLite file."""

import tempfile
from pathlib import Path

import tensorflow as tf

from converters.device.parts import Part, save_part
from converters.verify import ExportError


def convert(part: Part, target: Path) -> Path:
    """Writes a part as a float32 TFLite file of builtin operations, and returns its path.

    Raises: `ExportError` for a part that TFLite cannot express.
    """
    with tempfile.TemporaryDirectory() as folder:
        save_part(part, Path(folder))
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=list(part.signatures))
        try:
            target.write_bytes(converter.convert())
        except Exception as error:  # the converter raises a class of its own for each stage
            raise ExportError(f"{target.stem} cannot be converted to TFLite: {first_line(error)}") from error
    return target


def first_line(error: Exception) -> str:
    """Returns the first line of what a library says, which often goes on for pages."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
