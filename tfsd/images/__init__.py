"""`Images`, the array that text to image returns, with the recipe of each image."""

import copy
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, SupportsIndex, TypeVar, cast, overload

import numpy as np
from PIL import Image

from tfsd.errors import shown
from tfsd.images.files import (
    ImageFileError,
    check_targets,
    encode,
    file_names,
    free_names,
    image_path,
    read_recipe,
    write_files,
)

__all__ = ["ImageFileError", "Images", "Picture", "check_targets", "file_names", "free_names", "read_recipe"]

_Self = TypeVar("_Self", bound="_WithRecipes")


class _WithRecipes(np.ndarray):
    """Pixels whose `recipes` say how they were made; empty for what was computed from such pixels.

    Arithmetic and numpy's functions return plain arrays, since recipes would not fit images that were moved or changed. Of
    numpy's methods only `copy` keeps the recipes.
    """

    recipes: list[dict[str, Any]]
    _SHAPE: str  # of what can be shown and saved

    def __array_finalize__(self, other: Any) -> None:
        self.recipes = []

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        return np.asarray(array)[()] if return_scalar else np.asarray(array)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        result = super().__array_function__(function, types, args, kwargs)
        return np.asarray(result) if isinstance(result, _WithRecipes) and not result.recipes else result

    def copy(self: _Self, order: Literal["K", "A", "C", "F"] | None = "C") -> _Self:
        """Returns a copy of pixels and recipes."""
        copied: _Self = super().copy(order)
        copied.recipes = copy.deepcopy(self.recipes)
        return copied

    def __copy__(self: _Self) -> _Self:
        return self.copy()

    def __deepcopy__(self: _Self, memo: Any) -> _Self:
        return self.copy()

    def __reduce__(self) -> Any:
        plain = np.asarray(self)
        return (_recorded, (type(self), plain, self.recipes)) if self.recipes else plain.__reduce__()

    def __str__(self) -> str:
        return repr(self) if self._whole() else super().__str__()

    def __repr__(self) -> str:
        if not self._whole():
            return super().__repr__()
        height, width = self.shape[-3:-1]
        what = "Picture" if self.ndim == 3 else f"Images: {len(self)} image{'s' * (len(self) > 1)}"
        prompts = list(dict.fromkeys(recipe.get("prompt") for recipe in self.recipes))
        more = f" and {len(prompts) - 1} more prompts" if len(prompts) > 1 else ""
        if prompts == [None]:  # drawn from an encoded text
            return f"<{what} of {width} x {height} pixels>"
        return f"<{what} of {width} x {height} pixels: {shown(prompts[0])}{more}>"

    def _whole(self) -> bool:
        return self.dtype == np.uint8 and len(self.recipes) == _count(self, type(self)) > 0

    def _pixels(self) -> np.ndarray:
        if not self._whole():
            found = f"{self.dtype} {list(self.shape)} with {len(self.recipes)} recipes"
            raise ValueError(f"Only whole uint8 images {self._SHAPE} with their recipes can be shown or saved; this is {found}.")
        return np.asarray(self)


class Picture(_WithRecipes):
    """One image, uint8 [H, W, 3], with its `recipe`: an item of `Images`."""

    _SHAPE = "[H, W, 3]"

    def __new__(cls, pixels: np.ndarray, recipe: Mapping[str, Any]) -> "Picture":
        """Raises: `ValueError` unless these are an image and a recipe of values that JSON can hold."""
        return cast("Picture", _recorded(cls, pixels, [recipe]))

    def __getitem__(self, key: Any) -> Any:
        return np.asarray(self)[key]

    @property
    def recipe(self) -> dict[str, Any]:
        """How the image was made. Raises: `ValueError` for arrays that were computed from images."""
        self._pixels()
        return self.recipes[0]

    @property
    def seed(self) -> int:
        """The seed of the image. With its index and the rest of its recipe, it makes the same image again."""
        seed: int = self.recipe["seed"]
        return seed

    def pil(self) -> Image.Image:
        """Returns the image as a PIL image."""
        return Image.fromarray(self._pixels())

    def save(self, path: str | Path, *, overwrite: bool = True, quality: int | None = None) -> Path:
        """Writes the image to a file with its recipe inside, and returns the path. Everything else is as in `Images.save`."""
        return Images(self._pixels()[None], self.recipes).save(path, overwrite=overwrite, quality=quality)[0]

    def _repr_png_(self) -> bytes | None:
        """Shows the image in notebooks."""
        return _png(self.pil()) if self._whole() else None


class Images(_WithRecipes):
    """Images, uint8 [B, H, W, 3], as KerasCV returns them, with `recipes`: one dict per image.

    `images[2]` is a `Picture`. Slices, lists of numbers and masks, such as `images[1:3]` and `images[[0, 2]]`, are `Images`.
    They share their pixels with `images` if NumPy's arrays do. Other indices and arithmetic return plain arrays.
    """

    _SHAPE = "[B, H, W, 3]"

    def __new__(cls, pixels: np.ndarray, recipes: Sequence[Mapping[str, Any]]) -> "Images":
        """Raises: `ValueError` unless these are images and as many recipes, of values that JSON can hold."""
        return cast("Images", _recorded(cls, pixels, recipes))

    @overload  # type: ignore[override]  # arrays of numpy have no items of another class
    def __getitem__(self, key: SupportsIndex) -> Picture: ...
    @overload
    def __getitem__(self, key: slice) -> "Images": ...
    @overload
    def __getitem__(self, key: Any) -> Any: ...
    def __getitem__(self, key: Any) -> Any:
        part = np.asarray(self)[key]
        if not self._whole() or key is None or isinstance(key, tuple):
            return part
        try:
            chosen = np.arange(len(self))[key]
        except IndexError:  # a mask of pixels
            return part
        if chosen.ndim == 0:
            return Picture(part, self.recipes[chosen])
        return Images(part, [self.recipes[i] for i in chosen]) if chosen.ndim == 1 and chosen.size else part

    def __iter__(self) -> Iterator[Picture]:
        return (self[i] for i in range(len(self)))

    @property
    def seeds(self) -> list[int]:
        """The seed of each image. With its index and the rest of its recipe, it makes the same image again."""
        return [recipe["seed"] for recipe in self.recipes]

    @overload
    def pil(self, i: int) -> Image.Image: ...
    @overload
    def pil(self, i: None = None) -> list[Image.Image]: ...
    def pil(self, i: int | None = None) -> Image.Image | list[Image.Image]:
        """Returns image `i` as a PIL image, or a list of all.

        Raises: `TypeError` or `IndexError` if there is no such image.
        """
        pixels = self._pixels()
        if i is None:
            return [Image.fromarray(picture) for picture in pixels]
        if not isinstance(i, (int, np.integer)):
            raise TypeError(f"i must be a whole number; got {shown(i)}.")
        if not -len(pixels) <= i < len(pixels):
            raise IndexError(f"i must be from 0 to {len(pixels) - 1}; got {shown(i)}.")
        return Image.fromarray(pixels[i])

    def grid(self, columns: int | None = None) -> Image.Image:
        """Returns all images as one, row by row. By default there are about as many columns as rows.

        Raises: `ValueError` for an invalid number of columns.
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
        """Writes one file per image, each with its recipe inside, and returns their paths.

        The ending of the name chooses the format. .png keeps every pixel. .jpg, .jpeg and .webp are smaller and change pixels
        a little; a higher `quality`, from 1 to 100 (default: 95), changes them less. Several images saved as "out.png" become
        "out-0.png", "out-1.png", ... A name may also contain {n}, the number of the image, and {seed}, {index} and {prompt}
        from its recipe. Existing files are replaced unless `overwrite` is false. Either all files are written completely or
        none is.

        Raises: `ValueError` for another ending, for a name that two images would share, and for a `quality` that is out of
        range or given for a .png; `ImageFileError` if writing fails.
        """
        names = file_names(path, self.recipes)
        pairs = zip(self.pil(), self.recipes)
        write_files({name: encode(*pair, name.suffix, quality=quality) for name, pair in zip(names, pairs)}, overwrite=overwrite)
        return names

    def save_grid(
        self, path: str | Path, columns: int | None = None, *, overwrite: bool = True, quality: int | None = None
    ) -> Path:
        """Writes all images as one file, with all their recipes inside, and returns its path. Formats are as in `save`.

        Raises: as `save` and `grid`.
        """
        name = image_path(path)
        write_files({name: encode(*self.sheet(columns), name.suffix, quality=quality)}, overwrite=overwrite)
        return name

    def sheet(self, columns: int | None = None) -> tuple[Image.Image, dict[str, Any]]:
        """Returns all images as one, as `grid` does, and the recipe for a file of it, which contains theirs.

        Raises: as `grid`.
        """
        sheet = self.grid(columns)
        columns = sheet.width // self.shape[2]
        return sheet, {"columns": columns, "pictures": self.recipes, "tfsd": self.recipes[0].get("tfsd", "")}

    def _repr_png_(self) -> bytes | None:
        """Shows the images in notebooks."""
        return _png(self.grid()) if self._whole() else None


def _count(pixels: np.ndarray, kind: type[_WithRecipes]) -> int:
    """Returns how many images these are for a class, 0 if they do not have its shape."""
    if pixels.ndim != kind._SHAPE.count(",") + 1 or pixels.shape[-1] != 3 or not pixels.size:
        return 0
    return len(pixels) if pixels.ndim == 4 else 1


def _recorded(kind: type[_WithRecipes], pixels: np.ndarray, recipes: Sequence[Mapping[str, Any]]) -> Any:
    """Returns pixels as a `kind` with recipes. Raises: `ValueError` as the classes say."""
    pixels = np.asarray(pixels)
    count = _count(pixels, kind)
    if pixels.dtype != np.uint8 or not count:
        raise ValueError(f"pixels must be uint8 {kind._SHAPE}; got {pixels.dtype} {list(pixels.shape)}.")
    if len(recipes) != count:
        raise ValueError(f"recipes must be one per image ({count}); got {len(recipes)}.")
    pictures = pixels.view(kind)
    pictures.recipes = [{name: _plain(value) for name, value in recipe.items()} for recipe in recipes]
    return pictures


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return file.getvalue()


def _plain(value: Any) -> Any:
    """Returns a value that JSON can hold: numpy's numbers become Python's."""
    value = value.item() if isinstance(value, np.generic) else value
    json.dumps(value, allow_nan=False)  # raises for what has no place in a recipe
    return value
