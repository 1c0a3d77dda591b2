"""What an export refuses, and that nothing of it is left behind."""

import pytest
import tensorflow as tf

from converters.saved_model import export_saved_model
from tfsd.api import load
from tfsd.h5 import CheckpointError


@pytest.fixture(scope="module")
def model(toy_folder):
    return load(toy_folder, jit_compile=False)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"sizes": []}, "1 to 16 pairs"),
        ({"sizes": [32]}, "different pairs"),
        ({"sizes": [(32, 32), [32, 32]]}, "different pairs"),
        ({"sizes": [(32, 33)]}, "sizes must be a multiple"),
        ({"batch_sizes": (2, 1)}, "rising"),
        ({"batching": "some"}, "batching must be"),
        ({"version": 0}, "version"),
    ],
)
def test_arguments_that_cannot_be_met_leave_nothing_behind(arguments, words, model, tmp_path):
    with pytest.raises(ValueError, match=words):
        export_saved_model(model, tmp_path / "out", **arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"dtype": "bfloat16"}, "dtype must be float32, as the model was loaded; got 'bfloat16'. Load it with dtype='bfloat16'"),
        ({"xla": True}, "xla must be False, as the model was loaded; got True. Load it with jit_compile=True"),
    ],
)
def test_a_loaded_model_is_not_exported_as_another(arguments, words, model, tmp_path):
    with pytest.raises(ValueError, match=words):
        export_saved_model(model, tmp_path / "out", **arguments)
    assert not list(tmp_path.iterdir())


def test_an_export_that_fails_leaves_no_folder_behind(model, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tf.saved_model, "save", fail)
    with pytest.raises(CheckpointError, match="No space left"):
        export_saved_model(model, tmp_path / "out" / "deep")
    assert not list(tmp_path.iterdir())
