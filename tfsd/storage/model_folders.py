"""Model folders: `spec.json`, one `.weights.h5` file per part, and `manifest.json` with their hashes.

The h5 files have Keras' own layout, so `keras.Model.load_weights` reads them too.
"""

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import ml_dtypes  # noqa: F401  (gives numpy its bfloat16)
import numpy as np

from tfsd import __version__
from tfsd.errors import CheckpointError, shown
from tfsd.specs import PRESETS, ModelSpec, SpecError, from_json, to_json
from tfsd.storage.atomic import new_folder, set_aside
from tfsd.storage.files import check_file, read_json, sha256
from tfsd.storage.h5 import open_h5, stored_tensors, write_tensors

DTYPES = ("float32", "float16", "bfloat16")
ASSETS = Path(__file__).parents[1] / "assets"  # embedded models, each in a folder of its name
DOWNLOADABLE = ("sd-1.4",)  # presets whose files `tfsd.hub` knows

Tensors = Iterable[tuple[str, np.ndarray]]  # (variable path below its part, values), one at a time


def named_variables(model) -> dict:
    """Returns a part's variables by their paths below it: "down0/residual0/norm1/gamma"."""
    from tfsd.models import path  # here and below: what lists or checks folders must not load TensorFlow

    return {path(variable): variable for variable in model.variables}


def _keys(paths: Iterable[str]) -> dict[str, str]:
    """Returns the h5 key of every path: a variable's number is its position within its layer."""
    counts: dict[str, int] = {}
    keys = {}
    for path in paths:
        layer, slash, _ = path.rpartition("/")
        keys[path] = f"{layer}{slash}vars/{counts.setdefault(layer, 0)}"
        counts[layer] += 1
    return keys


def save_model(
    folder: str | Path,
    spec: ModelSpec,
    models: Mapping,
    *,
    dtype: str | None = None,
    notes: Mapping | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes a model folder from built parts {part: keras.Model}; see `write_model`."""
    tensors = {part: ((path, np.asarray(v)) for path, v in named_variables(model).items()) for part, model in models.items()}
    return write_model(folder, spec, tensors, dtype=dtype, notes=notes, overwrite=overwrite)


def write_model(
    folder: str | Path,
    spec: ModelSpec,
    tensors: Mapping[str, Tensors],
    *,
    dtype: str | None = None,
    notes: Mapping | None = None,
    overwrite: bool = False,
    progress: Callable[[str, str, int], None] | None = None,
) -> Path:
    """Writes a model folder from streams of tensors {part: (path, values), ...}; complete or not at all.

    `dtype` None keeps the tensors' own (float64 becomes float32). `notes` is any JSON for the manifest, such as training metrics.
    `overwrite` replaces a model folder that holds nothing else.
    `progress(part, path, bytes)` is called after each tensor.
    Raises: `CheckpointError` if the tensors are not those of `spec`, do not fit the dtype, or cannot be written.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, or None for the tensors' own; got {shown(dtype)}.")
    from tfsd.models import part_shapes

    with new_folder(folder, kind="model", overwrite=overwrite) as new:
        shapes = part_shapes(spec, tensors)
        stored: set[str] = set()  # dtypes
        for part in spec.parts(tensors):
            own = shapes[part.name]
            pairs = _checked(part.name, tensors[part.name], own, dtype, stored, progress)
            size = sum(math.prod(shape) for shape in own.values()) * (4 if dtype in (None, "float32") else 2)
            write_tensors(new / part.file, pairs, size, len(own))
        (new / "spec.json").write_text(json.dumps(to_json(spec), indent=1) + "\n", encoding="utf-8")
        manifest = {
            "format": 1,
            "kind": "model",
            "tfsd": __version__,
            "dtype": "/".join(sorted(stored)),
            "licence": spec.licence,
            "notes": dict(notes or {}),
            "files": {p.name: {"sha256": sha256(p), "bytes": p.stat().st_size} for p in sorted(new.iterdir())},
        }
        (new / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return Path(folder)


def _checked(part: str, stream: Tensors, shapes: Mapping, dtype: str | None, stored: set[str], progress) -> Tensors:
    keys, left = _keys(shapes), dict(shapes)
    for path, values in stream:
        if left.pop(path, None) != values.shape:
            raise CheckpointError(
                f"{part} must have {path} {list(shapes.get(path, []))} once; got shape {list(values.shape)}."
                if path in shapes
                else f"{part} has no variable {path}."
            )
        own = values.dtype.name if values.dtype.name in DTYPES else "float32"
        values = cast(values, dtype or own, f"{part}/{path}")
        stored.add(values.dtype.name)
        yield keys[path], values
        if progress is not None:
            progress(part, path, values.nbytes)
    if left:
        raise CheckpointError(f"{part} lacks {len(left)} variables ({', '.join(list(left)[:3])}).")


def cast(values: np.ndarray, dtype: str, name: str) -> np.ndarray:
    """Returns values in another float type.

    Raises: `CheckpointError` naming the tensor if values are NaN or infinite, there or only in the new type.
    """
    with np.errstate(over="ignore"):
        result = values.astype(np.dtype(dtype), copy=False)
    if not np.isfinite(result).all():
        what = "are NaN or infinite" if not np.isfinite(values).all() else f"are too large for {dtype}"
        raise CheckpointError(f"Values of {name} {what}.")
    return result


def load_spec(folder: str | Path, *, verify: bool = True) -> ModelSpec:
    """Returns the spec of a model folder.

    Raises: `CheckpointError` if there is none, or it is damaged.
    """
    folder = Path(folder)
    if not (folder / "spec.json").is_file():
        raise CheckpointError(f"{folder} is not a model folder: it has no spec.json. `tfsd convert` makes one.")
    if verify:
        _verify(folder, "spec.json")
    try:
        return from_json(read_json(folder / "spec.json"))
    except SpecError as error:
        raise CheckpointError(f"{folder / 'spec.json'}: {error}") from error


def load_parts(
    folder: str | Path, spec: ModelSpec, *, parts: Iterable[str] | None = None, dtype: str = "float32", verify: bool = True
) -> dict:
    """Builds parts of `spec` {part: keras.Model} in `dtype` and fills them from a model folder, one tensor at a time.

    Raises: `CheckpointError` if a file is missing or damaged, or does not fit the spec.
    """
    from tfsd.models import build
    from tfsd.models.layers import zero_weights

    folder, wanted = Path(folder), spec.parts(parts)
    for part in wanted:
        path = folder / part.file
        if not path.is_file():
            raise CheckpointError(f"{folder} has no {part.file}.")
        if verify:
            _verify(folder, part.file)
        with open_h5(path) as file:
            stored_tensors(file)  # raises for what is damaged
        if path.stat().st_size < 2 * part.fewest_values:  # before memory is taken for them
            raise CheckpointError(f"{path} is too small for the {part.name} of {spec.name} that spec.json describes.")
    models: dict = {}
    for part in wanted:
        with zero_weights():
            models |= build(spec, dtype=dtype, parts=(part.name,))
        load_weights(folder / part.file, models[part.name], model=f"the {part.name} of {spec.name}")
    return models


def load_weights(path: str | Path, part, *, model: str = "the model"):
    """Fills a built part from a `.weights.h5` file, ours or Keras'.

    Raises: `CheckpointError` naming the first missing, surplus or misshapen tensors; nothing is filled then.
    """
    path = Path(path)
    with open_h5(path) as file:
        stored = stored_tensors(file)
        variables = named_variables(part)
        wanted = {key: (name, variables[name]) for name, key in _keys(variables).items()}
        missing = [name for key, (name, _) in wanted.items() if key not in stored]
        surplus = [key for key in stored if key not in wanted]
        wrong = [
            f"{name} {list(stored[key].shape)} instead of {list(variable.shape)}"
            for key, (name, variable) in wanted.items()
            if key in stored and stored[key].shape != tuple(variable.shape)
        ]
        if missing or surplus or wrong:
            problems = ((missing, "missing"), (surplus, "surplus"), (wrong, "misshapen"))
            listed = (f"{len(items)} {what} ({', '.join(items[:3])})" for items, what in problems if items)
            raise CheckpointError(f"{path} does not fit {model}: {'; '.join(listed)} tensors.")
        for key, (name, variable) in wanted.items():
            variable.assign(cast(stored[key].read(), variable.dtype, f"{name} in {path}"))


def _verify(folder: Path, name: str):
    manifest = read_json(folder / "manifest.json")
    entry = manifest.get("files", {}).get(name) if isinstance(manifest.get("files", {}), dict) else None
    if not isinstance(entry, dict) or not {"sha256", "bytes"} <= set(entry):
        raise CheckpointError(f"{folder / 'manifest.json'} says nothing of {name}.")
    check_file(folder / name, sha256_hex=entry["sha256"], size=entry["bytes"])


def home() -> Path:
    """Returns the folder of downloads: $TFSD_HOME, or ~/.cache/tfsd."""
    return Path(os.environ.get("TFSD_HOME") or "~/.cache/tfsd").expanduser()


class ModelEntry(NamedTuple):
    """A model that can be named: embedded in the package, downloaded, or a preset that is neither yet."""

    name: str
    state: str  # "embedded", "downloaded" or "not downloaded"
    path: Path | None
    bytes: int
    licence: str


def list_models(cache: str | Path | None = None) -> list[ModelEntry]:
    """Returns the models that `resolve` knows by name, then the presets that could be downloaded."""
    entries: dict[str, ModelEntry] = {}
    for state, root in (("embedded", ASSETS), ("downloaded", Path(cache or home()) / "models")):
        for spec in sorted(root.glob("[!.]*/spec.json")):
            folder, size = spec.parent, sum(f.stat().st_size for f in spec.parent.iterdir() if f.is_file())
            licence = str(_or_empty(spec).get("licence", ""))
            entries.setdefault(folder.name, ModelEntry(folder.name, state, folder, size, licence))
    for name in DOWNLOADABLE:
        entries.setdefault(name, ModelEntry(name, "not downloaded", None, 0, PRESETS[name].licence))
    return list(entries.values())


def _or_empty(path: Path) -> dict:
    try:
        return read_json(path)
    except CheckpointError:  # a listing shows the others, too; loading says what is wrong
        return {}


def resolve(model: str | Path, cache: str | Path | None = None) -> Path:
    """Returns the folder of a model: a name from `list_models`, or the path of a model folder.

    A name goes first; write `./tiny` for a folder called like an embedded model.
    Raises: `CheckpointError` saying what exists, or how to get a preset.
    """
    if isinstance(model, str):
        folders = {entry.name: entry.path for entry in list_models(cache)}
        if folder := folders.get(model):
            return folder
        if model in folders and not Path(model, "spec.json").is_file():
            raise CheckpointError(f"{model} is not downloaded. `tfsd download {model} --accept-licence` fetches it.")
    if Path(model, "spec.json").is_file():
        return Path(model)
    if Path(model).exists():
        raise CheckpointError(f"{model} is not a model folder: it has no spec.json. `tfsd convert` makes one.")
    if left := set_aside(model):
        raise CheckpointError(f"{model} is missing: an interrupted run moved it to {left}. Rename that to {Path(model).name}.")
    names = ", ".join(entry.name for entry in list_models(cache))
    raise CheckpointError(f"There is no model {shown(str(model), 300)}. There are {names}, and folders made by `tfsd convert`.")
