import base64
import http.client
import json
import ssl
import subprocess

import pytest
from patience import LONG, until
from stand_in import TLS, Engine, held, picture, served

INPUTS = {
    "prompt": "x",
    "negative_prompt": "",
    "seed": 7,
    "index": 0,
    "guidance_scale": 3,
    "num_steps": 4,
    "sampler": "ddim",
    "height": 8,
    "width": 8,
}
PREDICT = "/v1/models/toy:predict"


class Reply:
    def __init__(self, response):
        self.status, self.headers, self.body = response.status, response.headers, response.read()

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def error(self) -> str:
        assert self.headers["Content-Type"] == "application/json" and list(self.json) == ["error"]
        return self.json["error"]


class Client:
    def __init__(self, server, context=None):
        self.port, self.context = server.rest_port, context

    def send(self, method, path, body=None, headers=None):
        made = http.client.HTTPSConnection if self.context else http.client.HTTPConnection
        options = {"context": self.context} if self.context else {}
        connection = made("localhost", self.port, timeout=LONG, **options)
        connection.request(method, path, body, headers or {})
        return connection

    def ask(self, method, path, body=None, headers=None) -> Reply:
        connection = self.send(method, path, body, headers)
        try:
            return Reply(connection.getresponse())
        finally:
            connection.close()

    def predict(self, document, path=PREDICT, **headers) -> Reply:
        return self.ask("POST", path, document if isinstance(document, (str, bytes)) else json.dumps(document), headers)


def rows(*changes, signature="text_to_png") -> dict:
    return {"signature_name": signature, "instances": [INPUTS | change for change in changes]}


def columns(signature="text_to_png", **changes) -> dict:
    return {"signature_name": signature, "inputs": {name: [value] for name, value in INPUTS.items()} | changes}


def b64(data: bytes) -> dict:
    return {"b64": base64.b64encode(data).decode()}


@pytest.fixture(scope="module")
def client(server):
    return Client(server)


def test_rows_in_rows_out(client):
    reply = client.predict(rows({"seed": 1}, {"seed": 2, "prompt": b64(b"\xff")}))
    assert reply.status == 200 and reply.headers["Content-Type"] == "application/json"
    assert reply.json == {
        "predictions": [
            {"png_bytes": b64(picture(1)), "truncated_tokens": 0},
            {"png_bytes": b64(picture(2)), "truncated_tokens": 0},
        ]
    }


def test_columns_in_columns_out(client):
    assert client.predict(columns(seed=[3])).json == {"outputs": {"png_bytes": [b64(picture(3))], "truncated_tokens": [0]}}


def test_images_and_context_come_as_numbers(client):
    assert client.predict(rows({}, signature="text_to_image")).json["predictions"][0]["images"] == [[[7] * 3] * 8] * 8
    reply = client.predict({"signature_name": "encode", "instances": ["x"]})
    assert reply.json == {"predictions": [{"context": [[0.2] * 3] * 2, "truncated_tokens": 0}]}


def test_a_prompt_alone_makes_a_picture(client):
    made = {"png_bytes": b64(picture(0)), "truncated_tokens": 0}
    assert client.predict({"instances": [{"prompt": "x"}]}).json == {"predictions": [made]}
    assert client.predict({"signature_name": "serving_default", "instances": [{"prompt": "x"}]}).status == 200
    assert client.predict({"inputs": {"prompt": ["x"]}}).json["outputs"]["png_bytes"] == [b64(picture(0))]
    some = {"instances": [{"prompt": "x"}, {"prompt": "y", "seed": 3}, {"prompt": "z", "seed": 4, "num_steps": 2}]}
    pngs = [row["png_bytes"] for row in client.predict(some).json["predictions"]]
    assert pngs == [b64(picture(seed)) for seed in (0, 3, 4)]


LINE = """curl -s localhost:PORT/v1/models/toy:predict -d '{"instances": [{"prompt": "x", "seed": 5}]}' """
PNGS = (
    '| grep -o \'"b64": *"[^"]*\' | cut -d \'"\' -f 4 | base64 -d',
    "| python3 -c 'import base64, json, sys; "
    'sys.stdout.buffer.write(base64.b64decode(json.load(sys.stdin)["predictions"][0]["png_bytes"]["b64"]))\'',
)


@pytest.mark.parametrize("png", PNGS)
def test_one_line_of_a_shell_makes_a_file(client, png, tmp_path):
    line = (LINE + png).replace("PORT", str(client.port)) + " > star.png"
    subprocess.run(["sh", "-c", line], cwd=tmp_path, check=True)
    assert (tmp_path / "star.png").read_bytes() == picture(5)


@pytest.mark.parametrize(
    "path", ["/v1/models/toy/versions/1:predict", "/V1/MODELS/toy:PREDICT", "/v1/models/t%6Fy:predict", PREDICT + "?x=1"]
)
def test_paths_of_tf_serving_reach_the_model(client, path):
    assert client.predict(rows({}), path).status == 200


@pytest.mark.parametrize(
    "path, document, status, message",
    [
        (PREDICT, "", 400, "JSON Parse error: The document is empty"),
        (PREDICT, "{", 400, "JSON Parse error"),
        (PREDICT, {"instances": [1]}, 400, "instances is a plain list, but expecting list of objects"),
        (PREDICT, rows({"steps": 5}), 400, "must only have keys: guidance_scale,height,index,"),
        (PREDICT, columns(steps=[5]), 400, "'inputs' has \"steps\", but must only have keys: guidance_scale,"),
        (PREDICT, {"instances": [{"seed": 1}]}, 400, "element: 0 of 'instances' list. It lacks prompt."),
        (PREDICT, rows({}, signature="x"), 400, 'Serving signature name: "x" not found in signature def'),
        (PREDICT, {"signature_name": 100}, 400, "'signature_name' key must be a string value."),
        (PREDICT, {"signature_name": "text_to_png", "inputs": {"seed": [1]}}, 400, "Missing named input: prompt in 'inputs'"),
        (PREDICT, columns(seed=[1.5]), 400, "JSON Value: 1.5 Type: Number is not of expected type: int64"),
        (PREDICT, columns(prompt=["x" * 10**6]), 400, "prompt must have at most 4096 bytes; got 1000000."),
        ("/v1/models/missing:predict", rows({}), 404, "Servable not found for request: Latest(missing)"),
        ("/v1/models/toy/versions/7:predict", rows({}), 404, "Servable not found for request: Specific(toy, 7)"),
        ("/v1/models/toy/labels/gone:predict", rows({}), 400, "Unrecognized servable version label: gone"),
        (f"/v1/models/toy/versions/{2**64}:predict", rows({}), 400, f"Failed to convert version: {2**64} to numeric."),
        (f"/v1/models/toy/versions/{'9' * 5000}:predict", rows({}), 400, "Failed to convert version"),
        ("/v1/models/toy/versions/x:predict", rows({}), 400, "Malformed request: POST /v1/models/toy/versions/x:predict"),
        ("/v1/models/toy", rows({}), 400, "Malformed request: POST /v1/models/toy"),
        ("/v1/models/toy:classify", rows({}), 501, "no classify"),
    ],
)
def test_codes_and_words_of_tf_serving(client, path, document, status, message):
    reply = client.predict(document, path)
    assert reply.status == status and message in reply.error


@pytest.mark.parametrize(
    "method, path, status, message",
    [
        ("GET", "/v1/foo", 400, "Malformed request: GET /v1/foo"),
        ("GET", PREDICT, 400, "Malformed request: GET"),
        ("PUT", PREDICT, 400, "Malformed request: PUT"),
        ("GET", "/v1/models", 400, "Missing model name in request."),
        ("GET", "/v1/models/missing", 404, "Could not find any versions of model missing"),
        ("GET", "/v1/models/toy/versions/7", 404, "Could not find version 7 of model toy"),
        ("GET", "/v1/models/missing/metadata", 404, "Servable not found for request: Latest(missing)"),
        ("GET", "/v1/requests/nothing", 404, "No request with this id"),
        ("GET", "/nothing", 404, "Not Found"),
        ("GET", "/../server.py", 404, "Not Found"),
        ("GET", "/%2e%2e/server.py", 404, "Not Found"),
        ("POST", "/metrics", 405, "Method Not Allowed"),
    ],
)
def test_other_paths_are_refused(client, method, path, status, message):
    reply = client.ask(method, path)
    assert reply.status == status and message in reply.error


def test_status_tells_the_versions(client):
    status = {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    for path in ("/v1/models/toy", "/v1/models/toy/versions/1"):
        assert client.ask("GET", path).json == {"model_version_status": [status]}


def test_metadata_holds_the_signatures(client):
    document = client.ask("GET", "/v1/models/toy/metadata").json
    assert document["model_spec"] == {"name": "toy", "signature_name": "", "version": "1"}
    signatures = document["metadata"]["signature_def"]["signature_def"]
    shape = {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False}
    assert signatures["text_to_png"]["inputs"]["seed"] == {"dtype": "DT_INT64", "name": "seed:0", "tensor_shape": shape}
    assert set(signatures) == {"text_to_png", "text_to_image", "encode"}


# Progress


def test_progress_is_told_by_the_id_of_the_request(client, engine):
    with held(engine):
        connection = client.send("POST", PREDICT, json.dumps(columns(num_steps=[3])), {"X-Request-ID": "my/id"})
        until(lambda: client.ask("GET", "/v1/requests/my/id").status == 200)
        until(lambda: client.ask("GET", "/v1/requests/my/id").json["state"] == "running")
    reply = Reply(connection.getresponse())
    assert reply.status == 200 and reply.headers["X-Request-ID"] == "my/id"
    assert client.ask("GET", "/v1/requests/my/id").json == {"state": "done", "done": 3, "steps": 3, "position": 0}


def test_an_id_that_would_break_a_log_is_replaced(client):
    reply = client.predict(rows({}), **{"X-Request-ID": 'a "quoted" id'})
    assert len(reply.headers["X-Request-ID"]) == 32


# Around the models


def test_metrics_are_where_prometheus_and_tf_servings_users_look(client):
    client.predict(rows({}))
    for path in ("/metrics", "/monitoring/prometheus/metrics"):
        reply = client.ask("GET", path)
        assert reply.status == 200 and reply.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        assert b'tfsd_requests_total{code="OK",method="rest",model="toy",signature="text_to_png"}' in reply.body


def test_page_is_served_with_headers_that_keep_others_out(client):
    page = client.ask("GET", "/")
    assert page.status == 200 and page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert page.headers["Cache-Control"] == "no-store" and page.headers["X-Content-Type-Options"] == "nosniff"
    assert page.headers["X-Frame-Options"] == "DENY" and "frame-ancestors 'none'" in page.headers["Content-Security-Policy"]
    assert page.headers["Content-Security-Policy"].startswith("default-src 'self';")
    assert client.ask("GET", "/index.html").body == page.body
    script = client.ask("GET", "/app.js")
    assert script.status == 200 and script.headers["Content-Type"] == "text/javascript; charset=utf-8"


def test_page_learns_the_models_without_their_lists_of_files(client):
    assert client.ask("GET", "/config.json").json == {"models": [{"format": 1, "name": "toy", "version": 1, "sizes": [[8, 8]]}]}


def test_a_token_is_asked_for_everywhere_but_on_the_page_and_in_health():
    with served(Engine(), token="s3cret") as server:
        client = Client(server)
        for path in ("/config.json", "/metrics", "/v1/models/toy", "/v1/requests/x", "/nothing"):
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer é".encode("latin-1")}):
                reply = client.ask("GET", path, headers=headers)
                assert reply.status == 401 and reply.headers["WWW-Authenticate"] == "Bearer" and "s3cret" not in reply.error
        assert client.predict(rows({})).status == 401
        assert all(client.ask("GET", path).status == 200 for path in ("/", "/app.js", "/healthz"))
        assert client.predict(rows({}), Authorization="Bearer s3cret").status == 200


def test_tls_serves_those_who_trust_the_certificate():
    with served(Engine(), tls_cert=TLS / "cert.pem", tls_key=TLS / "key.pem") as server:
        assert Client(server, ssl.create_default_context(cafile=TLS / "cert.pem")).predict(rows({})).status == 200
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            Client(server).predict(rows({}))
