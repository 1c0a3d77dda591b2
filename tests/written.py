"""Small folders of every kind, as this package writes them, and what they hold."""

import json
from pathlib import Path

from tfsd.storage.atomic import new_folder
from tfsd.storage.folders import KINDS


def write(folder: Path, text: str, kind: str = "model", *, overwrite: bool = False):
    """Writes a folder of a kind whose files hold `text`."""
    with new_folder(folder, kind=kind, overwrite=overwrite) as new:
        fill(new, text, kind)


def fill(folder: Path, text: str, kind: str = "model", *, names_kind: bool = True):
    """Puts the files of a folder of a kind into `folder`; the oldest manifests do not name their kind."""
    place = KINDS[kind].manifest
    files = [KINDS[kind].mark or "report.json", "sub/weights"]
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    listed = {name: {"sha256": "0" * 64, "bytes": len(text)} for name in files}
    manifest = {"format": 1, "tfsd": "0.1.0", "files": listed} | ({"kind": kind} if names_kind else {})
    (folder / place).parent.mkdir(parents=True, exist_ok=True)
    (folder / place).write_text(json.dumps(manifest))


def held(folder: Path, kind: str = "model") -> str | None:
    """What a complete folder of a kind holds; None if it is not there or not complete."""
    try:
        manifest = json.loads((folder / KINDS[kind].manifest).read_text())
        texts = {(folder / name).read_text() for name in manifest["files"]}
    except OSError:
        return None
    return texts.pop() if len(texts) == 1 else None
