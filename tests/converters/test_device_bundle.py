"""Bundles for phones: the same numbers from LiteRT as from Python, signature by signature and picture by picture."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from older_bundles import write_format_2
from PIL import Image

from tfsd.api import load
from tfsd.converters.device.convert import convert
from tfsd.converters.device.export import export_tflite
from tfsd.converters.device.lint import lint, look
from tfsd.converters.device.manifest import write_manifest
from tfsd.converters.device.parts import DevicePart, Signature, save_part
from tfsd.converters.device.recipes import RECIPES, plan_sizes
from tfsd.converters.device.report import REPORT, Check
from tfsd.converters.device.report_page import SHEET
from tfsd.converters.device.verify_bundle import REFERENCE, verify_bundle
from tfsd.converters.saved_model.verify_export import ExportError
from tfsd.device import MANIFEST, DeviceBundle, load_bundle_manifest
from tfsd.errors import CheckpointError
from tfsd.images.files import encode, read_recipe
from tfsd.noise import normal_noise
from tfsd.progress import Cancelled
from tfsd.samplers.plans import SAMPLERS, build_plan
from tfsd.specs import PRESETS, to_json
from tfsd.storage.files import sha256
from tfsd.storage.folders import own_files
from tfsd.text import UnknownWordsWarning

ROOT = Path(__file__).parents[2]
NOISE = 1e-6  # compilers may fuse a product with a sum; values reach 5
PARTS = ("sampling", "text_encoder", "denoiser", "decoder")
# The toy model knows few words. Exports and their checks draw prompts of their own, of which nobody wants to be warned.
pytestmark = pytest.mark.filterwarnings("error::tfsd.text.UnknownWordsWarning")


@pytest.fixture(scope="module")
def bundle(toy_folder, tmp_path_factory):
    return export_tflite(toy_folder, tmp_path_factory.mktemp("bundle") / "toy", max_steps=10)


@pytest.fixture(scope="module")
def device(bundle):
    return DeviceBundle(bundle)


@pytest.fixture(scope="module")
def python(toy_folder):
    return load(toy_folder, jit_compile=False)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_plans_are_those_of_python(sampler, device, python):
    plan = build_plan(python.spec.schedule, sampler, 7)
    with device.part("sampling") as run:
        rows = [run("plan", sampler=list(SAMPLERS).index(sampler), num_steps=7, step=i) for i in range(plan.count)]
    np.testing.assert_array_equal([row["row"] for row in rows], plan.rows[: plan.count])
    assert {int(row["count"][0]) for row in rows} == {plan.count}
    assert {float(row["init_scale"][0]) for row in rows} == {float(np.float32(plan.init_scale))}


@pytest.mark.parametrize(("seed", "index", "stream"), [(0, 0, 0), (7, 3, 2), (2**31 - 3, 1000, 10)])
def test_noise_is_that_of_python(seed, index, stream, device):
    with device.part("sampling") as run:
        made = run("noise", seed=seed, index=index, stream=stream, scale=1.0)["noise"]
    np.testing.assert_allclose(made, normal_noise([seed], [index], stream, made.shape[1:]), atol=NOISE, rtol=0)


@pytest.mark.parametrize("sampler", ["ddim", "PLMS", "Euler a", "dpmpp_2m"])
def test_pictures_are_those_of_python_within_a_level(sampler, device, python):
    options = {"seed": [3, 2**40, -1], "num_steps": 5, "sampler": sampler, "guidance_scale": [1.0, 2.5, 9.0], "index": 2}
    options["negative_prompt"] = ["", "red", "a star"]
    ours, theirs = (model.text_to_image(["a red star", "red", ""], **options) for model in (device, python))
    assert np.abs(np.asarray(ours, int) - np.asarray(theirs, int)).max() <= 1
    assert np.asarray(theirs).std() > 5  # there is something to compare
    same = {"prompt", "negative_prompt", "seed", "index", "guidance_scale", "num_steps", "sampler", "eta", "height", "width"}
    assert [{k: recipe[k] for k in same} for recipe in ours.recipes] == [
        {k: recipe[k] for k in same} for recipe in theirs.recipes
    ]
    assert ours.recipes[0]["weights"] == theirs.recipes[0]["weights"] and ours.recipes[0]["quantize"] == "none"


@pytest.mark.slow
@pytest.mark.parametrize("quantize", [name for name in RECIPES if name != "none"])
def test_quantized_bundles_are_smaller_and_lint_clean(quantize, toy_folder, tmp_path, bundle):
    made = export_tflite(toy_folder, tmp_path / "made", quantize=quantize, max_steps=10, check=Check(pictures=2, steps=4))
    assert (made / "denoiser.tflite").stat().st_size < (bundle / "denoiser.tflite").stat().st_size
    assert (made / "sampling.tflite").read_bytes() == (bundle / "sampling.tflite").read_bytes()
    parts = load_bundle_manifest(made)["parts"]
    assert not [line for name in PARTS for line in lint(made / f"{name}.tflite", gpu="gpu" in parts[name]["accelerators"])]
    report = json.loads((made / REPORT).read_text())
    assert report["lowest_psnr"] >= RECIPES[quantize].gate and len(report["pictures"]) == 2
    errors = {part: one["relative_error"] for part, one in report["parts"].items()}
    assert 0 < errors["text_encoder"] < 0.5 and max(errors.values()) < 0.5
    assert report["parts"]["denoiser"]["layers"]
    assert "a large green fish" in (made / SHEET).read_text()


def test_manifest_describes_every_signature(bundle):
    manifest = load_bundle_manifest(bundle)
    assert set(manifest["parts"]) == set(PARTS)
    for part in manifest["parts"].values():
        content = look(bundle / part["file"])
        described = {name: (sorted(one["inputs"]), sorted(one["outputs"])) for name, one in part["signatures"].items()}
        assert described == content.signatures


def test_manifest_says_what_passed_on_a_gpu_and_why_others_did_not(bundle):
    manifest = load_bundle_manifest(bundle)
    both, cpu = ["gpu", "cpu"], ["cpu"]
    found = {name: part["accelerators"] for name, part in manifest["parts"].items()}
    assert found == {"sampling": cpu, "text_encoder": cpu, "denoiser": both, "decoder": both}
    assert "SwiftShader" in manifest["checked"] and manifest["no_gpu"] == ""
    for name in ("none", "float16", "dynamic", "int8"):
        assert [RECIPES[name].accelerators(part) for part in PARTS] == [("cpu",)] * 2 + [("gpu", "cpu")] * 2
    for name in ("int8-weights", "int4"):
        assert RECIPES[name].no_gpu and {RECIPES[name].accelerators(part) for part in PARTS} == {("cpu",)}


def test_gpu_is_refused_where_a_recipe_did_not_pass_there(damaged):
    for changes, words in (
        ({"quantize": "int4", "no_gpu": "It ends the program"}, "'int4'; got 'gpu'. It ends the program. Export it again, with"),
        ({"quantize": "dynamic", "no_gpu": ""}, "got 'gpu'. The version that exported it tried no GPU. Export it again"),
    ):
        manifest = json.loads((damaged / MANIFEST).read_text()) | changes
        for part in manifest["parts"].values():
            part["accelerators"] = ["cpu"]
        (damaged / MANIFEST).write_text(json.dumps(manifest))
        with pytest.raises(ValueError, match=words):
            DeviceBundle(damaged, accelerator="gpu")
    with pytest.raises(ValueError, match="accelerator must be one of cpu, gpu; got 'npu'"):
        DeviceBundle(damaged, accelerator="npu")


def test_bundles_of_older_versions_draw_on_the_cpu_and_know_the_names_of_samplers(damaged, device):
    manifest = json.loads((damaged / MANIFEST).read_text())
    for part in manifest["parts"].values():
        del part["accelerators"]
    for name in ("sampler_aliases", "checked", "no_gpu", "kept_tokens"):
        del manifest[name]
    (damaged / MANIFEST).write_text(json.dumps(manifest))
    asked = {"prompt": "red", "seed": 1, "num_steps": 2, "sampler": "Euler a"}
    before = DeviceBundle(damaged)
    assert {tuple(before.accelerators(part)) for part in PARTS} == {("cpu",)}
    np.testing.assert_array_equal(before.text_to_image(**asked), device.text_to_image(**asked))


def test_bundles_of_format_2_draw_the_same_images(bundle, device, tmp_path):
    older, asked = write_format_2(bundle, tmp_path / "older"), {"prompt": "a red star", "seed": 1, "num_steps": 3}
    assert "waves" in load_bundle_manifest(older)["parts"]["denoiser"]["signatures"]["step"]["inputs"]
    np.testing.assert_array_equal(DeviceBundle(older).text_to_image(**asked), device.text_to_image(**asked))


@pytest.mark.parametrize("level", [None, pytest.param("0", marks=pytest.mark.slow)])
def test_litert_says_what_it_made_only_where_the_user_asked_for_information(level, bundle):
    script = "import sys, numpy as np; from tfsd.device import DeviceBundle; "
    script += "DeviceBundle(sys.argv[1])._contexts(np.zeros((1, 2, 77), 'int32'))"
    env = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    env |= {"PYTHONPATH": str(ROOT)} | ({} if level is None else {"TF_CPP_MIN_LOG_LEVEL": level})
    done = subprocess.run([sys.executable, "-c", script, str(bundle)], env=env, capture_output=True, text=True)
    assert done.returncode == 0 and ("XNNPACK" in done.stderr if level else done.stderr == "")


def test_words_that_the_model_never_learned_are_named_once(bundle):
    device = DeviceBundle(bundle)
    with pytest.warns(UnknownWordsWarning) as told:
        for _ in range(2):
            device.text_to_image("a dog", seed=1, num_steps=1, negative_prompt="a red cat")
    found = [(str(one.message).split(". ")[0], one.filename) for one in told]
    assert found == [
        ("negative_prompt has words that the model never learned: 'cat'", __file__),
        ("prompt has words that the model never learned: 'dog'", __file__),
    ]


@pytest.mark.parametrize("alias", ["DPM++ 2M Karras", "dpm++ 2m karras", "DPMPP_2M_KARRAS"])
def test_samplers_have_their_names_in_other_programs(alias, device):
    pictures = [device.text_to_image("red", seed=1, num_steps=2, sampler=name) for name in (alias, "dpmpp_2m_karras")]
    np.testing.assert_array_equal(*pictures)
    assert pictures[0].recipes[0]["sampler"] == "dpmpp_2m_karras"


def test_progress_is_told_and_cancelling_stops(device):
    told = []
    device.text_to_image("red", 2, seed=1, num_steps=3, callback=lambda done, steps: told.append((done, steps)))
    assert told[-1] == (6, 6) and len(told) > 1
    with pytest.raises(Cancelled):
        device.text_to_image("red", seed=1, num_steps=3, callback=lambda done, steps: False)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"sampler": "dpm3"}, "sampler must be one of ddim, .*; got 'dpm3'"),
        ({"index": 2**20 + 1}, "index must be from 0 to 1048576; got 1048577"),
        ({"num_steps": 11}, "num_steps must be from 1 to 10; got 11"),
        ({"height": 64}, "height must be 32, for which this bundle was exported; got 64"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be from 0 to 100"),
        ({"prompt": "a" * 10_000_000}, "prompt"),
        ({"prompt": []}, "at least one text"),
    ],
)
def test_arguments_that_cannot_be_met_are_named(arguments, words, device):
    with pytest.raises(ValueError, match=words):
        device.text_to_image(**{"prompt": "red", "seed": 1} | arguments)


def test_a_bundle_is_one_that_may_be_replaced(bundle):
    assert set(own_files(bundle, "device")) == {file.name for file in bundle.iterdir()}


@pytest.fixture
def damaged(bundle, tmp_path):
    folder = tmp_path / "damaged"
    folder.mkdir()
    for file in bundle.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_damaged_files_are_named(damaged):
    model = damaged / "denoiser.tflite"
    whole = model.read_bytes()
    for content, words in ((whole[:-100], "denoiser.tflite is damaged: it has"), (whole[:-1] + b"?", "its SHA-256 is")):
        model.write_bytes(content)
        with pytest.raises(CheckpointError, match=words):
            DeviceBundle(damaged)
    model.unlink()
    with pytest.raises(CheckpointError, match="denoiser.tflite cannot be read: No such file"):
        DeviceBundle(damaged)
    with pytest.raises(CheckpointError, match="is not a device bundle"):
        DeviceBundle(damaged / "nothing")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 1}, "has format 1; this tfsd reads 2 and 3. Export it again"),
        ({"kind": "other"}, "not the manifest of a device bundle"),
        ({"files": {"../secret": {"sha256": "", "bytes": 1}}}, "outside of the folder"),
        ({"parts": None}, "lacks parts"),
        ({"parts": {}}, "does not say in which of its files sampling is"),
        ({"files": ["denoiser.tflite"]}, "lists no files"),
        ({"identity": None}, "lacks identity"),
        ({"samplers": "ddim"}, "samplers is missing or not what it should be"),
        ({"max_steps": "7"}, "max_steps is missing or not what it should be"),
        ({"defaults": {"num_steps": 3, "sampler": "ddim"}}, "defaults.guidance_scale is missing or not what it should be"),
        ({"tokenizer": {"file": "tokenizer.json"}}, "tokenizer.length is missing or not what it should be"),
        ({"seed_period": 0}, "seed_period is missing or not what it should be"),
        ({"latents": [4, -4, 4]}, "latents is missing or not what it should be"),
        ({"sampler_aliases": ["euler"]}, "sampler_aliases is missing or not what it should be"),
        ({"kept_tokens": [1, 1]}, "kept_tokens must name no token twice"),
        ({"kept_tokens": 7}, "manifest.json is damaged"),
    ],
)
def test_manifest_that_is_none_is_refused(change, words, damaged):
    manifest = json.loads((damaged / MANIFEST).read_text()) | change
    (damaged / MANIFEST).write_text(json.dumps({key: value for key, value in manifest.items() if value is not None}))
    with pytest.raises(CheckpointError, match=words):
        DeviceBundle(damaged)


def test_part_that_needs_more_memory_than_is_free_is_named(damaged):
    manifest = json.loads((damaged / MANIFEST).read_text())
    manifest["parts"]["denoiser"]["memory"] = 10**15
    (damaged / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(MemoryError, match="denoiser needs 1000000.0 GB of memory; .* GB are free. Close other programs"):
        DeviceBundle(damaged).text_to_image("red", seed=1, num_steps=1)


def test_part_without_its_memory_is_named(damaged):
    manifest = json.loads((damaged / MANIFEST).read_text())
    del manifest["parts"]["decoder"]["memory"]
    (damaged / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="parts.decoder.memory is missing or not what it should be"):
        DeviceBundle(damaged)


def test_model_that_litert_cannot_load_is_named(damaged):
    device = DeviceBundle(damaged)
    (damaged / "text_encoder.tflite").write_bytes(b"no model at all")
    with pytest.raises(CheckpointError, match="text_encoder.tflite cannot be loaded by LiteRT"):
        device.text_to_image("red", seed=1)


@pytest.mark.slow
def test_export_below_its_gate_leaves_nothing(toy_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(RECIPES, "dynamic", RECIPES["dynamic"]._replace(gate=99.0))
    with pytest.raises(ExportError, match="worst PSNR .* dB, at least 99 dB. Choose another"):
        export_tflite(toy_folder, tmp_path / "made", quantize="dynamic", max_steps=4, check=Check(1, 2))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"quantize": "int3"}, "quantize must be one of none, float16"),
        ({"size": (32, 20)}, "size must be a multiple of 8; got 20"),
        ({"size": 32}, "size must be a pair"),
        ({"max_steps": 0}, "max_steps must be from 1"),
        ({"max_steps": 8, "check": Check(steps=9)}, "check.steps must be from 1 to 8; got 9"),
    ],
)
def test_arguments_of_an_export_are_named(arguments, words, toy_folder, tmp_path):
    with pytest.raises(ValueError, match=words):
        export_tflite(toy_folder, tmp_path / "made", **arguments)
    assert not list(tmp_path.iterdir())


def test_part_too_large_for_phones_is_refused_before_anything_is_loaded(tmp_path):
    folder = tmp_path / "sd"
    folder.mkdir()
    (folder / "spec.json").write_text(json.dumps(to_json(PRESETS["sd-1.4"])))
    file = {"sha256": sha256(folder / "spec.json"), "bytes": (folder / "spec.json").stat().st_size}
    (folder / "manifest.json").write_text(json.dumps({"files": {"spec.json": file}}))
    with pytest.raises(
        ExportError, match="denoiser.tflite would have 3.4 GB.*Choose float16 or dynamic or int8-weights or int8 or int4"
    ):
        export_tflite(folder, tmp_path / "made")
    assert plan_sizes(PRESETS["sd-1.4"])["float16"]["denoiser"].file_bytes == 2 * 859_520_964


def test_a_signature_is_traced_once_however_it_is_used(tmp_path):
    traced = []

    def double(x):
        traced.append(x)
        return {"y": 2 * x}

    signature = Signature(double, [tf.TensorSpec([1], tf.float32, name="x")])
    save_part(DevicePart([], {"run": signature}), tmp_path / "saved")
    assert list(signature.function.get_concrete_function().structured_outputs) == ["y"]
    assert signature.function(tf.constant([3.0]))["y"].numpy().tolist() == [6.0]
    assert len(traced) == 1
    convert(tmp_path / "saved", tmp_path / "double.tflite", ["run"], 0)
    assert look(tmp_path / "double.tflite").signatures == {"run": (["x"], ["y"])}


class Refused(tf.Module):
    table = tf.constant([[1.0, 2.0], [3.0, 4.0]])

    @tf.function(input_signature=[tf.TensorSpec([1, 2, 3, 4], tf.float32)])
    def __call__(self, x):
        numbers = tf.cast(x, tf.int32)
        total = 2 * x + tf.sin(x)
        spread = tf.broadcast_to(tf.reduce_mean(x, axis=3, keepdims=True), [1, 2, 3, 4])
        turned = tf.transpose(tf.reshape(x, [1, 2, 3, 2, 2]), [0, 1, 2, 4, 3])
        outer = x[:, :, :, :1] * tf.reduce_max(x, axis=2, keepdims=True)
        return {
            "y": turned,
            "spread": spread,
            "outer": outer,
            "row": x[0, 1] + 1,
            "scaled": x * tf.unstack(x[0, 0, 0])[0],
            "unpacked": tf.unstack(numbers, axis=-1)[1] * 2,
            "split": tf.split(numbers, 2, axis=-1)[1] * 2,
            "read": tf.gather(self.table, numbers[0, 0] % 2),
            "total": total,
            "again": total * x,
            "counts": tf.cast(tf.cast(x, tf.int64), tf.int32),
        }


def test_lint_finds_what_accelerators_refuse(tmp_path):
    module = Refused()
    tf.saved_model.save(module, str(tmp_path / "saved"), signatures={"run": module.__call__})
    file = tmp_path / "refused.tflite"
    file.write_bytes(tf.lite.TFLiteConverter.from_saved_model(str(tmp_path / "saved"), signature_keys=["run"]).convert())
    found = " ".join(lint(file, gpu=True))
    assert "1 BROADCAST_TO, which no GPU takes" in found and "TRANSPOSE of more than 4 dimensions" in found
    assert "MUL of two tensors of which neither is the larger one" in found and "CAST of INT64" in found
    assert "STRIDED_SLICE that adds or drops dimensions" in found
    assert "1 MUL of a number without dimensions that is computed" in found
    assert "1 UNPACK of INT32, which GPUs split only as floats" in found and "SPLIT of INT32" in found
    assert "1 GATHER with other than one dimension of indices" in found
    assert "1 ADD whose sum is an output and is used again" in found
    assert not lint(file, gpu=False)  # the CPU takes them
    with pytest.raises(ValueError, match="is not a TFLite model"):
        (tmp_path / "text").write_text("no model")
        look(tmp_path / "text")


def test_verify_names_a_recipe_that_this_version_does_not_know(damaged):
    manifest = json.loads((damaged / MANIFEST).read_text()) | {"quantize": "int2"}
    (damaged / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="manifest.json has quantize 'int2'; this tfsd knows none, float16"):
        verify_bundle(damaged)


def test_verify_names_a_reference_without_its_arguments(damaged):
    recipe = read_recipe(damaged / REFERENCE)
    del recipe["seed"]
    with Image.open(damaged / REFERENCE) as picture:
        content = encode(picture.convert("RGB"), recipe)
    (damaged / REFERENCE).write_bytes(content)
    write_manifest(damaged, json.loads((damaged / MANIFEST).read_text()))
    with pytest.raises(CheckpointError, match="reference.png is damaged: its recipe lacks seed"):
        verify_bundle(damaged)


def test_verify_finds_a_bundle_that_makes_another_image(bundle, tmp_path):
    assert verify_bundle(bundle).equal
    folder = tmp_path / "other"
    shutil.copytree(bundle, folder)
    recipe = read_recipe(folder / REFERENCE) | {"seed": 5}
    with Image.open(folder / REFERENCE) as picture:
        content = encode(picture.convert("RGB"), recipe)
    (folder / REFERENCE).write_bytes(content)
    write_manifest(folder, json.loads((folder / MANIFEST).read_text()))
    with pytest.raises(ExportError, match="makes another image than when it was exported: .* dB"):
        verify_bundle(folder)
