"""Image files that carry the recipe of their image, and reading it back from untrusted files.

A PNG file has the recipe as JSON in the text chunk `tfsd`, a JPEG or WebP file in EXIF's MakerNote. For people and other
programs it is also where image generators put theirs, in their form: in the chunk `parameters`, in EXIF's UserComment.
"""

import io
import json
import math
import os
import stat
from collections.abc import Mapping
from typing import Any

from PIL import Image, features

from tfsd.arguments.checks import whole
from tfsd.images.files import exif, png
from tfsd.images.files.formats import FORMATS, QUALITY, image_path
from tfsd.images.files.infotext import foreign_recipe, infotext, parse_infotext
from tfsd.images.files.limits import MAX_TEXT, FilePath
from tfsd.images.files.names import file_names, free_names
from tfsd.images.files.writing import FileThereError, ImageFileError, NoRecipeError, check_targets, write_files

__all__ = [
    "FORMATS", "FileThereError", "ImageFileError", "NoRecipeError", "check_targets", "encode", "file_names", "foreign_recipe",
    "free_names", "image_path", "infotext", "parse_infotext", "read_parameters", "read_recipe", "write_files",
]  # fmt: skip

RECIPE_KEY = "tfsd"
READABLE_KEY = "parameters"


def encode(picture: Image.Image, recipe: Mapping[str, Any], ending: str = ".png", *, quality: int | None = None) -> bytes:
    """Returns the file of an image in the format of a file name's `ending`, with the recipe inside.

    JPEG and WebP are lossy: the pixels change a little, the less the higher `quality`, from 1 to 100 (default: 95).
    The same image, recipe and quality give the same bytes.

    Raises: `ValueError` for a quality that does not fit; `ImageFileError` for a recipe or an image that is too large.
    """
    chosen = FORMATS[ending.lower()]
    if quality is not None and not chosen.lossy:
        raise ValueError("quality must be None for a .png file, which is lossless. Leave it out, or choose .jpg or .webp.")
    quality = QUALITY if quality is None else whole("quality", quality, 1, 100)
    if max(picture.size) > chosen.max_side:
        raise ImageFileError(f"A {ending} file has at most {chosen.max_side} pixels a side; got {max(picture.size)}. Use .png.")
    if chosen.name == "WEBP" and not features.check("webp"):
        raise ImageFileError("This installation of Pillow cannot write WebP. Use .png or .jpg.")
    text, shown, software = _texts(recipe)
    if chosen.lossy:
        block = exif.exif_block(text, shown, software)
        if len(block) > chosen.max_exif:
            room = f"has room for {chosen.max_exif} bytes of texts; the recipe needs {len(block)}"
            raise ImageFileError(f"A {ending} file {room}. Use .png.")
        options = chosen.options | {"quality": quality, "exif": block}
    else:
        options = {"pnginfo": png.text_chunks({RECIPE_KEY: text, READABLE_KEY: shown, "Software": software})}
    file = io.BytesIO()
    picture.save(file, format=chosen.name, **options)
    return file.getvalue()


def _texts(recipe: Mapping[str, Any]) -> tuple[str, str, str]:
    """Returns a recipe as JSON, as readable text, and the software that made it."""
    text = json.dumps(recipe, ensure_ascii=False, allow_nan=False)
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")  # half a surrogate pair: so JSON writes it, too
    if len(text.encode("utf-8")) > MAX_TEXT:
        raise ImageFileError(f"The recipe has more than {MAX_TEXT} bytes. Save the images one by one.")
    shown = infotext(recipe).replace("\0", " ").encode("utf-8", "replace").decode("utf-8")
    return text, shown, f"tfsd {recipe.get('tfsd', '')}".strip()


def read_recipe(path: FilePath) -> dict[str, Any]:
    """Returns the recipe that a PNG, JPEG or WebP file carries, without decoding its pixels.

    A grid has {"columns": ..., "pictures": [recipe, ...]}. The file's contents tell its format, not its name.
    Raises: `ImageFileError` if the file cannot be read, is damaged, or has no recipe of this package.
    """
    text = _first_text(path, RECIPE_KEY)
    if text is None:
        raise NoRecipeError(f"{path} has no recipe: it was not written by tfsd, or another program removed it.")
    return _parsed(text, path)


def read_parameters(path: FilePath) -> str:
    """Returns the text that image generators write, from a PNG, JPEG or WebP file; `parse_infotext` takes it apart.

    Files of this package have it, too, but their recipe says more.
    Raises: `ImageFileError` if the file cannot be read, is damaged, or has no such text.
    """
    text = _first_text(path, READABLE_KEY)
    if text is None:
        raise NoRecipeError(
            f"{path} has no recipe. Servers return images without one, image generators that tfsd does not know write none, "
            "or another program removed it."
        )
    return text


def _first_text(path: FilePath, key: str) -> str | None:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ImageFileError(f"{path} is not a regular file.")
        with open(path, "rb") as file:
            start = file.read(12)
            file.seek(0)
            if start.startswith(png.SIGNATURE):
                png.require_whole(file, path)
                file.seek(0)
                texts = png.read_texts(file, path, (key,))
            elif start.startswith(exif.JPEG_SIGNATURE) or (start[:4], start[8:]) == (b"RIFF", b"WEBP"):
                exif.require_whole(file, path)
                file.seek(0)
                texts = exif.read_texts(file, path, (key,))
            else:
                raise ImageFileError(f"{path} is not a PNG, JPEG or WebP file.")
            return next((text for _, text in texts), None)
    except ImageFileError:
        raise
    except (OSError, ValueError) as error:
        raise ImageFileError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):  # NaN, Infinity, and what is too large: 1e999
        raise ValueError(f"{text[:20]} is not a number")
    return number


def _parsed(text: str, path: FilePath) -> dict[str, Any]:
    try:
        recipe = json.loads(text, parse_constant=_number, parse_float=_number)
    except (ValueError, RecursionError) as error:
        raise ImageFileError(f"{path} is damaged: its recipe is not JSON ({error}).") from error
    if not isinstance(recipe, dict):
        raise ImageFileError(f"{path} is damaged: its recipe must be a JSON object, not a {type(recipe).__name__}.")
    if "pictures" in recipe and not (
        isinstance(recipe["pictures"], list) and all(isinstance(p, dict) for p in recipe["pictures"])
    ):
        raise ImageFileError(f"{path} is damaged: the pictures of its recipe must be a list of recipes.")
    return recipe
