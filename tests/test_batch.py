"""Rows of work are computed in batches: each image once, and together only what one call can make."""

import numpy as np
import pytest

from tfsd.api import load
from tfsd.arguments.table import ARGUMENTS
from tfsd.batch import batches, evenly

TWO_VALUES = {  # of each argument
    "prompt": ("a star", "a red star"),
    "negative_prompt": ("", "red"),
    "seed": (1, 2),
    "index": (3, 7),
    "guidance_scale": (2.0, 3.0),
    "num_steps": (1, 2),
    "sampler": ("ddim", "pndm"),
    "height": (16, 32),
    "width": (16, 32),
    "eta": (0.0, 0.5),
    "on_long": ("truncate", "error"),
    "image": ("one.png", "two.png"),
    "strength": (0.5, 0.6),
    "fit": ("crop", "pad"),
    "sample_image": (True, False),
}


def rows_of(count: int, n: int, **more) -> list[dict]:
    """Returns `n` images of each of `count` prompts, as the command line has them."""
    return [{"prompt": f"prompt {p}", "seed": 5, "index": 10 + i, **more} for p in range(count) for i in range(n)]


def made_by(arguments: dict) -> list[tuple]:
    """Returns prompt, seed and index of each image that `text_to_image` makes for the arguments of a batch."""
    prompts, seed, index = arguments["prompt"], arguments["seed"], arguments["index"]
    if isinstance(seed, list):
        return [(prompt, own, index) for prompt, own in zip(prompts, seed, strict=True)]
    return [(prompt, seed, index + i) for i, prompt in enumerate(prompts)]


def test_every_argument_of_the_table_is_tested_here():
    assert set(TWO_VALUES) == set(ARGUMENTS)


@pytest.mark.parametrize("name", TWO_VALUES)
def test_rows_share_a_batch_if_only_arguments_per_image_differ(name):
    first = {argument: values[0] for argument, values in TWO_VALUES.items()}
    found = batches([first, first | {name: TWO_VALUES[name][1]}], 4, fill=True)
    assert [batch.numbers for batch in found] == ([[0, 1]] if ARGUMENTS[name].per_image else [[0], [1]])
    if ARGUMENTS[name].per_image:
        assert found[0].arguments()[name] == list(TWO_VALUES[name])


@pytest.mark.parametrize(
    "count, n, max_rows, sizes, kept",
    [
        (1, 1, 4, [1], [1]),
        (1, 5, 4, [3, 3], [3, 2]),
        (7, 1, 4, [4, 4], [4, 3]),
        (10, 1, 4, [4, 4, 4], [4, 4, 2]),
        (3, 5, 2, [2] * 9, [2, 2, 1] * 3),
        (2, 4, 4, [4, 4], [4, 4]),
        (3, 2, 1, [1] * 6, [1] * 6),
        (1, 64, 64, [64], [64]),
    ],
)
def test_batches_make_every_image_once_and_in_order_and_are_filled_up_to_one_size(count, n, max_rows, sizes, kept):
    rows = rows_of(count, n)
    found = batches(rows, max_rows, fill=True)
    assert [len(batch.arguments()["prompt"]) for batch in found] == sizes
    assert [len(batch.rows) for batch in found] == kept
    assert [number for batch in found for number in batch.numbers] == list(range(len(rows)))
    made = [image for batch in found for image in made_by(batch.arguments())[: len(batch.rows)]]
    assert made == [(row["prompt"], row["seed"], row["index"]) for row in rows]


def test_batches_that_are_not_filled_up_make_no_other_images():
    assert [len(made_by(batch.arguments())) for batch in batches(rows_of(10, 1), 4, fill=False)] == [4, 4, 2]
    assert [len(made_by(batch.arguments())) for batch in batches(rows_of(1, 3), 2, fill=False)] == [2, 1]


def test_batch_is_filled_up_by_its_last_image_or_the_next_ones_of_its_seed():
    prompts, images = batches(rows_of(3, 1), 2, fill=True), batches(rows_of(1, 5), 3, fill=True)
    assert made_by(prompts[1].arguments()) == [("prompt 2", 5, 10)] * 2
    assert made_by(images[1].arguments()) == [("prompt 0", 5, 13), ("prompt 0", 5, 14), ("prompt 0", 5, 15)]


def test_rows_of_one_size_share_batches_even_if_others_are_between_them():
    sides = [16, 32, 16, 16, 32, 16, 64]
    rows = [{"prompt": str(i), "seed": i, "index": 0, "height": side} for i, side in enumerate(sides)]
    found = batches(rows, 3, fill=True)
    assert [batch.numbers for batch in found] == [[0, 2], [3, 5], [1, 4], [6]]
    for batch in found:
        assert batch.arguments()["height"] == sides[batch.numbers[0]]
        assert batch.arguments()["seed"] == batch.numbers


def test_row_with_an_argument_and_row_without_it_share_no_batch():
    rows = [row | more for row, more in zip(rows_of(3, 1), ({}, {"guidance_scale": 2.0}, {}))]
    found = batches(rows, 4, fill=True)
    assert [batch.numbers for batch in found] == [[0, 2], [1]]
    assert [batch.arguments().get("guidance_scale") for batch in found] == [None, [2.0]]


def test_indices_count_up_only_while_the_other_arguments_stay():
    rows = [*rows_of(1, 2, num_steps=4), {"prompt": "prompt 0", "seed": 5, "index": 12, "num_steps": 8}]
    found = batches(rows, 4, fill=True)
    assert [batch.numbers for batch in found] == [[0, 1], [2]]
    assert [batch.arguments()["num_steps"] for batch in found] == [4, 8]


@pytest.mark.parametrize(
    "count, max_rows, sizes", [(1, 8, [1]), (8, 8, [8]), (9, 8, [4, 5]), (10, 4, [3, 3, 4]), (3, 1, [1, 1, 1])]
)
def test_parts_are_few_and_their_sizes_differ_by_one_at_most(count, max_rows, sizes):
    parts = evenly(count, max_rows)
    assert [len(part) for part in parts] == sizes
    assert [number for part in parts for number in part] == list(range(count))


def test_batches_make_the_same_image_of_a_row_as_a_call_for_it_alone(toy_folder):
    model = load(toy_folder, jit_compile=False)
    rows = [
        {"prompt": "a star", "seed": 1, "index": 0, "height": 16, "sampler": "ddim"},
        {"prompt": "a red star", "seed": 2, "index": 0, "sampler": "euler", "num_steps": 2},
        {"prompt": "a red star", "negative_prompt": "a", "seed": 3, "index": 4},
        {"prompt": "a red star", "negative_prompt": "a", "seed": 3, "index": 5},
        {"prompt": "a red star", "negative_prompt": "a", "seed": 3, "index": 6},
        {"prompt": "red", "seed": 4, "index": 0, "height": 16, "sampler": "ddim"},
    ]
    found = batches(rows, 2, fill=True)
    assert [batch.numbers for batch in found] == [[0, 5], [1], [2, 3], [4]]
    for batch in found:
        images = model.text_to_image(**batch.arguments())
        assert len(images) == batch.size
        for image, row in zip(images, batch.rows):
            alone = model.text_to_image(**row)[0]
            assert image.recipe == alone.recipe
            assert np.abs(image.astype(int) - alone.astype(int)).max() <= 1
