"""Runs requests on engines: the coroutines around the request queue and the threads that compute.

Every request ends in exactly one of: its result, a `ServerError`, or the cancellation of the task that awaits it.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np

from tfsd.serving.server.active_request import ActiveRequest, RequestTiming
from tfsd.serving.server.metrics import Metrics
from tfsd.serving.server.progress import ProgressBoard
from tfsd.serving.server.queue_limits import QueueLimits
from tfsd.serving.server.request_queue import RequestQueue
from tfsd.serving.server.workers import Workers
from tfsd.serving.wire.errors import ServerError

STOP_SECONDS = 5.0  # how long `drain` waits for threads to finish their last chunk


class Scheduler:
    """Runs requests on engines. Its coroutines run in one event loop; its worker threads are daemons.

    Rows of different requests that an engine can compute together share a job. The oldest row always goes first.
    """

    def __init__(self, limits: QueueLimits | None = None, metrics: Metrics | None = None):
        self.limits = limits or QueueLimits()
        self.metrics = metrics or Metrics()
        self._queue = RequestQueue(self.limits, self.metrics)
        self._workers = Workers(self._queue)
        self._readers = ThreadPoolExecutor(2, thread_name_prefix="tfsd-read")  # tokenizing must not block the event loop

    @property
    def progress(self) -> ProgressBoard:
        """Request id -> `tfsd.serving.server.progress.ProgressSnapshot`; `progress.watch(id)` follows one."""
        return self._queue.progress

    @property
    def queue_rows(self) -> int:
        """How many rows wait."""
        return self._queue.rows

    @property
    def busy(self) -> bool:
        """Whether any request is active or any job runs."""
        return self._queue.busy

    async def generate(
        self,
        engine,
        inputs: dict,
        *,
        postprocess: Callable[[np.ndarray], Any] | None = None,
        deadline: float | None = None,
        request_id: str | None = None,
        timing: RequestTiming | None = None,
    ) -> tuple[list, np.ndarray]:
        """Makes the images of a signature that makes whole images.

        Args:
            engine: a `tfsd.serving.server.engine.Engine`; the caller holds its lease.
            inputs: as `engine.prepare` takes them.
            postprocess: applied to each image, in the thread that computed the image.
            deadline: on the clock of `time.monotonic`.
            request_id: its name in `progress`.
            timing: filled in with rows and times.
        Returns: for each row the result of `postprocess`, by default its image uint8 [H, W, 3]; and int32 [B, 2]: how many
            tokens were cut off its prompt and its negative prompt.
        Raises: `ServerError` INVALID_ARGUMENT, RESOURCE_EXHAUSTED, DEADLINE_EXCEEDED, UNAVAILABLE or INTERNAL.
        """
        request = self._request(engine, deadline, timing, postprocess)
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
        timing: RequestTiming | None = None,
    ) -> dict[str, np.ndarray]:
        """Returns the outputs of another signature (encode, denoise, decode), computed row by row; raises as `generate` does."""
        request = self._request(engine, deadline, timing)
        _, results = await self._run(request, partial(engine.split, signature, inputs), request_id)
        return {name: np.concatenate([row[name] for row in results]) for name in results[0]}

    async def drain(self, grace: float):
        """Refuses new requests, gives active ones `grace` seconds, fails the rest with UNAVAILABLE, and ends the threads."""
        futures = self._queue.drain()
        try:
            if futures:
                await asyncio.wait(futures, timeout=max(grace, 0))
        finally:
            self.close()
        await asyncio.get_running_loop().run_in_executor(None, self._workers.join, STOP_SECONDS)

    def close(self):
        """Fails the active requests with UNAVAILABLE and lets the threads end after their current chunk."""
        self._queue.close()
        self._readers.shutdown(wait=False)

    def _request(
        self, engine, deadline: float | None, timing: RequestTiming | None, postprocess: Callable[[Any], Any] | None = None
    ) -> ActiveRequest:
        future = asyncio.get_running_loop().create_future()
        return ActiveRequest(engine, future, deadline, timing or RequestTiming(), postprocess)

    async def _run(self, request: ActiveRequest, read: Callable[[], list], request_id: str | None) -> tuple[list, list]:
        """Returns the rows that `read` finds in a request's inputs, and their results."""
        rows: list = []
        try:
            self._queue.receive(request, request_id)
            self._watch_deadline(request)
            if not request.ended and self._has_threads(request):
                rows = await asyncio.get_running_loop().run_in_executor(self._readers, self._read, request, read)
            return rows, await request.future
        except asyncio.CancelledError:
            request.future.cancel()  # an outcome that comes in the same moment is for nobody
            raise
        finally:
            self._queue.cancel(request)  # does nothing unless the task was cancelled
            if request.future.done() and not request.future.cancelled():
                request.future.exception()  # else asyncio logs that nobody has seen it

    def _watch_deadline(self, request: ActiveRequest):
        """Has the deadline checked when it is due. (Timers may fire too early, by the resolution of the loop's clock.)"""
        seconds = self._queue.check_deadline(request)
        if seconds is not None:
            timer = asyncio.get_running_loop().call_later(seconds, self._watch_deadline, request)
            request.future.add_done_callback(lambda _: timer.cancel())

    def _has_threads(self, request: ActiveRequest) -> bool:
        """Starts the threads that a request needs, or ends it."""
        try:
            self._workers.ensure_threads(request.engine)
        except RuntimeError as error:
            self._queue.crash([request], error, "start a thread")
        return not request.ended

    def _read(self, request: ActiveRequest, read: Callable[[], list]) -> list:
        """Queues the rows of a request's inputs and returns them, or ends the request if the inputs are wrong."""
        if request.ended:  # while it waited for this thread
            return []
        try:
            rows = _timed(read, request.timing)
            if not rows:
                raise ServerError("INVALID_ARGUMENT", "The inputs must have at least one row; got none.")
        except ServerError as error:
            self._queue.fail(request, error)
            return []
        except Exception as error:
            self._queue.crash([request], error, "read the request's inputs")
            return []
        self._queue.add_rows(request, rows)
        return rows


def _timed(read: Callable[[], list], timing: RequestTiming) -> list:
    began = time.monotonic()
    try:
        return read()
    finally:
        timing.read_seconds = time.monotonic() - began
