"""Every field that the classes of a diffusers folder have: honoured, provably without effect, repaired, or refused by name.

The fields and their defaults are those of diffusers' and transformers' constructors; see tests/data/README.md.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tfsd.converters.importers.configs import model_spec
from tfsd.converters.importers.scheduler_config import CLASSES
from tfsd.errors import CheckpointError

DATA = Path(__file__).parents[1] / "data"
VOCABULARY = json.loads((DATA / "diffusers_fields.json").read_text())["fields"]
FILES = {
    "StableDiffusionPipeline": "model_index.json",
    "UNet2DConditionModel": "unet/config.json",
    "AutoencoderKL": "vae/config.json",
    "CLIPTextConfig": "text_encoder/config.json",
}
SCHEDULER = "scheduler/scheduler_config.json"
SCHEDULERS = [name for name in VOCABULARY if name not in FILES]
NEEDED = {  # what a scheduler's file must say to be one of Stable Diffusion, up to date, and one of our samplers
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "steps_offset": 1,
    "clip_sample": False,
    "skip_prk_steps": True,
}


@dataclass
class Changes:
    """The value shows in the spec: `at` is a path in it. `also` are other fields that must fit, of the same file or another."""

    value: object
    at: str
    expected: object
    also: dict = field(default_factory=dict)


@dataclass
class Free:
    """The value changes no picture, for the reason given."""

    value: object
    why: str


@dataclass
class Repaired:
    """The value is taken for another one, with a warning, as diffusers does."""

    value: object
    also: dict = field(default_factory=dict)


@dataclass
class Refused:
    """The value is refused by name."""

    value: object
    also: dict = field(default_factory=dict)


OF_THRESHOLD = Free(0.5, "read with thresholding alone, which is refused")
SCHEDULE = {  # what all schedulers have
    "num_train_timesteps": Changes(500, "schedule.train_steps", 500),
    "beta_start": Changes(0.001, "schedule.beta_start", 0.001),
    "beta_end": Changes(0.02, "schedule.beta_end", 0.02),
    "beta_schedule": [Changes("linear", "schedule.betas", "linear"), Refused("squaredcos_cap_v2"), Refused(None)],
    "trained_betas": Refused([0.1, 0.2]),
    "prediction_type": [Changes("v_prediction", "schedule.prediction", "v"), Refused("flow_prediction"), Refused(None)],
    "timestep_spacing": [Changes("trailing", "schedule.spacing", "trailing"), Refused("even"), Refused(None)],
    "steps_offset": [
        Repaired(0, {"timestep_spacing": "leading"}),
        Repaired(7, {"timestep_spacing": "leading"}),
        Free(1, "what diffusers makes of every value"),
        Refused("1"),
    ],
}
ALPHA_ONE = [Changes(True, "schedule.final_alpha_one", True), Refused("yes")]
ZERO_SNR = {
    "rescale_betas_zero_snr": [
        Changes(True, "schedule.zero_snr", True, {"prediction_type": "v_prediction"}),
        Refused(True),  # noise alone tells nothing of epsilon
        Free(None, "as false"),
        Refused("yes"),
    ]
}
SIGMA_MIN = Changes("sigma_min", "schedule.final_sigma", "sigma_min")
THRESHOLD = {"thresholding": Refused(True), "dynamic_thresholding_ratio": OF_THRESHOLD, "sample_max_value": OF_THRESHOLD}
CLIP = {
    "clip_sample": [Repaired(True), Free(None, "diffusers asks whether it is True"), Refused("no")],
    "clip_sample_range": Free(2.0, "read with clip_sample alone, which diffusers sets to False"),
}
SIGMAS = {"use_exponential_sigmas": Refused(True), "use_beta_sigmas": Refused(True)}
EPSILON_OR_V = [Changes("v_prediction", "schedule.prediction", "v"), Refused("sample")]  # the other classes have "sample", too
TWO_CALLS = SCHEDULE | SIGMAS | {"prediction_type": EPSILON_OR_V}
FOR_KARRAS = [Free(0.1, "read with use_karras_sigmas alone"), Refused(0.1, {"use_karras_sigmas": True})]


def karras(sampler: str) -> list:
    return [Changes(True, "default_sampler", sampler), Free(None, "as false"), Refused("yes")]


DISTILLED = (
    SCHEDULE
    | CLIP
    | THRESHOLD
    | {
        "prediction_type": EPSILON_OR_V,
        "original_inference_steps": [Refused(100), Refused(None)],
        "set_alpha_to_one": Changes(False, "schedule.final_alpha_one", False),
        "timestep_scaling": [Refused(1.0), Refused("10")],
        "rescale_betas_zero_snr": [Refused(True, {"prediction_type": "v_prediction"}), Free(None, "as false"), Refused("yes")],
    }
)
CASES = {
    "DDIMScheduler": SCHEDULE
    | CLIP
    | THRESHOLD
    | ZERO_SNR
    | {"set_alpha_to_one": Changes(False, "schedule.final_alpha_one", False)},
    "DDPMScheduler": SCHEDULE
    | CLIP
    | THRESHOLD
    | ZERO_SNR
    | {
        "variance_type": [
            Free("fixed_small_log", "the square root of the variance by its logarithm"),
            *map(Refused, ("fixed_large", "fixed_large_log", "learned", "learned_range")),
        ]
    },
    "PNDMScheduler": SCHEDULE
    | {"skip_prk_steps": Refused(False), "set_alpha_to_one": ALPHA_ONE}
    | {"prediction_type": EPSILON_OR_V},
    "LMSDiscreteScheduler": SCHEDULE | SIGMAS | {"use_karras_sigmas": karras("lms_karras")},
    "EulerDiscreteScheduler": SCHEDULE
    | SIGMAS
    | ZERO_SNR
    | {
        "use_karras_sigmas": karras("euler_karras"),
        "interpolation_type": Refused("log_linear"),
        "sigma_min": FOR_KARRAS,
        "sigma_max": FOR_KARRAS,
        "timestep_type": [
            Free("continuous", "read for v-prediction alone"),
            Refused("continuous", {"prediction_type": "v_prediction"}),
        ],
        "final_sigmas_type": [SIGMA_MIN, Refused("sigma_max"), Refused(None)],
    },
    "EulerAncestralDiscreteScheduler": SCHEDULE | ZERO_SNR,
    "DPMSolverMultistepScheduler": SCHEDULE
    | SIGMAS
    | ZERO_SNR
    | THRESHOLD
    | {
        "solver_order": [
            Refused(1),
            Changes(3, "default_sampler", "dpmpp_3m"),
            Changes(3, "default_sampler", "dpmpp_3m_karras", {"use_karras_sigmas": True}),
            Refused(3, {"algorithm_type": "sde-dpmsolver++"}),
        ],
        "algorithm_type": [
            Changes("sde-dpmsolver++", "default_sampler", "dpmpp_2m_sde"),
            Changes("sde-dpmsolver++", "default_sampler", "dpmpp_2m_sde_karras", {"use_karras_sigmas": True}),
            *map(Refused, ("dpmsolver", "sde-dpmsolver")),
            Free("deis", "diffusers makes dpmsolver++ of it"),
        ],
        "solver_type": [Refused("heun"), Free("bh2", "diffusers makes midpoint of it")],
        "lower_order_final": [
            Free(False, "the last step goes to sigma 0, which is of first order in any case"),
            Refused(False, {"final_sigmas_type": "sigma_min"}),
            Refused(False, {"solver_order": 3}),
        ],
        "euler_at_final": [
            Free(True, "likewise; test_plans_reference.py has a recorded run"),
            Refused(True, {"final_sigmas_type": "sigma_min"}),
        ],
        "use_karras_sigmas": karras("dpmpp_2m_karras"),
        "use_lu_lambdas": Refused(True),
        "use_flow_sigmas": Refused(True),
        "flow_shift": Free(3.0, "read with use_flow_sigmas alone"),
        "final_sigmas_type": [SIGMA_MIN, Refused("sigma_max"), Refused(None)],
        "lambda_min_clipped": [Free(-5.1, "below the lowest of this schedule, -2.68"), Refused(-1.0), Refused(None)],
        "variance_type": Refused("learned"),
        "use_dynamic_shifting": Refused(True),
        "time_shift_type": Free("linear", "read with use_dynamic_shifting alone"),
    },
    "HeunDiscreteScheduler": TWO_CALLS | CLIP | {"use_karras_sigmas": karras("heun_karras")},
    "UniPCMultistepScheduler": SCHEDULE
    | SIGMAS
    | THRESHOLD
    | {
        "prediction_type": EPSILON_OR_V,
        "solver_order": [Refused(1), Refused(3)],
        "predict_x0": Refused(False),
        "solver_type": [Refused("bh1"), Free("midpoint", "diffusers makes bh2 of it")],
        "lower_order_final": Refused(False),
        "disable_corrector": [Refused([0]), Refused("no")],
        "solver_p": Refused({"_class_name": "DDIMScheduler"}),
        "use_karras_sigmas": karras("unipc_karras"),
        "use_flow_sigmas": Refused(True),
        "flow_shift": Free(3.0, "read with use_flow_sigmas alone"),
        "final_sigmas_type": [SIGMA_MIN, Refused("sigma_max"), Refused(None)],
        "rescale_betas_zero_snr": [Refused(True, {"prediction_type": "v_prediction"}), Free(None, "as false"), Refused("yes")],
        "use_dynamic_shifting": Refused(True),
        "time_shift_type": Free("linear", "read with use_dynamic_shifting alone"),
        "sigma_min": FOR_KARRAS,
        "sigma_max": FOR_KARRAS,
        "shift_terminal": Refused(0.1),
    },
    "KDPM2DiscreteScheduler": TWO_CALLS | {"use_karras_sigmas": karras("kdpm2_karras")},
    "KDPM2AncestralDiscreteScheduler": TWO_CALLS | {"use_karras_sigmas": karras("kdpm2_ancestral_karras")},
    "DPMSolverSinglestepScheduler": {
        name: cases for name, cases in SCHEDULE.items() if name not in ("timestep_spacing", "steps_offset")
    }
    | SIGMAS
    | THRESHOLD
    | {
        "prediction_type": EPSILON_OR_V,
        "solver_order": [Refused(1), Refused(3)],
        "algorithm_type": [Free("deis", "diffusers makes dpmsolver++ of it"), *map(Refused, ("dpmsolver", "sde-dpmsolver++"))],
        "solver_type": [Refused("heun"), Free("bh2", "diffusers makes midpoint of it")],
        "lower_order_final": Free(True, "what diffusers makes of false where the last step goes to sigma 0"),
        "use_karras_sigmas": karras("dpmpp_2s_karras"),
        "use_flow_sigmas": Refused(True),
        "flow_shift": Free(3.0, "read with use_flow_sigmas alone"),
        "final_sigmas_type": Refused("sigma_min"),
        "lambda_min_clipped": [Free(-5.1, "below the lowest of this schedule, -2.68"), Refused(-1.0), Refused(None)],
        "variance_type": Refused("learned"),
        "use_dynamic_shifting": Refused(True),
        "time_shift_type": Free("linear", "read with use_dynamic_shifting alone"),
    },
    "DEISMultistepScheduler": SCHEDULE
    | SIGMAS
    | THRESHOLD
    | {
        "prediction_type": EPSILON_OR_V,
        "solver_order": [Refused(1), Refused(3)],
        "algorithm_type": [Free("dpmsolver++", "diffusers makes deis of it"), Refused("sde-dpmsolver++")],
        "solver_type": [Free("midpoint", "diffusers makes logrho of it"), Refused("rk45")],
        "lower_order_final": Refused(False),
        "use_karras_sigmas": karras("deis_karras"),
        "use_flow_sigmas": Refused(True),
        "flow_shift": Free(3.0, "read with use_flow_sigmas alone"),
        "use_dynamic_shifting": Refused(True),
        "time_shift_type": Free("linear", "read with use_dynamic_shifting alone"),
    },
    "LCMScheduler": DISTILLED,
    "TCDScheduler": DISTILLED,
    "UNet2DConditionModel": {
        "sample_size": [Changes(24, "default_size", (48, 48)), Changes([24, 32], "default_size", (48, 64)), Refused("64")],
        "in_channels": [Changes(5, "denoiser.in_channels", 5, {"out_channels": 5, "vae": {"latent_channels": 5}}), Refused(9)],
        "out_channels": [Changes(5, "denoiser.out_channels", 5, {"in_channels": 5, "vae": {"latent_channels": 5}}), Refused(8)],
        "center_input_sample": Refused(True),
        "flip_sin_to_cos": [Refused(False), Refused(None)],
        "freq_shift": Refused(1),
        "down_block_types": [
            Changes(
                ["CrossAttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
                "denoiser.attention",
                (True, False, False),
                {"up_block_types": ["UpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"]},
            ),
            Refused(["CrossAttnDownBlock2D", "AttnDownBlock2D", "DownBlock2D"]),
        ],
        "mid_block_type": [Refused("UNetMidBlock2DSimpleCrossAttn"), Refused(None)],
        "up_block_types": Refused(["UpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"]),
        "only_cross_attention": [Refused(True), Refused([False, False, True]), Free([False, False, False], "as false")],
        "block_out_channels": [Changes([16, 32, 64], "denoiser.channels", (16, 32, 64)), Refused(None)],
        "layers_per_block": [Changes(1, "denoiser.residuals", 1), Refused([1, 2, 2])],
        "downsample_padding": Refused(0),
        "mid_block_scale_factor": Refused(2),
        "dropout": Free(0.1, "for training"),
        "act_fn": [Refused("gelu"), Free("swish", "another name of silu")],
        "norm_num_groups": [Changes(4, "denoiser.groups", 4), Refused(None)],
        "norm_eps": Changes(1e-6, "denoiser.norm_epsilon", 1e-6),
        "cross_attention_dim": [
            Changes(48, "denoiser.context_width", 48, {"text_encoder": {"hidden_size": 48}}),
            Free([32, 32, 32], "the same on all levels"),
            Refused([32, 32, 64]),
            Refused(64),
        ],
        "transformer_layers_per_block": [Changes(2, "denoiser.transformer_layers", 2), Refused([1, 2, 2])],
        "reverse_transformer_layers_per_block": Refused([[1], [1], [1]]),
        "encoder_hid_dim": Refused(64),
        "encoder_hid_dim_type": Refused("text_proj"),
        "attention_head_dim": [Changes(2, "denoiser.heads", (2, 2, 2)), Changes([2, 4, 8], "denoiser.heads", (2, 4, 8))],
        "num_attention_heads": Refused(4),
        "dual_cross_attention": Refused(True),
        "use_linear_projection": Changes(True, "denoiser.linear_projection", True),
        "class_embed_type": Refused("timestep"),
        "addition_embed_type": Refused("text_time"),
        "addition_time_embed_dim": Free(256, "read with addition_embed_type alone"),
        "num_class_embeds": Refused(1000),
        "upcast_attention": Changes(True, "denoiser.upcast_attention", True),
        "resnet_time_scale_shift": Refused("scale_shift"),
        "resnet_skip_time_act": Refused(True),
        "resnet_out_scale_factor": Refused(1.414),
        "time_embedding_type": Refused("fourier"),
        "time_embedding_dim": [Refused(128), Free(64, "four times the first level's channels, which is the default")],
        "time_embedding_act_fn": Refused("silu"),
        "timestep_post_act": Refused("silu"),
        "time_cond_proj_dim": Refused(256),
        "conv_in_kernel": Refused(1),
        "conv_out_kernel": Refused(1),
        "projection_class_embeddings_input_dim": Free(2816, "read with class_embed_type or addition_embed_type alone"),
        "attention_type": Refused("gated"),
        "class_embeddings_concat": Refused(True),
        "mid_block_only_cross_attention": Refused(True),
        "cross_attention_norm": Refused("layer_norm"),
        "addition_embed_type_num_heads": Free(32, "read with addition_embed_type alone"),
    },
    "AutoencoderKL": {
        "in_channels": Refused(4),
        "out_channels": Refused(4),
        "down_block_types": Refused(["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]),
        "up_block_types": Refused(["UpDecoderBlock2D"]),
        "block_out_channels": Changes([8, 32], "vae.channels", (8, 32)),
        "layers_per_block": Changes(2, "vae.residuals", 2),
        "act_fn": [Refused("gelu"), Free("swish", "another name of silu")],
        "latent_channels": [
            Changes(16, "vae.latent_channels", 16, {"unet": {"in_channels": 16, "out_channels": 16}}),
            Refused(None),
        ],
        "norm_num_groups": Changes(2, "vae.groups", 2),
        "sample_size": Free(64, "for tiling"),
        "scaling_factor": [Changes(0.13025, "vae.scale", 0.13025), Refused(None), Refused("0.1")],
        "shift_factor": Refused(0.1),
        "latents_mean": Refused([0.1, 0.1, 0.1, 0.1]),
        "latents_std": Refused([0.9, 0.9, 0.9, 0.9]),
        "force_upcast": Free(False, "read by other pipelines"),
        "use_quant_conv": Refused(False),
        "use_post_quant_conv": Refused(False),
        "mid_block_add_attention": [Refused(False), Refused(None)],
    },
    "CLIPTextConfig": {
        "vocab_size": Changes(2000, "text.vocabulary", 2000),
        "hidden_size": Changes(48, "text.width", 48, {"unet": {"cross_attention_dim": 48}}),
        "intermediate_size": Changes(64, "text.mlp_width", 64),
        "projection_dim": Free(64, "for the class with projection"),
        "num_hidden_layers": Changes(3, "text.layers", 3),
        "num_attention_heads": Changes(8, "text.heads", 8),
        "max_position_embeddings": [Changes(64, "text.length", 64), Refused("77")],
        "hidden_act": [
            Changes("gelu", "text.activation", "gelu"),
            Changes("gelu_new", "text.activation", "gelu_tanh"),
            Refused("relu"),
            Refused(None),
        ],
        "layer_norm_eps": Changes(1e-6, "text.epsilon", 1e-6),
        "attention_dropout": Free(0.1, "for training"),
        "initializer_range": Free(0.1, "for training"),
        "initializer_factor": Free(2.0, "for training"),
        "pad_token_id": [Changes(0, "text.pad_token", 0), Repaired(1), Refused(None)],
        "bos_token_id": Changes(5, "text.start_token", 5),
        "eos_token_id": [Changes(7, "text.end_token", 7), Repaired(2), Refused([999])],
    },
    "StableDiffusionPipeline": {
        "vae": Refused(["diffusers", "AutoencoderTiny"]),
        "text_encoder": Refused(["transformers", "CLIPTextModelWithProjection"]),
        "tokenizer": Refused(["transformers", "T5Tokenizer"]),
        "unet": Refused(["diffusers", "UNet2DModel"]),
        "scheduler": [
            Changes(["diffusers", "LMSDiscreteScheduler"], "default_sampler", "lms"),
            Refused("DDPMScheduler"),
        ],
        "safety_checker": Repaired(["stable_diffusion", "StableDiffusionSafetyChecker"]),
        "feature_extractor": Free(["transformers", "CLIPImageProcessor"], "the safety checker's"),
        "image_encoder": Free(["transformers", "CLIPVisionModelWithProjection"], "for image prompts"),
        "requires_safety_checker": Free(True, "a warning of diffusers depends on it"),
    },
}
ALL = [
    (kind, name, case)
    for kind, fields in CASES.items()
    for name, cases in fields.items()
    for case in (cases if isinstance(cases, list) else [cases])
]


def shown(value) -> str:
    return value if isinstance(value, str) else repr(getattr(value, "value", ""))[:20]


def edit(folder: Path, file: str, fields: dict):
    values = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(values | fields))


def prepare(folder: Path, kind: str) -> str:
    """Makes the folder's scheduler one of the class `kind`, if that is one; returns the file that has the fields of `kind`."""
    if kind not in SCHEDULERS:
        return FILES[kind]
    own = {name: VOCABULARY[kind][name] if name not in NEEDED else NEEDED[name] for name in VOCABULARY[kind]}
    own = {name: float(value) if value == "-Infinity" else value for name, value in own.items()}
    (folder / SCHEDULER).write_text(json.dumps({"_class_name": kind, "_diffusers_version": "0.42.1"} | own))
    edit(folder, "model_index.json", {"scheduler": ["diffusers", kind]})
    return SCHEDULER


def read(folder: Path):
    told = []
    spec = model_spec(folder, tell=told.append)
    return spec, told


def test_the_table_has_every_field_of_every_class():
    assert set(CLASSES) == set(SCHEDULERS)
    assert {kind: sorted(fields) for kind, fields in CASES.items()} == {kind: sorted(own) for kind, own in VOCABULARY.items()}


@pytest.mark.parametrize(("kind", "name", "case"), ALL, ids=shown)
def test_every_field_is_honoured_without_effect_repaired_or_refused(configurations, kind, name, case):
    file = prepare(configurations, kind)
    before, told = read(configurations)
    for other, fields in getattr(case, "also", {}).items():
        edit(configurations, f"{other}/config.json", fields) if isinstance(fields, dict) else edit(
            configurations, file, {other: fields}
        )
    if isinstance(case, Repaired):
        before, told = read(configurations)
    assert told == []
    edit(configurations, file, {name: case.value})
    if isinstance(case, Refused):
        with pytest.raises(CheckpointError) as error:
            read(configurations)
        assert f"{file}: " in str(error.value) and name in str(error.value) and "\n" not in str(error.value)
        return
    spec, told = read(configurations)
    if isinstance(case, Changes):
        old, new = before, spec
        for part in case.at.split("."):
            old, new = getattr(old, part), getattr(new, part)
            if part == "text":
                (old,), (new,) = old, new
        assert new == case.expected != old and told == []
    elif isinstance(case, Repaired):
        assert spec == before and len(told) == 1
        assert told[0].startswith(f"{configurations / file}: ") and name in told[0]
    else:
        assert spec == before and told == []


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, own in VOCABULARY.items() for name in own])
def test_an_absent_field_means_the_default_of_its_class(configurations, kind, name):
    file = prepare(configurations, kind)
    values = json.loads((configurations / file).read_text())
    values.pop(name, None)
    default = VOCABULARY[kind][name]
    results = []
    for written in (values, values | {name: float("-inf") if default == "-Infinity" else default}):
        (configurations / file).write_text(json.dumps(written))
        try:
            spec, told = read(configurations)
            results.append((spec, len(told)))
        except CheckpointError as error:
            results.append(str(error).partition("; got")[0])
    assert results[0] == results[1]
