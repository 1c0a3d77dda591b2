"""Times the guided step of a denoiser, full-size unless asked otherwise, each setting in a separate process.

Weights are random: they change neither time nor memory.
"""

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

from tfsd.arguments.checks import whole
from tfsd.specs import PRESETS, from_json, to_json
from tfsd.specs.limits import MAX_SIDE
from tfsd.storage.model_folders import load_spec, resolve

SETTINGS = [(dtype, jit) for dtype in ("float32", "bfloat16") for jit in (True, False)]


def benchmark_denoiser(
    *,
    model: str = "sd-1.4",
    size: int = 256,
    batch: int = 1,
    steps: int = 5,
    settings: Sequence[tuple[str, bool]] = tuple(SETTINGS),
    report=None,
) -> list[dict]:
    """Returns one record per (dtype, jit_compile): first_s, step_ms (median), peak_mb, and what it ran on.

    `model`: a preset, downloaded or not, or a name or folder of another model; only its spec is read.
    `first_s` is the time of the first step, tracing and compiling included. `peak_mb` is the most memory the
    process had resident, with the weights. `report(record)` is called as each is done.

    Raises: `TypeError`, `ValueError` for bad numbers; `CheckpointError` for an unknown model; `RuntimeError` where a
    process ends without a result.
    """
    size, batch, steps = whole("size", size, 1, MAX_SIDE), whole("batch", batch, 1, 64), whole("steps", steps, 1, 1000)
    spec = PRESETS[model] if model in PRESETS else load_spec(resolve(model))
    if size % spec.vae.factor:
        raise ValueError(f"size must be a multiple of {spec.vae.factor}; got {size}.")
    records, shared = [], {"model": model, "spec": to_json(spec), "size": size, "batch": batch, "steps": steps}
    for dtype, jit in settings:
        job = shared | {"dtype": dtype, "jit_compile": jit}
        command = [sys.executable, "-m", "tfsd.benchmark", json.dumps(job)]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"})
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or ["killed, for want of memory perhaps"]
            raise RuntimeError(f"The benchmark of {dtype}, jit_compile={jit} ended with status {done.returncode}: {last[0]}")
        records.append(json.loads(done.stdout.splitlines()[-1]))
        if report is not None:
            report(records[-1])
    return records


def as_line(record: dict) -> str:
    """Returns a record as one line of a table."""
    how = "jit_compile" if record["jit_compile"] else "tf.function"
    numbers = f"{record['step_ms']:>8.0f} ms a step {record['first_s']:>7.1f} s to the first {record['peak_mb']:>8.0f} MB peak"
    return f"{record['dtype']:>9} {how:12}{numbers}"


def _run(job: dict) -> dict:
    """Times one setting in this process."""
    import tensorflow as tf

    from tfsd.models import build
    from tfsd.pipeline import Pipeline
    from tfsd.samplers.plans import build_plan, fitting_samplers
    from tfsd.samplers.step import empty_history, step, unpack

    spec, batch = from_json(job.pop("spec")), job["batch"]
    pipeline = Pipeline(spec, build(spec, dtype=job["dtype"], parts=("denoiser",)), jit_compile=job["jit_compile"])
    plan = tf.repeat(build_plan(spec.schedule, fitting_samplers(spec.schedule)[0], 50).rows[None], batch, axis=0)
    shape = (batch, *pipeline.latent_shape(job["size"], job["size"]))
    context = tf.random.normal((2 * batch, *spec.conditioning()["context"]))
    functions, denoiser = pipeline.functions, pipeline.functions.parts.denoiser
    prepared = tf.function(functions.prepare, jit_compile=job["jit_compile"])({"context": context})

    # Gathered, since XLA compiles `plan[i]` anew for every i.
    @tf.function(jit_compile=job["jit_compile"])
    def one_step(i, latents, history):
        guidance = tf.fill((batch,), spec.default_guidance)
        row = tf.gather(plan, i, axis=1)
        output = functions.guided(latents, denoiser.timestep_features(row[:, 0]), prepared, guidance)
        return step(unpack(row), latents, history, output, tf.zeros_like(latents))

    latents = tf.random.normal(shape)
    history, seconds = empty_history(latents), []
    for i in range(job["steps"] + 1):
        started = time.perf_counter()
        latents, history = one_step(tf.constant(i), latents, history)
        latents.numpy()
        seconds.append(time.perf_counter() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)
    return job | {
        "first_s": round(seconds[0], 2),
        "step_ms": round(1000 * statistics.median(seconds[1:]), 1),
        "peak_mb": round(peak),
        "tensorflow": tf.__version__,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_run(json.loads(sys.argv[1]))) + "\n")
