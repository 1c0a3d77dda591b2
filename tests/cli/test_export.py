"""`tfsd export` and `tfsd verify`: what is wrong is said in one line, and nothing half-written is left."""

import json
import os
import shutil

import pytest
from command_line import made, one_line


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "target"),
        (["onnx", "--out", "models"], "target must be one of saved_model, tflite; got 'onnx'"),
        (["saved_model", "--out", "models", "--quantize", "float16"], "--quantize does not apply to saved_model"),
        (["tflite", "--out", "bundle", "--no-xla"], "--no-xla does not apply to tflite"),
        (["tflite", "--out", "bundle", "--quantize", "int3"], "--quantize must be one of none, float16"),
        (["tflite", "--out", "bundle", "--size", "32x32", "--size", "64x64"], "a bundle has one size"),
        (["saved_model"], "--out"),
        (["saved_model", "--out", "models", "--size", "128x"], "--size must be height x width in pixels, as 512x768; got '128x'"),
        (["saved_model", "--out", "models", "--batch-sizes", "0"], "--batch-sizes must be a whole number from 1 to 64"),
        (["saved_model", "--out", "models", "--max-steps", "1001"], "must be a whole number from 1 to 1000"),
        (["saved_model", "--out", "models", "--version", "0"], "must be a whole number of at least 1"),
    ],
)
def test_usage_error_is_one_line(argv, message, place, run):
    status, out, err = run("export", *argv)
    assert (status, out) == (2, "") and one_line(err) and message in err


@pytest.mark.parametrize("target", ["saved_model", "tflite"])
def test_size_that_does_not_fit_is_refused_before_the_model_is_loaded(target, place, run):
    os.remove("toy/unet.weights.h5")
    status, out, err = run("export", target, "--model", "toy", "--out", "models", "--size", "20x32", "--quiet")
    assert (status, out) == (2, "") and one_line(err) and "--size must be a multiple of 8; got 20. Use 16 or 24." in err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--size", "20x32"], "--size must be a multiple of 8; got 20. Use 16 or 24."),
        (["--size", "32x32", "--size", "32x32"], "--size must be different pairs"),
        (["--batch-sizes", "4", "2"], "--batch-sizes must be rising numbers; got [4, 2]"),
    ],
)
def test_what_does_not_fit_the_model_is_one_line(argv, message, place, run):
    status, out, err = run("export", "saved_model", "--model", "toy", "--out", "models", "--quiet", *argv)
    assert (status, out) == (2, "") and one_line(err) and message in err
    assert not os.path.exists("models")


def test_version_that_is_there_is_not_replaced(place, run):
    os.makedirs("models/toy/3")
    status, _, err = run("export", "saved_model", "--model", "toy", "--out", "models", "--version", "3", "--quiet")
    assert status == 1 and one_line(err) and "has a version 3" in err
    assert os.listdir("models/toy") == ["3"] and not os.listdir("models/toy/3")


@pytest.mark.parametrize(
    ("argv", "kind", "shown"),
    [
        (("export", "tflite", "--model", "toy", "--out", "there"), "device", "bundle for phones"),
        (("convert", "toy", "there"), "model", "model folder"),
    ],
    ids=["export", "convert"],
)
def test_own_folder_that_is_there_is_found_before_work_begins(argv, kind, shown, place, run):
    os.makedirs("there")
    manifest = {"format": 1, "kind": kind, "tfsd": "0.1.0", "files": {}}
    (place / "there/manifest.json").write_text(json.dumps(manifest))
    status, out, err = run(*argv)
    assert (status, out) == (1, "") and one_line(err)
    assert f"exists and is not empty. Give --overwrite to replace this {shown}, or another folder." in err
    (place / "there/own.txt").write_text("not ours")
    for options in ((), ("--overwrite",)):
        status, _, err = run(*argv, *options)
        assert status == 1 and one_line(err) and ("it holds own.txt" if options else "Remove it, or give") in err


@pytest.mark.parametrize(
    "argv", [("export", "saved_model", "--out"), ("export", "tflite", "--out"), ("convert", "toy")], ids=" ".join
)
def test_file_in_the_place_of_a_folder_is_found_before_work_begins(argv, place, run):
    os.remove("toy/unet.weights.h5")
    (place / "file").touch()
    options = () if argv[0] == "convert" else ("--model", "toy")
    status, out, err = run(*argv, "file", *options)
    assert (status, out) == (1, "") and one_line(err) and "is a file" in err


def test_folder_that_is_no_export_cannot_be_verified(place, run):
    status, out, err = run("verify", "toy")
    assert (status, out) == (1, "") and one_line(err) and "toy is not an export: it is neither a version" in err
    assert made(".") == []


def test_folder_that_is_not_there_cannot_be_verified(place, run):
    status, out, err = run("verify", "nowhere")
    assert (status, out) == (1, "") and one_line(err) and "nowhere does not exist" in err


def test_manifest_that_is_none_is_named(place, run):
    os.makedirs("models/toy/1/assets.extra")
    for name, text in (("saved_model.pb", ""), ("assets.extra/manifest.json", json.dumps({"name": "toy"}))):
        with open(f"models/toy/1/{name}", "w") as file:
            file.write(text)
    status, _, err = run("verify", "models/toy/1")
    assert status == 1 and one_line(err) and "is damaged: it lacks version" in err
    shutil.rmtree("models")
