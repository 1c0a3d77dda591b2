"""Solvers that step in log(alpha / sigma): DPM-Solver++, UniPC and DEIS.

`h` is the length of a step in log(alpha / sigma), infinite where it ends at an image.
"""

import math
from typing import NamedTuple

import numpy as np

from tfsd.samplers.rows import PlanRow
from tfsd.samplers.schedule import NoiseSchedule, as_image, as_noise, karras_ratios, levels

FEW_STEPS = 15  # below which diffusers' DPM-Solver and DEIS make their last step one of first order, the one before of second


class _Grid(NamedTuple):
    """Where a solver's steps are: `timesteps` [N], and the levels [N + 1] there and after the last step."""

    timesteps: np.ndarray
    alpha: np.ndarray
    sigma: np.ndarray
    log_snr: np.ndarray  # log(alpha / sigma)

    def row(self, schedule: NoiseSchedule, i: int, keep: float, mix: tuple, noise: float = 0.0, *, of=as_image) -> PlanRow:
        """Returns the row of step `i`, whose history has what `of`, `as_image` or `as_noise`, makes of the outputs."""
        alpha, sigma = self.alpha[i], self.sigma[i]
        from_latents, from_output = of(schedule.spec.prediction, alpha, sigma)
        return PlanRow(self.timesteps[i], alpha, sigma, from_latents, from_output, keep, mix, noise)

    def order(self, i: int, start: int, highest: int) -> int:
        """Returns the order of step `i` if the history begins at `start`, as diffusers' DPM-Solver and DEIS choose it."""
        steps = len(self.timesteps)
        if math.isinf(self.log_snr[i + 1]):
            return 1
        left = steps - i if steps < FEW_STEPS else highest
        return min(highest, left, i - start + 1)


def _grid(schedule: NoiseSchedule, num_steps: int, karras: bool, final: float) -> _Grid:
    """Returns the steps of all solvers here, of which the last one ends where sigma / alpha is `final`."""
    if karras:
        largest, smallest = schedule.ratios([schedule.spec.train_steps - 1, 0])
        ratios = karras_ratios(largest, smallest, num_steps)
        timesteps = np.round(schedule.timesteps_of(ratios))
    else:
        timesteps = schedule.spaced_timesteps(num_steps, end_early=True)
        ratios = schedule.ratios(timesteps)
    ratios = np.append(ratios, final)
    with np.errstate(divide="ignore"):
        return _Grid(timesteps, *levels(ratios), -np.log(ratios))


def dpmpp_2m(schedule: NoiseSchedule, num_steps: int, start: int, *, karras: bool = False) -> list[PlanRow]:
    """DPM-Solver++(2M): Lu et al. 2022, algorithm 2; `DPMSolverMultistepScheduler` of diffusers.

    The last row returns the denoised latents, or steps to `final_ratio`: of first order where there are few steps, as
    diffusers' `lower_order_final` has it.
    """
    return _dpmpp_rows(schedule, num_steps, start, karras, order=2)


def dpmpp_3m(schedule: NoiseSchedule, num_steps: int, start: int, *, karras: bool = False) -> list[PlanRow]:
    """DPM-Solver++(3M): as `dpmpp_2m`, of third order; `DPMSolverMultistepScheduler` with `solver_order` 3."""
    return _dpmpp_rows(schedule, num_steps, start, karras, order=3)


def dpmpp_2m_sde(schedule: NoiseSchedule, num_steps: int, start: int, *, karras: bool = False) -> list[PlanRow]:
    """SDE-DPM-Solver++(2M): Lu et al. 2022 (DPM-Solver++), section 5, which draws noise at every step.

    Source: `sample_dpmpp_2m_sde` of k-diffusion, with its eta at 1 and its solver "midpoint"; `DPMSolverMultistepScheduler`
    of diffusers with `algorithm_type` "sde-dpmsolver++".
    """
    return _dpmpp_rows(schedule, num_steps, start, karras, order=2, is_sde=True)


def _dpmpp_rows(schedule: NoiseSchedule, num_steps: int, start: int, karras: bool, order: int, is_sde: bool = False):
    """Returns the rows of DPM-Solver++ of the highest `order`. The SDE's are those of steps twice as long, and fresh noise."""
    grid, rows = _grid(schedule, num_steps, karras, schedule.final_ratio), []
    for i in range(start, num_steps):
        h = grid.log_snr[i + 1] - grid.log_snr[i]
        decay = 2 * h if is_sde else h
        mix = grid.alpha[i + 1] * _dpmpp_weights(grid, i, decay, grid.order(i, start, order))
        keep = grid.sigma[i + 1] / grid.sigma[i] * (math.exp(-h) if is_sde else 1.0)
        noise = grid.sigma[i + 1] * math.sqrt(-math.expm1(-decay)) if is_sde else 0.0
        rows.append(grid.row(schedule, i, keep, tuple(mix), noise))
    return rows


def _dpmpp_weights(grid: _Grid, i: int, decay: float, order: int) -> np.ndarray:
    """Returns the weights [3] of the denoised latents, newest first, in step `i`, by whose end exp(-decay) of them is left.

    Of order 3 they have the slope and the curvature of the parabola through the three.
    """
    newest, gain = np.array([1.0, 0.0, 0.0]), -math.expm1(-decay)
    if order == 1:
        return gain * newest
    h, last, *older = np.diff(grid.log_snr[i + 1 - order : i + 2])[::-1]  # lengths of this step and of those before
    slope = h / last * np.array([1.0, -1.0, 0.0])
    if order == 2:
        return gain * (newest + slope / 2)
    before = older[0]
    change = slope - h / before * np.array([0.0, 1.0, -1.0])
    along = 1 - gain / decay
    beyond = along / decay - 0.5
    return gain * newest + along * (slope + last / (last + before) * change) - beyond * h / (last + before) * change


def dpmpp_2s(schedule: NoiseSchedule, num_steps: int, start: int, *, karras: bool = False) -> list[PlanRow]:
    """DPM-Solver++(2S): Lu et al. 2022, algorithm 1; `DPMSolverSinglestepScheduler` of diffusers with `solver_order` 2.

    Steps go in pairs: the second one returns to where the first began, and takes both at once with its own slope. The last
    step stands alone, and so do the last two of an even number.
    """
    grid, rows = _grid(schedule, num_steps, karras, schedule.final_ratio), []
    for i in range(start, num_steps):
        keep = grid.sigma[i + 1] / grid.sigma[i]
        mix: tuple[float, ...] = (-grid.alpha[i + 1] * math.expm1(grid.log_snr[i] - grid.log_snr[i + 1]),)
        if i % 2 == 1 and start < i < num_steps - 1:
            first, second = np.diff(grid.log_snr[i - 1 : i + 2])
            gain = -grid.alpha[i + 1] * math.expm1(-first - second)
            newest = gain * (first + second) / (2 * first)
            # The step before is taken back.
            mix = (newest, gain - newest + keep * grid.alpha[i] * math.expm1(-first))
        rows.append(grid.row(schedule, i, keep, mix))
    return rows


def unipc(schedule: NoiseSchedule, num_steps: int, start: int, *, karras: bool = False) -> list[PlanRow]:
    """UniPC of order 2 with B(h) = e^h - 1: Zhao et al. 2023, algorithms 1 and 2; `UniPCMultistepScheduler` of diffusers.

    Each model call first corrects the step that led to it, then predicts the next one. The latents before that step are
    no longer there, but the prediction went from them, so that the correction is the difference of the two formulas.
    """
    grid, rows = _grid(schedule, num_steps, karras, schedule.final_ratio), []
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


def deis(schedule: NoiseSchedule, num_steps: int, start: int, *, karras: bool = False) -> list[PlanRow]:
    """DEIS of order 2: Zhang and Chen 2023, "rho AB" in the logarithm of sigma / alpha; `DEISMultistepScheduler` of diffusers.

    Integrates the line through the two newest predicted noises. The last step ends at the level of timestep 0.
    """
    grid, rows = _grid(schedule, num_steps, karras, float(schedule.ratios(0))), []
    ratios = grid.sigma / grid.alpha
    for i in range(start, num_steps):
        h, whole, older = grid.log_snr[i + 1] - grid.log_snr[i], ratios[i + 1] - ratios[i], 0.0
        if grid.order(i, start, 2) == 2:
            older = (ratios[i] - (1 + h) * ratios[i + 1]) / (grid.log_snr[i] - grid.log_snr[i - 1])
        mix = (grid.alpha[i + 1] * (whole - older), grid.alpha[i + 1] * older)
        rows.append(grid.row(schedule, i, grid.alpha[i + 1] / grid.alpha[i], mix, of=as_noise))
    return rows
