"""Samplers for models that were distilled to few steps: latent consistency models and trajectory consistency distillation.

Both call the model at some of the timesteps of its distillation, whatever the spacing of the schedule.
"""

import math

import numpy as np

from tfsd.samplers.rows import PlanRow
from tfsd.samplers.schedule import NoiseSchedule, as_image

DISTILLED_STEPS = 50  # diffusers' `original_inference_steps`
TIMESTEP_SCALING = 10.0
DATA_DEVIATION = 0.5


def lcm(schedule: NoiseSchedule, num_steps: int, start: int) -> list[PlanRow]:
    """Multistep consistency sampling: Luo et al. 2023 (latent consistency models), algorithm 3; `LCMScheduler` of diffusers.

    Each step but the last noises its image to the next level. The image mixes in the latents, more so near timestep 0.
    """
    timesteps = _distilled_timesteps(schedule, num_steps)
    alpha, sigma = schedule.marginals(timesteps)
    alpha_next, sigma_next = np.append(alpha[1:], 1.0), np.append(sigma[1:], 0.0)
    rows = []
    for i in range(start, num_steps):
        scaled = timesteps[i] * TIMESTEP_SCALING
        variance = scaled**2 + DATA_DEVIATION**2
        skip, out = DATA_DEVIATION**2 / variance, scaled / math.sqrt(variance)
        estimate = as_image(schedule.spec.prediction, alpha[i], sigma[i])
        mix = (alpha_next[i] * out,)
        rows.append(PlanRow(timesteps[i], alpha[i], sigma[i], *estimate, alpha_next[i] * skip, mix, sigma_next[i]))
    return rows


def tcd(schedule: NoiseSchedule, num_steps: int, start: int, *, eta: float = 0.0) -> list[PlanRow]:
    """Strategic stochastic sampling: Zheng et al. 2024 (trajectory consistency distillation); `TCDScheduler` of diffusers.

    Each step goes down to a timestep that is `eta` (the paper's gamma) below the next one, then noises up to that. The last
    step ends at timestep 0.
    """
    timesteps = _distilled_timesteps(schedule, num_steps)
    arrivals = np.append(timesteps[1:], 0.0)
    before, after = schedule.marginals(timesteps), schedule.marginals(arrivals)
    below = schedule.marginals(np.floor((1 - eta) * arrivals))
    rows = []
    for i in range(start, num_steps):
        (alpha, sigma), (alpha_low, sigma_low) = (before[0][i], before[1][i]), (below[0][i], below[1][i])
        up = after[0][i] / alpha_low
        keep = up * sigma_low / sigma
        mix = (up * alpha_low - keep * alpha,)
        noise = math.sqrt(max(0.0, 1 - up**2))
        rows.append(PlanRow(timesteps[i], alpha, sigma, *as_image(schedule.spec.prediction, alpha, sigma), keep, mix, noise))
    return rows


def _distilled_timesteps(schedule: NoiseSchedule, num_steps: int) -> np.ndarray:
    """Returns `num_steps` of the timesteps of the distillation, noisiest first; more than it had are spread as evenly."""
    train_steps = schedule.spec.train_steps
    distilled = min(max(DISTILLED_STEPS, num_steps), train_steps)
    grid = (np.arange(distilled, 0, -1) * (train_steps // distilled) - 1).astype(np.float64)
    return grid[np.arange(num_steps) * distilled // num_steps]
