"""Detects the kind of a source of weights, and explains why others cannot be read. Does not load TensorFlow."""

import re
from pathlib import Path

from tfsd.converters.importers.tensors import holdings, open_safetensors
from tfsd.errors import CheckpointError

KINDS = {  # kind -> files that only such folders have
    "diffusers": ("model_index.json",),
    "kerascv": ("kcv_encoder.h5", "kcv_diffusion_model.h5", "kcv_decoder.h5", "vae_encoder.h5"),
}
KERASCV_2 = ("text_encoder_v2_1.h5", "diffusion_model_v2_1.h5")  # of Stable Diffusion 2.1; the VAE's files are those of 1.x
PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
ELSEWHERE = "tfsd reads diffusers folders"
SINGLE_FILE = f"{ELSEWHERE}, which diffusers makes: StableDiffusionPipeline.from_single_file({{name!r}}).save_pretrained(FOLDER)"
PART = f"{ELSEWHERE} of safetensors, which diffusers' save_pretrained(FOLDER) writes"

# Pattern of a tensor's name -> the kind of file that contains it.
TENSORS = {
    r"conditioner[.]embedders[.].*": "a single-file checkpoint of Stable Diffusion XL, which is not supported",
    r"model[.]diffusion_model[.]joint_blocks[.].*": "a checkpoint of Stable Diffusion 3, which is not supported",
    r"model[.]diffusion_model[.].*": f"a single-file checkpoint in CompVis' layout; {SINGLE_FILE}",
    r"(first|cond)_stage_model[.].*": f"a part of a checkpoint in CompVis' layout; {ELSEWHERE}",
    r"control_model[.].*|controlnet_.*|input_hint_block[.].*": "a ControlNet, not a model by itself",
    r"lora_.*|.*[._]lora[._].*": "a LoRA, which changes a model and is none by itself",
    r"emb_params|<.*>": "an embedding (textual inversion), not a model",
    r"(down_blocks|mid_block|encoder|decoder|text_model|embeddings)[.].*": "one part of a diffusers folder; give it whole",
}


def detect(src: Path) -> str:
    """Returns the kind of a folder of weights, a key of `KINDS`.

    Raises: `CheckpointError` saying what is there and what is missing.
    """
    if not src.exists():
        raise CheckpointError(f"{src} does not exist ({_looked()}).")
    if src.is_dir() and (newer := [name for name in KERASCV_2 if (src / name).is_file()]):
        raise CheckpointError(f"{src / newer[0]} is of {of_version_2()}")
    for kind, names in KINDS.items():
        if any((src / name).is_file() for name in names):
            return kind
    raise CheckpointError(_explained(src) or f"{src} holds no weights that are known{_held(src)} ({_looked()}).")


def of_version_2() -> str:
    """Returns the end of the error message for KerasCV's files of Stable Diffusion 2.1."""
    return "KerasCV's Stable Diffusion 2.1; of KerasCV only 1.x is read. Convert a diffusers folder of Stable Diffusion 2.x."


def _looked() -> str:
    return "; ".join(f"{kind}: {' or '.join(names)}" for kind, names in KINDS.items())


def _held(src: Path) -> str:
    return f"; it holds {holdings(src)}" if src.is_dir() else ""


def _explained(src: Path) -> str | None:
    """Returns a description of a source that is recognised but cannot be read; None for others."""
    if not src.is_dir():
        return _explained_file(src)
    if (src / "saved_model.pb").is_file() or (src / "denoiser.tflite").is_file():
        return f"{src} is an export, from which no model can be made again. Give the folder that it was exported from."
    if (src / "spec.json").is_file():
        return f"{src} is a model folder already: use it as it is, `--model {src if src.is_absolute() else f'./{src}'}`."
    snapshots = sorted(src.glob("snapshots/*/model_index.json"))
    if snapshots:
        return f"{src} is a folder of the Hugging Face cache. Give the model in it: {snapshots[-1].parent}."
    parts = [name for name in ("unet", "vae", "text_encoder") if (src / name).is_dir()]
    if parts:
        return f"{src} lacks model_index.json, which a diffusers folder has beside {', '.join(parts)}. Copy the whole folder."
    if (src / "config.json").is_file() and sorted(src.glob("*.safetensors*")):
        return f"{src} is one part of a diffusers folder; give the folder that holds model_index.json."
    singles = sorted(path for path in src.iterdir() if path.suffix in (".safetensors", *PICKLES) and path.is_file())
    explained = [text for text in map(_explained_file, singles[:8]) if text]
    return explained[0] if explained else None


def _explained_file(path: Path) -> str | None:
    if path.suffix in PICKLES:  # never opened: reading a pickle can run programs
        hint = PART if path.suffix == ".bin" else SINGLE_FILE
        return f"{path} is a file of PyTorch, reading which can run programs, so it is not read; {_sentence(hint, path)}"
    if path.suffix == ".safetensors":
        with open_safetensors([path]) as tensors:
            names = list(tensors)
        kinds = (text for pattern, text in TENSORS.items() if any(re.fullmatch(pattern, name) for name in names))
        return next((f"{path} is {_sentence(text, path)}" for text in kinds), None)
    return None


def _sentence(text: str, path: Path) -> str:
    return text.format(name=path.name) + "."
