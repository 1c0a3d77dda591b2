"""The server: models, scheduler, gRPC and HTTP in one event loop, from its start to its stop."""

import asyncio
import contextlib
import signal
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from aiohttp import web

from tfsd.runtime.startup import no_stderr, wants_information
from tfsd.serving.server import rpc
from tfsd.serving.server.access import Access
from tfsd.serving.server.daemons import in_daemon
from tfsd.serving.server.http_protocol import Protocol
from tfsd.serving.server.logs import LOGGER
from tfsd.serving.server.metrics import Metrics
from tfsd.serving.server.models import Models
from tfsd.serving.server.queue_limits import QueueLimits
from tfsd.serving.server.rest import Rest
from tfsd.serving.server.scheduler import Scheduler
from tfsd.serving.server.service import Service
from tfsd.serving.wire.message_size import request_limits

QUIET_SECONDS = 0.1  # when stopping, the ports are closed after this time without a new request
IDLE_SECONDS = 75.0  # for the headers of each request of a connection to arrive
ANSWER_SECONDS = 5.0  # when stopping, for the last answers to reach their clients


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """The addresses and limits of a server.

    Args:
        host: address of both ports; only this machine can reach the default.
        grpc_port, rest_port: 0 takes a free one.
        message_mb: the largest gRPC request. None takes the largest request of the models that exist when the server starts,
            and at least 4, gRPC's default. Answers are not limited.
        body_mb: the largest HTTP request; None likewise, with room for numbers as text.
        rest_timeout: seconds for an HTTP request; gRPC clients send their own deadline.
        tls_cert, tls_key: PEM files, for both ports.
        token: clients must send it as `authorization: Bearer TOKEN`.
        allowed_hosts, cors_origins: as `tfsd.serving.server.access.Access` takes them.
        grace: seconds that active requests get when the server is stopped.
    """

    host: str = "127.0.0.1"
    grpc_port: int = 8500
    rest_port: int = 8501
    message_mb: float | None = None
    body_mb: float | None = None
    rest_timeout: float = 300.0
    tls_cert: Path | None = None
    tls_key: Path | None = None
    token: str | None = field(default=None, repr=False)
    allowed_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    grace: float = 30.0

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the server."""
        return self.host in ("localhost", "::1") or self.host.startswith("127.")

    @property
    def tls(self) -> tuple[Path, Path] | None:
        """The files of the certificate and of its key. Raises: `ValueError` if only one of them is given."""
        if self.tls_cert is None and self.tls_key is None:
            return None
        if self.tls_cert is None or self.tls_key is None:
            raise ValueError("tls_cert and tls_key must be given together; got one of them.")
        return self.tls_cert, self.tls_key


class Server:
    """Serves models over gRPC and HTTP.

    Its coroutines run in one event loop; `running` runs a server in a thread. `grpc_port` and `rest_port` are the actual
    ports once it listens.
    """

    def __init__(
        self, models: Models, options: ServerOptions, *, limits: QueueLimits | None = None, metrics: Metrics | None = None
    ):
        self.models, self.options = models, options
        self.metrics = metrics or Metrics()
        self.limits = limits or QueueLimits()
        self._access = Access(host=options.host, allowed_hosts=options.allowed_hosts, cors_origins=options.cors_origins)
        self.grpc_port, self.rest_port = options.grpc_port, options.rest_port
        self._http: asyncio.Server | None = None
        self.ready = False

    async def start(self):
        """Opens the ports, loads the models, then takes requests.

        Raises: `OSError` for a port that is taken or a certificate that cannot be read, and the errors of loading.
        """
        self.loop = asyncio.get_running_loop()
        certificate = _certificate(self.options)
        self.scheduler = Scheduler(self.limits, self.metrics)
        self._service = service = Service(self.models, self.scheduler, self.metrics)
        message_bytes, body_bytes = self._limits()
        self._grpc, self._health = rpc.build(service, receive_bytes=message_bytes, token=self.options.token)
        await rpc.set_health(self._health, False)
        rest = Rest(
            service,
            body_bytes=body_bytes,
            timeout=self.options.rest_timeout,
            ready=lambda: self.ready,
            token=self.options.token,
            access=self._access,
        )
        # handler_cancellation: a client that has left needs no image
        self._runner = web.AppRunner(rest.app(), handler_cancellation=True, shutdown_timeout=ANSWER_SECONDS)
        try:
            await self._listen(certificate)
            await in_daemon(self.models.start)
        except BaseException:
            await self.stop(grace=0)
            raise
        self.ready = True
        await rpc.set_health(self._health, True)

    def _limits(self) -> tuple[int, int]:
        """Returns the largest sizes of a gRPC request and of an HTTP body, in bytes."""
        derived = request_limits(self.models.folders())
        given = (None if mb is None else int(mb * 2**20) for mb in (self.options.message_mb, self.options.body_mb))
        message, body = (own if mb is None else mb for own, mb in zip(derived, given))
        if self.options.message_mb is None:
            self.models.warn_above(message)
        return message, body

    async def _listen(self, certificate: ssl.SSLContext | None):
        options = self.options
        address = f"[{options.host}]" if ":" in options.host else options.host
        try:
            self.grpc_port = self._add_grpc_port(f"{address}:{options.grpc_port}")
        except RuntimeError:
            raise OSError(_taken(f"{address}:{options.grpc_port}", "--grpc-port")) from None
        await self._grpc.start()
        await self._runner.setup()
        try:
            self._http = await self.loop.create_server(self._connection, options.host, options.rest_port, ssl=certificate)
        except OSError:
            raise OSError(_taken(f"{address}:{options.rest_port}", "--rest-port")) from None
        self.rest_port = self._http.sockets[0].getsockname()[1]

    def _add_grpc_port(self, address: str) -> int:
        """Opens the gRPC port and returns its number; hides the line that gRPC itself prints if the port is taken."""
        if self.options.tls is None:
            with contextlib.nullcontext() if wants_information() else no_stderr():
                return self._grpc.add_insecure_port(address)
        certificate, key = self.options.tls
        credentials = grpc.ssl_server_credentials([(Path(key).read_bytes(), Path(certificate).read_bytes())])
        with contextlib.nullcontext() if wants_information() else no_stderr():
            return self._grpc.add_secure_port(address, credentials)

    def _connection(self) -> Protocol:
        """Returns the handler of one HTTP connection."""
        options = {"keepalive_timeout": IDLE_SECONDS, "access_log": None, "auto_decompress": False}
        return Protocol(self._runner.server, loop=self.loop, **options)

    async def stop(self, grace: float | None = None):
        """Refuses new requests, gives active ones `grace` seconds, and closes the ports when all are answered."""
        self.ready = False
        await self._health.enter_graceful_shutdown()
        await self.scheduler.drain(self.options.grace if grace is None else grace)
        await self._until_quiet()
        if self._http is not None:
            self._http.close()
        await asyncio.gather(self._grpc.stop(ANSWER_SECONDS), self._runner.cleanup())
        await asyncio.to_thread(self.models.close)

    async def _until_quiet(self):
        """Waits until requests that are just arriving were refused with UNAVAILABLE, so that clients retry.

        When gRPC closes the port, it ends them with CANCELLED, which clients do not retry.
        """
        end = time.monotonic() + ANSWER_SECONDS
        while True:
            await asyncio.sleep(QUIET_SECONDS)
            now = time.monotonic()
            if now > end or now - self._service.last_arrival > QUIET_SECONDS:
                return

    async def run(self, announce: Callable[["Server"], None]):
        """Serves until SIGTERM or SIGINT; calls `announce` once it takes requests. A second signal ends the grace period."""
        loop, stopping, hurry = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()

        def caught(number: int):
            (hurry if stopping.is_set() else stopping).set()
            LOGGER.info("stopping", extra={"fields": {"signal": signal.Signals(number).name, "grace": self.options.grace}})

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, caught, number)
        starting = asyncio.create_task(self.start())
        waiting = asyncio.create_task(stopping.wait())
        await asyncio.wait({starting, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            await asyncio.wait({starting})
            return
        await starting
        announce(self)
        await waiting
        ending = asyncio.create_task(self.stop())
        hurrying = asyncio.create_task(hurry.wait())
        await asyncio.wait({ending, hurrying}, return_when=asyncio.FIRST_COMPLETED)
        if not ending.done():
            self.scheduler.close()
        await ending
        hurrying.cancel()


@contextlib.contextmanager
def running(server: Server) -> Iterator[Server]:
    """Runs a server in a thread, for tests and notebooks; leaving the block stops it."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="tfsd-server", daemon=True)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(server.start(), loop).result()
        try:
            yield server
        finally:
            asyncio.run_coroutine_threadsafe(server.stop(), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def _taken(address: str, option: str) -> str:
    return (
        f"{option}: the server cannot listen on {address}: another program uses it, or this machine does not have the address. "
        f"Choose another {option}."
    )


def _certificate(options: ServerOptions) -> ssl.SSLContext | None:
    if options.tls is None:
        return None
    certificate, key = options.tls
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key)
    except ssl.SSLError as error:
        raise OSError(f"{certificate} and {key} are not a PEM certificate and its key: {error.reason}.") from None
    except OSError as error:
        raise OSError(f"{certificate} or {key} cannot be read: {error.strerror}.") from None
    return context
