"""Samplers as plans: one row of twelve numbers per model call, worked out before the loop starts.

Every sampler here is linear in the latents and the model's outputs, so it is fully described by numbers that
do not depend on either. `tfsd.samplers.step.step` applies a row. A plan has one shape whatever the sampler and
the number of steps, so it can be the input of a compiled loop.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tfsd.arguments.checks import named_choice, real, whole
from tfsd.errors import shown
from tfsd.samplers.distilled import lcm, tcd
from tfsd.samplers.flow import flow_euler
from tfsd.samplers.names import ALIASES
from tfsd.samplers.ratios import euler, euler_ancestral, heun, kdpm2, kdpm2_ancestral, lms
from tfsd.samplers.rows import ROW_SIZE, PlanRow
from tfsd.samplers.schedule import NoiseSchedule, as_image, as_noise, schedule_of
from tfsd.samplers.solvers import deis, dpmpp_2m, dpmpp_2m_sde, dpmpp_2s, dpmpp_3m, unipc
from tfsd.specs import FlowSpec, ScheduleSpec, VPSpec
from tfsd.specs.limits import MAX_STEPS

MAX_ROWS = 2 * MAX_STEPS  # some samplers make 2 n - 1 calls; the level after the last step takes one more row
LENGTHS = (128, MAX_ROWS)  # that plans have: each is compiled for itself, so that 5 and 50 steps should share one


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """What the sampling loop needs: `rows` float32 [R, ROW_SIZE], of which the first `count` are steps; R is in `LENGTHS`.

    The rows after the last step rest at its level, alpha 1 and sigma 0: latents stay as they are, so that images with
    fewer steps can wait for others of their batch. An image from noise starts at `init_scale * noise`, one from an image
    at `alpha * image + sigma * noise` of row 0.
    """

    rows: np.ndarray
    count: int
    init_scale: float

    @property
    def timesteps(self) -> np.ndarray:
        """The timestep of each model call, float32 [count]."""
        return self.rows[: self.count, 0]


def ddim(schedule: NoiseSchedule, num_steps: int, start: int, *, eta: float = 0.0, on_grid: bool = False) -> list[PlanRow]:
    """DDIM: Song et al. 2021, equations 12 and 16; `eta` 0 draws no noise, 1 draws as much as DDPM."""
    timesteps = schedule.spaced_timesteps(num_steps)
    before = schedule.marginals(timesteps)
    after = schedule.marginals(schedule.predecessors(timesteps, num_steps, on_grid=on_grid))
    rows = []
    for i in range(start, num_steps):
        (alpha, sigma), (alpha_next, sigma_next) = (before[0][i], before[1][i]), (after[0][i], after[1][i])
        noise = eta * sigma_next / sigma * math.sqrt(max(0.0, 1 - (alpha / alpha_next) ** 2))
        direction = math.sqrt(max(0.0, sigma_next**2 - noise**2))
        # With the predicted noise (latents - alpha * image) / sigma, only latents and image are left.
        keep = direction / sigma
        mix = (alpha_next - keep * alpha,)
        rows.append(PlanRow(timesteps[i], alpha, sigma, *as_image(schedule.spec.prediction, alpha, sigma), keep, mix, noise))
    return rows


def ddpm(schedule: NoiseSchedule, num_steps: int, start: int) -> list[PlanRow]:
    """DDPM: Ho et al. 2020, equations 6 and 7 (the smaller variance), which is DDIM with eta 1.

    Its last step is always noise-free: what `final_alpha_one` says does not matter here, as in diffusers.
    """
    spec = dataclasses.replace(schedule.spec, final_alpha_one=True)
    return ddim(NoiseSchedule(spec), num_steps, start, eta=1.0, on_grid=True)


def pndm(schedule: NoiseSchedule, num_steps: int, start: int) -> list[PlanRow]:
    """PLMS: the pseudo linear multistep method of Liu et al. 2022, without its Runge-Kutta steps.

    Makes one call more than `num_steps`: the first step is taken twice, the second time with the mean of the
    outputs at both its ends. The history holds raw outputs, which are turned into noise after mixing: this is
    what diffusers does, and it matters for v-prediction only. With `start` the method begins anew there;
    diffusers instead slices the repeated timestep off, which shifts all later steps by one.
    """
    timesteps = schedule.spaced_timesteps(num_steps)[start:]
    arrivals = schedule.predecessors(timesteps, num_steps)
    rows = [_plms_row(schedule, timesteps[0], timesteps[0], arrivals[0], (1.0,))]
    if len(timesteps) > 1:
        # Where a step starts when its end is given; a rounded grid may hold another point near by.
        departure = timesteps[0] if schedule.spec.spacing == "kerascv" else timesteps[1] + schedule.spec.train_steps // num_steps
        again = _plms_row(schedule, timesteps[1], departure, timesteps[1], (0.5, 0.5))
        rows.append(_undo(rows[0], again))
    weights = ((3, 0, -1), (23, -16, 0, 5), (55, -59, 37, 0, -9), (55, -59, 37, -9))  # slot of the 2nd call: 0
    divisors = (2, 12, 24, 24)
    for i in range(1, len(timesteps)):
        order = min(i, 4) - 1
        mix = tuple(weight / divisors[order] for weight in weights[order])
        rows.append(_plms_row(schedule, timesteps[i], timesteps[i], arrivals[i], mix))
    return rows


def _plms_row(schedule: NoiseSchedule, timestep: float, departure: float, arrival: float, weights) -> PlanRow:
    """Returns the row that calls the model at `timestep` and moves from `departure` to `arrival`."""
    (alpha, alpha_next), (sigma, sigma_next) = schedule.marginals(np.array([departure, arrival]))
    p, q = as_noise(schedule.spec.prediction, alpha, sigma)
    keep = alpha_next / alpha
    gain = sigma_next - keep * sigma  # of the noise; the transfer of the paper, simplified
    level_alpha, level_sigma = map(float, schedule.marginals(timestep))
    mix = tuple(gain * q * weight for weight in weights)
    return PlanRow(timestep, level_alpha, level_sigma, from_latents=0.0, from_output=1.0, keep=keep + gain * p, mix=mix)


def _undo(first: PlanRow, again: PlanRow) -> PlanRow:
    """Returns `again`, meant for the latents before `first`, restated for those after it."""
    keep = again.keep / first.keep
    return again._replace(keep=keep, mix=(again.mix[0], again.mix[1] - keep * first.mix[0]))


class Sampler(NamedTuple):
    """A sampler: its functions, (schedule, num_steps, start, **options) -> rows, by the kinds of schedules that it serves.

    The options and limits in the other fields are those of variance-preserving schedules.
    """

    rows: dict[type, Callable[..., list[PlanRow]]]
    karras: bool = False  # the noise levels of Karras et al. instead of the schedule's own
    has_eta: bool = False
    starts_at_sigma: bool = False  # see `_init_scale`
    predictions: tuple[str, ...] = ("epsilon", "v", "sample")  # those of models that it can sample from
    has_zero_snr: bool = True  # serves models of `zero_snr`; those that do not have no such option in diffusers either


def _recorded(rows: Callable[..., list[PlanRow]], **fields) -> Sampler:
    """Returns a sampler for what diffusers' runs were recorded with: epsilon and v, of schedules that end in some signal."""
    return Sampler({VPSpec: rows}, predictions=("epsilon", "v"), has_zero_snr=False, **fields)


SAMPLERS: dict[str, Sampler] = {
    "ddim": Sampler({VPSpec: ddim}, has_eta=True),
    "ddpm": Sampler({VPSpec: ddpm}),
    "pndm": Sampler({VPSpec: pndm}, predictions=("epsilon", "v"), has_zero_snr=False),  # the two that PNDM has in diffusers
    "lms": Sampler({VPSpec: lms}, starts_at_sigma=True, has_zero_snr=False),
    "lms_karras": Sampler({VPSpec: lms}, karras=True, starts_at_sigma=True, has_zero_snr=False),
    "euler": Sampler({VPSpec: euler, FlowSpec: flow_euler}, starts_at_sigma=True),
    "euler_karras": Sampler({VPSpec: euler}, karras=True, starts_at_sigma=True),
    "euler_ancestral": Sampler({VPSpec: euler_ancestral}, starts_at_sigma=True),
    "dpmpp_2m": Sampler({VPSpec: dpmpp_2m}),
    "dpmpp_2m_karras": Sampler({VPSpec: dpmpp_2m}, karras=True),
    "heun": _recorded(heun, starts_at_sigma=True),
    "heun_karras": _recorded(heun, karras=True, starts_at_sigma=True),
    "unipc": _recorded(unipc),
    "unipc_karras": _recorded(unipc, karras=True),
    "dpmpp_2m_sde": _recorded(dpmpp_2m_sde),
    "dpmpp_2m_sde_karras": _recorded(dpmpp_2m_sde, karras=True),
    "kdpm2": _recorded(kdpm2, starts_at_sigma=True),
    "kdpm2_karras": _recorded(kdpm2, karras=True, starts_at_sigma=True),
    "kdpm2_ancestral": _recorded(kdpm2_ancestral, starts_at_sigma=True),
    "kdpm2_ancestral_karras": _recorded(kdpm2_ancestral, karras=True, starts_at_sigma=True),
    "dpmpp_3m": _recorded(dpmpp_3m),
    "dpmpp_3m_karras": _recorded(dpmpp_3m, karras=True),
    "dpmpp_2s": _recorded(dpmpp_2s),
    "dpmpp_2s_karras": _recorded(dpmpp_2s, karras=True),
    "deis": _recorded(deis),
    "deis_karras": _recorded(deis, karras=True),
    "lcm": _recorded(lcm),
    "tcd": _recorded(tcd, has_eta=True),
}


def sampler_names() -> dict[str, str]:
    """Returns every name in lower case, keys and aliases, with the key of `SAMPLERS` that it stands for."""
    return {name: name for name in SAMPLERS} | {alias.lower(): key for alias, key in ALIASES.items()}


def find_sampler(name: str) -> str:
    """Returns the key of `SAMPLERS` that `name`, a key or an alias in upper or lower case, stands for.

    Raises: `ValueError` listing the samplers, and the closest name if there is one.
    """
    return named_choice("sampler", name, tuple(SAMPLERS), ALIASES)


def fitting_samplers(spec: ScheduleSpec) -> list[str]:
    """Returns the keys of the samplers that serve models of this schedule and prediction."""
    return [name for name, sampler in SAMPLERS.items() if type(spec) in sampler.rows and _serves(sampler, spec)]


def _serves(sampler: Sampler, spec: ScheduleSpec) -> bool:
    """Returns whether a sampler of this kind of schedule serves the rest of the spec, too."""
    if not isinstance(spec, VPSpec):
        return True
    return spec.prediction in sampler.predictions and (sampler.has_zero_snr or not spec.zero_snr)


def check_fits(sampler: str, spec: ScheduleSpec):
    """Raises `ValueError` listing the samplers that fit, unless `sampler`, a key of `SAMPLERS`, serves such models."""
    fitting = fitting_samplers(spec)
    if sampler in fitting:
        return
    if isinstance(spec, FlowSpec):
        kind = "of flow matching"
    else:
        kind = f"whose prediction is {spec.prediction!r}" + (" and whose noise has zero SNR at its end" if spec.zero_snr else "")
    raise ValueError(f"sampler must be one of {', '.join(fitting)} for models {kind}; got {sampler!r}.")


def build_plan(spec: ScheduleSpec, sampler: str, num_steps: int, start: int = 0, eta: float = 0.0) -> Plan:
    """Returns the plan of `sampler` for `num_steps` steps, of which the first `start` are left out.

    A plan with a `start` begins anew there: multistep methods build up their history from that step.

    Raises: `ValueError` or `TypeError` for a sampler that is unknown or does not serve such models, and for steps, start
    or eta out of range.
    """
    key = find_sampler(sampler)
    check_fits(key, spec)
    num_steps = whole("num_steps", num_steps, 1, min(spec.train_steps, MAX_STEPS))
    start = whole("start", start, 0, num_steps - 1)
    chosen, schedule = SAMPLERS[key], schedule_of(spec)
    rows = chosen.rows[type(spec)](schedule, num_steps, start, **_options(key, eta))
    packed = np.zeros((next(length for length in LENGTHS if length > len(rows)), ROW_SIZE), np.float32)
    packed[: len(rows)] = [row.pack() for row in rows]
    packed[len(rows) :] = PlanRow(0.0, alpha=1.0, sigma=0.0, from_latents=0.0, from_output=0.0, keep=1.0, mix=()).pack()
    return Plan(packed, len(rows), _init_scale(spec, chosen, rows))


def _options(key: str, eta: float) -> dict[str, float | bool]:
    """Returns the options that the functions of a sampler take."""
    chosen = SAMPLERS[key]
    options: dict[str, float | bool] = {"karras": True} if chosen.karras else {}
    if chosen.has_eta:
        options["eta"] = real("eta", eta, 0, 1, "0 means no fresh noise.")
    elif eta != 0:
        others = ", ".join(name for name, other in SAMPLERS.items() if other.has_eta)
        raise ValueError(f"eta must be 0 for the sampler {key!r}; got {shown(eta)}. Use {others}, or leave eta out.")
    return options


def _init_scale(spec: ScheduleSpec, sampler: Sampler, rows: list[PlanRow]) -> float:
    """Returns what the first noise is multiplied by: 1, or sigma where diffusers adds it to an image of zeros."""
    adds_to_zeros = sampler.starts_at_sigma and isinstance(spec, VPSpec) and spec.spacing in ("linspace", "trailing")
    return float(rows[0].sigma) if adds_to_zeros else 1.0
