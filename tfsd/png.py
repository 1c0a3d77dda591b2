"""PNG files that carry the recipe of their picture, and reading it back from files that anyone may have made."""

import io
import json
import math
import os
import stat
import struct
import uuid
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

RECIPE_KEY = "tfsd"  # of the iTXt chunk that holds the recipe as JSON
READABLE_KEY = "parameters"  # the same as text, where other image generators put theirs
MAX_RECIPE = 4 * 2**20  # bytes; a prompt has at most 64 KB
_MAX_CHUNKS = 1_000_000
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


class ImageFileError(OSError):
    """A picture that cannot be written, or a file that has no recipe to read."""


class FileThereError(ImageFileError):
    """A file that is there and may not be replaced."""

    def __init__(self, path: Path):
        super().__init__(f"{path} exists. Give another name, or allow overwriting it.")


def encode(picture: Image.Image, recipe: Mapping) -> bytes:
    """Returns the PNG file of a picture; the same picture and recipe give the same bytes.

    Raises: `ImageFileError` for a recipe above `MAX_RECIPE`.
    """
    text = json.dumps(recipe, ensure_ascii=False, allow_nan=False)
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")  # half a surrogate pair: so JSON writes it, too
    if len(text.encode("utf-8")) > MAX_RECIPE:
        raise ImageFileError(f"The recipe has more than {MAX_RECIPE} bytes. Save the pictures one by one.")
    info = PngInfo()
    info.add_itxt(RECIPE_KEY, text)
    info.add_itxt(READABLE_KEY, readable(recipe).replace("\0", " ").encode("utf-8", "replace").decode("utf-8"))
    info.add_itxt("Software", f"tfsd {recipe.get('tfsd', '')}".strip())
    file = io.BytesIO()
    picture.save(file, format="PNG", pnginfo=info)
    return file.getvalue()


def readable(recipe: Mapping) -> str:
    """Returns a recipe as text: the prompt, then "name: value" pairs; of a grid, the recipes of its pictures."""
    if "pictures" in recipe:
        return "\n\n".join(readable(one) for one in recipe["pictures"])
    lines = [str(recipe.get("prompt") or "")]
    if recipe.get("negative_prompt"):
        lines.append(f"Negative prompt: {recipe['negative_prompt']}")
    rest = {name: value for name, value in recipe.items() if name not in ("prompt", "negative_prompt")}
    return "\n".join([*lines, ", ".join(f"{name}: {value}" for name, value in rest.items())])


def png_path(path: str | Path, name: str = "path") -> Path:
    """Returns `path`, the argument called `name`, as a Path; raises `TypeError` or `ValueError` if it is no PNG's."""
    if not isinstance(path, (str, Path)):
        raise TypeError(f"{name} must be a str or a Path; got {type(path).__name__}.")
    if Path(path).suffix.lower() != ".png":
        raise ValueError(f"{name} must end in .png; got {str(path)!r}. Of other formats, PIL's `Image.save` writes many.")
    return Path(path)


def check_targets(paths: Sequence[Path]):
    """Finds out, before any work is done for them, whether files can be written.

    Raises: `ImageFileError` for a missing or read-only folder, for a folder in the place of a file, or no free space.
    """
    for path in paths:
        if not path.parent.is_dir():
            raise ImageFileError(f"{path} cannot be written: there is no folder {path.parent}. Make it first.")
        try:
            if stat.S_ISDIR(os.stat(path).st_mode):
                raise ImageFileError(f"{path} cannot be written: it is a folder. Give the name of a file.")
        except FileNotFoundError:
            pass
        except ImageFileError:
            raise
        except (OSError, ValueError) as error:  # a name too long, or with a zero byte
            raise ImageFileError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}.") from error
    for folder in dict.fromkeys(path.parent for path in paths):
        probe = folder / _partial_name()
        _write(probe, b"\0")
        probe.unlink()


def write_files(files: Mapping[Path, bytes], *, overwrite: bool = True):
    """Writes all files or, as far as a file system allows, none: each appears complete, under its name at last.

    Without `overwrite` an empty file keeps a name for the moment before its own takes its place.

    Raises: `FileThereError` if one exists and `overwrite` is false; `ImageFileError` if one cannot be written.
    """
    if not overwrite:
        for path in files:
            if os.path.lexists(path):
                raise FileThereError(path)
    check_targets(list(files))
    partial = {path: path.with_name(_partial_name()) for path in files}
    new = []
    try:
        for path, data in files.items():
            _write(partial[path], data, path)
        for path in [] if overwrite else files:
            _reserve(path)
            new.append(path)
        for path, written in partial.items():
            _replace(written, path)
    except BaseException:
        for path in new:
            path.unlink(missing_ok=True)
        raise
    finally:
        for written in partial.values():
            written.unlink(missing_ok=True)


def _reserve(path: Path):
    """Makes an empty file that keeps its name from others: of two programs that do so at once, one fails."""
    try:
        with open(path, "xb"):
            pass
    except FileExistsError as error:
        raise FileThereError(path) from error
    except OSError as error:
        raise ImageFileError(f"{path} cannot be written: {error.strerror or error}.") from error


def _replace(written: Path, path: Path):
    try:
        os.replace(written, path)
    except OSError as error:
        raise ImageFileError(f"{path} cannot be written: {error.strerror or error}.") from error


def _partial_name() -> str:
    return f".tfsd-{uuid.uuid4().hex[:12]}.partial"


def _write(path: Path, data: bytes, shown: Path | None = None):
    try:
        with open(path, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # some file systems only find out here that the disk is full
    except OSError as error:
        path.unlink(missing_ok=True)
        raise ImageFileError(f"{shown or path.parent} cannot be written: {error.strerror or error}.") from error


def read_recipe(path: str | os.PathLike) -> dict:
    """Returns the recipe that a PNG file carries, without decoding its pixels.

    A grid has {"columns": ..., "pictures": [recipe, ...]}.
    Raises: `ImageFileError` if the file cannot be read, is damaged, or has no recipe of this package.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ImageFileError(f"{path} is no file.")
        with open(path, "rb") as file:
            for text in _itxt_chunks(file, path):
                key, _, rest = text.partition(b"\0")
                if key == RECIPE_KEY.encode():
                    return _parsed(_text_of(rest, path), path)
    except ImageFileError:
        raise
    except (OSError, ValueError) as error:
        raise ImageFileError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    raise ImageFileError(f"{path} has no recipe: it was not written by tfsd, or another program removed it.")


def _itxt_chunks(file, path) -> Iterator[bytes]:
    """Yields the contents of the iTXt chunks; others are passed over, the pixels unread."""
    if file.read(8) != _SIGNATURE:
        raise ImageFileError(f"{path} is no PNG file.")
    for _ in range(_MAX_CHUNKS):
        head = file.read(8)
        if len(head) < 8:
            raise ImageFileError(f"{path} is damaged: it ends too early.")
        length, kind = struct.unpack(">I4s", head)
        if kind == b"IEND":
            return
        if kind != b"iTXt" or length > MAX_RECIPE + 256:
            file.seek(length + 4, os.SEEK_CUR)
            continue
        data, checksum = file.read(length), file.read(4)
        if len(checksum) < 4 or zlib.crc32(kind + data) != int.from_bytes(checksum, "big"):
            raise ImageFileError(f"{path} is damaged: a text in it fails its checksum.")
        yield data
    raise ImageFileError(f"{path} has more than {_MAX_CHUNKS} chunks.")


def _text_of(rest: bytes, path) -> str:
    """Returns the text of an iTXt chunk after its key: compression flag and method, language, translated key, text."""
    parts = rest[2:].split(b"\0", 2)
    if len(rest) < 4 or len(parts) < 3:
        raise ImageFileError(f"{path} is damaged: its recipe is incomplete.")
    data = parts[2]
    try:
        if rest[0]:
            unpacker = zlib.decompressobj()
            data = unpacker.decompress(data, MAX_RECIPE + 1)
        if len(data) > MAX_RECIPE:
            raise ImageFileError(f"{path} has a recipe of more than {MAX_RECIPE} bytes.")
        return data.decode("utf-8")
    except (zlib.error, UnicodeDecodeError) as error:
        raise ImageFileError(f"{path} is damaged: its recipe cannot be unpacked ({error}).") from error


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):  # NaN, Infinity, and what is too large: 1e999
        raise ValueError(f"{text[:20]} is no number")
    return number


def _parsed(text: str, path) -> dict:
    try:
        recipe = json.loads(text, parse_constant=_number, parse_float=_number)
    except (ValueError, RecursionError) as error:
        raise ImageFileError(f"{path} is damaged: its recipe is no JSON ({error}).") from error
    if not isinstance(recipe, dict):
        raise ImageFileError(f"{path} is damaged: its recipe must be a JSON object, not a {type(recipe).__name__}.")
    if "pictures" in recipe and not (
        isinstance(recipe["pictures"], list) and all(isinstance(p, dict) for p in recipe["pictures"])
    ):
        raise ImageFileError(f"{path} is damaged: the pictures of its recipe must be a list of recipes.")
    return recipe
