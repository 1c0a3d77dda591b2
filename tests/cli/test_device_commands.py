"""`tfsd export tflite`, `tfsd verify` and `tfsd generate --device-bundle`, as a user types them."""

import json
import os
from pathlib import Path

import pytest
from command_line import one_line, start

from tfsd.images import read_recipe


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--device-bundle", "b", "--server", "localhost:1"], "give --server or --device-bundle, not both"),
        (["--threads", "2"], "--threads requires --device-bundle. Add --device-bundle DIR"),
        (["--device-bundle", "b", "--eta", "0.5"], "--eta cannot be given with --device-bundle"),
        (["--device-bundle", "b", "--model", "toy"], "--model cannot be given with --device-bundle"),
    ],
)
def test_options_that_do_not_go_together(argv, message, place, run):
    status, out, err = run("generate", "a red star", *argv)
    assert (status, out) == (2, "") and one_line(err) and message in err


def test_folder_that_is_no_bundle_is_one_line(place, run):
    status, out, err = run("generate", "a red star", "--device-bundle", "nothing")
    assert (status, out) == (1, "") and one_line(err) and "nothing is not a device bundle" in err


@pytest.mark.slow
def test_bundle_is_exported_verified_and_draws(place, run):
    status, out, _ = run("export", "tflite", "--model", "toy", "--out", "bundle", "--quantize", "float16", "--max-steps", "5")
    assert status == 0 and "denoiser" in out and out.splitlines()[-1] == "bundle"
    assert run("verify", "bundle")[:2] == (0, "bundle is undamaged and draws its reference image, byte for byte.\n")
    status, _, err = run("export", "tflite", "--model", "toy", "--out", "bundle")
    assert status == 1 and one_line(err) and "exists and is not empty. Give --overwrite to replace this bundle" in err
    assert start("verify", "bundle", "--quiet", extra={"TF_CPP_MIN_LOG_LEVEL": ""}).communicate()[1] == ""  # LiteRT is silent
    argv = ["a red star", "--device-bundle", "bundle", "--seed", "3", "--n", "2", "--steps", "2", "--out", "{n}.png", "--quiet"]
    assert run("generate", *argv)[0] == 0
    recipe = read_recipe("1.png")
    assert (recipe["seed"], recipe["index"], recipe["quantize"], recipe["num_steps"]) == (3, 1, "float16", 2)
    manifest = json.loads(Path("bundle/manifest.json").read_text())
    manifest["parts"]["denoiser"]["memory"] = 10**15
    Path("bundle/manifest.json").write_text(json.dumps(manifest))
    status, _, err = run("generate", *argv)
    assert status == 1 and one_line(err) and "denoiser needs 1000000.0 GB of memory" in err
    os.truncate("bundle/decoder.tflite", 100)
    status, _, err = run("verify", "bundle")
    assert status == 1 and one_line(err) and "decoder.tflite is damaged" in err
