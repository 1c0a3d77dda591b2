"""What only a program of coroutines can do with a client; the rest is tested for both in test_client.py."""

import asyncio
import threading

import numpy as np
import pytest
from patience import LONG, until
from scripted import Scripted, fails, hangs, picture, serving, slow, waits

from tfsd.serving.client.aio import AsyncClient
from tfsd.serving.wire.errors import ServerError


def run(script, use, **settings):
    """Runs the coroutine `use(client)` against a server with a script; returns its result and the servicer."""
    servicer = Scripted(script)

    async def main(address):
        async with AsyncClient(address, **settings) as client:
            return await use(client)

    with serving(servicer) as address:
        return asyncio.run(main(address)), servicer


def test_requests_of_one_client_run_at_once():
    async def use(client):
        return await asyncio.gather(*(client.text_to_image("a", seed=i) for i in range(6)))

    drawn, servicer = run([waits(threading.Barrier(6))] * 6, use)
    assert servicer.most_running == 6
    for i, images in enumerate(drawn):
        np.testing.assert_array_equal(images[0], picture(i, 0))


def test_loop_goes_on_while_a_picture_is_drawn():
    drawn = threading.Event()

    async def use(client):
        drawing = asyncio.create_task(client.text_to_image("a", callback=lambda done, steps: None))
        for _ in range(5):
            await asyncio.sleep(0.01)
        assert not drawing.done()
        drawn.set()  # the server waits for it
        return len(await drawing)

    assert run([waits(drawn)], use)[0] == 1


def test_cancelled_task_cancels_its_request_on_the_server():
    servicer = Scripted([hangs])

    async def main(address):
        async with AsyncClient(address) as client:
            drawing = asyncio.create_task(client.text_to_image("a", 3))
            assert await asyncio.to_thread(until, lambda: servicer.running == 1)
            drawing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await drawing
            assert await asyncio.to_thread(servicer.gone.wait, LONG)
            return len(asyncio.all_tasks())

    with serving(servicer) as address:
        assert asyncio.run(main(address)) == 1  # nothing but `main` itself is left


def test_cancelled_while_waiting_for_the_next_try_ends_at_once():
    async def use(client):
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(client.text_to_image("a"), 0.5)
        return len(asyncio.all_tasks())

    assert run([fails("UNAVAILABLE")] * 99, use, retries=99)[0] == 1  # nothing goes on trying


def test_one_failure_leaves_other_requests_alone():
    async def use(client):
        return await asyncio.gather(*(client.text_to_image("a", seed=i) for i in range(5)), return_exceptions=True)

    drawn, _ = run([fails("INTERNAL"), slow, slow, slow, slow], use)
    assert sorted(type(one).__name__ for one in drawn) == ["Images"] * 4 + ["ServerError"]
    assert [one.code for one in drawn if isinstance(one, ServerError)] == ["INTERNAL"]
