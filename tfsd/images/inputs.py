"""Images that a caller gives: files, bytes, Pillow's images and arrays, brought to the size of the result."""

import hashlib
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from tfsd.errors import shown

MAX_PIXELS = 2**26  # of a given image: 200 MB once it is decoded
MAX_BYTES = 2**28  # of a file: more than so many pixels take
_WHITE = (255, 255, 255)
_LANCZOS = Image.Resampling.LANCZOS
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")  # whose readers may see a given file

# How an image of another shape gets the size (width, height) of the result; `white` is the colour of a border.
FITS: dict[str, Callable[[Image.Image, tuple[int, int], Any], Image.Image]] = {
    "crop": lambda image, size, white: ImageOps.fit(image, size, _LANCZOS),
    "pad": lambda image, size, white: ImageOps.pad(image, size, _LANCZOS, color=white),
    "stretch": lambda image, size, white: image.resize(size, _LANCZOS),
}


def read_images(name: str, value: Any, batch: int, size: tuple[int, int], fit: str) -> tuple[np.ndarray, list[str]]:
    """Returns float32 [batch, H, W, 3] in [-1, 1] for `size` (H, W), and the SHA-256 of each image as it was given.

    `value`: one image for all, or a list with one per image: the path or the bytes of a file, an image of Pillow, or an array
    [H, W, 3], uint8 or float in [0, 1]. EXIF orientation is applied, transparency becomes white, 16 bits become 8. `fit`, a
    key of `FITS`, brings the image to the size, with Lanczos' filter; an image that has the size stays as it is.

    Raises: `TypeError`, `ValueError` for what is not such an image, or is a file that is damaged, animated or too large;
    `OSError` for a file that cannot be read.
    """
    several = isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.ndim == 4)
    given = list(value) if several else [value]
    if several and len(given) != batch:
        raise ValueError(f"{name} must be one image for all or one for each of the {batch} images; got {len(given)}.")
    names = [f"{name}[{i}]" for i in range(len(given))] if several else [name]
    read = [_read(each, one, size, fit) for each, one in zip(names, given)]
    pixels, hashes = np.stack([each for each, _ in read]), [each for _, each in read]
    return (pixels, hashes) if several else (np.repeat(pixels, batch, axis=0), hashes * batch)


def _read(name: str, value: Any, size: tuple[int, int], fit: str) -> tuple[np.ndarray, str]:
    """Returns float32 [H, W, 3] in [-1, 1] and the SHA-256 of one image."""
    if isinstance(value, np.ndarray):
        levels, data = _of_array(name, value, size, fit), value.tobytes()
    elif isinstance(value, Image.Image):
        _require_pixels(name, value.size)
        levels, data = _of_pillow(name, value, size, fit), value.tobytes()
    elif isinstance(value, (str, os.PathLike, bytes, bytearray)):
        data = bytes(value) if isinstance(value, (bytes, bytearray)) else _file(name, Path(value))
        with _opened(name if isinstance(value, (bytes, bytearray)) else f"{name} {shown(str(value))}", data) as image:
            levels = _of_pillow(name, image, size, fit)
    else:
        kinds = "the path or the bytes of a file, an image of Pillow or an array"
        raise TypeError(f"{name} must be {kinds}; got {type(value).__name__}.")
    return levels * np.float32(2.0) - np.float32(1.0), hashlib.sha256(data).hexdigest()


def _file(name: str, path: Path) -> bytes:
    """Returns the bytes of a file. Raises: `OSError` that names the argument, too; `ValueError` for a file that is too large."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}; {name} must be an image file", str(path)) from error
    if len(data) > MAX_BYTES:
        raise ValueError(f"{name} {shown(str(path))} has more than {MAX_BYTES} bytes. Give a smaller file.")
    return data


def _opened(name: str, data: bytes) -> Image.Image:
    """Returns the decoded image of a file, whose size is checked first. Raises: `ValueError`."""
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError:
        raise ValueError(f"{name} is not an image file that can be read: {', '.join(_FORMATS)}.") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name} cannot be read: {error}.") from None
    _require_pixels(name, image.size)
    if (frames := getattr(image, "n_frames", 1)) > 1:
        raise ValueError(f"{name} must be a single image; got {frames} frames. Give one of them.")
    try:
        image.load()
    except (OSError, ValueError, SyntaxError) as error:
        raise ValueError(f"{name} is damaged: {error}.") from None
    return image


def _require_pixels(name: str, size: tuple[int, int]) -> None:
    """Raises `ValueError` for an image of too many pixels, or of none."""
    width, height = size
    if not 0 < width * height <= MAX_PIXELS:
        raise ValueError(f"{name} must have from 1 to {MAX_PIXELS} pixels; got {width} x {height}.")


def _of_pillow(name: str, image: Image.Image, size: tuple[int, int], fit: str) -> np.ndarray:
    """Returns float32 [H, W, 3] in [0, 1]."""
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F"):
        raise ValueError(f"{name} has pixels of mode {shown(image.mode)}, whose range is not known. Give an array in [0, 1].")
    if image.mode.startswith("I;16"):
        image = Image.fromarray(((np.asarray(image, "uint32") + 128) // 257).astype("uint8"))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, (*_WHITE, 255)), image.convert("RGBA"))
    image = image.convert("RGB")
    height, width = size
    if image.size != (width, height):
        image = FITS[fit](image, (width, height), _WHITE)
    levels: np.ndarray = np.asarray(image, np.float32) / np.float32(255.0)
    return levels


def _of_array(name: str, array: np.ndarray, size: tuple[int, int], fit: str) -> np.ndarray:
    """Returns float32 [H, W, 3] in [0, 1]."""
    if array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise ValueError(f"{name} must have shape [H, W, 3]; got {list(array.shape)}.")
    _require_pixels(name, (array.shape[1], array.shape[0]))
    if array.dtype == np.uint8:
        return _of_pillow(name, Image.fromarray(array), size, fit)
    if array.dtype.kind != "f":
        raise TypeError(f"{name} must be uint8, or float in [0, 1]; got {array.dtype}.")
    values = array.astype(np.float32)
    if not (values.min() >= 0 and values.max() <= 1):  # false for NaN, too
        raise ValueError(f"{name} must have values from 0 to 1; got {shown(values.min())} to {shown(values.max())}.")
    if values.shape[:2] == size:
        return values
    planes = [np.asarray(FITS[fit](Image.fromarray(values[..., i]), size[::-1], 1.0)) for i in range(3)]
    fitted: np.ndarray = np.clip(np.stack(planes, axis=-1), 0, 1)  # Lanczos' filter overshoots
    return fitted
