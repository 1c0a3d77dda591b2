"""How tests wait: for a state, never for a time. What does not come is a failure only after longer than any machine needs."""

import time
from collections.abc import Callable

LONG = 300.0  # seconds


def until(condition: Callable[[], object], seconds: float = LONG) -> bool:
    """Waits for what another thread or process brings about."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)
    return True
