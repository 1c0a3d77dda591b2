"""The HTTP connections: aiohttp's own, except for the answers to what is no HTTP, which name neither aiohttp nor Python."""

import json
from http import HTTPStatus

from aiohttp import web

from tfsd.errors import printable

NAME = "tfsd"  # in the header Server, in place of the versions of Python and aiohttp
_SHOWN = 150  # letters of what aiohttp says of such a request; it repeats what was sent


def error_answer(status: int, message: str) -> web.Response:
    """Returns the answer for an error: {"error": message}, as TensorFlow Serving's REST API has it."""
    return web.Response(body=json.dumps({"error": message}).encode(), status=status, content_type="application/json")


class Protocol(web.RequestHandler):
    """One connection. Requests that cannot be parsed reach no route and no middleware: aiohttp answers them here."""

    __slots__ = ()

    def handle_error(self, request, status=500, exc=None, message=None) -> web.StreamResponse:
        """Logs the error as aiohttp does, and returns the answer."""
        super().handle_error(request, status, exc, message)
        if status == HTTPStatus.BAD_REQUEST:
            told = f"This is not a valid HTTP request: {printable(' '.join((message or 'it is malformed').split())[:_SHOWN])}"
        else:
            told = HTTPStatus(status).phrase
        answer = error_answer(status, told)
        answer.headers.update({"Server": NAME, "X-Content-Type-Options": "nosniff"})
        answer.force_close()
        return answer
