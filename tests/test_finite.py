"""Half precision: queries meet keys in float32 where float16 would overflow; what overflows all the same is an error."""

import contextlib
import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tfsd.api import load
from tfsd.device import StepLoop
from tfsd.finite import NotFiniteError, not_finite
from tfsd.models import build
from tfsd.models.kernels import attend


def exact_attention(q, k, v):
    q, k, v = (np.asarray(tf.cast(x, "float32"), np.float64) for x in (q, k, v))
    logits = q @ np.swapaxes(k, -1, -2) / np.sqrt(q.shape[-1])
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return (weights / weights.sum(-1, keepdims=True) @ v)[:, 0]


def large(dtype: str, size: float, mean: float = 0.0):
    random = np.random.default_rng(0)
    q, k, v = (random.normal(size=(1, 1, 6, 64)) for _ in range(3))
    return [tf.cast(x, dtype) for x in (mean + size * q, mean + size * k, v)]


@pytest.mark.parametrize("upcast", [False, True])
def test_products_beyond_float16_do_not_overflow(upcast):
    q, k, v = large("float16", 600.0)
    assert np.isinf(tf.matmul(q * 64**-0.5, k, transpose_b=True)).any()  # what half precision makes of them
    mixed = attend(q, k, v, upcast=upcast)
    assert mixed.dtype == tf.float16
    np.testing.assert_allclose(mixed, exact_attention(q, k, v), rtol=0, atol=2e-3)


def test_upcast_attention_keeps_the_digits_that_bfloat16_loses():
    q, k, v = large("bfloat16", 0.2, mean=8.0)  # logits of about 512, where bfloat16 has steps of 2 and 4
    mixed = {upcast: tf.cast(attend(q, k, v, upcast=upcast), "float32").numpy() for upcast in (False, True)}
    error = {upcast: np.abs(one - exact_attention(q, k, v)).max() for upcast, one in mixed.items()}
    assert error[True] < 0.03 < 0.1 < error[False]


@pytest.mark.parametrize(
    ("upcast", "dtype"),
    [
        pytest.param(False, "bfloat16", marks=pytest.mark.slow),
        (False, "float16"),
        (True, "bfloat16"),
        pytest.param(True, "float16", marks=pytest.mark.slow),
    ],
)
def test_every_attention_of_a_unet_does_as_its_spec_says(dtype, upcast, random_model):
    spec = random_model[0]
    spec = dataclasses.replace(spec, denoiser=dataclasses.replace(spec.denoiser, upcast_attention=upcast))
    unet = build(spec, dtype=dtype, parts=("denoiser",))["denoiser"]
    shapes = (1, 16, 16, 4), (1,), (1, *spec.conditioning()["context"])
    graph = tf.function(unet).get_concrete_function(*(tf.TensorSpec(shape, tf.float32) for shape in shapes)).graph
    products = [one for one in graph.get_operations() if one.type == "BatchMatMulV2"]  # of queries with keys, then of values
    kinds = [one.inputs[0].dtype.name for one in products]
    meeting = "float32" if upcast or dtype == "float16" else dtype
    assert len(kinds) == 2 * 2 * len(unet._transformer_blocks())
    assert kinds == [meeting, dtype] * (len(kinds) // 2)


# -- what overflows all the same ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[False, pytest.param(True, marks=pytest.mark.slow)], ids=["graph", "xla"])
def model(request, overflowing_folder):
    return load(overflowing_folder, dtype="float16", jit_compile=request.param)


def test_a_picture_that_is_not_finite_is_an_error_that_names_the_dtype_and_what_to_use(model):
    with pytest.raises(NotFiniteError, match="float16.*Use dtype bfloat16 or float32") as error:
        model.text_to_image(["a red star", "a dog"], seed=1, num_steps=2)
    assert "1 of 2 rows: 1" in str(error.value)
    assert np.asarray(model.text_to_image(["a red star", "a star"], seed=1, num_steps=2)).shape == (2, 32, 32, 3)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_dtypes_that_the_error_names_make_the_picture(overflowing_folder, dtype):
    assert len(load(overflowing_folder, dtype=dtype, jit_compile=False).text_to_image("a dog", seed=1, num_steps=2)) == 1


def test_a_context_that_is_not_finite_is_an_error_too(model):
    with pytest.raises(NotFiniteError, match="context of the model are NaN or infinite in float16"):
        model.encode_text("a dog")


def test_an_image_that_is_not_finite_is_an_error_although_its_latents_are(overflowing_folder):
    model = load(overflowing_folder, jit_compile=False)
    bias = model.pipeline.functions.parts.decoder.conv_out.bias
    bias.assign(np.full(3, np.inf, "float32"))
    with pytest.raises(NotFiniteError, match="in float32: The weights are damaged"):
        model.text_to_image("a star", seed=1, num_steps=1)


class Phone(StepLoop):
    """A phone whose accelerator overflows in the pictures of the seeds that it is told."""

    overflows = (2,)

    @contextlib.contextmanager
    def part(self, name):
        def run(signature, **given):
            if signature == "noise":
                return {"noise": np.full((1, 2, 2, 4), given["seed"], "float32")}
            if signature == "step":
                latents = given["latents"]
                return {"latents": np.where(np.isin(latents, self.overflows), np.inf, latents), "history": latents}
            plan = {"row": np.zeros(12), "timestep_features": np.zeros(1), "init_scale": np.ones(1), "count": np.array([2])}
            return {
                "encode": {"context": np.zeros(1)},
                "plan": plan,
                "decode": {"colours": np.zeros((16, 16), "int32")},
            }[signature]

        yield run


def phone(quantize: str) -> Phone:
    tokenizer = {"length": 77, "start_token": 49406, "end_token": 49407, "pad_token": 49407, "ftfy": True}
    numbers = {"size": [16, 16], "latents": [2, 2, 4], "max_steps": 8, "max_index": 9}
    defaults = {"num_steps": 2, "guidance_scale": 2.0, "sampler": "ddim"}
    names = {"samplers": ["ddim"], "identity": {"dtype": "float32"}, "quantize": quantize}
    return Phone({"tokenizer": tokenizer, "defaults": defaults, **numbers, **names})


@pytest.mark.parametrize(("quantize", "dtype"), [("float16", "float16"), ("dynamic", "float32")])
def test_a_device_bundle_names_the_pictures_that_are_not_finite(quantize, dtype):
    assert len(phone(quantize).text_to_image("a star", 2, seed=[1, 3])) == 2
    with pytest.raises(NotFiniteError, match=f"latents of the model are NaN or infinite in {dtype}.* 1 of 3 rows: 1"):
        phone(quantize).text_to_image("a star", 3, seed=[1, 2, 3])


def test_huge_numbers_of_the_caller_are_not_blamed_on_the_weights(toy_folder):
    model, context = load(toy_folder, jit_compile=False), np.zeros((77, 16), "float32")
    message = r"diffusion_noise has numbers up to 1e\+38, which no model expects\. Give numbers of at most 1000\."
    with pytest.raises(NotFiniteError, match=message):
        model.generate_image(context, diffusion_noise=np.full((4, 4, 4), 1e38), num_steps=1)
    assert "If the latents hold numbers beyond 1000, give smaller ones. Otherwise: The weights" in not_finite(
        "images", "float32", given="latents"
    )
