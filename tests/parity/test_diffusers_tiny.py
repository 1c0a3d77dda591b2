"""The tiny model of diffusers, stage by stage: our parts with its weights give what diffusers 0.42.1 recorded.

The parts run eagerly and compiled by XLA, the whole pipeline as a graph and compiled by XLA. In the default run the parts run
eagerly, and the pipeline with XLA.
Tolerances are relative to the largest value.
"""

from typing import NamedTuple

import numpy as np
import pytest
import tensorflow as tf

from tfsd.pipeline import Pipeline, PipelineFunctions, SamplingInputs
from tfsd.samplers.plans import Plan, build_plan
from tfsd.samplers.step import empty_history, step, unpack

FORWARD = 1e-5  # one pass of one part in float32; worst found 3e-6, at inputs a thousandth of the usual
TRAJECTORY = 2e-5  # eight guided steps; diffusers itself is 1e-6 from its own run in float64
PIXELS = 1e-4  # of images in [0, 1]: latents are 40 times as large as those of a trained model

STEPS, GUIDANCE = 8, 7.5
SAMPLERS = {  # the recording -> sampler, eta
    "pndm": ("pndm", 0.0),
    "ddim": ("ddim", 0.0),
    "ddim_eta05": ("ddim", 0.5),
    "lms": ("lms", 0.0),
    "euler": ("euler", 0.0),
    "euler_a": ("euler_ancestral", 0.0),
    "dpmpp_2m": ("dpmpp_2m", 0.0),
    "dpmpp_2m_karras": ("dpmpp_2m_karras", 0.0),
}
WITHOUT_NOISE = [name for name in SAMPLERS if name not in ("ddim_eta05", "euler_a")]
TWO_IMAGES = "sample2.ddim_no_negative_two_images"
SCALED_UP = ("lms", "euler")  # whose recorded latents are image + (sigma / alpha) * noise


def assert_close(value, expected, tolerance: float, what: str = ""):
    np.testing.assert_allclose(value, expected, rtol=0, atol=tolerance * np.abs(expected).max(), err_msg=what)


# -- the parts ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def call(reference, run) -> dict:
    """Every part as a function; made once, so that each is compiled once."""
    return {name: run(part.__call__) for name, part in reference.parts.items()}


@pytest.mark.parametrize("prompt", ["prompt", "negative"])
def test_every_state_of_the_text_encoder_is_that_of_diffusers(prompt, reference, run):
    recorded, encoder = reference.recorded, reference.parts["text_encoder"]
    states = run(encoder.states)(tf.constant(recorded[f"text.{prompt}.input_ids"]))
    assert len(states) == len(recorded[f"text.{prompt}.hidden_states"])
    for i, expected in enumerate(recorded[f"text.{prompt}.hidden_states"]):
        assert_close(states[i], expected, FORWARD, f"embeddings and {i} blocks")


@pytest.mark.parametrize("prompt", ["prompt", "negative"])
def test_context_is_that_of_diffusers(prompt, reference, call):
    context = call["text_encoder"](tf.constant(reference.recorded[f"text.{prompt}.input_ids"]))
    assert_close(context, reference.recorded[f"text.{prompt}.last_hidden_state"], FORWARD)


def test_unet_at_every_timestep_is_that_of_diffusers(reference, call):
    recorded, unet = reference.recorded, call["denoiser"]
    for timestep, expected in zip(recorded["unet.timesteps"], recorded["unet.out"], strict=True):
        output = unet(recorded["unet.sample"], tf.fill([2], timestep), recorded["unet.context"])
        assert_close(output, expected, FORWARD, f"timestep {timestep}")


def test_unet_with_a_timestep_per_row_is_that_of_diffusers(reference, call):
    recorded = reference.recorded
    inputs = recorded["unet.sample"], recorded["unet.mixed_timesteps"], recorded["unet.context"]
    assert_close(call["denoiser"](*inputs), recorded["unet.mixed_out"], FORWARD)


def test_unet_has_the_epsilons_of_diffusers(reference, call):
    """Latents of a thousandth, where an epsilon of 1e-6 for 1e-5 in the first norm would show."""
    recorded = reference.recorded
    inputs = recorded["unet.tiny_sample"], tf.fill([2], 500.0), recorded["unet.context"]
    assert_close(call["denoiser"](*inputs), recorded["unet.tiny_out"], FORWARD)


@pytest.mark.parametrize(("prefix", "scale"), [("", 1.0), ("tiny_", 1e-3)], ids=["usual", "tiny"])
def test_image_encoder_is_that_of_diffusers(prefix, scale, reference, call):
    recorded = reference.recorded
    images = (recorded["vae.image"] * 2 - 1) * np.float32(scale)
    mean, logvar = np.split(call["encoder"](images), 2, axis=-1)
    assert_close(mean, recorded[f"vae.{prefix}mean"], FORWARD)
    assert_close(logvar, recorded[f"vae.{prefix}logvar"], FORWARD)


@pytest.mark.parametrize(("prefix", "scale"), [("", 1.0), ("tiny_", 1e-3)], ids=["usual", "tiny"])
def test_decoder_is_that_of_diffusers(prefix, scale, reference, call):
    recorded = reference.recorded
    images = call["decoder"](recorded["vae.z"] * np.float32(scale))
    assert_close(images, recorded[f"vae.{prefix}decoded"], FORWARD)


# -- the loop ----------------------------------------------------------------------------------------------------------


class Lane(NamedTuple):
    """One recorded run; all are made side by side, as rows of one batch."""

    plan: Plan
    tokens: np.ndarray  # [2, 1, L]: negative, prompt
    first: np.ndarray  # [1, h, w, c]: the noise it starts from
    noise: np.ndarray  # [count, 1, h, w, c]: what is drawn at each step
    expected: list[np.ndarray]  # latents after each step, at unit variance


def plan_of(reference, name: str) -> Plan:
    sampler, eta = SAMPLERS[name]
    return build_plan(reference.spec.schedule, sampler, STEPS, eta=eta)


def expected_latents(recorded, name: str, plan: Plan) -> list[np.ndarray]:
    """The recorded latents of a run, at unit variance."""
    scaled_up = name.split(".")[1].startswith(SCALED_UP)
    scales = plan.rows[1 : plan.count + 1, 1] if scaled_up else np.ones(plan.count, "float32")
    return [scale * latents for scale, latents in zip(scales, recorded[f"{name}.latents_after"], strict=True)]


def lanes_of(reference) -> dict[str, Lane]:
    recorded, lanes = reference.recorded, {}
    for name in (f"sample.{name}" for name in SAMPLERS):
        plan = plan_of(reference, name.split(".")[1])
        first = recorded["sample.noise"]
        noise = recorded.get(f"{name}.noise.step", np.zeros((plan.count, *first.shape), "float32"))
        tokens = np.stack([recorded["text.negative.input_ids"], recorded["text.prompt.input_ids"]])
        lanes[name] = Lane(plan, tokens, first, noise, expected_latents(recorded, name, plan))
    plan, tokens = plan_of(reference, "ddim"), np.stack([recorded["text.empty.input_ids"], recorded["text.prompt.input_ids"]])
    expected = expected_latents(recorded, TWO_IMAGES, plan)
    for i, first in enumerate(recorded["sample2.noise"]):
        noise = np.zeros((plan.count, 1, *first.shape), "float32")
        lanes[f"{TWO_IMAGES}/{i}"] = Lane(plan, tokens, first[None], noise, [latents[i : i + 1] for latents in expected])
    return lanes


@pytest.fixture(scope="module")
def trajectories(reference, run) -> dict[str, tuple[list[np.ndarray], np.ndarray]]:
    """The latents of every lane after each step, and its image. The noise of the steps is the recorded one."""
    functions, lanes = PipelineFunctions(reference.spec, reference.parts), lanes_of(reference)

    denoiser = reference.parts["denoiser"]

    def prepare(tokens):
        return denoiser.prepare({"context": reference.parts["text_encoder"](tokens)})

    denoise, decode = run(functions.guided), run(functions.decode_float)
    move = run(lambda row, *rest: step(unpack(row), *rest))
    tokens = np.concatenate([lane.tokens for lane in lanes.values()], axis=1)
    prepared = run(prepare)(tokens.reshape(-1, tokens.shape[-1]))
    latents = [tf.constant(lane.plan.init_scale * lane.first, tf.float32) for lane in lanes.values()]
    histories, after = [empty_history(one) for one in latents], {name: [] for name in lanes}
    for i in range(max(lane.plan.count for lane in lanes.values())):
        timesteps = np.array([lane.plan.rows[i, 0] for lane in lanes.values()])
        features = denoiser.timestep_features(timesteps)
        outputs = denoise(tf.concat(latents, axis=0), features, prepared, tf.fill([len(lanes)], GUIDANCE))
        for j, (name, lane) in enumerate(lanes.items()):
            if i < lane.plan.count:
                row, output, noise = tf.constant(lane.plan.rows[i]), outputs[j : j + 1], tf.constant(lane.noise[i])
                latents[j], histories[j] = move(row, latents[j], histories[j], output, noise)
                after[name].append(latents[j].numpy())
    images = np.clip(decode(tf.concat(latents, axis=0)) / 2 + 0.5, 0, 1)
    return {name: (after[name], image) for name, image in zip(lanes, images)}


@pytest.mark.parametrize("name", [*(f"sample.{name}" for name in SAMPLERS), f"{TWO_IMAGES}/0", f"{TWO_IMAGES}/1"])
def test_latents_after_every_step_and_the_image_are_those_of_diffusers(name, reference, trajectories):
    lane, (after, image) = lanes_of(reference)[name], trajectories[name]
    run_name, _, number = name.partition("/")
    np.testing.assert_array_equal(lane.plan.timesteps, reference.recorded[f"{run_name}.timesteps"])
    for i, (latents, expected) in enumerate(zip(after, lane.expected, strict=True)):
        assert_close(latents, expected, TRAJECTORY, f"call {i}")
    np.testing.assert_allclose(image, reference.recorded[f"{run_name}.image"][int(number or 0)], rtol=0, atol=PIXELS)


# -- the whole graph ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[pytest.param(False, marks=pytest.mark.slow), True], ids=["graph", "xla"])
def pipeline(request, reference):
    return Pipeline(reference.spec, reference.parts, jit_compile=request.param)


@pytest.mark.parametrize("name", WITHOUT_NOISE)
def test_generate_is_diffusers_pipeline(name, reference, pipeline):
    recorded, plan = reference.recorded, plan_of(reference, name)
    inputs = SamplingInputs(
        plan=tf.constant(plan.rows[None]),
        init_scale=tf.constant([plan.init_scale], tf.float32),
        seeds=tf.constant([0]),
        indices=tf.constant([0]),
        guidance=tf.constant([GUIDANCE]),
    )
    halves = [pipeline.encode(tf.constant(recorded[f"text.{text}.input_ids"])) for text in ("negative", "prompt")]
    state = pipeline.begin(inputs, *halves, pipeline.latent_shape(32, 32), tf.constant(recorded["sample.noise"]))
    for i, expected in enumerate(expected_latents(recorded, f"sample.{name}", plan)):
        state = pipeline.advance(inputs, state, tf.constant(i), tf.constant(i + 1))
        assert_close(state.latents, expected, TRAJECTORY, f"call {i}")
    images, _ = pipeline.finish(state.latents)
    levels = np.round(recorded[f"sample.{name}.image"] * 255)
    difference = np.abs(images.numpy().astype("float32") - levels)
    assert difference.max() <= 1  # where PIXELS crosses a rounding boundary
    assert np.mean(difference > 0) < 255 * 2 * PIXELS
