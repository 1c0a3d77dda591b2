"""The spec of the noise schedule."""

from dataclasses import dataclass

from tfsd.specs.checks import SpecError, one_of, within_limits


@dataclass(frozen=True, kw_only=True)
class ScheduleSpec:
    """The noise levels of training and where samplers put their steps on them."""

    betas: str = "scaled_linear"  # or "linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    train_steps: int = 1000
    prediction: str = "epsilon"  # or "v", "sample"
    spacing: str = "leading"  # or "linspace", "trailing", "kerascv" (linspace from 0, rounded, its own predecessor)
    steps_offset: int = 1
    final_alpha_one: bool = False  # the step after the last one is noise-free (KerasCV) or at timestep 0 (CompVis)
    final_sigma: str = "zero"  # what Euler and DPM-Solver++ end at: no noise, or "sigma_min", the noise of timestep 0
    zero_snr: bool = False  # the betas are rescaled, so that the last timestep is pure noise (Lin et al. 2023, algorithm 1)

    def __post_init__(self):
        within_limits(self)
        one_of(
            self,
            betas=("scaled_linear", "linear"),
            prediction=("epsilon", "v", "sample"),
            spacing=("leading", "linspace", "trailing", "kerascv"),
            final_sigma=("zero", "sigma_min"),
        )
        if self.zero_snr and self.prediction == "epsilon":
            raise SpecError("ScheduleSpec.zero_snr needs the prediction v or sample: from noise alone, epsilon tells nothing.")
        if self.beta_start > self.beta_end:
            raise SpecError(f"ScheduleSpec.beta_start ({self.beta_start}) must not exceed its beta_end ({self.beta_end}).")
        if self.steps_offset >= self.train_steps:
            raise SpecError(
                f"ScheduleSpec.steps_offset ({self.steps_offset}) must be below its train_steps ({self.train_steps})."
            )
