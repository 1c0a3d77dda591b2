"""Limits of the request queue: how many rows may wait, and how work is divided."""

from dataclasses import dataclass


@dataclass(frozen=True)
class QueueLimits:
    """How many rows may wait, and how work is divided.

    Args:
        max_queue_rows: rows (images) that may wait.
        batch_wait_ms: how long a batch waits for further rows, if its engine computes several rows together.
        chunk_seconds: a job checks after about this time whether its result is still wanted.
        workers: jobs that run at once; None takes the number that the engine recommends.
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

    def jobs(self, engine) -> int:
        """Returns how many jobs of an engine may run at once."""
        return self.workers or engine.parallel_jobs
