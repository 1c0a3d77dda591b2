"""Writes the manifest of a bundle, which describes the model to apps and has the hashes of the other files."""

import json
from pathlib import Path

import tensorflow as tf

from tfsd import __version__
from tfsd.api import StableDiffusion
from tfsd.converters.device.parts import DevicePart, Signature
from tfsd.converters.device.recipes import CHECKED, QuantizationRecipe
from tfsd.device import FORMATS, MANIFEST
from tfsd.hub import PUBLISHED
from tfsd.noise import SEED_PERIOD, highest_index
from tfsd.samplers.plans import fitting_samplers, sampler_names
from tfsd.specs.limits import MAX_INDEX
from tfsd.storage.files import sha256

TOKENIZER = "tokenizer.json"


def describe(
    model: StableDiffusion, parts: dict[str, DevicePart], recipe: QuantizationRecipe, size: tuple[int, int], max_steps: int
) -> dict:
    """Returns the manifest of a bundle, without the hashes of its files and the memory that its parts need."""
    spec, text, samplers = model.spec, model.spec.text[0], fitting_samplers(model.spec.schedule)
    latents = model.pipeline.latent_shape(*size)
    published = next((one for one in PUBLISHED.values() if one.spec.licence == spec.licence), None)
    own = dict(model.identity)
    own["model"] = spec.name if Path(own["model"]).is_dir() else own["model"]  # a path is nobody else's business
    tokens = {name: getattr(text, name) for name in ("length", "start_token", "end_token", "pad_token", "ftfy")}
    return {
        "format": FORMATS[-1],
        "kind": "device",
        "name": spec.name,
        "tfsd": __version__,
        "tensorflow": tf.__version__,
        "identity": own,
        "quantize": recipe.name,
        "size": list(size),
        "latents": list(latents),
        "tokenizer": {"file": TOKENIZER, **tokens},
        "kept_tokens": list(text.kept_tokens),  # the tokens that the model learned; none means all
        "samplers": samplers,
        "sampler_aliases": {name: key for name, key in sampler_names().items() if key in samplers},  # in lower case
        "max_steps": max_steps,
        "max_index": min(MAX_INDEX, highest_index(latents)),
        "seed_period": SEED_PERIOD,
        "defaults": {
            "num_steps": min(spec.default_steps, max_steps),
            "guidance_scale": spec.default_guidance,
            "sampler": spec.default_sampler,
        },
        "parts": {name: _part(name, part, recipe) for name, part in parts.items()},
        "checked": CHECKED,
        "no_gpu": recipe.no_gpu,
        "licence": spec.licence,
        "licence_url": published.licence_url if published else "",
        "use_restrictions": published.terms if published else "",
    }


def _part(name: str, part: DevicePart, recipe: QuantizationRecipe) -> dict:
    signatures = {key: _signature(signature) for key, signature in part.signatures.items()}
    return {"file": f"{name}.tflite", "accelerators": list(recipe.accelerators(name)), "signatures": signatures}


def _signature(signature: Signature) -> dict:
    outputs = signature.function.get_concrete_function().structured_outputs
    return {
        "inputs": {spec.name: {"dtype": spec.dtype.name, "shape": list(spec.shape)} for spec in signature.inputs},
        "outputs": {name: {"dtype": one.dtype.name, "shape": list(one.shape)} for name, one in outputs.items()},
    }


def write_manifest(folder: Path, manifest: dict):
    """Writes the manifest of a bundle, with the hashes of the files in the folder."""
    paths = sorted(path for path in folder.iterdir() if path.name != MANIFEST)
    files = {path.name: {"sha256": sha256(path), "bytes": path.stat().st_size} for path in paths}
    (folder / MANIFEST).write_text(json.dumps(manifest | {"files": files}, indent=1) + "\n", encoding="utf-8")
