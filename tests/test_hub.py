import hashlib
import http.server
import io
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pytest
from faults import refusals

from tfsd.converters import convert
from tfsd.converters.importers.kerascv import FILES, export
from tfsd.errors import CheckpointError
from tfsd.hub import PUBLISHED, Published, PublishedFile, download, notice
from tfsd.hub import fetch as fetch_file
from tfsd.models import part_shapes
from tfsd.specs import PRESETS, CLIPSpec, ModelSpec, UNetSpec, VAESpec, to_json
from tfsd.storage.model_folders import DOWNLOADABLE, load_spec, resolve

ROOT = Path(__file__).parents[1]
REPOSITORY = "someone/small-model"
SMALL = ModelSpec(
    name="sd-1.4",
    text=(CLIPSpec(vocabulary=40, length=8, width=8, layers=1, heads=2, mlp_width=16),),
    denoiser=UNetSpec(channels=(8,), residuals=1, attention=(False,), heads=(2,), context_width=8, groups=4),
    vae=VAESpec(channels=(8,), residuals=1, groups=4),
    licence="Licence of the Test",
)


class Hub(http.server.BaseHTTPRequestHandler):
    """What the Hugging Face Hub answers for files: HEAD with their size and hash, GET with ranges."""

    files: dict[str, bytes] = {}
    log: list[tuple[str, str, str | None, str | None]] = []
    cut_after: int | None = None  # bytes after which the connection breaks, as if the computer were switched off
    gate: threading.Event  # once clear, the first file stops in its middle until it is set

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _answer(self, body: bool):
        name = self.path.rsplit("/", 1)[1]
        self.log.append((self.command, name, self.headers.get("Range"), self.headers.get("Authorization")))
        if self.path != f"/{REPOSITORY}/resolve/main/{name}" or name not in self.files:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data, start = self.files[name], 0
        if body and "Range" in self.headers:
            start = int(self.headers["Range"].removeprefix("bytes=").split("-")[0])
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.end_headers()
        if body:
            half = len(data) // 2 if start == 0 else start
            self.wfile.write(data[start : half if self.cut_after is None else self.cut_after])
            if self.cut_after is None:
                self.gate.wait(300)
                self.wfile.write(data[half:])

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> dict[str, bytes]:
    """A small model in KerasCV's files."""
    folder, random = tmp_path_factory.mktemp("published"), np.random.default_rng(0)
    for part, shapes in part_shapes(SMALL).items():
        tensors = {path: random.normal(size=shape).astype("float32") for path, shape in shapes.items()}
        export(folder / FILES[part], part, SMALL, tensors)
    return {name: (folder / name).read_bytes() for name in FILES.values()}


@pytest.fixture
def hub(source):
    """The handler class of a server on this machine that serves the small model, with its address."""
    handler = type("Handler", (Hub,), {"files": dict(source), "log": [], "gate": threading.Event()})
    handler.gate.set()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    handler.address = f"http://127.0.0.1:{server.server_port}"
    yield handler
    server.shutdown()
    server.server_close()


@pytest.fixture
def published(source) -> dict[str, Published]:
    files = tuple(
        PublishedFile(REPOSITORY, name, hashlib.sha256(data).hexdigest(), None if name == FILES["encoder"] else len(data))
        for name, data in source.items()
    )
    return {"sd-1.4": Published(SMALL, files, "https://licence.invalid", "Be kind.")}


@pytest.fixture
def fetch(hub, published, tmp_path):
    """`download` from that server into an empty cache."""

    def run(**options):
        options = {"accept_licence": True, "endpoint": hub.address, "progress": False, **options}
        return download("sd-1.4", convert=convert, cache=tmp_path / "cache", published=published, **options)

    return run


def left_in(folder: Path) -> list[str]:
    """The files below a folder, but for the locks, which are empty and stay."""
    return sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file() and f.suffix != ".lock")


def test_a_preset_becomes_a_model_folder(fetch, hub, source, tmp_path):
    folder = fetch()
    assert folder == resolve("sd-1.4", tmp_path / "cache")
    assert load_spec(folder) == SMALL
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["licence"] == "Licence of the Test"
    assert manifest["notes"]["licence_url"] == "https://licence.invalid"
    assert set(manifest["notes"]["files"]) == set(source)
    assert left_in(tmp_path / "cache" / "downloads") == []
    asked = len(hub.log)
    assert fetch(accept_licence=False) == folder and len(hub.log) == asked  # what is there is not fetched again


def test_no_token_of_the_user_is_sent(fetch, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fetch()
    assert {authorization for *_, authorization in hub.log} == {None}


def test_the_licence_comes_first(fetch, hub):
    with pytest.raises(CheckpointError, match=r"Licence of the Test licence, https://licence\.invalid\. Be kind\. To accept"):
        fetch(accept_licence=False)
    assert hub.log == []


def test_an_interrupted_download_is_resumed(fetch, hub, source, tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client waits between its attempts
    name = FILES["text_encoder"]
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)  # 10 MB, what a break may cost
    hub.cut_after = 5000
    with pytest.raises(CheckpointError, match=rf"{name} could not be downloaded from .*Run the command again to resume"):
        fetch()
    part = tmp_path / "cache" / "downloads" / "sd-1.4" / f"{name}.part"
    assert left_in(tmp_path / "cache") == [str(part.relative_to(tmp_path / "cache"))]
    have = part.stat().st_size
    assert 5000 <= have < len(source[name]) and part.read_bytes() == source[name][:have]
    hub.cut_after = None
    hub.log.clear()
    assert load_spec(fetch()) == SMALL
    assert ("GET", name, f"bytes={have}-", None) in hub.log


def test_files_that_are_there_are_not_fetched_again(fetch, hub, source, tmp_path):
    downloads = tmp_path / "cache" / "downloads" / "sd-1.4"
    downloads.mkdir(parents=True)
    for name in list(source)[:2]:
        (downloads / name).write_bytes(source[name])
    fetch()
    assert {name for _, name, *_ in hub.log} == set(list(source)[2:])


def test_offline_mode_uses_what_is_there_alone(fetch, hub, source, tmp_path):
    with pytest.raises(CheckpointError, match=r"kcv_encoder\.h5 was not fetched before, and offline mode allows no download"):
        fetch(offline=True)
    downloads = tmp_path / "cache" / "downloads" / "sd-1.4"
    for name, data in source.items():
        (downloads / name).write_bytes(data)
    assert load_spec(fetch(offline=True)) == SMALL
    assert hub.log == []


def test_the_offline_variable_of_the_hub_is_obeyed(tmp_path):
    code = (
        "from tfsd.hub import download\n"
        f"try: download('sd-1.4', convert=None, accept_licence=True, cache={str(tmp_path)!r})\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert ran.stdout.startswith("CheckpointError kcv_encoder.h5 was not fetched before"), ran.stderr


@pytest.mark.parametrize("name", FILES.values())
def test_a_flipped_bit_is_refused_and_removed(fetch, hub, tmp_path, name):
    data = bytearray(hub.files[name])
    data[len(data) // 2] ^= 4
    hub.files[name] = bytes(data)
    with pytest.raises(CheckpointError, match=rf"{name} is damaged: its SHA-256 is .* It was removed; download it again"):
        fetch()
    assert not any(name in left for left in left_in(tmp_path / "cache"))
    assert not (tmp_path / "cache" / "models").exists()


def test_a_file_of_another_size_is_not_even_fetched(fetch, hub, tmp_path):
    name = FILES["denoiser"]
    hub.files[name] += b"more"
    with pytest.raises(CheckpointError, match="it is not the file that was published"):
        fetch()
    assert ("GET", name) not in [entry[:2] for entry in hub.log]


def test_a_missing_file_is_one_line(fetch, hub):
    del hub.files[FILES["decoder"]]
    with pytest.raises(CheckpointError, match=r"kcv_decoder\.h5 could not be downloaded .*404") as caught:
        fetch()
    assert "\n" not in str(caught.value)


def test_no_network_is_one_line(fetch, tmp_path):
    with pytest.raises(CheckpointError, match=r"could not be downloaded from http://127\.0\.0\.1:9/.*refused") as caught:
        fetch(endpoint="http://127.0.0.1:9")
    assert "\n" not in str(caught.value)
    assert left_in(tmp_path / "cache") == []


def test_a_cache_that_cannot_be_written_is_one_line(hub, published, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written") as caught:
        download("sd-1.4", convert=convert, accept_licence=True, cache=tmp_path / "file", published=published)
    assert "\n" not in str(caught.value)


def test_a_disk_that_is_too_small_is_found_out_before(fetch, hub, published):
    files = tuple(PublishedFile(REPOSITORY, f.name, f.sha256, 10**15) for f in published["sd-1.4"].files)
    published["sd-1.4"] = Published(SMALL, files, "", "")
    with pytest.raises(CheckpointError, match=r"needs \d+\.00 GB; only"):
        fetch()
    assert hub.log == []


def test_a_failed_conversion_keeps_the_files_and_leaves_no_model(fetch, hub, tmp_path, published):
    other = replace(SMALL, text=(replace(SMALL.text[0], vocabulary=41),))
    published["sd-1.4"] = Published(other, published["sd-1.4"].files, "", "")
    with pytest.raises(CheckpointError, match="does not fit"):
        fetch()
    assert left_in(tmp_path / "cache") == [f"downloads/sd-1.4/{name}" for name in sorted(FILES.values())]


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_shown_on_a_terminal_on_request(terminal, fetch, monkeypatch):
    """Of the conversion; the hub's client shows the download's."""
    errors = io.StringIO()
    errors.isatty = lambda: terminal
    monkeypatch.setattr("sys.stderr", errors)
    folder = fetch()
    assert errors.getvalue() == ""
    shutil.rmtree(folder)
    fetch(progress=True)
    assert ("writing sd-1.4: 100%" in errors.getvalue()) == terminal


DOWNLOADER = """
import json, sys
import huggingface_hub.constants
huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = 1000  # what is lost when the process is killed
from converters import convert
from tfsd.hub import Published, PublishedFile, download
from tfsd.specs import from_json
spec, files, endpoint, cache = json.load(sys.stdin)
published = {"sd-1.4": Published(from_json(spec), tuple(PublishedFile(*file) for file in files), "", "")}
options = {"convert": convert, "accept_licence": True, "progress": False, "published": published}
print(download("sd-1.4", cache=cache, endpoint=endpoint, **options))
"""


@pytest.fixture
def downloader(hub, published, tmp_path):
    """Starts a process that downloads from that server to the cache of this test."""
    running = []

    def start() -> subprocess.Popen:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        process = subprocess.Popen([sys.executable, "-c", DOWNLOADER], env=environment, text=True, **pipes)
        running.append(process)
        files = [astuple(file) for file in published["sd-1.4"].files]
        json.dump([to_json(SMALL), files, hub.address, str(tmp_path / "cache")], process.stdin)
        process.stdin.close()
        return process

    yield start
    for process in running:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def two_downloads(downloader, hub, part: Path) -> tuple[subprocess.Popen, subprocess.Popen]:
    """Returns two processes: one is in the middle of the first file, the other one waits for it."""
    hub.gate.clear()
    first = downloader()
    while not (part.exists() and part.stat().st_size):
        assert first.poll() is None, first.stderr.read()
        time.sleep(0.01)
    second = downloader()
    assert any(f"Another process downloads to {part.parent}; this one waits" in line for line in second.stderr)
    return first, second


def test_of_two_downloads_at_once_one_waits_and_each_file_is_fetched_once(downloader, hub, tmp_path):
    first, second = two_downloads(downloader, hub, tmp_path / "cache/downloads/sd-1.4" / f"{FILES['text_encoder']}.part")
    hub.gate.set()
    folder = str(tmp_path / "cache/models/sd-1.4")
    assert first.stdout.read() == f"{folder}\n" == second.stdout.read()
    fetched = [(name, place) for what, name, place, _ in hub.log if what == "GET"]
    assert fetched == [(name, None) for name in hub.files]
    assert load_spec(folder) == SMALL and left_in(tmp_path / "cache/downloads") == []


@pytest.mark.slow
def test_when_the_process_that_downloads_is_killed_the_waiting_one_resumes(downloader, hub, source, tmp_path):
    name = FILES["text_encoder"]
    first, second = two_downloads(downloader, hub, part := tmp_path / "cache/downloads/sd-1.4" / f"{name}.part")
    have = part.stat().st_size
    first.kill()
    first.wait()
    hub.gate.set()
    assert second.stdout.read() == f"{tmp_path / 'cache/models/sd-1.4'}\n"
    assert 0 < have < len(source[name]) and ("GET", name, f"bytes={have}-", None) in hub.log


def test_a_file_that_was_complete_when_its_process_ended_is_not_fetched_again(fetch, hub, source, tmp_path):
    name = FILES["text_encoder"]
    downloads = tmp_path / "cache" / "downloads" / "sd-1.4"
    downloads.mkdir(parents=True)
    (downloads / f"{name}.part").write_bytes(source[name])
    assert load_spec(fetch()) == SMALL
    assert ("GET", name) not in [entry[:2] for entry in hub.log]


def test_other_contents_in_the_place_of_the_model_are_found_before_anything_is_fetched(fetch, hub, tmp_path):
    (tmp_path / "cache/models/sd-1.4").mkdir(parents=True)
    (tmp_path / "cache/models/sd-1.4/notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"models/sd-1\.4 exists and is not empty"):
        fetch()
    assert hub.log == []


@pytest.mark.parametrize("forever", [False, True], ids=["one-call", "all-later-calls"])
def test_whichever_call_of_the_system_fails_nothing_fetched_is_lost(hub, published, source, tmp_path, forever):
    file = published["sd-1.4"].files[0]
    path, part, calls = tmp_path / file.name, tmp_path / f"{file.name}.part", 0

    def reset():
        path.unlink(missing_ok=True)
        part.write_bytes(source[file.name])

    def run():
        fetch_file(file, tmp_path, endpoint=hub.address, progress=False)

    for call, error in refusals(run, reset, forever=forever):
        calls += 1
        left = path if path.exists() else part
        assert left.read_bytes() == source[file.name], call
        assert error is None or isinstance(error, CheckpointError | OSError) and "\n" not in str(error), call
    assert calls > 2


FULL_DISK = """
import json, resource, sys
from tfsd.hub import PublishedFile, fetch
file, endpoint, folder = json.load(sys.stdin)
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
try:
    fetch(PublishedFile(*file), __import__("pathlib").Path(folder), endpoint=endpoint, progress=False)
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits of file sizes are POSIX")
def test_a_disk_that_is_full_at_last_is_one_line_and_keeps_what_was_fetched(hub, published, source, tmp_path):
    file = published["sd-1.4"].files[0]
    given = json.dumps([astuple(file), hub.address, str(tmp_path)])
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", FULL_DISK]
    ran = subprocess.run(command, input=given, env=environment, capture_output=True, text=True, timeout=120)
    part = tmp_path / f"{file.name}.part"
    expected = f"CheckpointError {part} cannot be written: File too large. Make room, then run it again.\n"
    assert ran.stdout == expected, ran.stderr
    assert part.read_bytes() == source[file.name][:3000]


def test_files_of_others_in_the_folder_of_downloads_stay(fetch, tmp_path):
    other = tmp_path / "cache/downloads/sd-1.4/notes.txt"
    other.parent.mkdir(parents=True)
    other.write_text("mine")
    fetch()
    assert left_in(tmp_path / "cache/downloads") == ["sd-1.4/notes.txt"] and other.read_text() == "mine"


def test_an_unknown_preset_lists_what_is_published():
    with pytest.raises(CheckpointError, match=r"No files are published for 'sd-9'; `tfsd download` knows sd-1\.4"):
        download("sd-9", convert=convert, accept_licence=True)


def test_the_published_table_is_complete():
    assert set(PUBLISHED) == set(DOWNLOADABLE)
    entry = PUBLISHED["sd-1.4"]
    assert entry.spec == PRESETS["sd-1.4"]
    assert [file.name for file in entry.files] == list(FILES.values())
    assert all(len(file.sha256) == 64 and set(file.sha256) <= set("0123456789abcdef") for file in entry.files)
    # 4 bytes for each parameter of the layouts in tests/data/kerascv_h5_layout, and less than 1 % for HDF5
    for file in entry.files:
        layout = json.loads((ROOT / "tests/data/kerascv_h5_layout" / file.name).with_suffix(".json").read_text())
        if file.bytes is not None:
            assert 1 < file.bytes / (4 * layout["n_params"]) < 1.01, file.name
    assert "CreativeML Open RAIL-M" in notice("sd-1.4") and entry.licence_url in notice("sd-1.4")
