"""Exports a model as a SavedModel for TensorFlow Serving: prompt in, PNG out, in one graph."""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

import numpy as np
import tensorflow as tf
from filelock import FileLock, Timeout

from tfsd import __version__
from tfsd.api import StableDiffusion, load
from tfsd.arguments.checks import side_of, whole
from tfsd.arguments.table import model_defaults
from tfsd.converters.saved_model.graph_requests import ExportLimits, request_defaults
from tfsd.converters.saved_model.signatures import Signatures
from tfsd.converters.saved_model.verify_export import FORMAT, MANIFEST, REFERENCE_IMAGE, TOLERANCE, ExportError, draw
from tfsd.converters.saved_model.versions import free_version, served_name
from tfsd.converters.saved_model.warmup import write_warmup
from tfsd.errors import CheckpointError, shown
from tfsd.hub import PUBLISHED
from tfsd.images.encoding import encode_png
from tfsd.progress import Stages
from tfsd.runtime.freeing import free_memory
from tfsd.samplers.plans import fitting_samplers
from tfsd.specs.limits import MAX_BATCH, MAX_STEPS
from tfsd.storage.atomic import new_folder
from tfsd.storage.files import sha256
from tfsd.text import own_prompts

REFERENCE_PROMPT = "a red star above a blue house at night"
REFERENCE_STEPS = 8


def export_saved_model(
    model: str | Path | StableDiffusion,
    out: str | Path,
    *,
    version: int | None = None,
    sizes: Sequence[tuple[int, int]] | None = None,
    batch_sizes: Sequence[int] = (1, 2, 4, 8),
    max_steps: int = 100,
    batching: str = "exact",
    dtype: str | None = None,
    xla: bool | None = None,
    progress: bool = False,
) -> Path:
    """Writes `out/<name>/<version>/`, a SavedModel, checks it, and returns that folder; complete or not at all.

    - `model`: as in `tfsd.load`, or a loaded model.
    - `version`: a number that is free; None takes the next one.
    - `sizes`: the (height, width) that requests may ask for, the default first; None is the model's own.
    - `batch_sizes`: a request is filled up to the next of these numbers of images, and has at most the last.
    - `max_steps`: the most steps that a request may ask for.
    - `batching`: "exact" computes every image separately, several at the same time, so that its bytes never depend on its
      batch; "fused" computes a batch at once, which is meant for accelerators.
    - `dtype`: as in `tfsd.load`; float32 by default.
    - `xla`: compile with XLA, the default. TensorFlow Serving does so only with a flag, and a process keeps compiled programs
      when it unloads a version.

    A loaded model has its own dtype and XLA setting; `dtype` and `xla` must not contradict them. If the numbers of an image
    are not finite in `dtype`, its request fails: with INVALID_ARGUMENT in TensorFlow Serving, with INTERNAL in `tfsd serve`.

    Raises: `ValueError` and `TypeError` for arguments; `CheckpointError` for a model or folder; `ExportError` if the exported
    graph gives another image than Python; `NotFiniteError` if `dtype` cannot hold the numbers of the reference image.
    """
    if batching not in ("exact", "fused"):
        raise ValueError(f'batching must be "exact" or "fused"; got {shown(batching)}.')
    loaded: StableDiffusion | None = None
    try:
        with Stages.within(progress) as stages:
            stages("loading")
            loaded = _loaded(model, dtype, xla)
        limits = ExportLimits(
            sizes=_sizes(sizes, loaded.spec),
            batch_sizes=_batch_sizes(batch_sizes),
            max_steps=whole("max_steps", max_steps, 1, min(MAX_STEPS, loaded.spec.schedule.train_steps)),
            exact=batching == "exact",
        )
        return _write(loaded, limits, Path(out), version, progress)
    finally:
        loaded = None
        free_memory()  # the graphs of an export are reference cycles: hundreds of MB for the smallest model


def _write(loaded: StableDiffusion, limits: ExportLimits, out: Path, version: int | None, progress: bool) -> Path:
    """Writes the folder of a version, and returns it."""
    name = served_name(loaded.spec.name)
    with (
        _reserved(out / name, version) as folder,
        Stages.within(progress) as stages,
        new_folder(folder, kind="saved_model") as new,
        tempfile.TemporaryDirectory() as assets,
    ):
        signatures = Signatures(loaded.pipeline, limits, assets=Path(assets), progress=progress)
        stages("tracing and saving")
        tf.saved_model.save(signatures, str(new), signatures=signatures.functions())
        manifest = _manifest(loaded, limits, name, int(folder.name))
        write_warmup(new, name, signatures, limits)
        stages("comparing with Python")
        manifest["reference"] = _reference(new, loaded, limits)
        files = sorted(path for path in new.rglob("*") if path.is_file())
        manifest["files"] = {
            path.relative_to(new).as_posix(): {"sha256": sha256(path), "bytes": path.stat().st_size} for path in files
        }
        (new / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return folder


def _loaded(model, dtype: str | None, xla: bool | None) -> StableDiffusion:
    """Returns a model that is loaded, as it is; raises `ValueError` for arguments that ask for another dtype or XLA."""
    if not isinstance(model, StableDiffusion):
        return load(model, dtype="float32" if dtype is None else dtype, jit_compile=True if xla is None else bool(xla))
    for name, given, option in (("dtype", dtype, "dtype"), ("xla", xla, "jit_compile")):
        own = model.identity[option]
        if given is not None and given != own:
            got = shown(given)
            raise ValueError(f"{name} must be {own}, as the model was loaded; got {got}. Load it with {option}={got}.")
    return model


def _sizes(sizes, spec) -> tuple[tuple[int, int], ...]:
    sizes = [spec.default_size] if sizes is None else list(sizes)
    if not 1 <= len(sizes) <= 16:
        raise ValueError(f"sizes must be 1 to 16 pairs of height and width; got {len(sizes)}. Each is compiled for itself.")
    if any(not isinstance(pair, (tuple, list)) or len(pair) != 2 for pair in sizes) or len(set(map(tuple, sizes))) < len(sizes):
        raise ValueError(f"sizes must be different pairs of height and width; got {shown(sizes)}.")
    factor = spec.vae.factor
    return tuple((side_of("sizes", height, height, factor), side_of("sizes", width, width, factor)) for height, width in sizes)


def _batch_sizes(batch_sizes) -> tuple[int, ...]:
    numbers = tuple(whole("batch_sizes", size, 1, MAX_BATCH) for size in batch_sizes)
    if not numbers or list(numbers) != sorted(set(numbers)):
        raise ValueError(f"batch_sizes must be rising numbers; got {shown(list(batch_sizes))}.")
    return numbers


@contextlib.contextmanager
def _reserved(folder: Path, version: int | None) -> Iterator[Path]:
    """Yields `folder`/<version>, which no other thread or process of this user is exporting; None is the next number.

    The lock lies among the temporary files: a folder of versions is read by servers, and an export that fails leaves nothing.
    """
    place = hashlib.sha256(os.path.realpath(folder).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    number = free_version(folder, version)
    while True:
        lock = FileLock(Path(tempfile.gettempdir()) / f"tfsd-export-{place}-{number}.lock", is_singleton=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if version is not None:
                raise CheckpointError(f"Another export to {folder / str(version)} is under way. Give another version.") from None
            number += 1
            continue
        try:
            newest = free_version(folder, version)
            if version is None and newest > number:  # the other one has ended meanwhile
                number = newest
                continue
            yield folder / str(number)
            return
        finally:
            lock.release()


def _manifest(model: StableDiffusion, limits: ExportLimits, name: str, version: int) -> dict:
    spec, identity = model.spec, model.identity
    published = next((one for one in PUBLISHED.values() if one.spec.licence == spec.licence), None)
    return {
        "format": FORMAT,
        "kind": "saved_model",
        "name": name,
        "version": version,
        "tfsd": __version__,
        "tensorflow": tf.__version__,
        "keras": metadata.version("keras"),
        "model": spec.name if Path(identity["model"]).is_dir() else identity["model"],  # a path is nobody else's business
        "weights": identity["weights"],
        "numerics": identity["numerics"],
        "dtype": identity["dtype"],
        "xla": identity["jit_compile"],
        "batching": "exact" if limits.exact else "fused",
        "batch_sizes": list(limits.batch_sizes),
        "sizes": [list(size) for size in limits.sizes],
        "max_steps": limits.max_steps,
        "samplers": fitting_samplers(spec.schedule),
        "kept_tokens": list(spec.text[0].kept_tokens),  # so that a server can tell which words a model never learned
        "defaults": {name: value for name, value in request_defaults(spec, limits).items() if name in model_defaults(spec)},
        "licence": spec.licence,
        "licence_url": published.licence_url if published else "",
        "use_restrictions": published.terms if published else "",
    }


@own_prompts()
def _reference(folder: Path, model: StableDiffusion, limits: ExportLimits) -> dict:
    """Makes one image with the export and one with Python, compares them, and returns what `verify` needs to repeat it."""
    inputs = request_defaults(model.spec, limits)
    inputs |= {"prompt": REFERENCE_PROMPT, "seed": 1, "num_steps": min(REFERENCE_STEPS, limits.max_steps)}
    expected = np.asarray(model.text_to_image(inputs["prompt"], **{k: v for k, v in inputs.items() if k != "prompt"}))
    file = draw(folder, inputs)
    drawn = tf.io.decode_png(file).numpy()
    worst = int(np.abs(drawn.astype(int) - expected[0]).max())
    if worst > TOLERANCE:
        raise ExportError(f"The exported graph makes another image than Python: levels differ by up to {worst}.")
    (folder / REFERENCE_IMAGE).write_bytes(file)
    own = encode_png(expected).numpy()[0]
    return {"inputs": inputs, "png_sha256": hashlib.sha256(file).hexdigest(), "same_bytes_as_python": own == file}
