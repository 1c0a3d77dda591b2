"""An engine without networks, so that tests of the protocols can hold a request half way, and see what reaches a model."""

import contextlib
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from patience import LONG
from tensorflow.core.protobuf.meta_graph_pb2 import SignatureDef

from tfsd.serving.server.jobs import CallJob, CallRow
from tfsd.serving.server.metrics import Metrics
from tfsd.serving.server.models import Models
from tfsd.serving.server.queue_limits import QueueLimits
from tfsd.serving.server.server import Server, ServerOptions, running
from tfsd.serving.server.words import Words
from tfsd.serving.wire.errors import ServerError

TLS = Path(__file__).parents[1] / "data/tls"
PROMPT_BYTES = 4096
STEP_SECONDS = 0.003  # else the scheduler takes hundreds of steps for one chunk
WHOLE = {
    "prompt": (tf.string, None),
    "negative_prompt": (tf.string, [""]),
    "seed": (tf.int64, [0]),
    "index": (tf.int32, [0]),
    "guidance_scale": (tf.float32, [3.0]),
    "num_steps": (tf.int32, [4]),
    "sampler": (tf.string, ["ddim"]),
    "height": (tf.int32, [8]),
    "width": (tf.int32, [8]),
}


def signature(inputs: dict, outputs: dict) -> SignatureDef:
    made = SignatureDef(method_name="tensorflow/serving/predict")
    for name, (dtype, default) in inputs.items():
        made.inputs[name].name, made.inputs[name].dtype = f"{name}:0", dtype.as_datatype_enum
        made.inputs[name].tensor_shape.dim.add().size = -1
        if default is not None:
            made.defaults[name].CopyFrom(tf.make_tensor_proto(default, dtype))
    for name, dtype in outputs.items():
        made.outputs[name].dtype = dtype.as_datatype_enum
    return made


class Row(NamedTuple):
    seed: int
    steps: int
    size: tuple
    truncated: int

    alone = False

    @property
    def kind(self):
        return self.size


class Engine:
    """Makes grey pictures of a seed's lightness; each step waits until `gate` is open."""

    name, batch_rows, parallel_jobs = "toy", 1, 2
    manifest = {"format": 1, "name": "toy", "version": 1, "sizes": [[8, 8]], "files": {"x": {}}}

    def __init__(self, version=1):
        self.version, self.words = version, Words(())
        self.gate, self.steps, self.jobs = threading.Event(), 0, 0
        self.gate.set()
        self.signatures = {
            "text_to_png": signature(WHOLE, {"png_bytes": tf.string, "truncated_tokens": tf.int32}),
            "text_to_image": signature(WHOLE, {"images": tf.uint8, "truncated_tokens": tf.int32}),
            "encode": signature({"prompt": (tf.string, None)}, {"context": tf.float32, "truncated_tokens": tf.int32}),
        }

    def prepare(self, inputs):
        rows = max(map(len, inputs.values()))
        each = {name: np.broadcast_to(value, [rows]) for name, value in inputs.items()}
        for prompt in each["prompt"]:
            if len(prompt) > PROMPT_BYTES:
                raise ServerError("INVALID_ARGUMENT", f"prompt must have at most {PROMPT_BYTES} bytes; got {len(prompt)}.")
        sizes = zip(each["height"].tolist(), each["width"].tolist())
        return [
            Row(int(each["seed"][i]), int(each["num_steps"][i]), size, len(each["prompt"][i]) // 100)
            for i, size in enumerate(sizes)
        ]

    def start(self, rows):
        self.jobs += 1
        return CallJob(self.run, rows) if isinstance(rows[0], CallRow) else Job(self, rows)

    def split(self, name, inputs):
        rows = max(map(len, inputs.values()))
        return [CallRow(name, {key: value[[i]] for key, value in inputs.items()}) for i in range(rows)]

    def run(self, name, inputs):
        if b"crash" in inputs["prompt"]:
            raise RuntimeError("a secret of the engine")
        rows = len(inputs["prompt"])
        return {"context": np.full([rows, 2, 3], 0.2, "float32"), "truncated_tokens": np.zeros(rows, "int32")}

    def png(self, image):
        return tf.io.encode_png(image).numpy()


class Job:
    done = 0

    def __init__(self, engine, rows):
        self.engine, self.rows, self.steps = engine, rows, rows[0].steps

    def advance(self, steps):
        while not self.engine.gate.wait(0.01):
            pass
        time.sleep(STEP_SECONDS * steps)
        self.done += steps
        self.engine.steps += steps

    def results(self):
        return np.stack([np.full((*row.size, 3), row.seed % 256, "uint8") for row in self.rows])


def picture(seed: int, size=(8, 8)) -> bytes:
    return tf.io.encode_png(np.full((*size, 3), seed % 256, "uint8")).numpy()


def cancelled(server) -> float:
    """Returns how many requests a server has seen to be cancelled by their clients."""
    return server.metrics.registry.get_sample_value("tfsd_rejected_total", {"reason": "cancelled"})


@contextlib.contextmanager
def held(engine):
    """Keeps every job before its next step."""
    engine.gate.clear()
    try:
        yield
    finally:
        engine.gate.set()


@contextlib.contextmanager
def served(*engines, max_queue_rows=64, load=None, **options):
    """A server of engines, as if each were loaded from the version that it names."""
    with tempfile.TemporaryDirectory() as folder:
        engines = {engine.version: engine for engine in engines}
        for version in engines:
            add_version(folder, version)
        metrics = Metrics()
        models = Models(folder, metrics=metrics, load=load or (lambda path: engines[int(path.name)]))
        made = ServerOptions(grpc_port=0, rest_port=0, **{"grace": LONG, **options})
        server = Server(models, made, limits=QueueLimits(max_queue_rows=max_queue_rows), metrics=metrics)
        with running(server):
            yield server


def add_version(folder, version: int):
    """Puts what looks like a version into a folder of models."""
    path = Path(folder) / "toy" / str(version)
    path.mkdir(parents=True)
    (path / "saved_model.pb").touch()
