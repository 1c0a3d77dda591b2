"""Writes the warm-up requests that TensorFlow Serving runs after loading a SavedModel, so that no client waits for XLA."""

from pathlib import Path

import numpy as np
import tensorflow as tf

from tfsd.converters.saved_model.graph_requests import ExportLimits
from tfsd.converters.saved_model.signatures import DEFAULT, Signatures

WARMUP = "assets.extra/tf_serving_warmup_requests"


def write_warmup(folder: Path, name: str, signatures: Signatures, limits: ExportLimits) -> Path:
    """Writes one request of one step for every signature, size and batch size, and returns the file.

    Raises: `ImportError` if tensorflow-serving-api, which defines the messages, is not installed.
    """
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

    path = folder / WARMUP
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature, inputs in warmup_requests(signatures, limits):
            request = predict_pb2.PredictRequest()
            request.model_spec.name, request.model_spec.signature_name = name, signature
            for key, value in inputs.items():
                request.inputs[key].CopyFrom(tf.make_tensor_proto(value))
            log = prediction_log_pb2.PredictLog(request=request)
            writer.write(prediction_log_pb2.PredictionLog(predict_log=log).SerializeToString())
    return path


def warmup_requests(signatures: Signatures, limits: ExportLimits):
    """Yields (signature, inputs), the inputs as numpy arrays."""
    spec, defaults = signatures.model_spec, {name: value.numpy() for name, value in signatures.defaults().items()}
    for height, width in limits.sizes:
        for batch in limits.batch_sizes:
            rows = {name: np.repeat(value, batch) for name, value in defaults.items()}
            rows |= {"num_steps": np.full(batch, 1, "int32"), "height": np.full(batch, height, "int32")}
            rows |= {"width": np.full(batch, width, "int32")}
            prompts = {"prompt": np.array([b"a warm welcome"] * batch, object)}
            context = np.zeros((batch, *spec.conditioning()["context"]), "float32")
            sides = height // spec.vae.factor, width // spec.vae.factor
            yield "text_to_png", prompts | rows
            if (height, width, batch) == (*limits.sizes[0], limits.batch_sizes[0]):
                yield DEFAULT, prompts | rows  # the program of text_to_png; one request sets up what belongs to the key
            yield "text_to_image", prompts | rows
            yield "encode", prompts
            numbers = {name: value for name, value in rows.items() if name != "negative_prompt"}
            yield "denoise", {"context": context, "negative_context": context} | numbers
            yield "decode", {"latents": np.zeros((batch, *sides, spec.vae.latent_channels), "float32")}
