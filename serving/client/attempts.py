"""The deadline and the retries of a call, and the exceptions for its errors."""

import math
import random
import re
import time

import grpc

from tfsd.errors import shown
from tfsd.progress import Cancelled
from tfsd.serving.wire.errors import KNOWN_KEY, MAX_KNOWN, ServerError

_FIRST_WAIT, _LONGEST_WAIT = 0.2, 5.0  # seconds before the second attempt, and the most before any
_NO_GRPC = re.compile("http1|http/1|SETTINGS frame", re.IGNORECASE)  # in gRPC's messages about servers with another protocol


class Attempts:
    """The deadline and the retries of one call, for all of its RPCs.

    An RPC that failed with UNAVAILABLE may have run nevertheless. It is safe to repeat it, since an image is a pure function
    of its request. Other errors are final: repeating RESOURCE_EXHAUSTED would only make a full queue longer.
    """

    def __init__(self, address: str, retries: int, timeout: float | None):
        self._address, self._retries, self._timeout = address, retries, timeout
        self._deadline = None if timeout is None else time.monotonic() + timeout

    def remaining(self) -> float | None:
        """Returns the seconds left, None if unlimited; always above 0, so that gRPC itself reports the passed deadline."""
        return None if self._deadline is None else max(self._deadline - time.monotonic(), 1e-3)

    def wait_after(self, error: grpc.RpcError, tried: int) -> float:
        """Returns the seconds to wait before the next attempt, after `tried` attempts, or raises the exception for the error.

        The waits double and are shortened at random by up to a half, so that the clients of a server do not all return at
        the same moment.
        """
        code, details = error.code().name, error.details() or ""
        wait: float = min(_FIRST_WAIT * 2 ** (tried - 1), _LONGEST_WAIT) * random.uniform(0.5, 1.0)
        left = self.remaining()
        if code != "UNAVAILABLE" or _NO_GRPC.search(details) or tried > self._retries or (left is not None and wait >= left):
            raise failure(code, details + _known(error), self._address, self._timeout) from error
        return wait


def _known(error: grpc.RpcError) -> str:
    """Returns a sentence with the models of the server, which it sends if it does not have the requested one."""
    told = dict(error.trailing_metadata() or ()).get(KNOWN_KEY, b"")
    names = told.decode("utf-8", "replace").split("\n")[:MAX_KNOWN] if isinstance(told, bytes) and told else []
    return f". Models of this server: {', '.join(shown(name)[1:-1] for name in names)}." if names else ""


def failure(code: str, details: str, address: str, timeout: float | None = None) -> Exception:
    """Returns the exception for a status: `ValueError`, `TimeoutError`, `Cancelled`, else `ServerError`."""
    if code == "INVALID_ARGUMENT":
        return ValueError(details or "The server refused the arguments of this request.")
    if code == "DEADLINE_EXCEEDED":
        within = "in time" if timeout is None else f"within {timeout:g} seconds"
        return TimeoutError(f"{address} did not answer {within}. Allow more time, or ask for less.")
    if code == "CANCELLED":
        return Cancelled(details or "The server cancelled the request.")
    if code == "UNAVAILABLE" and _NO_GRPC.search(details):
        return ServerError(code, f"{address} does not speak gRPC. Give the port of the server's gRPC API, 8500 by default.")
    if code == "UNAVAILABLE":
        return ServerError(code, f"No server can be reached at {address} ({details}).")
    return ServerError(code, details or f"{address} gave no further details.")


def seconds_of(timeout: object) -> float | None:
    """Returns a checked timeout. Raises: `TypeError`, `ValueError`."""
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise TypeError(f"timeout must be a number of seconds; got {shown(timeout)}.")
    if not 0 < timeout < math.inf:
        raise ValueError(f"timeout must be more than 0 seconds; got {shown(timeout)}. None waits for ever.")
    return float(timeout)
