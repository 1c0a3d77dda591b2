"""Both clients against a server that fails as it is told: what is sent, what comes back, what errors become."""

import inspect
import sys
import threading
import warnings

import numpy as np
import pytest
from google.protobuf.struct_pb2 import Struct
from patience import LONG, until
from scripted import (
    DEFAULTS,
    Scripted,
    answers,
    draw_async,
    draw_sync,
    fails,
    hangs,
    picture,
    png,
    serving,
    slow,
    waits,
)

from tfsd import Cancelled, Images, StableDiffusion
from tfsd.images import read_recipe
from tfsd.serving.client.aio import AsyncClient
from tfsd.serving.client.sync import Client
from tfsd.serving.wire.errors import ServerError
from tfsd.text import PromptTruncationWarning

FAST = {"retries": 3, "timeout": LONG}


@pytest.fixture(params=[draw_sync, draw_async], ids=["sync", "async"])
def draw(request):
    """Draws with one of the clients."""
    return request.param


def test_all_methods_have_the_arguments_of_text_to_image_that_a_server_takes():
    fixed = {"eta", "on_long"}  # by the export
    wanted = [one for one in inspect.signature(StableDiffusion.text_to_image).parameters if one not in fixed] + ["timeout"]
    for kind in (Client, AsyncClient):
        for method in (kind.text_to_image, kind.text_to_png):
            assert list(inspect.signature(method).parameters) == wanted


def test_pictures_come_with_recipes_that_make_them_again(draw, tmp_path):
    servicer = Scripted()
    with serving(servicer) as address:
        images = draw(address, ["a red star", "a cat"], seed=[5, 6], negative_prompt="blue", index=2, num_steps=7)
    assert isinstance(images, Images) and images.seeds == [5, 6]
    np.testing.assert_array_equal(images[1], picture(6, 2))
    recipe = read_recipe(images.save(tmp_path / "x.png")[0])
    expected = DEFAULTS | {"prompt": "a red star", "negative_prompt": "blue", "seed": 5, "index": 2, "num_steps": 7}
    assert {name: recipe[name] for name in expected} == expected
    assert (recipe["model"], recipe["model_version"]) == ("tiny", 3)
    assert "tensorflow" not in recipe  # of this machine, which did not draw


def test_all_inputs_are_sent_with_one_row_per_picture(draw):
    servicer = Scripted()
    with serving(servicer) as address:
        draw(address, "a cat", 3, seed=-1, guidance_scale=[1, 2, 3], sampler="plms", height=16, settings={"model": "other"})
    inputs = {name: values.tolist() for name, values in servicer.seen[0].items()}
    assert inputs == {
        "prompt": [b"a cat"] * 3,
        "negative_prompt": [b""] * 3,
        "seed": [-1] * 3,
        "index": [0, 1, 2],
        "guidance_scale": [1.0, 2.0, 3.0],
        "num_steps": [4] * 3,
        "sampler": [b"pndm"] * 3,
        "height": [16] * 3,
        "width": [16] * 3,
    }
    assert (servicer.specs[0].name, servicer.specs[0].signature_name) == ("other", "text_to_png")
    assert not servicer.specs[0].HasField("version") and not servicer.specs[0].HasField("version_label")


def test_seed_is_drawn_once_for_all_pictures(draw):
    with serving(Scripted()) as address:
        first, second = draw(address, "a", 9), draw(address, "a")
    assert len(set(first.seeds)) == 1 and first.seeds[0] != second.seeds[0]


def test_files_of_the_server_come_untouched(draw):
    with serving(Scripted()) as address:
        assert draw(address, "a", 2, seed=1, method="text_to_png") == [png(picture(1, 0)), png(picture(1, 1))]


def test_large_batches_are_split_and_at_most_so_many_calls_run_at_once(draw):
    servicer = Scripted([slow] * 10)
    with serving(servicer) as address:
        images = draw(address, "a", 20, seed=1, settings={"max_batch": 2, "max_calls": 3})
    assert len(servicer.seen) == 10 and servicer.most_running == 3
    for i in range(20):
        np.testing.assert_array_equal(images[i], picture(1, i))


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"prompt": 5}, TypeError, "prompt must be"),
        ({"prompt": []}, ValueError, "prompt must hold"),
        ({"prompt": "\ud800"}, ValueError, r"half a surrogate pair, U\+D800"),
        ({"negative_prompt": "\udfff"}, ValueError, "negative_prompt must be Unicode"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"batch_size": 65}, ValueError, "batch_size"),
        ({"prompt": ["a"] * 33, "batch_size": 2}, ValueError, "at most 64 images"),
        ({"seed": 2**63}, ValueError, "seed"),
        ({"seed": [1, 2]}, ValueError, "seed must be one for all"),
        ({"num_steps": 0}, ValueError, "num_steps"),
        ({"num_steps": 2.5}, TypeError, "num_steps"),
        ({"guidance_scale": float("nan")}, ValueError, "guidance_scale"),
        ({"sampler": "dimm"}, ValueError, "Did you mean 'ddim'"),
        ({"height": 4096}, ValueError, "height"),
        ({"width": True}, TypeError, "width"),
        ({"index": -1}, ValueError, "index"),
        ({"callback": 3}, TypeError, "callback"),
        ({"timeout": 0}, ValueError, "timeout"),
        ({"timeout": "1"}, TypeError, "timeout"),
        ({"method": "text_to_png", "eta": 0.5}, TypeError, "eta"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_argument_is_named_before_anything_is_sent(arguments, error, message, draw):
    with pytest.raises(error, match=message):
        draw("127.0.0.1:1", **({"prompt": "a"} | arguments))  # where no server is


@pytest.mark.parametrize(
    "code, error",
    [
        ("INVALID_ARGUMENT", ValueError),
        ("DEADLINE_EXCEEDED", TimeoutError),
        ("CANCELLED", Cancelled),
        ("RESOURCE_EXHAUSTED", ServerError),
        ("NOT_FOUND", ServerError),
        ("INTERNAL", ServerError),
        ("UNAUTHENTICATED", ServerError),
        ("UNIMPLEMENTED", ServerError),
    ],
)
def test_status_becomes_an_exception_without_a_second_try(code, error, draw):
    servicer = Scripted([fails(code, "because of this")])
    with serving(servicer) as address, pytest.raises(error) as caught:
        draw(address, "a", settings=FAST)
    assert len(servicer.seen) == 1
    if error is ServerError:
        assert (caught.value.code, caught.value.message) == (code, "because of this")
    elif error is not TimeoutError:
        assert "because of this" in str(caught.value)


def test_unavailable_is_tried_again_and_the_picture_comes(draw):
    servicer = Scripted([fails("UNAVAILABLE")] * 3)
    with serving(servicer) as address:
        images = draw(address, "a", seed=3, settings=FAST)
    assert len(servicer.seen) == 4
    np.testing.assert_array_equal(images[0], picture(3, 0))


def test_unavailable_is_not_tried_more_often_than_allowed(draw):
    servicer = Scripted([fails("UNAVAILABLE", "full moon")] * 9)
    with serving(servicer) as address, pytest.raises(ServerError, match="full moon") as caught:
        draw(address, "a", settings={"retries": 2})
    assert caught.value.code == "UNAVAILABLE" and len(servicer.seen) == 3


def test_no_try_begins_after_the_deadline(draw):
    servicer = Scripted([fails("UNAVAILABLE")] * 99)
    with serving(servicer) as address, pytest.raises((ServerError, TimeoutError)):
        draw(address, "a", settings={"retries": 99}, timeout=4.0)
    assert 1 <= len(servicer.seen) <= 12 and all(0 < left <= 4.0 for left in servicer.remaining)
    assert servicer.remaining == sorted(servicer.remaining, reverse=True)  # all tries have one deadline in common


def test_server_that_is_not_there_is_named(draw):
    with pytest.raises(ServerError, match="No server can be reached at 127.0.0.1:1 ") as caught:
        draw("127.0.0.1:1", "a", settings={"retries": 0})
    assert caught.value.code == "UNAVAILABLE"


def test_server_that_starts_in_the_meantime_is_found(draw):
    with serving(Scripted()) as address:
        port = int(address.rsplit(":", 1)[1])  # free again after this block
    with pytest.raises(ServerError):
        draw(address, "a", settings={"retries": 0})
    drawn, patient = [], {"retries": 100, "timeout": LONG}
    thread = threading.Thread(target=lambda: drawn.append(draw(address, "a", seed=1, settings=patient)))
    thread.start()
    with serving(Scripted(), port=port):
        thread.join(LONG)
    assert len(drawn) == 1


def test_deadline_is_sent_and_kept(draw):
    servicer = Scripted([hangs])
    with serving(servicer) as address:
        with pytest.raises(TimeoutError, match="did not answer within 2 seconds"):
            draw(address, "a", timeout=2.0)
    assert all(0 < left <= 2.0 for left in servicer.remaining)


@pytest.mark.parametrize(
    "outputs, message",
    [
        ({"png_bytes": [b"no picture"]}, "cannot be read"),
        ({"png_bytes": [png(picture(1, 0))[:60]]}, "cannot be read"),
        ({"png_bytes": [png(picture(1, 0, 16, 16))]}, "RGB 16 x 16, not RGB 8 x 16"),
        ({"png_bytes": [png(picture(1, 0)[..., 0])]}, "L 8 x 16, not RGB"),
        ({"png_bytes": [b"", b""]}, "2 values for 1"),
        ({"png_bytes": None}, "no png_bytes"),
        ({"truncated_tokens": None}, "no truncated_tokens"),
        ({"truncated_tokens": [[0]], "png_bytes": []}, "0 values for 1"),
    ],
    ids=["text", "cut off", "size", "grey", "two", "none", "no tokens", "empty"],
)
def test_answer_that_is_no_picture_is_an_error(outputs, message, draw):
    with serving(Scripted([answers(**outputs)])) as address, pytest.raises(ServerError, match=message) as caught:
        draw(address, "a")
    assert caught.value.code == "INTERNAL"


def test_picture_that_would_fill_the_memory_is_not_unpacked(draw):
    """Its header says 100 000 pixels a side."""
    data = bytearray(png(picture(1, 0)))
    data[16:24] = (100_000).to_bytes(4, "big") * 2
    with serving(Scripted([answers(png_bytes=[bytes(data)])])) as address, pytest.raises(ServerError, match="image that"):
        draw(address, "a")


def test_bytes_that_are_no_message_are_an_error(draw, monkeypatch):
    from tensorflow_serving.apis import predict_pb2

    with monkeypatch.context() as patch:
        patch.setattr(predict_pb2.PredictResponse, "SerializeToString", lambda *_: b"\xff" * 9, raising=False)
        servicer = Scripted()
        with serving(servicer) as address, pytest.raises(ServerError) as caught:
            draw(address, "a", settings=FAST)
    assert caught.value.code == "INTERNAL" and len(servicer.seen) == 1


def test_cut_prompts_are_warned_of_once_each(draw):
    with serving(Scripted()) as address, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        draw(address, ["a", "xx"], 9, seed=1)
    (one,) = [str(one.message) for one in caught if one.category is PromptTruncationWarning]
    assert "'xx'" in one and "last 2 tokens" in one


def test_cut_negative_prompts_are_warned_of_as_such(draw):
    with serving(Scripted()) as address, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        draw(address, ["a", "xx"], seed=1, negative_prompt=["xxx", ""])
    told = [str(one.message) for one in caught if one.category is PromptTruncationWarning]
    assert sorted(line.partition(" is too long")[0] for line in told) == ["negative_prompt 'xxx'", "prompt 'xx'"]
    assert any("last 3 tokens" in line for line in told)


def test_servers_that_do_not_count_negative_tokens_are_understood(draw):
    with serving(Scripted([answers(truncated_negative_tokens=None)])) as address:
        assert len(draw(address, "a", seed=1)) == 1


def test_token_and_request_id_are_sent_with_each_call_and_the_token_is_never_shown(draw):
    servicer = Scripted([fails("UNAVAILABLE")])
    with serving(servicer) as address:
        draw(address, "a", settings={"token": "s3cret", "version": "stable"})
    assert [one["authorization"] for one in servicer.headers] == ["Bearer s3cret"] * 2
    assert len({one["x-request-id"] for one in servicer.headers}) == 1  # a second try is the same request
    assert servicer.specs[0].version_label == "stable"
    assert "s3cret" not in repr(Client("localhost:1", token="s3cret"))


@pytest.mark.parametrize(
    "settings, error, message",
    [
        ({"address": "localhost"}, ValueError, "HOST:PORT"),
        ({"address": "http://localhost:8501"}, ValueError, "HOST:PORT"),
        ({"address": "localhost:0"}, ValueError, "HOST:PORT"),
        ({"address": "localhost:70000"}, ValueError, "HOST:PORT"),
        ({"address": None}, ValueError, "HOST:PORT"),
        ({"model": ""}, ValueError, "model"),
        ({"model": 3}, TypeError, "model"),
        ({"version": -1}, ValueError, "version"),
        ({"version": 1.5}, TypeError, "version"),
        ({"timeout": float("inf")}, ValueError, "timeout"),
        ({"retries": -1}, ValueError, "retries"),
        ({"max_batch": 0}, ValueError, "max_batch"),
        ({"max_calls": 0}, ValueError, "max_calls"),
        ({"token": "a b"}, ValueError, "token must be ASCII"),
        ({"token": b"a"}, TypeError, "token"),
        ({"tls": 1}, TypeError, "tls"),
        ({"tls": __file__}, ValueError, "holds no certificate"),
        ({"tls": "missing.pem"}, FileNotFoundError, "missing.pem"),
    ],
)
def test_wrong_setting_is_named(settings, error, message):
    with pytest.raises(error, match=message):
        Client(settings.pop("address", "localhost:8500"), **settings)


@pytest.mark.parametrize("address", ["localhost:8500", "10.0.0.1:1", "[::1]:65535", "my-host.example:80", "tf_serving:8500"])
def test_addresses_are_taken(address):
    assert Client(address).address == address


def test_model_is_asked_for_its_own_values_once_and_again_when_its_version_changes():
    servicer = Scripted()
    with serving(servicer) as address, Client(address) as client:
        for _ in range(3):
            client.text_to_image("a")
        assert servicer.metadata_calls == 1
        servicer.version, servicer.defaults = 4, DEFAULTS | {"num_steps": 9}
        assert client.text_to_image("a").recipes[0]["num_steps"] == 4  # sent before anybody knew, and drawn with it
        recipe = client.text_to_image("a").recipes[0]
        assert (recipe["num_steps"], recipe["model_version"]) == (9, 4)
    assert servicer.metadata_calls == 2


def test_threads_share_one_client():
    servicer, drawn = Scripted(), {}
    with serving(servicer) as address, Client(address) as client:
        threads = [
            threading.Thread(target=lambda i=i: drawn.update({i: client.text_to_image("a", 3, seed=i)})) for i in range(12)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONG)
    for i in range(12):
        np.testing.assert_array_equal(drawn[i], np.stack([picture(i, k) for k in range(3)]))


def steps_told(*dones, steps=4, end=None):
    """Returns a Watch that tells of these steps, then waits for `end`."""

    def watch(request, context):
        for done in dones:
            message = Struct()
            message.update({"state": "running", "done": done, "steps": steps})
            yield message
        if end is not None:
            end.wait(LONG)

    return watch


def test_progress_of_the_server_reaches_the_callback(draw):
    told, heard = threading.Event(), []

    def callback(done, steps):
        heard.append((done, steps))
        if done == 3:
            told.set()

    with serving(Scripted([waits(told)], watch=steps_told(0, 1, 3, end=told))) as address:
        draw(address, "a", callback=callback)
    assert heard[-1] == (4, 4) and (3, 4) in heard
    assert heard == sorted(heard)


def test_nonsense_about_progress_is_passed_over(draw):
    told = threading.Event()

    def watch(request, context):
        for content in ({}, {"done": "x", "steps": 4}, {"done": 9, "steps": 4}, {"done": float("nan"), "steps": 1}, {"done": 2}):
            message = Struct()
            message.update(content)
            yield message
        told.set()

    heard = []
    with serving(Scripted([waits(told)], watch=watch)) as address:
        draw(address, "a", callback=lambda *news: heard.append(news))
    assert heard[-1] == (4, 4) and set(heard) <= {(0, 4), (4, 4)}  # once a second it hears that nothing is new


def test_server_without_progress_still_lets_the_callback_cancel(draw):
    """As TensorFlow Serving: what it knows no method of, it calls UNIMPLEMENTED."""
    servicer, heard = Scripted([hangs]), []

    def callback(done, steps):
        heard.append((done, steps))
        return False

    with serving(servicer) as address:
        with pytest.raises(Cancelled, match="after 0 of 4 steps"):
            draw(address, "a", callback=callback)
        assert servicer.gone.wait(LONG)
    assert heard == [(0, 4)]


def test_bar_says_waiting_until_there_is_progress(draw, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with serving(Scripted([slow])) as address:
        draw(address, "a", progress=True)
    err = capsys.readouterr().err
    assert err.index("waiting") < err.index("drawing") and "4/4" in err


def test_error_of_one_call_cancels_the_others(draw):
    def breaks(inputs, context):
        until(lambda: servicer.running == 2)
        fails("INTERNAL", "broken")(inputs, context)

    servicer = Scripted([hangs, breaks])
    with serving(servicer) as address:
        with pytest.raises(ServerError, match="broken"):
            draw(address, "a", 2, settings={"max_batch": 1})
        assert servicer.gone.wait(LONG)


def test_error_of_a_callback_comes_out_and_cancels(draw):
    def callback(done, steps):
        raise RuntimeError("of the caller")

    servicer = Scripted([hangs])
    with serving(servicer) as address:
        with pytest.raises(RuntimeError, match="of the caller"):
            draw(address, "a", callback=callback)
        assert servicer.gone.wait(LONG)


def test_closed_client_connects_anew():
    with serving(Scripted()) as address:
        client = Client(address)
        client.text_to_image("a")
        client.close()
        client.close()
        assert len(client.text_to_image("a", 2)) == 2
        client.close()
