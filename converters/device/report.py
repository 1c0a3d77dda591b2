"""Measures what the quantization of a bundle costs, and writes the report: JSON for programs, a page for people."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tfsd.api import StableDiffusion
from tfsd.converters.device.adherence import can_be_judged, measure_adherence
from tfsd.converters.device.capture import Records, capture_inputs, spread
from tfsd.converters.device.parts import DevicePart
from tfsd.converters.device.quality import compare_images, compare_parts
from tfsd.converters.device.recipes import CALIBRATION_CALLS, QuantizationRecipe
from tfsd.converters.device.report_page import write_sheet
from tfsd.converters.device.verify_bundle import REFERENCE
from tfsd.device import LiteRTLoop
from tfsd.images import Images
from tfsd.images.files import encode
from tfsd.text import own_prompts

REPORT = "report.json"
SEED = 2026
PROMPTS = (
    "a red star above a blue house at night",
    "a large green fish",
    "two yellow cars in the desert",
    "a pink tree in the snow",
)
CALIBRATION_PROMPTS = (
    "a blue ball",
    "a purple boat next to a white flower in the sea",
    "three orange cats on the grass",
    "a brown house below a yellow moon",
)
_PART_CALLS = 6  # of each part, that its files are compared with


class Check(NamedTuple):
    """How many images are made for a report.

    `pictures`: the images to compare; `steps` for each of them, None for ten or as many as the bundle allows; `adherence`: the
    prompts of each kind that the included model is asked to follow, in its own size.
    """

    pictures: int = len(PROMPTS)
    steps: int | None = None
    adherence: int = 48


class Checked(NamedTuple):
    """A `Check` whose numbers are known, and fit the bundle."""

    pictures: int
    steps: int
    adherence: int


class ReferenceData(NamedTuple):
    """What a report compares a bundle with, and what its quantization is calibrated with, all from float32.

    `images` uint8 [N, H, W, 3] of `prompts`; `calls` and `calibration`: inputs of the parts; `model` if its adherence is measured
    too, else None, so that nothing keeps it in memory.
    """

    prompts: list[str]
    images: np.ndarray
    calls: Records
    calibration: Records
    model: StableDiffusion | None


@own_prompts()
def gather(
    model: StableDiffusion, manifest: dict, parts: dict[str, DevicePart], recipe: QuantizationRecipe, check: Checked
) -> ReferenceData:
    """Returns what the report on a bundle of `model` needs from the model in float32."""
    height, width = manifest["size"]
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(check.pictures)]
    images = model.text_to_image(prompts, seed=SEED, num_steps=check.steps, height=height, width=width)
    calls, calibration = {}, {}
    if recipe.rules:
        calls = capture_inputs(manifest, parts, PROMPTS[: check.pictures], seed=SEED, num_steps=check.steps)
    if recipe.calibrated:
        steps = min(2 * check.steps, manifest["max_steps"])
        calibration = capture_inputs(manifest, parts, CALIBRATION_PROMPTS[: check.pictures], seed=SEED + 1, num_steps=steps)
    judged = check.adherence and can_be_judged(model.spec, manifest["size"])
    calls, calibration = spread(calls, _PART_CALLS), spread(calibration, CALIBRATION_CALLS)
    return ReferenceData(prompts, np.asarray(images), calls, calibration, model if judged else None)


@own_prompts()
def make_report(
    bundle: LiteRTLoop, float32: dict[str, Path], reference: ReferenceData, recipe: QuantizationRecipe, check: Checked
) -> tuple[dict, Images]:
    """Returns the report on a bundle, and its images of the reference's prompts. `float32`: the files before quantization."""
    manifest, files = bundle.manifest, {name: bundle.folder / file.name for name, file in float32.items()}
    images = bundle.text_to_image(reference.prompts, seed=SEED, num_steps=check.steps)
    compared = compare_images(np.asarray(images), reference.images, reference.prompts)
    report = {
        "model": manifest["name"],
        "quantize": recipe.name,
        "summary": recipe.summary,
        "tfsd": manifest["tfsd"],
        "size": manifest["size"],
        "bytes": sum(file.stat().st_size for file in files.values()),
        "seed": SEED,
        "num_steps": check.steps,
        **{key: manifest["defaults"][key] for key in ("sampler", "guidance_scale")},
        "gates": [],
        "lowest_psnr": min(one["psnr"] for one in compared),
        "lowest_ssim": min(one["ssim"] for one in compared),
        "pictures": compared,
        "parts": {},
        "adherence": None,
    }
    if recipe.rules:
        report["parts"] = compare_parts(float32, files, reference.calls)
    if reference.model is not None:
        report["adherence"] = measure_adherence(bundle, reference.model, check.adherence, num_steps=check.steps)
    report["gates"] = list(_gates(report, recipe))
    return report, images


def _gates(report: dict, recipe: QuantizationRecipe) -> Iterator[dict]:
    """Yields what an export must reach: the worst image's PSNR and, for the included model, how many prompts it follows."""
    lowest, least = report["lowest_psnr"], recipe.gate
    found, limit = f"{lowest:.1f} dB", f"at least {least:.0f} dB"
    yield {"what": "worst PSNR against float32", "found": found, "limit": limit, "passed": lowest >= least}
    if report["adherence"]:
        both, most = report["adherence"]["all"], recipe.points
        found, limit = f"{both['difference']:+.1f} ± {both['margin']:.1f} points", f"at most {most} fewer"
        certain = both["difference"] + both["margin"]  # a loss that chance explains does not count
        yield {"what": "prompts followed", "found": found, "limit": limit, "passed": certain >= -most}


def write_report(folder: Path, report: dict, images: Images, reference: ReferenceData):
    """Writes the report on a bundle as JSON and as a page, and the bundle's first image, which `tfsd verify` makes again."""
    (folder / REPORT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    write_sheet(folder, report, np.asarray(images), reference.images)
    (folder / REFERENCE).write_bytes(encode(images.pil(0), images.recipes[0]))
