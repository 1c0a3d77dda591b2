"""How many steps a job computes before it checks whether its result is still wanted, from measured times of a step."""

import threading
import weakref

from tfsd.serving.server.batch import Batch


class StepTimer:
    """The last measured time of a step, by engine, kind and number of rows. It does not keep engines in memory."""

    def __init__(self, chunk_seconds: float):
        self._chunk_seconds = chunk_seconds
        self._step_seconds: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()

    def steps(self, batch: Batch, remaining: int) -> int:
        """Returns how many of the remaining steps to compute next: equal parts that take about `chunk_seconds` each."""
        with self._lock:
            seconds = self._step_seconds.get(batch.engine, {}).get((batch.kind, len(batch.members)))
        if seconds is None:
            return 1
        chunks = max(1, round(remaining * seconds / self._chunk_seconds))
        return -(-remaining // chunks)

    def measure(self, batch: Batch, step_seconds: float):
        """Stores the time that a step of a batch took."""
        with self._lock:
            self._step_seconds.setdefault(batch.engine, {})[batch.kind, len(batch.members)] = step_seconds
