"""The manifests for Kubernetes: that it knows every field, and that they find each other."""

import json
import shutil
import subprocess

import kubernetes_validate
import pytest
import yaml
from deployment import FOLDER, OVERLAYS, base, compose, container, flags, merged, models, overlay, read_yaml, render

KUBERNETES = ("1.27", "1.37")  # gRPC probes are stable from 1.27 on; the newest schemas of kubernetes-validate


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("name", OVERLAYS)
def test_kubernetes_knows_every_field(name, version):
    rendered = render(f"kubernetes/overlays/{name}")
    for document in rendered:
        kubernetes_validate.validate(document, version, strict=True)
    kinds = ["Deployment", "Service", "Service", "PodDisruptionBudget"] + ["HorizontalPodAutoscaler"] * (name == "cpu")
    assert sorted(document["kind"] for document in rendered) == sorted(kinds)


def test_a_misspelled_field_would_be_found():
    """Of the validator: without `strict` it lets any field pass."""
    deployment = base("Deployment")
    deployment["spec"]["template"]["spec"]["containers"][0]["startupProb"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="startupProb"):
        kubernetes_validate.validate(deployment, KUBERNETES[0], strict=True)


def test_models_from_a_claim_are_mounted_where_the_server_looks():
    component = "kubernetes/components/models-from-claim"
    (patch,) = read_yaml(f"{component}/models.yaml")
    deployment = merged(base("Deployment"), patch)
    kubernetes_validate.validate(deployment, KUBERNETES[0], strict=True)
    mounts = {mount["name"]: mount for mount in container(deployment)["volumeMounts"]}
    assert set(mounts) == {"config", "tmp", "models"} and mounts["models"]["readOnly"]
    assert models()[0].base_path == mounts["models"]["mountPath"] + "/tiny"


@pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not installed; the files themselves are checked above")
@pytest.mark.parametrize("name", OVERLAYS)
def test_kubectl_builds_what_was_checked(name):
    command = ["kubectl", "kustomize", str(FOLDER / "kubernetes/overlays" / name)]
    built = list(yaml.safe_load_all(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    (config,) = [document for document in built if document["kind"] == "ConfigMap"]
    kubernetes_validate.validate(config, KUBERNETES[0], strict=True)
    assert config["data"] == {path.name: path.read_text(encoding="utf-8") for path in (FOLDER / "config").glob("*.config")}
    expected = json.dumps(render(f"kubernetes/overlays/{name}"), sort_keys=True).replace(
        '"tfsd-config"', f'"{config["metadata"]["name"]}"'
    )
    expected = {(document["kind"], document["metadata"]["name"]): document for document in json.loads(expected)}
    assert {
        (document["kind"], document["metadata"]["name"]): document for document in built if document is not config
    } == expected


@pytest.mark.parametrize("name", OVERLAYS)
def test_services_budget_and_autoscaler_find_the_pods(name):
    rendered = render(f"kubernetes/overlays/{name}")
    deployment = overlay(name)
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    for document in rendered:
        if document["kind"] == "Service":
            assert document["spec"]["selector"] == labels
        elif document["kind"] == "PodDisruptionBudget":
            assert document["spec"]["selector"]["matchLabels"] == labels  # an empty one means every pod of the namespace
        elif document["kind"] == "HorizontalPodAutoscaler":
            assert document["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
            assert "replicas" not in deployment["spec"] and container(deployment)["resources"]["requests"]["cpu"]


def test_pods_outlive_the_wait_before_they_are_stopped():
    pod = base("Deployment")["spec"]["template"]["spec"]
    command = container(base("Deployment"))["lifecycle"]["preStop"]["exec"]["command"]
    assert command[0] == "sleep" and int(command[1]) < pod["terminationGracePeriodSeconds"]


def test_threads_are_as_many_as_the_cpus():
    args = flags(container(overlay("cpu"))["args"])
    assert args["tensorflow_intra_op_parallelism"] == container(overlay("cpu"))["resources"]["requests"]["cpu"]
    server = compose()["services"]["server"]
    assert flags(server["command"])["tensorflow_intra_op_parallelism"] == server["deploy"]["resources"]["limits"]["cpus"]


def test_gpu_pods_ask_for_one_gpu_and_tolerate_its_taint():
    pod = overlay("gpu")["spec"]["template"]["spec"]
    assert container(overlay("gpu"))["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert [toleration["key"] for toleration in pod["tolerations"]] == ["nvidia.com/gpu"]
    assert "-gpu" in container(overlay("gpu"))["image"] and "-gpu" not in container(overlay("cpu"))["image"]
