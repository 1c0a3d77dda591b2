"""Writes a device bundle: four TFLite files, what describes them, and what their quantization costs."""

import gc
import shutil
import tempfile
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from tfsd.api import load
from tfsd.arguments.checks import choice, side_of, whole
from tfsd.converters.device.capture import Records
from tfsd.converters.device.convert import convert
from tfsd.converters.device.jobs import CONVERSION_BYTES
from tfsd.converters.device.lint import MAX_BYTES, lint
from tfsd.converters.device.manifest import TOKENIZER, describe, write
from tfsd.converters.device.measure import first_line, measure_signature
from tfsd.converters.device.parts import build_parts, save_part
from tfsd.converters.device.recipes import RECIPES, QuantizationRecipe, plan_sizes, quantize_file
from tfsd.converters.device.report import Check, gather, make_report, write_report
from tfsd.converters.saved_model.verify_export import ExportError
from tfsd.device import MAX_BATCH
from tfsd.errors import shown
from tfsd.progress import Stages
from tfsd.runtime.memory import available_memory
from tfsd.samplers.plans import MAX_STEPS
from tfsd.specs import ModelSpec
from tfsd.storage.atomic import new_folder
from tfsd.storage.files import require_space
from tfsd.storage.model_folders import load_spec, resolve
from tfsd.text.portable import write_tokenizer_data

_CHECK_STEPS = 10  # of the report's pictures
_DISK_BYTES = 8  # of the folder for temporary files, for each weight: a SavedModel and a file, both in float32


class Saved(NamedTuple):
    """A part as a SavedModel: its folder, the names of its signatures, and how many weights it has."""

    folder: Path
    signatures: list[str]
    weights: int


def export_tflite(
    model: str | Path,
    out: str | Path,
    *,
    quantize: str = "none",
    size: tuple[int, int] | None = None,
    max_steps: int = 50,
    check: Check | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> Path:
    """Writes a bundle for phones to the folder `out` and returns it; complete or not at all.

    - `model`: as in `tfsd.load`, except for a loaded model.
    - `quantize`: a key of `RECIPES`.
    - `size`: (height, width) of the images; None is the model's own.
    - `max_steps`: the most steps that an app may ask for.
    - `check`: how many images are made for the report.

    Raises: `ValueError` and `TypeError` for arguments; `CheckpointError` for a model or folder; `ExportError` if there is too
    little memory to convert, or if a file would be too large for phones, has operations that their accelerators refuse, or
    gives images that are too far from those in float32.
    """
    recipe = RECIPES[choice("quantize", quantize, tuple(RECIPES))]
    spec = load_spec(resolve(model))
    size = _checked_size(spec, size)
    max_steps = whole("max_steps", max_steps, 1, min(MAX_STEPS, spec.schedule.train_steps))
    check = _checked(check or Check(), max_steps)
    require_room(spec, quantize)
    with (
        Stages.within(progress) as stages,
        new_folder(out, kind="device", overwrite=overwrite) as new,
        tempfile.TemporaryDirectory() as work,
    ):
        stages("loading, tracing and drawing references")
        saved, manifest, evidence = _prepare(model, Path(work), quantize, size, max_steps, check)
        gc.collect()  # a large model leaves memory before it is converted: Keras' layers are cycles
        files = _convert(saved, Path(work), stages)
        stages("quantizing")
        _quantize(files, new, quantize, recipe, evidence.calibration)
        if found := [line for name in files for line in lint(new / f"{name}.tflite", gpu="gpu" in recipe.accelerators(name))]:
            raise ExportError(" ".join(found))
        stages("measuring memory")
        _complete(new, manifest)
        stages("comparing pictures")
        report, ours = make_report(new, files, evidence, check)
        write_report(new, report, ours, evidence.pictures)
        if failed := [f"{gate['what']} {gate['found']}, {gate['limit']}" for gate in report["gates"] if not gate["passed"]]:
            raise ExportError(
                f"quantize={shown(quantize)} costs too much: {'; '.join(failed)}. Choose another of {', '.join(RECIPES)}."
            )
        write(new, manifest)
    return Path(out)


def _checked_size(spec: ModelSpec, size) -> tuple[int, int]:
    size = spec.default_size if size is None else size
    if not isinstance(size, (tuple, list)) or len(size) != 2:
        raise ValueError(f"size must be a pair of height and width; got {shown(size)}.")
    return tuple(side_of("size", side, side, spec.vae.factor) for side in size)


def _checked(check: Check, max_steps: int) -> Check:
    pictures = whole("check.pictures", check.pictures, 1, MAX_BATCH)
    prompts = whole("check.adherence", check.adherence, 0, 10_000)
    steps = min(_CHECK_STEPS, max_steps) if check.steps is None else whole("check.steps", check.steps, 1, max_steps)
    return Check(pictures, steps, prompts)


def require_room(spec: ModelSpec, quantize: str):
    """Raises `ExportError` for a file too large for phones, or for the free memory; `CheckpointError` for the disk."""
    sizes = plan_sizes(spec)
    free = available_memory()
    for name, part in sizes[quantize].items():
        if part.file_bytes > MAX_BYTES:
            fits = [key for key in RECIPES if sizes[key][name].file_bytes <= MAX_BYTES]
            raise ExportError(
                f"{name}.tflite would have {part.file_bytes / 1e9:.1f} GB with quantize={shown(quantize)}; phones map at most "
                f"{MAX_BYTES / 1e9:.1f} GB. Choose {' or '.join(fits) or 'a smaller model'}."
            )
        if free is not None and part.conversion_bytes > free:
            raise ExportError(
                f"Converting {name} needs about {part.conversion_bytes / 1e9:.1f} GB of memory; {free / 1e9:.1f} GB are free. "
                "Close other programs, or convert on a larger machine."
            )
    weights = sum(part.conversion_bytes for part in sizes[quantize].values()) // CONVERSION_BYTES
    require_space(tempfile.gettempdir(), _DISK_BYTES * weights)


def _prepare(model, work: Path, quantize: str, size: tuple[int, int], max_steps: int, check: Check):
    """Returns the saved parts, the manifest and the evidence: all for which the model must be in memory."""
    loaded = load(model, jit_compile=False)
    parts = build_parts(loaded.pipeline, size, max_steps)
    saved = {}
    for name, part in parts.items():
        save_part(part, work / name)
        weights = sum(int(weight.shape.num_elements()) for weight in part.weights)
        saved[name] = Saved(work / name, list(part.signatures), weights)
    manifest = describe(loaded, parts, quantize, size, max_steps)
    return saved, manifest, gather(loaded, manifest, parts, check)


def _convert(saved: dict[str, Saved], work: Path, stages: Stages) -> dict[str, Path]:
    """Returns the parts' files in float32."""
    files = {}
    for name, one in saved.items():
        stages(f"converting {name}")
        files[name] = convert(one.folder, work / f"{name}.tflite", one.signatures, one.weights)
        shutil.rmtree(one.folder)
    return files


def _quantize(files: dict[str, Path], new: Path, quantize: str, recipe: QuantizationRecipe, calls: Records):
    """Writes the files of the bundle. Plans and noise are exact, whatever the weights are."""
    for name, file in files.items():
        if recipe.rules is None or name == "sampling":
            shutil.copyfile(file, new / file.name)
            continue
        try:
            quantize_file(file, new / file.name, name, recipe, calls.get(name, []))
        except (ValueError, RuntimeError) as error:
            raise ExportError(f"{name} cannot be quantized with {shown(quantize)}: {first_line(error)}") from error


def _complete(new: Path, manifest: dict):
    """Adds the tokenizer's data, its licence, the memory that each part needs, and the manifest."""
    write_tokenizer_data(new / TOKENIZER)
    licence = resources.files("tfsd").joinpath("assets", "LICENSE-CLIP").read_bytes()
    (new / "LICENSE-CLIP").write_bytes(licence)
    for part in manifest["parts"].values():
        signatures = part["signatures"]
        part["memory"] = max(measure_signature(new / part["file"], name, runs=1).peak_bytes for name in signatures)
    write(new, manifest)
