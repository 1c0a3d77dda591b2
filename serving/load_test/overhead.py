"""The time that a server adds to the model's own time for an image."""

import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

PROMPT = "a red star above a blue house at night"
Way = Callable[[], Awaitable[bytes]]  # to the PNG file of an image


def engine_and_inputs(folder: Path, num_steps: int | None) -> tuple[Any, dict[str, np.ndarray]]:
    """Returns an export's engine, ready to compute, and the inputs of a request for one image without its seed."""
    from tfsd.serving.server.engine import Engine

    engine = Engine(folder)
    engine.warm_up()
    inputs = engine.defaults() | {"prompt": np.array([PROMPT.encode()], object)}
    return engine, inputs if num_steps is None else inputs | {"num_steps": np.array([num_steps], np.int32)}


async def timed(ways: Sequence[Way], bar: tqdm) -> tuple[list[float], set[bytes]]:
    """Returns the milliseconds of two calls of each way, and the different images that they made.

    The first call only refills the caches and wakes the threads that the previous way did not use.
    """
    milliseconds, images = [], set()
    for way in ways:
        for _ in range(2):
            started = time.perf_counter()
            images.add(await way())
            milliseconds.append(1000 * (time.perf_counter() - started))
        bar.update(1)
    return milliseconds, images


async def make_png(engine, inputs: dict[str, np.ndarray]) -> bytes:
    """Returns the PNG file of a request for one image, by the calls that the server makes, but without chunks."""
    job = engine.start(engine.prepare(inputs))
    job.advance(job.steps)
    return engine.png(job.results()[0])


def medians(turns: np.ndarray, *, rest: bool) -> dict:
    """Returns the medians over all rounds, each a row of milliseconds of the engine, gRPC and, if `rest`, REST."""
    if not len(turns):
        return {"rounds": 0}
    columns = {"model_ms": turns[:, 0], "grpc_ms": turns[:, 1], "grpc_added_ms": turns[:, 1] - turns[:, 0]}
    if rest:
        columns |= {"rest_ms": turns[:, 2], "rest_added_ms": turns[:, 2] - turns[:, 0]}
    return {"rounds": len(turns)} | {name: float(np.median(column)) for name, column in columns.items()}
