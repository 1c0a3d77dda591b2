"""Timesteps of every number of steps against diffusers' own lines of code. See tests/data/README.md."""

import zlib
from pathlib import Path

import numpy as np
import pytest

from tfsd.samplers.plans import build_plan, find_sampler
from tfsd.samplers.schedule import NoiseSchedule
from tfsd.specs import VPSpec

GRIDS = np.load(Path(__file__).parents[1] / "data" / "samplers" / "diffusers_grids.npz")
STEPS = 1000
OPTIONS = {  # how our samplers ask for their timesteps, where not for whole ones
    "LMSDiscreteScheduler": {"whole": False},
    "EulerDiscreteScheduler": {"whole": False},
    "EulerAncestralDiscreteScheduler": {"whole": False},
    "DPMSolverMultistepScheduler": {"end_early": True},
    "UniPCMultistepScheduler": {"end_early": True},
    "DEISMultistepScheduler": {"end_early": True},
    "HeunDiscreteScheduler": {"whole": False},
    "KDPM2DiscreteScheduler": {"whole": False},
    "KDPM2AncestralDiscreteScheduler": {"whole": False},
}
SOLVERS = ("DPMSolver", "UniPC", "DEIS")
OTHERWISE = {  # (class, spacing): where we differ deliberately
    **{(grid.split(".")[0], "linspace"): [1] for grid in GRIDS},  # diffusers: timestep 0, ours: the noisiest
    **{(f"{solver}MultistepScheduler", "linspace"): [] for solver in SOLVERS},
}
REPEAT = ("PNDM", "Heun", "KDPM2")  # the plans of these have more rows than steps
REFUSED = {  # (class, spacing): numbers of steps that would repeat a timestep or leave the trained range
    **{(grid.split(".")[0], "leading"): [1000] for grid in GRIDS},
    **{(f"{solver}MultistepScheduler", "leading"): [999, 1000] for solver in SOLVERS},
    **{(f"{solver}MultistepScheduler", "linspace"): [1000] for solver in SOLVERS},
}


def checksum(timesteps: np.ndarray) -> int:
    return zlib.crc32(timesteps.astype("<f4").tobytes())


@pytest.mark.parametrize("grid", GRIDS)
def test_timesteps_are_those_of_diffusers_for_every_number_of_steps(grid):
    kind, spacing = grid.split(".")
    schedule, different, refused = NoiseSchedule(VPSpec(spacing=spacing)), [], []
    for steps in range(1, STEPS + 1):
        try:
            timesteps = schedule.spaced_timesteps(steps, **OPTIONS.get(kind, {}))
        except ValueError:
            refused.append(steps)
            continue
        if checksum(timesteps) != GRIDS[grid][steps - 1]:
            different.append(steps)
    assert different == OTHERWISE.get((kind, spacing), [])
    assert refused == REFUSED.get((kind, spacing), [])


@pytest.mark.parametrize("steps", [2, 48, 61, 96, 112, 144, 499])
@pytest.mark.parametrize("grid", [grid for grid in GRIDS if not grid.startswith(REPEAT)])
def test_plans_have_the_timesteps_of_diffusers(grid, steps):
    kind, spacing = grid.split(".")
    plan = build_plan(VPSpec(spacing=spacing), find_sampler(kind), steps)
    assert checksum(plan.timesteps) == GRIDS[grid][steps - 1]


def test_trailing_timesteps_are_rounded_as_float64_gives_them():
    """1000 - 3 * (1000 / 48) is exactly 937.5 and rounds to 938; diffusers' `arange` gives 937.4999999999999 there."""
    assert NoiseSchedule(VPSpec(spacing="trailing")).spaced_timesteps(48)[3] == 937 - 1


def test_ddpm_arrives_at_its_next_timestep_whatever_the_spacing():
    """As `previous_timestep` of diffusers' DDPMScheduler; its DDIM steps down by train_steps // num_steps instead."""
    for spacing in ("leading", "linspace", "trailing"):
        plan = build_plan(VPSpec(spacing=spacing), "ddpm", 7)
        for row, after in zip(plan.rows[:7].astype(np.float64), plan.rows[1:8]):
            _, alpha, sigma, from_latents, from_output, keep, mix, *_, fresh = row
            latents = np.array([alpha, sigma])  # as amounts of image and of noise
            image, noise = keep * latents + mix * (from_latents * latents + from_output * np.array([0, 1]))
            np.testing.assert_allclose([image, np.hypot(noise, fresh)], after[1:3], atol=1e-6)
