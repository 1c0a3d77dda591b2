"""The client for threads, of `tfsd serve` and of TensorFlow Serving."""

import collections
import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from typing import Any

import grpc
from google.protobuf.wrappers_pb2 import StringValue
from typing_extensions import Unpack

from tfsd.arguments.options import ServerOptions, takes_options
from tfsd.arguments.table import GRAPH, Seeds, Texts
from tfsd.images import Images
from tfsd.progress import Cancelled, Progress
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


class Client(Caller):
    """A model on a server: `tfsd serve` or TensorFlow Serving. Close it, or use it in a `with` block.

    Several threads may share one client.
    """

    _lock = threading.Lock()  # held while a channel is opened

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection and cancels requests that are still running."""
        with self._lock:
            if self._channel is not None:
                self._channel.close()
            self._channel = None

    @takes_options(GRAPH)
    def text_to_image(self, prompt: Texts, batch_size: int = 1, seed: Seeds = None, **options: Unpack[ServerOptions]) -> Images:
        """Returns images of a prompt: uint8 [B, H, W, 3], with the recipe of each, as `tfsd.text_to_image` does.

        The arguments are those of `StableDiffusion.text_to_image`, except for those that the server's model fixes. None means
        the model's own value.

        - `callback(done, steps)` counts the steps of all RPCs; returning False cancels them. If the server does not report
          progress, as TensorFlow Serving does not, the callback is called when an RPC ends and once a second.

        Ctrl-C cancels the requests on the server, too.

        Raises: `TypeError` and `ValueError`, which name the argument; `TimeoutError`; `Cancelled`; `ServerError` with the
        `code` of other failures.
        """
        request = request_columns(self.text_to_image, prompt, batch_size, seed, options)
        columns, answers = self._draw(request, options)
        warn_of_truncation(columns, answers, stacklevel=2)
        return images_of(columns, answers, self.model)

    @takes_options(GRAPH)
    def text_to_png(
        self, prompt: Texts, batch_size: int = 1, seed: Seeds = None, **options: Unpack[ServerOptions]
    ) -> list[bytes]:
        """Returns the PNG files that the server made, unchanged. The arguments are those of `text_to_image`.

        Raises: as `text_to_image`.
        """
        request = request_columns(self.text_to_png, prompt, batch_size, seed, options)
        columns, answers = self._draw(request, options)
        warn_of_truncation(columns, answers, stacklevel=2)
        return [png for answer in answers for png in answer.pngs]

    def _draw(self, columns: Columns, options: ServerOptions) -> tuple[Columns, list[Answer]]:
        show = Progress(options.get("progress", False), options.get("callback"))
        attempts, running = self._attempts(options.get("timeout")), _Running()
        with self._lock:
            if self._channel is None:
                self._open(grpc)
        try:
            model = self._inputs
            if model is None:
                model = self._learn(self._tried(METADATA, self._metadata_request(), attempts, running)[0])
            columns = filled(columns, model)
            answers = self._predict_all(columns, show, attempts, running)
        except BaseException:  # also Ctrl-C: no RPC of this call may continue
            running.cancel()
            self._forget_inputs()
            raise
        self._forget_inputs(answers)
        return columns, answers

    def _predict_all(self, columns: Columns, show: Progress, attempts: Attempts, running: "_Running") -> list[Answer]:
        requests = self._predict_requests(columns)
        with (
            Tracker(show, [columns["num_steps"][0] * row_count(one) for one in requests]) as tracker,
            ThreadPoolExecutor(min(self.max_calls, len(requests)), "tfsd-call") as pool,
        ):
            calls = [pool.submit(self._predict, i, one, attempts, running, tracker) for i, one in enumerate(requests)]
            left = set(calls)
            try:
                while left:
                    ended, left = wait(left, POLL_SECONDS if tracker.wanted else None, FIRST_COMPLETED)
                    for call in ended:
                        call.result()
                    tracker.tell()
            except BaseException:
                running.cancel()  # else the end of the pool would wait for them
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return [call.result() for call in calls]

    def _predict(self, i: int, request: Any, attempts: Attempts, running: "_Running", tracker: Tracker) -> Answer:
        request_id = new_request_id()
        hear = functools.partial(tracker.heard, i) if tracker.wanted and self._watchable else None
        with self._watching(request_id, attempts, hear):
            response, headers = self._tried(PREDICT, request, attempts, running, request_id)
        tracker.finished(i)
        return answer_of(response, row_count(request), headers)

    def _tried(
        self, method: str, request: Any, attempts: Attempts, running: "_Running", request_id: str | None = None
    ) -> tuple[bytes, Any]:
        """Returns the answer of a method, with retries by `attempts`, and its trailing metadata."""
        tried = 0
        while True:
            tried += 1
            call = self._call[method].future(request, timeout=attempts.remaining(), metadata=self._headers(request_id))
            try:
                return running.result(call), call.trailing_metadata()
            except grpc.RpcError as error:
                running.sleep(attempts.wait_after(error, tried))

    @contextlib.contextmanager
    def _watching(self, request_id: str, attempts: Attempts, hear: Callable[[bytes], None] | None) -> Iterator[None]:
        """Passes the server's reports about a request to `hear`, if it sends any."""
        if hear is None:
            yield
            return
        over = threading.Event()
        streams: collections.deque[Any] = collections.deque(maxlen=1)

        def read() -> None:
            while not over.wait(POLL_SECONDS):  # a little later than the request, so that the server knows it
                try:
                    stream = self._call[WATCH](
                        StringValue(value=request_id), timeout=attempts.remaining(), metadata=self._headers()
                    )
                    streams.append(stream)
                    if over.is_set():
                        stream.cancel()
                    for message in stream:
                        hear(message)  # also of a failed attempt, which may be repeated
                except grpc.RpcError as error:
                    if not self._watch_again(error):
                        return
                except ValueError:  # the channel was closed
                    return

        threading.Thread(target=read, name="tfsd-progress", daemon=True).start()
        try:
            yield
        finally:
            over.set()
            for stream in streams:
                stream.cancel()


class _Running:
    """The RPCs of one call of a method, which are cancelled together."""

    def __init__(self) -> None:
        self._calls: set[grpc.Future] = set()
        self._lock = threading.Lock()
        self._cancelled = threading.Event()

    def result(self, call: grpc.Future) -> Any:
        """Returns the result of an RPC. Raises: `Cancelled` if it was cancelled, else its error."""
        with self._lock:
            self._calls.add(call)
        try:
            if self._cancelled.is_set():
                call.cancel()
            return call.result()
        except grpc.FutureCancelledError:
            raise Cancelled("The request was cancelled.") from None
        finally:
            with self._lock:
                self._calls.discard(call)

    def sleep(self, seconds: float) -> None:
        """Waits. Raises: `Cancelled` as soon as the call is cancelled."""
        if self._cancelled.wait(seconds):
            raise Cancelled("The request was cancelled.")

    def cancel(self) -> None:
        """Cancels the RPCs that run and those that have not started."""
        self._cancelled.set()
        with self._lock:
            calls = list(self._calls)
        for call in calls:
            call.cancel()
