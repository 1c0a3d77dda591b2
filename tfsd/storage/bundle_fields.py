"""Checks the fields of a device bundle's manifest that the generation loop and the apps need."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tfsd.errors import CheckpointError

SIGNATURES = {"sampling": ("plan", "noise"), "text_encoder": ("encode",), "denoiser": ("step",), "decoder": ("decode",)}
PARTS = tuple(SIGNATURES)
_MAX_PERIOD = 2**31  # of seeds, which the signature `noise` takes as int32


def require_fields(path: Path, manifest: dict):
    """Raises `CheckpointError` for a value in the manifest at `path` that is missing or of another kind than it should be."""
    parts = manifest["parts"] if isinstance(manifest["parts"], dict) else {}
    for name in PARTS:
        file = parts[name].get("file") if isinstance(parts.get(name), dict) else None
        if not isinstance(file, str) or file not in manifest["files"]:
            raise CheckpointError(f"{path} is damaged: it does not say in which of its files {name} is.")
    for name, fits in _fields(manifest):
        value: Any = manifest
        for key in name.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if not fits(value):
            raise CheckpointError(f"{path} is damaged: {name} is missing or not what it should be.")


def _fields(manifest: dict) -> Iterator[tuple[str, Callable[[Any], bool]]]:
    """Yields where a value is, its keys joined by dots, and whether one found there fits; in the order of the apps."""
    yield "name", _is_text
    yield "identity", lambda value: isinstance(value, dict)
    yield "quantize", _is_text
    yield "latents", lambda value: _are_whole(value) and len(value) == 3
    yield "samplers", _are_texts
    yield "sampler_aliases", lambda value: value is None or (isinstance(value, dict) and _are_texts(list(value.values())))
    yield "max_steps", _is_whole
    yield "max_index", _is_whole
    yield "seed_period", lambda value: _is_whole(value) and 1 <= value <= _MAX_PERIOD
    for name, signatures in SIGNATURES.items():
        for signature in signatures:
            yield f"parts.{name}.signatures.{signature}.inputs", _are_tensors
            yield f"parts.{name}.signatures.{signature}.outputs", _are_tensors
        yield f"parts.{name}.accelerators", lambda value: value is None or _are_texts(value)  # older bundles have none
        yield f"parts.{name}.memory", _is_whole
    yield "size", lambda value: _are_whole(value) and len(value) == 2
    yield "defaults.num_steps", _is_whole
    yield "defaults.guidance_scale", lambda value: isinstance(value, (int, float)) and not isinstance(value, bool)
    yield "defaults.sampler", _is_text
    yield "tokenizer.file", lambda value: _is_text(value) and value in manifest["files"]
    yield from ((f"tokenizer.{name}", _is_whole) for name in ("length", "start_token", "end_token", "pad_token"))
    yield "tokenizer.ftfy", lambda value: isinstance(value, bool)


def _is_text(value) -> bool:
    return isinstance(value, str)


def _is_whole(value) -> bool:
    return type(value) is int and value >= 0


def _are_whole(values) -> bool:
    return isinstance(values, list) and all(map(_is_whole, values))


def _are_texts(values) -> bool:
    return isinstance(values, list) and all(map(_is_text, values))


def _are_tensors(values) -> bool:
    return isinstance(values, dict) and all(
        isinstance(one, dict) and one.get("dtype") in ("int32", "float32") and _are_whole(one.get("shape"))
        for one in values.values()
    )
