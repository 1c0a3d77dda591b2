import os
from pathlib import Path

import pytest
from faults import entries, refusals

from tfsd.images.files import ImageFileError, write_files

NAMES = ("a.png", "b.png", "c.png")


def written(place: Path) -> list[bytes]:
    return [(place / name).read_bytes() for name in NAMES if (place / name).exists()]


@pytest.mark.parametrize("forever", [False, True], ids=["one-call", "all-later-calls"])
def test_whichever_call_fails_every_replaced_picture_is_the_old_one_or_the_new_one(tmp_path, forever):
    def reset():
        for name in NAMES:
            (tmp_path / name).write_bytes(b"old")

    def save():
        write_files({tmp_path / name: b"new" for name in NAMES})

    for call, error in refusals(save, reset, forever=forever):
        found = written(tmp_path)
        assert found == [b"new"] * 3 if error is None else len(found) == 3 and set(found) <= {b"old", b"new"}, call
        assert error is None or isinstance(error, ImageFileError) and "Input/output error" in str(error), call


@pytest.mark.parametrize("forever", [False, True], ids=["one-call", "all-later-calls"])
def test_whichever_call_fails_new_pictures_are_all_there_or_none_is(tmp_path, forever):
    def reset():
        for name in NAMES:
            (tmp_path / name).unlink(missing_ok=True)

    def save():
        write_files({tmp_path / name: b"new" for name in NAMES}, overwrite=False)

    for call, error in refusals(save, reset, forever=forever):
        found = written(tmp_path)
        assert found == [b"new"] * 3 if error is None else set(found) <= {b"new"}, call  # complete at least, if not removable
        assert forever or error is None or not found, call
        assert error is None or isinstance(error, ImageFileError), call


def test_a_file_system_without_links_gets_its_pictures_as_well(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    write_files({tmp_path / name: b"new" for name in NAMES}, overwrite=False)
    assert written(tmp_path) == [b"new"] * 3 and entries(tmp_path) == sorted(NAMES)
