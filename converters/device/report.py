"""The report beside a bundle: what its quantization costs, as numbers for programs and as a sheet for people."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tfsd.api import StableDiffusion
from tfsd.converters.device.adherence import can_be_judged, measure_adherence
from tfsd.converters.device.capture import Records, capture_inputs, spread
from tfsd.converters.device.parts import DevicePart
from tfsd.converters.device.quality import compare_parts, compare_pictures
from tfsd.converters.device.recipes import CALIBRATION_CALLS, RECIPES, QuantizationRecipe
from tfsd.converters.device.report_page import write_sheet
from tfsd.converters.device.verify_bundle import REFERENCE
from tfsd.device import DeviceBundle
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
    """How much is drawn for a report.

    `pictures` of `steps` each, None for ten or as many as the bundle allows; `adherence`: prompts of each kind that the embedded
    model is asked to follow, in its own size.
    """

    pictures: int = len(PROMPTS)
    steps: int | None = None
    adherence: int = 48


class ReferenceData(NamedTuple):
    """What a report compares a bundle with, and what its quantization is calibrated with, all from float32.

    `pictures` uint8 [N, H, W, 3] of `prompts`; `calls` and `calibration`: inputs of the parts; `model` where its adherence is
    wanted, too, else None, so that nothing keeps it in memory.
    """

    prompts: list[str]
    pictures: np.ndarray
    calls: Records
    calibration: Records
    model: StableDiffusion | None


@own_prompts()
def gather(model: StableDiffusion, manifest: dict, parts: dict[str, DevicePart], check: Check) -> ReferenceData:
    """Returns the evidence that a model's report needs."""
    recipe, (height, width) = RECIPES[manifest["quantize"]], manifest["size"]
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(check.pictures)]
    pictures = model.text_to_image(prompts, seed=SEED, num_steps=check.steps, height=height, width=width)
    calls, calibration = {}, {}
    if recipe.rules is not None:
        calls = capture_inputs(manifest, parts, PROMPTS[: check.pictures], seed=SEED, num_steps=check.steps)
    if recipe.calibrated:
        steps = min(2 * check.steps, manifest["max_steps"])
        calibration = capture_inputs(manifest, parts, CALIBRATION_PROMPTS[: check.pictures], seed=SEED + 1, num_steps=steps)
    judged = check.adherence and can_be_judged(model.spec, manifest["size"])
    calls, calibration = spread(calls, _PART_CALLS), spread(calibration, CALIBRATION_CALLS)
    return ReferenceData(prompts, np.asarray(pictures), calls, calibration, model if judged else None)


@own_prompts()
def make_report(folder: Path, float32: dict[str, Path], evidence: ReferenceData, check: Check) -> tuple[dict, np.ndarray]:
    """Returns the report of a bundle, and the pictures that it drew, uint8 [N, H, W, 3].

    The first picture becomes a file of the bundle, its reference. `float32`: the parts' files before quantization.
    """
    bundle = DeviceBundle(folder)
    manifest = bundle.manifest
    recipe = RECIPES[manifest["quantize"]]
    options = {"seed": SEED, "num_steps": check.steps}
    drawn = bundle.text_to_image(evidence.prompts, **options)
    (folder / REFERENCE).write_bytes(encode(drawn.pil(0), drawn.recipes[0]))
    ours = np.asarray(drawn)
    pictures = compare_pictures(ours, evidence.pictures, evidence.prompts)
    report = {
        "model": manifest["name"],
        "quantize": manifest["quantize"],
        "summary": recipe.summary,
        "tfsd": manifest["tfsd"],
        "size": manifest["size"],
        "bytes": sum(one["bytes"] for name, one in manifest["files"].items() if name.endswith(".tflite")),
        **options,
        **{key: manifest["defaults"][key] for key in ("sampler", "guidance_scale")},
        "gates": [],
        "lowest_psnr": min(one["psnr"] for one in pictures),
        "lowest_ssim": min(one["ssim"] for one in pictures),
        "pictures": pictures,
        "parts": {},
        "adherence": None,
    }
    if recipe.rules is not None:
        files = {name: folder / file.name for name, file in float32.items()}
        report["parts"] = compare_parts(float32, files, evidence.calls)
    if evidence.model is not None:
        report["adherence"] = measure_adherence(bundle, evidence.model, check.adherence, num_steps=check.steps)
    report["gates"] = list(_gates(report, recipe))
    return report, ours


def _gates(report: dict, recipe: QuantizationRecipe) -> Iterator[dict]:
    """Yields what an export must reach: the worst picture's PSNR and, of the embedded model, how many prompts it follows."""
    lowest, least = report["lowest_psnr"], recipe.gate
    found, limit = f"{lowest:.1f} dB", f"at least {least:.0f} dB"
    yield {"what": "worst PSNR against float32", "found": found, "limit": limit, "passed": lowest >= least}
    if report["adherence"]:
        both, most = report["adherence"]["all"], recipe.points
        found, limit = f"{both['difference']:+.1f} ± {both['margin']:.1f} points", f"at most {most} fewer"
        certain = both["difference"] + both["margin"]  # a fall that chance explains is none
        yield {"what": "prompts followed", "found": found, "limit": limit, "passed": certain >= -most}


def write_report(folder: Path, report: dict, ours: np.ndarray, theirs: np.ndarray):
    """Writes the report of a bundle as JSON and as a page."""
    (folder / REPORT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    write_sheet(folder, report, ours, theirs)
