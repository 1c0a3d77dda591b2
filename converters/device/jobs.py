"""Work with TensorFlow that runs in a new process, so that its memory is free again: saving, converting, quantizing, timing.

`python -m tfsd.converters.device.jobs JOB` runs one job, described in JSON.
"""

import json
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tfsd.converters.device.convert import convert
from tfsd.converters.device.measure import first_line, made_up, memory, plausible, run_module, timed
from tfsd.specs import ModelSpec, from_json, to_json


class Made(NamedTuple):
    """What writing a file took; `peak_bytes` is all that its process had resident at most."""

    seconds: float
    peak_bytes: int
    file_bytes: int


def measure_conversion(target: Path, spec: ModelSpec, part: str, size: tuple[int, int], *, max_steps: int = 50) -> Made:
    """Writes one part of a model with random weights as a float32 TFLite file, in new processes.

    One builds the model and saves the part, another converts that: so they never need memory at the same time. `seconds` are
    those of the second, `peak_bytes` those of the one that needed more.
    Raises: `CheckpointError` if it cannot be converted, or there is too little memory.
    """
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        job = {"job": "save", "folder": folder, "part": part, **_graphs(spec, size, max_steps)}
        saved = _run(job, f"{part} cannot be built")
        made = convert_saved(folder, target, saved["signatures"], saved["weights"])
    return made._replace(peak_bytes=max(made.peak_bytes, saved["peak_bytes"]))


def convert_saved(folder: str | Path, target: Path, signatures: Sequence[str], weights: int) -> Made:
    """Writes a part that `save_part` has saved as a float32 TFLite file, in a new process that holds it only once.

    `weights`: how many numbers they are, from which follows the memory that is needed.
    Raises: `CheckpointError` if it cannot be converted, or there is too little memory.
    """
    job = {"job": "convert", "folder": str(folder), "target": str(target), "signatures": list(signatures), "weights": weights}
    return Made(**_run(job, f"{target.stem} cannot be converted"))


def measure_quantization(source: Path, target: Path, part: str, quantize: str) -> Made:
    """Writes the float32 TFLite file of a part by the recipe `quantize`, in a new process.

    Where the recipe measures ranges, it does so with made up inputs: time and memory are right, the file is of no use.
    Raises: `CheckpointError` if it cannot be quantized.
    """
    job = {"job": "quantize", "source": str(source), "target": str(target), "part": part, "quantize": quantize}
    return Made(**_run(job, f"{part} cannot be quantized by {quantize}"))


def measure_graphs(
    model: str | ModelSpec,
    wanted: Mapping[str, Mapping | None],
    size: tuple[int, int],
    *,
    max_steps: int,
    threads: int,
    runs: int,
) -> dict:
    """Runs the signatures of parts as graphs of TensorFlow in float32, without XLA, in a new process.

    `model` as in `tfsd.load`, or a spec, whose weights are then random. `wanted`: {part: {signature: its description in a
    manifest}}, or {part: None} for one whose signatures are taken as they are.
    Returns {part: {signature: {"first_s", "median_s", "p90_s"}}}.
    Raises: `CheckpointError` if it cannot, or the model's signatures differ from the descriptions.
    """
    job = {"job": "run", "wanted": wanted, "threads": threads, "runs": runs, **_graphs(model, size, max_steps)}
    return _run(job, "The model cannot be timed in TensorFlow")


def _graphs(model: str | ModelSpec, size: tuple[int, int], max_steps: int) -> dict:
    own = {"spec": to_json(model)} if isinstance(model, ModelSpec) else {"model": str(model)}
    return {**own, "size": list(size), "max_steps": max_steps}


def _run(job: dict, failed: str) -> dict:
    return run_module("tfsd.converters.device.jobs", [json.dumps(job)], failed)


def _parts(job: dict) -> dict:
    """Returns the parts of the job's model, all of them, as an export builds them."""
    from tfsd.converters.device.parts import build_parts

    if "model" in job:
        from tfsd.api import load

        pipeline = load(job["model"], jit_compile=False).pipeline
    else:
        from tfsd.models import build
        from tfsd.pipeline import Pipeline

        spec = from_json(job["spec"])
        models = build(spec, parts=("text_encoder", "denoiser", "decoder"))
        fill_zeros(models.values())
        pipeline = Pipeline(spec, models, jit_compile=False)
    return build_parts(pipeline, tuple(job["size"]), job["max_steps"])


def fill_zeros(models: Iterable):
    """Fills kernels that training begins with as zeros: of equal ones a file holds only one."""
    random = np.random.default_rng(0)
    for variable in (variable for model in models for variable in model.variables if len(variable.shape) > 1):
        if not np.any(variable):
            fan_in = np.prod(variable.shape[:-1])
            variable.assign(random.standard_normal(variable.shape, np.float32) / np.sqrt(fan_in))


def _save(job: dict) -> dict:
    from tfsd.converters.device.parts import save_part

    part = _parts(job)[job["part"]]
    save_part(part, Path(job["folder"]))
    return {"signatures": list(part.signatures), "weights": part.weight_count, "peak_bytes": memory()["peak"]}


def _convert(job: dict) -> dict:
    target, started = Path(job["target"]), time.perf_counter()
    convert(job["folder"], target, job["signatures"], job["weights"])
    return Made(time.perf_counter() - started, memory()["peak"], target.stat().st_size)._asdict()


def _quantize(job: dict) -> dict:
    from tfsd.converters.device.recipes import RECIPES, quantize_file

    recipe, source, target = RECIPES[job["quantize"]], Path(job["source"]), Path(job["target"])
    calls = [_made_up_call(source)] if recipe.calibrated else []
    started = time.perf_counter()
    quantize_file(source, target, job["part"], recipe, calls)
    return Made(time.perf_counter() - started, memory()["peak"], target.stat().st_size)._asdict()


def _made_up_call(path: Path) -> dict:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path))
    (signature,) = interpreter.get_signature_list()
    return made_up(interpreter.get_signature_runner(signature), {})


def _run_graphs(job: dict) -> dict:
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(job["threads"])
    tf.config.threading.set_inter_op_parallelism_threads(1)  # LiteRT, too, runs one operation at a time
    parts, found = _parts(job), {}
    for name, described in job["wanted"].items():
        signatures = parts[name].signatures
        if described is not None and {key: _inputs(one) for key, one in signatures.items()} != {
            key: {given: [kind["dtype"], kind["shape"]] for given, kind in one["inputs"].items()}
            for key, one in described.items()
        }:
            raise ValueError(f"{name} takes other inputs than the bundle's; it is of another model or size")
        found[name] = {key: _time_graph(one, job["runs"]) for key, one in signatures.items()}
    return found


def _inputs(signature) -> dict[str, list]:
    return {spec.name: [spec.dtype.name, list(spec.shape)] for spec in signature.inputs}


def _time_graph(signature, runs: int) -> dict[str, float]:
    import tensorflow as tf

    values = [tf.constant(plausible(spec.name, spec.dtype.name, spec.shape)) for spec in signature.inputs]
    return timed(lambda: [output.numpy() for output in signature.function(*values).values()], runs)


_JOBS = {"save": _save, "convert": _convert, "quantize": _quantize, "run": _run_graphs}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the job that the first argument describes, prints its result as JSON, and returns the exit status."""
    job = json.loads((sys.argv[1:] if argv is None else argv)[0])
    try:
        found = _JOBS[job["job"]](job)
    except Exception as error:  # all that TensorFlow and the quantizer raise; a caller gets one line
        sys.stderr.write(first_line(error) + "\n")
        return 1
    sys.stdout.write(json.dumps(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
