"""Long work in threads that nothing waits for at the end of the process."""

import asyncio
import contextlib
import threading
from collections.abc import Callable


async def in_daemon(function: Callable, *arguments):
    """Awaits a function in a thread of its own that the end of the process does not wait for: loading takes minutes.

    The event loop's own pool is not used: a few such functions would occupy all its threads, which requests need.
    """
    loop, done = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()

    def settle(error: BaseException | None):
        if not done.done():
            done.set_result(None) if error is None else done.set_exception(error)

    def work():
        error = None
        try:
            function(*arguments)
        except BaseException as caught:
            error = caught
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, error)

    threading.Thread(target=work, name="tfsd-load", daemon=True).start()
    await done
