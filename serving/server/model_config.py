"""The configuration of models: names, folders, versions and labels, from a ModelServerConfig of TF Serving or from a folder."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from tfsd.serving.wire.errors import ServerError

PLATFORM = "tensorflow"
MAX_VERSION = 2**63 - 1


@dataclass(frozen=True)
class VersionPolicy:
    """Selects the versions of a model: the `count` latest, all, or those in `versions`."""

    kind: str = "latest"
    count: int = 1
    versions: tuple[int, ...] = ()

    def choose(self, versions: list[int]) -> list[int]:
        """Returns the versions to serve, of those on disk, ascending."""
        versions = sorted(versions)
        if self.kind == "specific":
            return [version for version in versions if version in self.versions]
        return versions if self.kind == "all" else versions[-self.count :]


@dataclass(frozen=True)
class ModelConfig:
    """One model: `folder` has its versions, `labels` are names of some of them."""

    name: str
    folder: Path
    policy: VersionPolicy = VersionPolicy()
    labels: dict[str, int] = field(default_factory=dict)

    def versions(self) -> dict[int, Path]:
        """Returns the complete versions on disk: a folder named by a number, with a saved_model.pb.

        Raises: `ServerError` INVALID_ARGUMENT if the model's folder does not exist.
        """
        found: dict[int, Path] = {}
        try:
            children = sorted(os.scandir(self.folder), key=lambda child: child.name)
        except OSError as error:
            message = f"Could not find base path {self.folder} for servable {self.name} with error {error.strerror}"
            raise ServerError("INVALID_ARGUMENT", message) from error
        for child in children:
            if _is_version(child.name) and (self.folder / child.name / "saved_model.pb").is_file():
                found[int(child.name)] = self.folder / child.name
        return found


def _is_version(name: str) -> bool:
    return name.isascii() and name.isdigit() and int(name) <= MAX_VERSION


def configs_in(folder: Path) -> dict[str, ModelConfig]:
    """Returns the models in a folder: the folder itself if it has versions (models/tiny), else its subfolders (models)."""
    if ModelConfig(folder.name, folder).versions():
        return {folder.name: ModelConfig(folder.name, folder)}
    children = (
        ModelConfig(child.name, Path(child.path)) for child in os.scandir(folder) if child.is_dir() and child.name[0] != "."
    )
    return {config.name: config for config in sorted(children, key=lambda config: config.name) if config.versions()}


def configs_from(proto, *, root: Path | None = None) -> dict[str, ModelConfig]:
    """Returns the models that a ModelServerConfig lists.

    Args:
        proto: `tensorflow_serving.config.model_server_config_pb2.ModelServerConfig`.
        root: the folder for relative base paths; without it they are refused, as by TF Serving.
    Raises: `ServerError` INVALID_ARGUMENT for a wrong configuration, with TF Serving's messages.
    """
    if proto.WhichOneof("config") != "model_config_list":
        message = "ServerModelConfig type not supported by HandleReloadConfigRequest. Only ModelConfigList is currently supported"
        raise ServerError("INVALID_ARGUMENT", message)
    configs: dict[str, ModelConfig] = {}
    for model in proto.model_config_list.config:
        if not model.name:
            raise ServerError("INVALID_ARGUMENT", f"Every model in the config list must have a name; base_path={model.base_path}")
        if model.name in configs:
            raise ServerError("INVALID_ARGUMENT", f"Illegal to list model {model.name} multiple times in config list")
        _check_platform(model)
        configs[model.name] = ModelConfig(model.name, _folder(model, root), _policy(model), dict(model.version_labels))
    return configs


def _check_platform(model):
    platform = model.model_platform or (PLATFORM if model.model_type == 1 else "")  # ModelType.TENSORFLOW, deprecated
    if not platform:
        message = (
            "Illegal setting neither ModelServerConfig::model_type (deprecated) nor ModelServerConfig::model_platform. "
            f'Set model_platform: "{PLATFORM}" for model {model.name}.'
        )
        raise ServerError("INVALID_ARGUMENT", message)
    if platform != PLATFORM:
        raise ServerError("INVALID_ARGUMENT", f"Model {model.name} requests unsupported platform {platform}")


def _folder(model, root: Path | None) -> Path:
    path = Path(model.base_path)
    if not model.base_path or not (path.is_absolute() or root):
        message = f"Expected model {model.name} to have an absolute path or URI; got base_path()={model.base_path}"
        raise ServerError("INVALID_ARGUMENT", message)
    return path if root is None else root / path


def _policy(model) -> VersionPolicy:
    policy = model.model_version_policy
    kind = policy.WhichOneof("policy_choice") or "latest"
    if kind not in ("latest", "all", "specific"):
        raise ServerError("INVALID_ARGUMENT", f"Model {model.name} requests unsupported version policy {kind}")
    return VersionPolicy(kind, max(policy.latest.num_versions, 1), tuple(policy.specific.versions))
