"""Messages that are nearly right, to every call beside Predict, which `test_server.py` and `test_faults.py` try."""

import random

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as some
from patience import LONG
from stand_in import Engine, served
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2, model_management_pb2
from test_rpc import CODE
from test_rpc import Client as Rpc

REFUSALS = {CODE.INVALID_ARGUMENT, CODE.NOT_FOUND, CODE.FAILED_PRECONDITION, CODE.UNKNOWN}
FEW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)


@pytest.fixture(scope="module")
def client():
    with served(Engine()) as server:
        yield Rpc(server)


def messages() -> dict[str, bytes]:
    metadata = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    status = get_model_status_pb2.GetModelStatusRequest()
    metadata.model_spec.name = status.model_spec.name = "toy"
    metadata.model_spec.version.value = status.model_spec.version.value = 1
    reload = model_management_pb2.ReloadConfigRequest()
    config = reload.config.model_config_list.config.add(name="toy", base_path="/nowhere/toy", model_platform="tensorflow")
    config.model_version_policy.specific.versions.append(1)
    config.version_labels["stable"] = 1
    return {
        "/tensorflow.serving.PredictionService/GetModelMetadata": metadata.SerializeToString(),
        "/tensorflow.serving.ModelService/GetModelStatus": status.SerializeToString(),
        "/tensorflow.serving.ModelService/HandleReloadConfigRequest": reload.SerializeToString(),
    }


def mutated(message: bytes, seed: int) -> bytes:
    """A message with a few bytes changed, put in, left out or doubled."""
    chance, made = random.Random(seed), bytearray(message)
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(made) + 1)
        stretch = bytes(made[place : place + chance.randint(1, 8)])
        put = chance.choice((b"", stretch * 2, bytes(chance.randrange(256) for _ in range(chance.randint(1, 3)))))
        made[place : place + chance.choice((0, len(stretch)))] = put
    return bytes(made)


@FEW
@given(some.sampled_from(sorted(messages())), some.integers(0, 2**32) | some.binary(max_size=60))
@example("/tensorflow.serving.ModelService/HandleReloadConfigRequest", b"")
def test_damaged_messages_are_refused_and_leave_the_server_up(client, name, change):
    message = change if isinstance(change, bytes) else mutated(messages()[name], change)
    try:
        client.channel.unary_unary(name)(message, timeout=LONG)
    except grpc.RpcError as error:
        unread = error.code() is CODE.INTERNAL and "The message is not a valid tensorflow.serving." in error.details()
        assert unread or error.code() in REFUSALS, error
    assert client.predict("x")


@FEW
@given(some.text(max_size=40) | some.binary(max_size=40))
def test_no_name_of_a_request_breaks_its_progress(client, name):
    message = name if isinstance(name, bytes) else StringValue(value=name).SerializeToString()
    try:
        for _ in client.channel.unary_stream("/tfsd.Progress/Watch")(message, timeout=0.05):
            pass
    except grpc.RpcError as error:
        unread = error.code() is CODE.INTERNAL and "The message is not a valid google.protobuf.StringValue" in error.details()
        assert unread or error.code() in (CODE.NOT_FOUND, CODE.DEADLINE_EXCEEDED), error
    assert client.predict("x")
