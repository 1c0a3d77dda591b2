"""The server's metrics for Prometheus."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
STATES = ("START", "LOADING", "AVAILABLE", "UNLOADING", "END")
SIGNATURES = frozenset({"text_to_png", "text_to_image", "encode", "denoise", "decode", "serving_default"})
REASONS = ("queue_full", "deadline", "cancelled", "draining", "crash")
SECONDS = (0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120)  # from a refusal to a large image on a CPU
STEP_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10)
ROWS = (1, 2, 4, 8, 16)


class Metrics:
    """The metrics of one server, in a separate registry, so that a process can run several servers.

    Clients cannot create labels: a model that was never configured, or a signature that no export has, is counted under
    the empty label.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._models: set[str] = set()
        self.requests = self._make(Counter, "requests", "Requests answered.", ("model", "signature", "method", "code"))
        self.request_seconds = self._make(
            Histogram, "request_seconds", "From request to answer.", ("model", "signature", "method"), buckets=SECONDS
        )
        self.queue_seconds = self._make(
            Histogram, "queue_seconds", "That a request waited before its first row was started.", ("model",), buckets=SECONDS
        )
        self.model_seconds = self._make(
            Histogram, "model_seconds", "That the model needed for a request, from checks to PNG.", ("model",), buckets=SECONDS
        )
        self.queue_rows = self._make(Gauge, "queue_rows", "Rows that wait for a worker.")
        self.queue_limit = self._make(Gauge, "queue_limit_rows", "Rows that may wait before requests are refused.")
        self.running_rows = self._make(Gauge, "running_rows", "Rows in jobs that run.")
        self.batch_rows = self._make(Histogram, "batch_rows", "Rows computed together in one job.", ("model",), buckets=ROWS)
        self.step_seconds = self._make(Histogram, "step_seconds", "One step of a job.", ("model",), buckets=STEP_SECONDS)
        self.rejected = self._make(Counter, "rejected", "Requests without an answer, by reason.", ("reason",))
        self.load_seconds = self._make(Gauge, "model_load_seconds", "Loading and warming up a version.", ("model", "version"))
        self.versions = self._make(Gauge, "model_versions", "Versions of a model by state.", ("model", "state"))
        for reason in REASONS:
            self.rejected.labels(reason)

    def _make(self, kind, name: str, text: str, labels: tuple[str, ...] = (), **options):
        return kind(f"tfsd_{name}", text, labels, registry=self.registry, **options)

    def count_request(self, *, model: str, signature: str, method: str, code: str, seconds: float, model_seconds: float = 0.0):
        """Counts one request that has ended.

        Args:
            method: "grpc" or "rest".
            code: "OK" or a key of `tfsd.serving.wire.errors.CODES`.
            seconds: from request to answer.
            model_seconds: the part of them in which the model computed.
        """
        model = model if model in self._models else ""
        signature = signature if signature in SIGNATURES else ""
        self.requests.labels(model, signature, method, code).inc()
        self.request_seconds.labels(model, signature, method).observe(seconds)
        if code == "OK":
            self.model_seconds.labels(model).observe(model_seconds)

    def show_versions(self, model: str, states: Iterable[str]):
        """Sets how many versions of a model are in each state; `states` has one entry per version."""
        self._models.add(model)
        states = list(states)
        for state in STATES:
            self.versions.labels(model, state).set(states.count(state))

    def render(self) -> tuple[bytes, str]:
        """Returns the text that Prometheus reads, and its content type."""
        return generate_latest(self.registry), CONTENT_TYPE
