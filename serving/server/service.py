"""One request's way through the server, whichever protocol it came by."""

import asyncio
import re
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import numpy as np

from tfsd.arguments import TRUNCATED
from tfsd.serving.server.logs import LOGGER
from tfsd.serving.server.scheduler import RequestTiming
from tfsd.serving.wire.errors import ServerError
from tfsd.serving.wire.tensors import invalid

DEFAULT_SIGNATURE = "serving_default"  # TF Serving's name for what a request means that names none
PICTURE_SIGNATURE = "text_to_png"
REQUEST_ID = re.compile(r"[A-Za-z0-9._:=/+-]{1,128}")  # also those that load balancers give


class Target(NamedTuple):
    """The model that a request names; neither version nor label means the latest version."""

    name: str
    version: int | None = None
    label: str | None = None


class Call(NamedTuple):
    """A request that was held against its model's signature."""

    signature: str
    inputs: dict[str, np.ndarray]
    outputs: list[str]  # to answer with, in this order


class Prediction(NamedTuple):
    """What a request came to, with the version that made it."""

    version: int
    signature: str
    outputs: dict[str, np.ndarray]
    warning: str = ""  # what a person should know of the prompts


def signature_asked(engine, name: str) -> str | None:
    """Returns the signature that a request names, by default the one that makes pictures; None if the model lacks it."""
    name = name or DEFAULT_SIGNATURE
    if name == DEFAULT_SIGNATURE and name not in engine.signatures:  # exports of older versions have it under one name
        name = PICTURE_SIGNATURE
    return name if name in engine.signatures else None


def request_id_of(sent: str | None) -> str:
    """Returns a caller's request id if it can be logged and found again, else a new one."""
    return sent if sent and REQUEST_ID.fullmatch(sent) else uuid.uuid4().hex


class Service:
    """Answers requests from the models that are loaded; counts and logs each of them."""

    def __init__(self, models, scheduler, metrics):
        self.models, self.scheduler, self.metrics = models, scheduler, metrics
        self.last_arrival = 0.0  # of a request, on the monotonic clock

    async def predict(
        self,
        target: Target,
        read: Callable[..., Awaitable[Call]],
        *,
        method: str,
        request_id: str,
        deadline: float | None = None,
    ) -> Prediction:
        """Returns the outputs that a request asks for; `await read(engine)` tells what it asks.

        `method` is "grpc" or "rest", `deadline` a time of the monotonic clock.
        Raises: `ServerError`; when cancelled, the request's rows stop between two chunks of steps.
        """
        self.last_arrival = start = time.monotonic()
        code, trace = "UNKNOWN", RequestTiming()
        seen: dict = {"id": request_id, "method": method, "model": target.name[:100], "version": target.version}
        try:
            with self.models.get(*target) as engine:
                seen["version"] = engine.version
                call = await read(engine)
                rows = max(map(len, call.inputs.values()))
                seen |= {"signature": call.signature, "rows": rows}
                outputs = await self._run(engine, call, rows, deadline=deadline, request_id=request_id, trace=trace)
                warning = await _warning(engine.words, call, seen)
                code = "OK"
                return Prediction(engine.version, call.signature, outputs, warning)
        except ServerError as error:
            code = error.code
            raise
        except asyncio.CancelledError:
            code = "DEADLINE_EXCEEDED" if deadline is not None and time.monotonic() >= deadline else "CANCELLED"
            raise
        except Exception as error:
            code = "INTERNAL"
            LOGGER.exception("a request failed", extra={"fields": seen})
            raise ServerError("INTERNAL", f"The server failed; its log tells why under the id {request_id}.") from error
        finally:
            seconds = time.monotonic() - start
            labels = {"model": target.name, "signature": seen.get("signature", ""), "method": method, "code": code}
            self.metrics.count_request(**labels, seconds=seconds, model_seconds=trace.read_seconds + trace.run_seconds)
            spent = {"read_ms": trace.read_seconds, "queue_ms": trace.queue_seconds, "run_ms": trace.run_seconds, "ms": seconds}
            LOGGER.info("request", extra={"fields": seen | {k: round(1000 * v, 1) for k, v in spent.items()} | {"code": code}})

    async def _run(
        self, engine, call: Call, rows: int, *, deadline: float | None, request_id: str, trace: RequestTiming
    ) -> dict[str, np.ndarray]:
        outputs = engine.signatures[call.signature].outputs
        picture = next((name for name in ("png_bytes", "images") if name in outputs), None)
        if picture is None or "prompt" not in call.inputs:
            _require_one_size(call)
            made = await self.scheduler.call(
                engine, call.signature, call.inputs, deadline=deadline, request_id=request_id, trace=trace
            )
            return {name: made[name] for name in call.outputs}
        if picture == "images":
            _require_one_size(call)
        finish = engine.png if "png_bytes" in call.outputs else None
        pictures, truncated = await self.scheduler.generate(
            engine, call.inputs, finish=finish, deadline=deadline, request_id=request_id, trace=trace
        )
        made = dict(zip(TRUNCATED, np.ascontiguousarray(np.reshape(truncated, (rows, -1)).T, "int32")))
        if "images" in call.outputs:
            made["images"] = np.stack(pictures)
        if "png_bytes" in call.outputs:
            made["png_bytes"] = np.empty(rows, object)
            made["png_bytes"][:] = pictures
        return {name: made[name] for name in call.outputs}


async def _warning(words, call: Call, seen: dict) -> str:
    """Returns what to say of words that the model never learned; the log sees only how many there are."""
    if not words.are_few or "prompt" not in call.inputs:
        return ""
    unknown = await asyncio.to_thread(words.unknown, call.inputs)
    if unknown:
        seen["unknown_words"] = sum(map(len, unknown.values()))
    return words.message(unknown)


def _require_one_size(call: Call):
    for name in ("height", "width"):
        if name in call.inputs and len(sides := set(call.inputs[name].tolist())) > 1:
            raise invalid(f"{name} must be the same in all rows of {call.signature}; got {sorted(sides)}. Use text_to_png.")
