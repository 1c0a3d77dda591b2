"""The report beside a bundle: what its quantization costs, as numbers for programs and as a sheet for people."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from converters.device.adherence import measure_adherence
from converters.device.capture import Recorder, spread
from converters.device.parts import Part
from converters.device.quality import compare_parts, compare_pictures
from converters.device.recipes import RECIPES, Recipe
from converters.device.sheet import write_sheet
from tfsd.api import StableDiffusion
from tfsd.device import DeviceBundle

REPORT, SHEET = "report.json", "report.html"
SEED = 2026
EMBEDDED = "tiny"  # the model whose pictures the checker can judge
PROMPTS = ("a red star above a blue house at night", "a large green fish", "two yellow cars in the desert", "a pink tree at sea")
CALIBRATION_PROMPTS = (
    "a blue circle", "a purple boat at sea and a white cloud", "three orange cats in the grass", "a brown house by a yellow moon",
)  # fmt: skip
_PART_CALLS = 6  # of each part, that its files are compared with


class Check(NamedTuple):
    """How much is drawn for a report: `pictures` of `steps` each, and `adherence` prompts of each kind for the embedded model."""

    pictures: int = len(PROMPTS)
    steps: int = 10
    adherence: int = 48


def make_report(
    model: StableDiffusion, folder: Path, float32: dict[str, Path], parts: dict[str, Part], check: Check
) -> tuple[dict, tuple[np.ndarray, np.ndarray]]:
    """Returns the report of a bundle, and the pictures that it and Python drew, uint8 [N, H, W, 3] each.

    `float32`: the parts' files before quantization.
    """
    bundle = DeviceBundle(folder)
    manifest = bundle.manifest
    recipe = RECIPES[manifest["quantize"]]
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(check.pictures)]
    options = {"seed": SEED, "num_steps": check.steps}
    height, width = manifest["size"]
    ours = np.asarray(bundle.text_to_image(prompts, **options))
    theirs = np.asarray(model.text_to_image(prompts, height=height, width=width, **options))
    pictures = compare_pictures(ours, theirs, prompts)
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
        report["parts"] = _parts(folder, manifest, float32, parts, check)
    if check.adherence and model.identity["model"] == EMBEDDED:
        report["adherence"] = measure_adherence(bundle, model, check.adherence, num_steps=check.steps)
    report["gates"] = list(_gates(report, recipe))
    return report, (ours, theirs)


def _gates(report: dict, recipe: Recipe) -> Iterator[dict]:
    """Yields what an export must reach: the worst picture's PSNR and, of the embedded model, how many prompts it follows."""
    lowest, least = report["lowest_psnr"], recipe.gate
    found, limit = f"{lowest:.1f} dB", f"at least {least:.0f} dB"
    yield {"what": "worst PSNR against float32", "found": found, "limit": limit, "passed": lowest >= least}
    if report["adherence"]:
        both, most = report["adherence"]["all"], recipe.points
        found, limit = f"{both['difference']:+.1f} ± {both['margin']:.1f} points", f"at most {most} fewer"
        certain = both["difference"] + both["margin"]  # a fall that chance explains is none
        yield {"what": "prompts followed", "found": found, "limit": limit, "passed": certain >= -most}


def _parts(folder: Path, manifest: dict, float32: dict[str, Path], parts: dict[str, Part], check: Check) -> dict:
    recorder = Recorder(manifest, parts)
    recorder.text_to_image(list(PROMPTS[: check.pictures]), seed=SEED, num_steps=check.steps)
    calls = spread(recorder.records, _PART_CALLS)
    return compare_parts(float32, {name: folder / file.name for name, file in float32.items()}, calls)


def write_report(folder: Path, report: dict, ours: np.ndarray, theirs: np.ndarray):
    """Writes the report of a bundle as JSON and as a page."""
    (folder / REPORT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    write_sheet(folder, report, ours, theirs)
