"""Reads the weight files that KerasCV published for Stable Diffusion: matched by order, leaf name and shape."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tfsd.converters.importers.rules import Layout, Rule, Rules, assign, invert
from tfsd.converters.importers.sources import of_version_2
from tfsd.errors import shown
from tfsd.models import part_shapes
from tfsd.specs import SD_1_4, CLIPSpec, ModelSpec, UNetSpec, VAESpec
from tfsd.storage.atomic import new_file
from tfsd.storage.h5 import MAX_OBJECTS, CheckpointError, StoredTensor, member, open_h5, stored_tensor

FILES = {
    "text_encoder": "kcv_encoder.h5",
    "denoiser": "kcv_diffusion_model.h5",
    "decoder": "kcv_decoder.h5",
    "encoder": "vae_encoder.h5",
}
WIDTH_2 = 1024  # context width of Stable Diffusion 2.x; no tensor of 1.x has such a side
OPTIONAL = ("encoder",)  # published separately; only image-to-image needs it

POINTWISE = Layout(ones=(0, 1))  # a 1x1 convolution there, a dense layer here
LEAVES = ("gamma", "beta", "kernel", "bias")  # the order within a layer

RESIDUAL = ("norm1", "conv1", "embed", "norm2", "conv2", "skip")  # those that the block has
TRANSFORMER = (
    "norm1",
    *(f"attention1/{name}" for name in ("query", "key", "value", "out")),
    "norm2",
    *(f"attention2/{name}" for name in ("query", "key", "value", "out")),
    "norm3",
    "feed_forward/dense1",
    "feed_forward/dense2",
)
TEXT_BLOCK = ("norm1", *(f"attention/{name}" for name in ("query", "key", "value", "out")), "norm2", "dense1", "dense2")


def _text(spec: CLIPSpec) -> Iterator[str]:
    for i in range(spec.layers):
        yield from (f"block{i}/{layer}" for layer in TEXT_BLOCK)
    yield "norm"


def _unet(spec: UNetSpec) -> Iterator[str]:
    levels = len(spec.channels)
    yield from ("time/dense0", "conv_in", "time/dense1")  # the file is ordered by depth in the graph
    for i in range(levels):
        for j in range(spec.residuals):
            yield from _residual(f"down{i}/residual{j}")
            yield from _spatial(spec, f"down{i}/attention{j}")
        yield f"down{i}/downsample/conv"
    yield from _residual("middle/residual0")
    yield from _spatial(spec, "middle/attention0")
    yield from _residual("middle/residual1")
    for i in range(levels):
        for j in range(spec.residuals + 1):
            yield from _residual(f"up{i}/residual{j}")
            yield from _spatial(spec, f"up{i}/attention{j}")
        yield f"up{i}/upsample/conv"
    yield from ("norm_out", "conv_out")


def _residual(path: str) -> Iterator[str]:
    return (f"{path}/{layer}" for layer in RESIDUAL)


def _spatial(spec: UNetSpec, path: str) -> Iterator[str]:
    yield from (f"{path}/norm", f"{path}/proj_in")
    for k in range(spec.transformer_layers):
        yield from (f"{path}/block{k}/{layer}" for layer in TRANSFORMER)
    yield f"{path}/proj_out"


def _map_attention() -> Iterator[str]:
    return (f"middle/attention/{layer}" for layer in ("norm", "query", "key", "value", "out"))


def _decoder(spec: VAESpec) -> Iterator[str]:
    yield from ("post_quant", "conv_in")
    yield from (*_residual("middle/residual0"), *_map_attention(), *_residual("middle/residual1"))
    for i in range(len(spec.channels)):
        for j in range(spec.residuals + 1):
            yield from _residual(f"up{i}/residual{j}")
        yield f"up{i}/upsample/conv"
    yield from ("norm_out", "conv_out")


def _encoder(spec: VAESpec) -> Iterator[str]:
    yield "conv_in"
    for i in range(len(spec.channels)):
        for j in range(spec.residuals):
            yield from _residual(f"down{i}/residual{j}")
        yield f"down{i}/downsample/conv"
    yield from (*_residual("middle/residual0"), *_map_attention(), *_residual("middle/residual1"))
    yield from ("norm_out", "conv_out", "quant")


LAYERS: dict[str, Callable[[Any], Iterator[str]]] = {  # of the part's spec: its layers in the order of the files
    "text_encoder": _text,
    "denoiser": _unet,
    "decoder": _decoder,
    "encoder": _encoder,
}


def file_order(part: str, spec: ModelSpec, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Returns the variable paths of a part in the order of KerasCV's file."""
    own = spec.parts((part,))[0].spec
    first = ["embeddings/tokens", "embeddings/positions"] if part == "text_encoder" else []
    return first + [path for layer in LAYERS[part](own) for leaf in LEAVES if (path := f"{layer}/{leaf}") in shapes]


def rules_of(part: str, spec: ModelSpec, shapes: Mapping[str, tuple[int, ...]]) -> Rules:
    """Returns the rules of a part; a tensor's name is its place in the file and its leaf: "17.kernel"."""
    rules = []
    for i, path in enumerate(file_order(part, spec, shapes)):
        layer, _, leaf = path.rpartition("/")
        dense_map = layer.startswith("middle/attention/") and leaf == "kernel"
        rules.append(Rule(f"{i}.{'embeddings' if layer == 'embeddings' else leaf}", path, POINTWISE if dense_map else Layout()))
    return Rules(rules)


def legacy_tensors(file: h5py.File) -> dict[str, StoredTensor]:
    """Returns the tensors of a Keras 2 weights file by place and leaf, "0.kernel", nothing read yet.

    Layer names are not kept: their numbers depend on what the writing process had made before.
    Raises: `CheckpointError` for another kind of file.
    """
    path = Path(file.filename)
    root = file
    if "layer_names" not in file.attrs and "layer_names0" not in file.attrs:
        if "model_weights" not in file:
            raise CheckpointError(f"{path} is not a weights file of Keras 2: it has no attribute layer_names.")
        root = member(file, "model_weights", path)
    tensors: dict[str, StoredTensor] = {}
    for layer in _names(root, "layer_names", path):
        group = member(root, layer, path)
        for name in _names(group, "weight_names", path):
            child = group
            for step in name.split("/"):
                if not isinstance(child, h5py.Group):
                    raise CheckpointError(f"{path}: {shown(name, 300)} leads through a tensor.")
                child = member(child, step, path)
            if not isinstance(child, h5py.Dataset):
                raise CheckpointError(f"{path}: {shown(name, 300)} is a group, not a tensor.")
            tensors[f"{len(tensors)}.{step.partition(':')[0]}"] = stored_tensor(child, path)
    return tensors


def _names(group: h5py.Group, attribute: str, path: Path) -> list[str]:
    """Returns a list of names; Keras splits long ones over numbered attributes."""
    keys = [attribute] if attribute in group.attrs else []
    while f"{attribute}{len(keys)}" in group.attrs and attribute not in keys:
        keys.append(f"{attribute}{len(keys)}")
    names: list[str] = []
    try:
        for key in keys:
            if int(np.prod(group.attrs.get_id(key).shape)) > MAX_OBJECTS:
                raise CheckpointError(f"{path}: {attribute} of {group.name} is too long to be true.")
            names += [name.decode("utf-8") if isinstance(name, bytes) else str(name) for name in group.attrs[key]]
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: {attribute} of {group.name} is damaged: {error}.") from error
    return names


@contextlib.contextmanager
def open_folder(
    folder: Path, *, spec: ModelSpec = SD_1_4, name: str = ""
) -> Iterator[tuple[ModelSpec, dict[str, Mapping[str, StoredTensor]]]]:
    """Yields the spec and the tensors {part: {variable path: tensor}} of KerasCV's files, nothing read yet.

    The files do not describe the model, so `spec` does. The image encoder's file may be absent.
    Raises: `CheckpointError` if a file is missing, damaged or belongs to another model.
    """
    folder = Path(folder)
    paths = {part: folder / file for part, file in FILES.items() if part not in OPTIONAL or (folder / file).exists()}
    shapes = part_shapes(spec, tuple(paths))
    parts: dict[str, Mapping[str, StoredTensor]] = {}
    with contextlib.ExitStack() as stack:
        for part, path in paths.items():
            source = legacy_tensors(stack.enter_context(open_h5(path)))
            rules = rules_of(part, spec, shapes[part])
            try:
                parts[part] = assign(source, shapes[part], rules, where=str(path), model=f"the {part} of {spec.name}")
            except CheckpointError as error:
                if spec.text[0].width != WIDTH_2 and any(WIDTH_2 in tensor.shape for tensor in source.values()):
                    raise CheckpointError(f"{path} is of {of_version_2()}") from error
                raise
        yield replace(spec, name=name or spec.name), parts


def export(path: Path, part: str, spec: ModelSpec, tensors: Mapping[str, np.ndarray], layers: Iterable = ()):
    """Writes a part's variables {path: values} as a Keras 2 weights file; complete or not at all.

    `layers`, pairs of a layer's name and the names of its weights, groups them as in a published file;
    without it, every weight is a separate layer.
    """
    shapes = {name: values.shape for name, values in tensors.items()}
    rules = rules_of(part, spec, shapes)
    ordered = ((name, tensors[name]) for name in file_order(part, spec, shapes))
    pairs = list(invert(ordered, rules))
    groups = list(layers) or [(f"layer_{i}", [f"{name.partition('.')[2]}:0"]) for i, (name, _) in enumerate(pairs)]
    if sum(len(weights) for _, weights in groups) != len(pairs):
        raise CheckpointError(f"{path}: the layers must name {len(pairs)} weights.")
    remaining = iter(pairs)
    with new_file(path) as out, h5py.File(out, "w") as file:
        file.attrs["layer_names"] = [layer.encode() for layer, _ in groups]
        for layer, weights in groups:
            group = file.create_group(layer)
            group.attrs["weight_names"] = [name.encode() for name in weights]
            for name in weights:
                group.create_dataset(name, data=next(remaining)[1])
