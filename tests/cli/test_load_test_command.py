"""`tfsd load-test` against a server with an engine whose speed is known."""

import json
import re
import signal
import sys
from pathlib import Path

import pytest
from command_line import one_line, start

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests/serving"))

from patience import LONG, until  # noqa: E402
from stand_in import STEP_SECONDS, TLS, Engine, held, served  # noqa: E402


def there(server, *options) -> tuple[str, ...]:
    addresses = ("--server", f"127.0.0.1:{server.grpc_port}", "--rest", f"127.0.0.1:{server.rest_port}")
    return ("load-test", *addresses, "--model", "toy", *map(str, options))


@pytest.mark.parametrize(
    "argv, status, message",
    [
        ((), 2, "give a folder of models to serve, or --server HOST:PORT"),
        (("missing",), 1, "missing does not exist"),
        ((".",), 1, "holds no exported model"),
        (("two",), 2, "two holds several models: a, b. Choose one with --model."),
        (("two", "--model", "c"), 2, "--model must be one of a, b; got 'c'."),
        (("--server", "127.0.0.1:8500", "--overhead"), 2, "--overhead requires DIR"),
        (("--server", "127.0.0.1:8500", "--max-queue", "3"), 2, "--max-queue cannot be given with --server"),
        ((".", "--rest", "127.0.0.1:8501"), 2, "--rest requires --server"),
        ((".", "--token-file", "x"), 2, "--token-file requires --server"),
        ((".", "--tls-ca", "x"), 2, "--tls-ca requires --server"),
        (("--server", "127.0.0.1:1", "--token-file", "toy/spec.json"), 2, "--token-file must hold one word"),
        (("--server", "127.0.0.1:1", "--token-file", "missing"), 1, "No such file"),
        (("--server", "127.0.0.1:1", "--tls-ca", "toy/spec.json"), 2, "holds no certificate"),
        (("--server", "example.com:8500"), 2, "--allow-remote if that server is yours"),
        (("--server", "127.example.com:8500"), 2, "--allow-remote if that server is yours"),
        (("--server", "127.0.0.1:8500", "--rest", "10.0.0.1:8501"), 2, "--rest must be an address of this machine"),
        (("--server", "localhost"), 2, "--server must be an address of this machine"),
        ((".", "--requests", "0"), 2, "a whole number from 1"),
        ((".", "--concurrency", "1000"), 2, "a whole number from 1 to 512"),
        ((".", "--seconds", "nan"), 2, "a number from 0.1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_usage_and_failures_are_one_line(place, run, argv, status, message):
    for name in ("a", "b"):
        (place / "two" / name / "1").mkdir(parents=True)
        (place / "two" / name / "1" / "saved_model.pb").touch()
    got, out, err = run("load-test", *argv)
    assert (got, out) == (status, "")
    assert one_line(err) and message in err


def test_a_server_with_token_and_certificate_is_tested_by_both_protocols(run, place):
    (place / "token").write_text("s3cret\n")
    with served(Engine(), token="s3cret", tls_cert=TLS / "cert.pem", tls_key=TLS / "key.pem") as server:
        options = ("--requests", 3, "--steps", 2, "--json", "--tls-ca", TLS / "cert.pem")
        status, out, err = run(*there(server, *options, "--token-file", "token"))
        assert (status, err) == (0, "")
        report = json.loads(out)
        assert report["load"]["answered"] == 3 and report["load"]["batches"] == {"1": 3}  # counts come over HTTP
        status, out, err = run(*there(server, *options))
        assert (status, out) == (1, "") and one_line(err) and "UNAUTHENTICATED" in err


def test_report_holds_what_the_server_did(run):
    engine = Engine()
    with served(engine) as server:
        status, out, err = run(*there(server, "--requests", 20, "--concurrency", 4, "--rows", 2, "--steps", 5, "--json"))
    assert (status, err) == (0, "")
    report = json.loads(out)
    load, latency = report["load"], report["load"]["latency_ms"]
    assert (load["requests"], load["answered"], load["unfinished"], load["errors"]) == (20, 20, 0, {})
    assert load["batches"] == {"1": 40} and load["rows_per_batch"] == 1 and load["refused"] == {}
    assert engine.jobs == 42  # and those of the request before the test
    assert latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["max"]
    assert latency["p50"] >= 1000 * 5 * STEP_SECONDS
    assert load["pictures_per_second"] == pytest.approx(40 / load["seconds"])
    assert load["pictures_per_second"] <= 2 / (5 * STEP_SECONDS)  # two workers
    assert report["memory"]["server_resident_bytes"] > 2**20


def test_a_full_queue_is_a_result_and_no_failure(run):
    with served(Engine(), max_queue_rows=1) as server:
        status, out, _ = run(*there(server, "--requests", 40, "--concurrency", 20, "--steps", 200, "--json"))
    load = json.loads(out)["load"]
    assert status == 0 and list(load["errors"]) == ["RESOURCE_EXHAUSTED"]
    assert load["answered"] + load["errors"]["RESOURCE_EXHAUSTED"] == 40 and load["answered"] > 0
    assert load["refused"] == {"queue_full": load["errors"]["RESOURCE_EXHAUSTED"]}


def test_the_time_is_kept_and_what_it_cut_off_is_told(run):
    engine = Engine()
    with served(engine) as server:
        status, out, _ = run(*there(server, "--requests", 1000, "--steps", 50, "--seconds", 4, "--json"))
        until(lambda: not server.scheduler.busy)
    load = json.loads(out)["load"]
    assert status == 0 and load["errors"] == {}
    assert load["answered"] + load["unfinished"] == 1000 and 0 < load["answered"] < 1000


def test_the_same_requests_are_timed_together_and_one_after_another(run):
    with served(Engine()) as server:
        argv = there(server, "--requests", 16, "--concurrency", 8, "--steps", 30, "--compare")
        status, out, _ = run(*argv, "--json")
        found = json.loads(out)["compare"]
        assert status == 0 and (found["concurrent"], found["rounds"], found["same_bytes"]) == (8, 2, True)
        assert found["sequential_ms"] >= 8 * 1000 * 30 * STEP_SECONDS
        assert found["concurrent_ms"] >= 4 * 1000 * 30 * STEP_SECONDS  # two workers
        assert found["ratio"] == pytest.approx(found["sequential_ms"] / found["concurrent_ms"])
        status, out, _ = run(*argv)
    assert status == 0 and "answered    " in out and "16 of 16 requests, 8 at once" in out
    assert re.search(r"^ratio +\d\.\d\d; the bytes are the same$", out, re.MULTILINE)


def test_errors_of_the_server_are_told_and_fail_the_command(run):
    with served(Engine()) as server:
        status, out, err = run(*there(server, "--model", "other"))
        assert (status, out) == (1, "") and one_line(err) and "NOT_FOUND" in err
    status, out, err = run(*there(server))
    assert (status, out) == (1, "") and one_line(err) and "UNAVAILABLE" in err


def test_without_rest_only_the_servers_own_counts_are_missing(run):
    with served(Engine()) as server:
        argv = there(server, "--requests", 4)
        status, out, _ = run(*argv[:3], *argv[5:], "--json")
    load = json.loads(out)["load"]
    assert status == 0 and load["answered"] == 4
    assert load["batches"] is load["refused"] is None


def test_ctrl_c_ends_it_in_one_line_and_frees_the_server():
    engine = Engine()
    with served(engine) as server:
        process = start(*there(server, "--requests", 10_000, "--steps", 20))
        try:
            until(lambda: engine.jobs > 4)
            with held(engine):  # nothing is answered any more, so only Ctrl-C can empty the queue
                until(lambda: server.scheduler.queue_rows > 0)
                process.send_signal(signal.SIGINT)
                out, err = process.communicate(timeout=LONG)
                until(lambda: server.scheduler.queue_rows == 0)
        finally:
            process.kill()
    assert (process.returncode, out, err) == (130, "", "tfsd: interrupted; nothing more was written\n")
