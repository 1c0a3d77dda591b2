"""The threads that compute batches, chunk by chunk, for as long as somebody wants them."""

import threading
import time

from tfsd.serving.server.batches import Batch, StepTimer
from tfsd.serving.server.ledger import Ledger
from tfsd.serving.wire.errors import ServerError


class Workers:
    """Daemon threads that take batches from a ledger; as many as the engines seen so far can use, or `count`."""

    def __init__(self, ledger: Ledger, *, count: int | None, batch_wait: float, chunk_seconds: float):
        self._ledger = ledger
        self._count = count
        self._batch_wait = batch_wait
        self._pace = StepTimer(chunk_seconds)
        self._threads: list[threading.Thread] = []

    def ensure_threads(self, engine):
        """Starts the threads that an engine can use and that do not run yet."""
        for _ in range(len(self._threads), self._jobs(engine)):
            thread = threading.Thread(target=self._work, name="tfsd-worker", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # the system has no more threads: fewer will do
                if not self._threads:
                    raise self._ledger.crash(error, "start a thread") from None
                return
            self._threads.append(thread)

    def join(self, timeout: float):
        """Waits until the threads have ended, which they do once the ledger is stopped and their chunks are made."""
        until = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _jobs(self, engine) -> int:
        return self._count or engine.parallel_jobs

    def _is_free(self, engine) -> bool:
        return self._ledger.running[engine] < self._jobs(engine)

    def _work(self):
        while (batch := self._next()) is not None:
            self._run(batch)
            del batch  # an idle thread must not keep an old engine in memory

    def _next(self) -> Batch | None:
        ledger = self._ledger
        with ledger.wake:
            while not ledger.stopped:
                wait = 0.0 if ledger.draining else self._batch_wait
                batch, seconds = ledger.waiting.take(time.monotonic(), is_free=self._is_free, wait=wait)
                if batch is not None:
                    ledger.begin(batch)
                    return batch
                ledger.wake.wait(seconds)
            return None

    def _run(self, batch: Batch):
        try:
            self._compute(batch)
        except ServerError as error:
            self._fail(batch, error)
        except BaseException as error:  # whatever it is: the thread goes on, and nobody waits for ever
            self._fail(batch, self._ledger.crash(error, "compute the request"))
        finally:
            self._ledger.leave(batch)

    def _fail(self, batch: Batch, error: ServerError):
        for request in batch.requests():
            self._ledger.finish(request, ServerError(error.code, error.message))

    def _compute(self, batch: Batch):
        ledger = self._ledger
        if not ledger.wanted(batch):
            return
        job = batch.engine.start([member.row for member in batch.members])
        began = time.monotonic()
        while job.done < job.steps:
            if not ledger.wanted(batch):
                return
            before, started = job.done, time.monotonic()
            job.advance(self._pace.steps(batch, job.steps - before))
            if job.done <= before:
                raise RuntimeError(f"a chunk made no step after {before} of {job.steps}")
            ended = time.monotonic()
            # The average since the beginning: the first chunk also encodes the prompt, and the last one makes the picture.
            if job.steps > 1:  # else nothing can be cut, and kinds of rows that stay alone are without number
                self._pace.measure(batch, (ended - began) / job.done)
            ledger.metrics.step_seconds.labels(batch.engine.name).observe((ended - started) / (job.done - before))
            ledger.advance(batch, job.done)
        if ledger.wanted(batch):
            ledger.deliver(batch, self._finished(batch, job.results()))

    def _finished(self, batch: Batch, results) -> list:
        """Returns what the batch's requests want of their results; made here while those are still in the core's cache.

        A row that failed alone has a `ServerError` in its place.
        """
        wants = [(member.request.finish, result) for member, result in zip(batch.members, results, strict=True)]
        return [result if finish is None or isinstance(result, ServerError) else finish(result) for finish, result in wants]
