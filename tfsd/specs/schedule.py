"""The specs of noise schedules, one class per kind."""

from dataclasses import dataclass
from typing import ClassVar

from tfsd.specs.checks import Spec, SpecError, one_of, within_limits


@dataclass(frozen=True, kw_only=True)
class VPSpec:
    """A variance-preserving schedule, as in DDPM: its noise levels of training, and where samplers put their steps on them.

    Latents are `alpha * image + sigma * noise` with alpha^2 + sigma^2 = 1.
    """

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

    def __post_init__(self) -> None:
        within_limits(self)
        one_of(
            self,
            betas=("scaled_linear", "linear"),
            prediction=("epsilon", "v", "sample"),
            spacing=("leading", "linspace", "trailing", "kerascv"),
            final_sigma=("zero", "sigma_min"),
        )
        if self.zero_snr and self.prediction == "epsilon":
            raise SpecError("VPSpec.zero_snr needs the prediction v or sample: from noise alone, epsilon tells nothing.")
        if self.beta_start > self.beta_end:
            raise SpecError(f"VPSpec.beta_start ({self.beta_start}) must not exceed its beta_end ({self.beta_end}).")
        if self.steps_offset >= self.train_steps:
            raise SpecError(f"VPSpec.steps_offset ({self.steps_offset}) must be below its train_steps ({self.train_steps}).")


@dataclass(frozen=True, kw_only=True)
class FlowSpec:
    """A schedule of flow matching, as in Stable Diffusion 3: latents are `(1 - sigma) * image + sigma * noise`.

    The model predicts the velocity noise - image at timestep `sigma * train_steps`.
    """

    train_steps: int = 1000
    sigma_shift: float = 3.0  # moves steps to noisier levels: sigma -> s * sigma / (1 + (s - 1) * sigma); 1 moves none

    prediction: ClassVar[str] = "flow"

    def __post_init__(self) -> None:
        within_limits(self)


ScheduleSpec = VPSpec | FlowSpec
SCHEDULES: dict[str, type[Spec]] = {"variance_preserving": VPSpec, "flow": FlowSpec}  # "kind" in spec.json -> class
