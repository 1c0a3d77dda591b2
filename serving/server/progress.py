"""The progress of requests, by request id."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import NamedTuple

from tfsd.errors import shown
from tfsd.serving.wire.errors import ServerError

KEPT_SECONDS = 60.0
MAX_ENDED = 1000
RENEW_SECONDS = 0.5  # other requests change the position in the queue, without an update of this one


class ProgressSnapshot(NamedTuple):
    """How far a request is.

    `state` is "queued", "running", "done" or "failed"; `done` of `steps` model steps are made, over all of its rows (0 of 0
    until its inputs are read); `position` rows wait before its first one, 0 once it runs.
    """

    state: str
    done: int = 0
    steps: int = 0
    position: int = 0

    @property
    def ended(self) -> bool:
        """Whether the request has ended, so that nothing changes any more."""
        return self.state in ("done", "failed")


class RequestProgress:
    """The progress of one request; `ahead` returns how many rows wait before it."""

    def __init__(self, request_id: str, ahead: Callable[[], int]):
        self.request_id = request_id
        self.progress = ProgressSnapshot("queued")
        self.ahead: Callable[[], int] | None = ahead
        self.ended_at: float | None = None
        self._lock = threading.Lock()
        self._listeners: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()

    def update(self, progress: ProgressSnapshot):
        """Stores the progress, from any thread, and wakes those who watch it. Does nothing once the request has ended."""
        with self._lock:
            if self.progress.ended:
                return
            self.progress = progress
            if progress.ended:
                self.ended_at, self.ahead = time.monotonic(), None  # keeps nothing of the request in memory
            listeners = list(self._listeners)
        for loop, event in listeners:
            try:
                loop.call_soon_threadsafe(event.set)
            except RuntimeError:  # the loop is closed, so that nobody watches
                with self._lock:
                    self._listeners.discard((loop, event))

    def snapshot(self) -> ProgressSnapshot:
        """Returns the progress with the current position in the queue."""
        progress, ahead = self.progress, self.ahead
        return progress._replace(position=ahead()) if ahead is not None and progress.state == "queued" else progress

    async def watch(self) -> AsyncIterator[ProgressSnapshot]:
        """Yields the progress, then each change, up to the last one."""
        listener = (asyncio.get_running_loop(), asyncio.Event())
        with self._lock:
            self._listeners.add(listener)
        try:
            seen = None
            while seen is None or not seen.ended:
                listener[1].clear()
                if (progress := self.snapshot()) != seen:
                    seen = progress
                    yield seen
                    continue
                try:
                    await asyncio.wait_for(listener[1].wait(), RENEW_SECONDS)
                except asyncio.TimeoutError:
                    pass
        finally:
            with self._lock:
                self._listeners.discard(listener)


class ProgressBoard(Mapping[str, ProgressSnapshot]):
    """Request id -> `ProgressSnapshot`, of active requests and of those that ended within the last minute (at most 1000).

    If an id is used twice, it stands for the later request.
    """

    def __init__(self) -> None:
        self._active: dict[str, RequestProgress] = {}
        self._ended: dict[str, RequestProgress] = {}  # oldest first
        self._lock = threading.Lock()

    def add(self, request_id: str, ahead: Callable[[], int]) -> RequestProgress:
        """Adds a request and returns its progress."""
        added = RequestProgress(request_id, ahead)
        with self._lock:
            self._forget_old()
            self._ended.pop(request_id, None)
            self._active[request_id] = added
        return added

    def end(self, progress: RequestProgress):
        """Moves a request to those that are forgotten after a while."""
        with self._lock:
            if self._active.get(progress.request_id) is progress:
                del self._active[progress.request_id]
                self._ended[progress.request_id] = progress
            self._forget_old()

    def watch(self, request_id: str) -> AsyncIterator[ProgressSnapshot]:
        """Returns an iterator over a request's progress until its end. Raises: `ServerError` NOT_FOUND."""
        return self._find(request_id).watch()

    def __getitem__(self, request_id: str) -> ProgressSnapshot:
        try:
            return self._find(request_id).snapshot()
        except ServerError as error:
            raise KeyError(request_id) from error

    def __iter__(self) -> Iterator[str]:
        with self._lock:
            self._forget_old()
            return iter([*self._active, *self._ended])

    def __len__(self) -> int:
        with self._lock:
            self._forget_old()
            return len(self._active) + len(self._ended)

    def _find(self, request_id: str) -> RequestProgress:
        with self._lock:
            self._forget_old()
            found = self._active.get(request_id) or self._ended.get(request_id)
        if found is None:
            message = f"No request with id {shown(request_id)} is running or ended within {KEPT_SECONDS:.0f} s."
            raise ServerError("NOT_FOUND", message)
        return found

    def _forget_old(self):
        oldest = time.monotonic() - KEPT_SECONDS
        while self._ended:
            request_id, progress = next(iter(self._ended.items()))
            if len(self._ended) <= MAX_ENDED and (progress.ended_at or 0) > oldest:
                return
            del self._ended[request_id]
