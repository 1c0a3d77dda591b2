import asyncio

import numpy as np
import pytest
from asking import Bench, ask, error_of, on_a_loop, rejected, soon
from held_engine import HeldEngine, picture, until
from signatures import called

from tfsd.arguments.table import TRUNCATED
from tfsd.serving.server.active_request import RequestTiming
from tfsd.serving.server.batch import Batch, Member
from tfsd.serving.server.queue_limits import QueueLimits
from tfsd.serving.server.step_timer import StepTimer
from tfsd.serving.wire.errors import ServerError


@on_a_loop
async def test_request_gets_its_pictures_and_token_counts():
    async with Bench() as scheduler:
        images, truncated = await ask(scheduler, HeldEngine(), "a", "bcd")
        assert len(images) == 2
        np.testing.assert_array_equal(images[0], picture("a"))
        np.testing.assert_array_equal(images[1], picture("bcd"))
        assert truncated.dtype == np.int32 and truncated.tolist() == [1, 3]


@on_a_loop
async def test_rows_of_strangers_share_a_job_of_a_fused_engine():
    engine = HeldEngine(batch_rows=4, parallel_jobs=1)
    async with Bench(batch_wait_ms=1000) as scheduler:
        tasks = [ask(scheduler, engine, "a"), ask(scheduler, engine, "b", "c"), ask(scheduler, engine, "d")]
        answers = await asyncio.gather(*tasks)
    assert [sorted(job) for job in engine.started] == [["a", "b", "c", "d"]]
    for (images, _), texts in zip(answers, ("a", "bc", "d")):
        np.testing.assert_array_equal(images, [picture(text) for text in texts])


@on_a_loop
async def test_full_job_starts_without_waiting_for_company():
    engine = HeldEngine(batch_rows=2, parallel_jobs=1)
    async with Bench(batch_wait_ms=10_000) as scheduler:
        await asyncio.wait_for(ask(scheduler, engine, "a", "b"), 5)


@on_a_loop
async def test_lone_row_waits_for_company_no_longer_than_said():
    engine = HeldEngine(batch_rows=2, parallel_jobs=1)
    async with Bench(batch_wait_ms=50) as scheduler:
        timing = RequestTiming()
        await ask(scheduler, engine, "a", timing=timing)
    assert 0.049 < timing.queue_seconds < 5


@on_a_loop
async def test_exact_engine_waits_for_nobody():
    async with Bench(batch_wait_ms=10_000) as scheduler:
        await asyncio.wait_for(ask(scheduler, HeldEngine(batch_rows=1), "a"), 5)


@on_a_loop
async def test_rows_of_one_request_may_be_split_over_jobs():
    engine = HeldEngine(batch_rows=2, parallel_jobs=1)
    async with Bench(batch_wait_ms=0) as scheduler:
        images, _ = await ask(scheduler, engine, *"abcde")
    assert engine.started == [["a", "b"], ["c", "d"], ["e"]]
    np.testing.assert_array_equal(images, [picture(text) for text in "abcde"])


@on_a_loop
async def test_rows_of_two_sizes_or_two_engines_never_share_a_job():
    engine, other = (HeldEngine(batch_rows=8, parallel_jobs=1) for _ in range(2))
    async with Bench(batch_wait_ms=20) as scheduler:
        tasks = [ask(scheduler, engine, "a", "b", "c", heights=[8, 16, 8]), ask(scheduler, other, "d")]
        (images, _), _ = await asyncio.gather(*tasks)
    assert engine.started == [["a", "c"], ["b"]] and other.started == [["d"]]
    assert [image.shape[0] for image in images] == [8, 16, 8]


@on_a_loop
async def test_as_many_jobs_run_at_once_as_the_engine_asks_for():
    engine = HeldEngine(parallel_jobs=3, is_open=False)
    async with Bench() as scheduler:
        tasks = [ask(scheduler, engine, f"{i}") for i in range(6)]
        await until(lambda: engine.computing == 3 and scheduler.queue_rows == 3)
        engine.gate.set()
        await asyncio.gather(*tasks)
    assert engine.most_at_once == 3


@on_a_loop
async def test_workers_of_the_limits_stand_above_the_engine():
    engine = HeldEngine(parallel_jobs=3)
    async with Bench(workers=1) as scheduler:
        await asyncio.gather(*(ask(scheduler, engine, f"{i}") for i in range(6)))
    assert engine.most_at_once == 1


@on_a_loop
async def test_first_come_is_first_served():
    engine = HeldEngine(parallel_jobs=1, is_open=False)
    async with Bench() as scheduler:
        tasks = []
        for text in "abcdef":  # one after another: preparing in threads may change the order otherwise
            tasks.append(ask(scheduler, engine, text))
            await until(lambda: len(engine.jobs) + scheduler.queue_rows == len(tasks))
        engine.gate.set()
        await asyncio.gather(*tasks)
    assert engine.started == [[text] for text in "abcdef"]


@on_a_loop
async def test_busy_engine_does_not_hold_up_another():
    held, free = HeldEngine(parallel_jobs=1, is_open=False), HeldEngine(parallel_jobs=2)
    async with Bench() as scheduler:
        waiting = [ask(scheduler, held, "a"), ask(scheduler, held, "b")]
        await until(lambda: scheduler.queue_rows == 1)
        await asyncio.wait_for(ask(scheduler, free, "c"), 5)
        held.gate.set()
        await asyncio.gather(*waiting)


@on_a_loop
async def test_rows_beyond_the_limit_are_refused_and_told_the_limit():
    engine = HeldEngine(parallel_jobs=1, is_open=False)
    async with Bench(max_queue_rows=3) as scheduler:
        running = ask(scheduler, engine, "a")
        await until(lambda: engine.computing == 1)
        waiting = ask(scheduler, engine, "b", "c")
        await until(lambda: scheduler.queue_rows == 2)
        error = await error_of(ask(scheduler, engine, "d", "e"))
        assert error.code == "RESOURCE_EXHAUSTED" and "at most 3 rows" in error.message and "2 wait" in error.message
        fits = ask(scheduler, engine, "f")
        await until(lambda: scheduler.queue_rows == 3)
        assert (await error_of(ask(scheduler, engine, "g"))).code == "RESOURCE_EXHAUSTED"
        assert rejected(scheduler, "queue_full") == 2 and rejected(scheduler, "cancelled") == 0
        engine.gate.set()
        await asyncio.gather(running, waiting, fits)
        assert scheduler.queue_rows == 0


@on_a_loop
async def test_the_first_chunk_is_one_step_and_all_steps_are_made_once():
    engine = HeldEngine(step_seconds=0.005)
    async with Bench(chunk_seconds=0.05) as scheduler:
        await ask(scheduler, engine, "a", steps=20)
        await ask(scheduler, engine, "b", steps=20)
    first, second = (job.chunks for job in engine.jobs)
    assert first[0] == 1 and sum(first) == sum(second) == 20


def test_chunks_take_about_the_time_asked_for():
    engine, timer = HeldEngine(), StepTimer(chunk_seconds=0.05)
    batch = Batch(engine, (8, 8), [Member(None, 0, None)])
    assert timer.steps(batch, 20) == 1  # nothing is known yet
    for step_seconds, chunk in ((0.005, 10), (0.02, 3), (0.001, 20), (1.0, 1)):
        timer.measure(batch, step_seconds)
        assert timer.steps(batch, 20) == chunk
    assert timer.steps(batch._replace(kind=(16, 8)), 20) == 1


@on_a_loop
async def test_progress_goes_from_queued_through_steps_to_done():
    engine = HeldEngine(parallel_jobs=1, is_open=False)
    async with Bench(chunk_seconds=0.001) as scheduler:
        first, second = ask(scheduler, engine, "a", request_id="1"), ask(scheduler, engine, "b", request_id="2")
        await until(lambda: engine.computing == 1 and scheduler.queue_rows == 1)
        third = ask(scheduler, engine, "c", "d", request_id="3")
        await until(lambda: scheduler.queue_rows == 3)
        assert scheduler.progress["1"] == ("running", 0, 4, 0)
        assert scheduler.progress["2"] == ("queued", 0, 4, 0)
        assert scheduler.progress["3"] == ("queued", 0, 8, 1)
        engine.gate.set()
        seen = [progress async for progress in scheduler.progress.watch("3")]
        await asyncio.gather(first, second, third)
        assert seen[-1] == ("done", 8, 8, 0) and [p.done for p in seen] == sorted(p.done for p in seen)
        assert scheduler.progress["1"].state == "done" and set(scheduler.progress) == {"1", "2", "3"}


@on_a_loop
async def test_progress_of_failures_is_failed_and_of_strangers_unknown():
    async with Bench() as scheduler:
        await error_of(ask(scheduler, HeldEngine(), "crash", request_id="1"))
        await error_of(ask(scheduler, HeldEngine(), "bad", request_id="2"))
        assert [scheduler.progress[name].state for name in "12"] == ["failed", "failed"]
        assert "3" not in scheduler.progress
        with pytest.raises(ServerError, match="NOT_FOUND"):
            scheduler.progress.watch("3")


@on_a_loop
async def test_progress_of_ended_requests_is_forgotten(monkeypatch):
    async with Bench() as scheduler:
        monkeypatch.setattr("tfsd.serving.server.progress.MAX_ENDED", 3)
        for i in range(6):
            await ask(scheduler, HeldEngine(), "a", request_id=f"{i}")
        assert set(scheduler.progress) == {"3", "4", "5"}
        monkeypatch.setattr("tfsd.serving.server.progress.KEPT_SECONDS", 0)
        assert len(scheduler.progress) == 0


@on_a_loop
async def test_same_id_twice_shows_the_later_request():
    engine = HeldEngine(parallel_jobs=2, is_open=False)
    async with Bench() as scheduler:
        tasks = [ask(scheduler, engine, "a", steps=2, request_id="x"), ask(scheduler, engine, "b", steps=7, request_id="x")]
        await until(lambda: engine.computing == 2)
        assert scheduler.progress["x"].steps == 7
        engine.gate.set()
        await asyncio.gather(*tasks)
        assert scheduler.progress["x"] == ("done", 7, 7, 0)


@on_a_loop
async def test_calls_take_a_workers_slot_and_their_errors_come_back():
    engine = HeldEngine(parallel_jobs=1, is_open=False)
    async with Bench() as scheduler:
        running = ask(scheduler, engine, "a")
        await until(lambda: engine.computing == 1)
        call = asyncio.ensure_future(scheduler.call(engine, "encode", {"inputs": np.arange(3)}))
        await until(lambda: scheduler.queue_rows == 3)
        engine.gate.set()
        np.testing.assert_array_equal((await call)["outputs"], [0, 2, 4])
        await running
        assert (await error_of(scheduler.call(engine, "crash", {"inputs": np.arange(1)}))).code == "INTERNAL"
        engine.gate.clear()
        late = scheduler.call(engine, "encode", {"inputs": np.arange(3)}, deadline=soon(1))
        assert (await error_of(late)).code == "DEADLINE_EXCEEDED"
        engine.gate.set()


@on_a_loop
async def test_a_call_whose_client_left_is_computed_no_further():
    engine = HeldEngine(parallel_jobs=1, is_open=False)
    async with Bench() as scheduler:
        call = asyncio.ensure_future(scheduler.call(engine, "encode", {"inputs": np.arange(8)}, request_id="x"))
        await until(lambda: engine.jobs and scheduler.queue_rows == 7)
        assert scheduler.progress["x"] == ("running", 0, 8, 0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert scheduler.queue_rows == 0
        engine.gate.set()
        await until(lambda: not scheduler.busy)
    assert len(engine.jobs) == 1


@on_a_loop
async def test_calls_of_strangers_are_computed_apart_where_rows_of_one_are_computed_together():
    engine = HeldEngine(batch_rows=4, parallel_jobs=1)
    async with Bench(batch_wait_ms=1000) as scheduler:
        asked = [np.arange(3), np.arange(3, 9)]
        answers = await asyncio.gather(*(scheduler.call(engine, "encode", {"inputs": one}) for one in asked))
    for one, answer in zip(asked, answers):
        np.testing.assert_array_equal(answer["outputs"], 2 * one)
    assert sorted(engine.job_rows) == [2, 3, 4]


@on_a_loop
async def test_timing_has_rows_and_times_also_of_failures():
    engine = HeldEngine(parallel_jobs=1, step_seconds=0.01)
    async with Bench() as scheduler:
        timing, failed = RequestTiming(), RequestTiming()
        await ask(scheduler, engine, "a", "b", steps=3, timing=timing)
        assert timing.rows == 2 and 0.06 <= timing.run_seconds and timing.queue_seconds >= 0
        await error_of(ask(scheduler, engine, "a", steps=1000, deadline=soon(2), timing=failed))
        assert failed.rows == 1 and failed.run_seconds > 0.01


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_queue_rows", 0), ("batch_wait_ms", -1), ("chunk_seconds", 0), ("chunk_seconds", 1e9), ("workers", 0)],
)
def test_limits_that_make_no_sense_are_refused(name, value):
    with pytest.raises(ValueError, match=name):
        QueueLimits(**{name: value})


@pytest.fixture(scope="module")
def engine(toy_export):
    from tfsd.serving.server.engine import Engine

    engine = Engine(toy_export / "toy/1")
    engine.warm_up()
    return engine


@on_a_loop
@pytest.mark.slow
async def test_pictures_of_an_export_are_those_of_its_signature_whoever_shares_the_queue(engine):
    def inputs(*prompts, seed, num_steps):
        values = {
            "prompt": np.array(prompts, object),
            "seed": np.array([seed], "int64"),
            "num_steps": np.array([num_steps], "int32"),
        }
        return {**engine.defaults(), **values}

    asked = [inputs(b"a red star", b"a star", seed=3, num_steps=5), inputs(b"a red star", seed=4, num_steps=2)]
    async with Bench(chunk_seconds=0.001) as scheduler:
        answers = await asyncio.gather(*(scheduler.generate(engine, each) for each in asked))
    for each, (images, truncated) in zip(asked, answers):
        expected = called(engine.folder, "text_to_image", each)
        np.testing.assert_array_equal(images, expected["images"])
        np.testing.assert_array_equal(truncated, np.stack([expected[name] for name in TRUNCATED], axis=1))


@on_a_loop
@pytest.mark.slow
async def test_wrong_value_for_an_export_is_the_callers_error(engine):
    async with Bench() as scheduler:
        wrong = {**engine.defaults(), "prompt": np.array([b"a star"], object), "num_steps": np.array([0], "int32")}
        error = await error_of(scheduler.generate(engine, wrong))
        assert error.code == "INVALID_ARGUMENT" and "num_steps" in error.message
        assert scheduler.queue_rows == 0 and not scheduler.busy
