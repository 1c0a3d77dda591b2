"""The embedded model: small enough to be shipped, whole, and as good as the report beside it says."""

import json

import numpy as np
import pytest

from tfsd import load
from tfsd.images import read_recipe
from tfsd.storage.model_folders import ASSETS, load_spec
from tfsd.training import scenes
from tfsd.training.evaluate import evaluate
from tfsd.training.recipe import tiny_spec

FOLDER = ASSETS / "tiny"
REPORT = json.loads((FOLDER / "evaluation.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tiny():
    return load("tiny", jit_compile=False)


def test_weights_are_under_ten_megabytes():
    assert sum(file.stat().st_size for file in FOLDER.glob("*.h5")) < 10e6


def test_networks_are_those_that_training_makes():
    ours, trained = load_spec(FOLDER), tiny_spec()
    assert (ours.text, ours.denoiser, ours.schedule) == (trained.text, trained.denoiser, trained.schedule)


def test_settings_of_training_stand_beside_the_weights():
    training = json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))["notes"]["training"]
    assert training["denoiser"]["pictures"] > 0 and training["denoiser"]["recipe"]["batch"] > 0


def test_no_word_of_the_grammar_is_unknown_to_the_model(tiny):
    spec, tokenizer = load_spec(FOLDER), tiny.tokenizer
    known = set(spec.text[0].kept_tokens)
    assert all(known.issuperset(tokenizer.encode(word)) for word in scenes.vocabulary())


def test_the_recipe_in_a_file_makes_the_same_bytes(tiny, tmp_path):
    first = tiny.text_to_image("a red ball in the snow", seed=3, num_steps=4)
    first.save(tmp_path / "ball.png")
    recipe = read_recipe(tmp_path / "ball.png")
    again = tiny.text_to_image(recipe["prompt"], seed=recipe["seed"], index=recipe["index"], num_steps=recipe["num_steps"])
    np.testing.assert_array_equal(first, again)


@pytest.mark.slow
def test_pictures_follow_prompts_as_often_as_the_report_says(tiny):
    measured = evaluate(tiny, n=32, seed=1, kinds=("one",), progress=False)["kinds"]["one"]
    reported = REPORT["kinds"]["one"]
    for name in ("objects", "colour", "background"):
        share = reported[name]
        spread = 4 * np.sqrt(max(share * (1 - share), 0.02) / 32)  # other prompts: four standard deviations of 32
        assert measured[name] >= share - spread, f"{name}: {measured[name]} of 32, reported {share}"


@pytest.mark.slow
def test_a_wrong_prompt_is_told_from_the_right_one(tiny):
    """The checker passes what a picture was asked to show, not any picture."""
    from tfsd.training import checker

    prompts = ["a red ball on a white background", "a blue ball at night", "a yellow ball in the snow", "a green ball at sunset"]
    images = tiny.text_to_image(prompts, seed=5)
    right = sum(checker.check(np.asarray(image), prompt).background for image, prompt in zip(images, prompts))
    wrong = sum(checker.check(np.asarray(image), prompt).background for image, prompt in zip(images, prompts[1:] + prompts[:1]))
    assert right >= 3 and wrong == 0
