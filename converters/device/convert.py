"""Converts a part that was saved as a SavedModel to TFLite."""

from collections.abc import Sequence
from pathlib import Path

from tfsd.runtime.memory import available_memory
from tfsd.runtime.private import private

CONVERSION_BYTES = 18  # of memory for each weight while TFLite converts it


def convert(folder: str | Path, target: Path, signatures: Sequence[str], weights: int):
    """Writes the part in `folder`, which has so many weights, as a float32 TFLite file of builtin operations.

    Converts as `tf.lite.TFLiteConverter.from_saved_model(...).convert()`, but leaves out two steps. They load all weights, once
    for the names of signatures, which are known here, and once for the origins of errors, and keep them: for SD 1.x's U-Net
    7 GB, in addition to 15 GB for the rest.
    Raises: `MemoryError` if too little memory is free; for a part that TFLite cannot express, what the converter raises.
    """
    _require_memory(CONVERSION_BYTES * weights)
    make = private("tensorflow.lite.python.lite:TFLiteSavedModelConverterV2")
    run = private("tensorflow.lite.python.lite:TFLiteSavedModelConverterV2._convert_from_saved_model")
    parse = private("tensorflow.python.saved_model.loader_impl:parse_saved_model")
    converter = make(str(folder), {"serve"}, list(signatures))
    converter._debug_info = None  # its value before the second of those steps
    target.write_bytes(run(converter, parse(str(folder)).meta_graphs[0].graph_def))


def _require_memory(needed: int):
    """Raises `MemoryError` before the system, short of memory, would end this process or others."""
    free = available_memory()
    if free is not None and needed > free:
        raise MemoryError(f"that needs about {needed / 1e9:.1f} GB of memory; {free / 1e9:.1f} GB are free")
