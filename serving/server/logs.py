"""Log lines of the server, as text or as JSON. Prompts are never in them.

What clients send, such as the name of a model, can neither begin a line of its own, nor steer a terminal, nor pass for another
field: all that is not printable is escaped, and values with spaces or quotes are quoted.
"""

import json
import logging
import re
import time

from tfsd.errors import printable

_PLAIN = re.compile(r"""[^\s"'=\\]+""")
_TRACE = "\n    "  # before each line of a trace, which thereby is no line of the log

LOGGER = logging.getLogger("tfsd.serving")


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, message, and what the caller gave as `extra={"fields": {...}}`."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line."""
        line = {"time": _time(record), "level": record.levelname, "message": record.getMessage()}
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """One line of text: time, level, message, fields as name=value; a trace follows in lines that are indented."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line."""
        fields = "".join(f" {name}={_value(value)}" for name, value in getattr(record, "fields", {}).items())
        line = f"{_time(record)} {record.levelname:7} {printable(record.getMessage())}{fields}"
        trace = self.formatException(record.exc_info).split("\n") if record.exc_info else []
        return line + "".join(_TRACE + printable(one) for one in trace)


def _value(value) -> str:
    """Returns a field's value; in JSON's quotes where it could be taken for more than one value."""
    text = str(value)
    return text if _PLAIN.fullmatch(text) and text.isprintable() else json.dumps(text)


class _WithoutNonsense(logging.Filter):
    """Drops what aiohttp logs of bytes that are no HTTP: any client could fill the log with them."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return type(error).__module__ != "aiohttp.http_exceptions"


def _time(record: logging.LogRecord) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z"


def log_to(stream, *, form: str = "text", level: int = logging.INFO) -> logging.Handler:
    """Sends the server's lines to `stream`, as "text" or "json", and returns the handler that does."""
    handler = logging.StreamHandler(stream)
    handler.addFilter(_WithoutNonsense())
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    for name in ("tfsd.serving", "aiohttp.server", "grpc"):  # the libraries' errors too, in the same form
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
    LOGGER.setLevel(level)
    return handler
