"""Turns a part that was saved as a SavedModel into a TFLite file."""

from collections.abc import Sequence
from pathlib import Path

import tensorflow as tf

from tfsd.converters.device.jobs import convert_saved
from tfsd.converters.device.measure import first_line
from tfsd.converters.saved_model.verify_export import ExportError

LARGE = 10**8  # weights from which a process of its own converts, whose memory is then free again


def convert(folder: Path, target: Path, signatures: Sequence[str], weights: int) -> Path:
    """Writes a part in `folder`, with so many weights, as a float32 TFLite file of builtin operations, and returns its path.

    Raises: `ExportError` for a part that TFLite cannot express; `CheckpointError` if there is too little memory for a large one.
    """
    if weights >= LARGE:
        convert_saved(folder, target, signatures, weights)
        return target
    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder), signature_keys=list(signatures))
    try:
        target.write_bytes(converter.convert())
    except Exception as error:  # the converter raises a class of its own for each stage
        raise ExportError(f"{target.stem} cannot be converted to TFLite: {first_line(error)}") from error
    return target
