"""What goes wrong around a server: processes that die, deadlines that pass, files and messages that are damaged."""

import base64
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from patience import LONG, until
from served_process import Served
from tensorflow_serving.apis import get_model_status_pb2, model_management_pb2
from test_damaged_exports import flip
from test_fuzz import mutated
from test_rpc import CODE
from test_serve_command import request

from tfsd.serving.client.sync import Client

pytestmark = pytest.mark.slow  # servers are started, killed and started again
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server(toy_export, tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults") / "models"
    shutil.copytree(toy_export, folder)
    served = Served(folder)
    try:
        yield served
    finally:
        served.end()


def rows(count: int, **inputs):
    """A request for so many pictures."""
    made = request({"prompt": "a red star", "num_steps": 10} | inputs)
    made.inputs["seed"].CopyFrom(tf.make_tensor_proto(np.arange(count)))
    return made


# Clients and time

ENDLESS = """
import sys
from tfsd.serving.client.sync import Client
with Client(sys.argv[1], model="toy", max_batch=2, max_calls=16) as client:
    while True:
        client.text_to_png("a red star", 64, num_steps=10)
"""


def test_a_client_that_is_killed_leaves_no_work_behind(server):
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    before = server.gauge("tfsd_rejected_total", reason="cancelled")
    client = subprocess.Popen([sys.executable, "-c", ENDLESS, server.own.address], env=env)
    try:
        until(lambda: server.gauge("tfsd_queue_rows") >= 16)
    finally:
        client.kill()
        client.wait()
    until(server.idle)
    assert server.gauge("tfsd_rejected_total", reason="cancelled") > before
    assert server.draw(timeout=LONG).startswith(b"\x89PNG")


def test_a_deadline_that_passes_half_way_is_told_and_stops_the_rows(server):
    calls = [server.rpc.prediction.Predict.future(rows(2, guidance_scale=2.0), timeout=0.15) for _ in range(30)]
    codes = Counter((call.exception(LONG).code() if call.exception(LONG) else CODE.OK) for call in calls)
    assert set(codes) <= {CODE.OK, CODE.DEADLINE_EXCEEDED} and codes[CODE.DEADLINE_EXCEEDED] > 0
    until(server.idle)
    assert server.draw()


# The server itself


def test_a_server_that_is_killed_leaves_no_request_hanging_and_serves_again(server):
    known = server.draw(seed=1)
    calls = [server.rpc.prediction.Predict.future(rows(2), timeout=LONG) for _ in range(30)]
    waiting = server.rest.send("POST", "/v1/models/toy:predict", json.dumps(rest_body()))
    until(lambda: any(call.done() for call in calls))
    server.own.process.send_signal(signal.SIGKILL)
    errors = [call.exception(LONG) for call in calls]
    codes = Counter(CODE.OK if error is None else error.code() for error in errors)
    assert codes[CODE.OK] > 0 and set(codes) <= {CODE.OK, CODE.UNAVAILABLE}, codes
    with pytest.raises(OSError):  # unless it was answered before
        waiting.getresponse().read()
        server.rest.ask("GET", "/healthz")
    with ThreadPoolExecutor(1) as thread, Client(server.own.address, model="toy", retries=100, timeout=LONG) as client:
        early = thread.submit(client.text_to_png, "a red star", seed=1)  # there is no server
        server.end()
        server.start()
        assert early.result(LONG) == [known] == [server.draw(seed=1)]


# Files and reloads


def test_a_damaged_version_beside_a_good_one_is_told_of_and_the_good_one_serves(server):
    known = server.draw(seed=1)
    shutil.copytree(server.folder / "toy/1", server.folder / "aside/2")
    flip(server.folder / "aside/2/saved_model.pb")
    (server.folder / "aside/2").rename(server.folder / "toy/2")
    try:
        until(lambda: server.status(2) is not None and server.status(2).status.error_code)
        assert server.status(2).state == get_model_status_pb2.ModelVersionStatus.END
        assert "saved_model.pb" in server.status(2).status.error_message
        assert server.status(1).state == get_model_status_pb2.ModelVersionStatus.AVAILABLE
        told = server.rest.ask("GET", "/v1/models/toy").json["model_version_status"]
        assert {one["version"]: one["state"] for one in told} == {"2": "END", "1": "AVAILABLE"}
        assert server.draw(seed=1) == known
    finally:
        shutil.rmtree(server.folder / "toy/2")
        shutil.rmtree(server.folder / "aside")


def config(folder: Path, *, policy: str = "latest { num_versions: 1 }", labels: str = "") -> str:
    return f"""model_config_list {{ config {{ name: "toy" base_path: "{folder / "toy"}" model_platform: "tensorflow"
        model_version_policy {{ {policy} }} {labels} }} }}"""


def reload(server, text: str):
    wanted = model_management_pb2.ReloadConfigRequest()
    text_format.Parse(text, wanted.config)
    return server.rpc.models.HandleReloadConfigRequest(wanted, timeout=LONG)


def test_no_request_is_lost_while_several_clients_reload_at_once(server):
    known, stop = server.draw(seed=1), threading.Event()
    texts = [
        config(server.folder),
        config(server.folder, policy="all {}"),
        config(server.folder, policy="specific { versions: 1 }", labels='version_labels { key: "stable" value: 1 }'),
    ]

    def ask():
        answers = []
        while not stop.is_set():
            answers.append(server.draw(seed=1))
        return answers

    def change(first: int) -> int:
        for i in range(20):
            reload(server, texts[(first + i) % 3])
            with pytest.raises(grpc.RpcError) as caught:
                reload(server, config(server.folder / "missing"))
            assert caught.value.code() in (CODE.INVALID_ARGUMENT, CODE.NOT_FOUND)
        return 20

    with ThreadPoolExecutor(8) as clients:
        asking = [clients.submit(ask) for _ in range(4)]
        try:
            assert list(clients.map(change, range(3))) == [20] * 3
        finally:
            stop.set()
        answers = [answer for one in asking for answer in one.result(LONG)]
    assert len(answers) > 8 and set(answers) == {known}


def test_no_request_is_lost_while_versions_come_and_go(server):
    known, stop = server.draw(seed=1), threading.Event()

    def version_of_answer() -> int:
        response = server.rpc.prediction.Predict(request({"prompt": "a red star", "seed": 1}), timeout=LONG)
        assert response.outputs["png_bytes"].string_val[0] == known
        return response.model_spec.version.value

    def ask() -> set[int]:
        versions = set()
        while not stop.is_set():
            versions.add(version_of_answer())
        return versions

    served = {"specific { versions: 2 }": 2, "specific { versions: 1 }": 1, "all {}": 2, "latest { num_versions: 1 }": 2}
    with ThreadPoolExecutor(6) as clients:
        asking = [clients.submit(ask) for _ in range(4)]
        try:
            shutil.copytree(server.folder / "toy/1", server.folder / "toy/2")
            for policy, version in served.items():
                list(clients.map(lambda text: reload(server, text), [config(server.folder, policy=policy)] * 2))
                assert version_of_answer() == version
            reload(server, config(server.folder, policy="specific { versions: 1 }"))
        finally:
            stop.set()
            shutil.rmtree(server.folder / "toy/2", ignore_errors=True)
        answered = [one.result(LONG) for one in asking]
    assert all(versions and versions <= {1, 2} for versions in answered)


# Inputs and messages


@functools.cache
def inputs_of(signature: str) -> dict:
    context = tf.make_tensor_proto(np.zeros([1, 77, 16], "float32"))
    whole = {"prompt": tf.make_tensor_proto(["x"]), "seed": tf.make_tensor_proto([1], tf.int64)}
    whole |= {name: tf.make_tensor_proto([value], tf.int32) for name, value in (("num_steps", 2), ("height", 32), ("index", 0))}
    return {
        "text_to_png": whole,
        "text_to_image": whole,
        "encode": {"prompt": whole["prompt"]},
        "denoise": {"context": context, "negative_context": context} | {k: v for k, v in whole.items() if k != "prompt"},
        "decode": {"latents": tf.make_tensor_proto(np.zeros([1, 4, 4, 4], "float32"))},
    }[signature]


WRONG = {
    "type": lambda array: tf.make_tensor_proto(array.astype("float64") if array.dtype != object else np.zeros(1, "int32")),
    "rank": lambda array: tf.make_tensor_proto(array[None]),
    "no rank": lambda array: tf.make_tensor_proto(array.ravel()[0]),
    "no rows": lambda array: tf.make_tensor_proto(array[:0], tf.as_dtype(array.dtype) if array.dtype != object else tf.string),
    "rows": lambda array: tf.make_tensor_proto(np.repeat(array, 9, 0)),  # more than the export allows
}


def ask(server, signature: str, inputs: dict) -> CODE:
    wanted = request({}, signature)
    for name, value in inputs.items():
        wanted.inputs[name].CopyFrom(value)
    try:
        server.rpc.prediction.Predict(wanted, timeout=LONG)
    except grpc.RpcError as error:
        assert error.details() and len(error.details()) < 1100
        return error.code()
    return CODE.OK


@pytest.mark.parametrize("signature", ["text_to_png", "text_to_image", "encode", "denoise", "decode"])
def test_every_input_of_every_signature_is_checked(signature, server):
    inputs = inputs_of(signature)
    assert ask(server, signature, inputs) is CODE.OK
    for name, proto in inputs.items():
        for kind, wrong in WRONG.items():
            assert ask(server, signature, inputs | {name: wrong(tf.make_ndarray(proto))}) is CODE.INVALID_ARGUMENT, (name, kind)
    for name in {"prompt", "context", "negative_context", "latents"} & set(inputs):
        left = {key: value for key, value in inputs.items() if key != name}
        assert ask(server, signature, left) is CODE.INVALID_ARGUMENT, name
    assert ask(server, signature, inputs | {"sed": inputs_of("encode")["prompt"]}) is CODE.INVALID_ARGUMENT


@pytest.mark.parametrize("shape", [[1, 4, 4, 5], [1, 5, 4, 4], [1, 0, 4, 4], [1, 4, 4], [1, 512, 512, 4]])
def test_latents_of_a_size_that_was_not_exported_are_refused(shape, server):
    assert ask(server, "decode", {"latents": tf.make_tensor_proto(np.zeros(shape, "float32"))}) is CODE.INVALID_ARGUMENT


def test_a_prompt_of_10_mb_is_refused_where_messages_may_be_larger(server):
    prompt = "x" * 10**7
    with pytest.raises(grpc.RpcError) as caught:
        server.draw(prompt=prompt)
    assert caught.value.code() is CODE.INVALID_ARGUMENT and "bytes" in caught.value.details()
    reply = server.rest.ask("POST", "/v1/models/toy:predict", json.dumps(rest_body(prompt=[prompt])))
    assert reply.status == 400 and "bytes" in reply.error and len(reply.error) < 1100
    assert server.draw()


def rest_body(**changes) -> dict:
    inputs = {"prompt": "a red star", "negative_prompt": "", "seed": 1, "index": 0, "guidance_scale": 2.5, "num_steps": 2}
    inputs |= {"sampler": "ddim", "height": 32, "width": 32}
    return {"signature_name": "text_to_png", "inputs": {name: [value] for name, value in inputs.items()} | changes}


FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)


@FEW
@given(some.integers(0, 2**32), some.sampled_from(["text_to_png", "encode", "denoise", "decode"]))
def test_damaged_messages_are_answered_and_leave_the_server_up(server, seed, signature):
    wanted = request({}, signature)
    for name, value in inputs_of(signature).items():
        wanted.inputs[name].CopyFrom(value)
    call = server.rpc.channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
    try:
        call(mutated(wanted.SerializeToString(), seed), timeout=LONG)
    except grpc.RpcError as error:
        refusals = (CODE.INVALID_ARGUMENT, CODE.NOT_FOUND, CODE.FAILED_PRECONDITION)
        assert error.code() in refusals or "is not a valid tensorflow.serving.PredictRequest" in error.details(), error


@FEW
@given(some.integers(0, 2**32))
def test_damaged_bodies_are_answered_and_leave_the_server_up(server, seed):
    reply = server.rest.ask("POST", "/v1/models/toy:predict", mutated(json.dumps(rest_body()).encode(), seed))
    assert reply.status in (200, 400), reply.body
    if reply.status == 200:
        assert base64.b64decode(reply.json["outputs"]["png_bytes"][0]["b64"]).startswith(b"\x89PNG")
    else:
        assert reply.error
