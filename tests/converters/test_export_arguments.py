"""What an export refuses, and that nothing of it is left behind."""

import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow as tf

from tfsd.api import load
from tfsd.converters.saved_model.export import _reserved, export_saved_model
from tfsd.errors import CheckpointError


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


def test_exports_at_once_into_one_folder_get_different_versions(tmp_path):
    folder = tmp_path / "toy"
    with _reserved(folder, None) as first, _reserved(folder, None) as second:
        assert [first, second] == [folder / "1", folder / "2"]
        with (
            pytest.raises(CheckpointError, match=r"Another export to .*toy/1 is under way. Give another version"),
            _reserved(folder, 1),
        ):
            pass
        second.mkdir(parents=True)
        with _reserved(folder, None) as third:
            assert third == folder / "3"
    with _reserved(folder, None) as next_one, _reserved(folder, 1) as failed:  # the first one failed: its number is free
        assert (next_one, failed) == (folder / "3", folder / "1")


def test_another_process_exports_another_version(tmp_path):
    script = (
        "import sys; from pathlib import Path; from tfsd.converters.saved_model.export import _reserved\n"
        "with _reserved(Path(sys.argv[1]), None) as folder: print(folder.name)"
    )
    with _reserved(tmp_path / "toy", None):
        done = subprocess.run(
            [sys.executable, "-c", script, tmp_path / "toy"], capture_output=True, text=True, cwd=Path(__file__).parents[2]
        )
    assert done.stdout == "2\n", done.stderr
