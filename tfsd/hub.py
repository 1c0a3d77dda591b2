"""The one place that downloads: published weights of presets, verified, then made a model folder."""

import contextlib
import errno
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from tfsd.errors import CheckpointError, TfsdWarning, shown
from tfsd.runtime.private import private
from tfsd.specs import PRESETS, ModelSpec
from tfsd.storage.files import check_file, require_space
from tfsd.storage.folders import require_replaceable
from tfsd.storage.model_folders import home

_OF_DISKS = ("ENOSPC", "EDQUOT", "EFBIG", "EROFS")  # not all systems have all of them


@dataclass(frozen=True)
class PublishedFile:
    """A file of a repository on the Hugging Face Hub; `bytes` None where its size was never recorded."""

    repository: str
    name: str
    sha256: str
    bytes: int | None


@dataclass(frozen=True)
class Published:
    """The files of a preset and the terms they come under."""

    spec: ModelSpec
    files: tuple[PublishedFile, ...]
    licence_url: str
    terms: str


# KerasCV's conversions of Stable Diffusion 1.4. Hashes: KerasCV 0.9; sizes: logs of its notebooks.
PUBLISHED = {
    "sd-1.4": Published(
        spec=PRESETS["sd-1.4"],
        files=(
            PublishedFile(
                "fchollet/stable-diffusion",
                "kcv_encoder.h5",
                "4789e63e07c0e54d6a34a29b45ce81ece27060c499a709d556c7755b42bb0dc4",
                492_466_864,
            ),
            PublishedFile(
                "fchollet/stable-diffusion",
                "kcv_diffusion_model.h5",
                "8799ff9763de13d7f30a683d653018e114ed24a6a819667da4f5ee10f9e805fe",
                3_439_090_152,
            ),
            PublishedFile(
                "fchollet/stable-diffusion",
                "kcv_decoder.h5",
                "ad350a65cc8bc4a80c8103367e039a3329b4231c2469a1093869a345f55b1962",
                198_180_272,
            ),
            PublishedFile(
                "fchollet/stable-diffusion",
                "vae_encoder.h5",
                "c60fb220a40d090e0f86a6ab4c312d113e115c87c40ff75d11ffcf380aab7ebb",
                None,
            ),
        ),
        licence_url="https://raw.githubusercontent.com/CompVis/stable-diffusion/main/LICENSE",
        terms="It forbids the harmful uses it lists. Whoever passes the weights on, converted or not, must pass these terms on.",
    ),
}


def notice(preset: str, published: Mapping[str, Published] = PUBLISHED) -> str:
    """Returns what a user should read before downloading a preset, in one paragraph.

    Raises: `CheckpointError` for a preset that nothing is published for.
    """
    entry = _entry(preset, published)
    return f"The weights of {preset} are under the {entry.spec.licence} licence, {entry.licence_url}. {entry.terms}"


def download(
    preset: str,
    *,
    convert: Callable[..., Path],
    accept_licence: bool = False,
    cache: str | Path | None = None,
    offline: bool = False,
    endpoint: str | None = None,
    dtype: str | None = "float32",
    progress: bool = True,
    published: Mapping[str, Published] = PUBLISHED,
) -> Path:
    """Fetches a preset's files, checks them and returns the model folder made of them in the cache.

    `convert` is `converters.convert`, which this package must not import. What was fetched is kept until the model
    folder is complete, so that the next call resumes. Of several processes at once one downloads, and the others wait for it
    with a warning. `cache` None is `tfsd.storage.model_folders.home()`; `endpoint` None is
    $HF_ENDPOINT or the Hugging Face Hub; `offline` or $HF_HUB_OFFLINE uses files fetched before, alone.
    Raises: `CheckpointError` if the licence is not accepted, the network fails, or a file is not the published one.
    """
    entry = _entry(preset, published)
    root = Path(cache) if cache is not None else home()
    target, files = root / "models" / preset, root / "downloads" / preset
    if (target / "manifest.json").is_file():
        return target
    if not accept_licence:
        raise CheckpointError(f"{notice(preset, published)} To accept, add --accept-licence (accept_licence=True).")
    with _one_at_a_time(files):
        if (target / "manifest.json").is_file():  # of the process that this one waited for
            return target
        require_replaceable(target, "model", overwrite=False)  # before gigabytes are fetched
        try:
            files.mkdir(parents=True, exist_ok=True)
            missing = sum(file.bytes or 0 for file in entry.files if not (files / file.name).is_file())
            require_space(files, missing + sum(file.bytes or 0 for file in entry.files))  # the files, then their conversion
            for file in entry.files:
                fetch(file, files, offline=offline, endpoint=endpoint, progress=progress)
        except OSError as error:
            raise CheckpointError(f"{files} cannot be written: {error.strerror or error}.") from error
        notes = {"licence_url": entry.licence_url, "files": {file.name: file.sha256 for file in entry.files}}
        convert(files, target, kind="kerascv", spec=entry.spec, name=preset, dtype=dtype, progress=progress, notes=notes)
        with contextlib.suppress(OSError):
            for file in entry.files:
                (files / file.name).unlink(missing_ok=True)
            files.rmdir()  # unless it holds something else
    return target


@contextlib.contextmanager
def _one_at_a_time(files: Path) -> Iterator[None]:
    """Waits, with a warning, while another process downloads to the folder `files`."""
    lock = FileLock(f"{files}.lock")
    try:
        files.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            message = f"Another process downloads to {files}; this one waits until it has ended."
            warnings.warn(message, TfsdWarning, stacklevel=4)
            lock.acquire()
    except NotImplementedError:
        warnings.warn(f"{files.parent} has no locks: do not download twice at once.", TfsdWarning, stacklevel=4)
    except OSError as error:
        raise CheckpointError(f"{files} cannot be written: {error.strerror or error}.") from error
    try:
        yield
    finally:
        lock.release()


def _entry(preset: str, published: Mapping[str, Published]) -> Published:
    if preset not in published:
        raise CheckpointError(f"No files are published for {shown(preset)}; `tfsd download` knows {', '.join(published)}.")
    return published[preset]


def fetch(
    file: PublishedFile, folder: Path, *, offline: bool = False, endpoint: str | None = None, progress: bool = True
) -> Path:
    """Returns the verified file in `folder`, after downloading what is missing of it.

    Raises: `CheckpointError` without network, and if the file is not the published one; it is removed then.
    """
    path, part = folder / file.name, folder / f"{file.name}.part"
    if not path.is_file():
        _download(file, part, offline=offline, endpoint=endpoint, progress=progress)
        os.replace(part, path)
    try:
        check_file(path, sha256_hex=file.sha256, size=file.bytes)
    except CheckpointError as error:
        if isinstance(error.__cause__, OSError):  # it could not be read, which is no sign of damage
            raise
        path.unlink(missing_ok=True)
        raise CheckpointError(f"{error} It was removed; download it again.") from error
    return path


def _download(file: PublishedFile, part: Path, *, offline: bool, endpoint: str | None, progress: bool):
    import huggingface_hub  # takes half a second, and nothing but a download needs it

    headers_of, get = private("huggingface_hub.utils:build_hf_headers"), private("huggingface_hub.file_download:http_get")
    if offline or huggingface_hub.constants.HF_HUB_OFFLINE:
        raise CheckpointError(f"{file.name} was not fetched before, and offline mode allows no download.")
    url = huggingface_hub.hf_hub_url(file.repository, file.name, endpoint=endpoint)
    with _clear_errors(file, url):
        # The files are public: no token of the user is sent. `hf_hub_download` would not resume after an interruption.
        headers = headers_of(token=False, library_name="tfsd")
        size = huggingface_hub.get_hf_file_metadata(url, token=False).size
    if file.bytes is not None and size not in (None, file.bytes):
        raise CheckpointError(f"{url} has {size} bytes instead of {file.bytes}: it is not the file that was published.")
    size = file.bytes or size
    have = part.stat().st_size if part.exists() else 0
    if size is not None and have > size:
        part.unlink()
        have = 0
    with _clear_errors(file, url, part), _progress_bars(progress), open(part, "ab") as out:
        get(url, out, resume_size=have, headers=headers, expected_size=size, displayed_filename=file.name)


@contextlib.contextmanager
def _clear_errors(file: PublishedFile, url: str, part: Path | None = None) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # requests', httpx' or the client's own, depending on its release
        if part is not None and isinstance(error, OSError) and errno.errorcode.get(error.errno or 0) in _OF_DISKS:
            raise CheckpointError(f"{part} cannot be written: {error.strerror}. Make room, then run it again.") from error
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise CheckpointError(
            f"{file.name} could not be downloaded from {url}: {reason}. Run the command again to resume."
        ) from error


@contextlib.contextmanager
def _progress_bars(shown: bool) -> Iterator[None]:
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    before = are_progress_bars_disabled()
    if not shown and not before:
        disable_progress_bars()
    try:
        yield
    finally:
        if not shown and not before:
            enable_progress_bars()
