"""The Android library's code on a desktop JVM, over LiteRT's C library: the same pictures and errors as in Python."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import toolchain
from older_bundles import write_format_2
from PIL import Image

from tfsd.api import load
from tfsd.device import MANIFEST, DeviceBundle
from tfsd.errors import CheckpointError
from tfsd.images.files import read_recipe
from tfsd.storage.files import sha256

pytestmark = pytest.mark.mobile
JVM, NATIVE = toolchain.MOBILE / "jvm", toolchain.MOBILE / "native"
MAIN = "dev.tfsd.jvm.GenerateKt"
LEVELS = 1  # of 255 that a colour may differ by: float32 sums in another order round to the other side
LONG = "a red star above a blue house at night, " * 12  # more tokens than the text encoder reads


@pytest.fixture(scope="module")
def desktop(tmp_path_factory):
    """What `GenerateKt` needs to run: its classes and the folders of both libraries."""
    folder, library = tmp_path_factory.mktemp("jvm"), toolchain.litert()
    classes = toolchain.compile_kotlin([*toolchain.core_sources(), *toolchain.sources(JVM)], folder / "classes")
    flags = ["-shared", "-fPIC", "-fvisibility=hidden", *toolchain.java_headers(), library]
    toolchain.compile_c([JVM / "litert_jni.c", NATIVE / "runtime.c"], folder / "libtfsd_jni.so", flags)
    return SimpleNamespace(classes=classes, flags=[f"-Djava.library.path={folder}:{library.parent}"])


def generate(desktop, bundle, prompt, png, flags=(), **options):
    """Returns the ended program that drew a picture."""
    arguments = [bundle, prompt, png, *(f"{name}={value}" for name, value in options.items())]
    return toolchain.ended(toolchain.java(MAIN, arguments, [desktop.classes], [*desktop.flags, *flags]))


@pytest.fixture(scope="module")
def device(tiny_bundle):
    return DeviceBundle(tiny_bundle)


@pytest.fixture(scope="module")
def python():
    return load("tiny")


@pytest.mark.parametrize(
    ("prompt", "options"),
    [
        ("a red star above a blue house at night", {"seed": 3, "num_steps": 5}),
        ("a large green fish", {"seed": -1, "num_steps": 4, "sampler": "euler_ancestral", "negative_prompt": "a red star"}),
        ("two yellow cars &amp; “a” TREE, é猫\u00a0🚗", {"seed": 2**40, "num_steps": 6, "sampler": "pndm", "index": 3}),
        (LONG, {"seed": 5, "num_steps": 4, "sampler": "dpmpp_2m_karras", "guidance_scale": 7.5}),
        ("", {"seed": 2**63 - 1, "num_steps": 1, "guidance_scale": 1}),
    ],
)
def test_pictures_are_those_of_python_within_a_level(prompt, options, desktop, tiny_bundle, device, python, tmp_path):
    done = generate(desktop, tiny_bundle, prompt, tmp_path / "x.png", **options)
    assert done.returncode == 0, done.stderr
    ours = np.asarray(Image.open(tmp_path / "x.png"), int)
    for model in (device, python):
        theirs = model.text_to_image(prompt, **options)
        assert np.abs(ours - np.asarray(theirs[0], int)).max() <= LEVELS
    assert ours.std() > 5  # there is something to compare
    assert ("tokens of the prompt were not read" in done.stdout) == (prompt == LONG)
    told = [tuple(map(int, found)) for found in re.findall(r"^step (\d+) of (\d+), ", done.stdout, re.MULTILINE)]
    assert told == [(i + 1, len(told)) for i in range(len(told))] and len(told) >= options["num_steps"]  # PNDM adds one


def test_bundles_of_format_2_draw_the_same_images(desktop, tiny_bundle, tmp_path):
    older = write_format_2(tiny_bundle, tmp_path / "older")
    for bundle, png in ((tiny_bundle, tmp_path / "new.png"), (older, tmp_path / "older.png")):
        assert generate(desktop, bundle, "a blue moon", png, seed=1, num_steps=2).returncode == 0
    assert (tmp_path / "older.png").read_bytes() == (tmp_path / "new.png").read_bytes()


def test_recipe_in_the_file_is_that_of_python(desktop, tiny_bundle, device, tmp_path):
    options = {"seed": -7, "num_steps": 2, "guidance_scale": 2.5, "negative_prompt": "blé", "index": 1}
    generate(desktop, tiny_bundle, "a “red” star", tmp_path / "x.png", **options)
    assert read_recipe(tmp_path / "x.png") == device.text_to_image("a “red” star", **options).recipes[0]


def test_java_finds_no_fault_with_the_native_methods(desktop, tiny_bundle, tmp_path):
    done = generate(desktop, tiny_bundle, "red", tmp_path / "x.png", ["-Xcheck:jni"], num_steps=2)
    assert done.returncode == 0 and "WARNING" not in done.stdout + done.stderr


def test_same_arguments_give_the_same_file_on_any_number_of_threads(desktop, tiny_bundle, tmp_path):
    files = [tmp_path / f"{threads}.png" for threads in (1, 2)]
    for threads, file in zip((1, 2), files):
        generate(desktop, tiny_bundle, "a blue moon", file, seed=1, num_steps=2, threads=threads)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_cancelling_stops_and_writes_nothing(desktop, tiny_bundle, tmp_path):
    done = generate(desktop, tiny_bundle, "red", tmp_path / "x.png", num_steps=9, stop_after=2)
    assert done.returncode == 1 and done.stderr.splitlines()[-1] == "Cancelled after 2 of 9 steps."
    assert done.stdout.count("step ") == 2 and not (tmp_path / "x.png").exists()


@pytest.mark.parametrize(
    ("prompt", "options"),
    [
        ("red", {"num_steps": 51}),
        ("red", {"num_steps": 0}),
        ("red", {"sampler": "none"}),
        ("red", {"index": 2**30}),
        ("red", {"guidance_scale": 100.5}),
        ("red", {"guidance_scale": -0.25}),
        ("é" * 40_000, {}),
        ("red", {"negative_prompt": "a" * 65_537}),
    ],
)
def test_arguments_that_cannot_be_met_get_the_words_of_python(prompt, options, desktop, tiny_bundle, device, tmp_path):
    with pytest.raises(ValueError) as refusal:
        device.text_to_image(prompt, seed=1, **options)
    done = generate(desktop, tiny_bundle, prompt, tmp_path / "x.png", **options)
    words = str(refusal.value).replace("prompt[0]", "prompt")  # Python takes lists of prompts, too
    assert done.returncode == 2 and done.stderr.splitlines()[-1] == words


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"png": "/nowhere/x.png"}, "/nowhere/x.png cannot be written"),
        ({"free_memory": 1000}, "text_encoder needs"),
        ({"seed": "red"}, "seed must be a number; got 'red'."),
        ({"colour": "red"}, "an option must be NAME=VALUE, with a name of negative_prompt, seed"),
        ({"threads": 0}, "threads must be at least 1; got 0"),
    ],
)
def test_what_the_desktop_refuses_is_told_in_the_last_line(arguments, words, desktop, tiny_bundle, tmp_path):
    arguments = {"png": tmp_path / "x.png", "num_steps": 1} | arguments
    done = generate(desktop, tiny_bundle, "red", **arguments)
    assert done.returncode in (1, 2) and words in done.stderr.splitlines()[-1]
    assert not (tmp_path / "x.png").exists()


@pytest.fixture
def damaged(tiny_bundle, tmp_path):
    folder = tmp_path / "damaged"
    folder.mkdir()
    for file in tiny_bundle.iterdir():
        (folder / file.name).symlink_to(file)
    return folder


def replace(file, content):
    file.unlink()
    file.write_bytes(content)


def cut(folder):
    replace(folder / "denoiser.tflite", (folder / "denoiser.tflite").read_bytes()[:-100])


def flip(folder):
    replace(folder / "decoder.tflite", (folder / "decoder.tflite").read_bytes()[:-1] + b"?")


def remove(folder):
    (folder / "tokenizer.json").unlink()


def remove_manifest(folder):
    (folder / MANIFEST).unlink()


def change_format(folder):
    replace(folder / MANIFEST, json.dumps(json.loads((folder / MANIFEST).read_text()) | {"format": 99}).encode())


@pytest.mark.parametrize("damage", [cut, flip, remove, remove_manifest, change_format])
def test_damaged_bundles_get_the_words_of_python(damage, desktop, damaged, tmp_path):
    damage(damaged)
    with pytest.raises(CheckpointError) as refusal:
        DeviceBundle(damaged)
    done = generate(desktop, damaged, "red", tmp_path / "x.png")
    assert done.returncode == 1 and done.stderr.splitlines()[-1] == str(refusal.value)


def test_model_that_litert_cannot_load_is_named(desktop, damaged, tmp_path):
    model, manifest = damaged / "text_encoder.tflite", json.loads((damaged / MANIFEST).read_text())
    replace(model, b"no model at all")
    manifest["files"][model.name] = {"sha256": sha256(model), "bytes": model.stat().st_size}
    replace(damaged / MANIFEST, json.dumps(manifest).encode())
    done = generate(desktop, damaged, "red", tmp_path / "x.png")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"{model} cannot be loaded by LiteRT: the file is not a TFLite model"


def test_usage_is_told_without_arguments(desktop):
    done = toolchain.ended(toolchain.java(MAIN, [], [desktop.classes]))
    assert done.returncode == 2 and "usage: java" in done.stderr


def test_missing_library_is_named(desktop, tiny_bundle, tmp_path):
    command = toolchain.java(MAIN, [tiny_bundle, "red", tmp_path / "x.png"], [desktop.classes], ["-Djava.library.path=/nowhere"])
    done = toolchain.ended(command)
    assert done.returncode == 1 and "there is no libLiteRt.so in java.library.path, /nowhere." in done.stderr
