"""The checker of prompt adherence: right on drawings, clean or spoilt, and not to be fooled."""

import numpy as np
import pytest

from tfsd.training.checker import accuracy, check, components, degrade, look
from tfsd.training.drawing import background, render
from tfsd.training.scenes import BACKGROUNDS, COLOURS, SHAPES, Expectation, Scene, Thing, sample_scene

PAIR = Scene(
    (Thing("star", "red", 0.19, 0.28, 0.55), Thing("house", "green", 0.19, 0.74, 0.55)),
    "night",
    "left",
    "a red star to the left of a green house at night",
)


@pytest.fixture(scope="module")
def shares():
    return accuracy(200, seed=3)


def test_drawings_are_read_right(shares):
    assert shares["clean"]["everything"] >= 0.99
    assert shares["clean"]["background"] == 1.0


def test_blurred_noisy_tinted_drawings_are_read_right(shares):
    assert shares["degraded"]["everything"] >= 0.97


def test_shuffled_prompts_fail(shares):
    assert shares["shuffled"]["everything"] == 0.0
    assert shares["shuffled"]["objects"] <= 0.03  # equal objects do fall together by chance


def test_a_stronger_blur_costs_little():
    rng = np.random.default_rng(4)
    scenes = [sample_scene(rng) for _ in range(100)]
    right = [check(degrade(render(scene), rng, blur=2.0), scene).everything for scene in scenes]
    assert np.mean(right) >= 0.9  # 0.97 of 500 were measured


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_told_in_every_colour_on_its_worst_backgrounds(shape):
    for i, colour in enumerate(COLOURS):
        for place in ("sea", "night", "forest", "white", "yellow", "snow"):
            thing = Thing(shape, colour, (17 + 3 * (i % 5)) / 128, 0.5, 0.56)
            assert check(render(Scene((thing,), place, None, "")), Expectation(((shape, colour),), None, place)).everything, (
                colour,
                place,
            )


@pytest.mark.parametrize(
    ("prompt", "right"),
    [
        ("a red star to the left of a green house at night", "objects count relation background everything"),
        ("a green house right of a red star", "objects count relation background everything"),
        ("a green house beside a red star", "objects count relation background everything"),
        ("a star and a house", "objects count relation background everything"),
        ("a green house left of a red star", "objects count background"),
        ("a red star above a green house", "objects count background"),
        ("a green star to the left of a red house at night", "count background"),
        ("a red star to the left of a green house in the sea", "objects count relation"),
        ("a red star", "objects relation background"),
        ("three red stars", "relation background"),
    ],
)
def test_each_part_of_a_prompt_is_judged_by_itself(prompt, right):
    verdict = check(render(PAIR), prompt)
    parts = ("objects", "count", "relation", "background", "everything")
    assert " ".join(part for part in parts if getattr(verdict, part)) == right


def test_swapped_colours_keep_the_shapes():
    verdict = check(render(PAIR), "a green star to the left of a red house at night")
    assert verdict.shapes == (True, True) and verdict.colours == (False, False)


@pytest.mark.parametrize("place", BACKGROUNDS)
def test_an_empty_background_holds_no_object(place):
    verdict = check(background(place).round().astype(np.uint8), Expectation((("ball", "red"),), None, place))
    assert verdict.found == () and verdict.background and not verdict.objects and not verdict.count


def test_noise_is_nothing_known():
    rng = np.random.default_rng(0)
    for _ in range(5):
        image = rng.integers(0, 256, (128, 128, 3), dtype=np.uint8)
        assert not check(image, "a red star").objects


def test_most_shapeless_blobs_are_nothing_known():
    rng, (y, x) = np.random.default_rng(1), np.mgrid[-64:64, -64:64]
    names = []
    for _ in range(60):
        waves = sum(a * np.cos(k * np.arctan2(y, x) + b) for k, (a, b) in enumerate(rng.normal(0, 1.4, (5, 2)), start=1))
        image = background("grey").copy()
        image[np.hypot(y, x) < np.clip(28 + 3.4 * waves, 10, 58)] = COLOURS["red"]
        names += [found.shape for found in look(image.astype(np.uint8))[0]]
    assert len(names) == 60
    assert names.count(None) > 30  # the others are fair balls and hearts


def test_pictures_of_other_sizes_are_read():
    assert check(render(PAIR, 256), PAIR).everything


def test_components_are_the_parts_connected_by_edges():
    mask = np.array([[1, 0, 1, 0, 1], [1, 0, 1, 1, 1], [0, 1, 0, 0, 0], [0, 1, 1, 1, 1]], bool)
    labels, count = components(mask)
    assert count == 3
    np.testing.assert_array_equal(labels, [[1, 0, 2, 0, 2], [1, 0, 2, 2, 2], [0, 3, 0, 0, 0], [0, 3, 3, 3, 3]])


def test_components_follow_spirals():
    spiral = np.array([[1, 1, 1, 1, 1], [0, 0, 0, 0, 1], [1, 1, 1, 0, 1], [1, 0, 0, 0, 1], [1, 1, 1, 1, 1]], bool)
    assert components(spiral)[1] == 1 and components(~spiral)[1] == 1 and components(np.zeros((4, 4), bool))[1] == 0


@pytest.mark.parametrize("image", [np.zeros((8, 8, 3), np.float32), np.zeros((8, 9, 3), np.uint8), np.zeros((8, 8), np.uint8)])
def test_other_arrays_are_refused(image):
    with pytest.raises(ValueError, match="image must be uint8"):
        check(image, PAIR)
