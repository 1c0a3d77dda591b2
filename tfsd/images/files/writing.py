"""Writes files so that each appears complete or not at all, and defines the errors of image files."""

import contextlib
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tfsd.storage.atomic import scratch_folder


class ImageFileError(OSError):
    """An image that cannot be written, or a file that has no recipe to read."""


class NoRecipeError(ImageFileError):
    """An undamaged image file that has no such text."""


class FileThereError(ImageFileError):
    """A file that exists and may not be replaced."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} exists. Give another name, or allow overwriting it.")


def check_targets(paths: Sequence[Path]) -> None:
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
        with _scratch(folder) as scratch:
            _write(scratch / "probe", b"\0", folder)


def write_files(files: Mapping[Path, bytes], *, overwrite: bool = True) -> None:
    """Writes all files or, as far as a file system allows, none: each appears complete, under its name at last.

    Raises: `FileThereError` if one exists and `overwrite` is false; `ImageFileError` if one cannot be written.
    """
    if not overwrite:
        for path in files:
            if os.path.lexists(path):
                raise FileThereError(path)
    check_targets(list(files))
    new = []
    with contextlib.ExitStack() as stack:
        scratch = {folder: stack.enter_context(_scratch(folder)) for folder in dict.fromkeys(path.parent for path in files)}
        written = {path: scratch[path.parent] / path.name for path in files}
        try:
            for path, data in files.items():
                _write(written[path], data, path)
            for path in files:
                if overwrite:
                    _replace(written[path], path)
                else:
                    _add(written[path], path)
                    new.append(path)
        except BaseException:
            for path in new:
                with contextlib.suppress(OSError):
                    path.unlink()
            raise


@contextlib.contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    with contextlib.ExitStack() as stack:
        try:
            scratch = stack.enter_context(scratch_folder(folder))
        except OSError as error:
            raise ImageFileError(f"{folder} cannot be written: {error.strerror or error}.") from error
        yield scratch


def _add(written: Path, path: Path) -> None:
    """Gives a file its name, unless another file has it: of two programs that do so at once, one fails."""
    try:
        os.link(written, path)
    except FileExistsError as error:
        raise FileThereError(path) from error
    except OSError:  # not all file systems have links: there an empty file keeps the name for a moment
        _reserve(path)
        try:
            _replace(written, path)
        except BaseException:
            path.unlink(missing_ok=True)
            raise


def _reserve(path: Path) -> None:
    try:
        with open(path, "xb"):
            pass
    except FileExistsError as error:
        raise FileThereError(path) from error
    except OSError as error:
        raise ImageFileError(f"{path} cannot be written: {error.strerror or error}.") from error


def _replace(written: Path, path: Path) -> None:
    try:
        os.replace(written, path)
    except OSError as error:
        raise ImageFileError(f"{path} cannot be written: {error.strerror or error}.") from error


def _write(path: Path, data: bytes, shown: Path) -> None:
    try:
        with open(path, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # some file systems only find out here that the disk is full
    except OSError as error:
        raise ImageFileError(f"{shown} cannot be written: {error.strerror or error}.") from error
