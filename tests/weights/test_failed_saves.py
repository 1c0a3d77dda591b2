import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from faults import refusals
from small_model import SPEC

from tfsd import models
from tfsd.errors import CheckpointError
from tfsd.storage.atomic import set_aside
from tfsd.storage.files import sha256
from tfsd.storage.model_folders import load_spec, save_model, write_model

ROOT = Path(__file__).parents[2]


def test_values_that_float16_cannot_hold_are_refused_and_nothing_is_left(tmp_path):
    shapes = models.part_shapes(SPEC, ("decoder",))["decoder"]
    tensors = ((path, np.full(shape, 70000.0, "float32")) for path, shape in shapes.items())
    with pytest.raises(CheckpointError, match="decoder/post_quant/kernel are too large for float16"):
        write_model(tmp_path / "x", SPEC, {"decoder": tensors}, dtype="float16")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fault", ["missing", "unknown", "twice", "shape", "interrupt"])
def test_a_failed_save_leaves_nothing(tmp_path, fault):
    shapes = models.part_shapes(SPEC, ("decoder",))["decoder"]

    def stream():
        for i, (path, shape) in enumerate(shapes.items()):
            if i == 5 and fault == "missing":
                continue
            if i == 5 and fault == "interrupt":
                raise KeyboardInterrupt
            yield ("nothing" if i == 5 and fault == "unknown" else path), np.zeros(shape if (i, fault) != (5, "shape") else (77,))
            if i == 5 and fault == "twice":
                yield path, np.zeros(shape)

    with pytest.raises(KeyboardInterrupt if fault == "interrupt" else CheckpointError):
        write_model(tmp_path / "x", SPEC, {"decoder": stream()})
    assert list(tmp_path.iterdir()) == []


def test_an_existing_model_is_kept_unless_overwritten(folder, parts):
    before = (folder / "manifest.json").read_bytes()
    with pytest.raises(CheckpointError, match="exists and is not empty"):
        save_model(folder, SPEC, parts)
    with pytest.raises(CheckpointError):
        write_model(folder, SPEC, {"decoder": iter(())}, overwrite=True)
    assert (folder / "manifest.json").read_bytes() == before
    save_model(folder, SPEC, {"decoder": parts["decoder"]}, overwrite=True)
    assert sorted(f.name for f in folder.iterdir()) == ["decoder.weights.h5", "manifest.json", "spec.json"]
    assert sorted(f.name for f in folder.parent.iterdir()) == ["small"]


@pytest.mark.filterwarnings("ignore::tfsd.errors.TfsdWarning")  # of what cannot be removed
@pytest.mark.parametrize("forever", [False, True], ids=["one-call", "all-later-calls"])
def test_whichever_call_of_the_system_fails_a_whole_model_stays(tmp_path, forever):
    old, folder, names = tmp_path / "old", tmp_path / "place/m", ("decoder.weights.h5", "manifest.json", "spec.json")
    shapes = models.part_shapes(SPEC, ("decoder",))["decoder"]

    def save(value: float):
        tensors = ((path, np.full(shape, value, "float32")) for path, shape in shapes.items())
        write_model(folder, SPEC, {"decoder": tensors}, overwrite=True)

    def reset():
        shutil.rmtree(folder.parent)
        shutil.copytree(old, folder)

    save(1.0)
    shutil.copytree(folder, old)
    digest = sha256(old / names[0])
    calls = 0
    for call, error in refusals(lambda: save(2.0), reset, forever=forever):
        calls += 1
        assert error is None or isinstance(error, CheckpointError) and "\n" not in str(error), call
        place = folder if folder.exists() else set_aside(folder)
        assert sorted(path.name for path in place.iterdir()) == sorted(names), call
        assert (error is None) == (sha256(place / names[0]) != digest), call
        assert place == folder or str(place) in str(error), call
        load_spec(place)
    assert calls > 20


def test_a_folder_of_other_things_is_never_overwritten(tmp_path, parts):
    (tmp_path / "diary.txt").write_text("dear diary")
    with pytest.raises(CheckpointError, match="is not replaced: it is not empty and no model folder"):
        save_model(tmp_path, SPEC, parts, overwrite=True)
    assert (tmp_path / "diary.txt").read_text() == "dear diary"


FULL_DISK = """
import resource, sys
sys.path.insert(0, {tests!r})
from small_model import SPEC
from tfsd import models
from tfsd.storage.model_folders import CheckpointError, save_model
parts = models.build(SPEC, parts=("text_encoder", "decoder"))
for limit in (100_000, 10):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        save_model({folder!r}, SPEC, parts)
    except CheckpointError as error:
        print(error)
"""


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    """In a process of its own: a write that fails inside HDF5 crashes Python at exit. A file size limit is the disk."""
    code = FULL_DISK.format(tests=str(Path(__file__).parent), folder=str(tmp_path / "x"))
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(ROOT)}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=environment)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == [f"{tmp_path / 'x'} cannot be written: File too large."] * 2
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_cannot_be_a_folder_is_one_line(tmp_path, parts):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="is a file; give the folder"):
        save_model(tmp_path / "file", SPEC, parts)
    with pytest.raises(CheckpointError, match="cannot be written: "):
        save_model(tmp_path / "file" / "below", SPEC, parts)
