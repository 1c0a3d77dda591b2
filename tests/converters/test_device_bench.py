"""The benchmark of device files: every signature is timed, in processes that end, and failures say why."""

import json
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from tfsd.converters.device.bench import bench_bundle, bench_full_size
from tfsd.converters.device.export import export_tflite
from tfsd.converters.device.jobs import convert_saved, fill_zeros
from tfsd.converters.device.measure import ROOT, Measured, measure_signature, plausible, run_module
from tfsd.converters.device.tables import bundle_table, conversion_table, full_size_table, megabytes, seconds
from tfsd.device import load_bundle_manifest
from tfsd.errors import CheckpointError
from tfsd.models import build
from tfsd.storage.model_folders import load_spec

POSITIVE = ("file_bytes", "load_s", "first_s", "median_s", "p90_s", "peak_bytes", "tensorflow_s", "ratio")
TIMES = {"load_s": 0.25, "first_s": 2.0, "median_s": 0.0125, "p90_s": 123.4, "peak_bytes": 45_100_000}


class Repeat(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([1], tf.int32, name="count"), tf.TensorSpec([2, 3], tf.float32, name="x")])
    def __call__(self, count, x):
        return {"y": tf.tile(x, tf.concat([count, count], axis=0))}


@pytest.fixture(scope="module")
def repeat(tmp_path_factory):
    """A TFLite file whose time and memory depend on a number that it is given."""
    folder, module = tmp_path_factory.mktemp("repeat"), Repeat()
    tf.saved_model.save(module, str(folder / "saved"), signatures={"run": module.__call__})
    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder / "saved"), signature_keys=["run"])
    (folder / "repeat.tflite").write_bytes(converter.convert())
    return folder / "repeat.tflite"


def test_memory_is_what_a_run_takes(repeat):
    small = measure_signature(repeat, "run", threads=1, runs=2)
    large = measure_signature(repeat, "run", threads=1, runs=2, inputs={"count": 1000})
    assert large.peak_bytes - small.peak_bytes >= 1000**2 * 6 * 4  # bytes of y alone
    assert large.median_s > small.median_s > 0 and small.load_s > 0 and small.first_s > 0 and large.p90_s >= large.median_s
    if sys.platform == "linux":
        assert large.anonymous_bytes - small.anonymous_bytes >= 1000**2 * 6 * 4 > large.mapped_bytes > 0


def test_process_that_measures_has_no_tensorflow(repeat):
    script = f"""
import sys
from tfsd.converters.device.measure import main
assert main([{str(repeat)!r}, "run", "--runs", "1"]) == 0
print(sorted({{"tensorflow", "keras"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    found, modules = done.stdout.splitlines()
    assert set(json.loads(found)) == set(Measured._fields) and modules == "[]"


@pytest.mark.parametrize(
    ("signature", "options", "words"),
    [
        ("walk", {}, "'walk', cannot be measured: .*walk"),
        ("run", {"inputs": {"counts": 1}}, "its inputs are count, x; got counts"),
        ("run", {"inputs": {"x": np.zeros(5)}}, "cannot be measured: "),
    ],
)
def test_what_litert_cannot_run_is_one_sentence(signature, options, words, repeat):
    with pytest.raises(CheckpointError, match=words) as raised:
        measure_signature(repeat, signature, **options)
    assert "\n" not in str(raised.value) and "Traceback" not in str(raised.value)


def test_file_that_is_no_model_is_named(tmp_path):
    (tmp_path / "text.tflite").write_text("no model")
    for name in ("text.tflite", "nothing.tflite"):
        with pytest.raises(CheckpointError, match=f"{name}, signature 'run', cannot be measured"):
            measure_signature(tmp_path / name, "run")


@pytest.mark.parametrize(("name", "value"), [("threads", 0), ("runs", 0), ("runs", 1.5), ("threads", True)])
def test_bad_numbers_are_named(name, value, repeat):
    with pytest.raises((TypeError, ValueError), match=f"{name} must be"):
        measure_signature(repeat, "run", **{name: value})


def test_killed_process_is_told(tmp_path, monkeypatch):
    (tmp_path / "greedy.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(CheckpointError, match="^It failed: its process was ended by signal 9, for want of memory perhaps.$"):
        run_module("greedy", [], "It failed")


def test_made_up_inputs_are_always_the_same_and_small():
    one, tokens, floats = (
        plausible("x", kind, shape) for kind, shape in (("int32", [1]), ("int32", [2, 77]), ("float32", [4, 9]))
    )
    assert one.tolist() == [1] and tokens.dtype == np.int32 and 0 <= tokens.min() < tokens.max() < 8
    assert floats.dtype == np.float32 and 0.3 < floats.std() < 3
    np.testing.assert_array_equal(floats, plausible("x", "float32", (4, 9)))
    assert (plausible("y", "float32", (4, 9)) != floats).all()


def test_conversion_without_enough_memory_is_not_begun(tmp_path):
    with pytest.raises(
        CheckpointError, match="^denoiser cannot be converted: that needs about 180000.0 GB of memory; .* are free.$"
    ):
        convert_saved(tmp_path, tmp_path / "denoiser.tflite", ["step"], 10**13)
    assert not list(tmp_path.iterdir())


def test_random_weights_have_no_kernel_of_zeros(toy_folder):
    """Those that training begins with would be one and the same in a file, which then were too small."""
    unet = build(load_spec(toy_folder), parts=("denoiser",))["denoiser"]
    kernels = [variable for variable in unet.variables if len(variable.shape) > 1]
    zeros, others = ([bool(np.any(kernel)) is some for kernel in kernels] for some in (False, True))
    before = [np.array(kernel) for kernel in kernels]
    fill_zeros([unet])
    assert any(zeros) and all(0.1 < np.std(kernel) * np.sqrt(np.prod(kernel.shape[:-1])) < 3 for kernel in kernels)
    assert all((np.array(kernel) == old).all() for kernel, old, kept in zip(kernels, before, others) if kept)


@pytest.mark.parametrize(
    ("value", "text"), [(0.0000123, "0.0123 ms"), (0.0125, "12.5 ms"), (1.0, "1 s"), (12.345, "12.3 s"), (123.4, "123 s")]
)
def test_times_have_three_digits(value, text):
    assert seconds(value) == text


def test_memory_is_in_megabytes():
    assert [megabytes(value) for value in (45_120_000, 864_000_000, 14_500_000_000)] == ["45.1 MB", "864 MB", "14500 MB"]


def test_table_of_a_bundle_has_a_row_for_each_signature():
    record = {"part": "denoiser", "signature": "step", "file_bytes": 3_900_000, **TIMES, "tensorflow_s": 0.025, "ratio": 0.5}
    alone = record | {"signature": "other", "tensorflow_s": None, "ratio": None}
    rows, header = bundle_table({"signatures": [record, alone]})
    assert [dict(zip(header, row)) for row in rows] == [
        {"part": "denoiser", "signature": "step", "file": "3.9 MB", "open": "250 ms", "first": "2 s", "median": "12.5 ms",
         "p90": "123 s", "memory": "45.1 MB", "TensorFlow": "25 ms", "LiteRT / TF": "0.50"},
        {"part": "denoiser", "signature": "other", "file": "3.9 MB", "open": "250 ms", "first": "2 s", "median": "12.5 ms",
         "p90": "123 s", "memory": "45.1 MB", "TensorFlow": "-", "LiteRT / TF": "-"},
    ]  # fmt: skip


def test_tables_of_a_full_size_model_have_a_row_for_each_recipe():
    about = {"part": "denoiser", "size": 256}
    made = {"quantize_s": 8.0, "quantize_peak_bytes": 1_700_000_000, "file_bytes": 864_000_000, "lint": ["too large."]}
    record = {**about, "quantize": "dynamic", **made, **TIMES, "tensorflow_s": 4.0, "ratio": 0.1}
    failed = {**about, "quantize": "int8", "error": "denoiser cannot be quantized by int8: why."}
    rows, header = full_size_table({"signatures": [record, record | {"lint": []}, failed]})
    shown = [dict(zip(header, row, strict=True)) for row in rows]
    assert [one["lint"] for one in shown] == ["1 found", "clean", "-"] and shown[2]["file"] == "failed"
    assert (shown[0]["its memory"], shown[0]["quantizing"], shown[0]["LiteRT / TF"]) == ("1700 MB", "8 s", "0.10")
    conversion = {**about, "seconds": 89.0, "peak_bytes": 14_500_000_000, "file_bytes": 3_437_000_000}
    rows, _ = conversion_table({"conversions": [conversion, {**about, "error": "denoiser cannot be converted: why."}]})
    assert rows == [("denoiser", "256 px", "3437 MB", "89 s", "14500 MB"), ("denoiser", "256 px", "failed", "-", "-")]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"sizes": (256, 100)}, "sizes must be a multiple of 8; got 100"),
        ({"parts": ("unet",)}, "parts must be one of text_encoder, denoiser, decoder; got 'unet'"),
        ({"quantize": ("int3",)}, "quantize must be one of none, float16"),
        ({"runs": 0}, "runs must be from 1"),
    ],
)
def test_arguments_of_a_full_size_benchmark_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        bench_full_size(**arguments)


@pytest.mark.slow
def test_every_signature_of_a_bundle_is_timed(toy_folder, tmp_path):
    bundle = export_tflite(toy_folder, tmp_path / "bundle", quantize="int8-weights", max_steps=4)
    told = []
    found = bench_bundle(bundle, threads=1, runs=3, model=str(toy_folder), report=told.append)
    parts = load_bundle_manifest(bundle)["parts"]
    wanted = [(name, signature) for name, part in parts.items() for signature in part["signatures"]]
    assert [(one["part"], one["signature"]) for one in found["signatures"]] == wanted and len(wanted) == 5
    assert all(one[name] > 0 for one in found["signatures"] for name in POSITIVE)
    assert found["note"] is None and found["threads"] == 1 and len(told) == 6
    json.dumps(found)

    alone = bench_bundle(bundle, threads=1, runs=1)  # a model called toy is not here
    assert "There is no model 'toy'" in alone["note"]
    assert [one["ratio"] for one in alone["signatures"]] == [None] * 5 and all(one["median_s"] > 0 for one in alone["signatures"])
    with pytest.raises(CheckpointError, match="takes other inputs than the bundle's; it is of another model or size"):
        bench_bundle(bundle, runs=1, model="tiny")


@pytest.mark.slow
def test_recipes_of_a_model_with_random_weights_is_timed(toy_folder):
    parts, recipes = ("text_encoder", "denoiser"), ("none", "int8", "float16")
    found = bench_full_size(model=str(toy_folder), parts=parts, sizes=(32,), quantize=recipes, threads=1, runs=1)
    assert [one["part"] for one in found["conversions"]] == list(parts)
    assert all(one[name] > 0 for one in found["conversions"] for name in ("seconds", "peak_bytes", "file_bytes", "tensorflow_s"))
    assert [(one["part"], one["quantize"]) for one in found["signatures"]] == [(part, key) for part in parts for key in recipes]
    assert not [one["error"] for one in found["signatures"] if "error" in one]
    assert all(one[name] > 0 for one in found["signatures"] for name in POSITIVE)
    assert not [one["lint"] for one in found["signatures"] if one["lint"]]
