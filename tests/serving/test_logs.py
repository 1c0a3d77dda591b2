"""What clients send cannot forge lines, steer a terminal, or fill memory with names."""

import json
import logging

import pytest
from stand_in import Engine, served
from test_rest import Client as Rest
from test_rest import rows
from test_rpc import Client as Rpc
from test_rpc import error, request

from tfsd.serving.server.logs import JsonFormatter, TextFormatter

FORGED = "x\n2026-01-01T00:00:00.000Z INFO    request model=toy code=OK"
NASTY = [FORGED, "x\r\x1b[2J\x1b]0;title\x07", "a\x00b\x9b31m", "\u2028\u202e\u2066\ud83c", 'x code="OK"', "x y", ""]


@pytest.fixture(scope="module")
def server():
    with served(Engine()) as server:
        yield server


def record(message="request", error=None, **fields):
    info = (type(error), error, None) if error else None
    made = logging.LogRecord("tfsd.serving", logging.INFO, __file__, 1, message, (), info)
    made.fields = fields
    return made


@pytest.mark.parametrize("text", NASTY)
@pytest.mark.parametrize("form", [TextFormatter(), JsonFormatter()])
def test_a_line_stays_one_line_that_steers_no_terminal(form, text):
    for made in (record(model=text, code="NOT_FOUND"), record(message=text)):
        line = form.format(made)
        assert line.isprintable()
    trace = form.format(record(error=ValueError(text))).split("\n")
    assert all(line.isprintable() for line in trace) and all(line.startswith("    ") for line in trace[1:])


@pytest.mark.parametrize("text", NASTY)
def test_a_field_of_a_text_line_can_be_told_from_the_others(text):
    line = TextFormatter().format(record(model=text, code="NOT_FOUND"))
    at = line.index(" model=") + len(" model=")
    if line[at] == '"':
        value, end = json.JSONDecoder().raw_decode(line[at:])
        assert (value, line[at + end :]) == (text, " code=NOT_FOUND")
    else:
        assert line[at:] == f"{text} code=NOT_FOUND"


def test_names_of_models_that_clients_invent_reach_the_log_escaped(server, caplog):
    caplog.set_level(logging.INFO, "tfsd.serving")
    error(Rpc(server).prediction.Predict, request("x", model=FORGED))
    Rest(server).predict(rows({}), "/v1/models/x%1B%5B2J:predict")
    found = [one for one in caplog.records if one.getMessage() == "request"]
    assert [one.fields["model"] for one in found] == [FORGED, "x\x1b[2J"]
    assert all(TextFormatter().format(one).isprintable() for one in found)


def test_names_that_clients_invent_make_no_new_counters(server):
    rpc, rest = Rpc(server), Rest(server)

    def invent(i: int):
        error(rpc.prediction.Predict, request("x", model=f"model{i}"))
        error(rpc.prediction.Predict, request("x", signature=f"signature{i}"))
        rest.predict(rows({}, signature=f"signature{i}"), f"/v1/models/model{i}/labels/label{i}:predict")
        rest.predict(rows({}, signature=f"signature{i}"), **{"X-Request-ID": f"id{i}", "Host": "localhost"})
        rest.ask("GET", f"/path{i}")

    def counters():
        return sum(len(family.samples) for family in server.metrics.registry.collect())

    invent(0)
    before = counters()
    for i in range(1, 5):
        invent(i)
    assert counters() == before
    text = rest.ask("GET", "/metrics").body.decode()
    assert not any(word in text for word in ("model1", "signature1", "label1", "id1", "path1"))
