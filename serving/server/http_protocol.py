"""HTTP connections: aiohttp's, with answers to invalid HTTP that do not reveal the versions of aiohttp and Python."""

import json
from http import HTTPStatus

from aiohttp import web

from tfsd.errors import printable

NAME = "tfsd"  # in the header Server, in place of the versions of Python and aiohttp
_SHOWN = 150  # characters of aiohttp's message about invalid HTTP, which repeats what was sent


def error_answer(status: int, message: str) -> web.Response:
    """Returns the answer for an error: {"error": message}, as in TensorFlow Serving's REST API."""
    return web.Response(body=json.dumps({"error": message}).encode(), status=status, content_type="application/json")


class Protocol(web.RequestHandler):
    """One connection. Requests that cannot be parsed do not reach routes or middlewares; they are answered here."""

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
