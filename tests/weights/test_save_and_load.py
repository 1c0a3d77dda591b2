import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_model import PARTS, SPEC, assert_same, loaded, values

from tfsd import models
from tfsd.specs import CLIPSpec, ModelSpec
from tfsd.storage.folders import own_files
from tfsd.storage.model_folders import load_spec, load_weights, save_model

ROOT = Path(__file__).parents[2]


def test_a_model_comes_back_as_it_was_saved(saved, parts):
    assert load_spec(saved) == SPEC
    found = loaded(saved)
    assert set(found) == set(PARTS)
    for part in parts:
        assert_same(found[part], parts[part])


def test_the_manifest_records_what_was_saved(saved):
    manifest = json.loads((saved / "manifest.json").read_text())
    assert manifest["dtype"] == "float32"
    assert manifest["licence"] == "MIT"
    assert manifest["notes"] == {"loss": 0.5}
    assert set(manifest["files"]) == {"spec.json", *(part.file for part in SPEC.parts())}
    for name, entry in manifest["files"].items():
        assert (saved / name).stat().st_size == entry["bytes"]
    assert set(own_files(saved, "model")) == {*manifest["files"], "manifest.json"}


def test_files_are_little_larger_than_their_values(saved, parts):
    """The embedded model has hundreds of small tensors; HDF5's oldest format adds 1700 bytes to each."""
    tensors = [variable for part in parts.values() for variable in part.variables]
    stored = sum(f.stat().st_size for f in saved.glob("*.h5"))
    assert stored - sum(np.asarray(v).nbytes for v in tensors) < 700 * len(tensors)


@pytest.mark.parametrize("part", PARTS)
def test_keras_reads_our_files(saved, parts, part):
    fresh = models.build(SPEC, parts=(part,))[part]
    fresh.load_weights(saved / SPEC.parts((part,))[0].file)
    assert_same(fresh, parts[part])


@pytest.mark.parametrize("part", PARTS)
def test_we_read_files_of_keras(parts, tmp_path, part):
    parts[part].save_weights(tmp_path / "keras.weights.h5")
    fresh = models.build(SPEC, parts=(part,))[part]
    load_weights(tmp_path / "keras.weights.h5", fresh)
    assert_same(fresh, parts[part])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_files_hold_the_rounded_values(parts, tmp_path, dtype):
    folder = save_model(tmp_path / dtype, SPEC, parts, dtype=dtype)
    assert json.loads((folder / "manifest.json").read_text())["dtype"] == dtype
    found = loaded(folder, parts=("text_encoder",))["text_encoder"]
    for path, expected in values(parts["text_encoder"]).items():
        rounded = expected.astype(np.dtype(dtype)).astype("float32")
        np.testing.assert_array_equal(values(found)[path], rounded, err_msg=path)
    sizes = [sum(f.stat().st_size for f in place.glob("unet*")) for place in (folder, folder.parent / dtype)]
    assert sizes[0] == sizes[1]


def test_keras_reads_our_bfloat16_files(parts, tmp_path):
    folder = save_model(tmp_path / "bf16", SPEC, {"decoder": parts["decoder"]}, dtype="bfloat16")
    fresh = models.build(SPEC, dtype="bfloat16", parts=("decoder",))["decoder"]
    fresh.load_weights(folder / "decoder.weights.h5")
    assert_same(fresh, loaded(folder, parts=("decoder",), dtype="bfloat16")["decoder"])


def test_loading_in_half_precision_rounds_float32_files(saved, parts):
    found = loaded(saved, parts=("decoder",), dtype="float16")["decoder"]
    for path, expected in values(parts["decoder"]).items():
        np.testing.assert_array_equal(values(found)[path], expected.astype("float16"), err_msg=path)


def test_a_wrong_part_or_dtype_is_refused(saved, parts, tmp_path):
    with pytest.raises(ValueError, match="parts are text_encoder, denoiser, decoder, encoder; got 'vae'"):
        loaded(saved, parts=("vae",))
    with pytest.raises(ValueError, match="dtype must be one of .* got 'int8'"):
        save_model(tmp_path / "x", SPEC, parts, dtype="int8")


def test_loading_holds_one_tensor_at_a_time(tmp_path):
    """A part of 64 MB in 8 MB tensors: loading may add less than three of them to the model itself."""
    spec = ModelSpec(name="wide", text=(CLIPSpec(vocabulary=1000, width=512, heads=8, layers=7, mlp_width=1024),))
    built = models.build(spec, parts=("text_encoder",))
    folder = save_model(tmp_path / "wide", spec, built)
    largest = max(np.asarray(v).nbytes for v in built["text_encoder"].variables)
    code = (
        "import resource, sys; from tfsd import models; from tfsd.storage.model_folders import load_spec, load_weights\n"
        f"spec = load_spec({str(folder)!r}); part = models.build(spec, parts=('text_encoder',))['text_encoder']\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"load_weights({str(folder / 'text_encoder.weights.h5')!r}, part)\n"
        "print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))"
    )
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300, env=environment)
    assert int(ran.stdout) < 3 * largest + 8 * 2**20, ran.stderr
