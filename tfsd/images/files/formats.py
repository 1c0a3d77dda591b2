"""The formats of image files, by the endings of their names."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tfsd.errors import shown
from tfsd.images.files.limits import MAX_TEXT

QUALITY = 95  # of lossy formats, from 1 to 100


class Format(NamedTuple):
    """A file format: its name in PIL, its limits, and what PIL is told; EXIF holds the texts of lossy ones."""

    name: str
    lossy: bool
    max_side: int  # pixels
    max_exif: int = 0  # bytes
    options: dict[str, Any] = {}


_JPEG = Format("JPEG", True, 65500, 65533, {"subsampling": 0})  # 0: colours at full resolution
FORMATS = {  # by the file name's ending
    ".png": Format("PNG", False, 2**31 - 1),
    ".jpg": _JPEG,
    ".jpeg": _JPEG,
    ".webp": Format("WEBP", True, 16383, 2 * MAX_TEXT, {"method": 4}),
}


def image_path(path: str | Path, name: str = "path", endings: Sequence[str] = tuple(FORMATS)) -> Path:
    """Returns `path`, the argument called `name`, as a Path.

    Raises: `TypeError` or `ValueError` if it is not a path, or has none of the `endings`.
    """
    if not isinstance(path, (str, Path)):
        raise TypeError(f"{name} must be a str or a Path; got {type(path).__name__}.")
    if Path(path).suffix.lower() not in endings:
        wanted = " or ".join([*filter(None, [", ".join(endings[:-1])]), endings[-1]])
        raise ValueError(f"{name} must end in {wanted}; got {shown(str(path), 300)}. PIL's `Image.save` writes other formats.")
    return Path(path)
