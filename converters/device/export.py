"""Exports a model for phones: a bundle of four TFLite files, their manifest, and a report on their quality."""

import gc
import shutil
import tempfile
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from tfsd.api import load
from tfsd.arguments.checks import choice, side_of, whole
from tfsd.converters.device.capture import Records
from tfsd.converters.device.convert import CONVERSION_BYTES, convert
from tfsd.converters.device.jobs import convert_saved
from tfsd.converters.device.lint import MAX_BYTES, lint
from tfsd.converters.device.manifest import TOKENIZER, describe, write_manifest
from tfsd.converters.device.measure import first_line, measure_signature
from tfsd.converters.device.parts import build_parts, save_part
from tfsd.converters.device.recipes import RECIPES, QuantizationRecipe, plan_sizes, quantize_file
from tfsd.converters.device.report import Check, Checked, ReferenceData, gather, make_report, write_report
from tfsd.converters.saved_model.verify_export import ExportError
from tfsd.device import MAX_BATCH, LiteRTLoop
from tfsd.errors import shown
from tfsd.progress import Stages
from tfsd.runtime.memory import available_memory
from tfsd.samplers.plans import MAX_STEPS
from tfsd.specs import ModelSpec
from tfsd.storage.atomic import new_folder
from tfsd.storage.files import require_space
from tfsd.storage.model_folders import load_spec, resolve
from tfsd.text.portable import write_tokenizer_data

LARGE = 10**8  # parts with at least so many weights are converted in a new process, which frees the memory when it ends
_CHECK_STEPS = 10  # for each image of the report
_DISK_BYTES = 8  # in the folder for temporary files, for each weight: a SavedModel and a file, both in float32


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
    checked = _checked(check or Check(), max_steps)
    require_room(spec, recipe)
    with (
        Stages.within(progress) as stages,
        new_folder(out, kind="device", overwrite=overwrite) as new,
        tempfile.TemporaryDirectory() as work,
    ):
        stages("loading, tracing and making reference images")
        saved, manifest, reference = _prepare(model, Path(work), recipe, size, max_steps, checked)
        gc.collect()  # frees a large model before the conversion: Keras' layers are reference cycles
        files = _convert(saved, Path(work), stages)
        stages("quantizing")
        _quantize(files, new, recipe, reference.calibration)
        stages("measuring memory")
        _measure_memory(new, manifest)
        stages("comparing images")
        _report(new, manifest, files, reference, recipe, checked)
        _write_texts(new)
        write_manifest(new, manifest)
    return Path(out)


def _checked_size(spec: ModelSpec, size) -> tuple[int, int]:
    size = spec.default_size if size is None else size
    if not isinstance(size, (tuple, list)) or len(size) != 2:
        raise ValueError(f"size must be a pair of height and width; got {shown(size)}.")
    height, width = (side_of("size", side, side, spec.vae.factor) for side in size)
    return height, width


def _checked(check: Check, max_steps: int) -> Checked:
    images = whole("check.pictures", check.pictures, 1, MAX_BATCH)
    prompts = whole("check.adherence", check.adherence, 0, 10_000)
    steps = min(_CHECK_STEPS, max_steps) if check.steps is None else whole("check.steps", check.steps, 1, max_steps)
    return Checked(images, steps, prompts)


def require_room(spec: ModelSpec, recipe: QuantizationRecipe):
    """Raises `ExportError` for a file too large for phones, or for the free memory; `CheckpointError` for the disk."""
    sizes = plan_sizes(spec)
    free = available_memory()
    for name, part in sizes[recipe.name].items():
        if part.file_bytes > MAX_BYTES:
            fits = [key for key in RECIPES if sizes[key][name].file_bytes <= MAX_BYTES]
            raise ExportError(
                f"{name}.tflite would have {part.file_bytes / 1e9:.1f} GB with quantize={shown(recipe.name)}; phones map at most "
                f"{MAX_BYTES / 1e9:.1f} GB. Choose {' or '.join(fits) or 'a smaller model'}."
            )
        if free is not None and part.conversion_bytes > free:
            raise ExportError(
                f"Converting {name} needs about {part.conversion_bytes / 1e9:.1f} GB of memory; {free / 1e9:.1f} GB are free. "
                "Close other programs, or convert on a larger machine."
            )
    weights = sum(part.conversion_bytes for part in sizes[recipe.name].values()) // CONVERSION_BYTES
    require_space(tempfile.gettempdir(), _DISK_BYTES * weights)


def _prepare(
    model, work: Path, recipe: QuantizationRecipe, size: tuple[int, int], max_steps: int, check: Checked
) -> tuple[dict[str, Saved], dict, ReferenceData]:
    """Returns the saved parts, the manifest and the reference data: everything that is made with the model in memory."""
    loaded = load(model, jit_compile=False)
    parts = build_parts(loaded.pipeline, size, max_steps)
    saved = {}
    for name, part in parts.items():
        save_part(part, work / name)
        saved[name] = Saved(work / name, list(part.signatures), part.weight_count)
    manifest = describe(loaded, parts, recipe, size, max_steps)
    return saved, manifest, gather(loaded, manifest, parts, recipe, check)


def _convert(saved: dict[str, Saved], work: Path, stages: Stages) -> dict[str, Path]:
    """Returns the parts' files in float32."""
    files = {}
    for name, one in saved.items():
        stages(f"converting {name}")
        files[name] = work / f"{name}.tflite"
        if one.weights >= LARGE:
            convert_saved(one.folder, files[name], one.signatures, one.weights)
        else:
            try:
                convert(one.folder, files[name], one.signatures, one.weights)
            except Exception as error:  # the converter has an exception class for each stage
                raise ExportError(f"{name} cannot be converted to TFLite: {first_line(error)}") from error
        shutil.rmtree(one.folder)
    return files


def _quantize(files: dict[str, Path], new: Path, recipe: QuantizationRecipe, calls: Records):
    """Writes the files of the bundle, and checks that phones take them. Plans and noise stay exact: they are not quantized."""
    for name, file in files.items():
        if name not in recipe.rules:
            shutil.copyfile(file, new / file.name)
            continue
        try:
            quantize_file(file, new / file.name, name, recipe, calls.get(name, []))
        except (ValueError, RuntimeError) as error:
            raise ExportError(f"{name} cannot be quantized with {shown(recipe.name)}: {first_line(error)}") from error
    if found := [line for name, file in files.items() for line in lint(new / file.name, gpu="gpu" in recipe.accelerators(name))]:
        raise ExportError(" ".join(found))


def _measure_memory(new: Path, manifest: dict):
    """Adds the memory that each part needs to the manifest."""
    for part in manifest["parts"].values():
        file = new / part["file"]
        part["memory"] = max(measure_signature(file, name, runs=1).peak_bytes for name in part["signatures"])


def _report(
    new: Path, manifest: dict, files: dict[str, Path], reference: ReferenceData, recipe: QuantizationRecipe, check: Checked
):
    """Writes the report and the reference image. Raises: `ExportError` if the images are too far from those in float32."""
    report, images = make_report(LiteRTLoop(new, manifest), files, reference, recipe, check)
    write_report(new, report, images, reference)
    if failed := [f"{gate['what']} {gate['found']}, {gate['limit']}" for gate in report["gates"] if not gate["passed"]]:
        others = ", ".join(RECIPES)
        raise ExportError(f"quantize={shown(recipe.name)} costs too much: {'; '.join(failed)}. Choose another of {others}.")


def _write_texts(new: Path):
    """Writes the tokenizer's data and its licence."""
    write_tokenizer_data(new / TOKENIZER)
    licence = (resources.files("tfsd") / "assets" / "LICENSE-CLIP").read_bytes()
    (new / "LICENSE-CLIP").write_bytes(licence)
