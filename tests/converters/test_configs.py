"""What the configurations of a diffusers folder mean beyond single fields; those are in test_config_fields.py."""

import json
from pathlib import Path

import pytest

from tfsd.converters.importers.configs import model_spec
from tfsd.errors import CheckpointError
from tfsd.samplers.names import ALIASES
from tfsd.samplers.plans import find_sampler

SCHEDULER, UNET, TEXT = "scheduler/scheduler_config.json", "unet/config.json", "text_encoder/config.json"


def edit(folder: Path, file: str, *remove: str, **fields):
    values = json.loads((folder / file).read_text()) | fields
    (folder / file).write_text(json.dumps({name: value for name, value in values.items() if name not in remove}))


def use(folder: Path, kind: str, **fields):
    """Makes the scheduler one of this class, with the noise levels of Stable Diffusion."""
    levels = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
    (folder / SCHEDULER).write_text(json.dumps({"_class_name": kind, "_diffusers_version": "0.42.1"} | levels | fields))
    edit(folder, "model_index.json", scheduler=["diffusers", kind])


def read(folder: Path, sampler: str | None = None):
    told = []
    return model_spec(folder, sampler=sampler, tell=told.append), told


def refused(folder: Path, sampler: str | None = None) -> str:
    with pytest.raises(CheckpointError) as error:
        read(folder, sampler)
    assert "\n" not in str(error.value)
    return str(error.value)


# -- values of the wrong kind ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "name", "value"),
    [
        ("model_index.json", "_class_name", "StableDiffusionXLPipeline"),
        ("model_index.json", "_class_name", "LatentConsistencyModelPipeline"),
        ("model_index.json", "unet", ["diffusers"]),
        (UNET, "block_out_channels", "wide"),
        (UNET, "block_out_channels", [16, 32, "32"]),
        (UNET, "down_block_types", ["DownBlock2D"]),
        (UNET, "layers_per_block", True),
        (UNET, "norm_eps", float("inf")),
        (UNET, "conv_in_kernel", True),
        ("vae/config.json", "layers_per_block", "2"),
        (TEXT, "hidden_size", "32"),
        (TEXT, "model_type", "clip"),
        (TEXT, "use_attention_mask", True),
        (SCHEDULER, "beta_start", None),
        (SCHEDULER, "beta_end", "0.012"),
        (SCHEDULER, "set_alpha_to_one", 1),
        (SCHEDULER, "skip_prk_steps", 1),
        (SCHEDULER, "predict_epsilon", False),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_by_name(configurations, file, name, value):
    edit(configurations, file, **{name: value})
    message = refused(configurations)
    assert message.startswith(str(configurations / file)) and (name in message or "Infinity" in message)


@pytest.mark.parametrize(("file", "value"), [(UNET, 7), ("vae/config.json", 0)])
def test_numbers_that_cannot_be_are_refused(configurations, file, value):
    edit(configurations, file, norm_num_groups=value)
    assert "groups" in refused(configurations)


def test_minus_infinity_is_read_as_diffusers_writes_it(configurations):
    use(configurations, "DPMSolverMultistepScheduler", lambda_min_clipped=float("-inf"))
    assert "-Infinity" in (configurations / SCHEDULER).read_text()
    assert read(configurations)[0].default_sampler == "dpmpp_2m"


# -- schedulers and samplers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [alias for alias in ALIASES if alias.endswith("Scheduler")])
def test_a_scheduler_class_is_the_sampler_of_that_name(configurations, kind):
    use(configurations, kind, skip_prk_steps=True, clip_sample=False)
    spec, told = read(configurations)
    assert spec.default_sampler == find_sampler(kind) and told == []


def test_the_class_in_the_index_counts_and_not_the_one_in_the_scheduler_s_file(configurations):
    """diffusers loads the class that model_index.json names, which ignores the fields that it does not have."""
    edit(configurations, SCHEDULER, _class_name="DPMSolverSDEScheduler")
    assert read(configurations)[0].default_sampler == "pndm"
    edit(configurations, "model_index.json", "scheduler")
    assert "DPMSolverSDEScheduler" in refused(configurations)


@pytest.mark.parametrize("kind", ["DPMSolverSDEScheduler", "EDMEulerScheduler"])
def test_a_class_without_a_counterpart_is_refused_until_a_sampler_is_named(configurations, kind):
    use(configurations, kind, timestep_spacing="trailing", original_inference_steps=50, prediction_type="v_prediction")
    message = refused(configurations)
    assert f"the scheduler {kind} is not supported" in message and "--sampler" in message and "euler_karras" in message
    spec, told = read(configurations, "euler")
    assert spec.default_sampler == "euler" and told == []
    assert (spec.schedule.spacing, spec.schedule.prediction, spec.schedule.beta_end) == ("trailing", "v", 0.012)


def test_a_class_without_a_counterpart_must_say_what_its_noise_levels_are(configurations):
    use(configurations, "DPMSolverSDEScheduler")
    edit(configurations, SCHEDULER, "beta_schedule")
    assert "beta_schedule must be" in refused(configurations, "euler")


def test_flow_matching_is_refused_whatever_the_sampler(configurations):
    use(configurations, "FlowMatchEulerDiscreteScheduler")
    assert "flow matching" in refused(configurations, "euler")
    use(configurations, "DPMSolverMultistepScheduler", prediction_type="flow_prediction")
    assert "prediction_type" in refused(configurations, "euler")


def test_a_named_sampler_makes_fields_of_the_other_one_pointless(configurations):
    use(configurations, "DPMSolverMultistepScheduler", algorithm_type="sde-dpmsolver++", solver_order=3, use_karras_sigmas=True)
    message = refused(configurations)
    assert "must be 2; got 3" in message and message.endswith("name it with --sampler (in Python: sampler=).")
    spec, told = read(configurations, "dpmpp_2m")
    assert spec.default_sampler == "dpmpp_2m" and told == []


def test_a_named_sampler_does_not_help_where_the_noise_levels_are_others(configurations):
    use(configurations, "EulerDiscreteScheduler", rescale_betas_zero_snr=True)  # with the prediction epsilon
    message = refused(configurations, "euler")
    assert "rescale_betas_zero_snr" in message and "--sampler" not in message


def test_zero_snr_is_for_the_samplers_that_diffusers_has_it_for(configurations):
    use(configurations, "LMSDiscreteScheduler", rescale_betas_zero_snr=True, prediction_type="v_prediction")
    message = refused(configurations)
    assert "rescale_betas_zero_snr must be false for the sampler lms" in message and "--sampler" in message
    assert read(configurations, "euler")[0].schedule.zero_snr


def test_a_spacing_is_the_one_of_the_class_where_the_file_is_silent(configurations):
    for kind, spacing in (("DDIMScheduler", "leading"), ("EulerDiscreteScheduler", "linspace")):
        use(configurations, kind, clip_sample=False)
        assert read(configurations)[0].schedule.spacing == spacing
    use(configurations, "DPMSolverSDEScheduler")
    assert read(configurations, "dpmpp_2m")[0].schedule.spacing == "linspace"


# -- what diffusers repairs -----------------------------------------------------------------------------------------


def test_configurations_of_the_first_releases_are_repaired_as_diffusers_does(configurations):
    """Stable Diffusion 1.x as diffusers 0.6 saved it with a DDIM scheduler, and the U-Net's size of the first releases."""
    before = read(configurations)[0]
    use(configurations, "DDIMScheduler", set_alpha_to_one=False, _diffusers_version="0.6.0")
    edit(configurations, SCHEDULER, "steps_offset")
    edit(configurations, UNET, _diffusers_version="0.6.0", sample_size=32)
    spec, told = read(configurations)
    assert spec.schedule == before.schedule and spec.schedule.steps_offset == 1
    assert (spec.default_sampler, spec.default_size) == ("ddim", (128, 128))  # 64 latents of a VAE that halves once
    assert [message.partition(": ")[2] for message in told] == [
        "sample_size is 32, which is outdated; it is taken as 64, as diffusers does.",
        "steps_offset is missing, which is outdated; it is taken as 1, as diffusers does.",
        "clip_sample is missing, which is outdated; it is taken as false, as diffusers does.",
    ]


@pytest.mark.parametrize("version", ["0.9.0", "0.10.2", "0.42.1"])
def test_small_sizes_of_later_releases_are_meant(configurations, version):
    edit(configurations, UNET, _diffusers_version=version, sample_size=32)
    spec, told = read(configurations)
    assert spec.default_size == (64, 64) and told == []


def test_defaults_that_a_file_marks_as_such_are_those_of_the_reading_class(configurations):
    use(
        configurations,
        "PNDMScheduler",
        skip_prk_steps=True,
        timestep_spacing="trailing",
        _use_default_values=["timestep_spacing"],
    )
    assert read(configurations)[0].schedule.spacing == "leading"


def test_the_pndm_that_published_folders_have_is_read_without_a_word(configurations):
    """Word for word the fields of Stable Diffusion 1.4 and 1.5, of which PNDM has no clip_sample."""
    fields = {"num_train_timesteps": 1000, "set_alpha_to_one": False, "skip_prk_steps": True, "trained_betas": None}
    use(configurations, "PNDMScheduler", clip_sample=False, _diffusers_version="0.6.0", **fields)
    spec, told = read(configurations)
    assert (spec.default_sampler, spec.schedule.spacing, told) == ("pndm", "leading", [])


# -- fields that no class has ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["model_index.json", UNET, "vae/config.json", TEXT, SCHEDULER])
def test_fields_that_a_class_does_not_have_are_ignored_and_told(configurations, file):
    before = read(configurations)[0]
    edit(configurations, file, invented="yes", without=None, off=False)
    spec, told = read(configurations)
    assert spec == before and len(told) == 1
    assert told[0].startswith(f"{configurations / file}: invented ('yes') is ignored, as in diffusers: ")


@pytest.mark.parametrize("file", [UNET, "vae/config.json", SCHEDULER])
def test_fields_that_a_later_release_may_have_are_refused(configurations, file):
    edit(configurations, file, invented_in_2030="yes", _diffusers_version="1.3.0")
    message = refused(configurations)
    assert "invented_in_2030" in message and "1.3.0" in message
    edit(configurations, file, "invented_in_2030")
    assert read(configurations)[1] == []


def test_fields_of_other_classes_are_ignored_and_told_if_they_would_change_something(configurations):
    use(configurations, "DDIMScheduler", clip_sample=False, skip_prk_steps=True, solver_order=2, use_karras_sigmas=False)
    assert read(configurations)[1] == []
    edit(configurations, SCHEDULER, use_karras_sigmas=True)
    spec, told = read(configurations)
    assert spec.default_sampler == "ddim" and len(told) == 1 and "use_karras_sigmas (True) is ignored" in told[0]


def test_sigma_limits_that_diffusers_reads_without_having_the_field_are_refused(configurations):
    use(configurations, "DPMSolverMultistepScheduler", use_karras_sigmas=True, sigma_min=0.1)
    assert "sigma_min" in refused(configurations)


# -- the text encoder's tokens --------------------------------------------------------------------------------------


def test_special_tokens_come_from_the_tokenizer(configurations):
    """Published text encoders say 0, 2 and 1 for tokens that are 49406, 49407 and 49407."""
    edit(configurations, TEXT, bos_token_id=0, eos_token_id=2, pad_token_id=1)
    tokenizer = configurations / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "vocab.json").write_text(json.dumps({"!": 0, "<s>": 998, "</s>": 999}))
    special = {"bos_token": {"content": "<s>"}, "eos_token": {"content": "</s>"}, "pad_token": "!"}
    (tokenizer / "special_tokens_map.json").write_text(json.dumps(special))
    spec, told = read(configurations)
    assert (spec.text[0].start_token, spec.text[0].end_token, spec.text[0].pad_token, told) == (998, 999, 0, [])
    (tokenizer / "special_tokens_map.json").write_text(json.dumps(special | {"pad_token": "?"}))
    assert "special_tokens_map.json: pad_token" in refused(configurations)


def test_special_tokens_come_from_the_files_of_a_fast_tokenizer(configurations):
    """As transformers 5 saves one: neither vocab.json nor special_tokens_map.json."""
    tokenizer = configurations / "tokenizer"
    tokenizer.mkdir()
    added = [{"id": 998, "content": "<s>"}, {"id": 999, "content": "</s>"}]
    (tokenizer / "tokenizer.json").write_text(json.dumps({"added_tokens": added, "model": {"type": "BPE", "vocab": {"!": 0}}}))
    own = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "!", "model_max_length": 77}
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(own))
    spec, told = read(configurations)
    assert (spec.text[0].start_token, spec.text[0].end_token, spec.text[0].pad_token, told) == (998, 999, 0, [])
    (tokenizer / "tokenizer.json").write_text(json.dumps({"model": None}))
    assert "tokenizer.json is damaged: it has no vocabulary" in refused(configurations)


def test_without_a_tokenizer_the_usual_tokens_are_taken_and_told_where_they_are_known(configurations):
    edit(configurations, TEXT, bos_token_id=0, eos_token_id=2, pad_token_id=1)
    spec, told = read(configurations)
    assert (spec.text[0].start_token, spec.text[0].end_token, spec.text[0].pad_token) == (998, 999, 999)
    assert len(told) == 1 and "(998, 999, 999)" in told[0]
    edit(configurations, TEXT, hidden_act="gelu")
    assert "tokenizer is needed to know the padding token" in refused(configurations)


def test_a_tokenizer_that_pads_to_less_than_the_positions_is_refused(configurations):
    (configurations / "tokenizer").mkdir()
    for length, fits in ((77, True), (10**30, True), (40, False)):
        (configurations / "tokenizer" / "tokenizer_config.json").write_text(json.dumps({"model_max_length": length}))
        assert read(configurations) if fits else "model_max_length" in refused(configurations)


def test_the_safety_checker_is_left_out_with_a_word(configurations):
    edit(configurations, "model_index.json", safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])
    assert read(configurations)[1] == [
        f"{configurations / 'model_index.json'}: safety_checker is left out; images are not checked."
    ]
