import asyncio
import base64
import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from patience import LONG, until
from stand_in import TLS, Engine, add_version, held, picture, served
from test_rest import Client as Rest
from test_rest import columns
from test_rpc import CODE, error, request
from test_rpc import Client as Rpc

from tfsd.finite import not_finite
from tfsd.serving.server.models import Models
from tfsd.serving.server.server import Server, ServerOptions, running
from tfsd.serving.wire.errors import ServerError

NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


# The end


def test_requests_under_way_end_and_new_ones_are_sent_elsewhere():
    engine = Engine()
    with served(engine) as server:
        rpc, rest = Rpc(server), Rest(server)
        assert rest.ask("GET", "/healthz").status == 200
        with held(engine):
            calls = [rpc.prediction.Predict.future(request("x", seed=[seed])) for seed in (1, 2, 3)]  # 2 run, 1 waits
            connection = rest.send("POST", "/v1/models/toy:predict", json.dumps(columns(seed=[4])))
            until(lambda: server.scheduler.queue_rows == 2)
            stopping = threading.Thread(target=_stop, args=(server,))
            stopping.start()
            until(lambda: rpc.health.Check(health_pb2.HealthCheckRequest(), timeout=LONG).status == NOT_SERVING)
            assert rest.ask("GET", "/healthz").status == 503
            assert error(rpc.prediction.Predict, request("y")).code() == CODE.UNAVAILABLE
            assert rest.predict(columns()).status == 503
        assert [call.result(LONG).outputs["png_bytes"].string_val[0] for call in calls] == [picture(seed) for seed in (1, 2, 3)]
        assert connection.getresponse().status == 200
        stopping.join(LONG)
        assert not stopping.is_alive()
        with pytest.raises(OSError):
            rest.ask("GET", "/healthz")


def _stop(server, grace=None):
    asyncio.run_coroutine_threadsafe(server.stop(grace), server.loop).result()


def test_what_outlasts_the_grace_fails_unavailable():
    engine = Engine()
    with served(engine) as server, held(engine):
        rpc, rest = Rpc(server), Rest(server)
        call = rpc.prediction.Predict.future(request("x"))
        connection = rest.send("POST", "/v1/models/toy:predict", json.dumps(columns()))
        until(lambda: engine.jobs == 2)
        stopping = threading.Thread(target=_stop, args=(server, 0.2))
        stopping.start()
        assert call.exception(LONG).code() == CODE.UNAVAILABLE
        assert connection.getresponse().status == 503  # although the model still computes
        engine.gate.set()
        stopping.join(LONG)


# The beginning


def test_a_taken_port_is_named(tmp_path, capfd):
    add_version(tmp_path, 1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for options in ({"grpc_port": port, "rest_port": 0}, {"grpc_port": 0, "rest_port": port}):
            server = Server(Models(tmp_path, load=lambda path: Engine()), ServerOptions(**options))
            with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}: another"), running(server):
                pass
    assert "add_port" not in capfd.readouterr().err


def test_certificates_that_are_none_are_named(tmp_path):
    (tmp_path / "cert.pem").write_text("nonsense")
    for options, kind, message in (
        ({"tls_cert": tmp_path / "cert.pem", "tls_key": TLS / "key.pem"}, OSError, "are not a PEM certificate"),
        ({"tls_cert": tmp_path / "missing.pem", "tls_key": TLS / "key.pem"}, OSError, "cannot be read"),
        ({"tls_cert": TLS / "cert.pem"}, ValueError, "must be given together"),
    ):
        with pytest.raises(kind, match=message), served(Engine(), **options):
            pass


def test_a_model_that_cannot_be_loaded_is_an_error_and_leaves_no_port_open():
    def load(path):
        raise ServerError("DATA_LOSS", "variables are damaged")

    with pytest.raises(ServerError, match="variables are damaged"), served(Engine(), load=load):
        pass


def test_ports_answer_while_models_load(tmp_path):
    add_version(tmp_path, 1)
    loading = threading.Event()

    def load(path):
        assert loading.wait(LONG)
        return Engine()

    server = Server(Models(tmp_path, load=load), ServerOptions(grpc_port=0, rest_port=0))
    with ThreadPoolExecutor(1) as thread:

        def run():
            with running(server):
                finish.wait(LONG)

        finish = threading.Event()
        done = thread.submit(run)
        try:
            until(lambda: server.rest_port)
            rest = Rest(server)
            until(lambda: _is_open(server.rest_port))
            assert rest.ask("GET", "/healthz").status == 503
            assert Rpc(server).health.Check(health_pb2.HealthCheckRequest(), timeout=LONG).status == NOT_SERVING
            until(lambda: rest.ask("GET", "/v1/models/toy").status == 200)
            assert rest.ask("GET", "/v1/models/toy").json["model_version_status"][0]["state"] == "LOADING"
            assert rest.predict(columns()).status == 503
            loading.set()
            until(lambda: rest.ask("GET", "/healthz").status == 200)
        finally:
            loading.set()
            finish.set()
        done.result(LONG)


def _is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


# Meanwhile


def test_a_new_version_takes_over_without_losing_a_request(tmp_path):
    engines = {1: Engine(1), 2: Engine(2)}
    add_version(tmp_path, 1)
    models = Models(tmp_path, poll_seconds=0.02, load=lambda path: engines[int(path.name)])
    server = Server(models, ServerOptions(grpc_port=0, rest_port=0))
    with running(server), ThreadPoolExecutor(4) as clients:
        rpc, stop = Rpc(server), threading.Event()

        def ask(seed):
            versions = []
            while not stop.is_set() or versions[-1] != 2:
                response = rpc.prediction.Predict(request("x", seed=[seed]), timeout=LONG)
                assert response.outputs["png_bytes"].string_val[0] == picture(seed)
                versions.append(response.model_spec.version.value)
            return versions

        asking = [clients.submit(ask, seed) for seed in range(4)]
        until(lambda: engines[1].jobs > 8)
        add_version(tmp_path, 2)
        until(lambda: engines[2].jobs > 8)
        stop.set()
        for one in asking:
            versions = one.result(LONG)
            assert versions == sorted(versions) and versions[0] == 1 and versions[-1] == 2


def test_many_clients_of_both_protocols_get_their_own_pictures():
    with served(Engine()) as server, ThreadPoolExecutor(16) as clients:
        rpc, rest = Rpc(server), Rest(server)

        def ask(seed):
            if seed % 2:
                return rpc.prediction.Predict(request("x", seed=[seed]), timeout=LONG).outputs["png_bytes"].string_val[0]
            return base64.b64decode(rest.predict(columns(seed=[seed])).json["outputs"]["png_bytes"][0]["b64"])

        assert list(clients.map(ask, range(48))) == [picture(seed) for seed in range(48)]


class Infinite(Engine):
    """An engine whose pictures are not finite, as in float16 those of some models."""

    def start(self, rows):
        job = super().start(rows)
        job.results = lambda: [ServerError("INTERNAL", not_finite("latents", "float16"))] * len(rows)
        return job


def test_pictures_that_are_not_finite_are_the_servers_error_in_both_protocols():
    with served(Infinite()) as server:
        failed, reply = error(Rpc(server).prediction.Predict, request("x")), Rest(server).predict(columns())
        assert (failed.code(), reply.status) == (CODE.INTERNAL, 500)
        assert failed.details() == reply.error == not_finite("latents", "float16")


# Nonsense

JSON = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats() | some.text(),
    lambda inner: (
        some.lists(inner, max_size=4)
        | some.dictionaries(some.sampled_from(["b64", "prompt", "seed", "width", "x"]) | some.text(), inner, max_size=4)
    ),
    max_leaves=12,
)
DOCUMENTS = some.fixed_dictionaries(
    {"signature_name": some.sampled_from(["text_to_png", "text_to_image", "encode"]) | JSON},
    optional={"inputs": some.just(columns()["inputs"]) | JSON, "instances": some.lists(JSON, max_size=3) | JSON},
)
FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)


@pytest.fixture(scope="module")
def server():
    with served(Engine()) as server:
        yield server


@FEW
@given(some.binary(max_size=200) | DOCUMENTS.map(json.dumps).map(str.encode))
def test_no_body_makes_the_server_fail_or_hang(server, body):
    reply = Rest(server).predict(body)
    assert reply.status in (200, 400), reply.body
    assert reply.status == 200 or reply.error


@FEW
@given(JSON, some.sampled_from(list(columns()["inputs"])))
def test_no_value_of_an_input_makes_the_server_fail(server, value, name):
    document = columns()
    document["inputs"][name] = value
    assert Rest(server).predict(document).status in (200, 400)


@FEW
@given(some.binary(max_size=100), some.lists(some.integers(-2, 2**62), max_size=4), some.integers(0, 30))
def test_no_tensor_makes_the_server_fail(server, content, shape, dtype):
    sent = request("x")
    sent.inputs["seed"].dtype, sent.inputs["seed"].tensor_content = dtype, content
    for side in shape:
        sent.inputs["seed"].tensor_shape.dim.add().size = side
    rpc = Rpc(server, channel=_channel(server))
    try:
        rpc.prediction.Predict(sent, timeout=LONG)
    except grpc.RpcError as failed:
        assert failed.code() == CODE.INVALID_ARGUMENT


_CHANNELS: dict[int, grpc.Channel] = {}


def _channel(server) -> grpc.Channel:
    return _CHANNELS.setdefault(server.grpc_port, grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}"))


@FEW
@given(some.binary(min_size=1, max_size=300))
def test_bytes_that_are_no_message_leave_the_server_up(server, message):
    call = _channel(server).unary_unary("/tensorflow.serving.PredictionService/Predict")
    with pytest.raises(grpc.RpcError) as caught:
        call(message, timeout=LONG)
    assert caught.value.code() in (CODE.INTERNAL, CODE.INVALID_ARGUMENT, CODE.NOT_FOUND)  # INTERNAL is gRPC's word for it


def test_random_connections_leave_the_server_up(server):
    random = np.random.default_rng(0)
    for port in (server.rest_port, server.grpc_port):
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", port), timeout=LONG) as raw:
                raw.sendall(random.bytes(200))
    assert Rest(server).predict(columns()).status == 200 and Rpc(server).predict("x")
