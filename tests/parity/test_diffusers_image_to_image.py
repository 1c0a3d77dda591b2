"""Image to image of the tiny model of diffusers: our steps with its weights and draws give what diffusers 0.42.1 recorded.

Eight steps and strength 0.6, so four are made. Two are left out, in which tfsd begins anew with the first step that is made:
`pndm`, whose grid of timesteps is shifted in diffusers, and `lms`, which there weights that step as if three others had come
before it.
"""

import numpy as np
import pytest
import tensorflow as tf

from tfsd.pipeline import Pipeline, SamplingInputs
from tfsd.samplers.plans import build_plan
from tfsd.samplers.step import step, unpack

ENCODED = 1e-5  # relative to the largest value, as the other passes of a network in float32
TRAJECTORY = 2e-5  # as in text to image
PIXELS = 1e-4  # of images in [0, 1]
GUIDANCE = 7.5
SAMPLERS = {
    "ddim": "ddim",
    "euler": "euler",
    "euler_a": "euler_ancestral",
    "dpmpp_2m_karras": "dpmpp_2m_karras",
}
UNIT_VARIANCE = ("ddim", "dpmpp_2m_karras")  # whose recorded latents are ours; of the others they are image + ratio * noise


def assert_close(value, expected, tolerance: float, what: str = ""):
    np.testing.assert_allclose(value, expected, rtol=0, atol=tolerance * np.abs(expected).max(), err_msg=what)


@pytest.fixture(scope="module", params=[False, pytest.param(True, marks=pytest.mark.slow)], ids=["graph", "xla"])
def pipeline(request, reference):
    return Pipeline(reference.spec, reference.parts, jit_compile=request.param)


@pytest.mark.parametrize("name", SAMPLERS)
def test_image_to_image_is_that_of_diffusers(name, reference, pipeline):
    recorded = {key.split(".", 2)[2]: value for key, value in reference.recorded.items() if key.startswith(f"img2img.{name}.")}
    plan = build_plan(reference.spec.schedule, SAMPLERS[name], 8, start=4)
    np.testing.assert_allclose(plan.timesteps, recorded["timesteps"], rtol=0, atol=1e-3)
    inputs = SamplingInputs(
        plan=tf.constant(plan.rows[None]),
        init_scale=tf.constant([plan.init_scale], tf.float32),
        seeds=tf.constant([0]),
        indices=tf.constant([0]),
        guidance=tf.constant([GUIDANCE]),
    )
    images = tf.constant(reference.recorded["img2img.image"] * 2 - 1, tf.float32)
    noise = tf.constant(recorded["noise.prepare_latents"][0], tf.float32)
    image = pipeline.encode_image(images, inputs.seeds, inputs.indices, tf.constant(recorded["noise.sample"][0], tf.float32))
    halves = [pipeline.encode(tf.constant(reference.recorded[f"text.{text}.input_ids"])) for text in ("negative", "prompt")]
    state = pipeline.begin(inputs, *halves, pipeline.latent_shape(32, 32), noise, image)
    draws = recorded.get("noise.step")
    for i, expected in enumerate(recorded["latents_after"]):
        scale = 1.0 if name in UNIT_VARIANCE else plan.rows[i + 1, 1]
        state = advanced(pipeline, inputs, state, i, None if draws is None else draws[i])
        assert_close(state.latents, scale * expected, TRAJECTORY, f"call {i}")
    pixels, _ = pipeline.finish(state.latents)
    difference = np.abs(pixels.numpy().astype("float32") - np.round(recorded["image"] * 255))
    assert difference.max() <= 1 and np.mean(difference > 0) < 255 * 2 * PIXELS


def advanced(pipeline, inputs, state, i: int, draw):
    """Returns the state after one more call of the model; a recorded `draw` takes the place of the seeds' noise."""
    if draw is None:
        return pipeline.advance(inputs, state, tf.constant(i), tf.constant(i + 1))
    row, functions = inputs.plan[:, i], pipeline.functions
    features = functions.parts.denoiser.timestep_features(row[:, 0])
    output = functions.guided(state.latents, features, state.prepared, inputs.guidance)
    latents, history = step(unpack(row), state.latents, state.history, output, tf.constant(draw, tf.float32))
    return state._replace(latents=latents, history=history)


@pytest.mark.parametrize("draws", ["noise of the seeds", "zeros"])
def test_latents_of_an_image_are_the_distribution_of_its_encoder(draws, reference, pipeline):
    """Recorded: the mean and the log-variance of diffusers' encoder."""
    from tfsd.noise import IMAGE_STREAM, normal_noise

    recorded, vae = reference.recorded, reference.spec.vae
    mean, deviation = recorded["vae.mean"], np.exp(0.5 * np.clip(recorded["vae.logvar"], -30, 20))
    seeds, indices = tf.constant([5] * len(mean)), tf.range(len(mean))
    shape = tuple(mean.shape[1:])
    own = normal_noise(seeds, indices, IMAGE_STREAM, shape) if draws != "zeros" else tf.zeros_like(mean)
    given = None if draws != "zeros" else own
    latents = pipeline.encode_image(tf.constant(recorded["vae.image"] * 2 - 1, tf.float32), seeds, indices, given)
    assert_close(latents, (mean + deviation * own.numpy() - vae.shift) * vae.scale, ENCODED)
