"""Runs the files of device bundles by LiteRT, on the CPU or on a GPU."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from tfsd.errors import CheckpointError
from tfsd.runtime.startup import no_stderr, wants_information

ACCELERATORS = ("cpu", "gpu")
Arrays = dict[str, np.ndarray]
Run = Callable[[str, Arrays], Arrays]  # the name of a signature, its inputs -> its outputs


_introduced = False  # whether LiteRT has run something and said which delegate it made


@contextlib.contextmanager
def quiet_litert() -> Iterator[None]:
    """Hides what LiteRT writes when it first runs a file, unless the user set TensorFlow's log level below 2.

    It writes that once in a process, past Python; all it says later is shown.
    """
    global _introduced
    if _introduced or wants_information():
        yield
        return
    with no_stderr():
        yield
    _introduced = True


def open_file(path: Path, signatures: Mapping[str, Mapping], *, part: str, accelerator: str, threads: int) -> Run:
    """Returns what runs the signatures of a file on an accelerator, with `threads` if that is the CPU.

    `signatures`: what a manifest says of their outputs; `part`: what errors call the file. On "gpu" all of the file runs there,
    or it is refused.

    Raises: `CheckpointError` for a file that LiteRT cannot load or run there; `OSError` if LiteRT is not installed.
    """
    run = _on_gpu(path, signatures) if accelerator == "gpu" else _on_cpu(path, threads)

    def told(signature: str, inputs: Arrays) -> Arrays:
        try:
            return run(signature, inputs)
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(f"{part}.{signature} cannot be run by LiteRT: {_last_line(error)}") from error

    return told


def _on_cpu(path: Path, threads: int) -> Run:
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise OSError('Device bundles need LiteRT, which is not installed: pip install "tfsd[device]"') from error
    try:
        interpreter = Interpreter(str(path), num_threads=threads)
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be loaded by LiteRT: {_last_line(error)}") from error

    def run(signature: str, inputs: Arrays) -> Arrays:
        # Copied: what LiteRT returns is its own memory, and the next call writes there.
        with quiet_litert():
            found = interpreter.get_signature_runner(signature)(**inputs)
        return {name: np.array(value) for name, value in found.items()}

    return run


def _on_gpu(path: Path, signatures: Mapping[str, Mapping]) -> Run:
    try:
        from ai_edge_litert.compiled_model import CompiledModel
        from ai_edge_litert.hardware_accelerator import HardwareAccelerator
        from ai_edge_litert.options import Options
    except ImportError as error:
        raise OSError('GPUs need LiteRT 2.3 or newer: pip install --upgrade "ai-edge-litert>=2.3"') from error
    try:
        with contextlib.nullcontext() if wants_information() else no_stderr():  # each file writes lines
            model = CompiledModel.from_file(str(path), options=Options(hardware_accelerators=HardwareAccelerator.GPU))
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be loaded by LiteRT on a GPU here: {_last_line(error)}") from error
    if not model.is_fully_accelerated():  # LiteRT silently runs on the CPU what was to run on a GPU that is not there
        raise CheckpointError(f"{path} cannot be loaded by LiteRT on a GPU here: it would run on the CPU.")
    buffers = {}

    def run(signature: str, inputs: Arrays) -> Arrays:
        described = signatures[signature]["outputs"]
        if signature not in buffers:
            own = {name: model.create_input_buffer_by_name(signature, name) for name in inputs}
            buffers[signature] = own, {name: model.create_output_buffer_by_name(signature, name) for name in described}
        given, made = buffers[signature]
        for name, value in inputs.items():
            given[name].write(np.ascontiguousarray(value))
        model.run_by_name(signature, given, made)
        read = {name: made[name].read(int(np.prod(one["shape"])), np.dtype(one["dtype"])) for name, one in described.items()}
        return {name: np.array(value).reshape(described[name]["shape"]) for name, value in read.items()}

    return run


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
