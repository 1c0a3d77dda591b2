"""Samplers that step in the ratio sigma / alpha, which Karras et al. call sigma: Euler, linear multistep, Heun, DPM-Solver-2."""

import math

import numpy as np

from tfsd.samplers.rows import PlanRow
from tfsd.samplers.schedule import NoiseSchedule, as_image, as_noise, karras_ratios, levels


def euler(schedule: NoiseSchedule, num_steps: int, start: int, *, karras: bool = False) -> list[PlanRow]:
    """Euler's method: Karras et al. 2022, algorithm 2 without added noise."""
    timesteps, ratios = _ratio_grid(schedule, num_steps, start, karras, schedule.final_ratio)
    return _euler_rows(schedule, timesteps, ratios, ratios[1:])


def euler_ancestral(schedule: NoiseSchedule, num_steps: int, start: int) -> list[PlanRow]:
    """Euler's method below the next noise level, then fresh noise up to it.

    Source: `sample_euler_ancestral` of k-diffusion, with its eta at 1.
    """
    timesteps, ratios = _ratio_grid(schedule, num_steps, start, False)
    return _euler_rows(schedule, timesteps, ratios, *_ancestral(ratios))


def heun(schedule: NoiseSchedule, num_steps: int, start: int, *, karras: bool = False) -> list[PlanRow]:
    """Heun's method: Karras et al. 2022, algorithm 1 without added noise; `HeunDiscreteScheduler` of diffusers.

    Each step but the last, which ends at an image, calls the model at both its ends and goes along the mean.
    """
    timesteps, ratios = _ratio_grid(schedule, num_steps, start, karras)
    length = np.diff(ratios)
    weights = np.zeros((2 * len(length) - 1, 2))
    weights[::2, 0] = length
    weights[1::2] = length[:-1, None] * [0.5, -0.5]  # the latents have already gone along the first derivative
    return _derivative_rows(schedule, np.repeat(timesteps, 2)[1:], np.append(np.repeat(ratios[:-1], 2)[1:], ratios[-1]), weights)


def kdpm2(schedule: NoiseSchedule, num_steps: int, start: int, *, karras: bool = False) -> list[PlanRow]:
    """DPM-Solver-2: Lu et al. 2022 (DPM-Solver), algorithm 1, in the form of Karras et al.

    Source: `sample_dpm_2` of k-diffusion; `KDPM2DiscreteScheduler` of diffusers.
    """
    timesteps, ratios = _midpoint_grid(schedule, num_steps, start, karras)
    return _midpoint_rows(schedule, timesteps, ratios, ratios[1:], np.zeros(len(timesteps)))


def kdpm2_ancestral(schedule: NoiseSchedule, num_steps: int, start: int, *, karras: bool = False) -> list[PlanRow]:
    """DPM-Solver-2 below the next noise level, then fresh noise up to it.

    Source: `sample_dpm_2_ancestral` of k-diffusion, with its eta at 1; `KDPM2AncestralDiscreteScheduler` of diffusers.
    """
    timesteps, ratios = _midpoint_grid(schedule, num_steps, start, karras)
    return _midpoint_rows(schedule, timesteps, ratios, *_ancestral(ratios))


def lms(schedule: NoiseSchedule, num_steps: int, start: int, *, karras: bool = False) -> list[PlanRow]:
    """Linear multistep of order four: Adams-Bashforth for uneven steps, as `sample_lms` of k-diffusion."""
    timesteps, ratios = _ratio_grid(schedule, num_steps, start, karras)
    return _derivative_rows(schedule, timesteps, ratios, _adams_bashforth(ratios))


def _ancestral(ratios: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the ratios [N] that the steps of ancestral samplers go down to, and the fresh noise [N] up to the next ones."""
    here, there = ratios[:-1], ratios[1:]
    up = there * np.sqrt(np.maximum(0.0, 1 - (there / here) ** 2))
    return there**2 / here, up  # sqrt(there^2 - up^2)


def _adams_bashforth(points: np.ndarray) -> np.ndarray:
    """Returns the weights [N, 4] of the derivatives at points i, i - 1, i - 2 and i - 3 for the move from i to i + 1.

    They integrate the polynomial through the derivatives that there are: row i has i + 1 weights, then zeros.
    """
    length = np.diff(points)
    at = points[:-1, None] + length[:, None] * (1 + np.array([-1, 1]) / math.sqrt(3)) / 2  # Gauss: exact up to degree 3
    weights = np.zeros((len(length), 4))
    for order in range(1, min(4, len(length)) + 1):
        rows = slice(order - 1, order if order < 4 else None)  # the last order serves all remaining rows
        count = len(length[rows])
        nodes = [points[order - 1 - k :][:count, None] for k in range(order)]
        for k in range(order):
            basis = np.ones((count, 2))  # the polynomial that is 1 at node k and 0 at the others
            for other in nodes[:k] + nodes[k + 1 :]:
                basis *= (at[rows] - other) / (nodes[k] - other)
            weights[rows, k] = length[rows] * basis.mean(axis=1)
    return weights


def _ratio_grid(
    schedule: NoiseSchedule, num_steps: int, start: int, karras: bool, final: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the timesteps from `start` on and the values of sigma / alpha there, with `final` after the last one."""
    timesteps = schedule.spaced_timesteps(num_steps, whole=False)
    ratios = schedule.ratios(timesteps)
    if karras:
        ratios = karras_ratios(ratios[0], ratios[-1], num_steps)
        timesteps = schedule.timesteps_of(ratios)
    return timesteps[start:], np.append(ratios, final)[start:]


def _euler_rows(schedule: NoiseSchedule, timesteps, ratios, targets, noise=None) -> list[PlanRow]:
    """Returns the rows that step to the values `targets` [N] of sigma / alpha, and then add `noise` [N] times alpha."""
    if not schedule.spec.zero_snr:
        return _derivative_rows(schedule, timesteps, ratios, (targets - ratios[:-1])[:, None], noise)
    # The same by way of the denoised latents: at alpha 1 / 4096 the noise would be weighted with 4096, and four digits lost.
    alpha, sigma = levels(ratios)
    alpha[-1] = 1.0
    left = targets / ratios[:-1]
    keep, mix = left * alpha[1:] / alpha[:-1], alpha[1:] * (1 - left)
    return _rows_of(schedule, as_image, timesteps, alpha, sigma, keep, mix[:, None], noise)


def _midpoint_grid(schedule: NoiseSchedule, num_steps: int, start: int, karras: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns what `_ratio_grid` does; diffusers' DPM-Solver-2 rounds the timesteps of Karras, though not those between."""
    timesteps, ratios = _ratio_grid(schedule, num_steps, start, karras)
    return np.round(timesteps) if karras else timesteps, ratios


def _midpoint_rows(schedule: NoiseSchedule, timesteps, ratios, targets, noise) -> list[PlanRow]:
    """Returns the rows that step to `targets` [N] along the derivative at a point between, and then add `noise` [N].

    The point is halfway in the logarithm. The last step, which ends at an image, is one of Euler's method.
    """
    here, length = ratios[:-1], targets - ratios[:-1]
    between = np.sqrt(here[:-1] * targets[:-1])
    calls = 2 * len(here) - 1
    at, levels_there, weights, fresh = np.zeros(calls), np.zeros(calls + 1), np.zeros((calls, 2)), np.zeros(calls)
    at[::2], at[1::2] = timesteps, schedule.timesteps_of(between)
    levels_there[:-1:2], levels_there[1:-1:2] = here, between
    weights[:-1:2, 0], weights[-1, 0] = between - here[:-1], length[-1]
    weights[1::2, 0], weights[1::2, 1] = length[:-1], here[:-1] - between  # takes back the way to the point
    fresh[1::2] = noise[:-1]
    return _derivative_rows(schedule, at, levels_there, weights, fresh)


def _derivative_rows(schedule: NoiseSchedule, timesteps, ratios, weights, noise=None) -> list[PlanRow]:
    """Returns the rows that add `weights` [N, k] times the predicted noises to latents / alpha, and then `noise` [N].

    The latents after the last one are divided by their alpha: a decoder gets `image + ratio * noise`, as in diffusers.
    """
    alpha, sigma = levels(ratios)
    alpha[-1] = 1.0
    keep, mix = alpha[1:] / alpha[:-1], alpha[1:, None] * weights
    return _rows_of(schedule, as_noise, timesteps, alpha, sigma, keep, mix, noise)


def _rows_of(schedule: NoiseSchedule, estimate, timesteps, alpha, sigma, keep, mix, noise) -> list[PlanRow]:
    """Returns rows whose history holds what `estimate`, `as_image` or `as_noise`, makes of the outputs."""
    fresh = np.zeros_like(keep) if noise is None else alpha[1:] * noise
    estimates = (estimate(schedule.spec.prediction, *level) for level in zip(alpha[:-1], sigma))
    return [PlanRow(*row) for row in zip(timesteps, alpha, sigma, *zip(*estimates), keep, map(tuple, mix), fresh)]
