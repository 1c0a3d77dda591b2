"""Reads tensor files of other packages: safetensors, single or sharded."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from tfsd.errors import CheckpointError
from tfsd.storage.files import read_json, refuse_pointer
from tfsd.storage.h5 import StoredTensor

TYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
TRANSFORMERS_STEM = "model"  # of the weights that transformers writes; those of diffusers are diffusion_pytorch_model
VARIANT = r"(?:\.(?!index\b)(\w+))?"
SHOWN_NAMES = 8  # of files in messages


@contextlib.contextmanager
def open_safetensors(paths: list[Path]) -> Iterator[dict[str, StoredTensor]]:
    """Yields the tensors of all files together, by name, nothing read yet.

    Raises: `CheckpointError` if a file is missing or damaged, or two files hold one name.
    """
    with contextlib.ExitStack() as stack:
        tensors: dict[str, StoredTensor] = {}
        for path in paths:
            if not path.is_file():
                raise CheckpointError(f"{path} does not exist; {path.parent} holds {holdings(path.parent)}.")
            refuse_pointer(path)
            with _one_line_errors(path):  # the library checks that header, offsets and file size agree
                file = stack.enter_context(safe_open(path, framework="numpy"))
                names = list(file.keys())
            for name in names:
                if name in tensors:
                    raise CheckpointError(f"{path}: the tensor {name} is in another file, too.")
                tensors[name] = _stored(file, name, path)
        yield tensors


def _stored(file, name: str, path: Path) -> StoredTensor:
    with _one_line_errors(path):
        part = file.get_slice(name)
        shape, dtype = tuple(part.get_shape()), part.get_dtype()

    def read() -> np.ndarray:
        with _one_line_errors(path):
            return file.get_tensor(name)

    return StoredTensor(shape, TYPES.get(dtype, str(dtype)), read)


@contextlib.contextmanager
def _one_line_errors(path: Path):
    try:
        yield
    except (SafetensorError, OSError, ValueError, TypeError, OverflowError) as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file: {str(error).splitlines()[0]}") from error


def weight_files(folder: Path, stem: str) -> dict[str, Path]:
    """Returns {variant: file or index of shards} of the files `<stem>[.variant].safetensors` in a folder; "" is the plain one.

    Raises: `CheckpointError` if there is none, saying what the folder holds.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} does not exist.")
    # If there are both a whole file and an index, diffusers reads the index; transformers, for text encoders, the file.
    whole_first = stem == TRANSFORMERS_STEM
    # Releases of diffusers put the variant at three different places in the name of an index.
    names = re.compile(rf"{re.escape(stem)}{VARIANT}\.safetensors(?:{VARIANT}\.index{VARIANT}\.json)?")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir(), key=lambda path: ((path.suffix == ".json") == whole_first, path.name)):
        match = names.fullmatch(path.name)
        if match:
            found.setdefault(match[1] or match[2] or match[3] or "", path)
    if not found:
        raise CheckpointError(f"{folder} has no {stem}.safetensors, the only format that is read; it holds {holdings(folder)}.")
    return found


def holdings(folder: Path) -> str:
    """Returns the names of what a folder holds, the first ones if they are many."""
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return (", ".join(names[:SHOWN_NAMES]) or "nothing") + more


def safetensors_files(folder: Path, stem: str, variant: str | None = None) -> list[Path]:
    """Returns the files of `<stem>[.variant].safetensors` in a folder: one, or the shards its index lists.

    Without `variant`, the plain file; if there is none, the only variant.
    Raises: `CheckpointError` if there is none, several fit, or the index leads out of the folder.
    """
    found = weight_files(folder, stem)
    if variant is None and len(found) > 1 and "" not in found:
        raise CheckpointError(f"{folder} has several variants; give variant=, one of {', '.join(found)}.")
    wanted = variant or ("" if "" in found else next(iter(found)))
    if wanted not in found:
        there = ", ".join(path.name for path in found.values())
        raise CheckpointError(f"{folder} has no {stem}.{variant}.safetensors; it has {there}.")
    path = found[wanted]
    return _shards(path) if path.suffix == ".json" else [path]


def _shards(index: Path) -> list[Path]:
    places = read_json(index).get("weight_map")
    names = sorted({str(name) for name in places.values()}) if isinstance(places, dict) else []
    if not names or any(Path(name).name != name or not name.endswith(".safetensors") for name in names):
        raise CheckpointError(f"{index}: weight_map must name .safetensors files of the same folder.")
    return [index.parent / name for name in names]
