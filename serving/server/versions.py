"""The versions of models: their states, their leases, and the release of their memory.

As in TF Serving, a version goes through START, LOADING, AVAILABLE, UNLOADING and END.

The weights, graphs and lookup tables of an export without XLA are freed when it ends. A new version is loaded before the old
one is freed. If both used the same heap, their memory would be mixed, and much of the old version's memory could not be
returned to the system; therefore each version has a separate heap. A server of a small model uses 856 MB after the second
reload and 857 after the tenth. With XLA, TensorFlow keeps compiled programs until the process ends: 150 to 200 MB for each size
and number of images. A server that loads many such versions grows by this amount with each of them, unless it is restarted
now and then.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tfsd.errors import CheckpointError
from tfsd.runtime.freeing import OwnHeap, free_memory
from tfsd.serving.server.metrics import Metrics
from tfsd.serving.wire.errors import CODES, ServerError

LOG = logging.getLogger("tfsd.serving")
NAMES = {number: name for name, (number, _) in CODES.items()}
MAX_MESSAGE = 500


class Version:
    """One version of a model. It has an engine while it is AVAILABLE or UNLOADING; `code` is the reason of its end."""

    def __init__(self, model: str, number: int, folder: Path):
        self.model, self.number, self.folder = model, number, folder
        self.state, self.code, self.message = "START", "OK", ""
        self.engine: Any = None  # what `load` of `Versions` returns
        self.heap = OwnHeap(f"tfsd-{model}-{number}")
        self.leases = 0
        self.stamp = _stamp(folder)

    def has_failed(self) -> bool:
        """Returns whether it could not be loaded, and its files have not changed since."""
        return self.code != "OK" and self.stamp == _stamp(self.folder)

    def __str__(self) -> str:
        return f"{{name: {self.model} version: {self.number}}}"  # as TF Serving's messages name it


class Lease:
    """Keeps a version loaded until the block ends: `with models.get("tiny") as engine`."""

    def __init__(self, version: Version, give_back: Callable[[Version], None]):
        self.engine = version.engine
        self._version: Version | None = version
        self._give_back = give_back

    def release(self):
        """Releases the version; further calls do nothing."""
        version, self._version, self.engine = self._version, None, None
        if version is not None:
            self._give_back(version)

    def __enter__(self):
        return self.engine

    def __exit__(self, *_):
        self.release()


class Versions:
    """Thread-safe table of versions by model and number. It is not locked while a model is loaded."""

    def __init__(self, load: Callable[[Path], Any], metrics: Metrics):
        self._load = load
        self._metrics = metrics
        self._models: dict[str, dict[int, Version]] = {}
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        """Returns all models, also those whose versions have ended."""
        with self._lock:
            return list(self._models)

    def of(self, name: str) -> dict[int, Version]:
        """Returns all versions of a model, the latest first, also those that have ended."""
        with self._lock:
            return dict(sorted(self._models.get(name, {}).items(), reverse=True))

    def available(self, name: str) -> dict[int, Version]:
        """Returns the available versions of a model."""
        with self._lock:
            return self._available(name)

    def lease(self, name: str, number: int | None) -> Lease:
        """Returns a lease of a version, or of the latest one. Raises: `ServerError` NOT_FOUND with TF Serving's message."""
        with self._lock:
            loaded = self._available(name)
            wanted = max(loaded, default=None) if number is None else number
            version = None if wanted is None else loaded.get(wanted)
            if version is None:
                asked = f"Latest({name})" if number is None else f"Specific({name}, {number})"
                known = () if loaded else [one for one in self._models if self._available(one)]
                raise ServerError("NOT_FOUND", f"Servable not found for request: {asked}", known=known)
            version.leases += 1
            return Lease(version, self._give_back)

    def ensure(self, name: str, number: int, folder: Path, *, retry: bool):
        """Loads a version unless it is available. One that failed is loaded again if `retry` is set or its files have changed."""
        with self._lock:
            known = self._models.setdefault(name, {}).get(number)
            if known is not None and known.state == "UNLOADING":  # it is wanted again while its last requests run
                known.state = "AVAILABLE"
        if known is not None and known.state == "AVAILABLE" or known is not None and not retry and known.has_failed():
            return
        version = Version(name, number, folder)
        with self._lock:
            self._models[name][number] = version
        self._set(version, "LOADING")
        started = time.monotonic()
        try:
            version.engine = version.heap.make(partial(self._load, folder))
            version.engine.name = name  # a configuration may give it another name than its export has
        except Exception as error:
            code, message = _code_of(error)
            expected = isinstance(error, ServerError | CheckpointError)  # the message is enough, without a traceback
            LOG.error("Version %d of %s cannot be loaded: %s", number, name, message, exc_info=None if expected else error)
            self._set(version, "END", code, message)
            return
        seconds = time.monotonic() - started
        self._metrics.load_seconds.labels(name, str(number)).set(seconds)
        LOG.info("Version %d of %s is available after %.1f s.", number, name, seconds)
        self._set(version, "AVAILABLE")

    def unload(self, name: str, *, but: Sequence[int] = ()):
        """Unloads versions: they get no new leases, and end when their last lease is released."""
        for number, version in self.available(name).items():
            if number not in but:
                self._set(version, "UNLOADING")
                self._end(version)

    def _available(self, name: str) -> dict[int, Version]:
        return {number: known for number, known in self._models.get(name, {}).items() if known.state == "AVAILABLE"}

    def _set(self, version: Version, state: str, code: str = "OK", message: str = ""):
        with self._lock:
            version.state, version.code, version.message = state, code, message
        self._show(version.model)

    def _show(self, name: str):
        self._metrics.show_versions(name, [version.state for version in self.of(name).values()])

    def _give_back(self, version: Version):
        with self._lock:
            version.leases -= 1
            last = version.leases == 0 and version.state == "UNLOADING"
        if last:  # in a thread: freeing a model takes too long for the event loop
            threading.Thread(target=self._end, args=(version,), name="tfsd-unload", daemon=True).start()

    def _end(self, version: Version):
        with self._lock:
            if version.leases or version.state != "UNLOADING":
                return
            version.engine, version.state = None, "END"
        free_memory()
        version.heap.close()
        self._show(version.model)
        LOG.info("Version %d of %s is unloaded.", version.number, version.model)


def _stamp(folder: Path) -> tuple:
    """Returns a value that changes when a file in the folder changes."""
    files = []
    for path in sorted(folder.rglob("*")):
        try:
            stat = path.stat()
        except OSError:  # deleted in the meantime
            continue
        files.append((str(path), stat.st_size, stat.st_mtime_ns))
    return tuple(files)


def _code_of(error: Exception) -> tuple[str, str]:
    """Returns the gRPC code and the message for a version that could not be loaded."""
    if isinstance(error, ServerError):
        return error.code, error.message
    if isinstance(error, CheckpointError):
        return "DATA_LOSS", str(error)
    number = getattr(error, "error_code", None)  # of TensorFlow's errors
    code = NAMES.get(number, "INTERNAL") if isinstance(number, int) else "INTERNAL"
    return code, f"{type(error).__name__}: {' '.join(str(error).split())[:MAX_MESSAGE]}"
