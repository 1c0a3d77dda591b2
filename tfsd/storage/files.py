"""Checks of files before they are used: hashes, JSON of limited size, free space on the disk."""

import hashlib
import json
import os
import shutil
import stat
from pathlib import Path

from tfsd.errors import CheckpointError

_POINTER = b"version https://git-lfs"
MAX_JSON = 64 * 2**20  # bytes; the largest one read, a tokenizer's vocabulary, has 1 MB


def check_file(path: Path, *, sha256_hex: str, size: int | None):
    """Raises `CheckpointError` unless the file has this size (if known) and this SHA-256."""
    try:
        actual = path.stat().st_size
        if size is not None and actual != size:
            raise CheckpointError(f"{path} is damaged: it has {actual} bytes instead of {size}.")
        digest = sha256(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    if digest != sha256_hex:
        raise CheckpointError(f"{path} is damaged: its SHA-256 is {digest[:12]}... instead of {str(sha256_hex)[:12]}....")


def check_files(folder: Path, files, where: Path):
    """Checks the files {name: {"sha256", "bytes"}} that the manifest `where` lists of its folder.

    Raises: `CheckpointError` for an invalid list, a name outside of the folder, or a damaged file.
    """
    if not isinstance(files, dict) or not files:
        raise CheckpointError(f"{where} is damaged: it lists no files.")
    for name, entry in files.items():
        if Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name:
            raise CheckpointError(f"{where} names {name}, which is outside of the folder.")
        if not isinstance(entry, dict) or not {"sha256", "bytes"} <= set(entry):
            raise CheckpointError(f"{where} is damaged: it does not say what {name} is.")
        check_file(folder / name, sha256_hex=entry["sha256"], size=entry["bytes"])


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal, reading it in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def refuse_pointer(path: Path):
    """Raises `CheckpointError` for what `git clone` leaves in place of a large file."""
    try:
        with open(path, "rb") as file:
            pointer = file.read(len(_POINTER)) == _POINTER
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    if pointer:
        raise CheckpointError(f"{path} is a pointer of Git LFS, not the file itself. `git lfs pull` in its folder fetches that.")


def read_json(path: Path, *, infinite: bool = False) -> dict:
    """Returns the object in a JSON file; `infinite` accepts -Infinity, which Python's own writer makes.

    Raises: `CheckpointError` if it is missing, too large, or not a JSON object.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # reading a pipe would wait for its writer
            raise CheckpointError(f"{path} is not a regular file.")
        if found.st_size > MAX_JSON:
            raise CheckpointError(f"{path} is larger than {MAX_JSON} bytes.")
        values = json.loads(path.read_text(encoding="utf-8"), parse_constant=_constant if infinite else _no_constant)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {error}.") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} must hold a JSON object; it holds a {type(values).__name__}.")
    return values


def _no_constant(name: str):
    raise ValueError(f"{name} is not a number in JSON")


def _constant(name: str) -> float:
    return float("-inf") if name == "-Infinity" else _no_constant(name)


def require_space(path: str | Path, size: int):
    """Raises `CheckpointError` if the disk that would hold `path` has less than `size` bytes free."""
    folder = Path(os.path.abspath(path))
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < size:
        raise CheckpointError(f"{path} needs {size / 1e9:.2f} GB; only {free / 1e9:.2f} GB are free in {folder}.")
