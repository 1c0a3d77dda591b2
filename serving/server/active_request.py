"""The state of one request: received, queued, running, ended. Only `RequestQueue` changes it."""

import asyncio
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from tfsd.serving.server.progress import ProgressSnapshot, RequestProgress


class State(Enum):
    """Where a request is on its way through the queue."""

    RECEIVED = "received"  # its inputs are being read
    QUEUED = "queued"  # all of its rows wait
    RUNNING = "running"  # at least one of its rows has been taken into a batch
    ENDED = "ended"  # its future has the outcome, or will have it as soon as the event loop runs


@dataclass
class RequestTiming:
    """The number of rows and the times of a request, for the log; filled in while it runs, also if it fails.

    `read_seconds`: checks of the inputs, and tokenizing; `run_seconds`: from the start of the first row to the last PNG.
    """

    rows: int = 0
    read_seconds: float = 0.0
    queue_seconds: float = 0.0
    run_seconds: float = 0.0
    deadline_passed: bool = False  # before the request ended


@dataclass(eq=False)
class ActiveRequest:
    """A request that has not ended, and how far its rows are."""

    engine: Any
    future: asyncio.Future  # its outcome
    deadline: float | None = None  # on the clock of `time.monotonic`
    timing: RequestTiming = field(default_factory=RequestTiming)
    postprocess: Callable[[Any], Any] | None = None  # applied to each row's result
    progress: RequestProgress | None = None
    state: State = State.RECEIVED
    rows: list = field(default_factory=list)
    waiting: list[int] = field(default_factory=list)  # indices of the rows that no batch has taken yet
    steps_done: list[int] = field(default_factory=list)  # by row
    results: list = field(default_factory=list)  # by row
    missing: int = 0  # rows without a result
    arrived: float = field(default_factory=time.monotonic)
    started: float | None = None

    @property
    def ended(self) -> bool:
        """Whether the request has its outcome."""
        return self.state is State.ENDED

    def add_rows(self, rows: list):
        """RECEIVED to QUEUED: the rows to compute are known."""
        self.state = State.QUEUED
        self.rows, self.missing, self.timing.rows = rows, len(rows), len(rows)
        self.waiting, self.steps_done, self.results = list(range(len(rows))), [0] * len(rows), [None] * len(rows)

    def start(self, now: float):
        """QUEUED to RUNNING: a batch takes the first row."""
        self.state, self.started = State.RUNNING, now
        self.timing.queue_seconds = now - self.arrived - self.timing.read_seconds

    def end(self, now: float):
        """Any state to ENDED: notes the times and releases the rows and results."""
        self.state = State.ENDED
        if self.started is None:
            self.timing.queue_seconds = now - self.arrived - self.timing.read_seconds
        else:
            self.timing.run_seconds = now - self.started
        self.rows, self.results, self.waiting = [], [], []

    def batch_kind(self, index: int) -> Hashable:
        """Returns a key that is equal for rows that may share a batch; some rows share it only with their own request."""
        row = self.rows[index]
        return (id(self), row.kind) if row.alone else row.kind

    def snapshot(self, state: str) -> ProgressSnapshot:
        """Returns the progress over all rows, with a state of `ProgressSnapshot`."""
        return ProgressSnapshot(state, sum(self.steps_done), sum(row.steps for row in self.rows))

    def deadline_message(self) -> str:
        """Returns the message for a request whose deadline has passed."""
        if self.deadline is not None and self.deadline <= self.arrived:
            return "The deadline had passed when the request arrived."
        if self.started is None:
            return "The deadline passed while the request waited."
        progress = self.snapshot("")
        return f"The deadline passed after {progress.done} of {progress.steps} steps."
