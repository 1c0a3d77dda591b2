"""Limits of the HTTP side: sizes, times, how much at once, and requests that servers could understand differently."""

import gzip
import http.client
import json
import socket

import pytest
from patience import LONG, until
from stand_in import Engine, cancelled, held, served
from test_rest import PREDICT, Client, Reply, columns, rows


@pytest.fixture(scope="module")
def client(server):
    return Client(server)


def test_a_prompt_of_10_mb_is_refused_before_it_is_read(client):
    reply = client.predict(rows({"prompt": "x" * 10**7}))
    assert reply.status == 413 and "4194304 bytes" in reply.error


def test_a_body_without_a_length_is_limited_too(client):
    reply = client.ask("POST", PREDICT, (b"x" * 2**16 for _ in range(100)))
    assert reply.status == 413


BODIES = {  # name -> body, its encoding, the answer's status; made when a test runs, as gzip writes the time into its header
    "fits": (lambda: gzip.compress(json.dumps(rows({})).encode()), "gzip", 200),
    "too large": (lambda: gzip.compress(b" " * 2**25), "gzip", 413),
    "cut short": (lambda: gzip.compress(b"{}")[:-4], "gzip", 400),
    "not compressed": (lambda: b"{}", "gzip", 400),
    "other encoding": (lambda: b"{}", "br", 400),
}


@pytest.mark.parametrize("name", BODIES)
def test_compressed_bodies_are_limited_by_what_is_in_them(client, name):
    make, encoding, status = BODIES[name]
    assert client.predict(make(), **{"Content-Encoding": encoding}).status == status


@pytest.mark.parametrize("sent", [b"", b"POST " + PREDICT.encode() + b" HTTP/1.1\r\nHost: localhost\r\nX: "])
def test_a_connection_that_sends_no_whole_request_is_closed(monkeypatch, sent):
    monkeypatch.setattr("tfsd.serving.server.server.IDLE_SECONDS", 0.5)
    with served(Engine()) as server, socket.create_connection(("127.0.0.1", server.rest_port), LONG) as slow:
        slow.sendall(sent)
        assert slow.recv(1000) == b""


def test_a_body_that_does_not_arrive_is_given_up(monkeypatch):
    monkeypatch.setattr("tfsd.serving.server.rest.BODY_SECONDS", 0.5)
    with served(Engine()) as server, socket.create_connection(("127.0.0.1", server.rest_port), LONG) as slow:
        slow.sendall(b"POST " + PREDICT.encode() + b" HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\n{")
        assert slow.recv(1000).startswith(b"HTTP/1.1 504 ")


def test_a_client_that_leaves_within_its_body_fills_no_log(caplog):
    with served(Engine()) as server:
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", server.rest_port), LONG) as raw:
                raw.sendall(b"POST " + PREDICT.encode() + b" HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\n{")
        assert Client(server).predict(rows({})).status == 200
    assert "Traceback" not in caplog.text and "a request failed" not in caplog.text


def test_bodies_that_arrive_at_once_are_bounded(monkeypatch):
    monkeypatch.setattr("tfsd.serving.server.rest.MAX_REQUESTS", 1)
    head = b"POST " + PREDICT.encode() + b" HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\n{"
    with served(Engine()) as server:
        with socket.create_connection(("127.0.0.1", server.rest_port), LONG) as slow:
            slow.sendall(head)
            until(lambda: Client(server).predict(rows({})).status == 429)
        until(lambda: Client(server).predict(rows({})).status == 200)


@pytest.mark.parametrize(
    "lines",
    [
        b"Host: localhost\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
        b"Host: localhost\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        b"Host: localhost\r\nContent-Length: +2\r\n\r\n{}",
        b"Host: localhost\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        b"Host: localhost\r\nHost: other\r\nContent-Length: 2\r\n\r\n{}",
        b"Host: localhost\r\nX: " + b"a" * 10_000 + b"\r\n\r\n",
        b"Host: localhost\r\nBad Name: x\r\n\r\n",
    ],
)
def test_requests_that_servers_could_understand_differently_are_refused(server, lines):
    with socket.create_connection(("127.0.0.1", server.rest_port), LONG) as raw:
        raw.sendall(b"POST " + PREDICT.encode() + b" HTTP/1.1\r\n" + lines)
        answer = raw.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.0 400 ") and answer.count(b"HTTP/1.") == 1


def test_answers_do_not_tell_the_versions_of_the_server(client):
    for path in ("/", "/metrics", "/nothing"):
        assert client.ask("GET", path).headers["Server"] == "tfsd"


NO_HTTP = {  # name -> what is sent, the answer's status
    "header": (b"GET / HTTP/1.1\r\nHost: localhost\r\nBad Name: x\r\n\r\n", 400),
    "long header": (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 10_000 + b"\r\n\r\n", 400),
    "version": (b"GET / HTTP/9.1\r\n\r\n", 400),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "address": (b"GET http://[ HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", 400),
    "chunk": (b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
    "expectation": (b"GET / HTTP/1.1\r\nHost: localhost\r\nExpect: x\r\nConnection: close\r\n\r\n", 417),
    "tunnel": (b"CONNECT a:1 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 404),
}


@pytest.mark.parametrize("name", NO_HTTP)
def test_answers_to_what_is_no_http_tell_no_versions(server, name):
    sent, status = NO_HTTP[name]
    with socket.create_connection(("127.0.0.1", server.rest_port), LONG) as raw:
        raw.sendall(sent)
        reply = http.client.HTTPResponse(raw)
        reply.begin()
        body = reply.read()
    told = f"{reply.headers}{body}".lower()
    assert reply.status == status and reply.headers["Server"] == "tfsd"
    assert not any(word in told for word in ("python", "aiohttp", "traceback")), told
    assert reply.headers["X-Content-Type-Options"] == "nosniff"
    if status != 417:  # aiohttp's own text
        assert len(json.loads(body)["error"]) < 300


def test_a_timeout_stops_the_steps():
    engine = Engine()
    with served(engine, rest_timeout=0.3) as server, held(engine):
        reply = Client(server).predict(columns(num_steps=[500]))
        assert reply.status == 504 and "deadline" in reply.error
        engine.gate.set()
        until(lambda: not server.scheduler.busy)
        assert engine.steps < 250


def test_a_full_queue_refuses_at_once(client, engine, server):
    with held(engine):
        jobs, connections = engine.jobs, []
        for i in range(10):  # 2 run, 8 wait
            until(lambda: engine.jobs == jobs + min(len(connections), 2))
            connections.append(client.send("POST", PREDICT, json.dumps(columns(seed=[i]))))
        until(lambda: server.scheduler.queue_rows == 8)
        assert client.predict(columns()).status == 429
    assert [Reply(connection.getresponse()).status for connection in connections] == [200] * 10


def test_a_client_that_goes_frees_its_place(client, engine, server):
    with held(engine):
        steps, jobs, before = engine.steps, engine.jobs, cancelled(server)
        connection = client.send("POST", PREDICT, json.dumps(columns(num_steps=[500])))
        until(lambda: engine.jobs == jobs + 1)
        connection.close()
        until(lambda: cancelled(server) == before + 1)
    until(lambda: not server.scheduler.busy)
    assert engine.steps - steps < 250
