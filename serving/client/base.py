"""What the clients for threads and for asyncio have in common: the settings, the channel and the messages."""

import os
import re
import uuid
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.wrappers_pb2 import StringValue

from tfsd.arguments.checks import whole
from tfsd.errors import shown
from tfsd.serving.client.attempts import Attempts, seconds_of
from tfsd.serving.client.requests import Answer, Columns, ModelInputs, inputs_of, model_spec, parsed, predict_requests
from tfsd.serving.wire import protos

PREDICT = "/tensorflow.serving.PredictionService/Predict"
METADATA = "/tensorflow.serving.PredictionService/GetModelMetadata"
WATCH = "/tfsd.Progress/Watch"
_METHODS = {  # name -> kind and message of requests; answers stay bytes, as gRPC would only log damaged ones
    PREDICT: ("unary_unary", protos.PredictRequest),
    METADATA: ("unary_unary", protos.GetModelMetadataRequest),
    WATCH: ("unary_stream", StringValue),
}
POLL_SECONDS = 0.1  # between two checks for progress
_MAX_MESSAGE = 2**30  # bytes; gRPC's default of 4 MB is too small for a batch of large images
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+(?:%\w+)?\]|[\w.-]+):([0-9]{1,5})")


class Caller:
    """The part of both clients that does not wait: a server, a model on it, timeouts and retries."""

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
        self.timeout = seconds_of(timeout)
        self.retries = whole("retries", retries, 0, 100)
        self.max_batch = whole("max_batch", max_batch, 1, 1024)
        self.max_calls = whole("max_calls", max_calls, 1, 256)
        self._token = None if token is None else _checked_token(token)
        self._credentials = _credentials(tls)
        self._inputs: ModelInputs | None = None  # of the model, and of which version; None until they are known
        self._inputs_version = 0
        self._channel = None
        self._call: dict[str, Any] = {}  # method -> callable, while there is a channel
        self._watchable = True  # until it turns out that the server does not report progress

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.address!r}, model={self.model!r})"

    def _open(self, library: Any) -> None:
        """Opens a channel of `grpc` or `grpc.aio` and makes its methods."""
        options = [
            ("grpc.max_receive_message_length", _MAX_MESSAGE),
            ("grpc.max_send_message_length", _MAX_MESSAGE),
            # Otherwise an attempt within a second after a failed one would fail without contacting the server.
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

    def _attempts(self, timeout: float | None) -> Attempts:
        return Attempts(self.address, self.retries, self.timeout if timeout is None else seconds_of(timeout))

    def _metadata_request(self) -> Any:
        spec = model_spec(self.model, self.version)
        return protos.GetModelMetadataRequest(model_spec=spec, metadata_field=["signature_def"])

    def _predict_requests(self, columns: Columns) -> list[Any]:
        return predict_requests(columns, model_spec(self.model, self.version, self.signature), self.max_batch)

    def _learn(self, data: bytes) -> ModelInputs:
        """Returns and keeps the model's inputs and their defaults, from the answer to GetModelMetadata."""
        response = parsed(protos.GetModelMetadataResponse, data)
        self._inputs = inputs_of(response, self.model, self.signature)
        self._inputs_version = response.model_spec.version.value
        return self._inputs

    def _forget_inputs(self, answers: list[Answer] | None = None) -> None:
        """Forgets the model's inputs after an error, or if answers came from another version."""
        if answers is None or any(answer.version != self._inputs_version for answer in answers):
            self._inputs = None

    def _watch_again(self, error: grpc.RpcError) -> bool:
        """Returns whether to watch a request again after an error: yes if the server does not know it yet."""
        if error.code() is grpc.StatusCode.UNIMPLEMENTED:  # TensorFlow Serving
            self._watchable = False
        return error.code() is grpc.StatusCode.NOT_FOUND


def new_request_id() -> str:
    """Returns a new request id, by which a server reports progress."""
    return uuid.uuid4().hex


def _checked_address(address: str) -> str:
    found = _ADDRESS.fullmatch(address) if isinstance(address, str) else None
    if found is None or not 0 < int(found[2]) < 2**16:
        raise ValueError(f"address must be HOST:PORT of a gRPC server, such as localhost:8500; got {shown(address)}.")
    return address


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a text; got {shown(value)}.")
    if not value or not value.isprintable():
        raise ValueError(f"{name} must be a name; got {shown(value)}.")
    return value


def _checked_token(token: object) -> str:
    if not isinstance(token, str):
        raise TypeError(f"token must be a text; got {type(token).__name__}.")
    if not re.fullmatch(r"[!-~]{1,4096}", token):  # never shown: it is a secret
        raise ValueError(f"token must be ASCII without spaces, at most 4096 characters; got {len(token)} characters.")
    return token


def _credentials(tls: object) -> grpc.ChannelCredentials | None:
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
