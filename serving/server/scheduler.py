"""Requests in, pictures out: a bounded queue, batches, deadlines, cancelling and progress, over threads that compute.

Every request ends in exactly one of: its result, a `ServerError`, or the cancelling of the task that awaits it.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from tfsd.serving.server.batches import Request, RequestTiming
from tfsd.serving.server.ledger import Ledger
from tfsd.serving.server.metrics import Metrics
from tfsd.serving.server.progress import ProgressBoard
from tfsd.serving.server.workers import Workers
from tfsd.serving.wire.errors import ServerError

STOP_SECONDS = 5.0  # how long `drain` waits for threads to leave their last chunk


@dataclass(frozen=True)
class QueueLimits:
    """How much may wait, and how work is cut.

    `max_queue_rows`: rows (pictures) that may wait. `batch_wait_ms`: how long a job of an engine that computes rows
    together waits for more of them. `chunk_seconds`: how often a job looks whether it is still wanted. `workers`: jobs at
    once; by default what the engine asks for.
    """

    max_queue_rows: int = 64
    batch_wait_ms: float = 2.0
    chunk_seconds: float = 0.25
    workers: int | None = None

    def __post_init__(self):
        if self.max_queue_rows < 1:
            raise ValueError(f"max_queue_rows must be at least 1; got {self.max_queue_rows}.")
        if not 0 <= self.batch_wait_ms <= 10_000:
            raise ValueError(f"batch_wait_ms must be from 0 to 10000; got {self.batch_wait_ms}.")
        if not 0 < self.chunk_seconds <= 60:
            raise ValueError(f"chunk_seconds must be above 0 and at most 60; got {self.chunk_seconds}.")
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers must be at least 1; got {self.workers}.")


class Scheduler:
    """Runs requests on engines. Its coroutines belong to one event loop; its worker threads are daemons.

    Rows of different requests that one engine can compute together go into one job; the oldest row always goes first.
    """

    def __init__(self, limits: QueueLimits | None = None, metrics: Metrics | None = None):
        self.limits = limits or QueueLimits()
        self.metrics = metrics or Metrics()
        self._ledger = Ledger(self.limits.max_queue_rows, self.metrics)
        self._workers = Workers(
            self._ledger,
            count=self.limits.workers,
            batch_wait=self.limits.batch_wait_ms / 1000,
            chunk_seconds=self.limits.chunk_seconds,
        )
        self._preparers = ThreadPoolExecutor(2, thread_name_prefix="tfsd-prepare")  # tokenizing must not hold up the loop

    @property
    def progress(self) -> ProgressBoard:
        """Request id -> `tfsd.serving.server.progress.ProgressSnapshot`; `progress.watch(id)` follows one."""
        return self._ledger.progress

    @property
    def queue_rows(self) -> int:
        """How many rows wait."""
        return self._ledger.waiting.rows

    @property
    def busy(self) -> bool:
        """Whether any request lives or any job runs."""
        with self._ledger.wake:
            return bool(self._ledger.live or self._ledger.running)

    async def generate(
        self,
        engine,
        inputs: dict,
        *,
        finish: Callable[[np.ndarray], Any] | None = None,
        deadline: float | None = None,
        request_id: str | None = None,
        trace: RequestTiming | None = None,
    ) -> tuple[list, np.ndarray]:
        """Makes the pictures of a whole-request signature.

        Args:
            engine: a `tfsd.serving.server.engine.Engine`; the caller holds its lease.
            inputs: as `engine.prepare` takes them.
            finish: makes of a picture what is returned of it, in the thread that computed the picture.
            deadline: on the clock of `time.monotonic`.
            request_id: the name under which `progress` shows it.
            trace: filled in with rows and times.
        Returns: for each row what `finish` gave, by default its picture uint8 [H, W, 3]; and int32 [B, 2]: how many
            tokens were cut off its prompt and its negative prompt.
        Raises: `ServerError` INVALID_ARGUMENT, RESOURCE_EXHAUSTED, DEADLINE_EXCEEDED, UNAVAILABLE or INTERNAL.
        """
        request = self._open(engine, deadline, trace, request_id)
        request.finish = finish
        rows, results = await self._run(request, partial(engine.prepare, inputs), request_id)
        return results, np.array([row.truncated for row in rows], np.int32)

    async def call(
        self,
        engine,
        signature: str,
        inputs: dict,
        *,
        deadline: float | None = None,
        request_id: str | None = None,
        trace: RequestTiming | None = None,
    ) -> dict[str, np.ndarray]:
        """Returns the outputs of another signature (encode, denoise, decode), computed row by row; raises as `generate` does."""
        request = self._open(engine, deadline, trace, request_id)
        _, results = await self._run(request, partial(engine.split, signature, inputs), request_id)
        return {name: np.concatenate([row[name] for row in results]) for name in results[0]}

    def _open(self, engine, deadline: float | None, trace: RequestTiming | None, request_id: str | None) -> Request:
        return self._ledger.open(engine, asyncio.get_running_loop().create_future(), deadline, trace, request_id)

    async def _run(self, request: Request, read: Callable[[], list], request_id: str | None) -> tuple[list, list]:
        """Returns the rows that `read` finds in a request's inputs, and what came of them."""
        with self._lifetime(request, request_id):
            self._workers.ensure_threads(request.engine)
            loop = asyncio.get_running_loop()
            rows = await loop.run_in_executor(self._preparers, self._prepare, request, read)
            return rows, await request.future

    async def drain(self, grace: float):
        """Refuses new requests, gives those that live `grace` seconds, fails the rest UNAVAILABLE, and ends the threads."""
        with self._ledger.wake:
            self._ledger.draining = True
            self._ledger.wake.notify_all()  # a job that waits for company need not wait any longer
            futures = [request.future for request in self._ledger.live]
        try:
            if futures:
                await asyncio.wait(futures, timeout=max(grace, 0))
        finally:
            self.close()
        await asyncio.get_running_loop().run_in_executor(None, self._workers.join, STOP_SECONDS)

    def close(self):
        """Fails whatever lives UNAVAILABLE and lets the threads end after the chunk that they compute."""
        self._ledger.stop()
        self._preparers.shutdown(wait=False)

    def _prepare(self, request: Request, read: Callable[[], list]) -> list:
        """Puts the request's rows in the queue and returns them."""
        began = time.monotonic()
        try:
            rows = read()
        except ServerError:
            raise
        except Exception as error:
            raise self._ledger.crash(error, "read the request's inputs") from None
        finally:
            request.trace.read_seconds = time.monotonic() - began
        if not rows:
            raise ServerError("INVALID_ARGUMENT", "The inputs must have at least one row; got none.")
        self._ledger.enqueue(request, rows)
        return rows

    @contextlib.contextmanager
    def _lifetime(self, request: Request, request_id: str | None):
        """Ends the request at its deadline, and with the block at the latest: then nobody awaits it any more."""
        timer = None
        if request.deadline is not None:
            delay = max(0.0, request.deadline - time.monotonic())
            timer = asyncio.get_running_loop().call_later(delay, partial(self._ledger.expire, request))
        try:
            yield
        except asyncio.CancelledError:
            self._ledger.finish(request, asyncio.CancelledError(), "cancelled")
            raise
        finally:
            if timer is not None:
                timer.cancel()
            self._ledger.finish(request, asyncio.CancelledError())
            if request.future.done() and not request.future.cancelled():
                request.future.exception()  # seen, even if the caller was cancelled in the same moment
            if request_id is not None:
                self.progress.end(request_id, request.entry)
