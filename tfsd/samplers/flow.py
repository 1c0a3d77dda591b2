"""Samplers of models that were trained by flow matching."""

from tfsd.samplers.rows import PlanRow
from tfsd.samplers.schedule import FlowSchedule


def flow_euler(schedule: FlowSchedule, num_steps: int, start: int) -> list[PlanRow]:
    """Euler's method along the velocity: latents + (next sigma - sigma) * output.

    Source: Esser et al. 2024; `FlowMatchEulerDiscreteScheduler` of diffusers.
    """
    sigmas = schedule.sigmas(num_steps)[start:]
    timesteps = sigmas * schedule.spec.train_steps
    return [
        PlanRow(timestep, 1.0 - sigma, sigma, from_latents=0.0, from_output=1.0, keep=1.0, mix=(target - sigma,))
        for timestep, sigma, target in zip(timesteps, sigmas, sigmas[1:])
    ]
