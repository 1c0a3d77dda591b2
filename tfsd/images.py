"""What text to image returns: an array of pictures that knows how each of them was made."""

import copy
import io
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tfsd.errors import shown
from tfsd.image_files import ImageFileError, check_targets, encode, image_path, read_recipe, write_files

__all__ = ["ImageFileError", "Images", "check_targets", "file_names", "free_names", "read_recipe"]

_SLUG_LETTERS = 60


class Images(np.ndarray):
    """Pictures, uint8 [B, H, W, 3], as KerasCV returns them, with `recipes`: one dict per picture.

    Indexing, iterating and arithmetic give plain arrays, and of what numpy's other functions give only a copy has
    recipes: nobody knows which recipe belongs to a picture that was moved or changed.
    """

    recipes: list[dict]

    def __new__(cls, pixels: np.ndarray, recipes: Sequence[Mapping]) -> "Images":
        """Raises: `ValueError` unless these are pictures and as many recipes, of values that JSON can hold."""
        pixels = np.asarray(pixels)
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[-1] != 3 or not pixels.size:
            raise ValueError(f"pixels must be uint8 [B, H, W, 3]; got {pixels.dtype} {list(pixels.shape)}.")
        if len(recipes) != len(pixels):
            raise ValueError(f"recipes must be one per picture ({len(pixels)}); got {len(recipes)}.")
        images = pixels.view(cls)
        images.recipes = [{name: _plain(value) for name, value in recipe.items()} for recipe in recipes]
        return images

    def __array_finalize__(self, other):
        self.recipes = []

    def __array_wrap__(self, array, context=None, return_scalar=False):
        return np.asarray(array)[()] if return_scalar else np.asarray(array)

    def __getitem__(self, key):
        return np.asarray(self)[key]

    def copy(self, order: str = "C") -> "Images":
        """Returns a copy of pictures and recipes."""
        copied = super().copy(order)
        copied.recipes = copy.deepcopy(self.recipes)
        return copied

    def __copy__(self):
        return self.copy()

    def __deepcopy__(self, memo):
        return self.copy()

    def __reduce__(self):
        return (Images, (np.asarray(self), self.recipes)) if self.recipes else np.asarray(self).__reduce__()

    @property
    def seeds(self) -> list[int]:
        """The seed of each picture; with its index and the rest of its recipe, it makes the same picture again."""
        return [recipe["seed"] for recipe in self.recipes]

    def pil(self, i: int | None = None) -> Image.Image | list[Image.Image]:
        """Returns picture `i` as a PIL image, or a list of all.

        Raises: `IndexError` if there is no such picture.
        """
        pixels = self._pixels()
        if i is None:
            return [Image.fromarray(picture) for picture in pixels]
        if not -len(pixels) <= i < len(pixels):
            raise IndexError(f"i must be from 0 to {len(pixels) - 1}; got {i}.")
        return Image.fromarray(pixels[i])

    def grid(self, columns: int | None = None) -> Image.Image:
        """Returns all pictures as one, row by row, about as many columns as rows unless said otherwise.

        Raises: `ValueError` for a number of columns that is none.
        """
        pixels = self._pixels()
        count, height, width = pixels.shape[:3]
        columns = math.ceil(math.sqrt(count)) if columns is None else columns
        if isinstance(columns, bool) or not isinstance(columns, (int, np.integer)) or columns < 1:
            raise ValueError(f"columns must be a whole number of at least 1; got {shown(columns)}.")
        columns = int(min(columns, count))
        sheet = Image.new("RGB", (columns * width, math.ceil(count / columns) * height), "white")
        for i, picture in enumerate(pixels):
            sheet.paste(Image.fromarray(picture), (i % columns * width, i // columns * height))
        return sheet

    def save(self, path: str | Path, *, overwrite: bool = True, quality: int | None = None) -> list[Path]:
        """Writes one file per picture, each with its recipe inside, and returns their paths.

        The name's ending says the format: .png keeps every pixel; .jpg, .jpeg and .webp are smaller and lossy, which
        changes pixels a little: the less, the higher `quality`, from 1 to 100 (default: 95).
        Several pictures at "out.png" become "out-0.png", "out-1.png", ...; a name may also say where the numbers go:
        {n} counts the pictures, {seed}, {index} and {prompt} are those of the recipe. Files of these names are
        replaced unless `overwrite` is false. All files are complete or none is there.

        Raises: `ValueError` for a name that ends otherwise or gives two pictures one name, and for a `quality` out of range
        or of a .png; `ImageFileError` if writing fails.
        """
        names = file_names(path, self.recipes)
        pairs = zip(self.pil(), self.recipes)
        write_files({name: encode(*pair, name.suffix, quality=quality) for name, pair in zip(names, pairs)}, overwrite=overwrite)
        return names

    def save_grid(
        self, path: str | Path, columns: int | None = None, *, overwrite: bool = True, quality: int | None = None
    ) -> Path:
        """Writes all pictures as one file, with all their recipes inside, and returns its path; formats are as in `save`.

        Raises: as `save` and `grid`.
        """
        name = image_path(path)
        sheet = self.grid(columns)
        columns = sheet.width // self.shape[2]
        recipe = {"columns": columns, "pictures": self.recipes, "tfsd": self.recipes[0].get("tfsd", "")}
        write_files({name: encode(sheet, recipe, name.suffix, quality=quality)}, overwrite=overwrite)
        return name

    def _repr_png_(self) -> bytes | None:
        """Shows the pictures in notebooks."""
        if not self._whole():
            return None
        file = io.BytesIO()
        self.grid().save(file, format="PNG")
        return file.getvalue()

    def _whole(self) -> bool:
        return self.dtype == np.uint8 and self.ndim == 4 and len(self.recipes) == len(self)

    def _pixels(self) -> np.ndarray:
        if not self._whole():
            found = f"{self.dtype} {list(self.shape)} with {len(self.recipes)} recipes"
            raise ValueError(f"Only whole uint8 pictures [B, H, W, 3] with their recipes can be shown or saved; this is {found}.")
        return np.asarray(self)


def _plain(value):
    """Returns a value that JSON can hold: numpy's numbers become Python's."""
    value = value.item() if isinstance(value, np.generic) else value
    json.dumps(value, allow_nan=False)  # raises for what has no place in a recipe
    return value


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
