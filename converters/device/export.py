"""Writes a device bundle: four TFLite files, what describes them, and what their quantization costs."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from converters.device.lint import MAX_BYTES, lint
from converters.device.parts import Part, build_parts, save_part
from converters.device.recipes import RECIPES, plan_sizes, quantize_file
from converters.verify import ExportError
from tfsd import __version__
from tfsd.api import StableDiffusion, load
from tfsd.arguments import choice, side_of, whole
from tfsd.device import FORMAT, MANIFEST, DeviceBundle
from tfsd.files import new_folder, sha256
from tfsd.hub import PUBLISHED
from tfsd.samplers.plans import MAX_STEPS, SAMPLERS
from tfsd.weights import load_spec, resolve

REPORT = "report.json"
PROMPTS = ("a red star above a blue house at night", "a large green fish", "two yellow cars in the desert", "a pink tree at sea")
SEED = 2026


def export_tflite(
    model: str | Path,
    out: str | Path,
    *,
    quantize: str = "none",
    size: tuple[int, int] | None = None,
    max_steps: int = 50,
    overwrite: bool = False,
    progress: bool = False,
) -> Path:
    """Writes a bundle for phones to the folder `out` and returns it; complete or not at all.

    `model` as in `tfsd.load`; `quantize`: a key of `RECIPES`; `size`: (height, width) of the pictures, None is the model's
    own; `max_steps` that may be asked for.

    Raises: `ValueError`, `TypeError` for arguments; `CheckpointError` for a model or folder; `ExportError` if a file would be
    too large for phones, has what their accelerators refuse, or draws pictures that are too far from those in float32.
    """
    recipe = RECIPES[choice("quantize", quantize, tuple(RECIPES))]
    spec = load_spec(resolve(model))
    size = spec.default_size if size is None else size
    if not isinstance(size, (tuple, list)) or len(size) != 2:
        raise ValueError(f"size must be a pair of height and width; got {size!r}.")
    size = tuple(side_of("size", side, side, spec.vae.factor) for side in size)
    max_steps = whole("max_steps", max_steps, 1, min(MAX_STEPS, spec.schedule.train_steps))
    _require_small(spec, quantize)
    loaded = load(model, jit_compile=False)
    with new_folder(out, overwrite=overwrite) as new, tempfile.TemporaryDirectory() as work:
        parts = build_parts(loaded.pipeline, size, max_steps)
        for name, part in tqdm(parts.items(), desc="converting", unit="file", disable=None if progress else True):
            made = convert(part, Path(work) / f"{name}.tflite")
            if recipe.apply is None or name == "sampling":  # plans and noise are exact, whatever the weights are
                made.rename(new / made.name)
            else:
                try:
                    quantize_file(made, new / made.name, recipe)
                except (ValueError, RuntimeError) as error:
                    raise ExportError(f"{name} cannot be quantized with {quantize!r}: {_first_line(error)}") from error
                made.unlink()
        if found := [line for name in parts for line in lint(new / f"{name}.tflite", name)]:
            raise ExportError(" ".join(found))
        manifest = _manifest(loaded, parts, quantize, size, max_steps)
        _write(new, manifest)
        report = _compare(loaded, new, size)
        (new / REPORT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        if report["lowest_psnr"] < recipe.gate:
            raise ExportError(
                f"quantize={quantize!r} makes pictures with {report['lowest_psnr']:.1f} dB against float32; it must be at least "
                f"{recipe.gate:.0f} dB. Choose another of {', '.join(RECIPES)}."
            )
        _write(new, manifest)
    return Path(out)


def convert(part: Part, target: Path) -> Path:
    """Writes a part as a float32 TFLite file of builtin operations, and returns its path.

    Raises: `ExportError` for a part that TFLite cannot express.
    """
    with tempfile.TemporaryDirectory() as folder:
        save_part(part, Path(folder))
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=list(part.signatures))
        try:
            target.write_bytes(converter.convert())
        except Exception as error:  # the converter raises a class of its own for each stage
            raise ExportError(f"{target.stem} cannot be converted to TFLite: {_first_line(error)}") from error
    return target


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _require_small(spec, quantize: str):
    sizes = plan_sizes(spec)
    for name, part in sizes[quantize].items():
        if part.file_bytes > MAX_BYTES:
            fits = [key for key in RECIPES if sizes[key][name].file_bytes <= MAX_BYTES]
            raise ExportError(
                f"{name}.tflite would have {part.file_bytes / 1e9:.1f} GB with quantize={quantize!r}; phones map at most "
                f"{MAX_BYTES / 1e9:.1f} GB. Choose {' or '.join(fits) or 'a smaller model'}."
            )


def _manifest(model: StableDiffusion, parts: dict[str, Part], quantize: str, size, max_steps: int) -> dict:
    spec, text = model.spec, model.spec.text
    published = next((one for one in PUBLISHED.values() if one.spec.licence == spec.licence), None)
    own = dict(model.identity)
    own["model"] = spec.name if Path(own["model"]).is_dir() else own["model"]  # a path is nobody else's business
    return {
        "format": FORMAT,
        "kind": "device",
        "name": spec.name,
        "tfsd": __version__,
        "tensorflow": tf.__version__,
        "identity": own,
        "quantize": quantize,
        "size": list(size),
        "latents": list(model.pipeline.latent_shape(*size)),
        "tokenizer": {name: getattr(text, name) for name in ("length", "start_token", "end_token", "pad_token", "ftfy")},
        "samplers": list(SAMPLERS),
        "max_steps": max_steps,
        "defaults": {
            "num_steps": min(spec.default_steps, max_steps),
            "guidance_scale": spec.default_guidance,
            "sampler": spec.default_sampler,
        },
        "parts": {name: {"file": f"{name}.tflite", "signatures": dict(_signatures(part))} for name, part in parts.items()},
        "licence": spec.licence,
        "licence_url": published.licence_url if published else "",
        "use_restrictions": published.terms if published else "",
    }


def _signatures(part: Part) -> Iterator[tuple[str, dict]]:
    for name, signature in part.signatures.items():
        function = tf.function(signature.call, input_signature=signature.inputs, autograph=False).get_concrete_function()
        outputs = function.structured_outputs
        yield (
            name,
            {
                "inputs": {spec.name: {"dtype": spec.dtype.name, "shape": list(spec.shape)} for spec in signature.inputs},
                "outputs": {key: {"dtype": one.dtype.name, "shape": list(one.shape)} for key, one in outputs.items()},
            },
        )


def _write(folder: Path, manifest: dict):
    """Writes the manifest of a bundle, with the hashes of the files that are there."""
    files = sorted(path for path in folder.iterdir() if path.name != MANIFEST)
    manifest["files"] = {path.name: {"sha256": sha256(path), "bytes": path.stat().st_size} for path in files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def _compare(model: StableDiffusion, folder: Path, size: tuple[int, int]) -> dict:
    """Returns how far the bundle's pictures are from those that Python draws in float32 for the same prompts and seed."""
    bundle = DeviceBundle(folder)
    options = {"seed": SEED, "num_steps": min(10, bundle.manifest["max_steps"])}
    ours = bundle.text_to_image(list(PROMPTS), **options)
    theirs = model.text_to_image(list(PROMPTS), height=size[0], width=size[1], **options)
    differences = np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)
    pictures = [
        {"prompt": prompt, "psnr": psnr(difference), "largest_difference": float(np.abs(difference).max())}
        for prompt, difference in zip(PROMPTS, differences)
    ]
    return {**options, "lowest_psnr": min(one["psnr"] for one in pictures), "pictures": pictures}


def psnr(difference: np.ndarray) -> float:
    """Returns the peak signal-to-noise ratio in dB of pictures in [0, 255] that differ so much; 100 for none."""
    return min(100.0, float(10 * np.log10(255.0**2 / max(np.mean(np.square(difference)), 1e-12))))
