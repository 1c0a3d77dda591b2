"""One version of an export, loaded: what a server computes with."""

import copy
import logging
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from tfsd.arguments.table import TRUNCATED
from tfsd.converters.saved_model.job_functions import JobFunctions
from tfsd.converters.saved_model.verify_export import FORMAT, load_manifest
from tfsd.errors import CheckpointError
from tfsd.finite import is_not_finite, not_finite
from tfsd.images.encoding import encode_png
from tfsd.runtime.freeing import free_tables_with
from tfsd.serving.server.loading import GRAPH, load_with, read_graph
from tfsd.serving.server.words import Words
from tfsd.serving.wire.errors import CODES, ServerError

LOG = logging.getLogger("tfsd.serving")
MANIFEST = "assets.extra/manifest.json"
CALLED = ("encode", "decode")  # signatures that are called as they are; the others are made of the loop's functions
_HALVES = 2  # inputs of a row that tell of its text, before those of its sampling: tokens or contexts, and their negatives
_CONTEXTS = ("context", "negative_context")  # inputs of denoise, in the order of `begin_from_contexts`
_FAILED_CHECK = re.compile(r"assertion failed: \[(.*?)\]\s*(?:\[\[\{\{node|$)", re.DOTALL)


class ImageRow(NamedTuple):
    """One picture to make, checked and tokenized; or one of a denoising."""

    inputs: tuple[tf.Tensor, ...]  # tokens and negative tokens, or contexts, then the fields of SamplingInputs: one row each
    steps: int  # rows of its plan
    size: tuple[int, int]  # height and width in pixels
    truncated: tuple[int, int]  # tokens of its prompt and of its negative prompt that were cut off
    contexts: bool = False  # whether `inputs` begin with contexts, from which latents are made

    alone = False  # rows of different requests may share a job

    @property
    def kind(self) -> tuple:
        """What rows of one job have in common."""
        return (*self.size, self.contexts)


class CallRow(NamedTuple):
    """One row of the inputs of another signature."""

    signature: str
    inputs: dict[str, np.ndarray]  # one row each

    alone = True  # its values are checked in the graph only, where one that is wrong fails the whole job
    steps, truncated = 1, 0

    @property
    def kind(self) -> str:
        """What rows of one job have in common."""
        return self.signature


class Engine:
    """A SavedModel made by `tfsd export saved_model`, ready to compute. Its methods may be called from any thread.

    Raises: `CheckpointError` for a folder that is no export, is damaged or cannot be loaded.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not self.folder.name.isdigit():
            raise CheckpointError(f"{self.folder} must be named by its version, a number.")
        self.manifest = load_manifest(self.folder, oldest=FORMAT)  # older ones have other functions for the loop
        self.words = Words(self.manifest.get("kept_tokens", ()))
        self.name, self.version = str(self.manifest["name"]), int(self.folder.name)
        proto = _graph_of(self.folder)
        self.signatures = _signature_defs(proto)
        try:
            self._model = load_with(self.folder, proto, CALLED)
            free_tables_with(self, self._model)
            self._prepare = self._model.prepare.get_concrete_function()
            self._functions = {
                name: {job: call.get_concrete_function() for job, call in getattr(self._model, name).items()}
                for name in JobFunctions._fields
            }
        except Exception as error:  # TensorFlow raises many kinds for a damaged SavedModel
            raise CheckpointError(f"{self.folder} cannot be loaded: {_last_line(error)}") from error
        self.sizes = [tuple(size) for size in self.manifest["sizes"]]
        self.exact = self.manifest["batching"] == "exact"
        self.batch_sizes = (1,) if self.exact else tuple(self.manifest["batch_sizes"])

    @property
    def batch_rows(self) -> int:
        """The most pictures of one job."""
        return self.batch_sizes[-1]

    @property
    def parallel_jobs(self) -> int:
        """How many jobs make sense side by side: an exact one uses little more than one core, a fused one all there is."""
        return (os.cpu_count() or 1) if self.exact else 1

    def warm_up(self, progress: Callable[[str], None] | None = None):
        """Compiles what requests for pictures will need, by drawing one for each size and number of pictures."""
        for height, width in self.sizes:
            for batch in self.batch_sizes:
                if progress is not None:
                    progress(f"{batch} x {height} x {width}")
                numbers = {"num_steps": 1, "height": height, "width": width}
                inputs = {"prompt": np.array([b""] * batch, object)} | {k: np.array([v], "int32") for k, v in numbers.items()}
                job = self.start(self.prepare(self.defaults() | inputs))
                job.advance(1)
                job.advance(job.steps)
                self.png(job.results()[0])

    def defaults(self, signature: str = "text_to_png") -> dict[str, np.ndarray]:
        """Returns the values of inputs that a request may leave out."""
        return {name: tf.make_ndarray(value) for name, value in self.signatures[signature].defaults.items()}

    def prepare(self, inputs: dict[str, np.ndarray]) -> list[ImageRow]:
        """Returns one row per picture that the inputs of `text_to_png` ask for.

        Raises: `ServerError` with INVALID_ARGUMENT for what is out of range; the message says what fits.
        """
        outputs = _called(self._prepare, {name: tf.constant(value) for name, value in inputs.items()})
        tokens, negative, truncated, (inputs_of_sampling, counts, sizes) = outputs
        values = (tokens, negative, *inputs_of_sampling)
        cut = [truncated[name].numpy() for name in TRUNCATED]
        rows = [values] if len(tokens) == 1 else zip(*(tf.split(value, len(tokens)) for value in values))
        counts, sizes = counts.numpy(), sizes.numpy()
        return [
            ImageRow(row, int(counts[i]), self.sizes[sizes[i]], (int(cut[0][i]), int(cut[1][i]))) for i, row in enumerate(rows)
        ]

    def split(self, signature: str, inputs: dict[str, np.ndarray]) -> list[ImageRow | CallRow]:
        """Returns one row per row of the inputs of encode, denoise or decode, so that each can be computed by itself.

        Raises: `ServerError` with INVALID_ARGUMENT.
        """
        count = max(map(len, inputs.values()))
        most = self.manifest["batch_sizes"][-1]
        if count > most:
            raise ServerError("INVALID_ARGUMENT", f"a request must be for 1 to {most} pictures; got {count}")
        rows = [{name: value[[min(i, len(value) - 1)]] for name, value in inputs.items()} for i in range(count)]
        if signature != "denoise":
            return [CallRow(signature, row) for row in rows]
        for name in _CONTEXTS:
            if not np.isfinite(inputs[name]).all():
                raise ServerError("INVALID_ARGUMENT", f"{name} must hold finite numbers")
        numbers = {name: value for name, value in inputs.items() if name not in _CONTEXTS}
        texts = {"prompt": np.array([b""] * count, object), "negative_prompt": np.array([b""], object)}
        contexts = [tuple(tf.constant(row[name]) for name in _CONTEXTS) for row in rows]
        drawings = self.prepare(texts | numbers)
        return [row._replace(inputs=own + row.inputs[_HALVES:], contexts=True) for row, own in zip(drawings, contexts)]

    def start(self, rows: Sequence[ImageRow | CallRow]) -> "Job | CallJob":
        """Returns a job for rows of one kind, at most `batch_rows`."""
        if isinstance(rows[0], CallRow):
            return CallJob(self.run, rows)
        batch = next(size for size in self.batch_sizes if size >= len(rows))
        height, width = rows[0].size
        name = f"{batch}x{height}x{width}"
        functions = JobFunctions(*(self._functions[each][name] for each in JobFunctions._fields))
        return Job(functions, rows, batch, str(self.manifest.get("dtype", "float32")))

    def run(self, signature: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the outputs of one of the signatures `CALLED`, computed in one call.

        Raises: `ServerError` with the code that TensorFlow gives the error.
        """
        outputs = _called(self._model.signatures[signature], {name: tf.constant(value) for name, value in inputs.items()})
        return {name: value.numpy() for name, value in outputs.items()}

    def png(self, image: np.ndarray | ServerError) -> bytes:
        """Returns the PNG file of a picture uint8 [H, W, 3]: the very bytes that `text_to_png` answers.

        Raises: the error that a job has instead of a picture.
        """
        if isinstance(image, ServerError):
            raise image
        return encode_png(image).numpy()


class Job:
    """Pictures that are computed together. `advance` takes it further; nothing is computed between two calls."""

    def __init__(self, functions: JobFunctions, rows: Sequence[ImageRow], batch: int, dtype: str):
        self.steps = max(row.steps for row in rows)
        self.done = 0
        self._count, self._contexts = len(rows), rows[0].contexts
        self._functions = functions
        filled = [*rows, *[rows[-1]] * (batch - len(rows))]
        inputs = [values[0] if batch == 1 else tf.concat(values, 0) for values in zip(*(row.inputs for row in filled))]
        self._halves, self._inputs = inputs[:_HALVES], inputs[_HALVES:]
        self._state: list[tf.Tensor] = []
        self._results: list = []
        self._not_finite = ServerError("INTERNAL", not_finite("latents", dtype))

    def advance(self, steps: int):
        """Computes the next `steps` steps, or as many as are left; the last one brings the images.

        Raises: `ServerError` if TensorFlow fails.
        """
        last = min(self.done + steps, self.steps)
        try:
            if not self._state:
                begin = self._functions.begin_from_contexts if self._contexts else self._functions.begin
                self._state = list(begin(*self._halves, *self._inputs))
            moved = self._functions.advance(*self._inputs, *self._state, tf.constant(self.done), tf.constant(last))
            self._state[: len(moved)] = moved
            # Reading waits for an accelerator, too: else all chunks were asked for before the first was computed.
            latents = self._state[0].numpy()
            if last == self.steps:
                made, finite = self._made(latents)
                rows = list(zip(made, finite))[: self._count]
                self._results = [result if ok else self._not_finite for result, ok in rows]
        except tf.errors.OpError as error:
            raise _server_error(error) from error
        self.done = last

    def _made(self, latents: np.ndarray) -> tuple[Sequence, np.ndarray]:
        """Returns the results of the last step, and which of them are finite."""
        if self._contexts:
            return [{"latents": row[None]} for row in latents], np.isfinite(latents).reshape(len(latents), -1).all(axis=1)
        images, finite = self._functions.finish(self._state[0])
        return images.numpy(), finite.numpy()

    def results(self) -> list:
        """Returns, of a job that is done, each row's picture uint8 [H, W, 3] or {"latents": float32 [1, h, w, c]}.

        A row whose numbers are not finite has a `ServerError` in its place.
        """
        return self._results


class CallJob:
    """Rows of one signature, computed in one call."""

    steps, done = 1, 0

    def __init__(self, run: Callable[[str, dict], dict], rows: Sequence[CallRow]):
        self._run, self._rows = run, rows
        self._outputs: dict[str, np.ndarray] = {}

    def advance(self, steps: int):
        """Computes all. Raises: `ServerError`."""
        names = self._rows[0].inputs
        self._outputs = self._run(
            self._rows[0].signature, {n: np.concatenate([row.inputs[n] for row in self._rows]) for n in names}
        )
        self.done = 1

    def results(self) -> Sequence[dict[str, np.ndarray]]:
        """Returns each row's outputs, one row each."""
        return [{name: value[[i]] for name, value in self._outputs.items()} for i in range(len(self._rows))]


def _called(function, inputs: dict):
    try:
        return function(**inputs)
    except tf.errors.OpError as error:
        raise _server_error(error) from error
    except UnicodeDecodeError as error:  # a failed check shows a value that is no UTF-8: TensorFlow cannot make its error
        raise ServerError("INVALID_ARGUMENT", _failed_check(error.object.decode("utf-8", "replace"))) from error


def _server_error(error: tf.errors.OpError) -> ServerError:
    """Returns the error that a client gets: of a failed check, its words and the values that came."""
    code = next((name for name, (number, _) in CODES.items() if number == error.error_code), "UNKNOWN")
    message = _failed_check(error.message)
    # TensorFlow's checks are all INVALID_ARGUMENT; this one is not the caller's fault.
    return ServerError("INTERNAL" if is_not_finite(message) else code, message)


def _last_line(error: Exception) -> str:
    """Returns what went wrong, which TensorFlow says after where it did."""
    return _last(str(error)) or type(error).__name__


def _failed_check(message: str) -> str:
    """Returns the words of the check that failed, and the values that came."""
    check = _FAILED_CHECK.search(message)
    return check[1].replace("] [", " ") if check else _last(message)


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip() and "{{node" not in line]
    return lines[-1] if lines else ""


def _graph_of(folder: Path) -> saved_model_pb2.SavedModel:
    try:
        return read_graph(folder)
    except Exception as error:
        raise CheckpointError(f"{folder / GRAPH} is damaged: {_last_line(error)}") from error


def _signature_defs(proto: saved_model_pb2.SavedModel) -> dict:
    """Returns copies, which do not keep the rest of the graph's file."""
    found = {name: signature for name, signature in proto.meta_graphs[0].signature_def.items() if not name.startswith("__")}
    return {name: copy.deepcopy(signature) for name, signature in found.items()}
