"""Words that a model never learned: answers name them, in both protocols, and the log does not."""

import json
import logging
import warnings

import pytest
from patience import LONG
from scripted import draw_async, draw_sync
from stand_in import Engine, picture, served
from test_rest import Client as Rest
from test_rest import columns, rows
from test_rpc import Client as Rpc
from test_rpc import request

from tfsd.errors import CheckpointError
from tfsd.serving.server.words import Words
from tfsd.serving.wire.errors import WARNING_KEY
from tfsd.text import UnknownWordsWarning

KEPT = (320, 736, 1565)  # a, red, star


@pytest.fixture(scope="module")
def server():
    engine = Engine()
    engine.words = Words(KEPT)
    with served(engine) as server:
        yield server


def header(reply):
    return json.loads(reply.headers.get("X-Tfsd-Warning", "null"))


def test_rest_tells_them_in_a_header(server):
    reply = Rest(server).predict(rows({"prompt": "a red dög"}, {"prompt": "a starr", "negative_prompt": "fog"}))
    assert reply.status == 200 and len(reply.json["predictions"]) == 2
    assert header(reply) == (
        "prompt has words that the model never learned: 'dög', 'starr' (did you mean 'star'?). It knows these objects: star. "
        "negative_prompt has words that the model never learned: 'fog'. It knows these objects: star."
    )
    assert header(Rest(server).predict(rows({"prompt": "A red star!"}))) is None


def test_no_word_breaks_the_header(server):
    reply = Rest(server).predict(columns(prompt=["猫 \u202e\x1b \"'\\ " + "x" * 4000]))
    assert reply.status == 200 and "猫" in header(reply) and len(reply.headers["X-Tfsd-Warning"]) < 2000


def test_grpc_tells_them_at_the_end(server):
    answer, call = Rpc(server).prediction.Predict.with_call(request("a red dog", seed=[7]), timeout=LONG)
    assert answer.outputs["png_bytes"].string_val[0] == picture(7)
    assert b"'dog'" in dict(call.trailing_metadata())[WARNING_KEY]


@pytest.mark.parametrize("draw", [draw_sync, draw_async])
def test_clients_warn(server, draw):
    address = f"127.0.0.1:{server.grpc_port}"
    with pytest.warns(UnknownWordsWarning, match="'dog'") as told:
        draw(address, "a red dog", 5, settings={"model": "toy", "max_batch": 1})
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnknownWordsWarning)
        draw(address, "a red star", settings={"model": "toy"})


def test_the_log_counts_them_and_names_none(server, caplog):
    caplog.set_level(logging.INFO, "tfsd.serving")
    Rest(server).predict(rows({"prompt": "a secret red dog"}))
    (line,) = (one.fields for one in caplog.records if one.getMessage() == "request")
    assert line["unknown_words"] == 2 and "secret" not in str(line) + caplog.text


def test_a_model_with_all_words_knows_all():
    assert Words(()).unknown({"prompt": [b"zxcvbnm"]}) == {} and Words(()).message({}) == ""


@pytest.mark.parametrize("kept", [5, ["x"], [1, 1], [-1], [10**9], [None]])
def test_a_damaged_manifest_is_named(kept):
    with pytest.raises(CheckpointError, match="kept_tokens"):
        Words(kept)
