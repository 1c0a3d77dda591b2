"""How the scheduler's tests ask it for pictures."""

import asyncio
import functools
import time

import numpy as np
import pytest
from patience import LONG

from tfsd.serving.server.queue_limits import QueueLimits
from tfsd.serving.server.scheduler import Scheduler
from tfsd.serving.wire.errors import ServerError


def on_a_loop(test):
    """Runs a coroutine function as a test, on a loop of its own, with an end."""

    @functools.wraps(test)
    def run(*args, **kwargs):
        return asyncio.run(asyncio.wait_for(test(*args, **kwargs), LONG))

    return run


class Bench:
    """A scheduler that is taken down after the block."""

    def __init__(self, **limits):
        self.scheduler = Scheduler(QueueLimits(**limits))

    async def __aenter__(self):
        return self.scheduler

    async def __aexit__(self, *_):
        await self.scheduler.drain(0)


def ask(scheduler, engine, *prompts, steps=4, heights=None, **options):
    inputs = {"prompt": np.array(prompts, object), "num_steps": steps}
    if heights:
        inputs["height"] = heights
    return asyncio.ensure_future(scheduler.generate(engine, inputs, **options))


async def error_of(task) -> ServerError:
    with pytest.raises(ServerError) as caught:
        await task
    return caught.value


def value(metrics, name: str, **labels) -> float:
    """Returns the value of a metric."""
    return metrics.registry.get_sample_value(name, labels)


def rejected(scheduler, reason) -> float:
    return value(scheduler.metrics, "tfsd_rejected_total", reason=reason)


def soon(seconds) -> float:
    return time.monotonic() + seconds
