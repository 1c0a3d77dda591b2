"""Verifies a bundle: its files are undamaged, and it still makes its reference image."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from tfsd.converters.device.quality import compare_images
from tfsd.converters.device.recipes import known_recipe
from tfsd.converters.saved_model.verify_export import ExportError
from tfsd.device import MANIFEST, DeviceBundle
from tfsd.errors import CheckpointError
from tfsd.images.files import read_recipe
from tfsd.text import own_prompts

REFERENCE = "reference.png"  # contains the recipe from which it was made
_DRAWN = ("prompt", "seed", "negative_prompt", "num_steps", "guidance_scale", "sampler", "index")


class BundleVerdict(NamedTuple):
    """How the image compares with the one made at the export: whether they are equal, and the PSNR in dB."""

    equal: bool
    psnr: float


@own_prompts()
def verify_bundle(folder: str | Path) -> BundleVerdict:
    """Makes the reference image of a bundle again and compares it with the one made when it was exported.

    Processors add the same numbers in different orders, which shows where numbers are rounded to 8 bits. So the required PSNR
    is that of the export itself, the `gate` of its recipe.
    Raises: `CheckpointError` for damage; `ExportError` if the image is another one.
    """
    folder = Path(folder)
    bundle = DeviceBundle(folder)
    file = folder / REFERENCE
    gate = known_recipe(bundle.manifest["quantize"], folder / MANIFEST).gate
    recipe = read_recipe(file)
    if missing := [name for name in _DRAWN if name not in recipe]:
        raise CheckpointError(f"{file} is damaged: its recipe lacks {', '.join(missing)}. Export the bundle again.")
    made = bundle.text_to_image(**{name: recipe[name] for name in _DRAWN})
    with Image.open(file) as image:
        expected = np.asarray(image.convert("RGB"))[None]
    psnr = compare_images(np.asarray(made), expected, [recipe["prompt"]])[0]["psnr"]
    if psnr < gate:
        raise ExportError(f"{folder} makes another image than when it was exported: {psnr:.1f} dB, at least {gate:.0f} expected.")
    return BundleVerdict(bool((np.asarray(made) == expected).all()), psnr)
