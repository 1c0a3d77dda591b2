"""Runs long functions in threads that do not delay the end of the process."""

import asyncio
import contextlib
import threading
from collections.abc import Callable


async def in_daemon(function: Callable, *arguments):
    """Runs a function in a daemon thread and waits for it; the process can end before it returns.

    The event loop's thread pool is not used, as a few such functions would occupy all threads, which requests need.
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
        with contextlib.suppress(RuntimeError):  # the loop is closed, so that nobody waits
            loop.call_soon_threadsafe(settle, error)

    threading.Thread(target=work, name="tfsd-load", daemon=True).start()
    await done
