import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from converters import convert
from converters.diffusers import FILES, export, open_folder
from tfsd.h5 import CheckpointError
from tfsd.specs import CLIPSpec, ModelSpec, ScheduleSpec, UNetSpec, VAESpec
from tfsd.weights import load_model, named_variables

PUBLISHED_NAMES = Path(__file__).parents[1] / "data" / "diffusers" / "a_sd1_published_names"

A_SD1 = ModelSpec(
    name="a_sd1",
    text=CLIPSpec(vocabulary=1000, width=32, layers=2, heads=4, mlp_width=128, start_token=998, end_token=999, pad_token=999),
    denoiser=UNetSpec(channels=(16, 32, 32), attention=(True, True, False), heads=(4, 4, 4), context_width=32, groups=8),
    vae=VAESpec(channels=(8, 16), residuals=1, groups=4),
    default_size=(32, 32),
)


def file_of(folder, subfolder):
    return folder / subfolder / f"{FILES[subfolder][1]}.safetensors"


def exported(folder) -> dict[str, dict[str, np.ndarray]]:
    """A model folder's tensors under diffusers' names again, after a way through Keras' variables."""
    spec, parts = load_model(folder)
    tensors = {
        part: ((path, np.asarray(variable)) for path, variable in named_variables(model).items()) for part, model in parts.items()
    }
    return {subfolder: dict(stream) for subfolder, stream in export(spec, tensors).items()}


def opened(folder, **options) -> dict[str, dict[str, np.ndarray]]:
    """A diffusers folder's tensors under diffusers' names again, after a way through our paths and layouts."""
    with open_folder(folder, **options) as (spec, parts):
        tensors = {part: ((path, t.read()) for path, t in tensors.items()) for part, tensors in parts.items()}
        return {subfolder: dict(stream) for subfolder, stream in export(spec, tensors).items()}


def edit_config(folder, file, **fields):
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def edit_tensors(folder, subfolder, change):
    path = file_of(folder, subfolder)
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def assert_exact(got, folder):
    for subfolder in FILES:
        expected = load_file(file_of(folder, subfolder))
        assert got[subfolder].keys() == expected.keys()
        for name in expected:
            np.testing.assert_array_equal(got[subfolder][name], expected[name], err_msg=f"{subfolder}: {name}")


def test_every_tensor_survives_the_round_trip(sd1, tmp_path):
    assert_exact(exported(convert(sd1, tmp_path / "model")), sd1)


def test_the_names_of_older_releases_give_the_same_model(sd1, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(sd1, old)
    for subfolder in ("text_encoder", "vae"):
        shutil.copytree(PUBLISHED_NAMES / subfolder, old / subfolder, dirs_exist_ok=True)
    assert "text_model.embeddings.position_ids" in load_file(file_of(old, "text_encoder"))
    assert_exact(opened(old), sd1)


def test_the_spec_is_read_from_the_configurations(sd1):
    with open_folder(sd1) as (spec, parts):
        assert spec == A_SD1
        assert {part: len(tensors) for part, tensors in parts.items()} == {
            "text_encoder": 36,
            "unet": 494,
            "decoder": 70,
            "encoder": 54,
        }


def test_a_version_2_configuration_is_read(sd1):
    edit_config(
        sd1, "unet/config.json", use_linear_projection=True, attention_head_dim=[2, 4, 4], sample_size=96, upcast_attention=True
    )
    edit_config(sd1, "text_encoder/config.json", hidden_act="gelu", pad_token_id=0)
    edit_config(
        sd1, "scheduler/scheduler_config.json", prediction_type="v_prediction", _class_name="DDIMScheduler", clip_sample=False
    )

    def flatten(tensors):
        for name in list(tensors):
            if name.endswith(("proj_in.weight", "proj_out.weight")):
                tensors[name] = tensors[name][:, :, 0, 0]

    edit_tensors(sd1, "unet", flatten)
    with open_folder(sd1) as (spec, _):
        assert spec.denoiser == UNetSpec(
            channels=(16, 32, 32),
            attention=(True, True, False),
            heads=(2, 4, 4),
            context_width=32,
            groups=8,
            linear_projection=True,
        )
        assert (spec.text.activation, spec.text.pad_token, spec.default_size) == ("gelu", 0, (192, 192))
        assert spec.schedule == ScheduleSpec(prediction="v")
        assert spec.default_sampler == "ddim"


def test_special_tokens_come_from_the_tokenizer(sd1):
    """Published text encoders say 0, 2 and 1 for tokens that are 49406, 49407 and 49407."""
    edit_config(sd1, "text_encoder/config.json", bos_token_id=0, eos_token_id=2, pad_token_id=1)
    (sd1 / "tokenizer").mkdir()
    (sd1 / "tokenizer" / "vocab.json").write_text(json.dumps({"!": 0, "<s>": 998, "</s>": 999}))
    special = {"bos_token": {"content": "<s>"}, "eos_token": {"content": "</s>"}, "pad_token": "!"}
    (sd1 / "tokenizer" / "special_tokens_map.json").write_text(json.dumps(special))
    with open_folder(sd1) as (spec, _):
        assert (spec.text.start_token, spec.text.end_token, spec.text.pad_token) == (998, 999, 0)
    shutil.rmtree(sd1 / "tokenizer")
    with open_folder(sd1) as (spec, _):
        assert (spec.text.start_token, spec.text.end_token, spec.text.pad_token) == (998, 999, 999)
    edit_config(sd1, "text_encoder/config.json", hidden_act="gelu")
    with pytest.raises(CheckpointError, match="tokenizer is needed to know the padding token"), open_folder(sd1):
        pass


def test_half_precision_variants_are_read(sd1):
    for subfolder, (_, stem) in FILES.items():
        path = file_of(sd1, subfolder)
        halves = {name: values.astype("float16") for name, values in load_file(path).items()}
        save_file(halves, path.with_name(f"{stem}.fp16.safetensors"))
    got, expected = opened(sd1, variant="fp16"), load_file(file_of(sd1, "unet"))
    for name in expected:
        np.testing.assert_array_equal(got["unet"][name], expected[name].astype("float16"), err_msg=name)


@pytest.mark.parametrize(
    "file, field, value",
    [
        ("model_index.json", "_class_name", "StableDiffusionXLPipeline"),
        ("unet/config.json", "act_fn", "gelu"),
        ("unet/config.json", "addition_embed_type", "text_time"),
        ("unet/config.json", "block_out_channels", "wide"),
        ("unet/config.json", "block_out_channels", [16, 32, "32"]),
        ("unet/config.json", "down_block_types", ["DownBlock2D"]),
        ("unet/config.json", "up_block_types", ["UpBlock2D", "UpBlock2D", "UpBlock2D"]),
        ("unet/config.json", "in_channels", 9),
        ("unet/config.json", "cross_attention_dim", 64),
        ("unet/config.json", "layers_per_block", [1, 2, 3]),
        ("unet/config.json", "layers_per_block", True),
        ("unet/config.json", "flip_sin_to_cos", False),
        ("unet/config.json", "only_cross_attention", [True, False, False]),
        ("unet/config.json", "invented_in_2030", "yes"),
        ("vae/config.json", "latents_mean", [0.1]),
        ("vae/config.json", "use_quant_conv", False),
        ("vae/config.json", "latent_channels", None),
        ("text_encoder/config.json", "hidden_act", "relu"),
        ("text_encoder/config.json", "hidden_size", "32"),
        ("scheduler/scheduler_config.json", "prediction_type", "flow"),
        ("scheduler/scheduler_config.json", "trained_betas", [0.1]),
        ("scheduler/scheduler_config.json", "beta_start", None),
        ("scheduler/scheduler_config.json", "rescale_betas_zero_snr", True),
        ("scheduler/scheduler_config.json", "skip_prk_steps", False),
    ],
)
def test_what_the_spec_cannot_express_is_refused_by_name(sd1, file, field, value):
    edit_config(sd1, file, **{field: value})
    with pytest.raises(CheckpointError, match=field) as caught, open_folder(sd1):
        pass
    assert file in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "file, field, value", [("unet/config.json", "norm_num_groups", 7), ("vae/config.json", "norm_num_groups", 0)]
)
def test_numbers_that_cannot_be_are_refused(sd1, file, field, value):
    edit_config(sd1, file, **{field: value})
    with pytest.raises(CheckpointError, match="groups"), open_folder(sd1):
        pass


def test_an_unknown_sampler_is_replaced_with_a_warning(sd1):
    edit_config(sd1, "scheduler/scheduler_config.json", _class_name="UniPCMultistepScheduler")
    with pytest.warns(UserWarning, match="no sampler like UniPCMultistepScheduler; the default is pndm"):
        with open_folder(sd1) as (spec, _):
            assert spec.default_sampler == "pndm"


def _missing(tensors):
    del tensors["conv_out.bias"]


def _extra(tensors):
    tensors["lora.weight"] = np.zeros(3, "float32")


def _shape(tensors):
    tensors["conv_out.bias"] = np.zeros(9, "float32")


def _dtype(tensors):
    tensors["conv_out.bias"] = np.zeros(4, "int32")


def _not_a_number(tensors):
    tensors["conv_out.bias"] = np.full(4, np.inf, "float32")


@pytest.mark.parametrize(
    "change, message",
    [
        (_missing, r"unset \(unet/conv_out/bias\)"),
        (_extra, r"unknown tensors \(lora\.weight\)"),
        (_shape, r"conv_out\.bias \[9\]"),
        (_dtype, r"conv_out\.bias of type I32"),
        (_not_a_number, r"Values of unet/conv_out/bias are NaN or infinite"),
    ],
)
def test_wrong_tensors_are_named_and_nothing_is_written(sd1, change, message):
    edit_tensors(sd1, "unet", change)
    with pytest.raises(CheckpointError, match=message):
        convert(sd1, sd1.parent / "out" / "model")
    assert list((sd1.parent / "out").glob("*")) == []


def test_a_truncated_file_is_named_and_nothing_is_written(sd1):
    path = file_of(sd1, "vae")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"vae/diffusion_pytorch_model\.safetensors is damaged"):
        convert(sd1, sd1.parent / "out" / "model")
    assert not (sd1.parent / "out").exists()
