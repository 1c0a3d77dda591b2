"""Flow matching against what diffusers' `FlowMatchEulerDiscreteScheduler` recorded. See tests/data/README.md."""

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tfsd.samplers.plans import SAMPLERS, build_plan, fitting_samplers
from tfsd.samplers.schedule import FlowSchedule, as_image, as_noise
from tfsd.samplers.step import empty_history, step, unpack
from tfsd.specs import FlowSpec, ModelSpec, SpecError, VPSpec, from_json, to_json

DATA = Path(__file__).parents[1] / "data" / "samplers"
RECORDED = np.load(DATA / "diffusers_flow.npz")
VARIANTS = json.loads((DATA / "diffusers_flow.json").read_text())["variants"]
CASES = [(name, steps) for name, variant in VARIANTS.items() for steps in variant["steps"]]
ROUNDING = 5e-7  # of values up to 2 in float32; diffusers' own run in float64 differs by up to 1.5e-7


def case_of(name, steps):
    """Returns the spec, the plan, and what was recorded."""
    spec = FlowSpec(sigma_shift=VARIANTS[name]["constructor"]["shift"])
    recorded = {key: RECORDED[f"{steps}/{name}/{key}"] for key in ("timesteps", "sigmas", "trajectory")}
    return spec, build_plan(spec, "euler", steps), recorded


@pytest.mark.parametrize(("name", "steps"), CASES)
def test_flow_match_levels_are_those_of_diffusers(name, steps):
    spec, plan, recorded = case_of(name, steps)
    np.testing.assert_allclose(FlowSchedule(spec).sigmas(steps), recorded["sigmas"], rtol=2e-7)
    np.testing.assert_allclose(plan.timesteps, recorded["timesteps"], rtol=2e-7)
    np.testing.assert_allclose(plan.rows[:steps, 2], recorded["sigmas"][:-1], rtol=2e-7)
    np.testing.assert_allclose(plan.rows[:steps, 1], 1 - recorded["sigmas"][:-1], atol=1e-7)
    assert plan.init_scale == 1 and plan.count == steps


@pytest.mark.parametrize(("name", "steps"), CASES)
def test_flow_match_latents_follow_diffusers_at_every_step(name, steps):
    _, plan, recorded = case_of(name, steps)
    latents = tf.constant(RECORDED[f"{steps}/x0_noise"].reshape(1, 2, 2, 4))
    history, noise = empty_history(latents), tf.zeros_like(latents)
    for i, timestep in enumerate(recorded["timesteps"].astype(np.float64)):
        output = np.float32(0.3) * latents + np.float32(0.1 * np.sin(timestep))
        latents, history = step(unpack(tf.constant(plan.rows[i])), latents, history, output, noise)
        expected = recorded["trajectory"][i].reshape(latents.shape)
        # The sine of a timestep of hundreds moves by its rounding.
        np.testing.assert_allclose(latents, expected, rtol=0, atol=ROUNDING * max(1, np.abs(expected).max()), err_msg=str(i))


@pytest.mark.parametrize(("name", "steps"), CASES)
def test_an_image_is_noised_as_in_diffusers(name, steps):
    _, plan, _ = case_of(name, steps)
    clean, noise = RECORDED[f"{steps}/clean"], RECORDED[f"{steps}/x0_noise"]
    for index, expected in zip(RECORDED[f"{steps}/{name}/add_noise_index"], RECORDED[f"{steps}/{name}/add_noise_out"]):
        _, alpha, sigma = plan.rows[index, :3]
        np.testing.assert_allclose(alpha * clean + sigma * noise, expected, rtol=0, atol=ROUNDING)


def test_levels_are_the_published_ones_of_stable_diffusion_3():
    """KerasHub 0.32 and diffusers 0.42.1 agree on these for 28 steps."""
    sigmas = FlowSchedule(FlowSpec()).sigmas(28)
    np.testing.assert_allclose(sigmas[[0, 1, 2, -3, -2, -1]], [1, 0.9873806, 0.9741077, 0.1109057, 0.0089286, 0], atol=5e-8)


@pytest.mark.parametrize("sigma", [1.0, 0.7, 0.01])
def test_image_and_noise_come_back_from_the_velocity(sigma):
    image, noise = np.random.default_rng(0).normal(size=(2, 8))
    latents, velocity = (1 - sigma) * image + sigma * noise, noise - image
    for of, expected in ((as_image, image), (as_noise, noise)):
        p, q = of("flow", 1 - sigma, sigma)
        np.testing.assert_allclose(p * latents + q * velocity, expected, atol=1e-12)


@pytest.mark.parametrize(("steps", "start"), [(1, 0), (7, 0), (7, 3)])
def test_an_exact_velocity_gives_back_the_image(steps, start):
    image, noise = np.random.default_rng(1).normal(size=(2, 1, 2, 2, 4)).astype("float32")
    plan = build_plan(FlowSpec(), "euler", steps, start)
    assert plan.count == steps - start
    latents = tf.constant(plan.rows[0, 1] * image + plan.rows[0, 2] * noise)
    history = empty_history(latents)
    for row in plan.rows[: plan.count]:
        latents, history = step(unpack(tf.constant(row)), latents, history, noise - image, tf.zeros_like(latents))
    np.testing.assert_allclose(latents, image, atol=1e-6)


def test_a_sampler_of_another_kind_is_refused_with_those_that_fit():
    assert fitting_samplers(FlowSpec()) == ["euler"]
    for name in SAMPLERS.keys() - {"euler"}:
        with pytest.raises(ValueError, match=rf"sampler must be one of euler for models of flow matching; got '{name}'"):
            build_plan(FlowSpec(), name, 4)
    assert "euler" in fitting_samplers(VPSpec())


def test_a_flow_schedule_comes_back_from_json_and_numerics_leave_it_alone():
    spec = ModelSpec(name="flow", schedule=FlowSpec(sigma_shift=1.5), default_sampler="euler")
    assert to_json(spec)["schedule"] == {"kind": "flow", "train_steps": 1000, "sigma_shift": 1.5}
    assert from_json(to_json(spec)) == spec
    other = spec.with_numerics("kerascv")
    assert (other.schedule, other.default_sampler) == (spec.schedule, "euler") and other.denoiser.gelu == "gelu_tanh"
    for shift in (0.0, -1.0, float("nan"), 1e6):
        with pytest.raises(SpecError, match=r"FlowSpec\.sigma_shift must be from 0\.01 to 100\.0"):
            FlowSpec(sigma_shift=shift)
