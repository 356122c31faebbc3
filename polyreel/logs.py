"""Logging: structlog for us, the standard library's loggers routed through it, secrets taken out of both.

Coloured lines on a terminal, one JSON object per line elsewhere. Logs go to standard error.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

#: What may stand in a text and must not be logged: link signatures, bearer keys, webhook secrets, passwords in URLs.
_SECRETS = (
    (re.compile(r"(sig=)[0-9a-fA-F]+"), r"\1***"),
    (re.compile(r"(?i)(bearer:?\s+)\S+"), r"\1***"),
    (re.compile(r"(whsec_)[\w+/=-]+"), r"\1***"),
    (re.compile(r"(://[^/@\s:]*:)[^/@\s]+(@)"), r"\1***\2"),
)
#: Characters that end a line, move a terminal's cursor or turn the direction of what follows.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")

#: What has several lines by design.
_TRACEBACKS = {"exception", "stack"}

_SECRET_FIELDS = {"key", "api_key", "authorization", "secret", "password", "prompt", "negative_prompt"}


def redact(text: str) -> str:
    """Return `text` without link signatures, bearer keys and URL passwords."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def _in_one_line(text: str) -> str:
    """Return `text` with control characters written as Python writes them."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def _redact_event(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for name, value in event.items():
        if name in _SECRET_FIELDS:
            event[name] = "***"
        elif isinstance(value, str):
            event[name] = redact(value) if name in _TRACEBACKS else _in_one_line(redact(value))
    return event


def is_configured() -> bool:
    """Return whether this process has a log; a command that speaks to people has none."""
    return structlog.is_configured()


def configure_logs(level: str, process: str) -> None:
    """Set logging up for this process.

    Args:
        level: "debug", "info", "warning" or "error".
        process: shown with each line, e.g. "serve".
    """
    # Any: structlog's processors are typed loosely on purpose
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        lambda _l, _m, event: {**event, "process": process},
        structlog.processors.format_exc_info,
        _redact_event,
    ]
    renderer: Any = (
        structlog.dev.ConsoleRenderer()
        if sys.stderr.isatty()
        else structlog.processors.JSONRenderer(ensure_ascii=False)
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer]
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for chatty in ("rq", "rq.worker", "uvicorn", "uvicorn.error", "httpx2", "httpcore2"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, root.level))
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
