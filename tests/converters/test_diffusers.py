import json
import re
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tfsd.converters import convert
from tfsd.converters.importers.diffusers import FILES, export, open_folder
from tfsd.errors import CheckpointError, TfsdWarning
from tfsd.specs import CLIPSpec, ModelSpec, UNetSpec, VAESpec, VPSpec
from tfsd.storage.model_folders import load_parts, load_spec, named_variables

A_SD1_FOLDER = Path(__file__).parents[1] / "data" / "diffusers" / "a_sd1"
PUBLISHED_NAMES = A_SD1_FOLDER.with_name("a_sd1_published_names")

A_SD1 = ModelSpec(
    name="a_sd1",
    text=(CLIPSpec(vocabulary=1000, width=32, layers=2, heads=4, mlp_width=128, start_token=998, end_token=999, pad_token=999),),
    denoiser=UNetSpec(channels=(16, 32, 32), attention=(True, True, False), heads=(4, 4, 4), context_width=32, groups=8),
    vae=VAESpec(channels=(8, 16), residuals=1, groups=4),
    default_size=(32, 32),
)


def file_of(folder, subfolder):
    return folder / subfolder / f"{FILES[subfolder][1]}.safetensors"


def exported(folder) -> dict[str, dict[str, np.ndarray]]:
    """A model folder's tensors under diffusers' names again, after a way through Keras' variables."""
    spec = load_spec(folder)
    tensors = {
        part: ((path, np.asarray(variable)) for path, variable in named_variables(model).items())
        for part, model in load_parts(folder, spec).items()
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
            "denoiser": 494,
            "decoder": 70,
            "encoder": 54,
        }


def test_a_version_2_configuration_is_read(sd1):
    edit_config(
        sd1, "unet/config.json", use_linear_projection=True, attention_head_dim=[2, 4, 4], sample_size=96, upcast_attention=True
    )
    edit_config(sd1, "text_encoder/config.json", hidden_act="gelu", pad_token_id=0)
    edit_config(sd1, "model_index.json", scheduler=["diffusers", "DDIMScheduler"])
    edit_config(
        sd1, "scheduler/scheduler_config.json", prediction_type="v_prediction", _class_name="DDIMScheduler", clip_sample=False
    )

    def flatten(tensors):
        for name in list(tensors):
            if name.endswith(("proj_in.weight", "proj_out.weight")):
                tensors[name] = tensors[name][:, :, 0, 0]

    edit_tensors(sd1, "unet", flatten)
    with open_folder(sd1) as (spec, _):
        expected = replace(A_SD1.denoiser, heads=(2, 4, 4), linear_projection=True, upcast_attention=True)
        assert spec.denoiser == expected
        assert (spec.text[0].activation, spec.text[0].pad_token, spec.default_size) == ("gelu", 0, (192, 192))
        assert spec.schedule == VPSpec(prediction="v")
        assert spec.default_sampler == "ddim"


def test_repairs_of_a_configuration_are_warnings_and_stay_in_the_manifest(sd1, tmp_path):
    edit_config(sd1, "scheduler/scheduler_config.json", steps_offset=0, written_by="hand")
    told = ["steps_offset is 0, which is outdated; it is taken as 1, as diffusers does.", "written_by ('hand') is ignored"]
    with pytest.warns(TfsdWarning, match=told[0]), pytest.warns(TfsdWarning, match=re.escape(told[1])):
        folder = convert(sd1, tmp_path / "model")
    warned = json.loads((folder / "manifest.json").read_text())["notes"]["warnings"]
    file = "scheduler/scheduler_config.json"
    assert len(warned) == 2 and all(message.startswith(f"{file}: {text}") for text, message in zip(told, warned))
    notes = json.loads((convert(A_SD1_FOLDER, tmp_path / "plain") / "manifest.json").read_text())["notes"]
    assert notes == {"converted_from": "diffusers"}


def test_the_sampler_of_a_new_folder_can_be_chosen(sd1, tmp_path):
    edit_config(sd1, "model_index.json", scheduler=["diffusers", "DPMSolverSDEScheduler"])
    with pytest.raises(CheckpointError, match="the scheduler DPMSolverSDEScheduler is not supported"):
        convert(sd1, tmp_path / "model")
    assert load_spec(convert(sd1, tmp_path / "model", sampler="DPM++ 2M Karras")).default_sampler == "dpmpp_2m_karras"
    other = convert(sd1, tmp_path / "other", sampler="Euler a", numerics="compvis")
    assert load_spec(other).default_sampler == "euler_ancestral"
    with pytest.raises(ValueError, match="sampler must be one of ddim, .*got 'restart'"):
        convert(sd1, tmp_path / "third", sampler="restart")
    edit_config(sd1, "scheduler/scheduler_config.json", prediction_type="sample")
    with pytest.raises(CheckpointError, match="prediction_type must be one that the sampler pndm serves"):
        convert(sd1, tmp_path / "third", sampler="plms")
    assert not (tmp_path / "third").exists()


def test_half_precision_variants_are_read(sd1):
    for subfolder, (_, stem) in FILES.items():
        path = file_of(sd1, subfolder)
        halves = {name: values.astype("float16") for name, values in load_file(path).items()}
        save_file(halves, path.with_name(f"{stem}.fp16.safetensors"))
    got, expected = opened(sd1, variant="fp16"), load_file(file_of(sd1, "unet"))
    for name in expected:
        np.testing.assert_array_equal(got["unet"][name], expected[name].astype("float16"), err_msg=name)


def halved(folder, subfolder):
    """Adds the fp16 variant of a part."""
    path, stem = file_of(folder, subfolder), FILES[subfolder][1]
    save_file({n: v.astype("float16") for n, v in load_file(path).items()}, path.with_name(f"{stem}.fp16.safetensors"))


def test_parts_without_the_variant_are_read_from_their_plain_files_with_a_warning(sd1, tmp_path):
    halved(sd1, "unet")
    message = r"There is no variant fp16 of text_encoder, vae; model\.safetensors, diffusion_pytorch_model\.safetensors is read"
    with pytest.warns(TfsdWarning, match=message):
        model = convert(sd1, tmp_path / "model", variant="fp16", dtype=None)
    manifest = json.loads((model / "manifest.json").read_text())
    assert re.search(message, *manifest["notes"]["warnings"])
    assert manifest["dtype"] == "float16/float32"


def test_a_variant_that_no_part_has_is_refused(sd1):
    halved(sd1, "unet")
    with pytest.raises(CheckpointError, match="a_sd1 has no files of variant 'fp61'; there are fp16"):
        opened(sd1, variant="fp61")
    (sd1 / "unet/diffusion_pytorch_model.fp16.safetensors").unlink()
    with pytest.raises(CheckpointError, match="a_sd1 has no files of variant 'fp16'; it has no variants"):
        opened(sd1, variant="fp16")


@pytest.mark.parametrize("name", ["text_projection.weight", "logit_scale", "vision_model.embeddings.class_embedding"])
def test_what_diffusers_leaves_out_of_a_text_encoder_is_left_out_with_a_warning(sd1, name):
    expected = opened(sd1)
    edit_tensors(sd1, "text_encoder", lambda tensors: tensors.update({name: np.ones((2, 2), "float32")}))
    with pytest.warns(TfsdWarning, match=rf"text_encoder/model\.safetensors: {re.escape(name)} left out, as in diffusers"):
        got = opened(sd1)
    assert got["text_encoder"].keys() == expected["text_encoder"].keys()


@pytest.mark.parametrize("positions", [np.arange(77)[None], np.arange(77)[None] + 1], ids=["0-to-76", "others"])
def test_positions_in_a_text_encoder_are_left_out_and_odd_ones_warned_of(sd1, positions):
    edit_tensors(sd1, "text_encoder", lambda tensors: tensors.update({"text_model.embeddings.position_ids": positions}))
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", TfsdWarning)
        opened(sd1)
    texts = [str(one.message) for one in warned if issubclass(one.category, TfsdWarning)]
    assert bool(texts) == bool(positions[0, 0]) and all("position_ids left out" in text for text in texts)


def test_other_tensors_of_a_text_encoder_are_refused(sd1):
    edit_tensors(sd1, "text_encoder", lambda tensors: tensors.update({"text_projection.bias": np.ones(2, "float32")}))
    with pytest.raises(CheckpointError, match=r"1 unknown tensors \(text_projection\.bias\)"):
        opened(sd1)


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
        (_missing, r"unset \(denoiser/conv_out/bias\)"),
        (_extra, r"unknown tensors \(lora\.weight\)"),
        (_shape, r"conv_out\.bias \[9\]"),
        (_dtype, r"conv_out\.bias of type I32"),
        (_not_a_number, r"Values of denoiser/conv_out/bias are NaN or infinite"),
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
