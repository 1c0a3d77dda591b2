"""The folders that this package writes: how they are recognized, and which of them may be replaced."""

import contextlib
import os
from pathlib import Path
from typing import NamedTuple

from tfsd.errors import CheckpointError
from tfsd.storage.files import read_json

_SHOWN_NAMES = 3  # of files in messages


class Kind(NamedTuple):
    """A kind of folder that this package writes. `mark`: a file that its manifest lists, if its oldest ones name no kind."""

    shown: str
    manifest: str
    mark: str | None


KINDS = {
    "model": Kind("model folder", "manifest.json", "spec.json"),
    "device": Kind("bundle for phones", "manifest.json", None),
    "saved_model": Kind("export for TensorFlow Serving", "assets.extra/manifest.json", "saved_model.pb"),
}


def own_files(folder: Path, kind: str) -> list[str]:
    """Returns the files of a folder of ours, all of which its manifest lists; the manifest comes last.

    Raises: `CheckpointError` unless the manifest is of this kind and lists all files that the folder holds.
    """
    shown, place, mark = KINDS[kind]
    keep = f"{folder} is not replaced"
    if not (folder / place).is_file():
        raise CheckpointError(f"{keep}: it is not empty and no {shown}, as it has no {place}. Give another folder.")
    manifest = read_json(folder / place)
    files, number = manifest.get("files"), manifest.get("format")
    ours = type(number) is int and number > 0 and isinstance(manifest.get("tfsd"), str)
    if not ours or not isinstance(files, dict) or manifest.get("kind", kind if mark in files else None) != kind:
        raise CheckpointError(f"{keep}: its {place} is not that of a {shown} that tfsd wrote. Give another folder.")
    found = contents(folder)
    if foreign := sorted(found - set(files) - {place}):
        more = f" and {len(foreign) - _SHOWN_NAMES} more" if len(foreign) > _SHOWN_NAMES else ""
        names = ", ".join(foreign[:_SHOWN_NAMES]) + more
        raise CheckpointError(f"{keep}: it holds {names}, which its {place} does not list. Move that, or give another folder.")
    return [*sorted(found - {place}), place]


def contents(folder: Path) -> set[str]:
    """Returns the files in a folder and its subfolders, and the links, wherever they lead."""
    found: set[str] = set()
    for root, folders, files in os.walk(folder, onerror=_raise):
        links = [name for name in folders if os.path.islink(os.path.join(root, name))]
        found.update(Path(root, name).relative_to(folder).as_posix() for name in [*files, *links])
    return found


def _raise(error: OSError):
    raise error


def listed_files(folder: Path) -> list[str]:
    """Returns the files that are there and that the manifest of a folder of any kind lists, and the manifest last."""
    for _, place, _ in KINDS.values():
        with contextlib.suppress(CheckpointError):
            files = read_json(folder / place).get("files")
            return [*sorted(contents(folder) & set(files if isinstance(files, dict) else ())), place]
    return []


def require_replaceable(folder: str | Path, kind: str, *, overwrite: bool = True) -> list[str]:
    """Returns the files that a folder of ours consists of; none if it is empty or not there.

    Raises: `CheckpointError` if it may not be replaced.
    """
    folder = Path(os.path.realpath(folder))
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder} is a file; give the folder to write.")
    if not folder.is_dir():
        return []
    if any(folder.iterdir()) and not overwrite:
        advice = "Remove it, or give another folder."
        with contextlib.suppress(CheckpointError, OSError):
            require_replaceable(folder, kind)
            advice = f"Give overwrite=True to replace this {KINDS[kind].shown}, or another folder."
        raise CheckpointError(f"{folder} exists and is not empty. {advice}")
    if os.path.ismount(folder) or _is_current(folder):
        what = "a mount point" if os.path.ismount(folder) else "the current folder, or holds it"
        raise CheckpointError(f"{folder} cannot be replaced: it is {what}. Give a folder that is not there yet.")
    return own_files(folder, kind) if any(folder.iterdir()) else []


def _is_current(folder: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):  # the current folder itself was removed
        return folder in (here := Path.cwd(), *here.parents)
    return False
