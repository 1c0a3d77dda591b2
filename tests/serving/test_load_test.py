import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from patience import LONG, until
from prometheus_client import CollectorRegistry

from tfsd.cli import main
from tfsd.serving.load_test import server_metrics
from tfsd.serving.load_test.runner import latencies
from tfsd.serving.server.metrics import Metrics


@pytest.mark.parametrize("count", [1, 2, 9, 10, 99, 100, 101])
def test_percentiles_are_those_of_numpy(count):
    values = np.random.default_rng(count).exponential(size=count)
    found = latencies(list(values))
    for share in (50, 90, 99):
        assert found[f"p{share}"] == np.percentile(values, share, method="inverted_cdf")
    assert found["max"] == values.max() and found["mean"] == pytest.approx(values.mean())
    assert latencies([]) is None


def test_counts_between_two_readings_are_those_that_were_made():
    metrics = Metrics()

    def read():
        return server_metrics.read(metrics.render()[0].decode())

    for model, rows in (("a", 1), ("a", 3), ("b", 20)):
        metrics.batch_rows.labels(model).observe(rows)
    metrics.rejected.labels("deadline").inc(4)
    before = read()
    for model, rows in (("a", 1), ("a", 2), ("a", 3), ("b", 4), ("c", 8), ("b", 17), ("b", 30)):
        metrics.batch_rows.labels(model).observe(rows)
    metrics.rejected.labels("queue_full").inc(2)
    assert server_metrics.difference(before, read()) == {
        "batches": {"1": 1, "2": 1, "3-4": 2, "5-8": 1, "17 or more": 2},
        "rows_per_batch": pytest.approx(65 / 7),
        "refused": {"queue_full": 2},
    }


def test_nothing_is_made_up_about_a_server_that_counts_nothing():
    registry = Metrics()
    registry.registry = CollectorRegistry()
    empty = server_metrics.read(registry.render()[0].decode())
    assert server_metrics.difference(empty, empty) == {"batches": {}, "rows_per_batch": None, "refused": {}}
    assert set(server_metrics.difference(None, empty).values()) == {None}
    assert empty["resident_bytes"] is None


@pytest.mark.slow
def test_exported_model_is_served_loaded_and_compared_with_itself(toy_export, capsys):
    argv = ["load-test", str(toy_export), "--requests", "8", "--concurrency", "4", "--compare", "--overhead", "--json"]
    assert main(argv) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["load"]["answered"] == 8 and report["load"]["batches"] == {"1": 8}
    assert report["memory"]["server_peak_bytes"] > 100 * 2**20  # TensorFlow alone takes more
    assert report["compare"]["rounds"] == 2 and report["compare"]["same_bytes"]
    overhead = report["overhead"]
    assert overhead["rounds"] == 8 and overhead["same_bytes"]
    for name in ("model_ms", "grpc_ms", "rest_ms"):
        assert overhead[name] > 0
    assert {"grpc_added_ms", "rest_added_ms", "beyond_model_ms"} < set(overhead)


@pytest.mark.slow
def test_a_load_test_that_is_terminated_leaves_no_server(toy_export):
    root = Path(__file__).parents[2]
    argv = [sys.executable, "-m", "tfsd", "load-test", str(toy_export), "--requests", "100000", "--seconds", "100"]
    process = subprocess.Popen(argv, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    until(lambda: _servers(process.pid))
    (server,) = _servers(process.pid)
    process.send_signal(signal.SIGTERM)
    assert process.wait(LONG) == 130
    with pytest.raises(ProcessLookupError):
        os.kill(server, 0)


def _servers(parent: int) -> list[int]:
    """The children of a process that serve."""
    lists = Path(f"/proc/{parent}/task").glob("*/children")  # of every thread
    children = [int(child) for children in lists for child in children.read_text().split()]
    return [child for child in children if b"serve" in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")]
