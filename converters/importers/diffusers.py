"""Reads diffusers folders of Stable Diffusion 1.x and 2.x: names and layouts of their tensors."""

import contextlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from tfsd.converters.importers.config_file import Tell
from tfsd.converters.importers.configs import model_spec, warn
from tfsd.converters.importers.rules import CONV, LINEAR, Layout, Rule, Rules, assign, invert
from tfsd.converters.importers.tensors import open_safetensors, safetensors_files, weight_files
from tfsd.errors import CheckpointError, shown
from tfsd.models import part_shapes
from tfsd.specs import ModelSpec
from tfsd.storage.h5 import StoredTensor
from tfsd.storage.model_folders import Tensors


def _norm(name: str, path: str) -> list[Rule]:
    return [Rule(f"{name}.weight", f"{path}/gamma"), Rule(f"{name}.bias", f"{path}/beta")]


def _dense(name: str, path: str, layout: Layout = LINEAR) -> list[Rule]:
    return [Rule(f"{name}.weight", f"{path}/kernel", layout), Rule(f"{name}.bias", f"{path}/bias")]


def _conv(name: str, path: str) -> list[Rule]:
    return _dense(name, path, CONV)


def _below(name: str, path: str, rules: Iterable[Rule]) -> list[Rule]:
    return [Rule(f"{name}.{rule.name}", f"{path}/{rule.path}", rule.layout) for rule in rules]


RESIDUAL = [
    *_norm("norm1", "norm1"),
    *_conv("conv1", "conv1"),
    *_dense("time_emb_proj", "embed"),
    *_norm("norm2", "norm2"),
    *_conv("conv2", "conv2"),
    *_conv("conv_shortcut", "skip"),
]

ATTENTION = [
    *_dense("to_q", "query"),
    *_dense("to_k", "key"),
    *_dense("to_v", "value"),
    *_dense("to_out.0", "out"),
]

TRANSFORMER = [
    *_norm("norm1", "norm1"),
    *_below("attn1", "attention1", ATTENTION),
    *_norm("norm2", "norm2"),
    *_below("attn2", "attention2", ATTENTION),
    *_norm("norm3", "norm3"),
    *_dense("ff.net.0.proj", "feed_forward/dense1"),
    *_dense("ff.net.2", "feed_forward/dense2"),
]


def _spatial(linear: bool) -> list[Rule]:
    return [
        *_norm("norm", "norm"),
        *_dense("proj_in", "proj_in", LINEAR if linear else CONV),
        *_below("transformer_blocks.{k}", "block{k}", TRANSFORMER),
        *_dense("proj_out", "proj_out", LINEAR if linear else CONV),
    ]


def _unet(spec: ModelSpec) -> list[Rule]:
    spatial = _spatial(spec.denoiser.linear_projection)
    return [
        *_dense("time_embedding.linear_1", "time/dense0"),
        *_dense("time_embedding.linear_2", "time/dense1"),
        *_conv("conv_in", "conv_in"),
        *_below("down_blocks.{i}.resnets.{j}", "down{i}/residual{j}", RESIDUAL),
        *_below("down_blocks.{i}.attentions.{j}", "down{i}/attention{j}", spatial),
        *_conv("down_blocks.{i}.downsamplers.0.conv", "down{i}/downsample/conv"),
        *_below("mid_block.resnets.{j}", "middle/residual{j}", RESIDUAL),
        *_below("mid_block.attentions.{j}", "middle/attention{j}", spatial),
        *_below("up_blocks.{i}.resnets.{j}", "up{i}/residual{j}", RESIDUAL),
        *_below("up_blocks.{i}.attentions.{j}", "up{i}/attention{j}", spatial),
        *_conv("up_blocks.{i}.upsamplers.0.conv", "up{i}/upsample/conv"),
        *_norm("conv_norm_out", "norm_out"),
        *_conv("conv_out", "conv_out"),
    ]


CODER = [
    *_conv("conv_in", "conv_in"),
    *_below("down_blocks.{i}.resnets.{j}", "down{i}/residual{j}", RESIDUAL),
    *_conv("down_blocks.{i}.downsamplers.0.conv", "down{i}/downsample/conv"),
    *_below("mid_block.resnets.{j}", "middle/residual{j}", RESIDUAL),
    *_norm("mid_block.attentions.0.group_norm", "middle/attention/norm"),
    *_below("mid_block.attentions.0", "middle/attention", ATTENTION),
    *_below("up_blocks.{i}.resnets.{j}", "up{i}/residual{j}", RESIDUAL),
    *_conv("up_blocks.{i}.upsamplers.0.conv", "up{i}/upsample/conv"),
    *_norm("conv_norm_out", "norm_out"),
    *_conv("conv_out", "conv_out"),
]

VAE = [
    *_conv("post_quant_conv", "decoder/post_quant"),
    *_below("decoder", "decoder", CODER),
    *_below("encoder", "encoder", CODER),
    *_conv("quant_conv", "encoder/quant"),
]

TEXT_BLOCK = [
    *_norm("layer_norm1", "norm1"),
    *_dense("self_attn.q_proj", "attention/query"),
    *_dense("self_attn.k_proj", "attention/key"),
    *_dense("self_attn.v_proj", "attention/value"),
    *_dense("self_attn.out_proj", "attention/out"),
    *_norm("layer_norm2", "norm2"),
    *_dense("mlp.fc1", "dense1"),
    *_dense("mlp.fc2", "dense2"),
]

TEXT = [
    Rule("embeddings.token_embedding.weight", "embeddings/tokens"),
    Rule("embeddings.position_embedding.weight", "embeddings/positions"),
    *_below("encoder.layers.{i}", "block{i}", TEXT_BLOCK),
    *_norm("final_layer_norm", "norm"),
]

# What text encoders hold beside the weights of the tables: diffusers leaves it out, too.
POSITIONS = "embeddings.position_ids"  # the numbers 0 to 76
UNUSED = r"text_projection\.weight|logit_scale|visual_projection\.weight|vision_model\..+"

# Names of older releases -> those of the tables.
RENAMED = (
    (r"^text_model\.", ""),  # transformers before 5
    (r"(mid_block\.attentions\.0\.)query\.", r"\1to_q."),  # diffusers before 0.18, in the VAE
    (r"(mid_block\.attentions\.0\.)key\.", r"\1to_k."),
    (r"(mid_block\.attentions\.0\.)value\.", r"\1to_v."),
    (r"(mid_block\.attentions\.0\.)proj_attn\.", r"\1to_out.0."),
)

# Folder -> the parts in it and the stem of its file.
FILES = {
    "text_encoder": (("text_encoder",), "model"),
    "unet": (("denoiser",), "diffusion_pytorch_model"),
    "vae": (("decoder", "encoder"), "diffusion_pytorch_model"),
}


def rules_of(folder: str, spec: ModelSpec) -> Rules:
    """Returns the rules for the tensors of `text_encoder`, `unet` or `vae`; our paths begin with the part."""
    if folder == "vae":
        return Rules(VAE)
    rules, (part,) = TEXT if folder == "text_encoder" else _unet(spec), FILES[folder][0]
    return Rules(Rule(rule.name, f"{part}/{rule.path}", rule.layout) for rule in rules)


@contextlib.contextmanager
def open_folder(
    folder: Path, *, variant: str | None = None, name: str = "", sampler: str | None = None, tell: Tell = warn
) -> Iterator[tuple[ModelSpec, dict[str, Mapping[str, StoredTensor]]]]:
    """Yields the spec of a diffusers folder and its tensors {part: {variable path: tensor}}, nothing read yet.

    `variant` chooses among `model.fp16.safetensors` and the like; parts without it are read from their plain files.
    `sampler`, a key of `SAMPLERS`, replaces the scheduler's. `tell` is called with what is repaired, ignored or left out, as in
    diffusers; by default, these are warnings.
    Raises: `CheckpointError` if the configuration belongs to another model, or does not match the tensors.
    """
    folder = Path(folder)
    spec = model_spec(folder, sampler=sampler, tell=tell)
    variants = _variants(folder, variant, tell)
    spec = replace(spec, name=name or folder.resolve().name)
    parts: dict[str, Mapping[str, StoredTensor]] = {}
    with contextlib.ExitStack() as stack:
        for subfolder, (names, stem) in FILES.items():
            paths = safetensors_files(folder / subfolder, stem, variants[subfolder])
            source = _renamed(stack.enter_context(open_safetensors(paths)))
            if subfolder == "text_encoder":
                _leave_out(source, str(paths[0]), tell)
            parts.update(_match(source, spec, subfolder, names, str(paths[0])))
        yield spec, parts


def _variants(folder: Path, variant: str | None, tell: Tell) -> dict[str, str | None]:
    """Returns the variant to read from every subfolder."""
    if variant is None:
        return dict.fromkeys(FILES)
    found = {subfolder: weight_files(folder / subfolder, stem) for subfolder, (_, stem) in FILES.items()}
    others = [subfolder for subfolder, files in found.items() if variant not in files]
    if len(others) == len(found):
        there = sorted({name for files in found.values() for name in files if name})
        have = f"there are {', '.join(there)}" if there else "it has no variants"
        raise CheckpointError(f"{folder} has no files of variant {shown(variant)}; {have}.")
    if others:
        files = ", ".join(found[subfolder].get("", next(iter(found[subfolder].values()))).name for subfolder in others)
        tell(f"There is no variant {variant} of {', '.join(others)}; {files} is read there.")
    return {subfolder: None if subfolder in others else variant for subfolder in found}


def _renamed(source: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Returns the tensors under the names of the tables above."""
    renamed = {}
    for old, tensor in source.items():
        new = old
        for pattern, replacement in RENAMED:
            new = re.sub(pattern, replacement, new)
        renamed[new if new not in source else old] = tensor
    return renamed


def _match(source: Mapping[str, StoredTensor], spec: ModelSpec, subfolder: str, parts: Sequence[str], where: str) -> dict:
    shapes = part_shapes(spec, parts)
    expected = {f"{part}/{path}": shape for part in parts for path, shape in shapes[part].items()}
    tensors = assign(source, expected, rules_of(subfolder, spec), where=where, model=spec.name)
    return {part: {path.partition("/")[2]: t for path, t in tensors.items() if path.startswith(f"{part}/")} for part in parts}


def _leave_out(tensors: dict[str, StoredTensor], where: str, tell: Tell):
    """Removes the tensors of a text encoder that do not affect images, and tells which if they contain something."""
    unused = [name for name in tensors if re.fullmatch(UNUSED, name)]
    positions = tensors.pop(POSITIONS, None)
    if positions is not None and not np.array_equal(positions.read().ravel(), np.arange(math.prod(positions.shape))):
        unused.append(POSITIONS)
    for name in unused:
        tensors.pop(name, None)
    if unused:
        names = ", ".join(unused[:3]) + (f" and {len(unused) - 3} more" if len(unused) > 3 else "")
        tell(f"{where}: {names} left out, as in diffusers: they do not affect images.")


def export(spec: ModelSpec, tensors: Mapping[str, Tensors]) -> dict[str, Tensors]:
    """Returns {folder: (diffusers name, values), ...} for our parts, the inverse of the import, one tensor at a time.

    Raises: `CheckpointError` naming a variable that has no diffusers name.
    """

    def stream(subfolder: str, parts: Sequence[str]) -> Tensors:
        pairs = ((f"{part}/{path}", values) for part in parts if part in tensors for path, values in tensors[part])
        return invert(pairs, rules_of(subfolder, spec))

    return {subfolder: stream(subfolder, parts) for subfolder, (parts, _) in FILES.items()}
