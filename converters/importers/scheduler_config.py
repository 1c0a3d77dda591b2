"""Reads the schedule and the sampler from the scheduler configuration of a diffusers folder.

Source: the constructors of diffusers 0.42.1 and what `StableDiffusionPipeline` repairs of outdated configurations.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tfsd.converters.importers.config_file import UNSUPPORTED, Config
from tfsd.errors import CheckpointError
from tfsd.samplers.distilled import DISTILLED_STEPS, TIMESTEP_SCALING
from tfsd.samplers.plans import SAMPLERS, fitting_samplers
from tfsd.samplers.schedule import NoiseSchedule
from tfsd.specs import VPSpec

PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v", "sample": "sample"}
OVERRIDE = "To use another sampler than the configuration's, name it with --sampler (in Python: sampler=)."

_OTHER_SIGMAS = {"use_exponential_sigmas": (False, None), "use_beta_sigmas": (False, None)}
_WIDE = ("linear", 0.00085, 0.012)
_THRESHOLD = {"thresholding": (False, None)}
_OF_THRESHOLD = ("dynamic_thresholding_ratio", "sample_max_value")  # read with `thresholding` alone
_DISTILLED: dict[str, Any] = {
    "spacing": "leading",
    "betas": ("scaled_linear", 0.00085, 0.012),
    "set_alpha_to_one": True,
    "clips": False,
    "fixed": {"original_inference_steps": (DISTILLED_STEPS,), "timestep_scaling": (TIMESTEP_SCALING,)} | _THRESHOLD,
    "free": ("clip_sample_range", *_OF_THRESHOLD),
}


@dataclass(frozen=True)
class SchedulerClass:
    """A scheduler class of diffusers as one of our samplers, without the fields that all classes have."""

    sampler: str
    spacing: str = "linspace"  # if the file does not say
    betas: tuple[str, float, float] = ("linear", 0.0001, 0.02)  # their schedule, the first and the last, likewise
    karras: bool = False  # has `use_karras_sigmas`, for which the sampler's name ends in "_karras"
    by: tuple[str, ...] = ()  # fields of `fixed` by whose values there are other samplers
    variants: Mapping[tuple, str] = field(default_factory=dict)  # the samplers for these values
    set_alpha_to_one: bool | None = None  # if the file does not say; None if the class has no such field
    clips: bool | None = None  # `clip_sample`, likewise
    fixed: Mapping[str, tuple] = field(default_factory=dict)  # values that our sampler supports; the first is the default
    required: tuple[str, ...] = ()  # fields of `fixed` with another default
    free: tuple[str, ...] = ()  # without effect on images, given the values of `fixed`

    def samplers(self) -> set[str]:
        """Returns the keys of all samplers that a file of this class can ask for."""
        found = {self.sampler, *self.variants.values()}
        return found | {f"{name}_karras" for name in found if self.karras}


CLASSES = {
    "DDIMScheduler": SchedulerClass(
        "ddim",
        "leading",
        set_alpha_to_one=True,
        clips=True,
        fixed=_THRESHOLD,
        free=("clip_sample_range", *_OF_THRESHOLD),
    ),
    "DDPMScheduler": SchedulerClass(
        "ddpm",
        "leading",
        clips=True,
        # The logarithm of the smaller variance is turned into that variance again.
        fixed={"variance_type": ("fixed_small", "fixed_small_log")} | _THRESHOLD,
        free=("clip_sample_range", *_OF_THRESHOLD),
    ),
    "PNDMScheduler": SchedulerClass(
        "pndm", "leading", set_alpha_to_one=False, fixed={"skip_prk_steps": (True,)}, required=("skip_prk_steps",)
    ),
    "LMSDiscreteScheduler": SchedulerClass("lms", karras=True, fixed=_OTHER_SIGMAS),
    "EulerDiscreteScheduler": SchedulerClass(
        "euler",
        karras=True,
        fixed={"interpolation_type": ("linear",)} | _OTHER_SIGMAS,
    ),
    "EulerAncestralDiscreteScheduler": SchedulerClass("euler_ancestral"),
    "DPMSolverMultistepScheduler": SchedulerClass(
        "dpmpp_2m",
        karras=True,
        by=("algorithm_type", "solver_order"),
        variants={("sde-dpmsolver++", 2): "dpmpp_2m_sde", ("dpmsolver++", 3): "dpmpp_3m", ("deis", 3): "dpmpp_3m"},
        fixed={
            "solver_order": (2, 3),
            "algorithm_type": ("dpmsolver++", "deis", "sde-dpmsolver++"),  # diffusers takes DEIS' type and solvers for its own
            "solver_type": ("midpoint", "logrho", "bh1", "bh2"),
            "use_lu_lambdas": (False, None),
            "use_flow_sigmas": (False, None),
            "use_dynamic_shifting": (False, None),
            "variance_type": (None,),
        }
        | _OTHER_SIGMAS
        | _THRESHOLD,
        # A last step to sigma zero is one of first order whatever the first two say; `_sampler` asks for other ones.
        free=("lower_order_final", "euler_at_final", "flow_shift", "time_shift_type", *_OF_THRESHOLD),
    ),
    "HeunDiscreteScheduler": SchedulerClass(
        "heun", betas=_WIDE, karras=True, clips=False, fixed=_OTHER_SIGMAS, free=("clip_sample_range",)
    ),
    "UniPCMultistepScheduler": SchedulerClass(
        "unipc",
        karras=True,
        fixed={
            "solver_order": (2,),
            "solver_type": ("bh2", "midpoint", "heun", "logrho"),  # diffusers takes the last three for its own
            "predict_x0": (True,),
            "lower_order_final": (True,),
            "solver_p": (None,),
            "use_flow_sigmas": (False, None),
            "use_dynamic_shifting": (False, None),
            "shift_terminal": (None,),
        }
        | _OTHER_SIGMAS
        | _THRESHOLD,
        free=("flow_shift", "time_shift_type", *_OF_THRESHOLD),
    ),
    "KDPM2DiscreteScheduler": SchedulerClass("kdpm2", betas=_WIDE, karras=True, fixed=_OTHER_SIGMAS),
    "KDPM2AncestralDiscreteScheduler": SchedulerClass("kdpm2_ancestral", betas=_WIDE, karras=True, fixed=_OTHER_SIGMAS),
    "DPMSolverSinglestepScheduler": SchedulerClass(
        "dpmpp_2s",
        karras=True,
        fixed={
            "solver_order": (2,),
            "algorithm_type": ("dpmsolver++", "deis"),  # as in DPMSolverMultistepScheduler
            "solver_type": ("midpoint", "logrho", "bh1", "bh2"),
            "final_sigmas_type": ("zero",),
            "timestep_spacing": ("linspace",),  # it has no such field
            "use_flow_sigmas": (False, None),
            "use_dynamic_shifting": (False, None),
            "variance_type": (None,),
        }
        | _OTHER_SIGMAS
        | _THRESHOLD,
        free=("lower_order_final", "flow_shift", "time_shift_type", *_OF_THRESHOLD),  # the first is true with a final zero
    ),
    "DEISMultistepScheduler": SchedulerClass(
        "deis",
        karras=True,
        fixed={
            "solver_order": (2,),
            "algorithm_type": ("deis", "dpmsolver", "dpmsolver++"),  # diffusers takes DPM-Solver's types and solvers for its own
            "solver_type": ("logrho", "midpoint", "heun", "bh1", "bh2"),
            "lower_order_final": (True,),
            "use_flow_sigmas": (False, None),
            "use_dynamic_shifting": (False, None),
        }
        | _OTHER_SIGMAS
        | _THRESHOLD,
        free=("flow_shift", "time_shift_type", *_OF_THRESHOLD),
    ),
    "LCMScheduler": SchedulerClass("lcm", **_DISTILLED),
    "TCDScheduler": SchedulerClass("tcd", **_DISTILLED),
}


def schedule_of(config: Config, kind: str, sampler: str | None) -> tuple[VPSpec, str]:
    """Returns the schedule and the key of the sampler for a configuration of the class `kind`.

    With `sampler`, a key, only what describes the schedule counts; None takes the configuration's own.
    Raises: `CheckpointError` naming the class or field that no schedule and sampler of ours can express.
    """
    known = CLASSES.get(kind)
    _require_sampler(config, kind, known, sampler)
    # Without a spacing, a configuration of another class gets the one of the class that reads it, as in diffusers.
    own = known or next(other for other in CLASSES.values() if sampler in other.samplers())
    schedule = _schedule(config, known, own.spacing)
    if sampler is None:
        sampler = _sampler(config, kind, own, schedule)
    if sampler not in fitting_samplers(schedule):
        if schedule.zero_snr and sampler in fitting_samplers(replace(schedule, zero_snr=False)):
            raise config.unsupported("rescale_betas_zero_snr", f"false for the sampler {sampler}", OVERRIDE)
        raise config.unsupported("prediction_type", f"one that the sampler {sampler} serves", OVERRIDE)
    return schedule, sampler


def _require_sampler(config: Config, kind: str, known: SchedulerClass | None, sampler: str | None):
    if kind.startswith(("FlowMatch", "FlowMap")):
        raise CheckpointError(f"{config.path}: {kind} is for flow matching models. {UNSUPPORTED}")
    if known is None and sampler is None:
        raise CheckpointError(
            f"{config.path}: the scheduler {kind} is not supported. Another sampler gives other images, and wrong ones with a "
            f"distilled model. To use one of {', '.join(SAMPLERS)} all the same, name it with --sampler (in Python: sampler=)."
        )


def _schedule(config: Config, known: SchedulerClass | None, spacing: str) -> VPSpec:
    """Returns the schedule from the fields that all classes have. Unknown classes must state their noise levels."""
    # The first releases had `predict_epsilon`; later ones ignore it, so that false would give a wrong image.
    config.fixed({"trained_betas": (None,), "predict_epsilon": (True,)})
    prediction = PREDICTIONS[config.one_of("prediction_type", tuple(PREDICTIONS), "epsilon")]
    zero_snr = config.flag("rescale_betas_zero_snr", False)
    if zero_snr and prediction == "epsilon":
        raise config.unsupported("rescale_betas_zero_snr", "false for the prediction_type epsilon, which noise alone has not")
    spacing = config.one_of("timestep_spacing", ("leading", "linspace", "trailing"), spacing)
    betas, first, last = known.betas if known else (None, None, None)
    alpha_one = known is not None and known.set_alpha_to_one is True
    return VPSpec(
        betas=config.one_of("beta_schedule", ("linear", "scaled_linear"), betas),
        beta_start=config.number("beta_start", first),
        beta_end=config.number("beta_end", last),
        train_steps=config.get("num_train_timesteps", int, 1000),
        prediction=prediction,
        spacing=spacing,
        steps_offset=_steps_offset(config, spacing),
        final_alpha_one=config.flag("set_alpha_to_one", alpha_one),
        final_sigma=config.one_of("final_sigmas_type", ("zero", "sigma_min"), "zero"),
        zero_snr=zero_snr,
    )


def _steps_offset(config: Config, spacing: str) -> int:
    """Returns 1, with which `StableDiffusionPipeline` replaces every other offset."""
    config.read.add("steps_offset")
    given = config.values.get("steps_offset", 0)
    if given is not None:
        given = config.get("steps_offset", int, 0)
    if given != 1 and spacing == "leading":  # the others have no offset
        shown = given if "steps_offset" in config.values else "missing"
        config.tell(f"{config.path}: steps_offset is {shown}, which is outdated; it is taken as 1, as diffusers does.")
    return 1


def _sampler(config: Config, kind: str, known: SchedulerClass, schedule: VPSpec) -> str:
    """Checks the fields of a class, and returns the sampler."""
    values = {
        name: config.one_of(name, allowed, None if name in known.required else allowed[0], advice=OVERRIDE)
        for name, allowed in known.fixed.items()
    }
    if known.clips is not None and config.flag("clip_sample", known.clips):
        shown = "true" if "clip_sample" in config.values else "missing"
        config.tell(f"{config.path}: clip_sample is {shown}, which is outdated; it is taken as false, as diffusers does.")
    sampler = known.variants.get(tuple(values[name] for name in known.by), known.sampler)
    is_karras = known.karras and config.flag("use_karras_sigmas", False)
    if known.karras and kind != "LMSDiscreteScheduler":  # DPM-Solver, Heun and DPM-Solver-2 read them without having such fields
        config.read.update(("sigma_min", "sigma_max"))
        if is_karras:
            config.fixed({"sigma_min": (None,), "sigma_max": (None,)}, advice=OVERRIDE)
    if kind == "EulerDiscreteScheduler":  # a continuous time is the one of models with v-prediction alone
        types = ("discrete",) if schedule.prediction == "v" else ("discrete", "continuous")
        config.one_of("timestep_type", types, "discrete", advice=OVERRIDE)
    if kind == "UniPCMultistepScheduler":
        config.read.add("disable_corrector")
        if config.values.get("disable_corrector"):
            raise config.unsupported("disable_corrector", "empty", OVERRIDE)
    if kind in ("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"):
        _unclipped(config, schedule)
    if kind == "DPMSolverMultistepScheduler":
        if values["algorithm_type"] == "sde-dpmsolver++":
            config.fixed({"solver_order": (2,)}, advice=OVERRIDE)
        if values["solver_order"] == 3:  # where the last step but one depends on it
            config.fixed({"lower_order_final": (True,)}, advice=OVERRIDE)
        if schedule.final_sigma != "zero":  # else the last step is of first order in any case
            config.fixed({"lower_order_final": (True,), "euler_at_final": (False, None)}, advice=OVERRIDE)
    others = {name: allowed for other in CLASSES.values() for name, allowed in other.fixed.items()}
    others |= {"clip_sample": (True, False, None), "use_karras_sigmas": (False, None), "timestep_type": ("discrete",)}
    silent = [name for name, allowed in others.items() if config.values.get(name) in allowed]
    silent += [name for other in CLASSES.values() for name in other.free] + ["sigma_min", "sigma_max", "lambda_min_clipped"]
    config.ignore_rest(kind, known.free, silent)
    return f"{sampler}_karras" if is_karras else sampler


def _unclipped(config: Config, schedule: VPSpec):
    """Checks that `lambda_min_clipped`, a lowest log(alpha / sigma), keeps all timesteps of training."""
    lowest = -math.log(NoiseSchedule(schedule).ratios(schedule.train_steps - 1))
    if config.get("lambda_min_clipped", (int, float), float("-inf")) > lowest:
        raise config.unsupported("lambda_min_clipped", f"at most {lowest:.4f}, the lowest of this schedule", OVERRIDE)
