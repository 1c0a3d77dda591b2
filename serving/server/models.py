"""The models that a server has, and how they change while it runs.

As in TF Serving, a new version is loaded and warmed up before an old one is unloaded, and the old one is unloaded after its
last request. If a version cannot be loaded, its status has the error, and the loaded versions stay.
"""

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tensorflow_serving.apis.get_model_status_pb2 import GetModelStatusResponse, ModelVersionStatus

from tfsd.serving.server.metrics import Metrics
from tfsd.serving.server.model_config import ModelConfig, configs_from, configs_in
from tfsd.serving.server.versions import Lease, Versions
from tfsd.serving.wire.errors import CODES, ServerError
from tfsd.serving.wire.message_size import request_limits

LOG = logging.getLogger("tfsd.serving")


def load_engine(folder: Path):
    """Loads a version and compiles it for the shapes that requests can have."""
    from tfsd.serving.server.engine import Engine

    engine = Engine(folder)
    engine.warm_up()
    return engine


class Models:
    """The models of a server; safe to use from any thread."""

    def __init__(
        self,
        source,
        *,
        root: Path | None = None,
        poll_seconds: float = 0,
        metrics: Metrics | None = None,
        load: Callable[[Path], Any] = load_engine,
    ):
        """Reads the configuration; `start` loads the models.

        Args:
            source: a folder with one model's versions, a folder of such folders, or a ModelServerConfig.
            root: the folder for relative paths of a ModelServerConfig.
            poll_seconds: how often the folders are checked for changes; 0: only by `reload`.
            metrics: shows the versions by state.
            load: returns an engine for a version's folder.
        Raises: `ServerError` if there is no model.
        """
        if not 0 <= poll_seconds <= 86_400:
            raise ValueError(f"poll_seconds must be from 0 to 86400; got {poll_seconds}.")
        self._folder = Path(os.path.abspath(source)) if isinstance(source, str | os.PathLike) else None
        self._root, self._poll_seconds = root, poll_seconds
        self._configs = _find(self._folder) if self._folder is not None else configs_from(source, root=root)
        _require_versions(self._configs)
        self._labels = {name: dict(config.labels) for name, config in self._configs.items()}
        self._versions = Versions(load, metrics or Metrics())
        self._started = False
        self._request_bytes: int | None = None
        self._changing = threading.Lock()  # one change after another
        self._closing = threading.Event()
        self._poller: threading.Thread | None = None

    def start(self):
        """Loads every model, then watches the folders if `poll_seconds` is given.

        Raises: `ServerError` if a model cannot be served.
        """
        with self._changing:
            self._update(retry=True)
            self._require_available(list(self._configs))
        self._started = True
        if self._poll_seconds:
            self._poller = threading.Thread(target=self._poll, name="tfsd-models", daemon=True)
            self._poller.start()

    def reload(self, proto=None):
        """Checks the folders again, or changes to another ModelServerConfig; returns when the models are loaded.

        Raises: `ServerError`. A wrong configuration changes nothing; a version that cannot be loaded does not affect others.
        """
        with self._changing:
            new = [] if proto is None else self._take(proto)
            self._update(retry=True)
            self._require_available(new)

    def get(self, name: str, version: int | None = None, label: str | None = None) -> Lease:
        """Returns a lease of a version: by number or label, or the latest that is available.

        Raises: `ServerError` NOT_FOUND, or UNAVAILABLE while `start` loads models, so that clients try again;
        INVALID_ARGUMENT for an unknown label.
        """
        if not name:
            raise ServerError("INVALID_ARGUMENT", "ModelSpec has no name specified.")
        try:
            return self._versions.lease(name, self._number(name, version, label))
        except ServerError as error:
            if self._started or error.code != "NOT_FOUND":
                raise
            raise ServerError("UNAVAILABLE", "The server is starting: its models are being loaded.") from error

    def status(self, name: str, version: int | None = None, label: str | None = None) -> GetModelStatusResponse:
        """Returns the states of a model's versions, the latest first, or of one of them. Raises: `ServerError` NOT_FOUND."""
        number, known = self._number(name, version, label), self._versions.of(name)
        if number is not None and number not in known:
            raise ServerError("NOT_FOUND", f"Could not find version {number} of model {name}")
        if not known:
            raise ServerError("NOT_FOUND", f"Could not find any versions of model {name}")
        response = GetModelStatusResponse()
        for found in known.values() if number is None else [known[number]]:
            status = response.model_version_status.add(version=found.number)
            status.state = ModelVersionStatus.State.Value(found.state)
            status.status.error_code = 0 if found.code == "OK" else CODES[found.code][0]
            status.status.error_message = found.message
        return response

    def folders(self) -> list[Path]:
        """Returns the folders of all versions that should be served."""
        found = []
        for config in self._configs.values():
            versions = config.versions()
            found += [versions[number] for number in config.policy.choose(list(versions))]
        return found

    def warn_above(self, request_bytes: int):
        """Sets the largest request that the server receives; versions that take larger ones are then logged as warnings."""
        self._request_bytes = request_bytes

    def manifests(self) -> dict[str, dict[int, dict]]:
        """Returns the manifests of the versions that are available, the latest first: model -> version -> manifest."""
        manifests: dict[str, dict[int, dict]] = {}
        for name in sorted(self._configs):
            for number in sorted(self._versions.available(name), reverse=True):
                try:
                    with self._versions.lease(name, number) as engine:
                        manifests.setdefault(name, {})[number] = engine.manifest
                except ServerError:  # unloaded in the meantime
                    continue
        return manifests

    @property
    def ready(self) -> bool:
        """Whether each model has an available version."""
        return all(self._versions.available(name) for name in self._configs)

    def close(self):
        """Stops watching the folders; loaded versions stay loaded."""
        self._closing.set()
        if self._poller is not None:
            self._poller.join(1)  # no longer: it is a daemon, and loading takes minutes

    def _number(self, name: str, version: int | None, label: str | None) -> int | None:
        if not label:
            return version
        try:
            return self._labels[name][label]
        except KeyError:
            raise ServerError("INVALID_ARGUMENT", f"Unrecognized servable version label: {label}") from None

    def _take(self, proto) -> list[str]:
        """Replaces the configuration, if the new one is valid, and returns the names of added models."""
        configs = configs_from(proto, root=self._root)
        _require_versions(configs)
        self._check_labels(configs)
        new = [name for name in configs if name not in self._configs]
        self._labels = {name: dict(config.labels) for name, config in configs.items()}
        self._configs, self._folder = configs, None
        return new

    def _check_labels(self, configs: dict[str, ModelConfig]):
        """Refuses to move a label to a version that is not available. A new label may be set before its version exists."""
        for name, config in configs.items():
            for label, number in config.labels.items():
                moves = self._labels.get(name, {}).get(label, number) != number
                if moves and number not in self._versions.available(name):
                    message = (
                        f"Request to assign label to version {number} of model {name}, "
                        "which is not currently available for inference"
                    )
                    raise ServerError("FAILED_PRECONDITION", message)

    def _poll(self):
        while not self._closing.wait(self._poll_seconds):
            try:
                with self._changing:
                    self._update(retry=False)
            except Exception:
                LOG.exception("The check for new versions failed; the loaded versions are still served.")

    def _update(self, *, retry: bool):
        """Loads and unloads versions until they are those that the policies choose from the folders."""
        if self._folder is not None and self._folder.is_dir():
            found = configs_in(self._folder)
            empty = {name: config for name, config in self._configs.items() if name not in found and config.folder.is_dir()}
            self._configs = {**found, **empty}  # models without versions are unloaded below
        configs = self._configs
        for name in self._versions.names():
            if name not in configs:
                self._versions.unload(name)
        for name, config in configs.items():
            try:
                folders = config.versions()
            except ServerError as error:  # the disk may come back, so nothing is unloaded
                LOG.warning("%s", error.message)
                continue
            wanted = config.policy.choose(list(folders))
            for number in wanted:
                self._warn_of_size(name, number, folders[number])
                self._versions.ensure(name, number, folders[number], retry=retry)
            if not wanted or set(wanted) & set(self._versions.available(name)):
                self._versions.unload(name, but=wanted)

    def _warn_of_size(self, name: str, number: int, folder: Path):
        known = self._versions.of(name).get(number)
        if self._request_bytes is None or known is not None:
            return
        if (wanted := request_limits([folder])[0]) > self._request_bytes:
            message = "Version %d of %s takes requests of up to %.1f MB, but this server was started for %.1f MB. Restart it."
            LOG.warning(message, number, name, wanted / 2**20, self._request_bytes / 2**20)

    def _require_available(self, names: list[str]):
        """Raises: `ServerError` UNKNOWN, with TF Serving's message, if a model has no available version."""
        missing = [name for name in names if not self._versions.available(name)]
        failed = [version for name in missing for version in self._versions.of(name).values() if version.code != "OK"]
        if missing:
            reasons = "".join(f"{{{version} due to error: {version.code}: {version.message}}}, " for version in failed)
            raise ServerError("UNKNOWN", f"{len(missing)} model(s) did not become available: {{{reasons}}}")


def _find(folder: Path) -> dict[str, ModelConfig]:
    if folder.is_dir() and (configs := configs_in(folder)):
        return configs
    message = (
        f"{folder} holds no exported model: no NAME/VERSION/saved_model.pb and no VERSION/saved_model.pb. "
        "Write one with `tfsd export saved_model`."
    )
    raise ServerError("NOT_FOUND", message)


def _require_versions(configs: dict[str, ModelConfig]):
    for config in configs.values():
        if not config.policy.choose(list(config.versions())):
            message = f"Unable to find a numerical version path for servable {config.name} at: {config.folder}"
            raise ServerError("NOT_FOUND", message)
