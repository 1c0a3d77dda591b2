"""The vectors that phones are tested by: they are what this package computes, and what OpenAI's and KerasCV's programs did."""

import base64
import gzip
import importlib.util
import io
import json
import math
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tfsd.device import DeviceBundle
from tfsd.errors import CheckpointError
from tfsd.noise import effective_seed, noise_words, normal_noise
from tfsd.runtime import memory
from tfsd.specs import CLIPSpec
from tfsd.text import Tokenizer

ROOT = Path(__file__).parents[2]
VECTORS = ROOT / "mobile" / "vectors"
CLOSE = 2e-6  # logarithm, sine and cosine of two float32 libraries; values reach 5
LATENTS = 1e-4  # float32 convolutions of two machines, after five steps
NOT_OF_PYTHON = ("no_json",)  # it names the place in the JSON


def load_make():
    spec = importlib.util.spec_from_file_location("make_vectors", VECTORS / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make = load_make()


def read(name):
    return json.loads((VECTORS / name).read_text(encoding="ascii"))


TOKENS, NOISE, ERRORS = read("tokens.json"), read("noise.json"), read("errors.json")


@pytest.mark.parametrize("name", ["tokens.json", "noise.json", "errors.json"])
def test_files_are_what_make_writes(name):
    assert (VECTORS / name).read_text(encoding="ascii") == make.text_of(make.FILES[name]()), "Run mobile/vectors/make.py."


def test_vectors_are_small():
    assert sum(path.stat().st_size for path in VECTORS.iterdir()) < 1e6


def test_tokens_are_those_of_openai():
    lines = gzip.decompress((ROOT / "tests/data/tokenizer/cases.jsonl.gz").read_bytes()).decode("utf-8").splitlines()
    cases = [json.loads(line) for line in lines]
    assert [(one["text"], one["ids"]) for one in TOKENS] == [(case["text"], case["ids"]) for case in cases]
    assert {case["cat"] for one, case in zip(TOKENS, cases) if one["guessed"]} == {"mojibake"}
    assert len(TOKENS) == 1000 and sum(one["guessed"] for one in TOKENS) == 35


def test_tokens_are_those_of_the_package():
    with_ftfy, without_ftfy = Tokenizer(CLIPSpec()), Tokenizer(replace(CLIPSpec(), ftfy=False))
    assert [with_ftfy.encode(one["text"]) for one in TOKENS] == [one["ids"] for one in TOKENS]
    plain = [one.get("ids_without_ftfy", one["ids"]) for one in TOKENS]
    assert [without_ftfy.encode(one["text"]) for one in TOKENS] == plain
    assert sum("ids_without_ftfy" in one for one in TOKENS) == 123


def test_seeds_stand_for_what_the_package_takes_them_for():
    assert [effective_seed(int(one["seed"])) for one in NOISE["seeds"]] == [one["effective"] for one in NOISE["seeds"]]
    assert {-(2**63), -1, 2**63 - 1} < {int(one["seed"]) for one in NOISE["seeds"]}


def test_words_and_normals_are_those_of_the_package():
    shape, streams = NOISE["shape"], NOISE["streams"]
    seeds, indices, numbers = (np.array([one[key] for one in streams], np.int32) for key in ("seed", "index", "stream"))
    words = np.stack(noise_words(seeds, indices, numbers[:, None], math.prod(shape) // 4), axis=-1).view(np.uint32)
    np.testing.assert_array_equal(words.reshape(len(streams), -1)[:, :64], [one["words"] for one in streams])
    known = [i for i, one in enumerate(streams) if "normals" in one]
    ours = normal_noise(seeds[known], indices[known], 0, shape).numpy().reshape(len(known), -1)[:, :64]
    np.testing.assert_allclose(ours, [streams[i]["normals"] for i in known], rtol=0, atol=CLOSE)
    assert len(streams) == 10 and {one["stream"] for one in streams} == {0, 1, 2, 4, 50}


def test_some_noise_is_that_of_kerascv():
    reference = np.load(ROOT / "tests/data/samplers/noise.npz")
    known = [one for one in NOISE["streams"] if "normals" in one]
    assert len(known) == 6
    for one in known:
        theirs = reference[f"seed{one['seed']}"][one["index"]].ravel()[:64]
        np.testing.assert_array_equal(np.float32(one["normals"]), theirs)


@pytest.mark.parametrize(
    "case", [case for case in ERRORS["cases"] if case["id"] not in NOT_OF_PYTHON], ids=lambda case: case["name"]
)
def test_errors_are_those_of_the_package(case, tmp_path, monkeypatch):
    for name, text in (ERRORS["files"] | case["files"]).items():
        if text is not None:
            (tmp_path / name).write_text(text, encoding="utf-8")
    arguments = {
        key: value["repeat"] * value["times"] if isinstance(value, dict) else value for key, value in case["arguments"].items()
    }
    (tmp_path / "meminfo").write_text(f"MemAvailable: {case.get('memory', 2**40) // 1024} kB\n")
    monkeypatch.setattr(memory, "PROC", tmp_path)
    with pytest.raises((ValueError, MemoryError, CheckpointError)) as raised:
        DeviceBundle(tmp_path).text_to_image(**arguments)
    # Python draws several pictures at once and says which one's prompt it is.
    assert str(raised.value).replace("prompt[0]", "prompt") == case["text"].replace("{folder}", str(tmp_path))


def test_every_error_before_a_model_runs_has_a_case():
    templates = json.loads((ROOT / "mobile/messages.json").read_text(encoding="utf-8"))
    # Halves of surrogate pairs are in no JSON; the rest need a model, or a manifest of 64 MB.
    untold = {"surrogate", "load", "run", "not_finite", "cancelled", "large"}
    assert {case["id"] for case in ERRORS["cases"]} == set(templates) - untold


@pytest.mark.slow
def test_generations_are_those_of_the_package():
    written = read("generation.json")
    assert len(written) == len(make.GENERATIONS)
    for ours, one in zip(make.generation(), written):
        assert {**ours, "first": 0, "latents": 0, "picture": 0} == {**one, "first": 0, "latents": 0, "picture": 0}
        np.testing.assert_allclose(floats(ours["first"]), floats(one["first"]), rtol=0, atol=CLOSE)
        assert len(one["latents"]) == one["count"]
        for mine, latents in zip(ours["latents"], one["latents"]):
            np.testing.assert_allclose(floats(mine), floats(latents), rtol=0, atol=LATENTS)
        assert np.abs(pixels(ours["picture"]) - pixels(one["picture"])).max() <= 1
        assert pixels(one["picture"]).std() > 20  # there is something to compare


def test_a_generation_follows_from_its_seed_and_prompt():
    for one in read("generation.json"):
        shape = (16, 16, 4)
        noise = normal_noise([effective_seed(one["seed"])], [one["index"]], 0, shape).numpy() * one["init_scale"]
        np.testing.assert_allclose(floats(one["first"]), noise.ravel(), rtol=0, atol=CLOSE)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            tokens = Tokenizer(CLIPSpec())([one["negative_prompt"], one["prompt"]])
        np.testing.assert_array_equal(tokens, one["tokens"])
        assert pixels(one["picture"]).shape == (*one["size"], 3)


def floats(text):
    return np.frombuffer(base64.b64decode(text), "<f4")


def pixels(text):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))), int)
