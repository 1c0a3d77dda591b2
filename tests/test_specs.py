"""Specs describe models, and whatever a file may say, nothing else."""

import json
import math
import re
from dataclasses import replace

import pytest

from tfsd.errors import CheckpointError
from tfsd.specs import NUMERICS, PRESETS, CLIPSpec, ModelSpec, SpecError, UNetSpec, VAESpec, VPSpec, from_json, to_json
from tfsd.storage.files import read_json
from tfsd.training.recipe import tiny_spec

SMALL = ModelSpec(  # every number as low as tests of other modules have it
    name="small",
    text=(CLIPSpec(vocabulary=40, length=8, width=8, layers=1, heads=2, mlp_width=16),),
    denoiser=UNetSpec(channels=(8,), residuals=1, attention=(False,), heads=(2,), context_width=8, groups=4),
    vae=VAESpec(channels=(8,), residuals=1, groups=4),
)
SPECS = [*PRESETS.values(), SMALL, tiny_spec()]
ALL = {"text": CLIPSpec, "denoiser": UNetSpec, "vae": VAESpec, "schedule": VPSpec}


@pytest.mark.parametrize("spec", [s.with_numerics(n) for s in SPECS for n in NUMERICS], ids=lambda s: f"{s.name}-{s.numerics}")
def test_specs_come_back_from_json(spec):
    assert from_json(json.loads(json.dumps(to_json(spec)))) == spec


def test_a_spec_with_one_text_encoder_outside_a_list_still_loads():
    """As tfsd 0.1 wrote it."""
    values = to_json(SMALL)
    (values["text"],) = values["text"]
    assert from_json(values) == SMALL


@pytest.mark.parametrize("part", ALL)
def test_a_kind_that_a_component_cannot_have_is_refused_by_name(part):
    for kind in ("no such", "pixart", 3, None):
        values = to_json(SMALL)
        part_of(values, part)["kind"] = kind
        with pytest.raises(SpecError, match=rf"ModelSpec\.{part}\.kind must be one of "):
            from_json(values)
    with pytest.raises(SpecError, match=rf"ModelSpec\.{part} must be "):
        replace(SMALL, **{part: (SMALL,) if part == "text" else SMALL})
    with pytest.raises(SpecError, match=rf"ModelSpec\.{part} must be a JSON object; got int"):
        from_json(to_json(SMALL) | {part: 3})


WRONG = [
    ("", "default_size", [512]),
    ("", "default_size", [512, 512, 512]),
    ("", "default_size", [0, 0]),
    ("", "default_size", [-512, 512]),
    ("", "default_size", [100, 512]),
    ("", "default_size", [2**20, 512]),
    ("", "default_steps", 0),
    ("", "default_steps", 10**9),
    ("", "default_guidance", math.nan),
    ("", "default_guidance", math.inf),
    ("", "default_guidance", 10**400),
    ("", "default_sampler", ""),
    ("", "default_sampler", "a\x1b[2J"),
    ("", "rounding", "up"),
    ("", "numerics", "torch"),
    ("text", "vocabulary", 10**9),
    ("text", "vocabulary", 0),
    ("text", "length", 1),
    ("text", "length", 10**6),
    ("text", "width", -768),
    ("text", "layers", 0),
    ("text", "layers", 10**6),
    ("text", "mlp_width", 0),
    ("text", "heads", 7),
    ("text", "epsilon", 0.0),
    ("text", "epsilon", math.nan),
    ("text", "activation", "relu"),
    ("text", "start_token", -1),
    ("text", "pad_token", -1),
    ("text", "kept_tokens", [1, 1]),
    ("text", "kept_tokens", [49408]),
    ("text", "kept_tokens", [-1]),
    ("text", "kept_tokens", [True]),
    ("denoiser", "channels", []),
    ("denoiser", "channels", [32] * 9),
    ("denoiser", "channels", [320, 640, 1280, 2**20]),
    ("denoiser", "channels", [320, 640, 1280, -1280]),
    ("denoiser", "attention", [True]),
    ("denoiser", "attention", [1, 1, 1, 0]),
    ("denoiser", "heads", [8, 8, 8, 0]),
    ("denoiser", "residuals", 0),
    ("denoiser", "residuals", 10**6),
    ("denoiser", "transformer_layers", 0),
    ("denoiser", "context_width", 0),
    ("denoiser", "in_channels", 0),
    ("denoiser", "groups", 0),
    ("denoiser", "gelu", "relu"),
    ("denoiser", "norm_epsilon", -1.0),
    ("denoiser", "transformer_norm_epsilon", math.inf),
    ("vae", "channels", []),
    ("vae", "channels", [32] * 60),
    ("vae", "latent_channels", 0),
    ("vae", "residuals", 17),
    ("vae", "scale", 0.0),
    ("vae", "scale", math.nan),
    ("vae", "shift", math.inf),
    ("schedule", "train_steps", 0),
    ("schedule", "train_steps", 10**9),
    ("schedule", "beta_start", 0.0),
    ("schedule", "beta_start", 0.5),  # above its beta_end
    ("schedule", "beta_end", 1.0),
    ("schedule", "beta_end", math.nan),
    ("schedule", "steps_offset", -1),
    ("schedule", "steps_offset", 1000),
    ("schedule", "betas", "cosine"),
]


def part_of(values: dict, part: str) -> dict:
    """The dict in a model's JSON that describes a part: the first text encoder for "text", the model itself for ""."""
    return values["text"][0] if part == "text" else values[part] if part else values


@pytest.mark.parametrize("part, field, value", WRONG, ids=lambda value: str(value)[:30].encode("unicode_escape").decode())
def test_what_no_model_has_is_refused_by_name(part, field, value):
    values = to_json(PRESETS["sd-1.4"])
    part_of(values, part)[field] = value
    with pytest.raises(SpecError, match=field) as caught:
        from_json(values)
    assert len(str(caught.value)) < 300 and "\n" not in str(caught.value)


def test_specs_made_in_python_are_checked_too():
    with pytest.raises(SpecError, match=r"UNetSpec\.channels must have 1 to 8 levels; got 0"):
        UNetSpec(channels=(), attention=(), heads=())
    with pytest.raises(SpecError, match=r"ModelSpec\.default_size must be two multiples of the VAE's 8; got \(512, 500\)"):
        ModelSpec(name="x", default_size=(512, 500))
    with pytest.raises(SpecError, match=r"VAESpec\.scale must be from 1e-06 to 1000000\.0; got nan"):
        replace(VAESpec(), scale=math.nan)


def test_every_number_of_a_spec_has_limits():
    for part, kind in {**ALL, "": ModelSpec}.items():
        for field, value in to_json(ModelSpec(name="x") if kind is ModelSpec else kind()).items():
            several = isinstance(value, tuple) and field not in ("kept_tokens", "attention")
            if several or (isinstance(value, (int, float)) and not isinstance(value, bool)):
                values = to_json(PRESETS["sd-1.4"])
                part_of(values, part)[field] = [2**40] * len(value) if several else 2**40
                with pytest.raises(SpecError, match=field):
                    from_json(values)


@pytest.mark.parametrize("text", ['{"a": NaN}', '{"a": [Infinity]}', '{"a": -Infinity}'])
def test_json_with_what_json_does_not_have_is_refused(text, tmp_path):
    (tmp_path / "spec.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"spec\.json is damaged: -?(NaN|Infinity) is not a number"):
        read_json(tmp_path / "spec.json")


@pytest.mark.parametrize("name", ["kerascv-0.6", "keras_cv", "KerasCV 0.8.2"])
def test_the_numbers_of_earlier_keras_cv_are_missing_and_the_error_says_so(name):
    message = f"numerics must be one of compvis, kerascv; got '{name}'. kerascv is KerasCV 0.9; the timesteps of its earlier"
    with pytest.raises(SpecError, match=re.escape(message)):
        PRESETS["sd-1.4"].with_numerics(name)


@pytest.mark.parametrize("name", ["torch", ["kerascv"], 3, ""])
def test_other_names_of_numbers_are_refused(name):
    with pytest.raises(SpecError, match=re.escape(f"numerics must be one of compvis, kerascv; got {name!r}.")):
        PRESETS["sd-1.4"].with_numerics(name)
