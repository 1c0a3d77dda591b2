"""Plans against what diffusers and KerasCV recorded. See tests/data/README.md for where the numbers come from.

Out of scope, as not linear or not offered: clipped or thresholded samples, DPM-Solver, DEIS and UniPC of other orders and kinds
(1, Heun, dpmsolver, bh1). Flow matching is compared in `test_flow.py`.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tfsd.samplers.plans import build_plan
from tfsd.samplers.schedule import NoiseSchedule
from tfsd.samplers.step import empty_history, step, unpack
from tfsd.specs import VPSpec

DATA = Path(__file__).parents[1] / "data" / "samplers"
DIFFUSERS = np.load(DATA / "diffusers.npz")
KERASCV = np.load(DATA / "kerascv.npz")
VARIANTS = json.loads((DATA / "diffusers.json").read_text())["variants"]
MORE = json.loads((DATA / "diffusers_more.json").read_text())["variants"]
SOLVERS = json.loads((DATA / "diffusers_solvers.json").read_text())["variants"]
DIFFUSERS = {name: DIFFUSERS[name] for name in DIFFUSERS}
for group in ("more", "solvers"):
    DIFFUSERS |= {f"{group}/{name}": value for name, value in np.load(DATA / f"diffusers_{group}.npz").items()}
DIFFUSERS |= {f"{steps}/{name}": DIFFUSERS[name] for steps in (10, 50) for name in ("x0_noise", "clean")}
SHAPE = (1, 2, 2, -1)  # of some of the values of the recorded latents: schedulers and model act on each alone

LATENTS = 5e-6  # of the largest; diffusers works in float32, partly on latents 14 times as large (worst found: 4e-6)
TABLE = 2e-6  # diffusers multiplies its alphas up in float32, which is off by up to 1e-6
SMALL_SIGMA = 1e-6  # and 1 - alphas_cumprod[0] in float32 is uncertain by 3e-5 of its 0.00085
KARRAS = 2e-5  # whose sigmas are all made from that one, which ancestral steps multiply up
TIMESTEPS = 2e-5  # fractional Karras timesteps come from float32 sigmas

SAMPLER_OF = {  # by the beginning of a variant's name, the longest first
    "euler_a": "euler_ancestral",
    "kdpm2_a": "kdpm2_ancestral",
    "sde_dpmpp_2m": "dpmpp_2m_sde",
    "dpmpp_2s": "dpmpp_2s",
    "dpmpp_3m": "dpmpp_3m",
    "dpmpp": "dpmpp_2m",
} | {name: name for name in ("pndm", "ddim", "ddpm", "lms", "euler", "heun", "unipc", "kdpm2", "deis", "lcm", "tcd")}
CASES = [f"{steps}/{name}" for steps in (10, 50) for name in VARIANTS]
CASES += [f"more/{steps}/{name}" for name, variant in MORE.items() for steps in variant["steps"]]
CASES += [f"solvers/{steps}/{name}" for name, variant in SOLVERS.items() for steps in variant["steps"]]


def recorded(case: str, field: str) -> np.ndarray:
    """What the runs of a case's number of steps have in common."""
    return DIFFUSERS[f"{case.rpartition('/')[0]}/{field}"]


def plan_of(case: str):
    group, steps, name = f"/{case}".split("/")[-3:]
    variant = {"more": MORE, "solvers": SOLVERS}.get(group, VARIANTS)[name]
    options = variant["constructor"]
    sampler = next(sampler for start, sampler in SAMPLER_OF.items() if name.startswith(start))
    sampler += "_karras" if options.get("use_karras_sigmas") else ""
    spec = VPSpec(
        betas=options.get("beta_schedule", "linear"),
        beta_start=options["beta_start"],
        beta_end=options["beta_end"],
        prediction={"v_prediction": "v"}.get(options.get("prediction_type"), options.get("prediction_type", "epsilon")),
        spacing=options.get("timestep_spacing", "linspace"),
        steps_offset=options.get("steps_offset", 0),
        final_alpha_one=options.get("set_alpha_to_one", True),
        final_sigma=options.get("final_sigmas_type", "zero"),
        zero_snr=options.get("rescale_betas_zero_snr", False),
    )
    return spec, build_plan(spec, sampler, int(steps), eta=variant["step_kwargs"].get("eta", 0.0))


def unit_variance_scales(case: str) -> np.ndarray:
    """What divides the recorded latents after each call (and before the first, at 0) to give them unit variance."""
    name = case.split("/")[-1]
    if name.startswith("kdpm2"):  # whose points between are not among the sigmas
        _, plan = plan_of(case)
        return 1 / plan.rows[: plan.count + 1, 1].astype(np.float64)
    if name.startswith(("lms", "euler", "heun")):
        scales = np.sqrt(DIFFUSERS[case + "/sigmas"].astype(np.float64) ** 2 + 1)
        return np.append(scales[:-1], 1.0)  # a decoder gets the latents after the last call as they are
    return np.ones(len(DIFFUSERS[case + "/timesteps"]) + 1)


def rounding_of_diffusers(case: str) -> float:
    """Twice the distance of diffusers' float32 run to its own in float64, where that matters: Euler starts at sigma 4096."""
    steps, name = case.split("/")[-2:]
    return 2 * MORE[name]["max_abs_diff_to_float64_run"][steps] if name.endswith("v_zero_snr") else 0.0


def eager(packed, latents, history, output, noise):
    return step(unpack(packed), latents, history, output, noise)


MODES = {"eager": eager, "graph": tf.function(eager), "xla": tf.function(eager, jit_compile=True)}


@pytest.mark.parametrize("case", CASES)
def test_timesteps_are_those_of_diffusers(case):
    _, plan = plan_of(case)
    expected = DIFFUSERS[case + "/timesteps"]
    rounds = any(solver in case for solver in ("dpmpp", "unipc", "deis"))
    if ("karras" in case and not rounds) or "kdpm2" in case:
        np.testing.assert_allclose(plan.timesteps, expected, rtol=TIMESTEPS, atol=1e-3)
    else:
        np.testing.assert_array_equal(plan.timesteps, expected)


@pytest.mark.parametrize("case", [case for case in CASES if case + "/sigmas" in DIFFUSERS])
def test_levels_are_the_sigmas_of_diffusers(case):
    spec, plan = plan_of(case)
    schedule = NoiseSchedule(spec)
    final = schedule.ratios(0) if "deis" in case else schedule.final_ratio
    levels = np.append(plan.rows[: plan.count, 2] / plan.rows[: plan.count, 1], final)
    expected = DIFFUSERS[case + "/sigmas"]
    if "kdpm2" in case:  # without the points between, and those that diffusers repeats for them
        levels, expected = np.append(levels[:-1:2], levels[-1]), expected[::2]
    tolerance = KARRAS if "karras" in case else TABLE
    np.testing.assert_allclose(levels, expected, rtol=tolerance, atol=SMALL_SIGMA)


@pytest.mark.parametrize("case", CASES)
def test_first_noise_is_scaled_as_in_diffusers(case):
    _, plan = plan_of(case)
    expected = DIFFUSERS[case + "/init_noise_sigma"] / unit_variance_scales(case)[0]
    np.testing.assert_allclose(plan.init_scale, expected, rtol=TABLE)


@pytest.mark.parametrize("case", CASES)
def test_noised_image_is_that_of_diffusers(case):
    _, plan = plan_of(case)
    tolerance = KARRAS if "karras" in case else LATENTS
    for index, expected in zip(DIFFUSERS[case + "/add_noise_index"], DIFFUSERS[case + "/add_noise_out"]):
        if "kdpm2" in case and index % 2:
            continue  # a point between two steps, where diffusers adds the noise of the step after it
        _, alpha, sigma = plan.rows[index, :3]
        scale = unit_variance_scales(case)[index]
        noised = (alpha * recorded(case, "clean") + sigma * recorded(case, "x0_noise")) * scale
        np.testing.assert_allclose(noised, expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize(
    ("case", "mode"), [(case, mode) for case in CASES for mode in (["eager"] if case.count("/") > 1 else MODES)]
)
def test_latents_follow_diffusers_at_every_step(case, mode):
    _, plan = plan_of(case)
    latents = tf.constant(plan.init_scale * recorded(case, "x0_noise").reshape(SHAPE), tf.float32)
    history, scales = empty_history(latents), unit_variance_scales(case)
    noise = np.zeros((plan.count, latents.shape.num_elements()), np.float32)
    if case + "/noise" in DIFFUSERS:
        noise[DIFFUSERS.get(case + "/noise_call", slice(None))] = DIFFUSERS[case + "/noise"]
    assert plan.count == len(DIFFUSERS[case + "/trajectory"])
    for i, timestep in enumerate(DIFFUSERS[case + "/timesteps"].astype(np.float64)):
        output = np.float32(0.3) * latents + np.float32(0.1 * np.sin(timestep))
        latents, history = MODES[mode](tf.constant(plan.rows[i]), latents, history, output, tf.constant(noise[i].reshape(SHAPE)))
        expected = DIFFUSERS[case + "/trajectory"][i].reshape(SHAPE) / scales[i + 1]
        tolerance = (KARRAS if "kdpm2_a_karras" in case else LATENTS) * max(1, np.abs(expected).max()) + rounding_of_diffusers(
            case
        ) / scales[i + 1]
        np.testing.assert_allclose(latents, expected, rtol=0, atol=tolerance, err_msg=f"{case}, call {i}")


@pytest.mark.parametrize("case", ["seed_128", "noise_128"])
def test_kerascv_grid_gives_the_latents_of_kerascv(case):
    spec = VPSpec(spacing="kerascv", steps_offset=0, final_alpha_one=True)
    plan = build_plan(spec, "ddim", 4)
    np.testing.assert_array_equal(plan.timesteps, KERASCV[case + "/timesteps"])
    latents = tf.constant(KERASCV[case + "/noise"].reshape(2, 4, 8, 4))
    history = empty_history(latents)
    for i in range(plan.count):
        unconditional, conditional = (KERASCV[f"{case}/eps_{which}"][i].reshape(latents.shape) for which in ("uncond", "cond"))
        output = unconditional + 7.5 * (conditional - unconditional)
        latents, history = step(unpack(tf.constant(plan.rows[i])), latents, history, output, tf.zeros_like(latents))
        expected = KERASCV[case + "/latent_after"][i].reshape(latents.shape)
        # Latents grow to 25 with random weights, hence relative to the largest.
        np.testing.assert_allclose(latents, expected, atol=2e-6 * np.abs(expected).max(), rtol=0)


@pytest.mark.parametrize(
    ("num_steps", "first"), [(25, [999, 957, 916]), (50, [999, 979, 958]), (4, [999, 666, 333, 0])], ids=["25", "50", "4"]
)
def test_kerascv_grid_rounds_as_kerascv(num_steps, first):
    timesteps = NoiseSchedule(VPSpec(spacing="kerascv")).spaced_timesteps(num_steps)
    assert timesteps[: len(first)].tolist() == first
    assert timesteps[-1] == 0 and len(timesteps) == num_steps


def test_alphas_round_to_the_table_of_kerascv():
    ours = NoiseSchedule(VPSpec()).alphas_cumprod
    np.testing.assert_array_equal(ours.astype(np.float32), KERASCV["alphas_cumprod"].astype(np.float32))


def test_alphas_of_zero_snr_are_those_of_diffusers():
    """In float32, the differences to the last alpha are uncertain by 1e-7 of an alpha of 0.07 and more."""
    ours, theirs = NoiseSchedule(VPSpec(prediction="v", zero_snr=True)), DIFFUSERS["more/alphas_cumprod_zero_snr"]
    np.testing.assert_allclose(ours.alphas_cumprod, theirs, rtol=TABLE, atol=1e-6)
    assert ours.alphas_cumprod[-1] == theirs[-1] == 0 and ours.ratios(999) == np.sqrt(2.0**24 - 1)


def test_alphas_are_those_of_diffusers():
    ours = NoiseSchedule(VPSpec()).alphas_cumprod
    np.testing.assert_allclose(ours, DIFFUSERS["alphas_cumprod"], rtol=TABLE)
