"""Which waiting rows are computed together, and for how many steps at a stretch. Knows neither threads nor asyncio."""

import asyncio
import threading
import time
import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tfsd.serving.server.progress import ProgressSnapshot, RequestProgress


@dataclass
class RequestTiming:
    """What became of a request, for its line in the log; filled in while it runs, also when it fails.

    `read_seconds`: checks of the inputs, and tokens; `run_seconds`: from the start of the first row to the last one's PNG.
    """

    rows: int = 0
    read_seconds: float = 0.0
    queue_seconds: float = 0.0
    run_seconds: float = 0.0


@dataclass(eq=False)
class Request:
    """A request on its way: rows to compute, of which `unstarted` wait."""

    engine: Any
    future: asyncio.Future
    deadline: float | None
    trace: RequestTiming
    entry: RequestProgress | None = None
    finish: Callable[[Any], Any] | None = None  # makes of a row's result what the request is answered
    rows: list = field(default_factory=list)
    unstarted: list[int] = field(default_factory=list)
    done: list[int] = field(default_factory=list)  # steps made, by row
    results: list = field(default_factory=list)
    missing: int = 0
    ended: bool = False
    arrived: float = field(default_factory=time.monotonic)
    started: float | None = None

    def queue(self, rows: list):
        """Takes the rows that are to be computed."""
        self.rows, self.missing, self.trace.rows = rows, len(rows), len(rows)
        self.unstarted, self.done, self.results = list(range(len(rows))), [0] * len(rows), [None] * len(rows)

    def kind(self, index: int) -> Hashable:
        """Rows of one engine and one kind can share a job; `alone` are those that share none with other requests."""
        row = self.rows[index]
        return (id(self), row.kind) if row.alone else row.kind

    def progress(self, state: str) -> ProgressSnapshot:
        """Returns the progress over all rows."""
        return ProgressSnapshot(state, sum(self.done), sum(row.steps for row in self.rows))

    def start(self, now: float):
        """Notes when the first row leaves the queue."""
        if self.started is None:
            self.started, self.trace.queue_seconds = now, now - self.arrived - self.trace.read_seconds

    def end(self, now: float):
        """Notes the end, and drops what the rows hold in memory."""
        self.ended = True
        self.trace.run_seconds = 0.0 if self.started is None else now - self.started
        if self.started is None:
            self.trace.queue_seconds = now - self.arrived - self.trace.read_seconds
        self.rows, self.results, self.unstarted = [], [], []


class Member(NamedTuple):
    """A row in a batch: row `index` of `request`."""

    request: Request
    index: int
    row: Any


class Batch(NamedTuple):
    """Rows for one job of `engine`."""

    engine: Any
    kind: Hashable
    members: list[Member]

    def requests(self) -> set[Request]:
        """Returns the requests that it serves."""
        return {member.request for member in self.members}


class Waiting:
    """The rows that wait, in order of arrival. Not thread-safe: the scheduler's lock guards it."""

    def __init__(self):
        self.rows = 0
        self._requests: dict[Request, None] = {}

    def add(self, request: Request):
        """Puts a request's rows last."""
        self._requests[request] = None
        self.rows += len(request.unstarted)

    def discard(self, request: Request):
        """Removes a request's rows, where any wait."""
        if request in self._requests:
            del self._requests[request]
            self.rows -= len(request.unstarted)
            request.unstarted = []

    def ahead(self, request: Request) -> int:
        """Returns how many rows wait before the first of this request."""
        count = 0
        for other in self._requests:
            if other is request:
                return count
            count += len(other.unstarted)
        return 0

    def take(self, now: float, *, is_free: Callable[[Any], bool], wait: float) -> tuple[Batch | None, float | None]:
        """Removes and returns the next batch, or None and the seconds until one is due (None: not by waiting).

        The oldest row goes first, with all the company its engine allows; a job that is not full stays open for `wait`
        seconds from the arrival of its oldest row. Rows of engines that are not free let younger ones pass.
        """
        groups: dict[tuple, list[tuple[Request, int]]] = {}
        for request in self._requests:
            if is_free(request.engine):
                for index in request.unstarted:
                    group = groups.setdefault((id(request.engine), request.kind(index)), [])
                    if len(group) < request.engine.batch_rows:
                        group.append((request, index))
        soonest = None
        for (_, kind), group in groups.items():
            oldest = group[0][0]
            due = oldest.arrived + wait - now
            alone = oldest.rows[group[0][1]].alone  # no company can come
            if alone or len(group) >= oldest.engine.batch_rows or due <= 0:
                return self._remove(oldest.engine, kind, group), None
            soonest = due if soonest is None else min(soonest, due)
        return None, soonest

    def _remove(self, engine, kind: Hashable, group: list[tuple[Request, int]]) -> Batch:
        members = []
        for request, index in group:
            members.append(Member(request, index, request.rows[index]))
            request.unstarted.remove(index)
            if not request.unstarted:
                del self._requests[request]
        self.rows -= len(group)
        return Batch(engine, kind, members)


class StepTimer:
    """How long a step takes, by engine, size and rows, as last measured; forgets engines that are gone."""

    def __init__(self, chunk_seconds: float):
        self._chunk_seconds = chunk_seconds
        self._step_seconds: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()

    def steps(self, batch: Batch, remaining: int) -> int:
        """Returns how many of the remaining steps to make at a stretch: equal shares of about `chunk_seconds` each."""
        with self._lock:
            seconds = self._step_seconds.get(batch.engine, {}).get((batch.kind, len(batch.members)))
        if seconds is None:
            return 1
        chunks = max(1, round(remaining * seconds / self._chunk_seconds))
        return -(-remaining // chunks)

    def measure(self, batch: Batch, step_seconds: float):
        """Remembers what a step took."""
        with self._lock:
            self._step_seconds.setdefault(batch.engine, {})[batch.kind, len(batch.members)] = step_seconds
