"""The name under which an export is served, and the number of its version. Does not import TensorFlow."""

import re
from pathlib import Path

from tfsd.arguments.checks import whole
from tfsd.errors import CheckpointError


def served_name(model: str) -> str:
    """Returns the name under which a model is served: its name in characters that URLs and file systems allow."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", model).strip(".-") or "model"


def free_version(folder: Path, version: int | None) -> int:
    """Returns the number of a new version in the folder of a model; None is the next one.

    Raises: `TypeError`, `ValueError` for an invalid number; `CheckpointError` if the version exists.
    """
    taken = [int(path.name) for path in folder.glob("[0-9]*") if path.name.isdigit()] if folder.is_dir() else []
    version = max(taken, default=0) + 1 if version is None else whole("version", version, 1, 2**63 - 1)
    if version in taken:
        raise CheckpointError(f"{folder} has a version {version}. Give another one; servers take the highest.")
    return version
