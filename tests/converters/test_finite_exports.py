"""Exports of a model that float16 cannot hold: a failed check, and INTERNAL from the server for the rows concerned alone."""

import numpy as np
import pytest
import tensorflow as tf
from exports import ServingSession, pixels, request

from tfsd.converters.saved_model.export import export_saved_model
from tfsd.serving.server.engine import Engine
from tfsd.serving.wire.errors import ServerError

# Exports draw prompts that the exporter chose, so a warning about their words would not help the caller.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("error::tfsd.text.UnknownWordsWarning")]
WORDS = "are NaN or infinite in float16: float16 ends at 65504. Use dtype bfloat16 or float32."


@pytest.fixture(scope="module")
def folder(overflowing_folder, tmp_path_factory):
    options = {"dtype": "float16", "batching": "fused", "batch_sizes": (1, 2), "max_steps": 8}
    return export_saved_model(overflowing_folder, tmp_path_factory.mktemp("out"), **options)


@pytest.fixture(scope="module")
def session(folder):
    with ServingSession(folder) as session:
        yield session


@pytest.mark.parametrize(("signature", "what"), [("text_to_png", "latents"), ("encode", "context")])
def test_a_picture_that_is_not_finite_fails_its_request(signature, what, session):
    options = {} if signature == "encode" else {"num_steps": 1}
    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        session(signature, request(prompt="a dog", **options))
    assert f"The {what} of the model {WORDS}" in error.value.message
    assert session(signature, request(prompt="a red star", **options))


def test_decoded_images_are_checked_too(session):
    latents = np.zeros((1, 4, 4, 4), "float32")
    assert pixels(session("decode", {"latents": latents})["png_bytes"][0]).shape == (32, 32, 3)
    with pytest.raises(tf.errors.InvalidArgumentError, match="The images of the model are NaN or infinite"):
        session("decode", {"latents": latents + 3e38})  # finite, and beyond float32 once it is scaled


def test_of_a_job_only_the_rows_that_are_not_finite_fail(folder):
    engine = Engine(folder)
    inputs = {"prompt": [b"a red star", b"a dog"], "num_steps": [2]}
    inputs = engine.defaults() | {
        name: np.array(value, object if name == "prompt" else "int32") for name, value in inputs.items()
    }
    job = engine.start(engine.prepare(inputs))
    job.advance(job.steps)
    picture, failed = job.results()
    assert picture.shape == (32, 32, 3) and engine.png(picture).startswith(b"\x89PNG")
    assert isinstance(failed, ServerError) and failed.code == "INTERNAL" and WORDS in failed.message
    with pytest.raises(ServerError) as error:
        engine.run("encode", {"prompt": inputs["prompt"]})
    assert error.value.code == "INTERNAL" and WORDS in error.value.message
