"""Both clients against the embedded server: with an engine that can be held, then with an exported model."""

import io

import numpy as np
import pytest
from google.protobuf.struct_pb2 import Struct
from patience import LONG, until
from PIL import Image
from scripted import draw_async, draw_sync
from stand_in import TLS, Engine, held, picture, served

from tfsd import Cancelled
from tfsd.progress import Progress
from tfsd.serving.client.sync import Client
from tfsd.serving.client.tracker import Tracker
from tfsd.serving.server.models import Models
from tfsd.serving.server.server import Server, ServerOptions, running
from tfsd.serving.wire.errors import ServerError

TOY = {"model": "toy"}


@pytest.fixture(params=[draw_sync, draw_async], ids=["sync", "async"])
def draw(request):
    """Draws with one of the clients."""
    return request.param


def address(server) -> str:
    return f"127.0.0.1:{server.grpc_port}"


def test_pictures_are_the_files_of_the_engine(draw):
    with served(Engine(version=5)) as server:
        assert draw(address(server), ["a", "b"], seed=[3, 4], method="text_to_png", settings=TOY) == [picture(3), picture(4)]
        images = draw(address(server), "a", 10, seed=7, settings=TOY)
    assert images.shape == (10, 8, 8, 3) and (np.asarray(images) == 7).all()
    assert {recipe["model_version"] for recipe in images.recipes} == {5}
    assert {recipe["num_steps"] for recipe in images.recipes} == {4}  # the engine's own


def test_progress_comes_while_the_server_draws(draw):
    heard = []
    with served(Engine()) as server:
        draw(address(server), "a", 2, num_steps=100, callback=lambda *told: heard.append(told), settings=TOY)
    assert heard[-1] == (200, 200)
    assert heard == sorted(heard) and len(heard) >= 2


def test_what_is_told_after_the_answer_changes_nothing():
    heard, late = [], Struct()
    late.update({"state": "running", "done": 1, "steps": 100})
    with Tracker(Progress(False, lambda *told: heard.append(told)), [100, 100]) as tracker:
        for call in range(2):
            tracker.finished(call)
        tracker.heard(1, late.SerializeToString())
        tracker.tell()
    assert heard == [(200, 200)]


def test_callback_stops_the_engine_half_way(draw):
    engine = Engine()
    with served(engine) as server:
        with pytest.raises(Cancelled):
            draw(address(server), "a", num_steps=1000, callback=lambda done, steps: done == 0, settings=TOY)
        until(lambda: not server.scheduler.busy)
    assert 0 < engine.steps < 1000


def test_deadline_of_the_client_stops_the_engine(draw):
    engine = Engine()
    with served(engine) as server:
        with pytest.raises(TimeoutError):
            draw(address(server), "a", num_steps=1000, timeout=0.5, settings=TOY)
        until(lambda: not server.scheduler.busy)
    assert engine.steps < 1000


def test_full_queue_is_told_at_once_and_not_tried_again(draw):
    engine = Engine()
    with served(engine, max_queue_rows=1) as server, held(engine):
        with pytest.raises(ServerError) as caught:
            draw(address(server), "a", 6, settings=TOY | {"max_batch": 1, "max_calls": 6, "timeout": LONG})
        assert caught.value.code == "RESOURCE_EXHAUSTED"


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"prompt": "x" * 5000}, ValueError, "at most 4096 bytes"),
        ({"settings": {"model": "missing"}}, ServerError, r"NOT_FOUND: .*Latest\(missing\)\. Models of this server: toy\."),
        ({"settings": {"model": "toy", "version": 9}}, ServerError, "NOT_FOUND"),
        ({"settings": {"model": "toy", "signature": "encode"}}, ServerError, "no output png_bytes"),
        ({"settings": {"model": "toy", "signature": "nothing"}}, ServerError, "no signature 'nothing'"),
    ],
    ids=["prompt", "model", "version", "encode", "signature"],
)
def test_refusals_of_the_server_come_out(arguments, error, message, draw):
    with served(Engine()) as server, pytest.raises(error, match=message):
        draw(address(server), **({"prompt": "a", "settings": TOY} | arguments))


def test_port_for_http_is_told_from_that_for_grpc(draw):
    with served(Engine()) as server, pytest.raises(ServerError, match="does not speak gRPC. Give the port"):
        draw(f"127.0.0.1:{server.rest_port}", "a", settings=TOY)


def test_token_opens_the_server_and_its_absence_does_not(draw):
    with served(Engine(), token="s3cret") as server:
        assert len(draw(address(server), "a", settings=TOY | {"token": "s3cret"})) == 1
        for settings in (TOY, TOY | {"token": "other"}):
            with pytest.raises(ServerError) as caught:
                draw(address(server), "a", settings=settings)
            assert caught.value.code == "UNAUTHENTICATED"


def test_tls_trusts_the_authority_that_was_given_and_no_other(draw):
    with served(Engine(), tls_cert=TLS / "cert.pem", tls_key=TLS / "key.pem") as server:
        there = f"localhost:{server.grpc_port}"
        assert len(draw(there, "a", settings=TOY | {"tls": TLS / "cert.pem"})) == 1
        for tls in (True, None):
            with pytest.raises(ServerError) as caught:
                draw(there, "a", settings=TOY | {"tls": tls, "retries": 0})
            assert caught.value.code == "UNAVAILABLE"


@pytest.mark.slow
def test_exported_model_draws_what_its_model_folder_draws(toy_export, toy_folder):
    """Exports compute each row alone, so the pictures made here are made one by one as well."""
    from tfsd import load

    options = {"negative_prompt": "red", "num_steps": 3, "guidance_scale": 2.5, "sampler": "dpmpp_2m"}
    local = load(toy_folder)
    here = [local.text_to_image("a red star", seed=7, index=i, **options) for i in range(3)]
    with running(Server(Models(toy_export), ServerOptions(grpc_port=0, rest_port=0))) as server:
        with Client(address(server), model="toy", max_batch=2) as client:
            there = client.text_to_image("a red star", 3, seed=7, **options)
            files = client.text_to_png("a red star", 3, seed=7, **options)
    for i, one in enumerate(here):
        np.testing.assert_array_equal(there[i], one[0])
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(files[i]))), one[0])
        both = there.recipes[i].keys() & one.recipes[0].keys() - {"model"}  # a folder here, a name there
        assert {"prompt", "seed", "index", "num_steps", "guidance_scale", "sampler", "height", "width"} <= both
        assert {name: there.recipes[i][name] for name in both} == {name: one.recipes[0][name] for name in both}
