"""The engine: a loaded version of an export, as the server computes with it."""

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from tfsd.arguments.table import TRUNCATED
from tfsd.converters.saved_model.job_functions import JobFunctions
from tfsd.converters.saved_model.verify_export import FORMAT, load_manifest
from tfsd.errors import CheckpointError
from tfsd.images.encoding import encode_png
from tfsd.runtime.freeing import free_tables_with
from tfsd.serving.server.jobs import TEXT_INPUTS, CallJob, CallRow, ImageRow, Job
from tfsd.serving.server.loading import GRAPH, load_with, read_graph
from tfsd.serving.server.tensorflow_errors import call, last_line
from tfsd.serving.server.words import Words
from tfsd.serving.wire.errors import ServerError

CALLED = ("encode", "decode")  # signatures that are called; for the others, the server runs the loop of steps itself
_CONTEXTS = ("context", "negative_context")  # inputs of denoise, in the order of `begin_from_contexts`


class Engine:
    """A SavedModel made by `tfsd export saved_model`, ready to compute. Thread-safe.

    `model` is the loaded SavedModel, with the functions that the server calls.
    Raises: `CheckpointError` for a folder that is not an export, is damaged or cannot be loaded.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not self.folder.name.isdigit():
            raise CheckpointError(f"{self.folder} must be named by its version, a number.")
        self.manifest = load_manifest(self.folder, oldest=FORMAT)  # older ones have other functions for the steps
        self.words = Words(self.manifest.get("kept_tokens", ()))
        self.name, self.version = str(self.manifest["name"]), int(self.folder.name)
        proto = _graph_of(self.folder)
        self.signatures = _signature_defs(proto)
        try:
            self.model = load_with(self.folder, proto, CALLED)
            free_tables_with(self, self.model)
            self._prepare = self.model.prepare.get_concrete_function()
            self._functions = {
                name: {job: function.get_concrete_function() for job, function in getattr(self.model, name).items()}
                for name in JobFunctions._fields
            }
        except Exception as error:  # TensorFlow raises errors of many kinds for a damaged SavedModel
            raise CheckpointError(f"{self.folder} cannot be loaded: {last_line(error)}") from error
        self.sizes = [tuple(size) for size in self.manifest["sizes"]]
        self.exact = self.manifest["batching"] == "exact"
        self.batch_sizes = (1,) if self.exact else tuple(self.manifest["batch_sizes"])

    @property
    def batch_rows(self) -> int:
        """The most images of one job."""
        return self.batch_sizes[-1]

    @property
    def parallel_jobs(self) -> int:
        """How many jobs to run at once: an exact job uses little more than one core, a fused one all cores."""
        return (os.cpu_count() or 1) if self.exact else 1

    def warm_up(self):
        """Compiles the programs for all sizes and numbers of images, by making images of each."""
        for height, width in self.sizes:
            for batch in self.batch_sizes:
                numbers = {"num_steps": 1, "height": height, "width": width}
                inputs = {"prompt": np.array([b""] * batch, object)} | {k: np.array([v], "int32") for k, v in numbers.items()}
                job = self.start(self.prepare(self.defaults() | inputs))
                job.advance(1)
                job.advance(job.steps)
                self.png(job.results()[0])

    def defaults(self, signature: str = "text_to_png") -> dict[str, np.ndarray]:
        """Returns the default values of a signature's inputs."""
        return {name: tf.make_ndarray(value) for name, value in self.signatures[signature].defaults.items()}

    def prepare(self, inputs: dict[str, np.ndarray]) -> list[ImageRow]:
        """Returns one row for each image that the inputs of `text_to_png` ask for.

        Raises: `ServerError` with INVALID_ARGUMENT for values out of range; the message says what is accepted.
        """
        outputs = call(self._prepare, {name: tf.constant(value) for name, value in inputs.items()})
        tokens, negative, truncated, (inputs_of_sampling, counts, sizes) = outputs
        values = (tokens, negative, *inputs_of_sampling)
        cut = [truncated[name].numpy() for name in TRUNCATED]
        rows = [values] if len(tokens) == 1 else zip(*(tf.split(value, len(tokens)) for value in values))
        counts, sizes = counts.numpy(), sizes.numpy()
        return [
            ImageRow(row, int(counts[i]), self.sizes[sizes[i]], (int(cut[0][i]), int(cut[1][i]))) for i, row in enumerate(rows)
        ]

    def split(self, signature: str, inputs: dict[str, np.ndarray]) -> list[ImageRow | CallRow]:
        """Returns one row per row of the inputs of encode, denoise or decode, so that each can be computed separately.

        Raises: `ServerError` with INVALID_ARGUMENT.
        """
        count = max(map(len, inputs.values()))
        most = self.manifest["batch_sizes"][-1]
        if count > most:
            raise ServerError("INVALID_ARGUMENT", f"a request must be for 1 to {most} images; got {count}")
        rows = [{name: value[[min(i, len(value) - 1)]] for name, value in inputs.items()} for i in range(count)]
        if signature != "denoise":
            return [CallRow(signature, row) for row in rows]
        for name in _CONTEXTS:
            if not np.isfinite(inputs[name]).all():
                raise ServerError("INVALID_ARGUMENT", f"{name} must hold finite numbers")
        numbers = {name: value for name, value in inputs.items() if name not in _CONTEXTS}
        texts = {"prompt": np.array([b""] * count, object), "negative_prompt": np.array([b""], object)}
        contexts = [tuple(tf.constant(row[name]) for name in _CONTEXTS) for row in rows]
        prepared = self.prepare(texts | numbers)
        return [row._replace(inputs=own + row.inputs[TEXT_INPUTS:], contexts=True) for row, own in zip(prepared, contexts)]

    @overload
    def start(self, rows: Sequence[ImageRow]) -> Job: ...

    @overload
    def start(self, rows: Sequence[ImageRow | CallRow]) -> Job | CallJob: ...

    def start(self, rows: Sequence[ImageRow | CallRow]) -> Job | CallJob:
        """Returns a job for rows of one kind, at most `batch_rows`."""
        if calls := [row for row in rows if isinstance(row, CallRow)]:
            return CallJob(self.run, calls)
        images = [row for row in rows if isinstance(row, ImageRow)]
        batch = next(size for size in self.batch_sizes if size >= len(images))
        height, width = images[0].size
        name = f"{batch}x{height}x{width}"
        functions = JobFunctions(*(self._functions[each][name] for each in JobFunctions._fields))
        return Job(functions, images, batch, str(self.manifest.get("dtype", "float32")))

    def run(self, signature: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the outputs of one of the signatures `CALLED`.

        Raises: `ServerError` with the code of TensorFlow's error.
        """
        outputs = call(self.model.signatures[signature], {name: tf.constant(value) for name, value in inputs.items()})
        return {name: value.numpy() for name, value in outputs.items()}

    def png(self, image: np.ndarray | ServerError) -> bytes:
        """Returns the PNG file of an image uint8 [H, W, 3], with the same bytes as `text_to_png`.

        Raises: the error that a job has in place of an image.
        """
        if isinstance(image, ServerError):
            raise image
        return encode_png(image).numpy()


def _graph_of(folder: Path) -> saved_model_pb2.SavedModel:
    try:
        return read_graph(folder)
    except Exception as error:
        raise CheckpointError(f"{folder / GRAPH} is damaged: {last_line(error)}") from error


def _signature_defs(proto: saved_model_pb2.SavedModel) -> dict:
    """Returns copies of the signatures, which do not keep the whole graph in memory."""
    found = {name: signature for name, signature in proto.meta_graphs[0].signature_def.items() if not name.startswith("__")}
    return {name: copy.deepcopy(signature) for name, signature in found.items()}
