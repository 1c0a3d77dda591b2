"""The files for TensorFlow Serving: that it can read them, and that they agree with each other and with the README."""

import base64
import inspect
import json
import re
import shlex
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from deployment import (
    FOLDER,
    OVERLAYS,
    base,
    compose,
    container,
    entry_point,
    flags,
    health_path,
    instructions,
    models,
    overlay,
    parsed,
    published_messages,
    read_yaml,
)
from patience import LONG

# Flags of tensorflow_serving/model_servers/main.cc that are of use here, as spelled there.
FLAGS = {
    "port",
    "rest_api_port",
    "rest_api_timeout_in_ms",
    "model_name",
    "model_base_path",
    "model_config_file",
    "model_config_file_poll_wait_seconds",
    "file_system_poll_wait_seconds",
    "allow_version_labels_for_unavailable_models",
    "enable_batching",
    "batching_parameters_file",
    "monitoring_config_file",
    "enable_grpc_healthcheck_service",
    "enable_serialization_as_tensor_content",
    "xla_cpu_compilation_enabled",
    "xla_gpu_compilation_enabled",
    "tensorflow_intra_op_parallelism",
    "tensorflow_inter_op_parallelism",
    "grpc_channel_arguments",
    "ssl_config_file",
}
# Inputs of the signatures `text_to_png` and `text_to_image`.
INPUTS = {"prompt": "string", "negative_prompt": "string", "seed": "int64", "index": "int32", "guidance_scale": "float32"}
INPUTS |= {"num_steps": "int32", "sampler": "string", "height": "int32", "width": "int32"}
PROMPT = "a red star above a blue house at night"


def test_labels_name_versions_that_are_served():
    (model,) = models()
    assert (model.name, model.base_path, model.model_platform) == ("tiny", "/models/tiny", "tensorflow")
    assert dict(model.version_labels) == {"stable": 1, "noxla": 2}
    assert set(model.version_labels.values()) == set(model.model_version_policy.specific.versions)


def test_batches_are_no_larger_than_the_default_export_answers():
    from tfsd.converters.saved_model.export import export_saved_model

    batching = parsed("batching.config", published_messages()["BatchingParameters"]())
    exported = inspect.signature(export_saved_model).parameters["batch_sizes"].default
    assert batching.max_batch_size.value == exported[-1] == 8
    assert not batching.allowed_batch_sizes  # or copies of rows would be computed
    assert batching.num_batch_threads.value >= 1 and batching.max_enqueued_batches.value >= 1
    assert 0 < batching.batch_timeout_micros.value < 1_000_000


def test_prometheus_asks_for_the_path_that_is_served():
    prometheus = parsed("monitoring.config", published_messages()["MonitoringConfig"]()).prometheus_config
    scraped = read_yaml("prometheus.yaml")[0]["scrape_configs"][0]
    annotations = base("Deployment")["spec"]["template"]["metadata"]["annotations"]
    assert prometheus.enable
    assert prometheus.path == scraped["metrics_path"] == annotations["prometheus.io/path"] == "/monitoring/prometheus/metrics"
    (target,) = scraped["static_configs"][0]["targets"]
    assert target.split(":") == ["server", annotations["prometheus.io/port"]] and "server" in compose()["services"]


def documented_commands() -> list[str]:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    return [line for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) for line in block.split("\n")]


def docker_runs() -> list[list[str]]:
    """Returns what follows the image's name in each `docker run` of the README."""
    runs = [shlex.split(line) for line in documented_commands() if line.startswith("docker run")]
    return [words[next(i for i, word in enumerate(words) if word.startswith("tensorflow/serving")) :] for words in runs]


def command_lines() -> dict[str, dict[str, str]]:
    """Returns the flags of every command line of the server in this folder."""
    lines = {"Dockerfile": entry_point() | flags(json.loads(instructions()["CMD"][0]))}
    lines["compose"] = entry_point() | flags(compose()["services"]["server"]["command"])
    lines |= {run[0]: flags(run[1:]) for run in docker_runs()}
    return lines | {name: entry_point() | flags(container(overlay(name))["args"]) for name in OVERLAYS}


def test_flags_are_those_of_the_server():
    for place, line in command_lines().items():
        assert set(line) <= FLAGS, place
    text = "\n".join(
        path.read_text(encoding="utf-8") for path in FOLDER.rglob("*") if path.is_file() and "models" not in path.parts
    )
    written = set(re.findall(r"(?<![\w-])--((?:[a-z]+_)+[a-z]+)", text))
    assert FLAGS - written <= {"port"} and written <= FLAGS


def test_every_command_line_enables_xla_for_its_device():
    for place, line in command_lines().items():
        device = "gpu" if "gpu" in place else "cpu"
        assert [line.get(f"xla_{name}_compilation_enabled") for name in ("cpu", "gpu")] == (
            ["true", None] if device == "cpu" else [None, "true"]
        ), place


def test_files_of_the_flags_are_in_the_image_and_in_the_config_map():
    named = {Path(value) for flag, value in entry_point().items() if flag.endswith("_file")}
    assert {path.parent for path in named} == {Path("/config")} and "config/*.config /config/" in instructions()["COPY"]
    assert {path.name for path in named} == {path.name for path in (FOLDER / "config").glob("*.config")}
    (made,) = read_yaml("config/kustomization.yaml")[0]["configMapGenerator"]
    assert set(made["files"]) == {path.name for path in named}
    (volume,) = [volume for volume in base("Deployment")["spec"]["template"]["spec"]["volumes"] if "configMap" in volume]
    assert volume["configMap"]["name"] == made["name"]
    assert {mount["name"]: mount["mountPath"] for mount in container(base("Deployment"))["volumeMounts"]}[
        volume["name"]
    ] == "/config"


def test_version_of_the_server_is_the_same_everywhere():
    (version,) = [value.partition("=")[2] for value in instructions()["ARG"] if value.startswith("TF_SERVING_VERSION=")]
    tags = [compose()["services"]["server"]["image"], *(container(overlay(name))["image"] for name in OVERLAYS)]
    tags += [run[0] for run in docker_runs()]
    assert len(tags) == 5 and all(re.fullmatch(rf".+:{re.escape(version)}(-.+)?", tag) for tag in tags), tags


def test_ports_agree():
    line = entry_point()
    ports = {"grpc": int(line["port"]), "rest": int(line["rest_api_port"])}
    assert ports == {"grpc": 8500, "rest": 8501}
    assert {port["name"]: port["containerPort"] for port in container(base("Deployment"))["ports"]} == ports
    services = [document for document in read_yaml("kubernetes/base/services.yaml") if document]
    for port in (port for service in services for port in service["spec"]["ports"]):
        assert port["port"] == ports[port["targetPort"]]
    assert instructions()["EXPOSE"] == ["8500 8501"]


def test_nothing_is_published_beyond_this_machine():
    published = [port for service in compose()["services"].values() for port in service["ports"]]
    published += re.findall(r"-p (\S+)", "\n".join(documented_commands()))
    assert len(published) == 7 and all(port.startswith("127.0.0.1:") for port in published)


def test_no_server_runs_as_root_or_can_write_its_models():
    user = int(instructions()["USER"][0].split(":")[0])
    pod = base("Deployment")["spec"]["template"]["spec"]["securityContext"]
    assert user == pod["runAsUser"] > 0 and pod["runAsNonRoot"]
    server = compose()["services"]["server"]
    assert server["read_only"] and all(volume.endswith(":ro") for volume in server["volumes"])
    assert container(base("Deployment"))["securityContext"]["readOnlyRootFilesystem"]


def test_health_is_asked_of_a_model_and_label_that_are_configured():
    probe = container(base("Deployment"))["readinessProbe"]["httpGet"]["path"]
    assert f"HEALTH_PATH={health_path()}" in instructions()["ENV"]
    assert probe == health_path() == compose()["services"]["server"]["environment"]["HEALTH_PATH"]


@pytest.mark.parametrize("status", [200, 404, 503])
def test_health_check_is_passed_by_a_server_that_can_serve_alone(status):
    asked = []

    class Answer(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            asked.append(self.path)
            self.send_response(status)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            self.wfile.write(b"x" * 100000)

        def log_message(self, *arguments):
            pass

    command = json.loads(instructions()["HEALTHCHECK"][0].partition("CMD ")[2])
    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        command = [word.replace("127.0.0.1/8501", f"127.0.0.1/{server.server_port}") for word in command]
        result = subprocess.run(command, env={"HEALTH_PATH": health_path(), "PATH": "/usr/bin:/bin"}, timeout=LONG)
        server.shutdown()
    assert asked == [health_path()]
    assert (result.returncode == 0) == (status == 200)


def test_health_check_fails_where_nothing_listens():
    command = json.loads(instructions()["HEALTHCHECK"][0].partition("CMD ")[2])
    command = [word.replace("127.0.0.1/8501", "127.0.0.1/1") for word in command]  # port 1 has no server
    result = subprocess.run(command, env={"HEALTH_PATH": "/", "PATH": "/usr/bin:/bin"}, capture_output=True, timeout=LONG)
    assert result.returncode != 0


def readme_block(language: str, containing: str) -> str:
    blocks = re.findall(rf"```{language}\n(.*?)```", (FOLDER / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (found,) = [block for block in blocks if containing in block]
    return found


def test_documented_rest_request_has_every_input():
    command = shlex.split(readme_block("bash", "curl"))
    assert command[2] == "localhost:8501/v1/models/tiny/labels/stable:predict"
    body = json.loads(command[command.index("-d") + 1])
    assert body["signature_name"] == "text_to_png" and set(body["inputs"]) == set(INPUTS)
    assert all(len(value) == 1 for value in body["inputs"].values()) and body["inputs"]["prompt"] == [PROMPT]


def test_documented_rest_answer_becomes_a_file():
    command = shlex.split(readme_block("bash", "curl"))
    decode = command[command.index("-c") + 1]
    answer = {"outputs": {"png_bytes": [{"b64": base64.b64encode(b"\x89PNG").decode()}], "truncated_tokens": [0]}}
    result = subprocess.run([sys.executable, "-c", decode], input=json.dumps(answer).encode(), capture_output=True, check=True)
    assert result.stdout == b"\x89PNG"


def test_documented_grpc_client_sends_every_input_in_its_type(tmp_path, monkeypatch):
    import grpc
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    seen = []

    class Service(prediction_service_pb2_grpc.PredictionServiceServicer):
        def Predict(self, request, context):
            seen.append(request)
            answer = predict_pb2.PredictResponse()
            answer.outputs["png_bytes"].CopyFrom(tf.make_tensor_proto([b"\x89PNG"]))
            return answer

    server = grpc.server(ThreadPoolExecutor(1))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Service(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    monkeypatch.chdir(tmp_path)
    exec(readme_block("python", "PredictionServiceStub").replace("localhost:8500", f"127.0.0.1:{port}"), {})
    server.stop(None)
    assert (tmp_path / "star.png").read_bytes() == b"\x89PNG"
    (request,) = seen
    assert (request.model_spec.name, request.model_spec.version_label) == ("tiny", "stable")
    assert {name: tf.as_dtype(value.dtype).name for name, value in request.inputs.items()} == INPUTS
    assert {tuple(tf.make_ndarray(value).shape) for value in request.inputs.values()} == {(1,)}


def test_documented_paths_exist():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"(?<![\w./])((?:config|kubernetes)/[\w./-]+)", text)) | {
        "docker-compose.yaml",
        "Dockerfile",
        "prometheus.yaml",
    }
    assert len(named) > 8 and all((FOLDER / name.rstrip(".")).exists() for name in named), named
