"""`tfsd serve` as users run it: a process of its own, with a real export, asked by stock clients of both protocols."""

import base64
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest
import tensorflow as tf
from patience import LONG, until
from tensorflow_serving.apis import predict_pb2
from test_rest import Client as Rest
from test_rpc import Client as Rpc

ROOT = Path(__file__).parents[2]
LINES = re.compile(r"gRPC 127\.0\.0\.1:(\d+)\npage http://127\.0\.0\.1:(\d+)/\n")


class Command:
    """The process, and what it has printed."""

    def __init__(self, folder):
        argv = [
            sys.executable,
            "-m",
            "tfsd",
            "serve",
            str(folder),
            "--grpc-port",
            "0",
            "--rest-port",
            "0",
            "--log-format",
            "json",
        ]
        env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.log: list[str] = []
        self._reader = threading.Thread(target=lambda: self.log.extend(self.process.stderr), daemon=True)
        self._reader.start()
        printed = self.process.stdout.readline() + self.process.stdout.readline()
        match = LINES.fullmatch(printed)
        assert match, (printed, self.log)
        ports = SimpleNamespace(grpc_port=match[1], rest_port=int(match[2]))
        self.rpc, self.rest = Rpc(ports), Rest(ports)

    def end(self) -> tuple[int, str]:
        self.process.send_signal(signal.SIGTERM)
        rest = self.process.stdout.read()
        status = self.process.wait(LONG)
        self._reader.join()  # ends with the process, whose standard error it reads
        return status, rest


@pytest.fixture(scope="module")
def command(toy_export):
    command = Command(toy_export)
    try:
        yield command
    finally:
        command.process.kill()
        command.process.wait()


@pytest.fixture(scope="module")
def manifest(toy_export):
    return json.loads((toy_export / "toy/1/assets.extra/manifest.json").read_text())


def request(inputs: dict, signature: str = "text_to_png"):
    types = {"seed": tf.int64, "guidance_scale": tf.float32}
    made = predict_pb2.PredictRequest()
    made.model_spec.name, made.model_spec.signature_name = "toy", signature
    for name, value in inputs.items():
        if isinstance(value, tf.make_tensor_proto([0]).__class__):
            made.inputs[name].CopyFrom(value)
        else:
            dtype = tf.string if isinstance(value, str) else types.get(name, tf.int32)
            made.inputs[name].CopyFrom(tf.make_tensor_proto([value], dtype))
    return made


def outputs(command, inputs: dict, signature: str = "text_to_png"):
    return command.rpc.prediction.Predict(request(inputs, signature), timeout=LONG).outputs


def by_rest(command, inputs: dict):
    body = {"signature_name": "text_to_png", "instances": [inputs]}
    return command.rest.ask("POST", "/v1/models/toy:predict", json.dumps(body))


def test_both_protocols_give_the_bytes_that_the_export_promises(command, manifest):
    reference = manifest["reference"]
    (png,) = outputs(command, reference["inputs"])["png_bytes"].string_val
    assert hashlib.sha256(png).hexdigest() == reference["png_sha256"]
    (row,) = by_rest(command, reference["inputs"]).json["predictions"]
    assert base64.b64decode(row["png_bytes"]["b64"]) == png


def test_inputs_that_are_left_out_are_the_defaults(command, manifest):
    filled = {"prompt": "a red star", "negative_prompt": "", "seed": 0, "index": 0} | manifest["defaults"]
    assert outputs(command, {"prompt": "a red star"})["png_bytes"] == outputs(command, filled)["png_bytes"]


def test_words_that_the_model_never_learned_are_told(command):
    reply = command.rest.ask("POST", "/v1/models/toy:predict", json.dumps({"instances": [{"prompt": "a red dog"}]}))
    assert reply.status == 200 and "'dog'" in reply.headers["X-Tfsd-Warning"]


def test_strangers_in_the_batch_change_nothing(command):
    inputs = [{"prompt": f"a red star {i}", "seed": i, "num_steps": 3 + i % 4} for i in range(8)]
    alone = [outputs(command, one)["png_bytes"].string_val[0] for one in inputs]
    with ThreadPoolExecutor(8) as clients:
        together = list(clients.map(lambda one: outputs(command, one)["png_bytes"].string_val[0], inputs))
    assert together == alone and len(set(alone)) == 8


def test_the_split_signatures_make_the_same_picture(command):
    drawn = {"seed": 5, "num_steps": 4}
    context = outputs(command, {"prompt": "a red star"}, "encode")["context"]
    negative = outputs(command, {"prompt": ""}, "encode")["context"]
    latents = outputs(command, {"context": context, "negative_context": negative} | drawn, "denoise")["latents"]
    png = outputs(command, {"latents": latents}, "decode")["png_bytes"]
    assert png.string_val[0] == outputs(command, {"prompt": "a red star"} | drawn)["png_bytes"].string_val[0]


def test_values_out_of_range_are_refused_in_the_same_words_by_both(command, manifest):
    for name, value in (("num_steps", 1000), ("sampler", "magic"), ("height", 33), ("guidance_scale", -1), ("index", -1)):
        with pytest.raises(grpc.RpcError) as caught:
            outputs(command, {"prompt": "x", name: value})
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT, name
        reply = by_rest(command, manifest["reference"]["inputs"] | {name: value})
        assert reply.status == 400 and reply.error == caught.value.details() and name in reply.error


def test_sigterm_loses_no_answer_and_prints_no_more(command):
    """Clients ask one request after the other until they are sent away; what the server made, they have."""

    def ask_on(seed: int) -> list[bytes]:
        wanted, answers = request({"prompt": "a very private star", "num_steps": 10, "seed": seed}), []
        while True:
            try:
                answers.append(command.rpc.prediction.Predict(wanted, timeout=LONG).outputs["png_bytes"].string_val[0])
            except grpc.RpcError as error:
                assert error.code() == grpc.StatusCode.UNAVAILABLE, error  # else a client would not try another server
                return answers

    def lines(message: str, **fields) -> list[dict]:
        found = [json.loads(line) for line in list(command.log)]
        return [line for line in found if line["message"] == message and fields.items() <= line.items()]

    before = len(lines("request", code="OK"))
    with ThreadPoolExecutor(8) as clients:
        asking = [clients.submit(ask_on, seed) for seed in range(8)]
        until(lambda: len(lines("request", code="OK")) > before + 20, 300)
        status, printed = command.end()
        answers = [one.result(LONG) for one in asking]
    assert (status, printed) == (0, "")
    assert all(len(set(pngs)) == 1 and pngs[0].startswith(b"\x89PNG") for pngs in answers)
    assert sum(map(len, answers)) == len(lines("request", code="OK")) - before
    assert lines("stopping", signal="SIGTERM")
    assert "private" not in "".join(command.log) and "Traceback" not in "".join(command.log)
