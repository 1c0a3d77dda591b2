"""Device bundles in the format of older versions, made from bundles of this one."""

import json
import shutil
from pathlib import Path

import flatbuffers

from tfsd.converters.device.manifest import write_manifest
from tfsd.device import MANIFEST


def write_format_2(bundle: Path, folder: Path) -> Path:
    """Copies a bundle to `folder` as format 2 has it: an input of `step` and an output of `plan` are called `waves`."""
    shutil.copytree(bundle, folder)
    manifest = json.loads((folder / MANIFEST).read_text()) | {"format": 2}
    for part, signature, tensors in (("denoiser", "step", "inputs"), ("sampling", "plan", "outputs")):
        described = manifest["parts"][part]["signatures"][signature]
        described[tensors] = {_older(name): one for name, one in described[tensors].items()}
        _rename(folder / f"{part}.tflite", signature, tensors)
    write_manifest(folder, manifest)
    return folder


def _older(name: str) -> str:
    return "waves" if name == "timestep_features" else name


def _rename(file: Path, signature: str, tensors: str):
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(file.read_bytes(), 0)
    (definition,) = (one for one in model.signatureDefs if one.signatureKey.decode() == signature)
    for tensor in getattr(definition, tensors):
        tensor.name = _older(tensor.name.decode()).encode()
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), b"TFL3")
    file.write_bytes(builder.Output())
