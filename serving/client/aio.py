"""The client for asyncio, of `tfsd serve` and of TensorFlow Serving."""

import asyncio
import functools
from collections.abc import Callable, Iterable
from typing import Any

import grpc
import grpc.aio
from google.protobuf.wrappers_pb2 import StringValue
from typing_extensions import Unpack

from tfsd.arguments.options import ServerOptions, takes_options
from tfsd.arguments.table import GRAPH, Seeds, Texts
from tfsd.images import Images
from tfsd.progress import Progress
from tfsd.serving.client.attempts import Attempts
from tfsd.serving.client.base import METADATA, POLL_SECONDS, PREDICT, WATCH, Caller, new_request_id
from tfsd.serving.client.requests import (
    Answer,
    Columns,
    answer_of,
    filled,
    images_of,
    request_columns,
    row_count,
    warn_of_truncation,
)
from tfsd.serving.client.tracker import Tracker


class AsyncClient(Caller):
    """A model on a server, for asyncio. Close it, or use it in an `async with` block. It belongs to one event loop."""

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *_: Any) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connection and cancels requests that are still running."""
        if self._channel is not None:
            await self._channel.close()
        self._channel = None

    @takes_options(GRAPH)
    async def text_to_image(
        self, prompt: Texts, batch_size: int = 1, seed: Seeds = None, **options: Unpack[ServerOptions]
    ) -> Images:
        """Returns images of a prompt: uint8 [B, H, W, 3], with the recipe of each, as `Client.text_to_image` does.

        Cancelling the task cancels its requests on the server. `callback` is a plain function, not a coroutine.

        Raises: as `Client.text_to_image`.
        """
        request = request_columns(self.text_to_image, prompt, batch_size, seed, options)
        columns, answers = await self._draw(request, options)
        warn_of_truncation(columns, answers, stacklevel=2)
        return images_of(columns, answers, self.model)

    @takes_options(GRAPH)
    async def text_to_png(
        self, prompt: Texts, batch_size: int = 1, seed: Seeds = None, **options: Unpack[ServerOptions]
    ) -> list[bytes]:
        """Returns the PNG files that the server made, unchanged. The arguments are those of `text_to_image`.

        Raises: as `text_to_image`.
        """
        request = request_columns(self.text_to_png, prompt, batch_size, seed, options)
        columns, answers = await self._draw(request, options)
        warn_of_truncation(columns, answers, stacklevel=2)
        return [png for answer in answers for png in answer.pngs]

    async def _draw(self, columns: Columns, options: ServerOptions) -> tuple[Columns, list[Answer]]:
        show = Progress(options.get("progress", False), options.get("callback"))
        attempts = self._attempts(options.get("timeout"))
        if self._channel is None:
            self._open(grpc.aio)
        try:
            model = self._inputs
            if model is None:
                model = self._learn((await self._tried(METADATA, self._metadata_request(), attempts))[0])
            columns = filled(columns, model)
            answers = await self._predict_all(columns, show, attempts)
        except BaseException:
            self._forget_inputs()
            raise
        self._forget_inputs(answers)
        return columns, answers

    async def _predict_all(self, columns: Columns, show: Progress, attempts: Attempts) -> list[Answer]:
        requests, free = self._predict_requests(columns), asyncio.Semaphore(self.max_calls)
        with Tracker(show, [columns["num_steps"][0] * row_count(one) for one in requests]) as tracker:
            calls = [asyncio.create_task(self._predict(i, one, attempts, tracker, free)) for i, one in enumerate(requests)]
            left = set(calls)
            try:
                while left:
                    seconds = POLL_SECONDS if tracker.wanted else None
                    ended, left = await asyncio.wait(left, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
                    for call in ended:
                        call.result()
                    tracker.tell()
            finally:
                await _ended(left)
        return [call.result() for call in calls]

    async def _predict(self, i: int, request: Any, attempts: Attempts, tracker: Tracker, free: asyncio.Semaphore) -> Answer:
        async with free:
            request_id = new_request_id()
            watches: list[asyncio.Task[None]] = []
            if tracker.wanted and self._watchable:
                watch = self._watch(request_id, attempts, functools.partial(tracker.heard, i))
                watches.append(asyncio.create_task(watch))
            try:
                response, headers = await self._tried(PREDICT, request, attempts, request_id)
            finally:
                await _ended(watches)
        tracker.finished(i)
        return answer_of(response, row_count(request), headers)

    async def _tried(self, method: str, request: Any, attempts: Attempts, request_id: str | None = None) -> tuple[bytes, Any]:
        """Returns the answer of a method, with retries by `attempts`, and its trailing metadata."""
        tried = 0
        while True:
            tried += 1
            headers = self._headers(request_id)
            try:
                call = self._call[method](request, timeout=attempts.remaining(), metadata=headers)
                return await call, await call.trailing_metadata()
            except grpc.RpcError as error:
                await asyncio.sleep(attempts.wait_after(error, tried))

    async def _watch(self, request_id: str, attempts: Attempts, hear: Callable[[bytes], None]) -> None:
        """Passes the server's reports about a request to `hear`, if it sends any."""
        while True:
            await asyncio.sleep(POLL_SECONDS)  # a little later than the request, so that the server knows it
            try:
                name = StringValue(value=request_id)
                async for message in self._call[WATCH](name, timeout=attempts.remaining(), metadata=self._headers()):
                    hear(message)  # also of a failed attempt, which may be repeated
            except grpc.RpcError as error:
                if not self._watch_again(error):
                    return


async def _ended(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancels tasks and waits until they have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
