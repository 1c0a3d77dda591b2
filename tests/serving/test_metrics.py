import os
from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tfsd.serving.server.metrics import Metrics


def values(metrics: Metrics) -> dict[tuple, float]:
    """Reads the page as Prometheus does: (name, sorted labels) -> value."""
    page, _ = metrics.render()
    families = text_string_to_metric_families(page.decode())
    return {(s.name, *sorted(s.labels.items())): s.value for family in families for s in family.samples}


def count(metrics: Metrics, **labels):
    given = {"model": "tiny", "signature": "text_to_png", "method": "grpc", "code": "OK", "seconds": 0.1}
    metrics.count_request(**{**given, **labels})


def requests(metrics: Metrics) -> dict[tuple, float]:
    return {key[1:]: value for key, value in values(metrics).items() if key[0] == "tfsd_requests_total"}


@pytest.fixture
def metrics():
    metrics = Metrics()
    metrics.show_versions("tiny", ["AVAILABLE"])
    return metrics


def test_requests_are_counted_by_model_signature_method_and_code(metrics):
    count(metrics)
    count(metrics)
    count(metrics, code="NOT_FOUND")
    labels = [("method", "grpc"), ("model", "tiny"), ("signature", "text_to_png")]
    assert requests(metrics) == {(("code", "OK"), *labels): 2, (("code", "NOT_FOUND"), *labels): 1}
    assert values(metrics)[("tfsd_request_seconds_count", *labels)] == 3


def test_two_servers_in_one_process_count_apart(metrics):
    count(metrics)
    assert requests(Metrics()) == {}


def test_names_that_clients_invent_make_no_new_series(metrics):
    for i in range(50):
        count(metrics, model=f"model{i}", code="NOT_FOUND")
        count(metrics, signature=f"signature{i}", code="INVALID_ARGUMENT")
    assert sorted(requests(metrics).values()) == [50, 50]


def test_versions_are_shown_by_state(metrics):
    metrics.show_versions("tiny", ["AVAILABLE", "END", "END"])
    shown = values(metrics)
    states = {state: shown["tfsd_model_versions", ("model", "tiny"), ("state", state)] for state in ("AVAILABLE", "END", "START")}
    assert states == {"AVAILABLE": 1, "END": 2, "START": 0}


def test_page_has_what_an_alert_needs_before_the_first_request():
    shown = values(Metrics())
    assert shown["tfsd_queue_rows",] == 0
    assert shown["tfsd_rejected_total", ("reason", "queue_full")] == 0
    assert shown["process_resident_memory_bytes",] > 0 if os.path.exists("/proc/self/stat") else True


def test_content_type_is_the_one_that_prometheus_accepts(metrics):
    page, content_type = metrics.render()
    assert content_type.startswith("text/plain; version=0.0.4") and page.endswith(b"\n")


def test_counting_from_many_threads_loses_nothing(metrics):
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: count(metrics), range(400)))
    assert list(requests(metrics).values()) == [400]
