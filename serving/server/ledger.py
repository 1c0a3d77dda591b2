"""The requests that live: how each begins and how it ends, once, whatever event loop and threads do at the same time."""

import asyncio
import logging
import threading
import time
from collections import Counter
from functools import partial

from tfsd.serving.server.batches import Batch, Request, RequestTiming, Waiting
from tfsd.serving.server.metrics import Metrics
from tfsd.serving.server.progress import ProgressBoard
from tfsd.serving.wire.errors import ServerError

LOG = logging.getLogger("tfsd.serving")


class Ledger:
    """Every live request, those of its rows that wait, and the jobs that run. Its methods may be called from any thread.

    `wake` guards all of it, and tells the workers when there may be something to do.
    """

    def __init__(self, max_queue_rows: int, metrics: Metrics):
        self.max_queue_rows = max_queue_rows
        self.metrics = metrics
        self.progress = ProgressBoard()
        self.waiting = Waiting()
        self.live: set[Request] = set()
        self.running: Counter = Counter()  # jobs, by engine
        self.wake = threading.Condition(threading.RLock())
        self.draining = self.stopped = False
        metrics.queue_limit.set(max_queue_rows)

    def open(
        self, engine, future: asyncio.Future, deadline: float | None, trace: RequestTiming | None, request_id: str | None
    ) -> Request:
        """Begins a request. Raises: `ServerError` where it is clear that it cannot be served."""
        with self.wake:
            if self.draining:
                raise self._refused("draining", "UNAVAILABLE", "The server is shutting down; ask another one, or later.")
            if deadline is not None and deadline <= time.monotonic():
                raise self._refused("deadline", "DEADLINE_EXCEEDED", "The deadline had passed when the request arrived.")
            self._check_room(1)
            request = Request(engine, future, deadline, trace or RequestTiming())
            if request_id is not None:
                request.entry = self.progress.add(request_id, partial(self._ahead, request))
            self.live.add(request)
            return request

    def enqueue(self, request: Request, rows: list):
        """Puts a request's rows in the queue. Raises: `ServerError` RESOURCE_EXHAUSTED."""
        with self.wake:
            if request.ended:  # its deadline passed while the inputs were read
                return
            self._check_room(len(rows))
            request.queue(rows)
            self.waiting.add(request)
            self._changed()
            self._report(request, "queued")
            self.wake.notify_all()

    def begin(self, batch: Batch):
        """Notes that a batch left the queue to be computed."""
        now = time.monotonic()
        with self.wake:
            self.running[batch.engine] += 1
            self._changed()
            self.metrics.running_rows.inc(len(batch.members))
            self.metrics.batch_rows.labels(batch.engine.name).observe(len(batch.members))
            for request in batch.requests():
                if request.started is None:
                    request.start(now)
                    self.metrics.queue_seconds.labels(batch.engine.name).observe(request.trace.queue_seconds)
                self._report(request, "running")

    def leave(self, batch: Batch):
        """Notes that a batch is no longer computed."""
        with self.wake:
            self.running[batch.engine] -= 1
            if not self.running[batch.engine]:
                del self.running[batch.engine]
            self.metrics.running_rows.dec(len(batch.members))
            self.wake.notify_all()  # another thread may now take rows of this engine

    def wanted(self, batch: Batch) -> bool:
        """Ends the requests whose time is up, and says whether any is left that wants the batch."""
        now = time.monotonic()
        for request in batch.requests():
            if request.deadline is not None and request.deadline <= now:
                self.expire(request)
        return not all(request.ended for request in batch.requests())

    def advance(self, batch: Batch, done: int):
        """Notes the steps that a batch's job has made."""
        with self.wake:
            for request, index, row in batch.members:
                if not request.ended:
                    request.done[index] = min(done, row.steps)
                    self._report(request, "running")

    def deliver(self, batch: Batch, results: list):
        """Hands each row's result to its request; the last one ends the request, as a `ServerError` does at once."""
        with self.wake:
            for (request, index, _), result in zip(batch.members, results):
                if isinstance(result, ServerError):
                    self.finish(request, ServerError(result.code, result.message))
                elif not request.ended:
                    request.results[index] = result
                    request.missing -= 1
                    if not request.missing:
                        self.finish(request, request.results)

    def expire(self, request: Request):
        """Ends a request whose deadline passed."""
        with self.wake:
            if not request.ended:
                done, steps = request.progress("").done, request.progress("").steps
                place = f"after {done} of {steps} steps" if request.started else "while the request waited"
                self.finish(request, ServerError("DEADLINE_EXCEEDED", f"The deadline passed {place}."), "deadline")

    def finish(self, request: Request, outcome, reason: str | None = None):
        """Ends a request unless it has ended; `outcome` is its result or an exception, `reason` counts it as rejected."""
        with self.wake:
            if request.ended:
                return
            self._report(request, "failed" if isinstance(outcome, BaseException) else "done")
            self.waiting.discard(request)
            request.end(time.monotonic())
            self.live.discard(request)
            self._changed()
        if reason is not None:
            self.metrics.rejected.labels(reason).inc()
        try:
            request.future.get_loop().call_soon_threadsafe(_settle, request.future, outcome)
        except RuntimeError:  # the loop is closed: nobody is left to hear it
            LOG.debug("A request ended after its event loop.")

    def crash(self, error: BaseException, doing: str) -> ServerError:
        """Logs what went wrong inside the server, and returns what the caller is told."""
        LOG.error("The server failed to %s.", doing, exc_info=error)
        self.metrics.rejected.labels("crash").inc()
        return ServerError("INTERNAL", f"The server failed to {doing}: {type(error).__name__}: {str(error)[:200]}")

    def stop(self):
        """Lets no request in, fails those that live UNAVAILABLE, and lets the workers end."""
        with self.wake:
            self.draining = self.stopped = True
            for request in list(self.live):
                message = "The server was shut down before this request ended; ask another one, or later."
                self.finish(request, ServerError("UNAVAILABLE", message), "draining")
            self.wake.notify_all()

    def _refused(self, reason: str, code: str, message: str) -> ServerError:
        self.metrics.rejected.labels(reason).inc()
        return ServerError(code, message)

    def _check_room(self, rows: int):
        if self.waiting.rows + rows > self.max_queue_rows:
            message = (
                f"The queue holds at most {self.max_queue_rows} rows; {self.waiting.rows} wait, so {rows} more do not fit. "
                "Try again later, or send fewer rows."
            )
            raise self._refused("queue_full", "RESOURCE_EXHAUSTED", message)

    def _changed(self):
        self.metrics.queue_rows.set(self.waiting.rows)

    def _report(self, request: Request, state: str):
        if request.entry is not None:
            request.entry.update(request.progress(state))

    def _ahead(self, request: Request) -> int:
        with self.wake:
            return self.waiting.ahead(request)


def _settle(future: asyncio.Future, outcome):
    if future.done():
        return
    if isinstance(outcome, asyncio.CancelledError):
        future.cancel()
    elif isinstance(outcome, BaseException):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
