"""Files and folders that appear complete or not at all, and the recovery of what a killed process left.

New contents are written under a hidden name beside their place, `.NAME.MARK.partial`, flushed to the disk and renamed. A
folder that is replaced is first renamed to `.NAME.MARK.old`, and to `.NAME.MARK.trash` once the new one is in its place;
only then are its files removed. So `old` is always a complete folder, while `partial` and `trash` are never needed.
"""

import contextlib
import os
import re
import shutil
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

from tfsd.errors import CheckpointError, TfsdWarning
from tfsd.storage.folders import contents, listed_files, require_replaceable

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

T = TypeVar("T")


@contextlib.contextmanager
def new_folder(folder: str | Path, *, kind: str, overwrite: bool = False) -> Iterator[Path]:
    """Yields an empty folder beside `folder` that takes its place if the body succeeds and vanishes if it fails.

    `overwrite` replaces a folder of this kind, a key of `KINDS`, that holds nothing but the files its manifest lists; this
    is checked before the body runs, and again after. A link is followed. What a killed process left beside `folder` is put
    back or removed first.
    Raises: `CheckpointError` if `folder` has contents that may not be replaced, or the disk refuses.
    """
    given, folder = folder, Path(os.path.realpath(folder))
    new, made = _beside(folder, "partial"), [parent for parent in folder.parents if not parent.exists()]
    try:
        recover(folder)
        require_replaceable(folder, kind, overwrite=overwrite)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _made_and_locked(new, os.mkdir):
            yield new
            _flush(new)
            with _locked(folder.parent, wait=True):  # one after the other, and never while another process recovers
                _put_in_place(new, folder, kind, overwrite)
    except BaseException as error:
        shutil.rmtree(new, ignore_errors=True)
        with contextlib.suppress(OSError):  # the first that is not empty ends it
            for parent in made:
                parent.rmdir()
        if isinstance(error, OSError):
            raise CheckpointError(f"{given} cannot be written: {_reason(error, folder, new)}.") from error
        raise


def _put_in_place(new: Path, folder: Path, kind: str, overwrite: bool):
    files = require_replaceable(folder, kind, overwrite=overwrite)
    with contextlib.suppress(OSError):
        new.chmod(folder.stat().st_mode)  # what was private stays so
    if not files:
        if os.name == "nt" and folder.exists():  # elsewhere renaming replaces an empty folder
            folder.rmdir()
        os.rename(new, folder)  # fails if it is not empty
        _flush_names(folder.parent)
        return
    old = _beside(folder, "old")
    try:
        os.rename(folder, old)
        os.rename(new, folder)
    except BaseException as error:
        if not old.exists():
            raise
        try:
            os.rename(old, folder)
        except OSError:
            reason = _reason(error, folder, new)
            raise CheckpointError(
                f"{folder} could not be replaced, and what it held could not be put back: {reason}. That is complete in {old}; "
                f"rename it to {folder.name}."
            ) from error
        raise
    _flush_names(folder.parent)
    _discard(old, folder, files)


def _discard(old: Path, folder: Path, files: list[str]):
    """Removes a folder that was replaced, and warns of what cannot be removed."""
    trash = old.with_suffix(".trash")
    try:
        os.rename(old, trash)
        _remove(trash, files)
    except OSError as error:
        left = trash if trash.exists() else old
        reason = _reason(error, left)
        warnings.warn(
            f"{folder} was replaced, but of what it held before some stays in {left}: {reason}.", TfsdWarning, stacklevel=2
        )


def _remove(folder: Path, files: list[str]):
    for name in files:
        (folder / name).unlink(missing_ok=True)
    for root, *_ in os.walk(folder, topdown=False):
        os.rmdir(root)  # fails where something appeared that no manifest lists


def recover(path: str | Path):
    """Puts back or removes what killed processes left beside a file or folder, and warns of what is put back or stays.

    What another process is writing is left alone.
    """
    path = Path(os.path.realpath(path))
    with contextlib.suppress(OSError), _locked(path.parent, wait=True) as locked:
        for end, left in _left_beside(path):
            with contextlib.suppress(OSError):
                _recover_one(path, end, left, locked=bool(locked))


def _recover_one(path: Path, end: str, left: Path, *, locked: bool):
    if end == "trash":
        _remove(left, listed_files(left))
    elif end == "partial":
        if _is_abandoned(left):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    elif not os.path.lexists(path) and locked:
        os.rename(left, path)
        warnings.warn(f"{path} was missing, since an interrupted run had moved it aside; it is back.", TfsdWarning, stacklevel=4)
    else:
        warnings.warn(
            f"{left} holds earlier contents of {path.name}, which an interrupted run moved aside.", TfsdWarning, stacklevel=4
        )


def set_aside(path: str | Path) -> Path | None:
    """Returns where the contents of a missing folder are, if an interrupted run moved them aside."""
    path = Path(os.path.realpath(path))
    with contextlib.suppress(OSError):
        return next((left for end, left in _left_beside(path) if end == "old"), None)
    return None


def _left_beside(path: Path) -> list[tuple[str, Path]]:
    """Returns what killed processes left beside a file or folder: never links or pipes, which nobody here makes."""
    name = re.compile(re.escape(f".{path.name}.") + "[0-9a-f]{8}[.](partial|old|trash)")
    found = ((name.fullmatch(entry), entry) for entry in os.listdir(path.parent))
    left = ((match[1], path.parent / entry) for match, entry in found if match)
    return sorted((end, one) for end, one in left if not one.is_symlink() and (one.is_dir() or one.is_file()))


def _beside(path: Path, end: str) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.{end}")


@contextlib.contextmanager
def new_file(path: str | Path) -> Iterator[BinaryIO]:
    """Yields a file beside `path` that takes its place, flushed to the disk, if the body succeeds and vanishes if it fails.

    A link is followed. Raises: `OSError` if the disk refuses.
    """
    path = Path(os.path.realpath(path))
    recover(path)
    new = _beside(path, "partial")
    try:
        with _made_and_locked(new, lambda new: open(new, "xb")) as file:
            with file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(new, path)
    except BaseException:
        with contextlib.suppress(OSError):
            new.unlink()
        raise
    _flush_names(path.parent)


@contextlib.contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """Yields a new hidden folder in `parent`, removed at the end with all that is in it, and those of killed processes first.

    Raises: `OSError` if it cannot be made.
    """
    name = re.compile("[.]tfsd-[0-9a-f]{8}[.]partial")
    with contextlib.suppress(OSError), _locked(parent, wait=True):
        for left in filter(name.fullmatch, os.listdir(parent)):
            if (parent / left).is_dir() and not (parent / left).is_symlink() and _is_abandoned(parent / left):
                shutil.rmtree(parent / left, ignore_errors=True)
    new = parent / f".tfsd-{uuid.uuid4().hex[:8]}.partial"
    try:
        with _made_and_locked(new, os.mkdir):
            yield new
    finally:
        shutil.rmtree(new, ignore_errors=True)


@contextlib.contextmanager
def _made_and_locked(new: Path, make: Callable[[Path], T]) -> Iterator[T]:
    """Makes a file or folder and holds its lock, by which `recover` of other processes sees that it is not abandoned."""
    with contextlib.ExitStack() as stack:
        with _locked(new.parent, wait=True):  # `recover` holds it, too
            made = make(new)
            stack.enter_context(_locked(new, wait=True))
        yield made


@contextlib.contextmanager
def _locked(path: Path, *, wait: bool) -> Iterator[bool | None]:
    """Holds the lock of a file or folder, which ends with the process at the latest.

    Yields whether it was free, or None where there are no such locks.
    """
    descriptor, locked = None, None
    if fcntl is not None:
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                locked = True
            except BlockingIOError:
                locked = False
    try:
        yield locked
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _is_abandoned(path: Path) -> bool:
    """Tells whether no process holds the lock of a file or folder."""
    with _locked(path, wait=False) as locked:
        return locked is True


def _flush(folder: Path):
    """Makes sure that all files of a folder are on the disk, not in the system's cache alone."""
    for name in contents(folder):
        with open(folder / name, "rb+") as file:
            os.fsync(file.fileno())
    for root, *_ in os.walk(folder):
        _flush_names(Path(root))


def _flush_names(folder: Path):
    with contextlib.suppress(OSError):  # Windows and some network file systems cannot
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _reason(error: BaseException, folder: Path, new: Path | None = None) -> str:
    """Returns why the system refused to write `folder`, and which other place it refused, if it did."""
    place = getattr(error, "filename", None)
    place = Path(os.fsdecode(place)) if isinstance(place, (str, bytes)) else folder
    if place == new:  # it cannot be made or renamed
        place = folder.parent
    inside = any(one in (place, *place.parents) for one in (folder, new))
    return f"{getattr(error, 'strerror', None) or error or type(error).__name__}{'' if inside else f' ({place})'}"
