"""Access of web pages to the HTTP side: checks of Host, Origin and Content-Type, and CORS.

A browser sends requests to this server for any page that its user looks at. Two attacks follow, even where only this machine
can reach the server:

- A page of another site sends a request: it cannot read the answer, but a prediction costs minutes of work. Browsers name
  the page in `Origin`, so a request with a foreign Origin is refused unless `cors_origins` lists it.
- DNS rebinding: a site gives its own name the address 127.0.0.1, so that its page counts as one of this server. The browser
  then sends that name as `Host`, so names that the server does not know are refused. DNS rebinding
  needs a name, so IP addresses are always accepted: containers, probes and port forwarding work without an option.

The Content-Type of what a browser sends must be JSON, since a page may send forms and plain text anywhere without asking
first. Programs are not browsers: they send no Origin, and may use the type that `curl -d` gives by default, as in TensorFlow
Serving's documentation.

`Host` is what the client sent. `Forwarded` and `X-Forwarded-*` change nothing, as any client can send them; a proxy passes
on the Host, or `allowed_hosts` lists the name that it sends. The gRPC side needs none of this: pages cannot send gRPC, whose
content type browsers do not send to other sites without asking first, and gRPC servers do not answer such questions.
"""

import ipaddress
import re
import shlex
import socket
from collections.abc import Collection
from urllib.parse import urlsplit

from aiohttp import hdrs, web

from tfsd.errors import printable, shown
from tfsd.serving.server.http_protocol import NAME
from tfsd.serving.server.words import HTTP_HEADER
from tfsd.serving.wire.errors import ServerError

ANY = "*"
MAX_NAME = 100  # characters of a name or an origin that a message repeats
METHODS = "GET, POST"
HEADERS = "Authorization, Content-Type, X-Request-ID"
EXPOSED = f"X-Request-ID, {HTTP_HEADER}"
PREFLIGHT_SECONDS = "600"  # for which a browser keeps the answer
_HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[^\[\]:/@?#\s]+)(?::\d{1,5})?")
_NAME = re.compile(r"\.?[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#\s@,]+")


def host_pattern(text: str) -> str:
    """Returns an entry of `allowed_hosts` as it is compared: "*", a name, or ".example.com" for it and all names below.

    Raises: `ValueError`.
    """
    name = text.strip().rstrip(".").lower()
    if name == ANY or _is_address(name.strip("[]")) or _NAME.fullmatch(name):
        return name.strip("[]")
    raise ValueError(f"must be a name such as tfsd.example.com, .example.com for all names below it, or *; got {text[:60]!r}")


def origin_pattern(text: str) -> str:
    """Returns an entry of `cors_origins` as it is compared: "*" or an origin. Raises: `ValueError`."""
    origin = text.strip().lower()
    if origin in (ANY, "null") or _ORIGIN.fullmatch(origin):
        return origin
    raise ValueError(f"must be an origin such as https://app.example.com (without a path), or *; got {text[:60]!r}")


class Access:
    """Checks and headers that limit which pages can use the server.

    `allowed_hosts`: names in addition to localhost, this machine's name and every IP address; ".example.com" stands for that
    name and all names below it, "*" for any. `cors_origins`: origins whose pages may call the API and read its answers; "*"
    for any. `host` is the address that the server listens on.
    """

    def __init__(self, *, host: str = "127.0.0.1", allowed_hosts: Collection[str] = (), cors_origins: Collection[str] = ()):
        own = {"localhost", ".localhost", host.lower(), socket.gethostname().lower()}
        self._names = own | {host_pattern(name) for name in allowed_hosts}
        self._origins = {origin_pattern(origin) for origin in cors_origins}

    def check(self, request: web.Request):
        """Raises: `ServerError` PERMISSION_DENIED for a Host or an Origin that is not allowed, INVALID_ARGUMENT for two Hosts."""
        hosts = request.headers.getall(hdrs.HOST, [])
        if len(hosts) > 1:
            raise ServerError("INVALID_ARGUMENT", "A request must have one Host header.")
        host = hosts[0] if hosts else ""  # browsers always send one
        if host and not self._is_known(host):
            raise ServerError("PERMISSION_DENIED", _unknown_host(host))
        origin = request.headers.get(hdrs.ORIGIN)
        if origin is not None and not self.allows(origin) and not _is_own(origin, host):
            raise ServerError("PERMISSION_DENIED", _foreign_origin(origin))
        if origin is None and request.method not in ("GET", "HEAD") and _site(request) in ("cross-site", "same-site"):
            raise ServerError("PERMISSION_DENIED", "Pages of other sites may not use this server.")

    def allows(self, origin: str) -> bool:
        """Whether pages of another origin may use the API."""
        return ANY in self._origins or origin.lower() in self._origins

    def preflight(self, request: web.Request) -> web.Response | None:
        """Returns the answer to a CORS preflight request of a browser; None for other requests."""
        asks = request.method == "OPTIONS" and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers
        if not asks or not self.allows(request.headers.get(hdrs.ORIGIN, "")):
            return None
        headers = {hdrs.ACCESS_CONTROL_ALLOW_METHODS: METHODS, hdrs.ACCESS_CONTROL_ALLOW_HEADERS: HEADERS}
        return web.Response(status=204, headers=headers | {hdrs.ACCESS_CONTROL_MAX_AGE: PREFLIGHT_SECONDS})

    def mark(self, request: web.Request, response: web.StreamResponse):
        """Adds the headers that tell browsers which pages may read an answer."""
        response.headers["Server"] = NAME
        response.headers.setdefault("X-Content-Type-Options", "nosniff")
        response.headers.setdefault("Cross-Origin-Resource-Policy", "same-origin")
        if not self._origins:
            return
        response.headers.add(hdrs.VARY, hdrs.ORIGIN)
        origin = request.headers.get(hdrs.ORIGIN)
        if origin is not None and self.allows(origin):
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
            response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = EXPOSED

    def _is_known(self, host: str) -> bool:
        name = _name(host)
        if ANY in self._names or name in self._names or _is_address(name):
            return True
        return any(own.startswith(".") and (name.endswith(own) or name == own[1:]) for own in self._names)


def require_json(request: web.Request):
    """Raises: `web.HTTPUnsupportedMediaType` for a body from a browser that is not JSON."""
    if hdrs.ORIGIN not in request.headers and _site(request) is None:
        return
    kind = request.content_type
    if kind != "application/json" and not kind.endswith("+json"):
        raise web.HTTPUnsupportedMediaType(text=f"Content-Type must be application/json for pages; got {_shown(kind)}.")


def _site(request: web.Request) -> str | None:
    return request.headers.get("Sec-Fetch-Site")


def _name(host: str) -> str:
    """Returns the name in a Host header, without port and brackets; empty if the header is invalid."""
    found = _HOST.fullmatch(host.strip())
    return found["name"].strip("[]").rstrip(".").lower() if found else ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_own(origin: str, host: str) -> bool:
    """Whether a page of an origin came from this server; its scheme is not compared, since a proxy may have ended TLS."""
    try:
        parts = urlsplit(origin)
        default = {"http": 80, "https": 443}.get(parts.scheme)
        own = urlsplit(f"{parts.scheme}://{host}")
        return default is not None and (parts.hostname, parts.port or default) == (own.hostname, own.port or default)
    except ValueError:  # the port is not a number
        return False


def _unknown_host(host: str) -> str:
    """Returns the message about a Host. It suggests no option that would allow more than this name."""
    name = _name(host)
    if not _NAME.fullmatch(name) or name.startswith(".") or len(name) > MAX_NAME:
        return f"The Host header is not a host name: {shown(host)}. Send the server's name or its IP address."
    return f"{name} is not a name of this server. If it should be one, start the server with --allowed-hosts {name}."


def _foreign_origin(origin: str) -> str:
    """Returns the message about an Origin. It suggests no option that would allow more than this origin."""
    if origin.lower() in ("null", "file://"):
        return (
            "Pages without an origin, such as files that are opened from the disk and sandboxed frames, may not use this server: "
            "any site can make such a page. Open the page over HTTP, and list its origin with --cors-origin."
        )
    if not _ORIGIN.fullmatch(origin) or len(origin) > MAX_NAME:
        return f"The Origin header is not an origin such as https://app.example.com: {shown(origin)}."
    option = f"--cors-origin {shlex.quote(origin)}"
    return f"Pages of {origin} may not use this server. If they should, start the server with {option}."


def _shown(text: str) -> str:
    return printable(text[:100])
