import json
import os
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file

from tfsd.converters import convert
from tfsd.converters.importers.sources import detect
from tfsd.errors import CheckpointError

# Tensors' names of real files: of CompVis' Stable Diffusion 1.4 and Stability's 2.1, and of what people take for models.
COMPVIS = ("model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.decoder.conv_in.bias", "betas")
SDXL = ("conditioner.embedders.0.transformer.text_model.final_layer_norm.bias", *COMPVIS)
FOREIGN = {
    COMPVIS: r"a single-file checkpoint in CompVis' layout; tfsd reads diffusers folders.*from_single_file\('x\.safetensors'\)",
    SDXL: "a single-file checkpoint of Stable Diffusion XL, which is not supported",
    ("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.bias",): "a checkpoint of Stable Diffusion 3, which is not supported",
    ("first_stage_model.decoder.conv_in.bias",): "a part of a checkpoint in CompVis' layout",
    ("lora_unet_down_blocks_0_attentions_0_proj_in.alpha",): "a LoRA, which changes a model",
    ("unet.down_blocks.0.attentions.0.proj_in.lora_A.weight",): "a LoRA, which changes a model",
    ("unet.down_blocks.0.attentions.0.processor.to_q_lora.down.weight",): "a LoRA, which changes a model",
    ("control_model.input_hint_block.0.bias",): "a ControlNet, not a model",
    ("emb_params",): r"an embedding \(textual inversion\), not a model",
    ("<cat-toy>",): r"an embedding \(textual inversion\), not a model",
    ("down_blocks.0.resnets.0.conv1.bias", "conv_in.bias"): "one part of a diffusers folder",
    ("text_model.final_layer_norm.bias",): "one part of a diffusers folder",
}


@pytest.mark.parametrize("inside", [False, True], ids=["file", "folder"])
@pytest.mark.parametrize(("names", "message"), FOREIGN.items(), ids=[names[0].partition(".")[0] for names in FOREIGN])
def test_a_safetensors_file_that_is_no_model_folder_is_named_by_what_it_holds(tmp_path, names, message, inside):
    file = tmp_path / "x.safetensors"
    save_file({name: np.zeros(1, "float32") for name in names}, file)
    with pytest.raises(CheckpointError, match=rf"x\.safetensors is {message}") as caught:
        convert(tmp_path if inside else file, tmp_path / "model")
    assert "\n" not in str(caught.value) and "kcv_" not in str(caught.value)


@pytest.mark.parametrize("name", ["v1-5.ckpt", "model.pt", "model.pth", "pytorch_model.bin", "model.pkl"])
def test_a_pickle_is_never_opened(tmp_path, name):
    """It is a pipe: opening it would wait for ever."""
    os.mkfifo(tmp_path / name)
    with pytest.raises(CheckpointError, match="can run programs"):
        detect(tmp_path / name)


def test_a_checkpoint_of_pytorch_is_named_in_its_folder_too(tmp_path):
    (tmp_path / "sd-v1-4.ckpt").write_bytes(b"cposix\nsystem\n(S'touch /tmp/ran'\ntR.")
    for src in (tmp_path / "sd-v1-4.ckpt", tmp_path):
        with pytest.raises(CheckpointError, match=r"reading which can run programs.*from_single_file\('sd-v1-4\.ckpt'\)"):
            detect(src)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (("spec.json", "manifest.json"), "is a model folder already: use it as it is, `--model /"),
        (("saved_model.pb", "variables/variables.index"), "is an export, from which no model can be made again"),
        (("denoiser.tflite", "manifest.json"), "is an export, from which no model can be made again"),
        (("unet/config.json", "vae/config.json"), "lacks model_index.json, which a diffusers folder has beside unet, vae"),
        (("config.json", "diffusion_pytorch_model.safetensors"), "is one part of a diffusers folder; give the folder that"),
        (("snapshots/39593d5/model_index.json",), r"Hugging Face cache\. Give the model in it: .*snapshots/39593d5\."),
        (("notes.txt", "picture.png"), r"holds no weights that are known; it holds notes\.txt, picture\.png \(diffusers: model_"),
        ((), r"it holds nothing \(diffusers: model_index\.json; kerascv: "),
    ],
)
def test_a_folder_that_is_no_source_is_named(tmp_path, files, message):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(json.dumps({}))
    with pytest.raises(CheckpointError, match=message) as caught:
        detect(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_is_never_converted_into_itself(sd1):
    before = {path: path.read_bytes() for path in sd1.rglob("*") if path.is_file()}
    for overwrite in (False, True):
        with pytest.raises(CheckpointError, match="not empty"):
            convert(sd1, f"{sd1}/", overwrite=overwrite)
    assert {path: path.read_bytes() for path in sd1.rglob("*") if path.is_file()} == before


def test_a_source_may_hold_its_model_folder_and_not_the_other_way_round(sd1, tmp_path):
    model = convert(sd1, sd1 / "model")
    shutil.copytree(sd1, model / "source", ignore=shutil.ignore_patterns("model"))
    with pytest.raises(CheckpointError, match=r"is not replaced: it holds source/model_index\.json, .* and \d+ more"):
        convert(model / "source", model, overwrite=True)
    assert (model / "source/model_index.json").is_file()
