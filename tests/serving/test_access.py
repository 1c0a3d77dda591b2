"""Who may ask the HTTP side: names, origins, content types; what browsers send is taken from the Fetch Standard."""

import json
import re
import shlex

import pytest
from stand_in import Engine, served
from test_rest import PREDICT, Client, rows

from tfsd.serving.server.access import host_pattern, origin_pattern

APP = "https://app.example.com"
ASK = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
PATHS = ("/", "/app.js", "/config.json", "/metrics", "/v1/models/toy", "/v1/models/toy/metadata", "/v1/requests/x", "/nothing")


@pytest.fixture(scope="module")
def engine():
    return Engine()


@pytest.fixture(scope="module")
def client(engine):
    with served(engine) as server:
        yield Client(server)


@pytest.fixture(scope="module")
def open_client(engine):
    with served(engine, allowed_hosts=("tfsd.example.com", ".example.org"), cors_origins=(APP,)) as server:
        yield Client(server)


def predict(client, document=None, **headers):
    headers = {"Content-Type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
    return client.predict(document or rows({}), **headers)


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8501", "localhost.evil.example", "127.0.0.1.evil.example", "a b", "@", "*"]
)
def test_a_name_that_was_rebound_to_this_machine_is_refused_everywhere(client, engine, host):
    jobs = engine.jobs
    for path in PATHS:
        assert client.ask("GET", path, headers={"Host": host}).status == 403, path
    assert predict(client, Host=host).status == 403 and engine.jobs == jobs


@pytest.mark.parametrize("host", ["tfsd.example.com", "TFSD.Example.com.:8501", "a_b"])
def test_the_option_that_a_refused_name_needs_lets_it_in(client, engine, host):
    error = client.ask("GET", "/config.json", headers={"Host": host}).error
    option = re.fullmatch(r".* start the server with --allowed-hosts (\S+)\.", error)
    with served(engine, allowed_hosts=(option[1],)) as server:
        assert Client(server).ask("GET", "/config.json", headers={"Host": host}).status == 200


@pytest.mark.parametrize(
    "host", ["*", "*:8501", ".example.com", "*.example.com", "@", "a b", "[::1", "a;b", "ü.example", "a" * 300]
)
def test_no_option_is_advised_for_a_host_that_is_no_name(client, host):
    """Each would be refused, or let in more than this one: "*" is the option for any name, ".example.com" for many."""
    error = client.ask("GET", "/config.json", headers={"Host": host}).error
    assert "not a host name" in error and "--allowed-hosts" not in error and len(error) < 300


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:1", "localhost.", "tfsd.localhost:8501", "127.0.0.1:8501", "[::1]:8501", "10.1.2.3", "[fe80::1]"],
)
def test_own_names_and_addresses_need_no_option(client, host):
    assert client.ask("GET", "/", headers={"Host": host}).status == 200
    assert predict(client, Host=host).status == 200


def test_names_that_were_allowed_are_taken_with_all_below_a_dot(open_client):
    for host in ("tfsd.example.com:443", "example.org", "a.b.example.org"):
        assert open_client.ask("GET", "/config.json", headers={"Host": host}).status == 200
    for host in ("example.com", "a.tfsd.example.com", "notexample.org"):
        assert open_client.ask("GET", "/config.json", headers={"Host": host}).status == 403


def test_what_a_proxy_says_of_the_host_changes_nothing(client):
    headers = {"Host": "evil.example", "X-Forwarded-Host": "localhost", "Forwarded": "host=localhost"}
    assert client.ask("GET", "/config.json", headers=headers).status == 403
    headers = {"X-Forwarded-Host": "evil.example", "X-Forwarded-For": "1.2.3.4"}
    assert client.ask("GET", "/config.json", headers=headers).status == 200


def test_health_answers_under_any_name(client):
    assert client.ask("GET", "/healthz", headers={"Host": "balancer.example"}).status == 200


@pytest.mark.parametrize(
    "origin", [APP, "http://localhost:1", "http://127.0.0.1", "null", "file://", "chrome-extension://abc", "x"]
)
@pytest.mark.parametrize("kind", ["application/json", "text/plain", "application/x-www-form-urlencoded"])
def test_a_page_of_another_site_cannot_predict(client, engine, origin, kind):
    jobs = engine.jobs
    reply = predict(client, Origin=origin, Content_Type=kind)
    assert reply.status == 403 and "Access-Control-Allow-Origin" not in reply.headers
    assert engine.jobs == jobs


@pytest.mark.parametrize("origin", [APP, "http://localhost:1", "chrome-extension://abc", "http://a$(x)", "http://a'b"])
def test_the_option_that_a_refused_page_needs_lets_it_in(client, engine, origin):
    error = predict(client, Origin=origin).error
    option = error.partition(" start the server with ")[2].removesuffix(".")
    name, value = shlex.split(option)  # a person pastes it into a shell
    assert (name, value) == ("--cors-origin", origin)
    with served(engine, cors_origins=(value,)) as server:
        assert predict(Client(server), Origin=origin).status == 200


@pytest.mark.parametrize("origin", ["null", "file://", "NULL"])
def test_a_page_without_an_origin_is_not_advised_to_let_in_all_such_pages(client, origin):
    """Any site can make one, by a sandboxed frame for instance."""
    error = predict(client, Origin=origin).error
    assert "any site can" in error and "over HTTP" in error and "--cors-origin null" not in error and "file://" not in error


@pytest.mark.parametrize("origin", ["*", "x", "", "http://", "https://a/b", "https://a@b", "http://" + "a" * 3000])
def test_no_option_is_advised_for_an_origin_that_is_none(client, origin):
    error = predict(client, Origin=origin).error
    assert "not an origin" in error and "--cors-origin" not in error and len(error) < 300


def test_a_page_of_another_site_can_ask_nothing_and_read_nothing(client):
    for path in PATHS:
        reply = client.ask("GET", path, headers={"Origin": APP})
        assert reply.status == 403 and "Access-Control-Allow-Origin" not in reply.headers, path
        reply = client.ask("GET", path)  # an <img> or <script> sends no Origin
        assert reply.headers["Cross-Origin-Resource-Policy"] == "same-origin", path
        assert reply.headers["X-Content-Type-Options"] == "nosniff", path
    reply = client.ask("OPTIONS", PREDICT, headers={"Origin": APP, **ASK})
    assert reply.status == 403 and "Access-Control-Allow-Methods" not in reply.headers
    assert predict(client, Sec_Fetch_Site="cross-site").status == 403


def test_the_page_itself_may_ask(client):
    for host, origin in (
        (f"localhost:{client.port}", f"http://localhost:{client.port}"),
        ("localhost", "http://localhost"),
        ("localhost:443", "https://localhost"),  # a proxy ended TLS
        ("[::1]:8501", "http://[::1]:8501"),
    ):
        assert predict(client, Host=host, Origin=origin, Sec_Fetch_Site="same-origin").status == 200


def test_a_page_must_send_json_by_its_name(client):
    own = {"Host": "localhost", "Origin": "http://localhost"}
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        reply = predict(client, **own, Content_Type=kind)
        assert reply.status == 415 and "application/json" in reply.error
    assert predict(client, **own, Content_Type="application/json; charset=utf-8").status == 200


def test_programs_may_send_json_as_curl_does_by_default(client):
    for kind in ("application/x-www-form-urlencoded", "text/plain"):
        assert predict(client, Content_Type=kind).status == 200
    assert client.ask("POST", PREDICT, json.dumps(rows({}))).status == 200


def test_pages_of_an_allowed_origin_may_ask_and_read(open_client):
    reply = open_client.ask("OPTIONS", PREDICT, headers={"Origin": APP, **ASK})
    assert reply.status == 204 and reply.headers["Access-Control-Allow-Origin"] == APP
    assert {"Content-Type", "Authorization", "X-Request-ID"} <= set(reply.headers["Access-Control-Allow-Headers"].split(", "))
    assert {"GET", "POST"} <= set(reply.headers["Access-Control-Allow-Methods"].split(", "))
    for reply in (predict(open_client, Origin=APP), open_client.ask("GET", "/nothing", headers={"Origin": APP})):
        assert reply.headers["Access-Control-Allow-Origin"] == APP and "Origin" in reply.headers["Vary"]
    assert "Origin" in open_client.ask("GET", "/config.json").headers["Vary"]  # a cache must not mix the two
    assert predict(open_client, Origin="https://other.example.com").status == 403


def test_a_page_learns_that_the_token_is_missing(engine):
    with served(engine, token="s3cret", cors_origins=("*",)) as server:
        client = Client(server)
        assert client.ask("OPTIONS", PREDICT, headers={"Origin": APP, **ASK}).status == 204  # browsers ask without it
        reply = predict(client, Origin=APP)
        assert reply.status == 401 and reply.headers["Access-Control-Allow-Origin"] == APP
        assert predict(client, Origin=APP, Authorization="Bearer s3cret").status == 200


def test_a_star_allows_all(engine):
    with served(engine, allowed_hosts=("*",), cors_origins=("*",)) as server:
        assert predict(Client(server), Host="any.example", Origin="null").status == 200


@pytest.mark.parametrize("text", ["", "http://x", "a/b", "x:80", "a b", "*.example.com"])
def test_what_is_no_name_is_refused_at_the_start(text):
    with pytest.raises(ValueError, match="must be a name"):
        host_pattern(text)


@pytest.mark.parametrize("text", ["", "app.example.com", "https://", "https://x/y", "https://a@b"])
def test_what_is_no_origin_is_refused_at_the_start(text):
    with pytest.raises(ValueError, match="must be an origin"):
        origin_pattern(text)
