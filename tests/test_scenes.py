"""The scenes of the embedded model: what is drawn, what is said, and what is kept for evaluation."""

import hashlib
import itertools

import numpy as np
import pytest

from tfsd.training.drawing import background, render
from tfsd.training.scenes import (
    BACKGROUNDS,
    COLOURS,
    KINDS,
    SHAPES,
    SIZE_WORDS,
    SIZES,
    STAGES,
    Scene,
    Thing,
    evaluation_scene,
    held_out,
    parse,
    sample_scene,
    training_scene,
    vocabulary,
)


def scenes_of(draw, argument, n=300, seed=0):
    rng = np.random.default_rng(seed)
    return [draw(rng, argument) for _ in range(n)]


@pytest.mark.parametrize("stage", STAGES)
def test_a_caption_reads_back_as_the_scene_it_describes(stage):
    for scene in scenes_of(sample_scene, stage):
        said = parse(scene.caption)
        assert [shape for shape, _ in said.things] == [thing.shape for thing in scene.things]
        assert all(colour in (None, thing.colour) for (_, colour), thing in zip(said.things, scene.things))
        assert said.relation == scene.relation
        assert said.background in (None, scene.background)


@pytest.mark.parametrize(
    ("caption", "things", "relation", "place"),
    [
        ("A photo of  an Orange fish under the stars.", (("fish", "orange"),), None, "night"),
        ("a red star to the left of a green house at night", (("star", "red"), ("house", "green")), "left", "night"),
        ("three fish in the sea", (("fish", None),) * 3, None, "sea"),
        ("a small blue cup over a big white cat", (("cup", "blue"), ("cat", "white")), "above", None),
        ("two blue boats on a blue background", (("boat", "blue"),) * 2, None, "blue"),
    ],
)
def test_parse_reads_hand_written_captions(caption, things, relation, place):
    said = parse(caption)
    assert (said.things, said.relation, said.background) == (things, relation, place)


@pytest.mark.parametrize(
    "caption",
    ["", "red star", "a red", "two star", "a red dog", "a red star and", "a red star at noon", "two stars and a car", "at night"],
)
def test_parse_rejects_what_the_grammar_cannot_say(caption):
    with pytest.raises(ValueError, match="caption must be one that the scene grammar can utter"):
        parse(caption)


def test_captions_use_only_the_vocabulary_and_all_of_it():
    words = {word for scene in scenes_of(sample_scene, "all", 8000) for word in scene.caption.split()}
    assert words == set(vocabulary())


def test_articles_agree_with_the_next_word():
    for scene in scenes_of(sample_scene, "all", 2000):
        for article, word in itertools.pairwise(scene.caption.split()):
            if article in ("a", "an"):
                assert (article == "an") == (word[0] in "aeiou"), scene.caption


@pytest.mark.parametrize("stage", STAGES)
def test_training_never_draws_a_held_out_prompt_or_picture(stage):
    kept = {frozenset(parse(scene.caption).things) for scene in scenes_of(evaluation_scene, "two", 800, seed=1)}
    for scene in scenes_of(training_scene, stage, 800, seed=2):
        assert not held_out(scene)
        assert frozenset(parse(scene.caption).things) not in kept


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_draws_only_held_out_prompts(kind):
    expected = {"one": {1}, "two": {2}, "count": {2, 3}}[kind]
    scenes = scenes_of(evaluation_scene, kind, 200)
    assert all(held_out(scene) for scene in scenes)
    assert {len(scene.things) for scene in scenes} == expected
    assert all((scene.relation is not None) == (kind == "two") for scene in scenes)


def test_no_training_caption_asks_for_an_evaluation_prompt_in_other_words():
    def meaning(scene):
        said = parse(scene.caption)
        return (frozenset(said.things), None) if said.relation else (said.things, said.background)

    asked = {meaning(scene) for kind in KINDS for scene in scenes_of(evaluation_scene, kind, 600)}
    trained = {meaning(scene) for stage in STAGES for scene in scenes_of(training_scene, stage, 3000)}
    assert not asked & trained


def test_about_a_tenth_of_the_prompts_is_held_out():
    share = np.mean([held_out(scene) for scene in scenes_of(sample_scene, "pair", 3000)])
    assert 0.08 < share < 0.12  # binomial standard deviation 0.0055


def test_the_split_does_not_move():
    """Another split would make prompts of a trained model's training count as unseen."""
    kept = [
        f"{colour} {shape} {place}"
        for shape, colour, place in itertools.product(SHAPES, COLOURS, BACKGROUNDS)
        if held_out(Scene((Thing(shape, colour, 0.2, 0.5, 0.5),), place, None, f"one {colour} {shape} {BACKGROUNDS[place][0]}"))
    ]
    digest = hashlib.sha256("\n".join(kept).encode()).hexdigest()
    assert (len(kept), digest[:16]) == (188, "be1358698ae93c9b")


@pytest.mark.parametrize("stage", STAGES)
def test_objects_stay_inside_apart_and_large_enough(stage):
    for scene in scenes_of(sample_scene, stage, 1000):
        for thing in scene.things:
            assert thing.size * 128 >= 16
            assert min(thing.x, thing.y, 1 - thing.x, 1 - thing.y) >= thing.size + 2 / 128
        for one, other in itertools.combinations(scene.things, 2):
            assert np.hypot(one.x - other.x, one.y - other.y) >= one.size + other.size + 5 / 128, scene


def test_size_words_are_visible_in_single_objects():
    words = {word: size for size, said in SIZE_WORDS.items() for word in said}
    for scene in scenes_of(sample_scene, "single", 1000):
        size = next((words[word] for word in scene.caption.split() if word in words), "medium")
        assert SIZES[size][0] <= scene.things[0].size <= SIZES[size][1]


@pytest.mark.parametrize("relation", ["left", "right", "above", "below"])
def test_a_relation_is_drawn_as_it_is_said(relation):
    axis, sign = {"left": ("x", -1), "right": ("x", 1), "above": ("y", -1), "below": ("y", 1)}[relation]
    for scene in scenes_of(sample_scene, "pair", 600):
        if scene.relation == relation:
            first, second = scene.things
            assert sign * (getattr(first, axis) - getattr(second, axis)) * 128 > 32


def test_a_seed_gives_the_same_scenes_and_pictures():
    first, second = (scenes_of(training_scene, "all", 30, seed=5) for _ in range(2))
    assert first == second
    assert all(np.array_equal(render(a), render(b)) for a, b in zip(first, second))
    assert scenes_of(training_scene, "all", 30, seed=6) != first


def test_rendering_leaves_the_background_as_it_is_and_paints_the_colour_named():
    for colour, rgb in COLOURS.items():
        scene = Scene((Thing("heart", colour, 0.2, 0.5, 0.5),), "grey", None, "")
        image = render(scene)
        assert image.shape == (128, 128, 3) and image.dtype == np.uint8
        assert np.abs(image[64, 64].astype(float) - rgb).max() <= 12, colour  # shading changes the middle little
        assert np.array_equal(image[:30], (background("grey")[:30] + 0.5).astype(np.uint8))


def test_a_picture_of_another_size_shows_the_same():
    scene = scenes_of(sample_scene, "pair", 1)[0]
    large = render(scene, 256).reshape(128, 2, 128, 2, 3).mean(axis=(1, 3))
    assert np.abs(large - render(scene)).mean() < 3  # edges and outlines differ by fractions of a pixel


@pytest.mark.parametrize(("draw", "name"), [(sample_scene, "stage"), (evaluation_scene, "kind")])
def test_unknown_stages_and_kinds_are_named(draw, name):
    with pytest.raises(ValueError, match=f"{name} must be one of .*; got 'three'"):
        draw(np.random.default_rng(0), "three")
