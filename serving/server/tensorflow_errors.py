"""Errors of TensorFlow, as the errors that a client gets."""

import re
from collections.abc import Callable

import tensorflow as tf

from tfsd.finite import is_not_finite
from tfsd.serving.wire.errors import CODES, ServerError

_FAILED_CHECK = re.compile(r"assertion failed: \[(.*?)\]\s*(?:\[\[\{\{node|$)", re.DOTALL)


def call(function: Callable, inputs: dict):
    """Calls a function of an export. Raises: `ServerError` for errors of TensorFlow."""
    try:
        return function(**inputs)
    except tf.errors.OpError as error:
        raise server_error(error) from error
    except UnicodeDecodeError as error:  # the message of a failed check has a value that is not UTF-8
        raise ServerError("INVALID_ARGUMENT", _failed_check(error.object.decode("utf-8", "replace"))) from error


def server_error(error: tf.errors.OpError) -> ServerError:
    """Returns the error that a client gets; for a failed check in the graph, its message and the values."""
    code = next((name for name, (number, _) in CODES.items() if number == error.error_code), "UNKNOWN")
    message = _failed_check(error.message)
    # All checks of TensorFlow are INVALID_ARGUMENT, but this one is not the caller's fault.
    return ServerError("INTERNAL" if is_not_finite(message) else code, message)


def last_line(error: Exception) -> str:
    """Returns the message of an error, without the location that TensorFlow puts first."""
    return _last(str(error)) or type(error).__name__


def _failed_check(message: str) -> str:
    """Returns the message of a failed check, with the values."""
    check = _FAILED_CHECK.search(message)
    return check[1].replace("] [", " ") if check else _last(message)


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip() and "{{node" not in line]
    return lines[-1] if lines else ""
