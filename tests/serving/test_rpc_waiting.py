import threading
import time

import grpc
import pytest
from google.protobuf.struct_pb2 import Struct
from google.protobuf.wrappers_pb2 import StringValue
from stand_in import Engine, held, picture, served, until
from test_rpc import CODE, Client, error, request


@pytest.fixture(scope="module")
def engine():
    return Engine()


@pytest.fixture(scope="module")
def server(engine):
    with served(engine, max_queue_rows=8) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    return Client(server)


def test_a_deadline_stops_the_steps(client, engine):
    with held(engine):
        jobs = engine.jobs
        begin = time.monotonic()
        failed = error(client.prediction.Predict, request("x", num_steps=[500]), timeout=0.3)
        assert failed.code() == CODE.DEADLINE_EXCEEDED and time.monotonic() - begin < 3
        until(lambda: engine.jobs == jobs + 1)
        steps = engine.steps
    assert client.predict("y")
    assert engine.steps - steps < 250


def test_a_client_that_goes_frees_its_place(client, engine, server):
    with held(engine):
        steps = engine.steps
        call = client.prediction.Predict.future(request("x", num_steps=[500]))
        until(lambda: server.scheduler.busy)
        call.cancel()
        with pytest.raises(grpc.FutureCancelledError):
            call.result()
        time.sleep(0.2)
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
    assert [call.result(20).outputs["png_bytes"].string_val[0] for call in calls] == [picture(i) for i in range(10)]


def test_progress_is_told_while_a_picture_is_made(client, engine):
    watch = client.channel.unary_stream("/tfsd.Progress/Watch", StringValue.SerializeToString, Struct.FromString)
    seen = []
    with held(engine):
        watched = threading.Thread(target=lambda: seen.extend(map(dict, watch(StringValue(value="my-id"), timeout=20))))
        watched.start()  # before the request: it waits for it
        call = client.prediction.Predict.future(request("x", num_steps=[3]), metadata=[("x-request-id", "my-id")])
        until(lambda: any(one["state"] == "running" for one in seen))
    assert call.result(20)
    watched.join(20)
    assert seen[-1] == {"state": "done", "done": 3, "steps": 3, "position": 0}
    assert [one["done"] for one in seen] == sorted(one["done"] for one in seen)


def test_progress_of_what_nobody_asked_is_not_found(client, monkeypatch):
    monkeypatch.setattr("serving.rpc.WATCH_SECONDS", 0.1)
    watch = client.channel.unary_stream("/tfsd.Progress/Watch", StringValue.SerializeToString, Struct.FromString)
    with pytest.raises(grpc.RpcError) as caught:
        list(watch(StringValue(value="nothing"), timeout=20))
    assert caught.value.code() == CODE.NOT_FOUND
