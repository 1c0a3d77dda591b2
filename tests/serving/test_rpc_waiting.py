import itertools
import json
import os
import queue
import threading
import urllib.request

import grpc
import pytest
from google.protobuf.struct_pb2 import Struct
from google.protobuf.wrappers_pb2 import StringValue
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from patience import LONG, until
from stand_in import Engine, add_version, cancelled, held, picture, served
from tensorflow_serving.apis import model_management_pb2
from test_rpc import CODE, Client, error, request

from tfsd.serving.server.rpc import MAX_RPCS, MAX_STREAMS


@pytest.fixture(scope="module")
def client(server):
    return Client(server)


def test_a_deadline_stops_the_steps(client, engine, server):
    with held(engine):
        jobs, steps = engine.jobs, engine.steps
        metadata = [("x-request-id", "late")]
        call = client.prediction.Predict.future(request("x", num_steps=[500]), timeout=2.0, metadata=metadata)
        until(lambda: engine.jobs == jobs + 1)
        assert call.exception(LONG).code() == CODE.DEADLINE_EXCEEDED
        until(lambda: server.scheduler.progress["late"].ended)
    assert client.predict("y")
    assert engine.steps - steps < 250


def test_a_client_that_goes_frees_its_place(client, engine, server):
    with held(engine):
        steps, jobs, before = engine.steps, engine.jobs, cancelled(server)
        call = client.prediction.Predict.future(request("x", num_steps=[500]))
        until(lambda: engine.jobs == jobs + 1)
        call.cancel()
        with pytest.raises(grpc.FutureCancelledError):
            call.result()
        until(lambda: cancelled(server) == before + 1)
    until(lambda: not server.scheduler.busy)
    assert engine.steps - steps < 250


def test_a_full_queue_refuses_at_once(client, engine, server):
    with held(engine):
        jobs, calls = engine.jobs, []
        for i in range(10):  # 2 run, 8 wait
            until(lambda: engine.jobs == jobs + min(len(calls), 2))
            calls.append(client.prediction.Predict.future(request("x", seed=[i])))
        until(lambda: server.scheduler.queue_rows == 8)
        failed = error(client.prediction.Predict, request("y"))
        assert failed.code() == CODE.RESOURCE_EXHAUSTED
    assert [call.result(LONG).outputs["png_bytes"].string_val[0] for call in calls] == [picture(i) for i in range(10)]


def watching(client):
    return client.channel.unary_stream("/tfsd.Progress/Watch", StringValue.SerializeToString, Struct.FromString)


def test_progress_is_told_while_a_picture_is_made(client, engine, server):
    seen = []
    with held(engine):
        call = client.prediction.Predict.future(request("x", num_steps=[3]), metadata=[("x-request-id", "my-id")])
        until(lambda: "my-id" in server.scheduler.progress)
        watch = watching(client)(StringValue(value="my-id"), timeout=LONG)
        watched = threading.Thread(target=lambda: seen.extend(map(dict, watch)))
        watched.start()
        until(lambda: any(one["state"] == "running" for one in seen))
    assert call.result(LONG)
    watched.join(LONG)
    assert seen[-1] == {"state": "done", "done": 3, "steps": 3, "position": 0}
    assert [one["done"] for one in seen] == sorted(one["done"] for one in seen)


def test_progress_of_what_nobody_asked_is_not_found_and_nobody_waits_for_it(client):
    failed = error(lambda **options: list(watching(client)(StringValue(value="nothing"), **options)), timeout=LONG)
    assert failed.code() == CODE.NOT_FOUND


@pytest.mark.parametrize("kind", ["progress", "health", "reflection"])
def test_watchers_leave_room_for_pictures(monkeypatch, kind):
    monkeypatch.setattr("tfsd.serving.server.rpc.MAX_RPCS", 8)
    monkeypatch.setattr("tfsd.serving.server.rpc.MAX_STREAMS", dict.fromkeys(MAX_STREAMS, 4))
    engine, more = Engine(), queue.Queue()

    def watch():
        if kind == "progress":
            return watching(client)(StringValue(value="my-id"), timeout=LONG)
        if kind == "health":
            return client.health.Watch(health_pb2.HealthCheckRequest(), timeout=LONG)
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        requests = itertools.chain([asked], iter(more.get, None))
        return reflection_pb2_grpc.ServerReflectionStub(client.channel).ServerReflectionInfo(requests, timeout=LONG)

    with served(engine) as server:
        client = Client(server)
        with held(engine):
            call = client.prediction.Predict.future(request("x"), metadata=[("x-request-id", "my-id")])
            until(lambda: "my-id" in server.scheduler.progress)
            watches = [watch() for _ in range(4)]
            for one in watches:
                next(one)
            assert error(lambda **options: next(watch())).code() == CODE.RESOURCE_EXHAUSTED
            if kind != "health":  # load balancers must learn of the server's health whoever watches what
                assert next(client.health.Watch(health_pb2.HealthCheckRequest(), timeout=LONG))
        assert call.result(LONG) and client.predict("y")
        watches[0].cancel()
        until(lambda: _answers(watch))
        for one in watches:
            one.cancel()
            more.put(None)


def test_all_watchers_together_leave_room_for_pictures():
    assert sum(MAX_STREAMS.values()) <= MAX_RPCS / 2


def _answers(watch) -> bool:
    try:
        return next(watch()) is not None
    except grpc.RpcError:
        return False


def test_reloads_that_wait_take_no_thread_from_requests_nor_from_the_end_of_the_process():
    engines, go, loaders = {1: Engine(1), 2: Engine(2)}, threading.Event(), []

    def load(path):
        loaders.append(threading.current_thread())
        assert path.name == "1" or go.wait(LONG)
        return engines[int(path.name)]

    with served(engines[1], load=load) as server:
        client, folder = Client(server), server.models.folders()[0].parent
        add_version(folder.parent, 2)
        asked = model_management_pb2.ReloadConfigRequest()
        asked.config.model_config_list.config.add(name="toy", base_path=str(folder), model_platform="tensorflow")
        reloads = [client.models.HandleReloadConfigRequest.future(asked, timeout=LONG) for _ in range((os.cpu_count() or 1) + 8)]
        try:
            until(lambda: len(loaders) == 2)
            assert client.predict("x")  # comes after all reloads on their connection
            body = json.dumps({"instances": [{"prompt": "x"}]}) + 70_000 * " "  # large ones are read in a thread
            sent = urllib.request.Request(f"http://127.0.0.1:{server.rest_port}/v1/models/toy:predict", body.encode())
            assert json.load(urllib.request.urlopen(sent, timeout=60))["predictions"]
        finally:
            go.set()
        for one in reloads:
            one.result(LONG)
    assert all(thread.daemon for thread in loaders)
