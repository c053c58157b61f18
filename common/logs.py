"""Structured logs on standard output: a constant event name and fields, never phones, texts or keys."""

from __future__ import annotations

import contextlib
import logging
import sys
import traceback
from collections.abc import Iterable
from typing import Any

import orjson
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger


def configure(level: str, log_format: str, service: str) -> None:
    """Send this process's logs, the libraries' included, to standard output as JSON lines or readable text."""

    def name_service(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        event["service"] = service  # Not bound as a context variable: other threads would not have it.
        return event

    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        name_service,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _describe_error,
    ]
    renderer: Processor = (
        structlog.processors.JSONRenderer(serializer=_to_json)
        if log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stdout.isatty())
    )
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level]),
        logger_factory=_Printer,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    # Libraries say little that an operator needs; their warnings we want.
    logging.basicConfig(
        level=max(logging.WARNING, logging.getLevelNamesMapping()[level]), handlers=[handler], force=True
    )
    # Eight lines and stack traces for each attempt to reach a broker that is away; who calls it says so in one.
    logging.getLogger("pika").setLevel(logging.CRITICAL)
    logging.captureWarnings(capture=True)


class _Printer(structlog.PrintLogger):
    """Standard output, which may be a file on a full disk: the line is lost then, and the work it tells of goes on."""

    def __init__(self, *_: object) -> None:
        super().__init__()

    def msg(self, message: str) -> None:
        """Print one line, if that is possible."""
        with contextlib.suppress(OSError):
            super().msg(message)

    debug = info = warning = error = critical = msg


def _to_json(event: dict[str, Any], **_options: Any) -> str:
    return orjson.dumps(event, default=str).decode()


def _describe_error(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Turn `exc_info` into frames and types, without the messages of database errors: they quote rows and phones."""
    given = event.pop("exc_info", None)
    if not given:
        return event
    if isinstance(given, BaseException):
        error: BaseException | None = given
    else:
        error = given[1] if isinstance(given, tuple) else sys.exc_info()[1]
    if error is not None:
        event["exception"] = "".join(_lines(error))
    return event


def _lines(error: BaseException) -> Iterable[str]:
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None:
        yield from _lines(cause)
    yield from traceback.format_tb(error.__traceback__)
    yield f"{type(error).__module__}.{type(error).__qualname__}: {_safe_message(error)}\n"


def _safe_message(error: BaseException) -> str:
    original = getattr(error, "orig", error)
    if original is error and not hasattr(error, "pgcode"):
        return str(error)
    code = getattr(original, "pgcode", None)
    # Without an SQLSTATE the error is about the connection and quotes no rows.
    return f"SQLSTATE {code}" if code else str(original).strip()
