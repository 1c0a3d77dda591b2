"""The request queue: every request that has not ended, from its arrival to its outcome."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Iterable
from functools import partial
from typing import Any

from tfsd.serving.server.active_request import ActiveRequest, State
from tfsd.serving.server.batch import Batch, choose_batch
from tfsd.serving.server.logs import LOGGER
from tfsd.serving.server.metrics import Metrics
from tfsd.serving.server.progress import ProgressBoard
from tfsd.serving.server.queue_limits import QueueLimits
from tfsd.serving.wire.errors import ServerError


class RequestQueue:
    """Thread-safe table of all active requests; the only code that changes a request's state.

    `receive` adds a request, `add_rows` queues its rows, `next_batch` takes rows out of the queue to be computed. Every
    request ends exactly once, in `_end`: with its results (`deliver`), an error (`fail`, `crash`), at its deadline
    (`check_deadline`), when its caller leaves (`cancel`), or with the server (`close`).
    """

    def __init__(self, limits: QueueLimits, metrics: Metrics):
        self.limits, self.metrics = limits, metrics
        self.progress = ProgressBoard()
        self._active: set[ActiveRequest] = set()
        self._waiting: dict[ActiveRequest, None] = {}  # those with waiting rows, in the order in which they were queued
        self._running: Counter = Counter()  # jobs, by engine
        self._draining = self._closed = False
        # Guards all of the above; workers wait on it for a batch.
        self._changed = threading.Condition(threading.RLock())
        metrics.queue_limit.set(limits.max_queue_rows)

    @property
    def rows(self) -> int:
        """The number of rows that wait."""
        with self._changed:
            return sum(len(request.waiting) for request in self._waiting)

    @property
    def busy(self) -> bool:
        """Whether any request is active or any job runs."""
        with self._changed:
            return bool(self._active or self._running)

    # Received

    def receive(self, request: ActiveRequest, request_id: str | None = None):
        """Adds a request, or ends it at once if it cannot be served. `request_id` is its name in `progress`."""
        with self._changed:
            self._active.add(request)
            if self._draining:
                error = ServerError("UNAVAILABLE", "The server is shutting down; ask another one, or later.")
                self._end(request, error, "draining")
            self.check_deadline(request)
            self._refuse_if_full(request, 1)
            if request_id is not None and not request.ended:
                request.progress = self.progress.add(request_id, partial(self._rows_ahead, request))

    # Queued

    def add_rows(self, request: ActiveRequest, rows: list):
        """Queues a request's rows, or ends it if the queue has no room for them."""
        with self._changed:
            self._refuse_if_full(request, len(rows))
            if request.ended:  # or earlier, while its inputs were read
                return
            request.add_rows(rows)
            self._waiting[request] = None
            self._show_rows()
            self._report(request)
            self._changed.notify_all()

    # In a batch, running

    def next_batch(self) -> Batch | None:
        """Waits for the next batch and takes its rows out of the queue; returns None when the queue is closed."""
        with self._changed:
            while not self._closed:
                wait = 0.0 if self._draining else self.limits.batch_wait_ms / 1000
                batch, seconds = choose_batch(self._waiting, time.monotonic(), wait=wait, may_run=self._may_run)
                if batch is not None:
                    self._start(batch)
                    return batch
                self._changed.wait(seconds)
            return None

    def is_wanted(self, batch: Batch) -> bool:
        """Returns whether any request of a batch still waits for its result."""
        for request in batch.requests():
            self.check_deadline(request)
        return not all(request.ended for request in batch.requests())

    def add_steps(self, batch: Batch, done: int):
        """Updates the progress of a batch's requests; `done` steps are made."""
        with self._changed:
            for request, index, row in batch.members:
                if not request.ended:
                    request.steps_done[index] = min(done, row.steps)
                    self._report(request)

    def deliver(self, batch: Batch, results: list):
        """Stores each row's result; a request ends with its last one, or at once if a result is a `ServerError`."""
        with self._changed:
            for (request, index, _), result in zip(batch.members, results):
                if isinstance(result, ServerError):
                    self.fail(request, result)
                elif not request.ended:
                    request.results[index] = result
                    request.missing -= 1
                    if not request.missing:
                        self._end(request, request.results)

    def close_batch(self, batch: Batch):
        """Notes that a batch is not computed any more, so that the next job of its engine may run."""
        with self._changed:
            self._running[batch.engine] -= 1
            if not self._running[batch.engine]:
                del self._running[batch.engine]
            self.metrics.running_rows.dec(len(batch.members))
            self._changed.notify_all()

    # Ended

    def check_deadline(self, request: ActiveRequest) -> float | None:
        """Ends a request whose deadline has passed. No other code compares deadlines with the clock.

        Returns: the seconds until the deadline; None if the request has no deadline or has ended.
        """
        with self._changed:
            if request.ended or request.deadline is None:
                return None
            seconds = request.deadline - time.monotonic()
            if seconds > 0:
                return seconds
            request.timing.deadline_passed = True
            self._end(request, ServerError("DEADLINE_EXCEEDED", request.deadline_message()), "deadline")
            return None

    def fail(self, request: ActiveRequest, error: ServerError):
        """Ends a request with an error."""
        self._end(request, ServerError(error.code, error.message))  # a copy: each request's own gets a traceback

    def crash(self, requests: Iterable[ActiveRequest], error: BaseException, doing: str):
        """Logs an error that is the server's fault and ends the requests with INTERNAL."""
        LOGGER.error("The server failed to %s.", doing, exc_info=error)
        self.metrics.rejected.labels("crash").inc()
        message = f"The server failed to {doing}: {type(error).__name__}: {str(error)[:200]}"
        for request in requests:
            self.fail(request, ServerError("INTERNAL", message))

    def cancel(self, request: ActiveRequest):
        """Ends a request whose caller does not wait any more; gRPC also cancels calls at their deadline."""
        self.check_deadline(request)
        self._end(request, asyncio.CancelledError(), "cancelled")

    def drain(self) -> list[asyncio.Future]:
        """Refuses new requests and returns the futures of the active ones."""
        with self._changed:
            self._draining = True
            self._changed.notify_all()  # batches wait for no further rows
            return [request.future for request in self._active]

    def close(self):
        """Refuses new requests, ends the active ones with UNAVAILABLE, and lets the workers end."""
        with self._changed:
            self._draining = self._closed = True
            message = "The server was shut down before this request ended; ask another one, or later."
            for request in list(self._active):
                self._end(request, ServerError("UNAVAILABLE", message), "draining")
            self._changed.notify_all()

    def _end(self, request: ActiveRequest, outcome: Any, reason: str | None = None):
        """Ends a request unless it has ended; `outcome` is its results or an exception, `reason` a label of `rejected`."""
        with self._changed:
            if request.ended:
                return
            self._report(request, "failed" if isinstance(outcome, BaseException) else "done")
            request.end(time.monotonic())
            self._active.discard(request)
            self._waiting.pop(request, None)
            self._show_rows()
            if request.progress is not None:
                self.progress.end(request.progress)
        if reason is not None:
            self.metrics.rejected.labels(reason).inc()
        try:
            request.future.get_loop().call_soon_threadsafe(_settle, request.future, outcome)
        except RuntimeError:  # the loop is closed, so that nobody waits for the outcome
            LOGGER.debug("A request ended after its event loop.")

    def _start(self, batch: Batch):
        """Takes a batch's rows out of the queue."""
        now = time.monotonic()
        for request, index, _ in batch.members:
            request.waiting.remove(index)
            if not request.waiting:
                del self._waiting[request]
        self._show_rows()
        self._running[batch.engine] += 1
        self.metrics.running_rows.inc(len(batch.members))
        self.metrics.batch_rows.labels(batch.engine.name).observe(len(batch.members))
        for request in batch.requests():
            if request.state is State.QUEUED:
                request.start(now)
                self.metrics.queue_seconds.labels(batch.engine.name).observe(request.timing.queue_seconds)
            self._report(request)

    def _may_run(self, engine) -> bool:
        return self._running[engine] < self.limits.jobs(engine)

    def _refuse_if_full(self, request: ActiveRequest, rows: int):
        if self.rows + rows > self.limits.max_queue_rows:
            message = (
                f"The queue holds at most {self.limits.max_queue_rows} rows; {self.rows} wait, so {rows} more do not fit. "
                "Try again later, or send fewer rows."
            )
            self._end(request, ServerError("RESOURCE_EXHAUSTED", message), "queue_full")

    def _rows_ahead(self, request: ActiveRequest) -> int:
        """Returns how many rows wait before the first of a request."""
        with self._changed:
            count = 0
            for other in self._waiting:
                if other is request:
                    return count
                count += len(other.waiting)
            return 0

    def _show_rows(self):
        self.metrics.queue_rows.set(self.rows)

    def _report(self, request: ActiveRequest, state: str | None = None):
        if request.progress is not None:
            request.progress.update(request.snapshot(state or request.state.value))


def _settle(future: asyncio.Future, outcome: Any):
    """Gives a future its outcome, in its event loop."""
    if future.done():
        return
    if isinstance(outcome, asyncio.CancelledError):
        future.cancel()
    elif isinstance(outcome, BaseException):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
