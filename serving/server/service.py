"""Receives requests, whichever protocol they came by: leases a model version, then has the parsed request computed."""

import asyncio
import contextlib
import re
import time
import uuid
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from tfsd.arguments.table import TRUNCATED
from tfsd.serving.server.logs import LOGGER
from tfsd.serving.server.request_log import RequestLog
from tfsd.serving.wire.errors import ServerError
from tfsd.serving.wire.tensors import invalid

DEFAULT_SIGNATURE = "serving_default"  # TF Serving's name for the signature of requests that name none
IMAGE_SIGNATURE = "text_to_png"
REQUEST_ID = re.compile(r"[A-Za-z0-9._:=/+-]{1,128}")  # includes the ids that load balancers generate


class Target(NamedTuple):
    """The model that a request names; neither version nor label means the latest version."""

    name: str
    version: int | None = None
    label: str | None = None


class ParsedRequest(NamedTuple):
    """A request whose inputs and outputs were checked against its model's signature."""

    signature: str
    inputs: dict[str, np.ndarray]
    outputs: list[str]  # to answer with, in this order

    @property
    def rows(self) -> int:
        """The number of rows of the longest input."""
        return max(map(len, self.inputs.values()))


class Prediction(NamedTuple):
    """The outputs of a request, with the version that computed them."""

    version: int
    signature: str
    outputs: dict[str, np.ndarray]
    warning: str = ""  # what the caller should know about the prompts


def find_signature(engine, name: str) -> str | None:
    """Returns the signature that a request names, by default the one that makes images; None if the model lacks it."""
    name = name or DEFAULT_SIGNATURE
    if name == DEFAULT_SIGNATURE and name not in engine.signatures:  # exports of older versions lack the second name
        name = IMAGE_SIGNATURE
    return name if name in engine.signatures else None


def request_id_of(sent: str | None) -> str:
    """Returns a caller's request id if it can be logged and found again, else a new one."""
    return sent if sent and REQUEST_ID.fullmatch(sent) else uuid.uuid4().hex


class ReceivedRequest:
    """A request that holds a lease of its model version. It is parsed by the signatures of `engine`, then predicted."""

    def __init__(self, engine, scheduler, log: RequestLog, deadline: float | None):
        self.engine, self._scheduler, self._log, self._deadline = engine, scheduler, log, deadline

    async def predict(self, parsed: ParsedRequest) -> Prediction:
        """Returns the outputs that a request asks for.

        Raises: `ServerError`; when cancelled, the request's rows stop between two chunks of steps.
        """
        self._log.fields |= {"signature": parsed.signature, "rows": parsed.rows}
        made = await (self._images(parsed) if self._makes_images(parsed) else self._call(parsed))
        outputs = {name: made[name] for name in parsed.outputs}
        return Prediction(self.engine.version, parsed.signature, outputs, await self._warning(parsed))

    def _makes_images(self, parsed: ParsedRequest) -> bool:
        outputs = self.engine.signatures[parsed.signature].outputs
        return "prompt" in parsed.inputs and ("png_bytes" in outputs or "images" in outputs)

    async def _call(self, parsed: ParsedRequest) -> dict[str, np.ndarray]:
        _require_one_size(parsed)
        return await self._scheduler.call(self.engine, parsed.signature, parsed.inputs, **self._options())

    async def _images(self, parsed: ParsedRequest) -> dict[str, np.ndarray]:
        if "png_bytes" not in self.engine.signatures[parsed.signature].outputs:
            _require_one_size(parsed)  # arrays of several sizes do not fit in one array
        postprocess = self.engine.png if "png_bytes" in parsed.outputs else None
        images, truncated = await self._scheduler.generate(self.engine, parsed.inputs, postprocess=postprocess, **self._options())
        outputs = dict(zip(TRUNCATED, np.ascontiguousarray(np.reshape(truncated, (parsed.rows, -1)).T, "int32")))
        if "images" in parsed.outputs:
            outputs["images"] = np.stack(images)
        if "png_bytes" in parsed.outputs:
            outputs["png_bytes"] = np.empty(parsed.rows, object)
            outputs["png_bytes"][:] = images
        return outputs

    def _options(self) -> dict:
        return {"deadline": self._deadline, "request_id": self._log.fields["id"], "timing": self._log.timing}

    async def _warning(self, parsed: ParsedRequest) -> str:
        """Returns a warning about words that the model was not trained on; the log gets only their number."""
        words = self.engine.words
        if not words.are_few or "prompt" not in parsed.inputs:
            return ""
        unknown = await asyncio.to_thread(words.unknown, parsed.inputs)
        if unknown:
            self._log.fields["unknown_words"] = sum(map(len, unknown.values()))
        return words.message(unknown)


class Service:
    """Answers requests with the models that are loaded; counts and logs each request."""

    def __init__(self, models, scheduler, metrics):
        self.models, self.scheduler, self.metrics = models, scheduler, metrics
        self.last_arrival = 0.0  # of a request, on the monotonic clock

    @contextlib.contextmanager
    def receive(
        self, target: Target, *, method: str, request_id: str, deadline: float | None = None
    ) -> Iterator[ReceivedRequest]:
        """Leases the model version that a request names, while the request is parsed and predicted in the `with` block.

        Args:
            method: "grpc" or "rest", for the log.
            deadline: on the clock of `time.monotonic`.
        Raises: `ServerError` for a model that is not served, and in place of unexpected errors of the block.
        """
        self.last_arrival = time.monotonic()
        log = RequestLog(request_id=request_id, method=method, model=target.name, version=target.version)
        try:
            with self.models.get(*target) as engine:
                log.fields["version"] = engine.version
                yield ReceivedRequest(engine, self.scheduler, log, deadline)
            log.code = "OK"
        except ServerError as error:
            log.code = error.code
            raise
        except asyncio.CancelledError:
            log.code = "DEADLINE_EXCEEDED" if log.timing.deadline_passed else "CANCELLED"
            raise
        except Exception as error:
            log.code = "INTERNAL"
            LOGGER.exception("a request failed", extra={"fields": log.fields})
            raise ServerError("INTERNAL", f"The server failed; its log tells why under the id {request_id}.") from error
        finally:
            log.write(self.metrics)


def _require_one_size(parsed: ParsedRequest):
    for name in ("height", "width"):
        if name in parsed.inputs and len(sides := set(parsed.inputs[name].tolist())) > 1:
            message = f"{name} must be the same in all rows of {parsed.signature}; got {sorted(sides)}. Use text_to_png."
            raise invalid(message)
