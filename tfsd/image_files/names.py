"""Names of picture files: made of prompts and numbers, free ones, and those that a pattern stands for."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from tfsd.errors import shown
from tfsd.image_files.formats import image_path

_SLUG_LETTERS = 60


def file_names(path: str | Path, recipes: Sequence[Mapping]) -> list[Path]:
    """Returns the file name of each picture, as `Images.save` documents it.

    Raises: `ValueError` if the name has no picture format's ending, has an unknown field, or gives two pictures one name.
    """
    path = image_path(path)
    if len(recipes) > 1 and not re.search(r"\{[^{}]*\}", path.name):
        path = path.with_name(f"{path.stem}-{{n}}{path.suffix}")
    digits = len(str(len(recipes) - 1))
    names = [path.with_name(_filled(path.name, str(n).zfill(digits), recipe)) for n, recipe in enumerate(recipes)]
    if len(set(names)) < len(names):
        raise ValueError(f"path must give each picture a name of its own; got {shown(path.name)}. Put {{n}} into it.")
    return names


def _filled(pattern: str, n: str, recipe: Mapping) -> str:
    values = {"n": n, "prompt": slug(str(recipe.get("prompt") or "")), "seed": recipe.get("seed"), "index": recipe.get("index")}

    def field(found: re.Match) -> str:
        if found[1] not in values:
            known = ", ".join(f"{{{name}}}" for name in values)
            raise ValueError(f"path may have the fields {known}; got {found[0]} in {shown(pattern)}.")
        return str(values[found[1]])

    return re.sub(r"\{([^{}]*)\}", field, pattern)


def slug(text: str) -> str:
    """Returns a text as part of a file name: its letters and digits, with hyphens between words."""
    words = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return words[:_SLUG_LETTERS].rstrip("-") or "picture"


def free_names(texts: Sequence[str], folder: str | Path = ".") -> list[Path]:
    """Returns a name for a picture of each text: no file in `folder` has it, nor any of its numbered pictures."""
    stems = {Path(name).stem.lower() for name in os.listdir(folder) if name.lower().endswith(".png")}
    taken = stems | {re.sub(r"-[0-9]+$", "", stem) for stem in stems}
    numbers, names = {}, []
    for text in texts:
        name = stem = slug(text)
        while name in taken:
            numbers[stem] = numbers.get(stem, 1) + 1
            name = f"{stem}_{numbers[stem]}"
        taken.add(name)
        names.append(Path(folder) / f"{name}.png")
    return names
