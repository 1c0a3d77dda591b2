import json
import logging

import grpc
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf.struct_pb2 import Struct
from google.protobuf.wrappers_pb2 import StringValue
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from patience import LONG
from stand_in import TLS, Engine, picture, served
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from tfsd.serving.server.logs import JsonFormatter, TextFormatter

CODE = grpc.StatusCode


class Client:
    """A stock client: TF Serving's own stubs."""

    def __init__(self, server, channel=None):
        limits = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        self.channel = channel or grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}", limits)
        self.prediction = prediction_service_pb2_grpc.PredictionServiceStub(self.channel)
        self.models = model_service_pb2_grpc.ModelServiceStub(self.channel)
        self.health = health_pb2_grpc.HealthStub(self.channel)

    def predict(self, *prompts, **options):
        return self.prediction.Predict(request(*prompts), timeout=LONG, **options)


def request(*prompts, model="toy", signature="text_to_png", **inputs):
    made = predict_pb2.PredictRequest()
    made.model_spec.name, made.model_spec.signature_name = model, signature
    if prompts:
        made.inputs["prompt"].CopyFrom(tf.make_tensor_proto(prompts))
    types = {"seed": "int64", "num_steps": "int32", "height": "int32", "guidance_scale": "float32", "sampler": None}
    for name, value in inputs.items():
        made.inputs[name].CopyFrom(tf.make_tensor_proto(value, types[name]))
    return made


def error(call, *arguments, **options) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments, **{"timeout": 20, **options})
    return caught.value


@pytest.fixture(scope="module")
def client(server):
    return Client(server)


def test_prompt_in_png_out(client):
    response = client.prediction.Predict(request("x", seed=[7]), timeout=LONG)
    assert tf.make_ndarray(response.outputs["png_bytes"]).tolist() == [picture(7)]
    assert list(response.outputs["truncated_tokens"].int_val) == [0]
    assert set(response.outputs) == {"png_bytes", "truncated_tokens"}
    spec = response.model_spec
    assert (spec.name, spec.version.value, spec.signature_name) == ("toy", 1, "text_to_png")


def test_one_picture_for_each_row(client):
    pngs = client.prediction.Predict(request("x", "y", "z", seed=[1, 2, 3]), timeout=LONG).outputs["png_bytes"]
    assert list(pngs.string_val) == [picture(seed) for seed in (1, 2, 3)]


def test_images_come_as_arrays(client):
    images = client.prediction.Predict(request("x", signature="text_to_image", seed=[9, 4]), timeout=LONG).outputs["images"]
    np.testing.assert_array_equal(tf.make_ndarray(images)[:, 0, 0, 0], [9, 4])
    assert tf.make_ndarray(images).shape == (2, 8, 8, 3) and images.dtype == tf.uint8.as_datatype_enum


def test_pngs_may_differ_in_size_and_arrays_may_not(client):
    pngs = client.prediction.Predict(request("x", height=[8, 16]), timeout=LONG).outputs["png_bytes"]
    assert list(pngs.string_val) == [picture(0), picture(0, (16, 8))]
    failed = error(client.prediction.Predict, request("x", signature="text_to_image", height=[8, 16]))
    assert failed.code() == CODE.INVALID_ARGUMENT and "got [8, 16]" in failed.details()


def test_split_signatures_answer_with_what_the_model_gave(client):
    context = client.prediction.Predict(request("x", "y", signature="encode"), timeout=LONG).outputs["context"]
    np.testing.assert_array_equal(tf.make_ndarray(context), np.full([2, 2, 3], 0.2, "float32"))


def test_output_filter_leaves_the_rest_out(client):
    wanted = request("x")
    wanted.output_filter.append("truncated_tokens")
    assert set(client.prediction.Predict(wanted, timeout=LONG).outputs) == {"truncated_tokens"}
    wanted.output_filter.append("pictures")
    failed = error(client.prediction.Predict, wanted)
    assert failed.code() == CODE.INVALID_ARGUMENT
    assert failed.details().startswith("output tensor alias not found in signature: pictures")


def versioned(**spec):
    made = request("x")
    if "version" in spec:
        made.model_spec.version.value = spec["version"]
    if "label" in spec:
        made.model_spec.version_label = spec["label"]
    return made


@pytest.mark.parametrize(
    "sent, code, message",
    [
        (predict_pb2.PredictRequest(), CODE.INVALID_ARGUMENT, "Missing ModelSpec"),
        (request("x", model=""), CODE.INVALID_ARGUMENT, "ModelSpec has no name specified."),
        (request("x", model="missing"), CODE.NOT_FOUND, "Servable not found for request: Latest(missing)"),
        (versioned(version=7), CODE.NOT_FOUND, "Servable not found for request: Specific(toy, 7)"),
        (versioned(label="gone"), CODE.INVALID_ARGUMENT, "Unrecognized servable version label: gone"),
        (request("x", signature="x"), CODE.FAILED_PRECONDITION, 'Serving signature key "x" not found.'),
        (request("x", signature="y"), CODE.FAILED_PRECONDITION, 'Serving signature key "y" not found.'),
        (request(seed=[1]), CODE.INVALID_ARGUMENT, "Signature input alias: prompt(feed name: prompt:0) not found in request"),
        (request("x", num_steps=[[1]]), CODE.INVALID_ARGUMENT, "num_steps must have shape [B]"),
        (request("x" * 10**6), CODE.INVALID_ARGUMENT, "prompt must have at most 4096 bytes; got 1000000."),
    ],
)
def test_codes_and_words_of_tf_serving(client, sent, code, message):
    failed = error(client.prediction.Predict, sent)
    assert failed.code() == code
    assert message in failed.details()


def test_a_prompt_of_10_mb_is_refused_before_it_is_read(client):
    failed = error(client.prediction.Predict, request("x" * 10**7))
    assert failed.code() == CODE.RESOURCE_EXHAUSTED and "larger than max" in failed.details()


def test_long_messages_are_cut_as_tf_serving_cuts_them(client):
    failed = error(client.prediction.Predict, request("x", signature="encode", **{"seed": [1]}, model="m" * 5000))
    assert failed.code() == CODE.NOT_FOUND
    assert len(failed.details()) == 1024 + len("...TRUNCATED")


def test_other_calls_of_the_service_are_unimplemented(client):
    for call in (client.prediction.Classify, client.prediction.Regress):
        assert error(call, classification_pb2.ClassificationRequest()).code() == CODE.UNIMPLEMENTED


def test_a_failure_of_the_model_is_internal_and_leaves_the_server_up(client):
    assert error(client.prediction.Predict, request("crash", signature="encode")).code() == CODE.INTERNAL
    assert client.predict("x")


# Metadata and status


def metadata(*fields, name="toy"):
    made = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=fields)
    made.model_spec.name = name
    return made


def test_metadata_holds_the_signatures(client, engine):
    response = client.prediction.GetModelMetadata(metadata("signature_def"), timeout=LONG)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    assert dict(signatures.signature_def) == engine.signatures
    assert (response.model_spec.name, response.model_spec.version.value) == ("toy", 1)


@pytest.mark.parametrize(
    "sent, code, message",
    [
        (get_model_metadata_pb2.GetModelMetadataRequest(), CODE.INVALID_ARGUMENT, "Missing ModelSpec"),
        (metadata(), CODE.INVALID_ARGUMENT, "GetModelMetadataRequest must specify at least one metadata_field"),
        (metadata("weights"), CODE.INVALID_ARGUMENT, "Metadata field weights is not supported"),
        (metadata("signature_def", name="missing"), CODE.NOT_FOUND, "Servable not found for request: Latest(missing)"),
    ],
)
def test_metadata_is_refused_as_by_tf_serving(client, sent, code, message):
    failed = error(client.prediction.GetModelMetadata, sent)
    assert (failed.code(), failed.details()) == (code, message)


def test_status_tells_the_versions(client):
    wanted = get_model_status_pb2.GetModelStatusRequest()
    assert error(client.models.GetModelStatus, wanted).details() == "Missing ModelSpec"
    wanted.model_spec.name = "toy"
    (version,) = client.models.GetModelStatus(wanted, timeout=LONG).model_version_status
    assert (version.version, version.State.Name(version.state), version.status.error_code) == (1, "AVAILABLE", 0)
    wanted.model_spec.version.value = 7
    failed = error(client.models.GetModelStatus, wanted)
    assert (failed.code(), failed.details()) == (CODE.NOT_FOUND, "Could not find version 7 of model toy")
    wanted.model_spec.Clear()
    wanted.model_spec.name = "missing"
    failed = error(client.models.GetModelStatus, wanted)
    assert (failed.code(), failed.details()) == (CODE.NOT_FOUND, "Could not find any versions of model missing")


def test_a_reload_without_models_is_refused(client):
    failed = error(client.models.HandleReloadConfigRequest, model_management_pb2.ReloadConfigRequest())
    assert failed.code() == CODE.INVALID_ARGUMENT and "Only ModelConfigList is currently supported" in failed.details()


def test_health_is_told_for_all_services(client):
    for name in ("", "tensorflow.serving.PredictionService", "tensorflow.serving.ModelService", "tfsd.Progress"):
        assert client.health.Check(health_pb2.HealthCheckRequest(service=name), timeout=LONG).status == 1
    assert error(client.health.Check, health_pb2.HealthCheckRequest(service="x")).code() == CODE.NOT_FOUND


def test_reflection_lists_and_describes_the_services(client):
    stub = reflection_pb2_grpc.ServerReflectionStub(client.channel)
    asked = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="tfsd.Progress"),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="tensorflow.serving.PredictionService"),
    ]
    listed, *described = stub.ServerReflectionInfo(iter(asked), timeout=LONG)
    names = {service.name for service in listed.list_services_response.service}
    assert {"tensorflow.serving.PredictionService", "tensorflow.serving.ModelService", "tfsd.Progress"} < names
    assert all(one.file_descriptor_response.file_descriptor_proto for one in described)


def test_a_token_is_asked_for_everywhere_but_in_health():
    with served(Engine(), token="s3cret") as server:
        client = Client(server)
        for metadata_sent in ([], [("authorization", "Bearer wrong")], [("authorization", "s3cret")]):
            failed = error(client.prediction.Predict, request("x"), metadata=metadata_sent)
            assert failed.code() == CODE.UNAUTHENTICATED and "s3cret" not in failed.details()
        watch = client.channel.unary_stream("/tfsd.Progress/Watch", StringValue.SerializeToString, Struct.FromString)
        with pytest.raises(grpc.RpcError) as caught:
            list(watch(StringValue(value="x"), timeout=LONG))
        assert caught.value.code() == CODE.UNAUTHENTICATED
        assert client.health.Check(health_pb2.HealthCheckRequest(), timeout=LONG).status == 1
        assert client.predict("x", metadata=[("authorization", "Bearer s3cret")])


def test_tls_serves_those_who_trust_the_certificate():
    with served(Engine(), tls_cert=TLS / "cert.pem", tls_key=TLS / "key.pem") as server:
        trusting = grpc.ssl_channel_credentials((TLS / "cert.pem").read_bytes())
        assert Client(server, grpc.secure_channel(f"localhost:{server.grpc_port}", trusting)).predict("x")
        assert error(Client(server).prediction.Predict, request("x"), timeout=2).code() in (
            CODE.UNAVAILABLE,
            CODE.DEADLINE_EXCEEDED,
        )


class Lines(logging.Handler):
    """Keeps what is logged."""

    def __enter__(self):
        self.records = []
        logger = logging.getLogger("tfsd.serving")
        logger.addHandler(self)
        logger.setLevel(logging.INFO)
        return self.records

    def emit(self, record):
        self.records.append(record)

    def __exit__(self, *_):
        logging.getLogger("tfsd.serving").removeHandler(self)


def test_each_request_is_one_line_without_its_prompt(client):
    with Lines() as records:
        client.predict("a very private prompt", metadata=[("x-request-id", "abc")])
        error(client.prediction.Predict, request("a very private prompt" * 1000))
    answered, refused = (record.fields for record in records)
    assert answered["id"] == "abc" and answered["code"] == "OK" and answered["rows"] == 1 and answered["version"] == 1
    assert answered["signature"] == "text_to_png" and answered["ms"] >= answered["run_ms"] > 0
    assert refused["code"] == "INVALID_ARGUMENT"
    for form in (JsonFormatter(), TextFormatter()):
        lines = [form.format(record) for record in records]
        assert "abc" in lines[0] and not any("private" in line or "\n" in line for line in lines)
    assert json.loads(JsonFormatter().format(records[0]))["code"] == "OK"


@pytest.mark.parametrize("name", ["", "serving_default"])
def test_a_request_that_names_no_signature_makes_a_picture(client, name):
    answer = client.prediction.Predict(request("x", seed=[7], signature=name), timeout=LONG)
    assert answer.outputs["png_bytes"].string_val[0] == picture(7) and answer.model_spec.signature_name == "text_to_png"


def test_requests_are_counted(client, server):
    def count():
        return server.metrics.registry.get_sample_value(
            "tfsd_requests_total", {"model": "toy", "signature": "text_to_png", "method": "grpc", "code": "OK"}
        )

    before = count() or 0
    client.predict("x")
    assert count() == before + 1
