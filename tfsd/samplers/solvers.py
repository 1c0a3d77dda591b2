"""Multistep solvers that step in log(alpha / sigma) and extrapolate the denoised latents: DPM-Solver++ and UniPC.

`h` is the length of a step in log(alpha / sigma), infinite where it ends at an image.
"""

import math
from typing import NamedTuple

import numpy as np

from tfsd.samplers.rows import PlanRow
from tfsd.samplers.schedule import NoiseSchedule, as_image, karras_ratios, levels

FEW_STEPS = 15  # below which diffusers' DPM-Solver makes its last step one of first order


class _Grid(NamedTuple):
    """Where a solver's steps are: `timesteps` [N], and the levels [N + 1] there and after the last step."""

    timesteps: np.ndarray
    alpha: np.ndarray
    sigma: np.ndarray
    log_snr: np.ndarray  # log(alpha / sigma)

    def row(self, schedule: NoiseSchedule, i: int, keep: float, mix: tuple[float, ...], noise: float = 0.0) -> PlanRow:
        """Returns the row of step `i`, whose history has the denoised latents."""
        alpha, sigma = self.alpha[i], self.sigma[i]
        estimate = as_image(schedule.spec.prediction, alpha, sigma)
        return PlanRow(self.timesteps[i], alpha, sigma, *estimate, keep, mix, noise)


def _grid(schedule: NoiseSchedule, num_steps: int, karras: bool) -> _Grid:
    """Returns the steps of all solvers here: to an image, or to `final_ratio`."""
    if karras:
        largest, smallest = schedule.ratios([schedule.spec.train_steps - 1, 0])
        ratios = karras_ratios(largest, smallest, num_steps)
        timesteps = np.round(schedule.timesteps_of(ratios))
    else:
        timesteps = schedule.spaced_timesteps(num_steps, end_early=True)
        ratios = schedule.ratios(timesteps)
    ratios = np.append(ratios, schedule.final_ratio)
    with np.errstate(divide="ignore"):
        return _Grid(timesteps, *levels(ratios), -np.log(ratios))


def dpmpp_2m(schedule: NoiseSchedule, num_steps: int, start: int, *, karras: bool = False) -> list[PlanRow]:
    """DPM-Solver++(2M): Lu et al. 2022, algorithm 2; `DPMSolverMultistepScheduler` of diffusers.

    The last row returns the denoised latents, or steps to `final_ratio`: of first order where there are few steps, as
    diffusers' `lower_order_final` has it.
    """
    grid, rows = _grid(schedule, num_steps, karras), []
    for i in range(start, num_steps):
        h = grid.log_snr[i + 1] - grid.log_snr[i]
        bend = _bend(grid, i, start)
        gain = -grid.alpha[i + 1] * math.expm1(-h)
        rows.append(grid.row(schedule, i, grid.sigma[i + 1] / grid.sigma[i], (gain * (1 + bend), -gain * bend)))
    return rows


def dpmpp_2m_sde(schedule: NoiseSchedule, num_steps: int, start: int, *, karras: bool = False) -> list[PlanRow]:
    """SDE-DPM-Solver++(2M): Lu et al. 2022 (DPM-Solver++), section 5, which draws noise at every step.

    Source: `sample_dpmpp_2m_sde` of k-diffusion, with its eta at 1 and its solver "midpoint"; `DPMSolverMultistepScheduler`
    of diffusers with `algorithm_type` "sde-dpmsolver++".
    """
    grid, rows = _grid(schedule, num_steps, karras), []
    for i in range(start, num_steps):
        h = grid.log_snr[i + 1] - grid.log_snr[i]
        bend = _bend(grid, i, start)
        fresh = -math.expm1(-2 * h)
        gain, keep = grid.alpha[i + 1] * fresh, grid.sigma[i + 1] / grid.sigma[i] * math.exp(-h)
        noise = grid.sigma[i + 1] * math.sqrt(fresh)
        rows.append(grid.row(schedule, i, keep, (gain * (1 + bend), -gain * bend), noise))
    return rows


def _bend(grid: _Grid, i: int, start: int) -> float:
    """Returns how far a step of second order goes beyond the newest denoised latents, in their differences to those before."""
    steps = len(grid.timesteps)
    h = grid.log_snr[i + 1] - grid.log_snr[i]
    if i == start or math.isinf(h) or (i == steps - 1 and steps < FEW_STEPS):
        return 0.0
    return h / (2 * (grid.log_snr[i] - grid.log_snr[i - 1]))


def unipc(schedule: NoiseSchedule, num_steps: int, start: int, *, karras: bool = False) -> list[PlanRow]:
    """UniPC of order 2 with B(h) = e^h - 1: Zhao et al. 2023, algorithms 1 and 2; `UniPCMultistepScheduler` of diffusers.

    Each model call first corrects the step that led to it, then predicts the next one. The latents before that step are
    no longer there, but the prediction went from them, so that the correction is the difference of the two formulas.
    """
    grid, rows = _grid(schedule, num_steps, karras), []
    predicted = corrected = np.zeros(3)  # weights of the denoised latents, newest first
    for i in range(start, num_steps):
        # What the last step took from the denoised latents of before, moved on by one call.
        correction = corrected - np.append(0.0, predicted[:-1]) if i > start else np.zeros(3)
        keep = grid.sigma[i + 1] / grid.sigma[i]
        order = 1 if i == start or i == num_steps - 1 else 2
        predicted, corrected = _predictor(grid, i, order), _corrector(grid, i, order)
        rows.append(grid.row(schedule, i, keep, tuple(predicted + keep * correction)))
    return rows


def _predictor(grid: _Grid, i: int, order: int) -> np.ndarray:
    """Returns the weights [3] of the denoised latents at points i, i - 1 and i - 2 in the step from i to i + 1."""
    h = grid.log_snr[i + 1] - grid.log_snr[i]
    gain = -grid.alpha[i + 1] * math.expm1(-h)
    bend = 0.0 if order == 1 else h / (2 * (grid.log_snr[i] - grid.log_snr[i - 1]))
    return gain * np.array([1 + bend, -bend, 0.0])


def _corrector(grid: _Grid, i: int, order: int) -> np.ndarray:
    """Returns the weights [3] of the denoised latents at points i + 1, i and i - 1 in the same step, taken again."""
    h = grid.log_snr[i + 1] - grid.log_snr[i]
    gain = -grid.alpha[i + 1] * math.expm1(-h)
    if order == 1:
        return gain * np.array([0.5, 0.5, 0.0])
    place = (grid.log_snr[i - 1] - grid.log_snr[i]) / h  # of the point before, where the step goes from 0 to 1
    first = -1 / h - 1 / math.expm1(-h)
    second = 2 * (-first / h - 1 / math.expm1(-h) * 0.5)
    before, there = np.linalg.solve([[1.0, 1.0], [place, 1.0]], [first, second])
    return gain * np.array([there, 1 - there - before / place, before / place])
