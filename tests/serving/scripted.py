"""A server that speaks the stock protos and does what a test tells it, and both clients behind one function."""

import asyncio
import contextlib
import functools
import io
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf.struct_pb2 import Struct
from google.protobuf.wrappers_pb2 import StringValue
from patience import LONG, until
from PIL import Image
from tensorflow_serving.apis import get_model_metadata_pb2, predict_pb2, prediction_service_pb2_grpc

from tfsd.serving.client.aio import AsyncClient
from tfsd.serving.client.sync import Client

DEFAULTS = {"num_steps": 4, "guidance_scale": 3.0, "sampler": "ddim", "height": 8, "width": 16}
OUTPUT_TYPES = {"png_bytes": tf.string, "truncated_tokens": tf.int32, "truncated_negative_tokens": tf.int32}


def picture(seed: int, index: int, height: int = 8, width: int = 16) -> np.ndarray:
    """Returns the picture that the server draws of a seed and an index: all of one colour."""
    return np.full((height, width, 3), (seed % 256, index % 256, 77), np.uint8)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", compress_level=1)
    return file.getvalue()


def pictures_of(inputs: dict) -> dict:
    """Returns the outputs of `text_to_png` for inputs [B]; each prompt has as many tokens too many as "x" in it."""
    rows = zip(inputs["seed"], inputs["index"], inputs["height"], inputs["width"])
    return {
        "png_bytes": [png(picture(*map(int, row))) for row in rows],
        "truncated_tokens": [prompt.count(b"x") for prompt in inputs["prompt"]],
        "truncated_negative_tokens": [prompt.count(b"x") for prompt in inputs["negative_prompt"]],
    }


def fails(code: str, details: str = "as told"):
    """Returns a step of a script: the server fails with a status."""

    def step(inputs, context):
        context.abort(grpc.StatusCode[code], details)

    return step


def answers(**outputs):
    """Returns a step of a script: the answer has these outputs in place of its own; None leaves one out."""

    def step(inputs, context):
        return {name: value for name, value in (pictures_of(inputs) | outputs).items() if value is not None}

    return step


def hangs(inputs, context):
    """A step of a script: nothing comes until the client is gone."""
    until(lambda: not context.is_active())
    return pictures_of(inputs)


def slow(inputs, context):
    """A step of a script: the picture takes its time."""
    time.sleep(0.3)
    return pictures_of(inputs)


def waits(event: threading.Event | threading.Barrier):
    """Returns a step of a script: the picture comes after an event, or when as many are asked for as a barrier wants."""

    def step(inputs, context):
        event.wait(LONG)
        return pictures_of(inputs)

    return step


class Scripted(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Takes the next step of `script` for each Predict and, once it has run out, draws.

    `seen` has the inputs of each, `headers` its metadata, `remaining` its deadline; `gone` is set when one was cancelled.
    """

    def __init__(self, script=(), *, defaults=DEFAULTS, watch=None, version=3):
        self.script, self.defaults, self.watch, self.version = list(script), defaults, watch, version
        self.seen, self.headers, self.remaining, self.specs = [], [], [], []
        self.metadata_calls, self.running, self.most_running = 0, 0, 0
        self.gone, self.lock = threading.Event(), threading.Lock()

    def GetModelMetadata(self, request, context):
        self.metadata_calls += 1
        signatures = get_model_metadata_pb2.SignatureDefMap()
        signatures.signature_def["text_to_png"].method_name = "tensorflow/serving/predict"
        for name, value in self.defaults.items():
            kind = {"guidance_scale": "float32", "sampler": "string"}.get(name, "int32")
            signatures.signature_def["text_to_png"].defaults[name].CopyFrom(tf.make_tensor_proto([value], kind))
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        response.model_spec.version.value = self.version
        response.metadata["signature_def"].Pack(signatures)
        return response

    def Predict(self, request, context):
        inputs = {name: tf.make_ndarray(tensor) for name, tensor in request.inputs.items()}
        with self.lock:
            self.seen.append(inputs)
            self.specs.append(request.model_spec)
            self.headers.append(dict(context.invocation_metadata()))
            self.remaining.append(context.time_remaining())
            step = self.script.pop(0) if self.script else answers()
            self.running += 1
            self.most_running = max(self.most_running, self.running)
        try:
            outputs = step(inputs, context)
        finally:
            with self.lock:
                self.running -= 1
        if not context.is_active():
            self.gone.set()
        response = predict_pb2.PredictResponse()
        response.model_spec.version.value = self.version
        for name, values in outputs.items():
            response.outputs[name].CopyFrom(tf.make_tensor_proto(values, OUTPUT_TYPES.get(name)))
        return response


@contextlib.contextmanager
def serving(servicer: Scripted, *, port: int = 0, credentials=None):
    """Runs a server on a port of this machine; yields its address."""
    with ThreadPoolExecutor(16) as pool:
        server = grpc.server(pool, options=[("grpc.so_reuseport", 0), ("grpc.max_send_message_length", -1)])
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(servicer, server)
        if servicer.watch is not None:
            handler = grpc.unary_stream_rpc_method_handler(servicer.watch, StringValue.FromString, Struct.SerializeToString)
            server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("tfsd.Progress", {"Watch": handler})])
        address = f"127.0.0.1:{port}"
        port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
        server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            server.stop(None).wait()


def draw_sync(address: str, *args, method: str = "text_to_image", settings: dict | None = None, **kwargs):
    with Client(address, **settings or {}) as client:
        return getattr(client, method)(*args, **kwargs)


def draw_async(address: str, *args, method: str = "text_to_image", settings: dict | None = None, **kwargs):
    async def draw():
        async with AsyncClient(address, **settings or {}) as client:
            return await getattr(client, method)(*args, **kwargs)

    return asyncio.run_coroutine_threadsafe(draw(), _loop()).result()


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    """Returns a loop that outlives each test: grpc.aio, of which a server may run here too, trips over closed ones."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    return loop
