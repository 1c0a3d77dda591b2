"""The HTTP side: TF Serving's REST API, the page, metrics, health and progress.

Source: tensorflow/serving, model_servers/http_rest_api_handler.cc and http_rest_api_util.cc, for paths and messages.
"""

import asyncio
import hmac
import json
import re
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

from aiohttp import web
from google.protobuf.json_format import MessageToDict

from tfsd.serving.server.access import Access, require_json
from tfsd.serving.server.http_protocol import error_answer
from tfsd.serving.server.logs import LOGGER
from tfsd.serving.server.rpc import metadata_of
from tfsd.serving.server.service import ParsedRequest, Service, Target, find_signature, request_id_of
from tfsd.serving.server.words import http_headers
from tfsd.serving.wire import json as wire_json
from tfsd.serving.wire.errors import CODES, ServerError
from tfsd.serving.wire.tensors import invalid, output_names

PAGE = Path(__file__).parent / "page"
PAGE_TYPES = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
    ".png": "image/png",
}
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
BODY_SECONDS = 60.0  # for a body to arrive
MAX_REQUESTS = 512  # predictions at once; each may hold a body of the size limit
IN_THREAD = 2**16  # bytes of a body or of an answer's arrays; larger JSON is converted in a thread

_PLACE = r"(?:/versions/(\d+)|/labels/([^/:]+))?"
_PREDICT = re.compile(rf"/v1/models/([^/:]+){_PLACE}:(classify|regress|predict)", re.I | re.A)
_STATUS = re.compile(rf"/v1/models(?:/([^/:]+))?{_PLACE}(?:/(metadata))?", re.I | re.A)


class Rest:
    """The HTTP routes of a service. `ready()` returns whether the server takes requests."""

    def __init__(
        self,
        service: Service,
        *,
        body_bytes: int,
        timeout: float,
        ready: Callable[[], bool],
        token: str | None = None,
        access: Access | None = None,
    ):
        self.service, self.timeout, self.ready = service, timeout, ready
        self.access = access or Access()
        self.limit = body_bytes
        self._under_way = 0
        self._pages: set[Callable] = set()  # handlers that need no token: the page asks the user for it
        self._expected = f"Bearer {token}".encode() if token else None

    def app(self) -> web.Application:
        """Returns the aiohttp application."""
        app = web.Application(client_max_size=self.limit, middlewares=[self._guard])
        app.on_response_prepare.append(self._mark)
        app.router.add_get("/healthz", self.healthz)
        app.router.add_get("/metrics", self.metrics)
        app.router.add_get("/monitoring/prometheus/metrics", self.metrics)  # the path in TF Serving's configurations
        app.router.add_get("/config.json", self.config)
        app.router.add_get("/v1/requests/{id:.+}", self.progress)
        app.router.add_route("*", "/{v:[vV]1}/{path:.*}", self.api)
        for file in sorted(PAGE.iterdir()) if PAGE.is_dir() else ():
            if file.suffix in PAGE_TYPES:
                handler = _page(file)
                self._pages.add(handler)
                app.router.add_get(f"/{file.name}", handler)
                if file.name == "index.html":
                    app.router.add_get("/", handler)
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler) -> web.StreamResponse:
        """Checks access and the token, and answers every error with a JSON object."""
        try:
            if handler != self.healthz:  # it reveals nothing, and load balancers send any Host
                self.access.check(request)
            if preflight := self.access.preflight(request):
                return preflight
            self._require_token(request, handler)
            return await handler(request)
        except ServerError as error:
            return _error(error.http_status, error.message)
        except web.HTTPUnsupportedMediaType as error:
            return _error(error.status, error.text)
        except web.HTTPRequestEntityTooLarge:
            return _error(413, f"The body has more than the {self.limit} bytes that this server accepts.")
        except web.HTTPException as error:
            return _error(error.status, f"{error.reason}: {request.method} {request.path[:200]}")
        except Exception:
            LOGGER.exception("a request failed", extra={"fields": {"path": request.path[:200]}})
            return _error(CODES["INTERNAL"][1], "The server failed; its log tells why.")

    async def _mark(self, request: web.Request, response: web.StreamResponse):
        """Adds the headers that tell browsers who may read an answer, also to aiohttp's own answers."""
        self.access.mark(request, response)

    def _require_token(self, request: web.Request, handler):
        if self._expected is None or handler == self.healthz or handler in self._pages:
            return
        sent = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        if not hmac.compare_digest(sent, self._expected):
            raise ServerError("UNAUTHENTICATED", "The token is missing or wrong. Send the header Authorization: Bearer TOKEN.")

    async def healthz(self, request: web.Request) -> web.Response:
        """GET /healthz: 200 while the server takes requests, else 503."""
        return web.Response(text="ok\n") if self.ready() else web.Response(text="not serving\n", status=503)

    async def metrics(self, request: web.Request) -> web.Response:
        """GET /metrics, for Prometheus."""
        page, content_type = self.service.metrics.render()
        return web.Response(body=page, headers={"Content-Type": content_type})

    async def config(self, request: web.Request) -> web.Response:
        """GET /config.json: the manifests of the served models, for the page."""
        manifests = [
            {key: value for key, value in manifest.items() if key != "files"} | {"name": name, "version": version}
            for name, versions in self.service.models.manifests().items()
            for version, manifest in versions.items()
        ]
        return _json({"models": manifests})

    async def progress(self, request: web.Request) -> web.Response:
        """GET /v1/requests/ID: the progress of the request that was sent with X-Request-ID: ID."""
        try:
            progress = self.service.scheduler.progress[request.match_info["id"]]
        except KeyError:
            raise ServerError("NOT_FOUND", "No request with this id is running, or ended within the last minute.") from None
        return _json(progress._asdict())

    async def api(self, request: web.Request) -> web.Response:
        """All paths of TF Serving's REST API."""
        path = request.rel_url.raw_path
        match = {"POST": _PREDICT, "GET": _STATUS}[request.method].fullmatch(path) if request.method in ("POST", "GET") else None
        if match is None:
            raise invalid(f"Malformed request: {request.method} {path[:200]}")
        name, version, label, verb = match.groups()
        if version and (len(version) > 19 or int(version) >= 2**63):
            raise invalid(f"Failed to convert version: {version[:100]} to numeric.")
        target = Target(unquote(name or ""), int(version) if version else None, unquote(label) if label else None)
        if request.method == "POST":
            require_json(request)
            if verb.lower() != "predict":
                raise ServerError("UNIMPLEMENTED", f"This server has no {verb.lower()}; use predict.")
            if self._under_way >= MAX_REQUESTS:
                raise ServerError("RESOURCE_EXHAUSTED", f"{MAX_REQUESTS} requests are active, the most at once. Try again later.")
            self._under_way += 1
            try:
                return await self.predict(request, target)
            finally:
                self._under_way -= 1
        if not target.name:
            raise invalid("Missing model name in request.")
        return _metadata(self.service.models, target) if verb else _status(self.service.models, target)

    async def predict(self, request: web.Request, target: Target) -> web.Response:
        """POST /v1/models/NAME:predict."""
        request_id = request_id_of(request.headers.get("X-Request-ID"))
        body, deadline = await self._body(request), time.monotonic() + self.timeout
        with self.service.receive(target, method="rest", request_id=request_id, deadline=deadline) as received:
            parsed, by_row = await _parse(body, received.engine)
            answer = await received.predict(parsed)
        size = sum(array.nbytes for array in answer.outputs.values())
        text = await _off_loop(size, wire_json.answer, answer.outputs, by_row)
        return web.Response(
            body=text, content_type="application/json", headers={"X-Request-ID": request_id} | http_headers(answer.warning)
        )

    async def _body(self, request: web.Request) -> bytes:
        if (request.content_length or 0) > self.limit:
            raise web.HTTPRequestEntityTooLarge(max_size=self.limit, actual_size=request.content_length)
        try:
            body = await asyncio.wait_for(request.read(), BODY_SECONDS)
        except asyncio.TimeoutError:
            raise ServerError("DEADLINE_EXCEEDED", f"The body did not arrive within {BODY_SECONDS:.0f} s.") from None
        except ConnectionError:  # the client cannot get this, and it needs no traceback in the log
            raise ServerError("CANCELLED", "The client left before the whole body had arrived.") from None
        encoding = request.headers.get("Content-Encoding", "identity").lower()
        if encoding not in ("identity", "gzip"):
            raise invalid(f"Content-Encoding must be gzip or identity; got {encoding[:60]}.")
        return self._unzipped(body) if encoding == "gzip" else body

    def _unzipped(self, body: bytes) -> bytes:
        """Decompresses gzip, up to the limit; aiohttp would decompress a gigabyte before it refused it."""
        unpacking = zlib.decompressobj(zlib.MAX_WBITS | 16)
        try:
            plain = unpacking.decompress(body, self.limit + 1)
        except zlib.error:
            raise invalid("The body is not gzip data, although its Content-Encoding says so.") from None
        if len(plain) > self.limit:
            raise web.HTTPRequestEntityTooLarge(max_size=self.limit, actual_size=len(plain))
        if not unpacking.eof:
            raise invalid("The body is cut off: its gzip does not end.")
        return plain


async def _parse(body: bytes, engine) -> tuple[ParsedRequest, bool]:
    """Parses the body of a predict call; returns also whether the answer should be by row. Raises: `ServerError`."""
    document = await _off_loop(len(body), wire_json.read_body, body)
    name = find_signature(engine, document.signature_name)
    if name is None:
        raise invalid(f'Serving signature name: "{document.signature_name[:100]}" not found in signature def')
    signature = engine.signatures[name]
    arrays, by_row = await _off_loop(len(body), wire_json.arrays_of, document, signature)
    return ParsedRequest(name, arrays, output_names(signature, ())), by_row


async def _off_loop(size: int, function, *arguments):
    """Returns a function's result; large data is handled in a thread, so that it does not block the event loop."""
    return await asyncio.to_thread(function, *arguments) if size > IN_THREAD else function(*arguments)


def _page(file: Path):
    content = file.read_bytes()
    headers = PAGE_HEADERS | {"Content-Type": f"{PAGE_TYPES[file.suffix]}; charset=utf-8"}
    if file.suffix == ".html":
        headers["Cache-Control"] = "no-store"

    async def page(request: web.Request) -> web.Response:
        return web.Response(body=content, headers=headers)

    return page


def _status(models, target: Target) -> web.Response:
    return _json(_fields(models.status(*target)))


def _metadata(models, target: Target) -> web.Response:
    response = metadata_of(models, target)
    signatures = next(iter(_fields(response)["metadata"].values()))
    signatures.pop("@type", None)
    return _json({"model_spec": _fields(response.model_spec), "metadata": {"signature_def": signatures}})


def _fields(message) -> dict:
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def _json(value, status: int = 200) -> web.Response:
    return web.Response(body=json.dumps(value, allow_nan=False).encode(), status=status, content_type="application/json")


def _error(status: int, message: str) -> web.Response:
    response = error_answer(status, message)
    if status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response
