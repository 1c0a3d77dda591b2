"""The server receives what the signatures of its exports take, as TF Serving does, and not more."""

import json
import logging

import numpy as np
import pytest
import tensorflow as tf
from patience import LONG
from stand_in import Engine, add_version, served, signature
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2
from test_rest import Client as Rest
from test_rpc import CODE, error
from test_rpc import Client as Rpc

from tfsd.serving.server.models import Models
from tfsd.serving.server.server import Server, ServerOptions, running
from tfsd.serving.wire.message_size import LEAST, WARMUP, request_limits

CONTEXT = (8, 77, 2048)  # eight contexts as wide as those of Stable Diffusion XL: 5 MB


class Wide(Engine):
    """An engine with a signature that takes contexts."""

    def __init__(self, version=1):
        super().__init__(version)
        self.signatures["double"] = signature({"context": (tf.float32, None)}, {"context": tf.float32})
        for side in CONTEXT[1:]:
            self.signatures["double"].inputs["context"].tensor_shape.dim.add().size = side

    def run(self, name, inputs):
        return {"context": 2 * inputs["context"]}


def asked(shape=CONTEXT):
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = "toy", "double"
    request.inputs["context"].CopyFrom(tf.make_tensor_proto(np.full(shape, 0.1, "float32")))
    return request


def write_warmup(folder, *requests):
    path = folder / WARMUP
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for request in requests:
            log = prediction_log_pb2.PredictLog(request=request)
            writer.write(prediction_log_pb2.PredictionLog(predict_log=log).SerializeToString())


def published(folder, version=1, shape=CONTEXT):
    add_version(folder, version)
    write_warmup(folder / "toy" / str(version), asked((1, 2, 3)), asked(shape), asked((1, 2, 3)))


def test_requests_as_large_as_the_warm_up_says_are_answered(tmp_path):
    published(tmp_path)
    server = Server(Models(tmp_path, load=lambda path: Wide()), ServerOptions(grpc_port=0, rest_port=0))
    with running(server):
        answer = Rpc(server).prediction.Predict(asked(), timeout=LONG).outputs["context"]
        np.testing.assert_array_equal(tf.make_ndarray(answer), np.full(CONTEXT, 0.2, "float32"))
        body = {"signature_name": "double", "instances": np.full((3, *CONTEXT[1:]), 0.123456789).tolist()}
        assert len(json.dumps(body)) > LEAST
        assert Rest(server).predict(body).status == 200
        assert error(Rpc(server).prediction.Predict, asked((32, 77, 2048))).code() == CODE.RESOURCE_EXHAUSTED


def test_small_models_take_four_megabytes_and_no_more():
    with served(Wide()) as server:
        assert error(Rpc(server).prediction.Predict, asked()).code() == CODE.RESOURCE_EXHAUSTED
    with served(Wide(), message_mb=8) as server:
        assert Rpc(server).prediction.Predict(asked(), timeout=LONG).outputs["context"]


def test_a_version_that_takes_more_than_the_server_was_started_for_is_told(tmp_path, caplog):
    published(tmp_path, 1, (1, 2, 3))
    server = Server(Models(tmp_path, load=lambda path: Wide(int(path.name))), ServerOptions(grpc_port=0, rest_port=0))
    with running(server):
        assert "takes requests" not in caplog.text
        published(tmp_path, 2)
        caplog.set_level(logging.WARNING, "tfsd.serving")
        server.models.reload()
        server.models.reload()
        assert [one.getMessage() for one in caplog.records].count(
            "Version 2 of toy takes requests of up to 6.0 MB, but this server was started for 4.0 MB. Restart it."
        ) == 1


@pytest.mark.parametrize("damage", [b"", b"\xff" * 12, b"\x05" + b"\0" * 7, b"\xff" * 7 + b"\x7f" + b"\0" * 40])
def test_a_damaged_warm_up_file_is_left_to_the_loader(tmp_path, damage):
    add_version(tmp_path, 1)
    folder = tmp_path / "toy/1"
    write_warmup(folder)
    (folder / WARMUP).write_bytes(damage)
    assert request_limits([folder]) == (LEAST, LEAST)
    assert request_limits([tmp_path / "missing"]) == (LEAST, LEAST)


def test_an_export_takes_its_own_requests(toy_export):
    assert request_limits([toy_export / "toy/1"]) == (LEAST, LEAST)  # a toy's contexts are small
