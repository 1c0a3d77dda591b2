"""Noise levels of training, and where a sampler puts its steps on them.

Plain numpy in float64: a plan is rounded to float32 once, when it is packed.
"""

import numpy as np

from tfsd.errors import shown
from tfsd.specs import FlowSpec, VPSpec

KARRAS_RHO = 7.0  # Karras et al. 2022, table 1
LEAST_ALPHA = 2.0**-24  # of alphas_cumprod, for finite ratios at a last timestep of pure noise; diffusers has the same


class NoiseSchedule:
    """The noise levels that a `VPSpec` describes.

    Latents at timestep t are `alpha * image + sigma * noise` with alpha^2 + sigma^2 = 1. The *ratio*
    sigma / alpha is what Karras et al. call sigma.

    Source: DDPM (Ho et al. 2020). `alphas_cumprod` in float64 rounds to exactly the table that KerasCV
    ships; diffusers multiplies up in float32 and differs from it by up to 1e-6 relative.

    `final_ratio` is where Euler and DPM-Solver++ end.
    """

    def __init__(self, spec: VPSpec):
        self.spec = spec
        if spec.betas == "linear":
            betas = np.linspace(spec.beta_start, spec.beta_end, spec.train_steps)
        else:
            betas = np.linspace(spec.beta_start**0.5, spec.beta_end**0.5, spec.train_steps) ** 2
        self.alphas_cumprod = np.cumprod(1.0 - betas)
        if spec.zero_snr:
            self.alphas_cumprod = _to_zero_snr(self.alphas_cumprod)
        finite = np.append(self.alphas_cumprod[:-1], max(self.alphas_cumprod[-1], LEAST_ALPHA if spec.zero_snr else 0.0))
        self._ratios = np.sqrt((1.0 - finite) / finite)
        self.final_ratio = 0.0 if spec.final_sigma == "zero" else float(self._ratios[0])

    def marginals(self, timesteps) -> tuple[np.ndarray, np.ndarray]:
        """Returns alpha and sigma at `timesteps`, which may be fractional.

        Between two timesteps the ratio sigma / alpha is interpolated linearly, as diffusers does. A negative
        timestep is the level after the last step: noise-free if `final_alpha_one`, else that of timestep 0.
        """
        alpha, sigma = levels(self.ratios(timesteps))
        if self.spec.zero_snr:
            noise = np.asarray(timesteps) >= self.spec.train_steps - 1
            alpha, sigma = np.where(noise, 0.0, alpha), np.where(noise, 1.0, sigma)
        if self.spec.final_alpha_one:
            after = np.asarray(timesteps) < 0
            alpha, sigma = np.where(after, 1.0, alpha), np.where(after, 0.0, sigma)
        return alpha, sigma

    def ratios(self, timesteps) -> np.ndarray:
        """Returns sigma / alpha at `timesteps`; outside the trained range, that of its nearest end. It is finite."""
        return np.interp(timesteps, np.arange(self.spec.train_steps), self._ratios)

    def timesteps_of(self, ratios) -> np.ndarray:
        """Returns the fractional timesteps at which sigma / alpha is `ratios`, linear in its logarithm."""
        return np.interp(np.log(ratios), np.log(self._ratios), np.arange(self.spec.train_steps))

    def spaced_timesteps(self, num_steps: int, *, whole: bool = True, end_early: bool = False) -> np.ndarray:
        """Returns `num_steps` timesteps, noisiest first, placed as the spec's `spacing` says.

        `whole=False` leaves those of "linspace" fractional, as Euler and LMS use them. `end_early` spaces one
        step more and drops the cleanest ("leading" and "linspace"), as diffusers' DPM-Solver does.

        A single "linspace" or "kerascv" step starts at the noisiest timestep. (KerasCV and diffusers put it at
        timestep 0, which hands the initial noise back almost unchanged.)

        Raises: `ValueError` if so many steps would repeat a timestep or leave the trained range.
        Source: table 2 of Lin et al. 2023 and diffusers' `set_timesteps`; "kerascv" is the grid of KerasCV 0.9.
        """
        spec, last = self.spec, self.spec.train_steps - 1
        points = num_steps + end_early
        if spec.spacing == "trailing":
            # For some numbers of steps, 61 for instance, rounding adds a point at 0, where diffusers calls the model at -1.
            grid = np.arange(spec.train_steps, 0, -spec.train_steps / num_steps)[:num_steps]
            return np.round(grid) - 1
        if spec.spacing == "leading":
            grid = np.arange(points) * (spec.train_steps // points) + spec.steps_offset
        elif spec.spacing == "kerascv":
            grid = np.round(np.arange(num_steps) * (last / max(num_steps - 1, 1)))
            end_early = False
        else:
            grid = np.linspace(0, last, points)
            grid = np.round(grid) if whole else grid
        if len(grid) == 1 and spec.spacing != "leading":
            grid = np.array([last])
        if grid[-1] > last or np.any(np.diff(grid) <= 0):
            raise ValueError(
                f"num_steps must be smaller: {num_steps} steps with {spec.spacing!r} spacing and steps_offset "
                f"{spec.steps_offset} do not fit into the {spec.train_steps} timesteps of training."
            )
        return grid[::-1][:num_steps].astype(np.float64)

    def predecessors(self, timesteps: np.ndarray, num_steps: int, *, on_grid: bool = False) -> np.ndarray:
        """Returns the timestep that each step of `timesteps` arrives at; negative after the last one.

        `on_grid` (diffusers' DDPM) and the spacing "kerascv" arrive at the next point of the grid. The others step down
        by train_steps // num_steps whatever the grid, as diffusers' DDIM and PNDM do.
        """
        if on_grid or self.spec.spacing == "kerascv":
            return np.append(timesteps[1:], -1.0)
        return timesteps - self.spec.train_steps // num_steps


class FlowSchedule:
    """The noise levels that a `FlowSpec` describes.

    Latents at level sigma in [0, 1] are `(1 - sigma) * image + sigma * noise`; the model is called at `sigma * train_steps`.
    Source: Esser et al. 2024; `FlowMatchEulerDiscreteScheduler` of diffusers.
    """

    def __init__(self, spec: FlowSpec):
        self.spec = spec

    def marginals(self, timesteps) -> tuple[np.ndarray, np.ndarray]:
        """Returns alpha and sigma at `timesteps`, which may be fractional."""
        sigma = np.asarray(timesteps, np.float64) / self.spec.train_steps
        return 1.0 - sigma, sigma

    def sigmas(self, num_steps: int) -> np.ndarray:
        """Returns the levels of `num_steps` steps, noisiest first, and the 0 after them.

        The spacing is even between the shifted levels of training, and shifted a second time, as in diffusers.
        """
        lowest = self._shifted(1.0 / self.spec.train_steps)
        return np.append(self._shifted(np.linspace(1.0, lowest, num_steps)), 0.0)

    def _shifted(self, sigma):
        shift = self.spec.sigma_shift
        return shift * sigma / (1.0 + (shift - 1.0) * sigma)


def schedule_of(spec: VPSpec | FlowSpec) -> NoiseSchedule | FlowSchedule:
    """Returns the noise levels that a spec describes."""
    return {VPSpec: NoiseSchedule, FlowSpec: FlowSchedule}[type(spec)](spec)


def _to_zero_snr(alphas_cumprod: np.ndarray) -> np.ndarray:
    """Returns the table that is the same at timestep 0 and is 0 at the last one. Source: Lin et al. 2023, algorithm 1."""
    alphas = np.sqrt(alphas_cumprod)
    return ((alphas - alphas[-1]) * alphas[0] / (alphas[0] - alphas[-1])) ** 2


def levels(ratios) -> tuple[np.ndarray, np.ndarray]:
    """Returns alpha and sigma, of unit variance together, for `ratios` = sigma / alpha."""
    alpha = 1.0 / np.sqrt(1.0 + np.square(ratios))
    return alpha, alpha * ratios


def karras_ratios(largest: float, smallest: float, num_steps: int) -> np.ndarray:
    """Returns `num_steps` values of sigma / alpha from `largest` to `smallest`.

    Source: Karras et al. 2022, equation 5, without its final zero.
    """
    ramp = np.linspace(0.0, 1.0, num_steps)
    high, low = largest ** (1 / KARRAS_RHO), smallest ** (1 / KARRAS_RHO)
    return (high + ramp * (low - high)) ** KARRAS_RHO


def as_image(prediction: str, alpha: float, sigma: float) -> tuple[float, float]:
    """Returns (p, q) such that the denoised latents are `p * latents + q * output`.

    Raises: `ValueError` for a prediction other than "epsilon", "v", "sample" and "flow".
    Source: Salimans and Ho 2022, appendix D, for "v"; Esser et al. 2024 for "flow", the velocity noise - image, where
    alpha = 1 - sigma.
    """
    if prediction == "epsilon":
        return 1 / alpha, -sigma / alpha
    if prediction == "v":
        return alpha, -sigma
    if prediction == "sample":
        return 0.0, 1.0
    if prediction == "flow":
        return 1.0, -sigma
    raise _unknown(prediction)


def as_noise(prediction: str, alpha: float, sigma: float) -> tuple[float, float]:
    """Returns (p, q) such that the predicted noise is `p * latents + q * output`; raises as `as_image`."""
    if prediction == "epsilon":
        return 0.0, 1.0
    if prediction == "v":
        return sigma, alpha
    if prediction == "sample":
        return 1 / sigma, -alpha / sigma
    if prediction == "flow":
        return 1.0, alpha
    raise _unknown(prediction)


def _unknown(prediction: str) -> ValueError:
    return ValueError(f"prediction must be 'epsilon', 'v', 'sample' or 'flow'; got {shown(prediction)}.")
