"""Progress and cancelling, although the loop is one graph: it is run in chunks of steps."""

import time
from collections.abc import Callable, Hashable, Iterator

from tqdm import tqdm

from tfsd.errors import shown

CHUNK_SECONDS = 1.0  # a chunk takes about as long, so that a bar moves and a cancel is heard


class Cancelled(Exception):
    """The callback asked to stop; there is no picture."""


class Progress:
    """Splits a plan's rows into chunks and tells of each: to a bar, to a callback, or to nobody (one chunk).

    `pace` holds the seconds that a step takes, by what is computed; it outlives the call, so that only the first one
    has to measure. Raises: `TypeError` for a callback that cannot be called.
    """

    def __init__(self, bar: bool, callback: Callable[[int, int], bool | None] | None, pace: dict | None = None):
        if callback is not None and not callable(callback):
            raise TypeError(f"callback must be a function of (done, steps); got {shown(callback)}.")
        self.bar = bool(bar)
        self.callback = callback
        self.pace = {} if pace is None else pace

    def chunks(self, count: int, kind: Hashable = None) -> Iterator[tuple[int, int]]:
        """Yields (first, last) for all `count` rows; the caller runs rows first ... last - 1 of something of `kind`.

        Raises: `Cancelled` when the callback returns False.
        """
        if not self.bar and self.callback is None:
            yield 0, count
            return
        with tqdm(total=count, unit="step", disable=not self.bar) as bar:
            first = 0
            while first < count:
                last = min(first + self._size(kind), count)
                started = time.monotonic()
                yield first, last
                if first > 0:  # the first call may have compiled the graph
                    self.pace[kind] = (time.monotonic() - started) / (last - first)
                bar.update(last - first)
                if self.callback is not None and self.callback(last, count) is False:
                    raise Cancelled(f"Cancelled after {last} of {count} steps.")
                first = last

    def _size(self, kind: Hashable) -> int:
        """Returns how many steps take about `CHUNK_SECONDS`; one where that is not known."""
        return max(1, int(CHUNK_SECONDS / max(self.pace[kind], 1e-6))) if kind in self.pace else 1
