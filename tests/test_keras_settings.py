"""Keras' global settings, in its file or set in Python, change neither images nor training nor exports.

All are set at once. The default run makes images, the slow run also trains and exports.
"""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from tfsd.api import load

TRAINS = True  # see `no_module_leaves_gradients`
ROOT = Path(__file__).parents[1]
DRAW = {"prompt": "a red star", "seed": 7, "num_steps": 2}
SETTINGS = {
    "image_data_format": lambda: keras.config.set_image_data_format("channels_first"),
    "floatx": lambda: keras.config.set_floatx("float16"),
    "policy": lambda: keras.config.set_dtype_policy("mixed_float16"),
}


@pytest.fixture
def settings():
    """Puts Keras' settings back after a test that changes them."""
    before = keras.config.floatx(), keras.config.image_data_format(), keras.config.dtype_policy()
    yield SETTINGS
    keras.config.set_floatx(before[0])
    keras.config.set_image_data_format(before[1])
    keras.config.set_dtype_policy(before[2])


def picture(folder) -> np.ndarray:
    return np.asarray(load(folder, jit_compile=False).text_to_image(**DRAW))


@pytest.fixture(scope="module")
def usual(toy_folder):
    return picture(toy_folder)


IN_FILE = {"image_data_format": "channels_first", "floatx": "float16"}


def test_settings_in_keras_file_change_no_byte_of_a_picture(usual, toy_folder, tmp_path):
    whole = {"floatx": "float32", "epsilon": 1e-7, "backend": "tensorflow", "image_data_format": "channels_last"}
    (tmp_path / "keras.json").write_text(json.dumps(whole | IN_FILE))
    script = (
        "import hashlib, sys, numpy, keras, tfsd;"
        "images = numpy.asarray(tfsd.load(sys.argv[1], jit_compile=False).text_to_image(**eval(sys.argv[2])));"
        "print(keras.config.floatx(), keras.config.image_data_format(), hashlib.sha256(images.tobytes()).hexdigest())"
    )
    environment = os.environ | {"KERAS_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script, str(toy_folder), repr(DRAW)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    expected = (whole | IN_FILE)["floatx"], (whole | IN_FILE)["image_data_format"], hashlib.sha256(usual.tobytes()).hexdigest()
    assert tuple(done.stdout.split()) == expected


def trained(spec, folder) -> list[np.ndarray]:
    """Returns the weights of a small VAE after two steps of training."""
    from dataclasses import replace

    from tfsd.training import autoencoder
    from tfsd.training.recipe import AUTOENCODER

    trainer = autoencoder.trainer(spec, folder, replace(AUTOENCODER, steps=2, batch=2))
    trainer.run(progress=False)
    return [np.asarray(v) for v in trainer.model.variables]


@pytest.mark.slow
def test_settings_change_no_weight_that_is_trained(settings, small_spec, tmp_path):
    trained_usually = trained(small_spec, tmp_path / "usual")
    for change in settings.values():
        change()
    chosen = keras.config.floatx(), keras.config.image_data_format(), keras.config.dtype_policy().name
    for ours, usual in zip(trained(small_spec, tmp_path / "changed"), trained_usually, strict=True):
        assert ours.dtype == usual.dtype
        np.testing.assert_allclose(ours, usual, rtol=0, atol=1e-6)
    assert (keras.config.floatx(), keras.config.image_data_format(), keras.config.dtype_policy().name) == chosen


@pytest.fixture(scope="module")
def small_spec(toy_folder):
    """The toy model's, with a VAE of two levels: every kind of layer is in it."""
    from dataclasses import replace

    from tfsd.storage.model_folders import load_spec

    spec = load_spec(toy_folder)
    return replace(spec, vae=replace(spec.vae, channels=spec.vae.channels[:2]))


def test_all_settings_made_in_python_at_once_change_no_byte_of_a_picture(settings, usual, toy_folder):
    for change in settings.values():
        change()
    np.testing.assert_array_equal(picture(toy_folder), usual)


@pytest.mark.slow
@pytest.mark.filterwarnings("error::tfsd.text.UnknownWordsWarning")
def test_an_export_draws_as_python_does_under_all_settings_at_once(settings, toy_folder, tmp_path):
    """An export compares its own picture with Python's, and is an error if they differ."""
    from tfsd.converters.saved_model.export import export_saved_model

    for change in settings.values():
        change()
    folder = export_saved_model(toy_folder, tmp_path, batch_sizes=(1,), max_steps=2, xla=False)
    assert (folder / "saved_model.pb").is_file()
