"""The progress of all RPCs of a call, for a progress bar and a callback."""

import threading
import time
from typing import Any

from google.protobuf.struct_pb2 import Struct

from tfsd.progress import Cancelled, Progress, Stages
from tfsd.serving.client.requests import parsed
from tfsd.serving.wire.errors import ServerError

HEARTBEAT_SECONDS = 1.0  # after which the callback is called again without progress


class Tracker:
    """Collects the progress of all RPCs of a call and reports it, in a `with` block.

    If the server does not report progress, the bar shows "waiting", and the callback is called once a second with 0 steps, so
    that it can still cancel.
    """

    def __init__(self, show: Progress, steps: list[int]):
        """`steps` has the expected number of steps of each RPC, until the server reports it."""
        self.wanted = show.bar or show.callback is not None
        self._callback = show.callback
        self._parts = [(0, one) for one in steps]
        self._answered: set[int] = set()
        self._lock = threading.Lock()  # reports of the server arrive in other threads
        self._told, self._told_at = (0, sum(steps)), time.monotonic()
        self._stages = Stages.within(show.bar)

    def __enter__(self) -> "Tracker":
        self._stages.__enter__()
        self._stages("waiting for the server")
        return self

    def __exit__(self, *failure: Any) -> None:
        self._stages.__exit__(*failure)

    def heard(self, call: int, data: bytes) -> None:
        """Handles a report about a call, a Struct {state, done, steps}; ignores damaged and late ones."""
        try:
            message = parsed(Struct, data)
            done, steps = (int(message[name]) for name in ("done", "steps"))
        except (ServerError, ValueError, TypeError, OverflowError):
            return
        with self._lock:
            if 0 <= done <= steps and steps and call not in self._answered:
                self._parts[call] = (done, steps)

    def finished(self, call: int) -> None:
        """Notes that a call was answered."""
        with self._lock:
            steps = self._parts[call][1]
            self._parts[call] = (steps, steps)
            self._answered.add(call)

    def tell(self) -> None:
        """Updates the bar and calls the callback, if there is progress or the last call was a while ago.

        Raises: `Cancelled` when the callback returns False.
        """
        with self._lock:
            done, steps = (sum(part[i] for part in self._parts) for i in (0, 1))
        now = time.monotonic()
        if (done, steps) == self._told and now - self._told_at < HEARTBEAT_SECONDS:
            return
        self._told, self._told_at = (done, steps), now
        if done and self._stages.name != "drawing":
            self._stages("drawing", steps)
        self._stages.step(done, steps if done else None)
        if self._callback is not None and self._callback(done, steps) is False:
            raise Cancelled(f"Cancelled after {done} of {steps} steps.")
