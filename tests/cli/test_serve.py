import logging
import subprocess
import sys

import pytest
from command_line import ROOT, one_line


@pytest.fixture(autouse=True)
def loggers():
    """The loggers as they were: the command sends them to its own standard error."""
    found = [logging.getLogger(name) for name in ("tfsd.serving", "aiohttp.server", "grpc")]
    before = [(logger, logger.handlers, logger.propagate, logger.level) for logger in found]
    yield
    for logger, logger.handlers, logger.propagate, level in before:
        logger.setLevel(level)


@pytest.mark.parametrize(
    "argv, status, message",
    [
        ((), 2, "give a folder of models or --model-config-file"),
        ((".", "--model-config-file", "x"), 2, "one of the two"),
        ((".", "--grpc-port", "70000"), 2, "a whole number from 0 to 65535"),
        ((".", "--max-queue", "0"), 2, "a whole number from 1"),
        ((".", "--tls-cert", "x"), 2, "--tls-cert and --tls-key belong together"),
        ((".", "--token-file", "empty"), 2, "--token-file must hold one word of ASCII"),
        ((".", "--token-file", "missing"), 1, "No such file"),
        ((".", "--allowed-hosts", "http://x"), 2, "--allowed-hosts must be a name"),
        ((".", "--cors-origin", "https://x,example.com"), 2, "--cors-origin must be an origin"),
        (("missing",), 1, "missing does not exist"),
        (("--model-config-file", "missing"), 1, "missing does not exist"),
        (("--model-config-file", "empty"), 1, "ModelConfigList"),
        (("--model-config-file", "wrong"), 1, "wrong is not a ModelServerConfig in text form"),
        ((".",), 1, "holds no exported model"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_usage_and_failures_are_one_line(place, run, argv, status, message):
    (place / "empty").touch()
    (place / "wrong").write_text("model_config_list { nonsense }")
    got, out, err = run("serve", *argv)
    assert (got, out) == (status, "")
    assert one_line(err) and message in err


def test_missing_packages_are_named_with_the_command_that_installs_them(place, run, monkeypatch):
    monkeypatch.setattr("tfsd.cli.serve.NEEDED", ("json", "aiohttp_of_the_future"))
    status, out, err = run("serve", ".")
    assert (status, out) == (1, "") and one_line(err)
    assert 'aiohttp_of_the_future: pip install "tfsd[serving]"' in err


def test_the_command_line_loads_no_server_before_it_serves():
    script = "import sys, tfsd.cli as c; c.build_parser(); print({'tensorflow', 'grpc', 'aiohttp'} & set(sys.modules))"
    assert (
        subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True).stdout == "set()\n"
    )


@pytest.mark.parametrize(
    "argv, lacking",
    [
        ((), "--token-file and --tls-cert"),
        (("--token-file", "token"), "--tls-cert"),
    ],
)
def test_a_server_that_others_can_reach_unprotected_says_so(place, run, argv, lacking):
    (place / "token").write_text("s3cret\n")
    _, out, err = run("serve", ".", "--host", "0.0.0.0", *argv)
    assert out == "" and f"WARNING anyone who can reach 0.0.0.0 may use or overhear this server: it has no {lacking}\n" in err
    assert "s3cret" not in err
