"""Names of image files: from patterns, from prompts, and free ones in a folder."""

import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tfsd.errors import shown
from tfsd.images.files.formats import image_path

_MAX_LETTERS, _MAX_BYTES = 60, 160  # of the part made of a prompt; file systems take 255 bytes, and numbers come behind it
_MAX_READ = 1000  # characters of a prompt
_FIELD = re.compile(r"\{([^{}]*)\}")
_VARIATION = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef]")  # they choose how a character looks
_RESERVED = {
    "con",
    "prn",
    "aux",
    "nul",
    *(f"{port}{digit}" for port in ("com", "lpt") for digit in "0123456789\u00b9\u00b2\u00b3"),
}


def file_names(path: str | Path, recipes: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Returns the file name of each image, as `Images.save` documents it.

    Raises: `ValueError` if the name has no image format's ending, has an unknown field or an unpaired brace, or gives
    two images the same name.
    """
    path = image_path(path)
    if re.search(r"[{}]", _FIELD.sub("", path.name)):
        raise ValueError(f"path must have each {{ closed by a }}, as in {{n}}; got {shown(path.name)}.")
    if len(recipes) > 1 and not _FIELD.search(path.name):
        path = path.with_name(f"{path.stem}-{{n}}{path.suffix}")
    digits = len(str(len(recipes) - 1))
    names = [path.with_name(_filled(path.name, str(n).zfill(digits), recipe)) for n, recipe in enumerate(recipes)]
    if len(set(names)) < len(names):
        raise ValueError(f"path must give each image a different name; got {shown(path.name)}. Put {{n}} into it.")
    return names


def _filled(pattern: str, n: str, recipe: Mapping[str, Any]) -> str:
    values = {"n": n, "prompt": slug(str(recipe.get("prompt") or "")), "seed": recipe.get("seed"), "index": recipe.get("index")}

    def field(found: re.Match[str]) -> str:
        if found[1] not in values:
            known = ", ".join(f"{{{name}}}" for name in values)
            raise ValueError(f"path may have the fields {known}; got {found[0]} in {shown(pattern)}.")
        return str(values[found[1]])

    return _FIELD.sub(field, pattern)


def slug(text: str) -> str:
    """Returns a text as part of a file name: its letters and digits, of any script, with hyphens between words.

    Letters are lower case and composed (NFC), and keep their marks: vowel signs, accents. Emoji and all punctuation become
    hyphens; characters that nobody sees (zero-width ones, directions of writing) are left out. The length is bounded, and no
    name is one that Windows reserves for a device.
    """
    composed = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text[:_MAX_READ]).lower())
    kept: list[str] = []
    for character in composed:
        kind = unicodedata.category(character)
        if kind in ("Mn", "Mc") and kept and kept[-1] != "-" and not _VARIATION.match(character):
            kept.append(character)
        elif kind[0] in "LN":
            kept.append(character)
        elif kind[0] not in "M" and kind != "Cf" and kept and kept[-1] != "-":
            kept.append("-")
    name = _cut("".join(kept)).strip("-") or "picture"
    return f"{name}-picture" if name in _RESERVED else name


def _cut(name: str) -> str:
    """Returns the beginning of a name that is short enough, not parted between a letter and its marks."""
    size = min(len(name), _MAX_LETTERS)
    while len(name[:size].encode("utf-8")) > _MAX_BYTES or (size < len(name) and unicodedata.category(name[size])[0] == "M"):
        size -= 1
    return name[:size]


def free_names(texts: Sequence[str], folder: str | Path = ".") -> list[Path]:
    """Returns a name for an image of each text: no file in `folder` has it, nor any of its numbered images."""
    names = [unicodedata.normalize("NFC", name).lower() for name in os.listdir(folder)]  # as disks may compare them
    stems = {Path(name).stem for name in names if name.endswith(".png")}
    taken = stems | {re.sub(r"-[0-9]+$", "", stem) for stem in stems}
    numbers: dict[str, int] = {}
    free = []
    for text in texts:
        name = stem = slug(text)
        while name in taken:
            numbers[stem] = numbers.get(stem, 1) + 1
            name = f"{stem}_{numbers[stem]}"
        taken.add(name)
        free.append(Path(folder) / f"{name}.png")
    return free
