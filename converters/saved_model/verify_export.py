"""Verifies an exported SavedModel: its files are undamaged, and it still makes its reference image."""

import hashlib
import warnings
from pathlib import Path
from typing import NamedTuple

import tensorflow as tf

from tfsd.errors import CheckpointError, TfsdWarning, shown
from tfsd.storage.files import check_files, read_json

MANIFEST = "assets.extra/manifest.json"
REFERENCE_IMAGE = "assets.extra/reference.png"
FORMAT = 3  # of exports; 1 had TensorFlow's own SiLU in its graphs, 2 one program for all of text to image
TOLERANCE = 1  # levels of 255: other processors and versions of TensorFlow add the same numbers in another order
_OUTDATED = (
    "The export {name}, version {version}, was made by an older tfsd (format {format}): `tfsd serve` refuses it.{more} "
    "Export the model again with `tfsd export saved_model`."
)
_KEEPS_MEMORY = " TensorFlow Serving runs it, but never frees its memory, because TensorFlow keeps its graphs."
_NEEDED = ("name", "version", "sizes", "batching", "batch_sizes", "files", "reference")


class ExportError(CheckpointError):
    """An export makes another image than it should, or cannot be written."""


class OutdatedExportWarning(TfsdWarning):
    """An export of an older format: TensorFlow Serving still runs it, `tfsd serve` does not."""


class ExportVerdict(NamedTuple):
    """The result of `verify`: whether the image has the same bytes, and which share of its values is one level off."""

    same_bytes: bool
    share: float


def load_manifest(folder: str | Path, *, oldest: int = 1) -> dict:
    """Returns the manifest of an export of format `oldest` or newer, whose files are all there and undamaged.

    Raises: `CheckpointError` naming the file that is not, or a format that is older, or that a newer tfsd wrote.
    """
    folder = Path(folder)
    if not (folder / "saved_model.pb").is_file() or not (folder / MANIFEST).is_file():
        raise CheckpointError(f"{folder} is not a version of an export. `tfsd export saved_model` makes DIR/NAME/VERSION.")
    manifest = read_json(folder / MANIFEST)
    missing = [key for key in _NEEDED if key not in manifest]
    if missing:
        raise CheckpointError(f"{folder / MANIFEST} is damaged: it lacks {', '.join(missing)}.")
    written = manifest.get("format", 1)
    if not isinstance(written, int) or not oldest <= written <= FORMAT:
        read = FORMAT if oldest == FORMAT else f"{oldest} to {FORMAT}"
        newer = isinstance(written, int) and written > FORMAT
        advice = "Update tfsd, or export the model again with" if newer else "Export the model again with"
        raise CheckpointError(
            f"{folder / MANIFEST} has format {shown(written)}; this tfsd needs {read}. {advice} `tfsd export saved_model`."
        )
    check_files(folder, manifest["files"], folder / MANIFEST)
    return manifest


def verify(folder: str | Path) -> ExportVerdict:
    """Makes the reference image of an export again and compares it with the one made when it was exported.

    Warns of an export of an older format. Raises: `CheckpointError` for damage; `ExportError` if the image is another one.
    """
    folder = Path(folder)
    manifest = load_manifest(folder)
    if (written := manifest.get("format", 1)) < FORMAT:
        more = _KEEPS_MEMORY if written == 1 else ""
        warnings.warn(_OUTDATED.format_map(manifest | {"format": written, "more": more}), OutdatedExportWarning, stacklevel=2)
    reference = manifest["reference"]
    try:
        file = draw(folder, reference["inputs"])
    except (tf.errors.OpError, KeyError, ValueError, OSError) as error:
        raise ExportError(f"{folder} cannot make its reference image: {str(error).strip().splitlines()[-1]}") from error
    if hashlib.sha256(file).hexdigest() == reference["png_sha256"]:
        return ExportVerdict(True, 0.0)
    made, expected = tf.io.decode_png(file), tf.io.decode_png((folder / REFERENCE_IMAGE).read_bytes())
    if made.shape != expected.shape:
        raise ExportError(f"{folder} makes its reference image in another size: {made.shape} instead of {expected.shape}.")
    difference = tf.abs(tf.cast(made, tf.int32) - tf.cast(expected, tf.int32))
    worst = int(tf.reduce_max(difference))
    if worst > TOLERANCE:
        raise ExportError(f"{folder} makes another image than when it was exported: levels differ by up to {worst}.")
    return ExportVerdict(False, float(tf.reduce_mean(tf.cast(difference > 0, tf.float32))))


def draw(folder: Path, inputs: dict) -> bytes:
    """Returns the PNG file that the SavedModel in `folder` makes from one row of inputs."""
    loaded = tf.saved_model.load(str(folder))  # kept until the end: its signatures do not keep its variables
    call = loaded.signatures["text_to_png"]
    specs = call.structured_input_signature[1]
    rows = {name: tf.constant([value], specs[name].dtype) for name, value in inputs.items()}
    return call(**rows)["png_bytes"].numpy()[0]
