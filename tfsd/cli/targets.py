"""Checks that a folder can be written, before a command spends minutes on its contents."""

import os
from pathlib import Path

from tfsd.errors import CheckpointError
from tfsd.storage.folders import require_replaceable


def require_target(folder: str, kind: str, *, overwrite: bool):
    """Raises: `CheckpointError` for a folder of `kind`, a key of `folders.KINDS`, that may not or cannot be written."""
    try:
        require_replaceable(folder, kind, overwrite=overwrite)
    except CheckpointError as error:
        raise CheckpointError(str(error).replace("overwrite=True", "--overwrite")) from error
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be written: {error.strerror or error}.") from error
    require_writable(Path(folder))


def require_writable(folder: Path):
    """Raises: `OSError` for a place where no folder can be made or written."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        raise OSError(f"{folder} cannot be a folder: {there} is a file. Give another folder.")
    if not os.access(there, os.W_OK):
        raise OSError(f"{folder} cannot be written: {there} is read-only for you. Give another folder.")
