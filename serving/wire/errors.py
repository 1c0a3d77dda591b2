"""Errors between client and server, with the canonical codes of gRPC."""

from collections.abc import Sequence

# Code -> (number in gRPC, HTTP status in TF Serving's REST API).
CODES = {
    "CANCELLED": (1, 499),
    "UNKNOWN": (2, 500),
    "INVALID_ARGUMENT": (3, 400),
    "DEADLINE_EXCEEDED": (4, 504),
    "NOT_FOUND": (5, 404),
    "ALREADY_EXISTS": (6, 409),
    "PERMISSION_DENIED": (7, 403),
    "RESOURCE_EXHAUSTED": (8, 429),
    "FAILED_PRECONDITION": (9, 400),
    "ABORTED": (10, 409),
    "OUT_OF_RANGE": (11, 400),
    "UNIMPLEMENTED": (12, 501),
    "INTERNAL": (13, 500),
    "UNAVAILABLE": (14, 503),
    "DATA_LOSS": (15, 500),
    "UNAUTHENTICATED": (16, 401),
}

# Metadata of gRPC answers.
WARNING_KEY = "tfsd-warning-bin"  # a warning about a request that succeeded
KNOWN_KEY = "tfsd-models-bin"  # with NOT_FOUND: the names of the models that are served, one per line
MAX_KNOWN = 20  # names


class ServerError(Exception):
    """A failed request: `code` is a key of `CODES`, `message` one sentence for the caller.

    `known`: the names of the models that are served, if the requested one is not.
    """

    def __init__(self, code: str, message: str, *, known: Sequence[str] = ()):
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.known = tuple(known)

    @property
    def http_status(self) -> int:
        """The code's HTTP status."""
        return CODES[self.code][1]
