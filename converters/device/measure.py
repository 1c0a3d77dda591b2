"""Measures time and memory of a TFLite file on LiteRT's CPU runtime, in a new process without TensorFlow.

`python -m tfsd.converters.device.measure FILE SIGNATURE --threads N --runs R` prints what `measure_signature` returns as JSON.
"""

import argparse
import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tfsd.arguments.checks import whole
from tfsd.errors import CheckpointError

ROOT = Path(__file__).parents[3]  # where `tfsd` lies, installed or not


class Measured(NamedTuple):
    """What loading and running one signature of a file took.

    `load_s`: opening the file, and what LiteRT prepares before the first run, such as a packed copy of the weights.
    `peak_bytes`: the most resident memory above that of the process with nothing loaded. After the last run it had
    `anonymous_bytes` and `mapped_bytes` more, the latter of files, which the system may drop and read again; None where it
    does not tell.
    """

    load_s: float
    first_s: float
    median_s: float
    p90_s: float
    peak_bytes: int
    anonymous_bytes: int | None
    mapped_bytes: int | None


def measure_signature(
    path: str | Path, signature: str, *, threads: int = 2, runs: int = 10, inputs: Mapping | None = None
) -> Measured:
    """Loads a file in a new process and runs a signature once, and then `runs` times that count.

    `inputs`: numbers or arrays by their names, each broadcast to the input's shape; the others are made up.
    Raises: `TypeError`, `ValueError` for bad numbers; `CheckpointError` for a file or a signature that LiteRT cannot run, or
    if the process is killed.
    """
    threads, runs = whole("threads", threads, 1, 256), whole("runs", runs, 1, 10_000)
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder) / "inputs.npz"
        np.savez(given, **(inputs or {}))
        options = ["--threads", str(threads), "--runs", str(runs), "--inputs", str(given)]
        found = run_module(
            "tfsd.converters.device.measure",
            [str(path), signature, *options],
            f"{path}, signature {signature!r}, cannot be measured",
        )
    return Measured(**found)


def first_line(error: Exception) -> str:
    """Returns the first line of what a library says, which often goes on for pages."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def run_module(module: str, arguments: Sequence[str], failed: str) -> dict:
    """Runs a module in a new process and returns the JSON object of its last line.

    Raises: `CheckpointError` that says what `failed` and why: the last line of the module's errors, or that it was killed.
    """
    path = os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(ROOT)])
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        errors="replace",
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": path},
    )
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    if done.returncode < 0:
        why = f"its process was ended by signal {-done.returncode}" + ", for want of memory perhaps" * (done.returncode == -9)
    else:
        why = (done.stderr.strip().splitlines() or [f"its process ended with status {done.returncode}"])[-1]
    raise CheckpointError(f"{failed}: {why.strip().rstrip('.')}.")


def plausible(name: str, dtype: str, shape: Sequence[int]) -> np.ndarray:
    """Returns made up values of an input, always the same: 1 for a whole number, else small ones; floats are normal.

    The input `sampler` is 0, because a bundle may have a single sampler.
    """
    random = np.random.default_rng(zlib.crc32(name.encode()))
    if np.issubdtype(np.dtype(dtype), np.integer):
        if np.prod(shape) == 1:
            return np.full(shape, 0 if name == "sampler" else 1, dtype)
        return random.integers(0, 8, shape).astype(dtype)
    return random.normal(size=shape).astype(dtype)


def made_up(run, given: Mapping) -> dict[str, np.ndarray]:
    """Returns inputs of a signature that LiteRT has opened: those `given`, in its types and shapes, and plausible others.

    Raises: `ValueError` for a given one that it has not.
    """
    wanted = {name: (np.dtype(one["dtype"]).name, tuple(one["shape"])) for name, one in run.get_input_details().items()}
    if unknown := sorted(set(given) - set(wanted)):
        raise ValueError(f"its inputs are {', '.join(wanted)}; got {', '.join(unknown)}")
    values = {name: plausible(name, *kind) for name, kind in wanted.items() if name not in given}
    return values | {name: np.broadcast_to(value, wanted[name][1]).astype(wanted[name][0]) for name, value in given.items()}


def timed(call: Callable[[], object], runs: int) -> dict[str, float]:
    """Calls a function once and then `runs` times; returns seconds: `first_s`, `median_s` and `p90_s`."""
    seconds = []
    for _ in range(runs + 1):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    rest = seconds[1:]
    return {"first_s": seconds[0], "median_s": statistics.median(rest), "p90_s": float(np.percentile(rest, 90))}


def memory() -> dict[str, int]:
    """Returns bytes of this process: `peak`, and where the system tells `resident`, `anonymous` and `mapped` from files."""
    names = {"VmHWM": "peak", "VmRSS": "resident", "RssAnon": "anonymous", "RssFile": "mapped"}
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return {name: 1024 * int(fields[key].split()[0]) for key, name in names.items() if key in fields}


def _run(path: str, signature: str, threads: int, runs: int, inputs: str | None) -> Measured:
    """Measures in this process."""
    from ai_edge_litert.interpreter import Interpreter

    with contextlib.suppress(OSError):  # what the imports took at most must not hide what the model takes
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = memory()
    started = time.perf_counter()
    interpreter = Interpreter(path, num_threads=threads)
    interpreter.allocate_tensors()
    run = interpreter.get_signature_runner(signature)
    load = time.perf_counter() - started
    values = made_up(run, dict(np.load(inputs)) if inputs else {})
    times = timed(lambda: run(**values), runs)
    after = memory()
    anonymous, mapped = (after[name] - before[name] if name in after else None for name in ("anonymous", "mapped"))
    peak = after["peak"] - before.get("resident", before["peak"])
    return Measured(load, times["first_s"], times["median_s"], times["p90_s"], peak, anonymous, mapped)


def main(argv: Sequence[str] | None = None) -> int:
    """Measures one signature and prints the result as JSON; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tfsd.converters.device.measure", description="Times one signature of a TFLite file, and tells its memory."
    )
    parser.add_argument("file", help="a TFLite file")
    parser.add_argument("signature", help="the name of one of its signatures")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU (default: 2)")
    parser.add_argument("--runs", type=int, default=10, help="to time after the first (default: 10)")
    parser.add_argument("--inputs", help="an .npz file with the values of inputs; the others are made up")
    args = parser.parse_args(argv)
    try:
        found = _run(args.file, args.signature, args.threads, args.runs, args.inputs)
    except ImportError:
        sys.stderr.write('LiteRT is not installed: pip install "tfsd[device]"\n')
        return 1
    except (RuntimeError, ValueError, OSError) as error:
        sys.stderr.write((str(error).strip().splitlines() or [type(error).__name__])[-1] + "\n")
        return 1
    sys.stdout.write(json.dumps(found._asdict()) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
