"""Folders of versions that need no networks, and a loader for them."""

import threading

import pytest
import tensorflow as tf
from google.protobuf import text_format
from patience import LONG
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

from tfsd.errors import CheckpointError
from tfsd.serving.server.models import Models
from tfsd.serving.wire.errors import ServerError


class Loaded:
    """What the loader of these tests makes of a version's folder."""

    def __init__(self, folder):
        self.version, self.manifest = int(folder.name), {"name": folder.parent.name}


class Loader:
    """Loads a version's folder as its saved_model.pb says: its text is "fine", or what goes wrong; `hold` keeps it waiting."""

    def __init__(self):
        self.loaded: list[str] = []
        self.go, self.began = threading.Event(), threading.Event()
        self.go.set()

    def __call__(self, folder):
        self.began.set()
        assert self.go.wait(LONG)
        text = (folder / "saved_model.pb").read_text()
        self.loaded.append(f"{folder.parent.name}/{folder.name}")
        if text == "damaged":
            raise CheckpointError("saved_model.pb is damaged.")
        if text == "memory":
            raise tf.errors.ResourceExhaustedError(None, None, "no memory\n left")
        if text == "odd":
            raise KeyError("odd")
        return Loaded(folder)


def put(folder, *names, text="fine"):
    for name in names:
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "saved_model.pb").write_text(text)


def served(folder, loader, source=None, **options) -> Models:
    models = Models(source if source is not None else folder, load=loader, **options)
    models.start()
    return models


def states(models, name="tiny") -> dict[int, str]:
    status = models.status(name).model_version_status
    return {entry.version: type(entry).State.Name(entry.state) for entry in status}


def latest(models, name="tiny", **which) -> int:
    with models.get(name, **which) as engine:
        return engine.version


def config(folder, *models) -> ModelServerConfig:
    """Each of `models` is (name, extra text of its ModelConfig)."""
    entries = "".join(
        f'config {{ name: "{name}" base_path: "{folder}/{name}" model_platform: "tensorflow" {more} }} ' for name, more in models
    )
    return text_format.Parse(f"model_config_list {{ {entries} }}", ModelServerConfig())


def error_of(call, *args, **kwargs) -> ServerError:
    with pytest.raises(ServerError) as caught:
        call(*args, **kwargs)
    return caught.value
