"""The Python API: KerasCV's call patterns, one value per picture, progress, cancelling, and what bad arguments say."""

import copy
import functools
import inspect
import json
import math
import pickle
import shutil
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

import tfsd
from tfsd import api, cached_model
from tfsd.api import StableDiffusion, load
from tfsd.cached_model import text_to_image
from tfsd.noise import LAST_VALUE, normal_noise
from tfsd.progress import Cancelled, Progress
from tfsd.specs import PRESETS
from tfsd.storage.model_folders import save_model

SEED, SIZE = 7, 32


@pytest.fixture(scope="module")
def model(toy_folder) -> StableDiffusion:
    return load(toy_folder, jit_compile=False)


@pytest.fixture(scope="module")
def two(model):
    return model.text_to_image("a red star", batch_size=2, seed=SEED)


def same(ours, theirs):
    """At most one level apart: kernels add in another order for another number of rows."""
    np.testing.assert_allclose(np.asarray(ours, int), np.asarray(theirs, int), atol=1, rtol=0)


def different(ours, theirs) -> bool:
    return np.abs(np.asarray(ours, int) - np.asarray(theirs, int)).max() > 1


def test_pictures_are_an_array_that_pil_takes(two):
    assert np.asarray(two).dtype == np.uint8 and two.shape == (2, SIZE, SIZE, 3) and len(two) == 2
    assert Image.fromarray(two[0]).size == (SIZE, SIZE)
    assert different(two[0], two[1])


def test_the_same_call_gives_the_same_bytes(model, two):
    np.testing.assert_array_equal(model.text_to_image("a red star", batch_size=2, seed=SEED), two)


def test_a_picture_is_the_same_alone_and_in_any_batch(model, two):
    same(model.text_to_image("a red star", seed=SEED, index=1)[0], two[1])
    mixed = model.text_to_image(["a star", "a red star"], seed=[3, SEED], guidance_scale=[5.0, 2.0], negative_prompt=["red", ""])
    same(mixed[1], two[0])


def test_every_picture_has_its_own_values(model):
    images = model.text_to_image(["a star", "red"], seed=[1, 2], guidance_scale=[1.5, 4.0], negative_prompt=["", "a"])
    recipes = [(r["prompt"], r["negative_prompt"], r["seed"], r["index"], r["guidance_scale"]) for r in images.recipes]
    assert recipes == [("a star", "", 1, 0, 1.5), ("red", "a", 2, 0, 4.0)]


def test_several_prompts_with_a_batch_size_give_each_its_pictures_in_order(model):
    images = model.text_to_image(["a star", "red"], 2, seed=SEED, num_steps=1)
    assert [(r["prompt"], r["index"]) for r in images.recipes] == [("a star", 0), ("a star", 1), ("red", 2), ("red", 3)]


def test_no_seed_draws_one_that_makes_the_picture_again(model):
    images = model.text_to_image("a red star")
    again = model.text_to_image("a red star", seed=images.seeds[0])
    np.testing.assert_array_equal(images, again)
    assert model.text_to_image("a red star", num_steps=1).seeds != images.seeds


def test_a_recipe_makes_the_picture_again(model):
    images = model.text_to_image("a star", seed=5, num_steps=2, sampler="k_euler_a", guidance_scale=3, height=40, width=24)
    recipe = images.recipes[0]
    names = ("prompt", "negative_prompt", "seed", "index", "guidance_scale", "num_steps", "sampler", "eta", "height", "width")
    np.testing.assert_array_equal(model.text_to_image(**{name: recipe[name] for name in names}), images)
    assert recipe["sampler"] == "euler_ancestral" and images.shape == (1, 40, 24, 3)


def test_recipes_say_which_model_and_whose_numbers(toy_folder, model, two):
    assert two.recipes[0]["model"] == str(toy_folder) and two.recipes[0]["numerics_override"] is None
    other = load(toy_folder, jit_compile=False, numerics="kerascv").text_to_image("a star", seed=1, num_steps=2)
    assert (other.recipes[0]["numerics_override"], other.recipes[0]["numerics"]) == ("kerascv", "kerascv")
    assert other.recipes[0]["weights"] == two.recipes[0]["weights"] != ""


# -- KerasCV's call patterns -------------------------------------------------------------------------------------------


def test_encoded_text_makes_the_pictures_of_its_prompt(model, two):
    context = model.encode_text("a red star")
    assert context.shape == (1, 77, 16) and context.dtype == np.float32
    same(model.generate_image(context, batch_size=2, seed=SEED), two)
    same(model.generate_image(context[0], None, 2, 3, 2.0, None, SEED), two)  # in KerasCV's order


def test_diffusion_noise_takes_the_place_of_the_seeds_noise(model, two):
    context = model.encode_text("a red star")
    noise = normal_noise([SEED, SEED], [0, 1], 0, (4, 4, 4)).numpy()
    images = model.generate_image(context, batch_size=2, diffusion_noise=noise)
    same(images, two)
    assert images.recipes[0]["custom_noise"] is True
    same(model.generate_image(context, batch_size=2, diffusion_noise=noise[0])[1], two[0])


def test_noise_of_zeros_is_not_taken_for_none(model):
    """The last convolution of an untrained U-Net is zero: what begins as zeros stays so, and decodes to one colour."""
    images = model.generate_image(model.encode_text("a red star"), diffusion_noise=np.zeros((4, 4, 4)))
    assert np.ptp(images.reshape(-1, 3), axis=0).max() == 0


def test_keras_cv_names_are_taken(model):
    theirs = model.text_to_image("a star", seed=1, unconditional_guidance_scale=4.0, img_height=40, img_width=24)
    np.testing.assert_array_equal(theirs, model.text_to_image("a star", seed=1, guidance_scale=4.0, height=40, width=24))
    with pytest.raises(TypeError, match="unconditional_guidance_scale is another name of guidance_scale; got both"):
        model.text_to_image("a star", unconditional_guidance_scale=4.0, guidance_scale=3.0)


def test_seed_and_diffusion_noise_exclude_each_other_as_in_keras_cv(model):
    with pytest.raises(ValueError, match="`diffusion_noise` and `seed` should not both be passed"):
        model.generate_image(np.zeros((77, 16)), seed=1, diffusion_noise=np.zeros((4, 4, 4)))


def test_a_negative_prompt_in_keras_cvs_place_is_explained(model, toy_folder):
    for call in (model.text_to_image, functools.partial(text_to_image, model=toy_folder, jit_compile=False)):
        for value in ("ugly", ["ugly"], None):
            with pytest.raises(TypeError, match=r"batch_size must be .* a negative prompt goes by its name, negative_prompt="):
                call("a star", value)
        with pytest.raises(TypeError, match="takes prompt, batch_size, seed by position, which is not KerasCV's order; got 4"):
            call("a star", "ugly", 1, 50)


@pytest.mark.parametrize("arguments", [{}, {"img_width": 512}, {"img_height": 512, "img_width": 512, "jit_compile": True}])
def test_keras_cvs_constructor_points_to_load(arguments):
    with pytest.raises(TypeError, match="made by `tfsd.load`, .* sizes go to each call"):
        tfsd.StableDiffusion(**arguments)
    with pytest.raises(TypeError, match="made by `tfsd.load`"):
        tfsd.StableDiffusion(512, 512)


@pytest.mark.parametrize(
    ("size", "error", "message"),
    [
        ({"height": 40}, ValueError, r"diffusion_noise is for height and width \(32, 32\); got \(40, None\)"),
        ({"width": np.zeros(10**6)}, TypeError, r"width must be a whole number; got ndarray float64 \[1000000\]"),
        ({"height": "32"}, TypeError, "height must be a whole number; got '32'"),
    ],
)
def test_a_size_that_is_not_the_noises_is_refused(model, size, error, message):
    with pytest.raises(error, match=message):
        model.generate_image(np.zeros((77, 16)), diffusion_noise=np.zeros((4, 4, 4)), **size)


# -- progress and cancelling -------------------------------------------------------------------------------------------


def test_progress_changes_no_byte_and_ends_with_the_last_step(model, two):
    told = []
    images = model.text_to_image("a red star", batch_size=2, seed=SEED, callback=lambda done, steps: told.append((done, steps)))
    np.testing.assert_array_equal(images, two)
    assert told[-1] == (3, 3) and [done for done, _ in told] == sorted({done for done, _ in told})


def test_a_callback_that_returns_false_cancels(model):
    told = []
    with pytest.raises(Cancelled) as error:
        model.text_to_image("a star", 2, seed=1, num_steps=50, callback=lambda done, steps: told.append(done) or False)
    (done,) = told
    assert str(error.value) == f"Cancelled after {done} of 50 steps."


def test_chunks_cover_every_step_once_and_a_known_pace_makes_them_long():
    for count in (1, 2, 3, 20, 51):
        pace = {}
        chunks = list(Progress(False, lambda done, steps: None, pace).chunks(count, "kind"))
        assert chunks[0][0] == 0 and chunks[-1][1] == count
        assert all(before[1] == after[0] for before, after in zip(chunks, chunks[1:]))
    assert list(Progress(False, lambda done, steps: None, {"kind": 0.5}).chunks(4, "kind")) == [(0, 2), *[(2, 4)]]
    assert list(Progress(False, None).chunks(20)) == [(0, 20)]


# -- the function that loads by itself ---------------------------------------------------------------------------------


def test_the_function_keeps_its_model_until_the_folder_is_another_and_frees_it_before_it_loads_again(
    toy_folder, tmp_path, two, monkeypatch
):
    folder = shutil.copytree(toy_folder, tmp_path / "copy")
    options = {"batch_size": 2, "seed": SEED, "model": folder, "jit_compile": False}
    first = text_to_image("a red star", **options)
    np.testing.assert_array_equal(first, two)
    (kept,) = (weakref.ref(model) for model in cached_model._KEPT.values())
    alive = []
    monkeypatch.setattr(api, "load", lambda *args, **kwargs: alive.append(kept()) or load(*args, **kwargs))
    np.testing.assert_array_equal(text_to_image("a red star", **options), two)
    assert alive == [] and kept() is not None
    (folder / "manifest.json").write_text(json.dumps(json.loads((folder / "manifest.json").read_text()) | {"notes": {"x": 1}}))
    assert text_to_image("a red star", **options).recipes[0]["weights"] != first.recipes[0]["weights"]
    assert alive == [None]


def test_the_function_has_every_argument_of_the_method_and_of_load():
    own = inspect.signature(text_to_image).parameters
    method = inspect.signature(StableDiffusion.text_to_image).parameters
    loading = inspect.signature(load).parameters
    assert list(own) == [*list(method)[1:], *loading]
    for name, parameter in own.items():
        theirs = method.get(name) or loading[name]
        assert (parameter.default, parameter.annotation) == (theirs.default, theirs.annotation), name


def test_the_function_passes_every_argument_on(toy_folder):
    """Each with a value that is refused, so that one which went nowhere would show."""
    bad = {"negative_prompt": 3, "num_steps": 0, "guidance_scale": -1, "sampler": "x", "eta": 2, "height": 7, "width": 7}
    bad |= {"index": -1, "on_long": "x", "callback": 3, "seed": "x", "batch_size": 0}
    for name, value in bad.items():
        with pytest.raises((TypeError, ValueError), match=name):
            text_to_image("a", model=toy_folder, jit_compile=False, **{name: value})


def test_a_model_says_what_it_is(model, toy_folder):
    text = repr(model)
    assert text.startswith("<StableDiffusion '") and text.endswith(": 32 x 32 pixels, float32, numerics of compvis, without XLA>")


def test_first_calls_in_several_threads_load_one_model(toy_folder, monkeypatch):
    cached_model._KEPT.clear()
    loads = []
    monkeypatch.setattr(api, "load", lambda *args, **kwargs: loads.append(args) or load(*args, **kwargs))
    with ThreadPoolExecutor(4) as threads:
        calls = [threads.submit(text_to_image, "a", seed=1, num_steps=1, model=toy_folder, jit_compile=False) for _ in range(4)]
    pictures = [np.asarray(call.result()) for call in calls]
    assert len(loads) == 1
    for picture in pictures[1:]:
        np.testing.assert_array_equal(picture, pictures[0])


# -- threads, and the end of a model ------------------------------------------------------------------------------------


def test_threads_that_draw_with_one_model_get_the_pictures_of_one_thread(toy_folder, model):
    cases = [{"prompt": text, "seed": seed, "sampler": "euler_ancestral"} for seed, text in enumerate(["a star", "red", "", "a"])]
    expected = [np.asarray(model.text_to_image(**case)) for case in cases]
    fresh = load(toy_folder, jit_compile=False)  # so that they trace at once, too
    with ThreadPoolExecutor(4) as threads:
        drawn = list(threads.map(lambda case: np.asarray(fresh.text_to_image(**case)), cases * 4))
    for picture, wanted in zip(drawn, expected * 4):
        np.testing.assert_array_equal(picture, wanted)


def test_a_closed_model_frees_its_weights_and_says_so(toy_folder):
    with load(toy_folder, jit_compile=False) as model:
        model.text_to_image("a", num_steps=1)
        weights = [weakref.ref(variable) for part in vars(model.pipeline.functions.parts).values() for variable in part.variables]
        handles = [weakref.ref(value) for value in model.pipeline.tracked]
    assert not any(reference() for reference in weights + handles)
    for call in (model.text_to_image, model.encode_text):
        with pytest.raises(RuntimeError, match="is closed. Load it again with tfsd.load()"):
            call("a")
    with pytest.raises(RuntimeError, match="is closed. Load it again with tfsd.load()"), model:
        pytest.fail("the block of a closed model ran")
    model.close()


def test_a_model_is_not_sent_to_another_process(model):
    with pytest.raises(TypeError, match="cannot be pickled or copied. Call tfsd.load in each process"):
        pickle.dumps(model)
    with pytest.raises(TypeError, match="cannot be pickled or copied"):
        copy.deepcopy(model)


def test_the_package_offers_what_readme_says():
    assert tfsd.text_to_image is text_to_image and tfsd.load is load and tfsd.Cancelled is Cancelled


# -- bad arguments -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"prompt": 5}, TypeError, "prompt must be a text or a list of texts; got 5"),
        ({"prompt": []}, ValueError, "prompt must hold at least one text"),
        ({"prompt": ["a", None]}, TypeError, r"prompt\[1\] must be a text; got None"),
        ({"prompt": np.array(3)}, TypeError, "prompt must be a text"),
        ({"prompt": "x" * 10_000_000}, ValueError, "prompt"),
        ({"prompt": "a " * 100, "on_long": "error"}, ValueError, "Prompt is too long"),
        ({"prompt": "a", "on_long": "maybe"}, ValueError, "on_long"),
        ({"batch_size": 0}, ValueError, "batch_size must be from 1 to 64; got 0"),
        ({"batch_size": 1.5}, TypeError, "batch_size must be a whole number; got 1.5"),
        ({"batch_size": np.array([1, 2])}, TypeError, "batch_size must be a whole number"),
        ({"batch_size": 10**5000}, ValueError, "batch_size must be from 1 to 64; got a number of 16610 bits"),
        ({"prompt": ["a"] * 40, "batch_size": 2}, ValueError, "at most 64 images; got 80"),
        ({"seed": "x"}, TypeError, "seed must be a whole number; got 'x'"),
        ({"seed": 2**63}, ValueError, "seed must be from -9223372036854775808 to"),
        ({"seed": [1, 2]}, ValueError, "seed must be one for all or one for each of the 1 images; got 2"),
        ({"seed": np.array(True)}, TypeError, "seed must be a whole number"),
        ({"index": -1}, ValueError, "index must be from 0"),
        ({"guidance_scale": math.nan}, ValueError, "guidance_scale must be from 0 to 100; got nan"),
        ({"guidance_scale": 10**400}, ValueError, "guidance_scale must be from 0 to 100"),
        ({"guidance_scale": "7"}, TypeError, "guidance_scale must be a number; got '7'"),
        ({"guidance_scale": [1.0, 2.0]}, ValueError, "guidance_scale must be one for all"),
        ({"negative_prompt": 3}, TypeError, "negative_prompt must be a text"),
        ({"num_steps": 0}, ValueError, "num_steps must be from 1"),
        ({"num_steps": 2.5}, TypeError, "num_steps must be a whole number; got 2.5"),
        ({"sampler": "eular"}, ValueError, "Did you mean 'euler'"),
        ({"eta": 0.5, "sampler": "euler"}, ValueError, "eta must be 0 for the sampler 'euler'"),
        ({"height": 33}, ValueError, "height must be a multiple of 8; got 33. Use 32 or 40"),
        ({"width": 0}, ValueError, "width must be from 8"),
        ({"height": 4096}, ValueError, "height must be from 8 to 2048"),
        ({"callback": 3}, TypeError, "callback must be a function"),
        ({"img_size": 3}, TypeError, "img_size"),
        ({"num_step": 3}, TypeError, "unexpected keyword argument 'num_step'. Did you mean 'num_steps'"),
        ({"num_inference_steps": 3}, TypeError, "Did you mean 'num_steps'"),
    ],
)
def test_a_bad_argument_is_named(model, arguments, error, message):
    with pytest.raises(error, match=message):
        model.text_to_image(**({"prompt": "a star"} | arguments))


@pytest.mark.parametrize(
    ("context", "noise", "message"),
    [
        (np.zeros((5, 16)), None, r"encoded_text must have shape \[B, 77, 16\]; got \[1, 5, 16\]"),
        (np.full((77, 16), np.inf), None, "encoded_text has values that are NaN or infinite"),
        (np.zeros((77, 16)), np.zeros((5, 4, 4, 4)), "diffusion_noise has 5 rows for 1 images"),
        (np.zeros((77, 16)), np.zeros((4, 4, 3)), r"diffusion_noise must have shape \[B, any, any, 4\]"),
    ],
)
def test_a_bad_array_is_named(model, context, noise, message):
    with pytest.raises(ValueError, match=message):
        model.generate_image(context, diffusion_noise=noise)


def test_tokens_that_the_model_has_no_row_for_are_refused(random_model, tmp_path):
    """The vocabulary of this model has 100 tokens."""
    model = load(save_model(tmp_path / "random", *random_model), jit_compile=False)
    for call in (model.text_to_image, model.encode_text):
        with pytest.raises(ValueError, match="prompt has token 320, but the model's text encoder knows 100 tokens"):
            call("a")


def test_an_index_at_which_noise_would_repeat_is_refused(model):
    side = 2048 // 8
    last = LAST_VALUE // (side * side * 4)
    with pytest.raises(ValueError, match=f"index must be from 0 to {last - 1} at this size"):
        model.text_to_image("a", index=last, height=2048, width=2048)


def test_the_attention_of_a_large_picture_is_counted_before_it_is_computed():
    """512 x 512: 4096 positions, 8 heads, two halves, logits and weights of 4 bytes: 2 GiB in Stable Diffusion 1.x."""
    assert PRESETS["sd-1.4"].attention_bytes(1, 64, 64) == 2 * 4 * 2 * 8 * 4096**2


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": 3}, TypeError, "model must be a name or the path"),
        ({"model": "no-such-model"}, Exception, "There is no model 'no-such-model'"),
        ({"dtype": "int8"}, ValueError, "dtype must be one of float32, bfloat16, float16; got 'int8'"),
        ({"dtype": ["float32"]}, ValueError, "dtype must be one of"),
        ({"numerics": "torch"}, ValueError, "numerics must be one of compvis, kerascv; got 'torch'"),
    ],
)
def test_bad_arguments_of_loading_are_named(toy_folder, arguments, error, message):
    for call in (load, lambda **options: text_to_image("a", **options)):
        with pytest.raises(error, match=message):
            call(**({"model": toy_folder} | arguments))
