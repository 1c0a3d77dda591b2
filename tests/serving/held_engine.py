"""A second, tiny implementation of the engine's interface, whose jobs a test can hold, slow down and crash."""

import asyncio
import threading
import time
import zlib
from typing import NamedTuple

import numpy as np
from patience import LONG

from tfsd.serving.server.jobs import CallJob, CallRow
from tfsd.serving.wire.errors import ServerError


class Row(NamedTuple):
    text: str
    steps: int
    size: tuple[int, int]
    truncated: int

    alone = False

    @property
    def kind(self):
        return self.size


def picture(text: str, size=(8, 8)) -> np.ndarray:
    """The picture is a function of its row alone, so that a row handed to a stranger shows."""
    return np.full((*size, 3), zlib.crc32(text.encode()) % 251, np.uint8)


class HeldEngine:
    """`gate`: jobs compute while it is set.

    A prompt with "crash", "exit", "stuck", "bad", "odd" or "infinite" in it fails in that way.
    """

    name, version = "held", 1

    def __init__(self, *, batch_rows=1, parallel_jobs=2, step_seconds=0.0, is_open=True):
        self.batch_rows, self.parallel_jobs, self.step_seconds = batch_rows, parallel_jobs, step_seconds
        self.gate = threading.Event()
        self.jobs: list[Job] = []
        self.job_rows: list[int] = []  # by job
        self.most_at_once = 0
        self.computing = 0
        self.lock = threading.Lock()
        if is_open:
            self.gate.set()

    def prepare(self, inputs):
        texts = [str(text) for text in inputs["prompt"]]
        if any("bad" in text for text in texts):
            raise ServerError("INVALID_ARGUMENT", "a bad prompt")
        if any("odd" in text for text in texts):
            raise KeyError("odd")
        sizes = inputs.get("height", [8] * len(texts))
        return [Row(text, inputs.get("num_steps", 4), (size, 8), len(text)) for text, size in zip(texts, sizes)]

    def start(self, rows):
        assert len(rows) <= self.batch_rows and len({row.kind for row in rows}) == 1
        job = CallJob(self.run, rows) if isinstance(rows[0], CallRow) else Job(self, rows)
        self.jobs.append(job)
        self.job_rows.append(len(rows))
        return job

    def split(self, signature, inputs):
        return [CallRow(signature, {"inputs": inputs["inputs"][[i]]}) for i in range(len(inputs["inputs"]))]

    def run(self, signature, inputs):
        if signature == "crash":
            raise ValueError("crashed")
        assert self.gate.wait(LONG)
        return {"outputs": 2 * inputs["inputs"]}

    @property
    def started(self) -> list[list[str]]:
        return [[row.text for row in job.rows] for job in self.jobs if isinstance(job, Job)]


class Job:
    def __init__(self, engine, rows):
        self.engine, self.rows, self.done, self.chunks = engine, rows, 0, []
        self.steps = max(row.steps for row in rows)

    def advance(self, steps):
        with self.engine.lock:
            self.engine.computing += 1
            self.engine.most_at_once = max(self.engine.most_at_once, self.engine.computing)
        try:
            assert self.engine.gate.wait(LONG)
            if self.engine.step_seconds:
                time.sleep(steps * self.engine.step_seconds)
            for row in self.rows:
                if "crash" in row.text:
                    raise RuntimeError("the device is gone")
                if "exit" in row.text:
                    raise SystemExit(1)
                if "stuck" in row.text:
                    return
            self.done += steps
            self.chunks.append(steps)
        finally:
            with self.engine.lock:
                self.engine.computing -= 1

    def results(self):
        assert self.done == self.steps
        infinite = ServerError("INTERNAL", "not finite")
        return [infinite if "infinite" in row.text else picture(row.text, row.size) for row in self.rows]


async def until(condition, seconds: float = LONG):
    """Waits until a condition holds; a test that would hang fails instead."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        await asyncio.sleep(0.001)
