import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from faults import entries, refusals
from written import fill, held, write

from tfsd.errors import CheckpointError, TfsdWarning
from tfsd.storage.atomic import new_file, new_folder, scratch_folder, set_aside
from tfsd.storage.folders import KINDS
from tfsd.storage.model_folders import resolve

HERE = Path(__file__).parent
LEGACY = {"model": "spec.json", "saved_model": "saved_model.pb"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_its_kind_is_replaced_when_asked(tmp_path, kind):
    write(tmp_path / "m", "first", kind)
    with pytest.raises(CheckpointError, match=r"m exists and is not empty\. Give overwrite=True to replace this "):
        write(tmp_path / "m", "second", kind)
    assert held(tmp_path / "m", kind) == "first"
    write(tmp_path / "m", "second", kind, overwrite=True)
    assert held(tmp_path / "m", kind) == "second" and entries(tmp_path) == ["m"]


@pytest.mark.parametrize("kind", LEGACY)
def test_a_manifest_without_a_kind_is_known_by_what_it_lists(tmp_path, kind):
    (tmp_path / "m").mkdir()
    fill(tmp_path / "m", "old", kind, names_kind=False)
    write(tmp_path / "m", "new", kind, overwrite=True)
    assert held(tmp_path / "m", kind) == "new"


def test_the_embedded_model_is_known_as_a_model_folder(tmp_path):
    embedded = Path(__file__).parents[2] / "tfsd/assets/tiny"
    names = ["manifest.json", *json.loads((embedded / "manifest.json").read_text())["files"]]
    (tmp_path / "tiny").mkdir()
    for name in names:
        shutil.copyfile(embedded / name, tmp_path / "tiny" / name)
    write(tmp_path / "tiny", "new", overwrite=True)
    assert held(tmp_path / "tiny") == "new"


EXTENSION = {"manifest_version": 3, "name": "Tabs", "version": "1.0", "background": {"service_worker": "a.js"}}


@pytest.mark.parametrize(
    "manifest",
    [
        EXTENSION,
        {"name": "App", "icons": [], "start_url": "/"},
        {"format": 1, "tfsd": "0.1.0"},
        {"format": 1, "tfsd": "0.1.0", "files": ["spec.json"]},
        {"format": "1", "tfsd": "0.1.0", "files": {"spec.json": {}}},
        {"format": True, "tfsd": "0.1.0", "files": {"spec.json": {}}},
        {"format": 1, "files": {"spec.json": {}}},
        {"format": 1, "tfsd": "0.1.0", "files": {"x": {}}},
        {"format": 1, "tfsd": "0.1.0", "kind": ["model"], "files": {"spec.json": {}}},
    ],
    ids=["extension", "app", "no-files", "list", "text", "true", "no-tfsd", "no-kind", "odd-kind"],
)
@pytest.mark.parametrize("kind", ["model", "device"])
def test_a_folder_with_a_manifest_of_another_program_is_never_replaced(tmp_path, manifest, kind):
    folder = tmp_path / "extension"
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "a.js").write_text("ours")
    with pytest.raises(CheckpointError, match=r"extension is not replaced: its manifest\.json is not that of a "):
        write(folder, "new", kind, overwrite=True)
    assert entries(folder) == ["a.js", "manifest.json"] and entries(tmp_path) == ["extension"]


@pytest.mark.parametrize(("here", "wanted"), [("device", "model"), ("model", "device")])
def test_a_folder_of_another_kind_of_ours_is_not_replaced(tmp_path, here, wanted):
    write(tmp_path / "m", "first", here)
    with pytest.raises(CheckpointError, match=f"not that of a {KINDS[wanted].shown} that tfsd wrote"):
        write(tmp_path / "m", "second", wanted, overwrite=True)
    assert held(tmp_path / "m", here) == "first"


BROKEN = {
    "huge": b" " * (64 * 2**20 + 1),
    "list": b"[]",
    "deep": b'{"a":' * 200_000,
    "digits": b'{"format": ' + b"9" * 10_000 + b"}",
    "no text": b"\xff\xfe\x00",
    "empty": b"",
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_manifest_that_cannot_be_read_keeps_its_folder(tmp_path, content):
    (tmp_path / "m").mkdir()
    (tmp_path / "m/manifest.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"m/manifest\.json") as caught:
        write(tmp_path / "m", "new", overwrite=True)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    assert (tmp_path / "m/manifest.json").read_bytes() == content


@pytest.mark.parametrize("name", ["notes.txt", "sub/notes.txt", ".hidden", "report/page.html", os.fsdecode(b"caf\xe9")])
def test_a_file_that_the_manifest_does_not_list_keeps_its_folder(tmp_path, name):
    write(tmp_path / "m", "first")
    (tmp_path / "m" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "m" / name).write_text("mine")
    with pytest.raises(CheckpointError, match=re.escape(f"it holds {name}, which its manifest.json does not list")):
        write(tmp_path / "m", "second", overwrite=True)
    assert held(tmp_path / "m") == "first" and (tmp_path / "m" / name).read_text() == "mine"


def test_a_link_in_a_folder_of_ours_is_a_file_of_the_users(tmp_path):
    write(tmp_path / "m", "first")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/diary.txt").write_text("dear diary")
    (tmp_path / "m/link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="it holds link, which"):
        write(tmp_path / "m", "second", overwrite=True)
    shutil.rmtree(tmp_path / "m/sub")
    (tmp_path / "m/link").rename(tmp_path / "m/sub")  # a name that is listed, as a folder
    with pytest.raises(CheckpointError, match="it holds sub, which"):
        write(tmp_path / "m", "second", overwrite=True)
    assert (tmp_path / "elsewhere/diary.txt").read_text() == "dear diary"


def test_many_unlisted_files_are_not_all_named(tmp_path):
    write(tmp_path / "m", "first")
    for i in range(9):
        (tmp_path / f"m/{i}").touch()
    with pytest.raises(CheckpointError, match="it holds 0, 1, 2 and 6 more, which"):
        write(tmp_path / "m", "second", overwrite=True)


def test_a_file_that_appears_while_the_new_folder_is_made_is_kept(tmp_path):
    write(tmp_path / "m", "first")
    with pytest.raises(CheckpointError, match=r"it holds notes\.txt"):
        with new_folder(tmp_path / "m", kind="model", overwrite=True) as new:
            fill(new, "second")
            (tmp_path / "m/notes.txt").write_text("mine")
    assert held(tmp_path / "m") == "first" and (tmp_path / "m/notes.txt").read_text() == "mine"
    assert entries(tmp_path) == ["m"]


def test_of_two_writers_without_overwrite_the_first_wins(tmp_path):
    with pytest.raises(CheckpointError, match="exists and is not empty"):
        with new_folder(tmp_path / "m", kind="model") as new:
            fill(new, "second")
            write(tmp_path / "m", "first")
    assert held(tmp_path / "m") == "first" and entries(tmp_path) == ["m"]


def test_of_two_writers_with_overwrite_the_last_wins(tmp_path):
    with new_folder(tmp_path / "m", kind="model", overwrite=True) as new:
        fill(new, "second")
        write(tmp_path / "m", "first", overwrite=True)
    assert held(tmp_path / "m") == "second" and entries(tmp_path) == ["m"]


@pytest.mark.parametrize("there", [True, False])
def test_a_link_is_followed(tmp_path, there):
    if there:
        write(tmp_path / "real", "first")
    (tmp_path / "link").symlink_to("real")
    write(tmp_path / "link", "second", overwrite=True)
    assert (tmp_path / "link").is_symlink() and held(tmp_path / "real") == "second"
    assert entries(tmp_path) == ["link", "real"]


def test_a_link_to_itself_is_one_line(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(CheckpointError, match="loop cannot be written: ") as caught:
        write(tmp_path / "loop", "new", overwrite=True)
    assert "\n" not in str(caught.value) and entries(tmp_path) == ["loop"]


def test_a_slash_at_the_end_changes_nothing(tmp_path):
    write(f"{tmp_path}/m/", "first")
    write(f"{tmp_path}/m//", "second", overwrite=True)
    assert held(tmp_path / "m") == "second" and entries(tmp_path) == ["m"]


@pytest.mark.parametrize("target", [".", "..", ""])
def test_the_current_folder_is_not_replaced(tmp_path, monkeypatch, target):
    """A shell in it would be left in a folder that is no more."""
    (tmp_path / "a/b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a/b")
    with pytest.raises(CheckpointError, match="cannot be replaced: it is the current folder, or holds it"):
        write(target, "new", overwrite=True)
    assert (tmp_path / "a/b").is_dir()


def test_a_folder_may_lie_in_another_one_of_ours(tmp_path):
    write(tmp_path / "m", "outer")
    write(tmp_path / "m/inner", "inner")
    assert held(tmp_path / "m/inner") == "inner"
    with pytest.raises(CheckpointError, match="it holds inner/manifest.json, inner/spec.json, inner/sub/weights, which"):
        write(tmp_path / "m", "new", overwrite=True)


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems refuse such names")
def test_names_that_are_no_text_work(tmp_path):
    folder = tmp_path / os.fsdecode(b"mod\xe8le")
    write(folder, "first")
    write(folder, "second", overwrite=True)
    assert held(folder) == "second"


def test_what_was_private_stays_so(tmp_path):
    (tmp_path / "m").mkdir(mode=0o700)
    write(tmp_path / "m", "first")
    write(tmp_path / "m", "second", overwrite=True)
    assert (tmp_path / "m").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("forever", [False, True], ids=["one-call", "all-later-calls"])
def test_whichever_call_fails_the_old_folder_or_the_new_one_is_complete(tmp_path, forever):
    folder = tmp_path / "m"

    def reset():
        shutil.rmtree(folder, ignore_errors=True)
        for left in tmp_path.iterdir():
            shutil.rmtree(left)
        write(folder, "old")

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for call, error in refusals(lambda: write(folder, "new", overwrite=True), reset, forever=forever):
            shown = held(folder)
            if error is None:
                assert shown == "new", call
            elif shown is None:
                place = re.search(r"complete in (\S+);", str(error))
                assert place and held(Path(place[1])) == "old" and set_aside(folder) == Path(place[1]), call
            else:
                assert shown == "old" and isinstance(error, CheckpointError | OSError), call
                assert "Input/output error" in str(error), call
            hidden = [name for name in entries(tmp_path) if name != "m" and ".partial" not in name]
            messages = [str(one.message) for one in told] + [str(error)]
            assert all(any(name in message for message in messages) for name in hidden), call
            told.clear()


def test_the_last_rename_that_fails_twice_leaves_the_old_folder_and_says_where(tmp_path, monkeypatch):
    write(tmp_path / "m", "old")
    rename, renamed = os.rename, []

    def refuse(source, target):
        renamed.append(target)
        if len(renamed) > 1:
            raise PermissionError(13, "Permission denied", source)
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(CheckpointError, match="could not be put back: Permission denied") as caught:
        write(tmp_path / "m", "new", overwrite=True)
    monkeypatch.undo()
    (left,) = tmp_path.iterdir()
    assert held(left) == "old" and f"complete in {left}; rename it to m" in str(caught.value)
    with pytest.warns(TfsdWarning, match="m was missing, since an interrupted run had moved it aside; it is back"):
        write(tmp_path / "m", "newer", overwrite=True)
    assert held(tmp_path / "m") == "newer" and entries(tmp_path) == ["m"]


def test_a_folder_that_is_written_is_not_taken_for_an_abandoned_one(tmp_path):
    with new_folder(tmp_path / "m", kind="model") as new:
        fill(new, "first")
        write(tmp_path / "m", "second")  # in another process, it would look the same
        assert new.is_dir()
        shutil.rmtree(tmp_path / "m")
    assert held(tmp_path / "m") == "first"


@pytest.mark.parametrize("forever", [False, True], ids=["one-call", "all-later-calls"])
def test_whichever_call_fails_the_old_file_or_the_new_one_is_complete(tmp_path, forever):
    path = tmp_path / "f"

    def save():
        with new_file(path) as file:
            file.write(b"new")

    for call, error in refusals(save, lambda: path.write_bytes(b"old"), forever=forever):
        assert path.read_bytes() == (b"new" if error is None else b"old"), call
        assert error is None or isinstance(error, OSError), call


def test_loading_a_folder_that_was_moved_aside_says_where_it_is(tmp_path):
    write(tmp_path / "m", "old")
    (tmp_path / "m").rename(tmp_path / ".m.0123abcd.old")
    with pytest.raises(CheckpointError, match=r"m is missing: an interrupted run moved it to .*/\.m\.0123abcd\.old\. Rename"):
        resolve(tmp_path / "m")


def test_without_locks_nothing_is_put_back_or_removed_and_warnings_say_what_is_there(tmp_path, monkeypatch):
    """Network file systems without locks, and Windows: another process may be at work."""
    monkeypatch.setattr("tfsd.storage.atomic.fcntl", None)
    write(tmp_path / "m", "old")
    (tmp_path / "m").rename(tmp_path / ".m.0123abcd.old")
    (tmp_path / ".m.01234567.partial").mkdir()
    with pytest.warns(TfsdWarning, match=r"\.m\.0123abcd\.old holds earlier contents of m"):
        write(tmp_path / "m", "new")
    assert held(tmp_path / "m") == "new" and held(tmp_path / ".m.0123abcd.old") == "old"
    assert (tmp_path / ".m.01234567.partial").is_dir()


def test_a_folder_that_cannot_be_made_names_the_one_that_refuses(tmp_path, monkeypatch):
    def refuse(path, *_):
        raise OSError(30, "Read-only file system", os.fspath(path))

    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(CheckpointError) as caught:
        write(tmp_path / "m", "new")
    assert str(caught.value) == f"{tmp_path / 'm'} cannot be written: Read-only file system ({tmp_path})."


@pytest.mark.skipif(sys.platform == "win32", reason="processes that fork")
def test_a_process_killed_at_any_call_leaves_what_the_next_run_recovers(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, HERE.parents[:2]))}
    command = [sys.executable, HERE / "killed.py", tmp_path]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) > 20  # calls that it was killed at


@pytest.mark.parametrize("end", ["old", "partial", "trash"])
def test_links_and_pipes_with_the_names_of_what_is_left_are_left_alone(tmp_path, end):
    write(tmp_path / "other", "theirs")
    before = entries(tmp_path / "other")
    (tmp_path / f".m.00000001.{end}").symlink_to(tmp_path / "other")
    (tmp_path / ".tfsd-00000001.partial").symlink_to(tmp_path / "other")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / f".m.00000002.{end}")
        os.mkfifo(tmp_path / ".tfsd-00000002.partial")
    there = entries(tmp_path)
    write(tmp_path / "m", "new")
    with scratch_folder(tmp_path):
        pass
    assert held(tmp_path / "m") == "new" and held(tmp_path / "other") == "theirs"
    assert entries(tmp_path / "other") == before and sorted([*there, "m"]) == sorted(entries(tmp_path))


@pytest.mark.parametrize("files", [None, 5, [["a"]], [{}], "a"], ids=str)
def test_what_is_left_of_a_folder_with_a_damaged_manifest_is_no_error(tmp_path, files):
    left = tmp_path / ".m.00000001.trash"
    left.mkdir()
    (left / "manifest.json").write_text(json.dumps({"files": files}))
    (left / "a").write_text("theirs")
    write(tmp_path / "m", "new")
    assert held(tmp_path / "m") == "new" and (left / "a").read_text() == "theirs"
