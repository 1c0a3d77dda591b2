"""The server's log, as text or as JSON. It never contains prompts.

Text that clients send, such as the name of a model, cannot start a new line, control a terminal or look like another field:
characters that are not printable are escaped, and values with spaces or quotes are quoted.
"""

import json
import logging
import re
import time

from tfsd.errors import printable

_PLAIN = re.compile(r"""[^\s"'=\\]+""")
_TRACE = "\n    "  # before each line of a traceback, to distinguish it from lines of the log

LOGGER = logging.getLogger("tfsd.serving")


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time, level, message, and the fields given as `extra={"fields": {...}}`."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line."""
        line = {"time": _time(record), "level": record.levelname, "message": record.getMessage()}
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """One line of text: time, level, message, fields as name=value; a traceback follows in indented lines."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line."""
        fields = "".join(f" {name}={_value(value)}" for name, value in getattr(record, "fields", {}).items())
        line = f"{_time(record)} {record.levelname:7} {printable(record.getMessage())}{fields}"
        trace = self.formatException(record.exc_info).split("\n") if record.exc_info else []
        return line + "".join(_TRACE + printable(one) for one in trace)


def _value(value) -> str:
    """Returns a field's value, quoted as in JSON unless it is a plain word."""
    text = str(value)
    return text if _PLAIN.fullmatch(text) and text.isprintable() else json.dumps(text)


class _InvalidHttpFilter(logging.Filter):
    """Drops aiohttp's records about invalid HTTP, with which any client could fill the log."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return type(error).__module__ != "aiohttp.http_exceptions"


def _time(record: logging.LogRecord) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z"


def log_to(stream, *, form: str = "text", level: int = logging.INFO) -> logging.Handler:
    """Writes the server's log to `stream` in the form "text" or "json", and returns the logging handler."""
    handler = logging.StreamHandler(stream)
    handler.addFilter(_InvalidHttpFilter())
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    for name in ("tfsd.serving", "aiohttp.server", "grpc"):  # also the errors of libraries, in the same form
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
    LOGGER.setLevel(level)
    return handler
