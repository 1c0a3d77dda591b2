"""The threads that compute batches, in chunks of steps, for as long as a request waits for the result."""

import threading
import time

from tfsd.serving.server.batch import Batch
from tfsd.serving.server.request_queue import RequestQueue
from tfsd.serving.server.step_timer import StepTimer
from tfsd.serving.wire.errors import ServerError


class Workers:
    """Daemon threads that compute the batches of a queue; as many as the engines seen so far can use."""

    def __init__(self, queue: RequestQueue):
        self._queue = queue
        self._step_timer = StepTimer(queue.limits.chunk_seconds)
        self._threads: list[threading.Thread] = []

    def ensure_threads(self, engine):
        """Starts threads until there are as many as an engine can use. Raises: `RuntimeError` if not even one starts."""
        for _ in range(len(self._threads), self._queue.limits.jobs(engine)):
            thread = threading.Thread(target=self._work, name="tfsd-worker", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the system has no more threads: fewer are enough
                if not self._threads:
                    raise
                return
            self._threads.append(thread)

    def join(self, timeout: float):
        """Waits until the threads have ended: they do so after their current chunk once the queue is closed."""
        until = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _work(self):
        while (batch := self._queue.next_batch()) is not None:
            self._run(batch)
            del batch  # an idle thread must not keep an old engine in memory

    def _run(self, batch: Batch):
        try:
            self._compute(batch)
        except ServerError as error:
            for request in batch.requests():
                self._queue.fail(request, error)
        except BaseException as error:  # of any kind: the thread must go on, and no request may wait for ever
            self._queue.crash(batch.requests(), error, "compute the request")
        finally:
            self._queue.close_batch(batch)

    def _compute(self, batch: Batch):
        queue = self._queue
        if not queue.is_wanted(batch):
            return
        job = batch.engine.start([member.row for member in batch.members])
        began = time.monotonic()
        while job.done < job.steps:
            if not queue.is_wanted(batch):
                return
            self._advance(batch, job, began)
        if queue.is_wanted(batch):
            queue.deliver(batch, _postprocessed(batch, job.results()))

    def _advance(self, batch: Batch, job, began: float):
        """Computes the next chunk of a job that began at a time of the monotonic clock."""
        before, started = job.done, time.monotonic()
        job.advance(self._step_timer.steps(batch, job.steps - before))
        if job.done <= before:
            raise RuntimeError(f"a chunk made no step after {before} of {job.steps}")
        ended = time.monotonic()
        # The average since the beginning, as the first chunk also encodes the prompt, and the last one decodes the image.
        if job.steps > 1:  # a single step cannot be divided, and the kinds of rows that stay alone are unlimited
            self._step_timer.measure(batch, (ended - began) / job.done)
        self._queue.metrics.step_seconds.labels(batch.engine.name).observe((ended - started) / (job.done - before))
        self._queue.add_steps(batch, job.done)


def _postprocessed(batch: Batch, results) -> list:
    """Returns the results as the requests want them, made in this thread, whose core's cache still has the data.

    A row that failed alone has a `ServerError` as its result.
    """
    rows = [(member.request.postprocess, result) for member, result in zip(batch.members, results, strict=True)]
    return [result if made is None or isinstance(result, ServerError) else made(result) for made, result in rows]
