"""Image to image in Python: what strength, seeds and sizes do, what recipes say, and what bad arguments get."""

import hashlib

import numpy as np
import pytest
from PIL import Image

import tfsd
from tfsd import cached_model
from tfsd.api import StableDiffusion, load
from tfsd.models import build
from tfsd.specs import SpecError
from tfsd.storage.model_folders import load_parts, load_spec

SIDE = 32


@pytest.fixture(scope="module")
def model(toy_folder) -> StableDiffusion:
    return load(toy_folder, jit_compile=False)


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    """A file of the size of the toy model's images."""
    file = tmp_path_factory.mktemp("photos") / "photo.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(file)
    return file


@pytest.fixture(scope="module")
def two(model, photo):
    return model.image_to_image("a red star", photo, 2, 7, num_steps=4, strength=0.5)


def apart(ours, theirs) -> float:
    return float(np.abs(np.asarray(ours, float) - np.asarray(theirs, float)).mean())


def test_images_have_recipes_with_the_hash_of_the_image_and_the_steps_that_were_made(two, photo):
    assert two.shape == (2, SIDE, SIDE, 3) and two.dtype == np.uint8
    wanted = {"strength": 0.5, "fit": "crop", "sample_image": True, "num_steps": 4, "steps_made": 2, "seed": 7}
    wanted["image_sha256"] = hashlib.sha256(photo.read_bytes()).hexdigest()
    for i, recipe in enumerate(two.recipes):
        assert recipe | wanted | {"index": i} == recipe and "image" not in recipe


def test_an_image_depends_on_its_own_row_alone(model, photo, two):
    (alone,) = model.image_to_image("a red star", photo, seed=7, index=1, num_steps=4, strength=0.5)
    assert np.abs(alone.astype(int) - two[1]).max() <= 1 and apart(two[0], two[1]) > 1
    again = model.image_to_image("a red star", photo, 2, 7, num_steps=4, strength=0.5)
    np.testing.assert_array_equal(again, two)


def test_an_image_for_each_prompt(model, photo, two):
    other = 255 - np.asarray(Image.open(photo))
    both = model.image_to_image(["a red star"] * 2, [photo, other], seed=[7, 7], num_steps=4, strength=0.5)
    assert np.abs(both[0].astype(int) - two[0]).max() <= 1 and apart(both[0], both[1]) > 1
    assert both.recipes[0]["image_sha256"] != both.recipes[1]["image_sha256"]


def test_strength_0_is_the_image_as_the_autoencoder_has_it(model, photo, toy_folder):
    """With the mean of its latents: the decoder's image of the encoder's mean."""
    found = model.image_to_image("a red star", photo, seed=1, strength=0, sample_image=False)
    spec = load_spec(toy_folder)
    parts = load_parts(toy_folder, spec, parts=("encoder", "decoder"))
    pixels = np.asarray(Image.open(photo), "float32")[None] / 127.5 - 1
    mean = np.split(np.asarray(parts["encoder"](pixels)), 2, axis=-1)[0]
    decoded = np.clip((np.asarray(parts["decoder"](mean)) + 1) * 127.5, 0, 255)
    assert np.abs(found - decoded).max() <= 1
    assert found.recipes[0]["steps_made"] == 0


def test_the_seed_draws_the_latents_of_the_image_unless_the_mean_is_taken(model, photo):
    drawn = [model.image_to_image("a", photo, seed=seed, strength=0)[0] for seed in (1, 2)]
    means = [model.image_to_image("a", photo, seed=seed, strength=0, sample_image=False)[0] for seed in (1, 2)]
    assert apart(*drawn) > 0
    np.testing.assert_array_equal(*means)


@pytest.mark.parametrize(("strength", "made"), [(0.0, 0), (0.1, 1), (0.58, 5), (0.8, 8), (1.0, 10)])
def test_strength_is_the_share_of_the_steps_that_are_made(model, photo, strength, made):
    done = []
    images = model.image_to_image(
        "a", photo, seed=1, num_steps=10, strength=strength, callback=lambda now, steps: done.append((now, steps))
    )
    assert images.recipes[0]["steps_made"] == made
    assert done[-1:] == ([(made, made)] if made else [])


def test_the_image_is_fitted_to_height_and_width(model, photo):
    wide = model.image_to_image("a", photo, seed=1, strength=0, height=16, width=48)
    assert wide.shape == (1, 16, 48, 3)
    padded = model.image_to_image("a", photo, seed=1, strength=0, height=16, width=48, fit="pad")
    assert apart(wide, padded) > 1 and padded.recipes[0]["fit"] == "pad"


def test_more_strength_leaves_less_of_the_image(model, photo):
    kept = model.image_to_image("a", photo, seed=1, num_steps=10, strength=0)
    distances = [
        apart(model.image_to_image("a", photo, seed=1, num_steps=10, strength=strength), kept) for strength in (0.2, 0.5, 1)
    ]
    assert distances == sorted(distances) and distances[0] < distances[-1]


def test_the_function_of_the_package_keeps_its_model(toy_folder, photo, monkeypatch):
    monkeypatch.setattr(cached_model, "_KEPT", {})
    options = {"model": str(toy_folder), "jit_compile": False, "strength": 0.5, "num_steps": 2}
    images = tfsd.image_to_image("a red star", photo, 1, 3, **options)
    (kept,) = cached_model._KEPT.values()
    np.testing.assert_array_equal(kept.image_to_image("a red star", photo, 1, 3, strength=0.5, num_steps=2), images)


@pytest.mark.slow
def test_xla_makes_the_same_image(toy_folder, photo, two):
    compiled = load(toy_folder).image_to_image("a red star", photo, 2, 7, num_steps=4, strength=0.5)
    assert np.abs(compiled.astype(int) - two).max() <= 1


def test_a_model_of_given_parts_has_the_encoder_among_them(toy_folder, photo):
    spec = load_spec(toy_folder)
    whole = StableDiffusion(spec, build(spec), jit_compile=False)
    assert whole.image_to_image("a", photo, strength=0, seed=1).shape == (1, SIDE, SIDE, 3)
    parts = {name: part for name, part in build(spec).items() if name != "encoder"}
    with pytest.raises(SpecError, match="no encoder of images"):
        StableDiffusion(spec, parts, jit_compile=False).image_to_image("a", photo, strength=0)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"strength": 1.5}, ValueError, "strength must be from 0 to 1; got 1.5. 0 keeps the image"),
        ({"strength": float("nan")}, ValueError, "strength must be from 0 to 1; got nan"),
        ({"strength": "much"}, TypeError, "strength must be a number; got 'much'"),
        ({"fit": "cover"}, ValueError, "fit must be one of crop, pad, stretch; got 'cover'"),
        ({"sample_image": "no"}, TypeError, "sample_image must be True or False; got 'no'"),
        ({"height": 20}, ValueError, "height must be a multiple of 8"),
        ({"image": b"GIF"}, ValueError, "image is not an image file that can be read"),
        ({"init_img": 1}, TypeError, "image_to_image.. got an unexpected keyword argument 'init_img'. Did you mean 'image'?"),
    ],
)
def test_bad_arguments_are_named(model, photo, options, error, message):
    with pytest.raises(error, match=message):
        model.image_to_image("a", **{"image": photo} | options)


def test_text_to_image_says_where_strength_belongs(model):
    with pytest.raises(TypeError, match="unexpected keyword argument 'strength'. It is for image_to_image."):
        model.text_to_image("a", strength=0.5)
