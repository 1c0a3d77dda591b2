"""Writing files so that each appears complete or not at all, and the errors of picture files."""

import os
import stat
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path


class ImageFileError(OSError):
    """A picture that cannot be written, or a file that has no recipe to read."""


class FileThereError(ImageFileError):
    """A file that is there and may not be replaced."""

    def __init__(self, path: Path):
        super().__init__(f"{path} exists. Give another name, or allow overwriting it.")


def check_targets(paths: Sequence[Path]):
    """Finds out, before any work is done for them, whether files can be written.

    Raises: `ImageFileError` for a missing or read-only folder, for a folder in the place of a file, or no free space.
    """
    for path in paths:
        if not path.parent.is_dir():
            raise ImageFileError(f"{path} cannot be written: there is no folder {path.parent}. Make it first.")
        try:
            if stat.S_ISDIR(os.stat(path).st_mode):
                raise ImageFileError(f"{path} cannot be written: it is a folder. Give the name of a file.")
        except FileNotFoundError:
            pass
        except ImageFileError:
            raise
        except (OSError, ValueError) as error:  # a name too long, or with a zero byte
            raise ImageFileError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}.") from error
    for folder in dict.fromkeys(path.parent for path in paths):
        probe = folder / _partial_name()
        _write(probe, b"\0")
        probe.unlink()


def write_files(files: Mapping[Path, bytes], *, overwrite: bool = True):
    """Writes all files or, as far as a file system allows, none: each appears complete, under its name at last.

    Without `overwrite` an empty file keeps a name for the moment before its own takes its place.

    Raises: `FileThereError` if one exists and `overwrite` is false; `ImageFileError` if one cannot be written.
    """
    if not overwrite:
        for path in files:
            if os.path.lexists(path):
                raise FileThereError(path)
    check_targets(list(files))
    partial = {path: path.with_name(_partial_name()) for path in files}
    new = []
    try:
        for path, data in files.items():
            _write(partial[path], data, path)
        for path in [] if overwrite else files:
            _reserve(path)
            new.append(path)
        for path, written in partial.items():
            _replace(written, path)
    except BaseException:
        for path in new:
            path.unlink(missing_ok=True)
        raise
    finally:
        for written in partial.values():
            written.unlink(missing_ok=True)


def _reserve(path: Path):
    """Makes an empty file that keeps its name from others: of two programs that do so at once, one fails."""
    try:
        with open(path, "xb"):
            pass
    except FileExistsError as error:
        raise FileThereError(path) from error
    except OSError as error:
        raise ImageFileError(f"{path} cannot be written: {error.strerror or error}.") from error


def _replace(written: Path, path: Path):
    try:
        os.replace(written, path)
    except OSError as error:
        raise ImageFileError(f"{path} cannot be written: {error.strerror or error}.") from error


def _partial_name() -> str:
    return f".tfsd-{uuid.uuid4().hex[:12]}.partial"


def _write(path: Path, data: bytes, shown: Path | None = None):
    try:
        with open(path, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # some file systems only find out here that the disk is full
    except OSError as error:
        path.unlink(missing_ok=True)
        raise ImageFileError(f"{shown or path.parent} cannot be written: {error.strerror or error}.") from error
