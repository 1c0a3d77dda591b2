"""Every request ends once, whatever happens: deadlines, cancelling, crashes, the server's end."""

import asyncio
import gc
import random
import threading
import time
import weakref
from collections import Counter

import numpy as np
import pytest
from asking import Bench, ask, error_of, on_a_loop, rejected, soon, value
from held_engine import HeldEngine, picture, until
from patience import LONG

from tfsd.serving.server.active_request import RequestTiming
from tfsd.serving.server.scheduler import Scheduler
from tfsd.serving.wire.errors import ServerError


def workers() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "tfsd-worker"}


@on_a_loop
async def test_deadline_in_the_queue_frees_the_place():
    engine = HeldEngine(parallel_jobs=1, is_open=False)
    async with Bench() as scheduler:
        running = ask(scheduler, engine, "a")
        await until(lambda: engine.computing == 1)
        error = await error_of(ask(scheduler, engine, "b", "c", deadline=soon(1)))
        assert error.code == "DEADLINE_EXCEEDED" and "waited" in error.message
        assert scheduler.queue_rows == 0
        engine.gate.set()
        await running
    assert engine.started == [["a"]]


@on_a_loop
async def test_deadline_is_answered_while_a_chunk_still_computes():
    engine = HeldEngine(is_open=False)
    async with Bench() as scheduler:
        error = await error_of(ask(scheduler, engine, "a", steps=10, deadline=soon(1)))
        assert error.code == "DEADLINE_EXCEEDED" and "after 0 of 10 steps" in error.message
        engine.gate.set()
        await until(lambda: not scheduler.busy)
        assert engine.jobs[0].done < 10


@on_a_loop
async def test_deadline_that_has_passed_costs_no_work():
    engine = HeldEngine()
    async with Bench() as scheduler:
        assert (await error_of(ask(scheduler, engine, "a", deadline=soon(-1)))).code == "DEADLINE_EXCEEDED"
        assert engine.jobs == [] and rejected(scheduler, "deadline") == 1


@on_a_loop
async def test_request_that_is_cancelled_after_its_deadline_counts_as_late():
    engine, timing = HeldEngine(is_open=False), RequestTiming()
    async with Bench() as scheduler:
        task = ask(scheduler, engine, "a", deadline=soon(0.5), timing=timing)
        await until(lambda: engine.jobs)
        time.sleep(0.5)  # the loop's timer cannot fire before the task is cancelled, as when gRPC is faster
        task.cancel()
        await asyncio.wait([task])
        assert timing.deadline_passed and rejected(scheduler, "deadline") == 1 and rejected(scheduler, "cancelled") == 0
        engine.gate.set()


@on_a_loop
async def test_cancelled_request_stops_between_chunks():
    engine = HeldEngine(step_seconds=0.01)
    async with Bench(chunk_seconds=0.02) as scheduler:
        task = ask(scheduler, engine, "a", steps=1000)
        await until(lambda: engine.jobs and engine.jobs[0].done)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: not scheduler.busy)
        assert engine.jobs[0].done < 900 and rejected(scheduler, "cancelled") == 1


@on_a_loop
async def test_cancelled_request_leaves_the_queue_at_once():
    engine = HeldEngine(parallel_jobs=1, is_open=False)
    async with Bench() as scheduler:
        running, waiting = ask(scheduler, engine, "a"), ask(scheduler, engine, "b", "c")
        await until(lambda: scheduler.queue_rows >= 1 and engine.computing)
        for task in (running, waiting):
            task.cancel()
        await asyncio.wait([running, waiting])
        assert scheduler.queue_rows == 0
        engine.gate.set()


@on_a_loop
async def test_job_goes_on_for_strangers_when_one_request_is_cancelled():
    engine = HeldEngine(batch_rows=2, parallel_jobs=1, is_open=False)
    async with Bench(batch_wait_ms=1000) as scheduler:
        leaves, stays = ask(scheduler, engine, "a"), ask(scheduler, engine, "b")
        await until(lambda: engine.computing == 1)
        leaves.cancel()
        await asyncio.wait([leaves])
        engine.gate.set()
        images, _ = await stays
    np.testing.assert_array_equal(images[0], picture("b"))
    assert len(engine.jobs) == 1


@pytest.mark.parametrize(
    ("how", "told"),
    [("crash", "RuntimeError: the device is gone"), ("exit", "SystemExit: 1"), ("stuck", "a chunk made no step after 0 of 4")],
)
@on_a_loop
async def test_crash_fails_its_requests_and_spares_the_worker(how, told):
    engine = HeldEngine(batch_rows=2, parallel_jobs=1)
    async with Bench(batch_wait_ms=1000) as scheduler:
        tasks = [ask(scheduler, engine, how), ask(scheduler, engine, "b")]
        for task in tasks:
            error = await error_of(task)
            assert error.code == "INTERNAL" and "compute" in error.message and told in error.message
        images, _ = await ask(scheduler, engine, "c", "d")
        np.testing.assert_array_equal(images, [picture("c"), picture("d")])
        assert scheduler.queue_rows == 0 and rejected(scheduler, "crash") == 1


@on_a_loop
async def test_crash_of_one_row_fails_the_rows_that_wait():
    engine = HeldEngine(parallel_jobs=1)
    async with Bench() as scheduler:
        assert (await error_of(ask(scheduler, engine, "crash", "b", "c"))).code == "INTERNAL"
        assert scheduler.queue_rows == 0
        await until(lambda: not scheduler.busy)
    assert engine.started == [["crash"]]


@on_a_loop
async def test_of_a_batch_only_the_request_without_a_picture_fails():
    engine = HeldEngine(batch_rows=3, parallel_jobs=1, is_open=False)
    async with Bench() as scheduler:
        first = ask(scheduler, engine, "x")
        await until(lambda: engine.computing == 1)
        good, failed = ask(scheduler, engine, "a"), ask(scheduler, engine, "b", "infinite")
        await until(lambda: scheduler.queue_rows == 3)
        engine.gate.set()
        await first
        images, _ = await good
        np.testing.assert_array_equal(images, [picture("a")])
        error = await error_of(failed)
        assert (error.code, error.message) == ("INTERNAL", "not finite")
    assert engine.started == [["x"], ["a", "b", "infinite"]]


@on_a_loop
async def test_bad_inputs_are_the_callers_error_and_odd_ones_the_servers():
    async with Bench() as scheduler:
        bad, odd = await error_of(ask(scheduler, HeldEngine(), "bad")), await error_of(ask(scheduler, HeldEngine(), "odd"))
        assert (bad.code, bad.message) == ("INVALID_ARGUMENT", "a bad prompt")
        assert odd.code == "INTERNAL"
        assert (await error_of(ask(scheduler, HeldEngine()))).code == "INVALID_ARGUMENT"  # no rows
        assert not scheduler.busy


@on_a_loop
async def test_drain_finishes_what_is_here_and_refuses_what_comes():
    engine = HeldEngine(parallel_jobs=1, step_seconds=0.01)
    scheduler, before = Scheduler(), workers()
    tasks = [ask(scheduler, engine, text) for text in "abc"]
    await until(lambda: engine.jobs)
    drain = asyncio.ensure_future(scheduler.drain(LONG))
    await asyncio.sleep(0)
    error = await error_of(ask(scheduler, engine, "d"))
    assert error.code == "UNAVAILABLE" and rejected(scheduler, "draining") == 1
    await drain
    assert all(len(task.result()[0]) == 1 for task in tasks)
    assert not workers() - before


@on_a_loop
async def test_drain_fails_the_rest_after_the_grace():
    engine = HeldEngine(parallel_jobs=1, is_open=False)
    scheduler = Scheduler()
    tasks = [ask(scheduler, engine, text) for text in "ab"]
    await until(lambda: engine.computing == 1)
    drain = asyncio.ensure_future(scheduler.drain(0.05))
    for task in tasks:
        assert (await error_of(task)).code == "UNAVAILABLE"
    engine.gate.set()
    await drain
    await until(lambda: not scheduler.busy)
    assert not scheduler.busy and scheduler.queue_rows == 0


def test_nothing_hangs_when_the_loop_stops_under_a_request():
    engine, scheduler, before = HeldEngine(is_open=False), Scheduler(), workers()

    async def abandon():
        ask(scheduler, engine, "a")
        await until(lambda: engine.computing == 1)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(abandon())
    for task in asyncio.all_tasks(loop):
        task._log_destroy_pending = False  # the point of the test, not worth a warning
    loop.close()
    engine.gate.set()
    asyncio.run(until(lambda: not scheduler.busy))
    scheduler.close()
    asyncio.run(until(lambda: not workers() - before))


@on_a_loop
async def test_idle_threads_keep_no_engine_in_memory(monkeypatch):
    # pytest keeps the log's records, and they lead to the engine
    monkeypatch.setattr("tfsd.serving.server.logs.LOGGER.disabled", True)
    async with Bench() as scheduler:
        engine = HeldEngine()
        await ask(scheduler, engine, "a", request_id="x")
        await error_of(ask(scheduler, engine, "crash"))
        await until(lambda: not scheduler.busy)
        forgotten = weakref.ref(engine)
        del engine

        def is_gone():
            gc.collect()
            return forgotten() is None

        await until(is_gone)


async def storm(engines, seed: int, count: int, drain_after: int | None = None) -> list:
    """Sends random requests of which some are cancelled, some late, some crash; returns (texts, heights, task) of each.

    With `drain_after`, the server ends when so many have their pictures.
    """
    chance, made = random.Random(seed), []

    async def one(i):
        await asyncio.sleep(chance.random() * 0.5)
        fate = chance.choice(["", "", "", "", "crash", "exit", "stuck", "bad", "odd"]) if chance.random() < 0.3 else ""
        texts = [f"{i}-{k}{fate if k == 0 else ''}" for k in range(chance.randint(1, 5))]
        deadline = soon(chance.random() * 0.2) if chance.random() < 0.2 else None
        heights = [chance.choice([8, 16]) for _ in texts]
        task = ask(
            scheduler,
            chance.choice(engines),
            *texts,
            heights=heights,
            steps=chance.randint(1, 9),
            deadline=deadline,
            request_id=f"{i}",
        )
        if chance.random() < 0.2:
            asyncio.get_running_loop().call_later(chance.random() * 0.05, task.cancel)
        done, _ = await asyncio.wait([task], timeout=LONG)
        if done and not task.cancelled() and task.exception() is None:
            made.append(i)
        return texts, heights, task if done else None

    async with Bench(max_queue_rows=250, chunk_seconds=0.003) as scheduler:
        tasks = [asyncio.ensure_future(one(i)) for i in range(count)]
        if drain_after is not None:
            await until(lambda: len(made) >= drain_after)
            await scheduler.drain(0)
        ended = await asyncio.gather(*tasks)
        await until(lambda: not scheduler.busy)
        assert scheduler.queue_rows == 0 and value(scheduler.metrics, "tfsd_queue_rows") == 0
        assert value(scheduler.metrics, "tfsd_running_rows") == 0
        assert all(scheduler.progress[f"{i}"].ended for i in range(count) if f"{i}" in scheduler.progress)
    return ended


def storm_engines() -> list[HeldEngine]:
    return [
        HeldEngine(batch_rows=4, parallel_jobs=1, step_seconds=0.0002),
        HeldEngine(batch_rows=1, parallel_jobs=2, step_seconds=0.0002),
    ]


def ways_of(ended: list) -> Counter:
    """How requests ended; each must have, in a way that is allowed, and pictures must be the right ones."""
    ways = Counter()
    for texts, heights, task in ended:
        assert task is not None, f"{texts} never ended"
        if task.cancelled():
            ways["cancelled"] += 1
        elif task.exception() is None:
            ways["result"] += 1
            images, _ = task.result()
            for image, text, height in zip(images, texts, heights, strict=True):
                np.testing.assert_array_equal(image, picture(text, (height, 8)))
        else:
            assert isinstance(task.exception(), ServerError), task.exception()
            ways[task.exception().code] += 1
    return ways


@pytest.mark.parametrize("seed", range(3))
def test_every_request_of_a_storm_ends_in_exactly_one_way(seed):
    ways = ways_of(asyncio.run(asyncio.wait_for(storm(storm_engines(), seed, 400), LONG)))
    assert ways.total() == 400
    assert {"result", "cancelled", "INTERNAL", "INVALID_ARGUMENT"} <= set(ways), ways


def test_every_request_of_a_storm_ends_when_the_server_drains_in_the_middle():
    ways = ways_of(asyncio.run(asyncio.wait_for(storm(storm_engines(), 7, 400, drain_after=10), LONG)))
    assert ways.total() == 400 and {"result", "UNAVAILABLE"} <= set(ways), ways
