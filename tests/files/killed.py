"""Writes folders, files and pictures in processes that are killed at each call, and checks what is left. Needs no threads."""

import shutil
import sys
import warnings
from pathlib import Path

from faults import entries, kills
from written import held, write

from tfsd.images.files import write_files
from tfsd.storage.atomic import new_file, set_aside


def check_folders(place: Path) -> int:
    """Returns at how many calls a process that replaces a folder was killed."""
    folder, calls = place / "m", []

    def reset():
        shutil.rmtree(place)
        place.mkdir()
        write(folder, "old")

    for call in kills(lambda: write(folder, "new", overwrite=True), reset):
        calls.append(call)
        left = held(folder)
        assert left in ("old", "new") or held(set_aside(folder)) == "old", call
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            write(folder, "newer", overwrite=True)
        assert held(folder) == "newer", call
        hidden = [name for name in entries(place) if name != "m"]
        assert not hidden or held(place / hidden[0]) == "old" and hidden[0] in str(told[0].message), (call, hidden)
        assert left or "it is back" in str(told[0].message), call
    return len(calls)


def check_files(place: Path) -> int:
    """Returns at how many calls a process that replaces a file was killed."""
    path, calls = place / "f", []

    def save(content: bytes):
        with new_file(path) as file:
            file.write(content)

    for call in kills(lambda: save(b"new"), lambda: save(b"old")):
        calls.append(call)
        assert path.read_bytes() in (b"old", b"new"), call
        save(b"newer")
        assert path.read_bytes() == b"newer" and entries(place) == ["f"], call
    return len(calls)


def check_pictures(place: Path) -> int:
    """Returns at how many calls a process that writes new pictures was killed."""
    names, calls = ("a.png", "b.png"), []

    def reset():
        for left in place.glob("*.png"):
            left.unlink()

    def save(content: bytes):
        write_files({place / name: content for name in names}, overwrite=False)

    for call in kills(lambda: save(b"new"), reset):
        calls.append(call)
        found = [path.read_bytes() for path in place.glob("*.png")]
        assert set(found) <= {b"new"}, call
        reset()
        save(b"newer")
        assert entries(place) == ["a.png", "b.png"], call
    return len(calls)


if __name__ == "__main__":
    made = [Path(sys.argv[1], name) for name in ("folders", "files", "pictures")]
    for one in made:
        one.mkdir()
    print(check_folders(made[0]) + check_files(made[1]) + check_pictures(made[2]))
