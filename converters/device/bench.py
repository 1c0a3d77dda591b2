"""Times the files of a bundle, or of a full-size model, on LiteRT and the same graphs in TensorFlow."""

import importlib.metadata
import os
import platform
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from tfsd.arguments.checks import choice, side_of, whole
from tfsd.converters.device.jobs import Made, measure_conversion, measure_graphs, measure_quantization
from tfsd.converters.device.lint import lint
from tfsd.converters.device.measure import measure_signature
from tfsd.converters.device.recipes import RECIPES
from tfsd.device import load_bundle_manifest
from tfsd.errors import CheckpointError
from tfsd.specs import PRESETS, ModelSpec
from tfsd.storage.model_folders import load_spec, resolve

PARTS = ("text_encoder", "denoiser", "decoder")  # the large parts of a full-size model
SIZES = (256, 512)
_PACKAGES = {"litert": "ai-edge-litert", "tensorflow": "tensorflow"}
QUANTIZE = ("dynamic", "int8-weights", "float16")
Report = Callable[[str], None]


def bench_bundle(
    folder: str | Path, *, threads: int = 2, runs: int = 10, model: str | None = None, report: Report | None = None
) -> dict:
    """Returns the time and memory of every signature of a bundle on LiteRT, and of its graph in TensorFlow.

    Both run on `threads` threads. `signatures` has a record of each: `part`, `signature`, `file_bytes`, the fields of `Measured`,
    `tensorflow_s`, the median in TensorFlow, and `ratio`, LiteRT's median divided by it. `model`: what TensorFlow runs; None is
    the model of that name from which the bundle was exported. If that does not exist here, `tensorflow_s` and `ratio` are None
    and `note` says why.
    `report(line)` is called with what is measured next.

    Raises: `TypeError`, `ValueError` for invalid numbers; `CheckpointError` for a folder that is not a bundle, for a file that
    cannot be run, or for a given `model` that does not exist or is not the bundle's.
    """
    threads, runs, report = whole("threads", threads, 1, 256), whole("runs", runs, 1, 10_000), report or (lambda line: None)
    manifest = load_bundle_manifest(folder)
    parts = manifest["parts"]
    note, theirs = None, {}
    try:
        wanted = {name: part["signatures"] for name, part in parts.items()}
        own = str(resolve(str(manifest["identity"].get("model", manifest["name"])) if model is None else model))
        report(f"{own} in TensorFlow")
        options = {"max_steps": manifest["max_steps"], "threads": threads, "runs": runs}
        theirs = measure_graphs(own, wanted, tuple(manifest["size"]), **options)
    except CheckpointError as error:
        if model is not None:
            raise
        note = f"Nothing to compare with: {error} Give the model of which the bundle was made."
    records = []
    for name, part in parts.items():
        for signature in part["signatures"]:
            report(f"{name}.{signature} on LiteRT")
            path = Path(folder, part["file"])
            record = {"part": name, "signature": signature, "file_bytes": path.stat().st_size}
            record |= measure_signature(path, signature, threads=threads, runs=runs)._asdict()
            graph = theirs.get(name, {}).get(signature)
            records.append(record | _against(record, graph and graph["median_s"]))
    about = {"name": manifest["name"], "size": manifest["size"], "quantize": manifest["quantize"]}
    return {**about, **_machine(threads, runs), "note": note, "signatures": records}


def bench_full_size(
    *,
    model: str = "sd-1.4",
    parts: Sequence[str] = ("denoiser",),
    sizes: Sequence[int] = SIZES,
    quantize: Sequence[str] = QUANTIZE,
    threads: int = 2,
    runs: int = 3,
    report: Report | None = None,
) -> dict:
    """Returns what converting, quantizing and running the parts of a full-size model takes, with random weights.

    `model`: a preset, downloaded or not, or a name or folder of another model; only its spec is read. Per part and side of
    the image in `sizes`, `conversions` has a record of the float32 file (`seconds`, `peak_bytes` of that process,
    `file_bytes`) and of its graph in TensorFlow; `signatures` has one per recipe in `quantize`: what quantizing took, what
    `lint` found, and what LiteRT takes, as `bench_bundle` has it. A record of what failed has `error` instead. SD 1.x's U-Net
    takes 16 GB of memory, 9 GB of the folder for temporary files, and minutes.

    Raises: `TypeError`, `ValueError` for bad arguments; `CheckpointError` for an unknown model.
    """
    threads, runs, report = whole("threads", threads, 1, 256), whole("runs", runs, 1, 10_000), report or (lambda line: None)
    spec = PRESETS[model] if model in PRESETS else load_spec(resolve(model))
    sizes = [side_of("sizes", size, size, spec.vae.factor) for size in sizes]
    parts = [choice("parts", part, PARTS) for part in parts]
    quantize = [choice("quantize", recipe, tuple(RECIPES)) for recipe in quantize]
    conversions, records = [], []
    for part in parts:
        for size in sizes:
            with tempfile.TemporaryDirectory(prefix="tfsd-bench-") as work:
                plain = Path(work) / f"{part}.tflite"
                conversions.append(_converted(plain, spec, size, threads, runs, report))
                for recipe in quantize if "error" not in conversions[-1] else ():
                    report(f"{part}, {size} px: {recipe}")
                    records.append(_quantized(plain, recipe, conversions[-1], threads, runs))
    return {"name": model, **_machine(threads, runs), "conversions": conversions, "signatures": records}


def _converted(plain: Path, spec: ModelSpec, size: int, threads: int, runs: int, report: Report) -> dict:
    """Writes a part's float32 file and returns the record of that and of its graph in TensorFlow."""
    part, square = plain.stem, (size, size)
    record = {"part": part, "size": size}
    try:
        report(f"{part}, {size} px: converting")
        record |= measure_conversion(plain, spec, part, square)._asdict()
        report(f"{part}, {size} px: in TensorFlow")
        graphs = measure_graphs(spec, {part: None}, square, max_steps=50, threads=threads, runs=runs)
    except CheckpointError as error:  # the results of the other parts are kept
        return record | {"error": str(error)}
    ((signature, graph),) = graphs[part].items()
    return record | {"signature": signature, "tensorflow_s": graph["median_s"]}


def _quantized(plain: Path, recipe: str, conversion: dict, threads: int, runs: int) -> dict:
    """Quantizes a float32 file, times it, and returns the record; the quantized file is deleted."""
    part, signature = conversion["part"], conversion["signature"]
    record = {"part": part, "size": conversion["size"], "signature": signature, "quantize": recipe}
    path = plain if recipe == "none" else plain.with_name(f"{part}.{recipe}.tflite")
    try:
        made = Made(0.0, 0, conversion["file_bytes"])
        if path != plain:
            made = measure_quantization(plain, path, part, recipe)
        record |= {"quantize_s": made.seconds, "quantize_peak_bytes": made.peak_bytes, "file_bytes": made.file_bytes}
        record["lint"] = lint(path, gpu="gpu" in RECIPES[recipe].accelerators(part))
        record |= measure_signature(path, signature, threads=threads, runs=runs)._asdict()
    except CheckpointError as error:
        return record | {"error": str(error)}
    finally:
        if path != plain:
            path.unlink(missing_ok=True)
    return record | _against(record, conversion["tensorflow_s"])


def _against(record: dict, theirs: float | None) -> dict:
    """Returns the median of TensorFlow's graph, and LiteRT's divided by it."""
    return {"tensorflow_s": theirs, "ratio": None if theirs is None else record["median_s"] / theirs}


def _machine(threads: int, runs: int) -> dict:
    versions = {name: importlib.metadata.version(package) for name, package in _PACKAGES.items()}
    return {"threads": threads, "runs": runs, **versions, "cores": os.cpu_count(), "machine": platform.machine()}
