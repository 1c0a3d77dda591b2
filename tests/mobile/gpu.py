"""LiteRT's GPU accelerator without a GPU: over WebGPU and SwiftShader, the Vulkan in software that chromium brings.

SwiftShader computes in float32, so nothing here says what half precision does. Each job has a process of its own, which a fault
in native code ends. `python gpu.py JOB` runs one.
"""

import importlib.metadata
import json
import os
import sys
from pathlib import Path

import numpy as np
import toolchain

from tfsd.runtime.litert import open_file

CHROMIUM = Path(os.environ.get("TFSD_SWIFTSHADER", "/usr/lib/chromium"))  # Debian's folder with SwiftShader
DRIVER = CHROMIUM / "vk_swiftshader_icd.json"
ACCELERATOR = "libLiteRtWebGpuAccelerator.so"
NOISE = ("INFO", "WARNING", "I0", "└ Could not load shared library", "Traceback", "  ")  # how lines begin that say nothing


class RefusedError(RuntimeError):
    """The accelerator does not take a file; the message is what it said."""


def missing() -> str:
    """Returns what this machine lacks to run the accelerator, "" if nothing."""
    if not any(file.name == ACCELERATOR for file in importlib.metadata.files("ai-edge-litert") or []):
        return f"this ai-edge-litert has no {ACCELERATOR}"
    return "" if DRIVER.is_file() else f"there is no {DRIVER}: install chromium, or set TFSD_SWIFTSHADER to its folder"


def draw(bundle: Path, work: Path, **arguments) -> tuple[np.ndarray, list[dict]]:
    """Draws on the GPU; returns images uint8 [B, H, W, 3] and the networks' calls: "part", "signature", "inputs", "outputs"."""
    _run({"job": "draw", "bundle": str(bundle), "arguments": arguments}, work)
    calls = json.loads((work / "calls.json").read_text())
    for i, call in enumerate(calls):
        call |= {kind: dict(np.load(work / f"{i}.{kind}.npz")) for kind in ("inputs", "outputs")}
    return np.load(work / "images.npy"), calls


def run(file: Path, signatures: dict, signature: str, inputs: dict, work: Path) -> dict[str, np.ndarray]:
    """Returns the outputs of a signature of a file, all of which runs on the GPU. Raises: `RefusedError`."""
    np.savez(work / "given.npz", **inputs)
    _run({"job": "run", "file": str(file), "signatures": signatures, "signature": signature}, work)
    return dict(np.load(work / "made.npz"))


def _run(job: dict, work: Path):
    vulkan = {"VK_ICD_FILENAMES": str(DRIVER), "LD_LIBRARY_PATH": str(CHROMIUM)}
    path = os.pathsep.join([str(Path(__file__).parents[2]), str(Path(__file__).parent)])
    command = [sys.executable, __file__, json.dumps(job | {"work": str(work)})]
    done = toolchain.ended(command, variables={"PYTHONPATH": path, **vulkan})
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith(NOISE)]
        raise RefusedError(f"status {done.returncode}: " + " | ".join(said)[-3000:])


def _draw(job: dict, work: Path):
    from recorded import Recorded  # it needs TensorFlow, which takes seconds to import

    bundle = Recorded(Path(job["bundle"]), "gpu")
    np.save(work / "images.npy", np.asarray(bundle.text_to_image(**job["arguments"])))
    for i, call in enumerate(bundle.calls):
        for kind in ("inputs", "outputs"):
            np.savez(work / f"{i}.{kind}.npz", **call.pop(kind))
    (work / "calls.json").write_text(json.dumps(bundle.calls))


def _run_file(job: dict, work: Path):
    opened = open_file(Path(job["file"]), job["signatures"], part="graph", accelerator="gpu", threads=1)
    np.savez(work / "made.npz", **opened(job["signature"], dict(np.load(work / "given.npz"))))


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    {"draw": _draw, "run": _run_file}[asked["job"]](asked, Path(asked["work"]))
