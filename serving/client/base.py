"""How a client calls a server, apart from the waiting: where it is, how long and how often to try, what errors become."""

import math
import os
import random
import re
import threading
import time
import uuid
from pathlib import Path

import grpc
from google.protobuf.struct_pb2 import Struct
from google.protobuf.wrappers_pb2 import StringValue

from tfsd.arguments.checks import whole
from tfsd.errors import shown
from tfsd.progress import Cancelled, Progress, Stages
from tfsd.serving.client.requests import Answer, Columns, ModelInputs, inputs_of, model_spec, parsed, predict_requests
from tfsd.serving.wire import protos
from tfsd.serving.wire.errors import KNOWN_KEY, MAX_KNOWN, ServerError

PREDICT = "/tensorflow.serving.PredictionService/Predict"
METADATA = "/tensorflow.serving.PredictionService/GetModelMetadata"
WATCH = "/tfsd.Progress/Watch"
_METHODS = {  # name -> kind and message of requests; answers stay bytes, as gRPC would only log what is wrong with them
    PREDICT: ("unary_unary", protos.PredictRequest),
    METADATA: ("unary_unary", protos.GetModelMetadataRequest),
    WATCH: ("unary_stream", StringValue),
}
POLL_SECONDS = 0.1  # between two looks at what the server tells of its progress
HEARTBEAT_SECONDS = 1.0  # after which a callback is asked again, although nothing moved
_FIRST_WAIT, _LONGEST_WAIT = 0.2, 5.0  # seconds before the second try, and before any
_MAX_MESSAGE = 2**30  # bytes; gRPC's own limit of 4 MB is less than a batch of large pictures
_NO_GRPC = re.compile("http1|http/1|SETTINGS frame", re.IGNORECASE)  # gRPC's words about a server of another protocol
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+(?:%\w+)?\]|[\w.-]+):([0-9]{1,5})")


class Caller:
    """What both clients are: a server, a model on it, and how long and how often to ask it."""

    def __init__(
        self,
        address: str,
        *,
        model: str = "tiny",
        version: int | str | None = None,
        signature: str = "text_to_png",
        timeout: float | None = 300.0,
        retries: int = 5,
        max_batch: int = 8,
        max_calls: int = 4,
        token: str | None = None,
        tls: bool | str | Path | None = None,
    ):
        """Prepares a client; the connection is made when it is first used.

        - `address`: "HOST:PORT" of the server's gRPC API.
        - `version`: a number or a label such as "stable"; None lets the server choose, which takes its latest.
        - `timeout`: seconds for a whole call of a method; None waits forever.
        - `retries`: how often a call is repeated while the server is UNAVAILABLE.
        - `max_batch`: the most images in one RPC. More images are requested in several RPCs, at most `max_calls` at a time.
        - `token`: sent as "authorization: Bearer TOKEN". Without `tls` it can be read on the way.
        - `tls`: True, or the file of a certificate authority.

        Raises: `TypeError` and `ValueError`, which name the argument; `OSError` if the file cannot be read.
        """
        self.address = _checked_address(address)
        self.model = _text("model", model)
        self.version = _text("version", version) if isinstance(version, str) else version
        if self.version is not None and not isinstance(version, str):
            self.version = whole("version", version, 0, 2**63 - 1)
        self.signature = _text("signature", signature)
        self.timeout = _seconds(timeout)
        self.retries = whole("retries", retries, 0, 100)
        self.max_batch = whole("max_batch", max_batch, 1, 1024)
        self.max_calls = whole("max_calls", max_calls, 1, 256)
        self._token = None if token is None else _checked_token(token)
        self._credentials = _credentials(tls)
        self._inputs: ModelInputs | None = None  # the model's, once they are known, and of which version they are
        self._inputs_version = 0
        self._channel = None
        self._call: dict = {}  # method -> what calls it, while there is a channel
        self._watchable = True  # until the server says that it tells nothing of its progress

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.address!r}, model={self.model!r})"

    def _open(self, library):
        """Makes the channel and its methods, of `grpc` or `grpc.aio`."""
        options = [
            ("grpc.max_receive_message_length", _MAX_MESSAGE),
            ("grpc.max_send_message_length", _MAX_MESSAGE),
            # Else a try within a second after a failed one would fail without asking the server.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
        ]
        if self.address.rsplit(":", 1)[0] in ("localhost", "127.0.0.1", "[::1]"):
            options.append(("grpc.enable_http_proxy", 0))
        if self._credentials is None:
            self._channel = library.insecure_channel(self.address, options)
        else:
            self._channel = library.secure_channel(self.address, self._credentials, options)
        self._call = {
            name: getattr(self._channel, kind)(name, request_serializer=message.SerializeToString)
            for name, (kind, message) in _METHODS.items()
        }

    def _headers(self, request_id: str | None = None) -> tuple[tuple[str, str], ...]:
        headers = (("x-request-id", request_id),) if request_id else ()
        return headers + ((("authorization", f"Bearer {self._token}"),) if self._token else ())

    def _attempts(self, timeout: float | None) -> "Attempts":
        return Attempts(self.address, self.retries, self.timeout if timeout is None else _seconds(timeout))

    def _metadata_request(self):
        spec = model_spec(self.model, self.version)
        return protos.GetModelMetadataRequest(model_spec=spec, metadata_field=["signature_def"])

    def _predict_requests(self, columns: Columns) -> list:
        return predict_requests(columns, model_spec(self.model, self.version, self.signature), self.max_batch)

    def _learn(self, data: bytes) -> ModelInputs:
        """Returns the model's inputs and their defaults, of the answer to GetModelMetadata, and keeps them."""
        response = parsed(protos.GetModelMetadataResponse, data)
        self._inputs = inputs_of(response, self.model, self.signature)
        self._inputs_version = response.model_spec.version.value
        return self._inputs

    def _forget_inputs(self, answers: list[Answer] | None = None):
        """Drops what is known of the model if its answers, or an error, may be those of another version."""
        if answers is None or any(answer.version != self._inputs_version for answer in answers):
            self._inputs = None

    def _watch_again(self, error: grpc.RpcError) -> bool:
        """Tells whether to ask again of a request's progress: yes, if the server does not know it yet."""
        if error.code() is grpc.StatusCode.UNIMPLEMENTED:  # TensorFlow Serving
            self._watchable = False
        return error.code() is grpc.StatusCode.NOT_FOUND


class Attempts:
    """One call's deadline, which all that it takes has in common, and its tries.

    A call that was UNAVAILABLE may have run all the same. It is safe to try it again: a picture is a pure function of its
    request. Other errors are final: a full queue (RESOURCE_EXHAUSTED) would only be made longer.
    """

    def __init__(self, address: str, retries: int, timeout: float | None):
        self._address, self._retries, self._timeout = address, retries, timeout
        self._deadline = None if timeout is None else time.monotonic() + timeout

    def remaining(self) -> float | None:
        """Returns the seconds left, None for any number; never less than a moment, so that gRPC says that it is over."""
        return None if self._deadline is None else max(self._deadline - time.monotonic(), 1e-3)

    def wait_after(self, error: grpc.RpcError, tried: int) -> float:
        """Returns how many seconds to wait before the next try, after `tried` of them; raises what the error becomes.

        The waits double, with a random part of up to a half, so that clients of one server do not all return at once.
        """
        code, details = error.code().name, error.details() or ""
        wait = min(_FIRST_WAIT * 2 ** (tried - 1), _LONGEST_WAIT) * random.uniform(0.5, 1.0)
        left = self.remaining()
        if code != "UNAVAILABLE" or _NO_GRPC.search(details) or tried > self._retries or (left is not None and wait >= left):
            raise failure(code, details + _known(error), self._address, self._timeout) from error
        return wait


def _known(error: grpc.RpcError) -> str:
    """Returns a sentence on the models that a server has, if it told of them because it has not the one asked for."""
    told = dict(error.trailing_metadata() or ()).get(KNOWN_KEY, b"")
    names = told.decode("utf-8", "replace").split("\n")[:MAX_KNOWN] if isinstance(told, bytes) and told else []
    return f". Models of this server: {', '.join(shown(name)[1:-1] for name in names)}." if names else ""


def failure(code: str, details: str, address: str, timeout: float | None = None) -> Exception:
    """Returns the exception for a status: `ValueError`, `TimeoutError`, `Cancelled`, else `ServerError`."""
    if code == "INVALID_ARGUMENT":
        return ValueError(details or "The server took no argument of this request.")
    if code == "DEADLINE_EXCEEDED":
        within = "in time" if timeout is None else f"within {timeout:g} seconds"
        return TimeoutError(f"{address} did not answer {within}. Allow more time, or ask for less.")
    if code == "CANCELLED":
        return Cancelled(details or "The server cancelled the request.")
    if code == "UNAVAILABLE" and _NO_GRPC.search(details):
        return ServerError(code, f"{address} does not speak gRPC. Give the port of the server's gRPC API, 8500 by default.")
    if code == "UNAVAILABLE":
        return ServerError(code, f"No server can be reached at {address} ({details}).")
    return ServerError(code, details or f"{address} said nothing more.")


class Tracker:
    """What is known of the progress of all RPCs of a call, told to a bar and a callback; use it in `with`.

    Where a server tells nothing, the bar says "waiting" and the callback hears again of no step done, once a second, so
    that it can still cancel.
    """

    def __init__(self, show: Progress, steps: list[int]):
        """`steps` is the number that each RPC will take, as long as the server says no other."""
        self.wanted = show.bar or show.callback is not None
        self._callback = show.callback
        self._parts = [(0, one) for one in steps]
        self._answered: set[int] = set()
        self._lock = threading.Lock()  # what the server tells comes in threads of its own
        self._told, self._told_at = (0, sum(steps)), time.monotonic()
        self._stages = Stages.within(show.bar)

    def __enter__(self) -> "Tracker":
        self._stages.__enter__()
        self._stages("waiting for the server")
        return self

    def __exit__(self, *failure):
        self._stages.__exit__(*failure)

    def heard(self, call: int, data: bytes):
        """Takes what the server told of a call, a Struct {state, done, steps}; passes over what is none, or comes late."""
        try:
            message = parsed(Struct, data)
            done, steps = (int(message[name]) for name in ("done", "steps"))
        except (ServerError, ValueError, TypeError, OverflowError):
            return
        with self._lock:
            if 0 <= done <= steps and steps and call not in self._answered:
                self._parts[call] = (done, steps)

    def finished(self, call: int):
        """Takes it that a call was answered."""
        with self._lock:
            steps = self._parts[call][1]
            self._parts[call] = (steps, steps)
            self._answered.add(call)

    def tell(self):
        """Moves the bar and asks the callback if there is news or nothing was heard for a while.

        Raises: `Cancelled` when the callback returns False.
        """
        with self._lock:
            done, steps = (sum(part[i] for part in self._parts) for i in (0, 1))
        now = time.monotonic()
        if (done, steps) == self._told and now - self._told_at < HEARTBEAT_SECONDS:
            return
        self._told, self._told_at = (done, steps), now
        if done and self._stages.name != "drawing":
            self._stages("drawing", steps)
        self._stages.step(done, steps if done else None)
        if self._callback is not None and self._callback(done, steps) is False:
            raise Cancelled(f"Cancelled after {done} of {steps} steps.")


def new_request_id() -> str:
    """Returns a name for a request, by which a server tells of its progress."""
    return uuid.uuid4().hex


def _checked_address(address) -> str:
    found = _ADDRESS.fullmatch(address) if isinstance(address, str) else None
    if found is None or not 0 < int(found[2]) < 2**16:
        raise ValueError(f"address must be HOST:PORT of a gRPC server, such as localhost:8500; got {shown(address)}.")
    return address


def _text(name: str, value) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a text; got {shown(value)}.")
    if not value or not value.isprintable():
        raise ValueError(f"{name} must be a name; got {shown(value)}.")
    return value


def _seconds(timeout) -> float | None:
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise TypeError(f"timeout must be a number of seconds; got {shown(timeout)}.")
    if not 0 < timeout < math.inf:
        raise ValueError(f"timeout must be more than 0 seconds; got {shown(timeout)}. None waits for ever.")
    return float(timeout)


def _checked_token(token) -> str:
    if not isinstance(token, str):
        raise TypeError(f"token must be a text; got {type(token).__name__}.")
    if not re.fullmatch(r"[!-~]{1,4096}", token):  # never shown: it is a secret
        raise ValueError(f"token must be ASCII without spaces, at most 4096 characters; got {len(token)} characters.")
    return token


def _credentials(tls) -> grpc.ChannelCredentials | None:
    if tls is None or tls is False:
        return None
    if tls is True:
        return grpc.ssl_channel_credentials()
    if not isinstance(tls, (str, os.PathLike)):
        raise TypeError(f"tls must be True or the file of a certificate authority; got {shown(tls)}.")
    data = Path(tls).read_bytes()
    if b"-----BEGIN CERTIFICATE-----" not in data:
        raise ValueError(f"tls must be True or a PEM file of a certificate authority; {tls} holds no certificate.")
    return grpc.ssl_channel_credentials(data)
