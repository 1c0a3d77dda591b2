"""How far each request is, for whoever knows its id."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import NamedTuple

from tfsd.errors import shown
from tfsd.serving.wire.errors import ServerError

KEPT_SECONDS = 60.0
MAX_ENDED = 1000
RENEW_SECONDS = 0.5  # the place in the queue changes without a word from the request itself


class ProgressSnapshot(NamedTuple):
    """Where a request is.

    `state` is "queued", "running", "done" or "failed"; `done` of `steps` model steps are made, over all of its rows (0 of 0
    before its inputs are read); `position` rows wait before its first one, 0 once it runs.
    """

    state: str
    done: int = 0
    steps: int = 0
    position: int = 0

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.state in ("done", "failed")


class RequestProgress:
    """One request's line on the board; `ahead` tells how many rows wait before it."""

    def __init__(self, ahead: Callable[[], int]):
        self.progress = ProgressSnapshot("queued")
        self.ahead: Callable[[], int] | None = ahead
        self.ended_at: float | None = None
        self._lock = threading.Lock()
        self._listeners: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()

    def update(self, progress: ProgressSnapshot):
        """Writes the line, from any thread, and wakes those who watch; an ended one stays as it is."""
        with self._lock:
            if self.progress.ended:
                return
            self.progress = progress
            if progress.ended:
                self.ended_at, self.ahead = time.monotonic(), None  # nothing of the request is kept alive
            listeners = list(self._listeners)
        for loop, event in listeners:
            try:
                loop.call_soon_threadsafe(event.set)
            except RuntimeError:  # the loop is closed: nobody watches any more
                with self._lock:
                    self._listeners.discard((loop, event))

    def snapshot(self) -> ProgressSnapshot:
        """Returns the progress with the place in the queue."""
        progress, ahead = self.progress, self.ahead
        return progress._replace(position=ahead()) if ahead is not None and progress.state == "queued" else progress

    async def watch(self) -> AsyncIterator[ProgressSnapshot]:
        """Yields the progress, then each change of it, and returns after the last one."""
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


class ProgressBoard(Mapping):
    """Request id -> `ProgressSnapshot`, of requests that live or ended within the last minute (at most 1000 ended ones).

    When an id comes again, the later request takes the line.
    """

    def __init__(self):
        self._entries: dict[str, RequestProgress] = {}
        self._ended: dict[str, RequestProgress] = {}  # oldest first
        self._lock = threading.Lock()

    def add(self, request_id: str, ahead: Callable[[], int]) -> RequestProgress:
        """Begins the line of a request."""
        entry = RequestProgress(ahead)
        with self._lock:
            self._sweep()
            self._ended.pop(request_id, None)
            self._entries[request_id] = entry
        return entry

    def end(self, request_id: str, entry: RequestProgress):
        """Moves a line to those that are forgotten after a while."""
        with self._lock:
            if self._entries.get(request_id) is entry:
                del self._entries[request_id]
                self._ended[request_id] = entry
            self._sweep()

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
            self._sweep()
            return iter([*self._entries, *self._ended])

    def __len__(self) -> int:
        with self._lock:
            self._sweep()
            return len(self._entries) + len(self._ended)

    def _find(self, request_id: str) -> RequestProgress:
        with self._lock:
            self._sweep()
            entry = self._entries.get(request_id) or self._ended.get(request_id)
        if entry is None:
            message = f"No request with id {shown(request_id)} is running or ended within {KEPT_SECONDS:.0f} s."
            raise ServerError("NOT_FOUND", message)
        return entry

    def _sweep(self):
        oldest = time.monotonic() - KEPT_SECONDS
        while self._ended:
            request_id, entry = next(iter(self._ended.items()))
            if len(self._ended) <= MAX_ENDED and (entry.ended_at or 0) > oldest:
                return
            del self._ended[request_id]
