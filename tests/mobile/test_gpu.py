"""Bundles on LiteRT's GPU accelerator, over SwiftShader: what runs there whole and draws the same, and what it refuses.

Nothing of it is checked where chromium or the accelerator's library is missing.
"""

import json
import shutil

import gpu
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from recorded import Recorded

from tfsd.converters.device.lint import lint
from tfsd.converters.device.manifest import write_manifest
from tfsd.converters.device.quality import compare_images
from tfsd.converters.device.recipes import GPU_PARTS, RECIPES, quantize_file
from tfsd.device import MANIFEST, PARTS, DeviceBundle, load_bundle_manifest

pytestmark = [pytest.mark.mobile, pytest.mark.skipif(bool(gpu.missing()), reason=gpu.missing())]
ASKED = {"prompt": "a red star above a blue house at night", "seed": 3, "num_steps": 3, "sampler": "dpmpp_2m"}
CLOSE = 1e-5  # of the root of the mean square: float32 products, added in another order
LEVELS = 1  # of 255 that a colour may differ by, for the same reason
# The recipe whose products the CPU makes as the GPU makes those of a recipe: with int8 weights and activations in floats.
SAME = {"none": "none", "float16": "float16", "dynamic": "int8-weights"}


@pytest.fixture(scope="module")
def bundle_of(tiny_bundle, tmp_path_factory):
    """Returns what makes the bundle of `tiny` with a recipe, once, from that in float32."""
    made, work = {"none": tiny_bundle}, tmp_path_factory.mktemp("bundles")

    def bundle(quantize: str):
        if quantize not in made:
            made[quantize] = requantized(tiny_bundle, work / quantize, quantize)
        return made[quantize]

    return bundle


def requantized(source, target, quantize: str):
    """Returns a copy of a float32 bundle with another recipe."""
    recipe, calls = RECIPES[quantize], {}
    if recipe.calibrated:
        recorded = Recorded(source)
        recorded.text_to_image("a large green fish", seed=1, num_steps=4)
        calls = {name: [call["inputs"] for call in recorded.calls if call["part"] == name] for name in PARTS}
    shutil.copytree(source, target)
    manifest = load_bundle_manifest(target)
    for name, part in manifest["parts"].items():
        part["accelerators"] = list(recipe.accelerators(name))
        if name != "sampling":
            quantize_file(source / part["file"], target / part["file"], name, recipe, calls.get(name, []))
    write_manifest(target, manifest | {"quantize": quantize, "no_gpu": recipe.no_gpu})
    return target


@pytest.fixture(scope="module")
def drawn(bundle_of, tmp_path_factory):
    """Returns what draws with a recipe on the GPU, once: the picture and the calls of the networks."""
    made = {}

    def picture(quantize: str):
        if quantize not in made:
            made[quantize] = gpu.draw(bundle_of(quantize), tmp_path_factory.mktemp(quantize), **ASKED)
        return made[quantize]

    return picture


def error(found, expected) -> float:
    """Returns the root of the mean square of a difference, relative to that of what is expected."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert np.isfinite(found).all()
    return float(np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2)))


def channels(colours) -> np.ndarray:
    return np.stack([colours >> shift & 255 for shift in (16, 8, 0)], axis=-1)


def on_cpu(folder, calls):
    """Yields each call with its part's outputs on the CPU, by the files in `folder`."""
    bundle = DeviceBundle(folder)
    for name in GPU_PARTS:
        with bundle.part(name) as run:
            yield from ((call, run(call["signature"], **call["inputs"])) for call in calls if call["part"] == name)


@pytest.mark.parametrize("quantize", SAME)
def test_denoiser_and_decoder_run_whole_on_the_gpu_and_compute_what_the_cpu_does(quantize, drawn, bundle_of):
    checked = []
    for call, expected in on_cpu(bundle_of(SAME[quantize]), drawn(quantize)[1]):
        checked.append(call["signature"])
        if call["signature"] == "decode":
            assert np.abs(channels(call["outputs"]["colours"]) - channels(expected["colours"])).max() <= LEVELS
            continue
        for name in ("latents", "history"):  # the latter is a sum that is also used again
            assert error(call["outputs"][name], expected[name]) < CLOSE, name
    assert checked == ["step"] * ASKED["num_steps"] + ["decode"]


@pytest.mark.parametrize("quantize", SAME)
def test_picture_drawn_on_the_gpu_is_that_of_the_cpu_within_a_level(quantize, drawn, bundle_of, tmp_path):
    folder = tmp_path / "same"
    shutil.copytree(bundle_of(SAME[quantize]), folder)
    shutil.copyfile(bundle_of(quantize) / "text_encoder.tflite", folder / "text_encoder.tflite")  # it runs on the CPU
    write_manifest(folder, json.loads((folder / MANIFEST).read_text()))
    ours, theirs = np.asarray(drawn(quantize)[0], int), np.asarray(DeviceBundle(folder).text_to_image(**ASKED), int)
    assert np.abs(ours - theirs).max() <= LEVELS
    assert theirs.std() > 20  # there is something to compare


def test_int8_runs_whole_on_the_gpu_and_reaches_what_its_export_must(drawn, bundle_of):
    images, calls = drawn("int8")
    exact = np.asarray(DeviceBundle(bundle_of("none")).text_to_image(**ASKED))
    assert [call["signature"] for call in calls] == ["encode"] + ["step"] * ASKED["num_steps"] + ["decode"]
    assert compare_images(images, exact, [ASKED["prompt"]])[0]["psnr"] >= RECIPES["int8"].gate


@pytest.mark.parametrize("quantize", [name for name, recipe in RECIPES.items() if recipe.no_gpu])
def test_recipes_that_the_accelerator_refuses_keep_their_bundles_from_it(quantize, bundle_of, tmp_path):
    folder = bundle_of(quantize)
    with pytest.raises(ValueError, match=f"accelerator must be 'cpu' for a bundle with quantize '{quantize}'; got 'gpu'"):
        DeviceBundle(folder, accelerator="gpu")
    part = load_bundle_manifest(folder)["parts"]["denoiser"]
    assert lint(folder / part["file"], gpu=True)
    inputs = {name: np.zeros(one["shape"], one["dtype"]) for name, one in part["signatures"]["step"]["inputs"].items()}
    with pytest.raises(gpu.RefusedError):  # once LiteRT takes it, the recipe may say so
        gpu.run(folder / part["file"], part["signatures"], "step", inputs, tmp_path)


def test_machine_without_a_gpu_is_told_so_in_a_line(tiny_bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "DRIVER", tmp_path / "none.json")
    with pytest.raises(gpu.RefusedError, match=r"CheckpointError: .*denoiser.tflite cannot be loaded by LiteRT on a GPU here: "):
        gpu.draw(tiny_bundle, tmp_path, **ASKED)


# -- single operations: lint and accelerator say the same ------------------------------------------------------------

TABLE = tf.constant(np.arange(400, dtype=np.float32).reshape(50, 8))
GRAPHS = {
    "a number without dimensions is multiplied": lambda x, i: x * tf.unstack(x[0, 0, 0])[0],
    "a number without dimensions is added": lambda x, i: x + tf.reduce_max(x),
    "a constant without dimensions is multiplied": lambda x, i: 2.5 * x,
    "a number with dimensions is multiplied": lambda x, i: x * tf.split(x, 8, axis=-1)[1],
    "whole numbers are unpacked": lambda x, i: tf.unstack(tf.cast(x, tf.int32), axis=-1)[1] * 2,
    "whole numbers are split": lambda x, i: tf.split(tf.cast(x, tf.int32), 4, axis=-1)[1] * 2,
    "floats are unpacked": lambda x, i: tf.unstack(x, axis=-1)[1] * 2,
    "whole numbers are combined": lambda x, i: tf.cast(x, tf.int32) * 256 + tf.cast(2 * x, tf.int32),
    "numbers of 64 bits": lambda x, i: tf.cast(tf.cast(x, tf.int64) * 2, tf.float32),
    "five dimensions": lambda x, i: tf.transpose(tf.reshape(x, [1, 4, 4, 4, 2]), [0, 1, 2, 4, 3]),
    "a broadcast": lambda x, i: tf.broadcast_to(tf.reduce_mean(x, axis=3, keepdims=True), [1, 4, 4, 8]),
    "a slice that drops dimensions": lambda x, i: x[0, 1] + 1,
    "a slice that drops none": lambda x, i: x[:, ::2] + 1,
    "a table read with one dimension": lambda x, i: tf.gather(TABLE, i),
    "a table read with two dimensions": lambda x, i: tf.gather(TABLE, tf.reshape(i, [2, 3])),
}
TAKEN = {
    "a constant without dimensions is multiplied",
    "a number with dimensions is multiplied",
    "floats are unpacked",
    "whole numbers are combined",
    "a slice that drops none",
    "a table read with one dimension",
}


def converted(graph, folder):
    """Returns the TFLite file of a function of `x` [1, 4, 4, 8] and whole numbers `i` [6] in [0, 50), with the signature run."""
    inputs = [tf.TensorSpec([1, 4, 4, 8], tf.float32, name="x"), tf.TensorSpec([6], tf.int32, name="i")]
    function = tf.function(graph, input_signature=inputs, autograph=False)
    tf.saved_model.save(tf.Module(), str(folder / "saved"), signatures={"run": function})
    file = folder / "graph.tflite"
    file.write_bytes(tf.lite.TFLiteConverter.from_saved_model(str(folder / "saved"), signature_keys=["run"]).convert())
    return file


def compared(file, work):
    """Returns outputs of a file on the GPU and on the CPU, by name. Raises: `RefusedError`."""
    random, runner = np.random.default_rng(0), Interpreter(str(file)).get_signature_runner("run")
    values = {"x": random.normal(size=[1, 4, 4, 8]).astype(np.float32), "i": random.integers(0, 50, 6).astype(np.int32)}
    values = {name: values[name] for name in runner.get_input_details()}
    expected = {name: np.array(value) for name, value in runner(**values).items()}
    outputs = {name: {"dtype": value.dtype.name, "shape": list(value.shape)} for name, value in expected.items()}
    return gpu.run(file, {"run": {"outputs": outputs}}, "run", values, work), expected


@pytest.mark.parametrize("name", GRAPHS)
def test_lint_refuses_what_the_accelerator_refuses(name, tmp_path):
    file = converted(lambda x, i: {"y": GRAPHS[name](x, i)}, tmp_path)
    assert bool(lint(file, gpu=True)) == (name not in TAKEN)
    if name not in TAKEN:
        with pytest.raises(gpu.RefusedError):
            compared(file, tmp_path)
        return
    ours, theirs = compared(file, tmp_path)
    np.testing.assert_allclose(ours["y"], theirs["y"], rtol=1e-6, atol=1e-6)


def test_sum_that_is_an_output_and_used_again_is_right_here_and_refused_for_phones(tmp_path):
    """GPUs of phones return one of its summands (LiteRT issue 8599); this one does not, so lint alone can tell."""

    def graph(x, i):
        total = 2 * x + tf.square(x)
        return {"total": total, "more": total * x}

    file = converted(graph, tmp_path)
    assert "1 ADD whose sum is an output and is used again" in " ".join(lint(file, gpu=True))
    ours, theirs = compared(file, tmp_path)
    for name in theirs:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5, atol=1e-6)
