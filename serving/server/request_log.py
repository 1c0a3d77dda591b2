"""The log line and the metrics of one request."""

import time

from tfsd.serving.server.active_request import RequestTiming
from tfsd.serving.server.logs import LOGGER
from tfsd.serving.server.metrics import Metrics

MAX_NAME = 100  # letters of a model's name in the log; clients may send any


class RequestLog:
    """What is logged and counted of a request, collected while it is answered; prompts are not part of it."""

    def __init__(self, *, request_id: str, method: str, model: str, version: int | None):
        self.model, self.method = model, method
        self.fields: dict = {"id": request_id, "method": method, "model": model[:MAX_NAME], "version": version}
        self.timing = RequestTiming()
        self.code = "UNKNOWN"
        self.arrived = time.monotonic()

    def write(self, metrics: Metrics):
        """Counts the request and writes its line, when it has ended with `code`."""
        timing, seconds = self.timing, time.monotonic() - self.arrived
        labels = {"model": self.model, "signature": self.fields.get("signature", ""), "method": self.method, "code": self.code}
        metrics.count_request(**labels, seconds=seconds, model_seconds=timing.read_seconds + timing.run_seconds)
        times = {"read_ms": timing.read_seconds, "queue_ms": timing.queue_seconds, "run_ms": timing.run_seconds, "ms": seconds}
        rounded = {name: round(1000 * value, 1) for name, value in times.items()}
        LOGGER.info("request", extra={"fields": self.fields | rounded | {"code": self.code}})
