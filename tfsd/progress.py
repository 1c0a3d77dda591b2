"""Progress and cancelling, although the loop is one graph: it is run in chunks of steps."""

import time
from collections.abc import Callable, Iterator

from tqdm import tqdm

CHUNK_SECONDS = 1.0  # a chunk takes about as long, so that a bar moves and a cancel is heard


class Cancelled(Exception):
    """The callback asked to stop; there is no picture."""


class Progress:
    """Splits a plan's rows into chunks and tells of each: to a bar, to a callback, or to nobody (one chunk).

    The first chunk is a single step; the ones after it grow or shrink to `CHUNK_SECONDS`.
    Raises: `TypeError` for a callback that cannot be called.
    """

    def __init__(self, bar: bool, callback: Callable[[int, int], bool | None] | None):
        if callback is not None and not callable(callback):
            raise TypeError(f"callback must be a function of (done, steps); got {callback!r}.")
        self.bar = bool(bar)
        self.callback = callback

    def chunks(self, count: int) -> Iterator[tuple[int, int]]:
        """Yields (first, last) for all `count` rows; the caller runs rows first ... last - 1.

        Raises: `Cancelled` when the callback returns False.
        """
        if not self.bar and self.callback is None:
            yield 0, count
            return
        with tqdm(total=count, unit="step", disable=not self.bar) as bar:
            first, size = 0, 1
            while first < count:
                last = min(first + size, count)
                started = time.monotonic()
                yield first, last
                seconds = (time.monotonic() - started) / (last - first)
                bar.update(last - first)
                if self.callback is not None and self.callback(last, count) is False:
                    raise Cancelled(f"Cancelled after {last} of {count} steps.")
                if first > 0:  # the first call may have compiled the graph
                    size = max(1, min(int(CHUNK_SECONDS / max(seconds, 1e-6)), 2 * size))
                first = last
