"""Log lines of the server, as text or as JSON. Prompts are never in them."""

import json
import logging
import time

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
    """One line of text: time, level, message, fields as name=value."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line."""
        fields = "".join(f" {name}={value}" for name, value in getattr(record, "fields", {}).items())
        line = f"{_time(record)} {record.levelname:7} {record.getMessage()}{fields}"
        return line + (f"\n{self.formatException(record.exc_info)}" if record.exc_info else "")


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
