"""Checks a bundle wherever it is: its files, and that it still draws its reference picture."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from converters.device.quality import compare_pictures
from converters.device.recipes import RECIPES
from converters.verify import ExportError
from tfsd.device import DeviceBundle
from tfsd.image_files import read_recipe

REFERENCE = "reference.png"  # its recipe says how it was drawn


class Verdict(NamedTuple):
    """How the picture compares with the one drawn when the bundle was made: its PSNR in dB, and whether they are equal."""

    equal: bool
    psnr: float


def verify_bundle(folder: str | Path) -> Verdict:
    """Draws the reference picture of a bundle again and compares it with the one made when it was exported.

    Processors add the same numbers in other orders, and where numbers are rounded to 8 bits that shows; so no more is asked than
    of the export itself: the least PSNR of its recipe.
    Raises: `CheckpointError` for damage; `ExportError` if the picture is another one.
    """
    folder = Path(folder)
    bundle = DeviceBundle(folder)
    file = folder / REFERENCE
    recipe = read_recipe(file)
    named = ("seed", "negative_prompt", "num_steps", "guidance_scale", "sampler", "index")
    made = bundle.text_to_image(recipe["prompt"], **{name: recipe[name] for name in named})
    with Image.open(file) as picture:
        expected = np.asarray(picture.convert("RGB"))[None]
    psnr = compare_pictures(np.asarray(made), expected, [recipe["prompt"]])[0]["psnr"]
    gate = RECIPES[bundle.manifest["quantize"]].gate
    if psnr < gate:
        raise ExportError(
            f"{folder} draws another picture than when it was exported: {psnr:.1f} dB, at least {gate:.0f} expected."
        )
    return Verdict(bool((np.asarray(made) == expected).all()), psnr)
