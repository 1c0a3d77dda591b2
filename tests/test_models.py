"""The networks by themselves: what fields of the specs do, sizes, prepared conditions. For the numbers, see tests/parity."""

import dataclasses
import mmap
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from tfsd import models
from tfsd.models import part_shapes
from tfsd.models.kernels import MASKED, attend
from tfsd.models.layers import GroupNorm, Upsample, activation
from tfsd.specs import PRESETS, CLIPSpec, ModelSpec, VAESpec

STATM = Path("/proc/self/statm")
ROUNDING = 2e-6  # relative to the largest value: the same sums in another order
HALF = {"bfloat16": 2.0**-8, "float16": 2.0**-11}  # their roundings
PARAMETERS = {"text_encoder": 123_060_480, "denoiser": 859_520_964, "decoder": 49_490_199, "encoder": 34_163_664}


def assert_close(value, expected, tolerance=ROUNDING):
    expected = np.asarray(expected)
    np.testing.assert_allclose(value, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def resident_bytes() -> int:
    fields = STATM.read_text().split()
    return int(fields[1]) * mmap.PAGESIZE


def rebuilt(random_model, part: str, *, dtype="float32", **fields):
    """A part of the random model after a change of its spec, with the same weights."""
    spec, parts = random_model
    model = models.build(dataclasses.replace(spec, **fields), dtype=dtype, parts=(part,))[part]
    for own, given in zip(model.variables, parts[part].variables, strict=True):
        own.assign(given)
    return model


def unet_inputs(size=(8, 8)):
    random = np.random.default_rng(1)
    latents, context = random.normal(size=(2, *size, 4)), random.normal(size=(2, 77, 16))
    return latents.astype("float32"), np.float32([981, 21]), context.astype("float32")


@pytest.fixture
def parts(random_model):
    return random_model[1]


@pytest.fixture(params=["eager", "graph", "xla"])
def run(request):
    """Makes a function run eagerly, as a graph, or compiled by XLA."""
    return {"eager": lambda f: f, "graph": tf.function, "xla": lambda f: tf.function(f, jit_compile=True)}[request.param]


@pytest.mark.parametrize("part", PARAMETERS)
def test_full_size_has_as_many_parameters_as_published(part):
    assert models.parameter_count(part_shapes(PRESETS["sd-1.4"], (part,))[part]) == PARAMETERS[part]


@pytest.mark.skipif(not STATM.exists(), reason="reads what Linux says of the process")
def test_listing_shapes_allocates_nothing_then_or_later():
    """Keras keeps variables made without values, and gives them all their values when it next builds a model."""
    before = resident_bytes()
    part_shapes(PRESETS["sd-1.4"], ("encoder",))  # 137 MB
    models.build(ModelSpec(name="small", vae=VAESpec(channels=(8, 8), groups=4)), parts=("decoder",))
    assert resident_bytes() - before < 60e6


# -- conditions prepared before the loop -------------------------------------------------------------------------------


@pytest.mark.parametrize("run", ["eager", "graph", pytest.param("xla", marks=pytest.mark.slow)], indirect=True)
def test_prepared_conditioning_equals_the_plain_call(parts, run):
    unet = parts["denoiser"]
    latents, timesteps, context = unet_inputs()

    def prepared(latents, timesteps, context):
        return unet.denoise(latents, unet.timestep_features(timesteps), unet.prepare({"context": context}))

    assert_close(run(prepared)(latents, timesteps, context), unet(latents, timesteps, context))


def test_one_timestep_serves_all_rows(parts):
    latents, _, context = unet_inputs()
    unet = parts["denoiser"]
    assert_close(unet(latents, np.float32([250]), context), unet(latents, np.float32([250, 250]), context))


def test_rows_do_not_see_each_other(parts):
    latents, timesteps, context = unet_inputs()
    unet = parts["denoiser"]
    both = unet(latents, timesteps, context)
    for i in (0, 1):
        assert_close(unet(latents[i : i + 1], timesteps[i : i + 1], context[i : i + 1]), both[i : i + 1])


# -- sizes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(15, 13), (3, 5), (8, 17)], ids=str)
def test_unet_takes_sizes_that_its_levels_do_not_divide(size, parts):
    latents, timesteps, context = unet_inputs(size)
    output = parts["denoiser"](latents, timesteps, context)
    assert output.shape == latents.shape
    assert np.isfinite(output).all()


@pytest.mark.parametrize("run", ["eager", "graph", pytest.param("xla", marks=pytest.mark.slow)], indirect=True)
def test_sizes_that_the_levels_do_not_divide_work_compiled(parts, run):
    latents, timesteps, context = unet_inputs((5, 7))
    assert_close(run(parts["denoiser"].__call__)(latents, timesteps, context), parts["denoiser"](latents, timesteps, context))


@pytest.mark.parametrize("size", [(7, 9), (8, 10), (1, 1)], ids=str)
def test_cropping_after_repeating_is_a_nearest_resize(size):
    """Of sides 2h - 1 and 2h, as `interpolate` of PyTorch picks pixels: floor(i * h / side)."""
    random = np.random.default_rng(0)
    small = random.normal(size=(1, (size[0] + 1) // 2, (size[1] + 1) // 2, 2)).astype("float32")
    layer = Upsample(2)
    layer(small)
    kernel = np.zeros((3, 3, 2, 2), "float32")
    kernel[1, 1] = np.eye(2)
    layer.conv.set_weights([kernel, np.zeros(2, "float32")])
    rows, columns = ([i * have // want for i in range(want)] for have, want in zip(small.shape[1:3], size))
    np.testing.assert_array_equal(layer(small, size=size), small[:, rows][:, :, columns])


@pytest.mark.parametrize("size", [(32, 32), (64, 34), (2, 2)], ids=str)
def test_vae_halves_once_per_level(size, parts):
    images = np.random.default_rng(0).uniform(-1, 1, (1, *size, 3)).astype("float32")
    moments = parts["encoder"](images)
    assert moments.shape == (1, size[0] // 2, size[1] // 2, 8)
    assert parts["decoder"](moments[..., :4]).shape == images.shape


# -- text --------------------------------------------------------------------------------------------------------------


def test_tokens_do_not_see_those_after_them(parts):
    tokens = np.arange(77, dtype="int32")[None] + 20
    encoder = parts["text_encoder"]
    before = encoder(tokens)
    tokens[0, 5:] = 7
    after = encoder(tokens)
    np.testing.assert_array_equal(after[:, :5], before[:, :5])
    assert not np.allclose(after[:, 5], before[:, 5])


def test_tokens_without_a_row_of_their_own_share_one():
    spec = CLIPSpec(width=8, layers=1, heads=2, mlp_width=16, length=4, kept_tokens=(320, 49406))
    spec = dataclasses.replace(PRESETS["sd-1.4"], text=(spec,))
    encoder = models.build(spec, parts=("text_encoder",))["text_encoder"]
    assert encoder.embeddings.tokens.shape == (3, 8)
    known, unknown, other = (np.asarray(encoder(np.array([[49406, token, 320, 320]]))) for token in (320, 5, 49000))
    np.testing.assert_array_equal(unknown, other)
    assert not np.allclose(known[:, 1], unknown[:, 1])


# -- numerics ----------------------------------------------------------------------------------------------------------


def test_kerascv_numerics_change_the_gelu_of_the_unet(random_model, parts):
    inputs = unet_inputs()
    tanh = rebuilt(random_model, "denoiser", denoiser=dataclasses.replace(random_model[0].denoiser, gelu="gelu_tanh"))
    plain, changed = parts["denoiser"](*inputs), tanh(*inputs)
    difference = np.abs(changed - plain).max() / np.abs(plain).max()
    assert 1e-5 < difference < 1e-2  # the two GELUs differ by up to 5e-4


def test_kerascv_numerics_change_the_epsilon_before_transformers(random_model, parts):
    inputs = unet_inputs()
    epsilon = dataclasses.replace(random_model[0].denoiser, transformer_norm_epsilon=1e-5)
    plain, changed = parts["denoiser"](*inputs), rebuilt(random_model, "denoiser", denoiser=epsilon)(*inputs)
    difference = np.abs(changed - plain).max() / np.abs(plain).max()
    assert 2 * ROUNDING < difference < 1e-3


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_kerascv_numerics_change_the_epsilon_of_the_vae(part, random_model):
    """Seen at inputs of a thousandth, whose variance is near the epsilon."""
    values = np.random.default_rng(0).normal(size=(1, 8, 8, {"encoder": 3, "decoder": 4}[part])).astype("float32") * 1e-3
    outputs = []
    for numerics in ("compvis", "kerascv"):
        model = rebuilt(random_model, part, vae=random_model[0].with_numerics(numerics).vae)
        for variable in model.variables:
            if variable.path.endswith(("/conv_in/bias", "/post_quant/bias")):  # which would drown them
                variable.assign(np.zeros(variable.shape))
        outputs.append(np.asarray(model(values)))
    plain, changed = outputs
    assert np.abs(changed - plain).max() > 0.01 * np.abs(plain).max()


def test_kerascv_numerics_change_these_fields_and_no_others():
    theirs = dataclasses.asdict(PRESETS["sd-1.4"].with_numerics("kerascv"))
    changed = set()
    for name, value in dataclasses.asdict(PRESETS["sd-1.4"]).items():
        if isinstance(value, (dict, tuple)) and name != "default_size":
            own, other = (value, theirs[name]) if isinstance(value, dict) else (value[0], theirs[name][0])
            changed |= {f"{name}.{field}" for field in own if own[field] != other[field]}
        elif value != theirs[name]:
            changed.add(name)
    assert changed == {
        "text.ftfy",
        "denoiser.gelu",
        "denoiser.transformer_norm_epsilon",
        "vae.norm_epsilon",
        "schedule.spacing",
        "schedule.steps_offset",
        "schedule.final_alpha_one",
        "default_sampler",
        "rounding",
        "numerics",
    }


def test_both_numerics_go_back_and_forth():
    spec = PRESETS["sd-1.4"]
    assert spec.with_numerics("kerascv").with_numerics("compvis") == spec


@pytest.mark.parametrize(
    ("name", "expected"),  # at 1 and -2: x * sigmoid(1.702 x); x * Phi(x); the tanh form, to 7 digits
    [("quick_gelu", (0.8457958, -0.0643414)), ("gelu", (0.8413447, -0.0455003)), ("gelu_tanh", (0.8411920, -0.0454023))],
)
def test_activations(name, expected):
    np.testing.assert_allclose(activation(name)(ops.convert_to_tensor([1.0, -2.0])), expected, atol=1e-6)


# -- norms and attention -----------------------------------------------------------------------------------------------


def test_group_norm_normalises_each_group_of_a_picture(run):
    random = np.random.default_rng(0)
    x = random.normal(3, 2, (2, 5, 3, 12)).astype("float32")
    layer = GroupNorm(12, 4, 1e-5)
    layer.build()
    gamma, beta = random.normal(size=(2, 12)).astype("float32")
    layer.set_weights([gamma, beta])
    groups = x.astype("float64").reshape(2, 15, 4, 3)
    mean, variance = groups.mean((1, 3), keepdims=True), groups.var((1, 3), keepdims=True)
    expected = ((groups - mean) / np.sqrt(variance + 1e-5)).reshape(x.shape) * gamma + beta
    assert_close(run(layer.__call__)(x), expected)


def test_group_norm_keeps_float32_where_the_rest_is_float16():
    x = np.full((1, 4, 4, 4), 300.0, "float16") + np.arange(4, dtype="float16")
    layer = GroupNorm(4, 1, 1e-5, dtype="float16")  # 300 squared times 64 is beyond float16
    np.testing.assert_allclose(np.asarray(layer(x))[0, 0, 0], [-1.342, -0.447, 0.447, 1.342], atol=2e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_masked_positions_get_no_weight_and_nothing_is_infinite(dtype):
    random = np.random.default_rng(0)
    q, k, v = (tf.cast(random.normal(size=(1, 2, 6, 4)), dtype) for _ in range(3))
    mask = np.triu(np.full((6, 6), MASKED, "float32"), 1)
    first = tf.cast(attend(q, k, v, mask), "float32")[0, 0]
    own = tf.reshape(tf.cast(v[0, :, 0], "float32"), (-1,))  # the first position sees itself alone
    np.testing.assert_allclose(first, own, rtol=2e-7)  # softmax of one logit is 1 to the last bit, or off by it on some CPUs


@pytest.mark.parametrize("dtype", HALF)
def test_unet_in_half_precision_stays_near_float32(dtype, random_model, parts):
    unet, inputs = rebuilt(random_model, "denoiser", dtype=dtype), unet_inputs()
    output, expected = np.asarray(tf.cast(unet(*inputs), "float32")), np.asarray(parts["denoiser"](*inputs))
    assert unet.compute_dtype == dtype
    assert np.sqrt(np.mean((output - expected) ** 2) / np.mean(expected**2)) < 10 * HALF[dtype]  # found: 5 times


@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_does_not_round_timesteps(dtype, random_model, parts):
    """981 is no number of bfloat16: its neighbour 980 has quite another embedding."""
    timesteps = np.float32([981, 333, 0.5])
    half, exact = rebuilt(random_model, "denoiser", dtype=dtype), parts["denoiser"]
    embedding, expected = (unet.time(unet.timestep_features(timesteps)) for unet in (half, exact))
    assert_close(tf.cast(embedding, "float32"), expected, 4 * HALF[dtype])
