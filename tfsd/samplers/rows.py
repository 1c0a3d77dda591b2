"""One row of a sampling plan.

In each row `value = from_latents * latents + from_output * output` enters the history (newest first), and the
latents become `keep * latents + sum(mix * history) + noise * fresh_noise`. Latents are always
`alpha * image + sigma * noise`: with alpha^2 + sigma^2 = 1 in variance-preserving schedules, where formulas of papers that
scale the noise up instead (Karras et al.) are divided by sqrt(1 + ratio^2), which is alpha; with alpha + sigma = 1 in flow
matching.
"""

from typing import NamedTuple

import numpy as np

HISTORY = 5  # PLMS mixes four values, and for a while skips the one of its discarded second call
ROW_SIZE = 7 + HISTORY


class PlanRow(NamedTuple):
    """One model call and the move of the latents that follows it. The module says what the numbers do."""

    timestep: float  # given to the model; may be fractional
    alpha: float  # the latents' level at this call
    sigma: float
    from_latents: float
    from_output: float
    keep: float
    mix: tuple[float, ...]  # newest first; shorter than HISTORY where the rest is zero
    noise: float = 0.0

    def pack(self) -> np.ndarray:
        """Returns the row as float32 [ROW_SIZE]; `tfsd.samplers.step.unpack` reads it."""
        mix = tuple(self.mix) + (0.0,) * (HISTORY - len(self.mix))
        return np.array((*self[:6], *mix, self.noise), np.float32)
