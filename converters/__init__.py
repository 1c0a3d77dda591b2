"""Converts weights of other packages to model folders."""

import math
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tfsd.converters.importers.sources import detect
from tfsd.errors import TfsdWarning, shown
from tfsd.progress import Stages
from tfsd.samplers.plans import check_fits, find_sampler
from tfsd.specs import SD_1_4, ModelSpec
from tfsd.storage.files import require_space
from tfsd.storage.h5 import StoredTensor
from tfsd.storage.model_folders import DTYPES, write_model

ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


def _diffusers(src: Path, variant: str | None, spec: ModelSpec | None, sampler: str | None, tell: Callable[[str], None]) -> Any:
    from tfsd.converters.importers.diffusers import open_folder  # here, since it loads TensorFlow

    if spec is not None:
        raise ValueError("A diffusers folder says what its model is; leave spec out.")
    return open_folder(src, variant=variant, sampler=sampler, tell=tell)


def _kerascv(src: Path, variant: str | None, spec: ModelSpec | None, sampler: str | None, tell: Callable[[str], None]) -> Any:
    from tfsd.converters.importers.kerascv import open_folder

    if variant is not None:
        raise ValueError(f"Only diffusers folders have variants; got variant={shown(variant)}.")
    return open_folder(src) if spec is None else open_folder(src, spec=spec)


IMPORTERS = {"diffusers": _diffusers, "kerascv": _kerascv}


def convert(
    src: str | Path,
    dst: str | Path,
    *,
    kind: str | None = None,
    numerics: str | None = None,
    dtype: str | None = "float32",
    name: str | None = None,
    overwrite: bool = False,
    progress: bool = False,
    notes: Mapping[str, Any] | None = None,
    variant: str | None = None,
    spec: ModelSpec | None = None,
    sampler: str | None = None,
) -> Path:
    """Writes the model folder `dst` from the weights in `src`, one tensor at a time; complete or not at all.

    - `src`: a diffusers folder, a folder of KerasCV's files, or one of these files.
    - `kind`: "diffusers" or "kerascv"; None finds out which.
    - `numerics`: "compvis" or "kerascv"; None keeps what the source says.
    - `dtype`: of the stored weights; None keeps the source's.
    - `name`: of the model; None takes the name of `dst`.
    - `overwrite`: replace `dst` if it is a model folder that contains nothing else.
    - `notes`: entries for the manifest.
    - `variant`: selects files of a diffusers folder, "fp16" for instance.
    - `spec`: the model that KerasCV's files belong to, which they do not say; None is Stable Diffusion 1.4.
    - `sampler`: the model's default, a name that `text_to_image` takes; None is the source's.

    What was repaired, ignored or left out gives Python warnings, which are also kept in the manifest as "warnings".

    Raises: `ValueError` for an invalid argument; `CheckpointError` if the source is damaged or belongs to another model, or
    if `dst` cannot be written.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, or None for the source's own; got {shown(dtype)}.")
    if numerics is not None:
        SD_1_4.with_numerics(numerics)  # raises for a wrong name before the source is read
    src, dst = Path(src), Path(dst)
    if src.suffix == ".h5" and src.is_file():
        src = src.parent
    kind = detect(src) if kind is None else kind
    if kind not in IMPORTERS:
        raise ValueError(f"kind must be one of {', '.join(IMPORTERS)}; got {shown(kind)}.")
    sampler = None if sampler is None else find_sampler(sampler)
    told: list[str] = []

    def tell(message: str) -> None:
        told.append(message.replace(f"{src}{os.sep}", ""))  # the manifest must not show the user's folders
        warnings.warn(message, TfsdWarning, stacklevel=2)

    with IMPORTERS[kind](src, variant, spec, sampler, tell) as (found, parts):
        spec = _adapted(replace(found, name=name or dst.resolve().name), numerics, sampler)
        notes = {"converted_from": kind, **({"warnings": told} if told else {}), **(notes or {})}
        return _write(dst, spec, parts, dtype=dtype, notes=notes, overwrite=overwrite, progress=progress)


def _adapted(spec: ModelSpec, numerics: str | None, sampler: str | None) -> ModelSpec:
    """Returns a source's spec with the numerics and the default sampler that the caller asked for."""
    if numerics is not None:
        spec = spec.with_numerics(numerics)
    spec = replace(spec, default_sampler=sampler or spec.default_sampler)
    check_fits(spec.default_sampler, spec.schedule)
    return spec


def _write(
    dst: Path,
    spec: ModelSpec,
    parts: Mapping[str, Mapping[str, StoredTensor]],
    *,
    dtype: str | None,
    notes: Mapping[str, Any],
    overwrite: bool,
    progress: bool,
) -> Path:
    """Writes the model folder, one tensor at a time."""
    total = sum(math.prod(t.shape) * ITEM_BYTES[dtype or t.dtype] for part in parts.values() for t in part.values())
    require_space(dst, total)
    streams = {part: ((path, t.read()) for path, t in tensors.items()) for part, tensors in parts.items()}
    with Stages.within(progress) as stages:
        stages(f"writing {dst.name}", total, unit="B", scale=True)

        def advance(part: str, path: str, size: int) -> None:
            stages.advance(size)

        return write_model(dst, spec, streams, dtype=dtype, notes=notes, overwrite=overwrite, progress=advance)
