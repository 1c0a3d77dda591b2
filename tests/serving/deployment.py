"""Reads the files for TensorFlow Serving: the server's own with the published messages, Kubernetes' as kustomize does."""

import json
import re
from pathlib import Path

import yaml
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format, wrappers_pb2
from tensorflow_serving.config import model_server_config_pb2

FOLDER = Path(__file__).parents[2] / "serving/tf_serving"
OVERLAYS = ("cpu", "gpu")


def published_messages():
    """Messages that tensorflow-serving-api leaves out, with names and numbers of TensorFlow Serving's .proto files.

    Source: servables/tensorflow/session_bundle_config.proto and config/monitoring_config.proto.
    """
    wrapped = {"max_batch_size": "Int64", "batch_timeout_micros": "Int64", "max_enqueued_batches": "Int64"}
    wrapped |= {"num_batch_threads": "Int64", "thread_pool_name": "String"}
    file = descriptor_pb2.FileDescriptorProto(name="published.proto", package="tensorflow.serving", syntax="proto3")
    file.dependency.append("google/protobuf/wrappers.proto")
    kind = descriptor_pb2.FieldDescriptorProto
    batching = file.message_type.add(name="BatchingParameters")
    for number, (name, wrapper) in enumerate(wrapped.items(), start=1):
        type_name = f".google.protobuf.{wrapper}Value"
        batching.field.add(name=name, number=number, label=1, type=kind.TYPE_MESSAGE, type_name=type_name)
    batching.field.add(name="allowed_batch_sizes", number=6, label=3, type=kind.TYPE_INT64)
    batching.field.add(name="pad_variable_length_inputs", number=7, label=1, type=kind.TYPE_BOOL)
    prometheus = file.message_type.add(name="PrometheusConfig")
    prometheus.field.add(name="enable", number=1, label=1, type=kind.TYPE_BOOL)
    prometheus.field.add(name="path", number=2, label=1, type=kind.TYPE_STRING)
    monitoring = file.message_type.add(name="MonitoringConfig")
    type_name = ".tensorflow.serving.PrometheusConfig"
    monitoring.field.add(name="prometheus_config", number=1, label=1, type=kind.TYPE_MESSAGE, type_name=type_name)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(descriptor_pb2.FileDescriptorProto.FromString(wrappers_pb2.DESCRIPTOR.serialized_pb))
    pool.Add(file)
    names = ("BatchingParameters", "MonitoringConfig")
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"tensorflow.serving.{name}")) for name in names}


def parsed(name: str, message):
    return text_format.Parse((FOLDER / "config" / name).read_text(encoding="utf-8"), message)


def models():
    return parsed("models.config", model_server_config_pb2.ModelServerConfig()).model_config_list.config


def instructions() -> dict[str, list[str]]:
    """Returns the Dockerfile as {instruction: arguments of each use}."""
    text = re.sub(r"^#.*\n", "", (FOLDER / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    found: dict[str, list[str]] = {}
    for line in filter(None, re.sub(r"\\\n\s*", "", text).split("\n")):
        name, _, arguments = line.partition(" ")
        found.setdefault(name, []).append(arguments)
    return found


def read_yaml(path: str) -> list[dict]:
    return list(yaml.safe_load_all((FOLDER / path).read_text(encoding="utf-8")))


def compose() -> dict:
    return read_yaml("docker-compose.yaml")[0]


def flags(arguments) -> dict[str, str]:
    """Returns {flag: value} of a command line, each written --flag=value."""
    pairs = [argument.removeprefix("--").partition("=") for argument in arguments if argument.startswith("--")]
    assert all(value for _, _, value in pairs), pairs
    return {name: value for name, _, value in pairs}


def entry_point() -> dict[str, str]:
    command = json.loads(instructions()["ENTRYPOINT"][0])
    assert command[0] == "tensorflow_model_server"
    return flags(command[1:])


def documents(folder: str) -> list[dict]:
    """Returns what a kustomization's `resources` have, and theirs."""
    kustomization = read_yaml(f"{folder}/kustomization.yaml")[0]
    found = []
    for name in kustomization.get("resources", ()):
        path = (FOLDER / folder / name).resolve().relative_to(FOLDER).as_posix()
        found += documents(path) if (FOLDER / path).is_dir() else [document for document in read_yaml(path) if document]
    return found


def base(kind: str) -> dict:
    (found,) = [document for document in documents("kubernetes/base") if document["kind"] == kind]
    return found


def merged(value, patch):
    """Returns a document with a patch laid over it as kustomize does: lists of things with names are merged by name."""
    if isinstance(value, dict) and isinstance(patch, dict):
        return value | {key: merged(value.get(key), new) for key, new in patch.items()}
    if isinstance(value, list) and isinstance(patch, list) and all("name" in item for item in patch if isinstance(item, dict)):
        if all(isinstance(item, dict) for item in value + patch):
            new = {item["name"]: item for item in patch}
            kept = [merged(item, new.pop(item["name"], {})) for item in value]
            return [*new.values(), *kept]
    return patch


def render(folder: str) -> list[dict]:
    """Returns an overlay's documents with its patches and images, without the generated ConfigMap."""
    kustomization, rendered = read_yaml(f"{folder}/kustomization.yaml")[0], documents(folder)
    for patch in (patch for entry in kustomization["patches"] for patch in read_yaml(f"{folder}/{entry['path']}")):
        identity = (patch["kind"], patch["metadata"]["name"])
        targets = [document for document in rendered if (document["kind"], document["metadata"]["name"]) == identity]
        assert len(targets) == 1, identity
        others = [document for document in rendered if document is not targets[0]]
        rendered = others if patch.get("$patch") == "delete" else [*others, merged(targets[0], patch)]
    for image in kustomization.get("images", ()):
        for document in (document for document in rendered if document["kind"] == "Deployment"):
            assert container(document)["image"] == image["name"]
            container(document)["image"] = f"{image['newName']}:{image['newTag']}"
    return rendered


def overlay(name: str) -> dict:
    """Returns an overlay's Deployment."""
    (found,) = [document for document in render(f"kubernetes/overlays/{name}") if document["kind"] == "Deployment"]
    return found


def container(deployment: dict) -> dict:
    (found,) = deployment["spec"]["template"]["spec"]["containers"]
    return found


def health_path() -> str:
    model = models()[0]
    return f"/v1/models/{model.name}/labels/stable/metadata"
