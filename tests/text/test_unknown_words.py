"""Words that the embedded model never learned are named, and what it knows instead."""

import warnings
from dataclasses import replace

import pytest

from tfsd.api import load
from tfsd.errors import TfsdWarning
from tfsd.specs import CLIPSpec
from tfsd.text import Tokenizer, UnknownWordsWarning, own_prompts, unknown_words, unknown_words_message
from tfsd.text.unknown_words import OBJECTS, known_words
from tfsd.training import scenes
from tfsd.training.recipe import tiny_spec

TINY = Tokenizer(tiny_spec().text[0])
TOY_WORDS = "a red star"  # all that the toy model of these tests knows


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("a dog", ["dog"]),
        ("A Dog and a DOG, next to a cat!", ["dog"]),
        ("a red star above a blue house at night", []),
        ("a photorealistic zeppelin", ["photorealistic", "zeppelin"]),  # whole words, however many tokens they have
        ("a red car, (blue) moon...", []),  # punctuation says nothing
        ("ein Haus, 星 and 3 cats", ["ein", "haus", "星", "3"]),
        ("a cat's house, a dog's (the horse's)", ["dog's", "horse's"]),
        ("a red star 🌟 (🐶)", ["🌟", "🐶"]),
        ("a 'red' star", ["'red'"]),  # CLIP reads 're and d
        ("a cat " * 40 + "dog", []),  # cut off: another warning tells of it
        ("", []),
    ],
)
def test_words_that_the_model_never_learned_are_found(prompt, words):
    assert unknown_words(TINY, prompt) == words


def test_words_of_several_prompts_are_named_once():
    assert unknown_words(TINY, ["a dog", "a cat", "a bird above a dog"]) == ["dog", "bird"]


def test_a_model_with_the_whole_vocabulary_knows_all_words():
    assert unknown_words(Tokenizer(CLIPSpec()), "a photorealistic zeppelin") == []


def test_every_word_of_the_scenes_is_known():
    assert set(known_words(TINY.spec)) == set(scenes.vocabulary())
    assert tuple(scenes.SHAPES) == OBJECTS


def test_the_message_says_what_the_model_knows_instead():
    assert unknown_words_message(TINY.spec, ["dog", "mushrom"]) == (
        "prompt has words that the model never learned: 'dog', 'mushrom' (did you mean 'mushroom'?). It knows these objects: "
        "ball, boat, car, cat, cup, fish, flower, heart, house, moon, mushroom, rocket, star, tree."
    )
    others = replace(CLIPSpec(), kept_tokens=(320, 736))
    assert unknown_words_message(others, ["dog"], "negative_prompt").endswith("'dog'. It knows words such as a, red.")


def test_the_message_is_short_whatever_the_words():
    text = unknown_words_message(TINY.spec, [f"{'x' * 10_000}{i}" for i in range(1000)])
    assert len(text) < 1000 and "990 more" in text


def test_python_warns_once_for_the_same_words(toy_folder):
    model = load(toy_folder, jit_compile=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            model.text_to_image("a red dog", num_steps=1)
        model.text_to_image(TOY_WORDS, num_steps=1)
        model.encode_text("a dog")
        model.text_to_image("a red bird", negative_prompt="cats", num_steps=1)
    ours = [one for one in caught if one.category is UnknownWordsWarning]
    assert [str(one.message).split(". It")[0].split(" never learned: ") for one in ours] == [
        ["prompt has words that the model", "'dog'"],
        ["prompt has words that the model", "'bird'"],
        ["negative_prompt has words that the model", "'cats'"],
    ]
    with own_prompts(), warnings.catch_warnings():
        warnings.simplefilter("error", UnknownWordsWarning)
        model.encode_text("a zeppelin")
    with pytest.warns(UnknownWordsWarning, match="'zeppelin'"):  # what was not shown is not told
        model.encode_text("a zeppelin")
    assert {one.filename for one in ours} == {__file__} and issubclass(UnknownWordsWarning, TfsdWarning)
