"""Logging: structlog for us, the standard library's loggers routed through it, secrets taken out of both.

Coloured lines on a terminal, one JSON object per line elsewhere. Logs go to standard error. What is bound as context
stands on every line: `request_id` while a request is answered, `job_id`, `model` and the submit's `request_id` while a
job runs, `trace_id` where there is a trace.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
from collections.abc import Iterator, Mapping, MutableMapping
from types import TracebackType
from typing import Any

import structlog
from pydantic import BaseModel, SecretStr

from polyreel import tracing

#: What may stand in a text and must not be logged: link signatures, keys, webhook secrets, passwords in URLs.
_SECRETS = (
    (re.compile(r"(sig=)[0-9a-fA-F]+"), r"\1***"),
    (re.compile(r"(?i)([?&](?:api_?key|key|token|secret|password)=)[^&\s\"']+"), r"\1***"),
    (re.compile(r"(?i)(bearer:?\s+)\S+"), r"\1***"),
    (re.compile(r"(prk_)[0-9A-Za-z]{46}"), r"\1***"),
    (re.compile(r"(whsec_)[\w+/=-]+"), r"\1***"),
    (re.compile(r"(://[^/@\s:]*:)[^/@\s]+(@)"), r"\1***\2"),
)
#: Characters that end a line, move a terminal's cursor or turn the direction of what follows.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")

#: What has several lines by design.
_TRACEBACKS = {"exception", "stack"}

_SECRET_FIELDS = {"key", "api_key", "authorization", "secret", "password"}
_PROMPT_FIELDS = {"prompt", "negative_prompt"}

#: Longest prompt on a line, characters; and shortest secret that is looked for, since a shorter one may be any word.
_LONGEST_PROMPT, _SHORTEST_SECRET = 500, 8

#: This server's own secrets, wherever they turn up; see `hide`.
_hidden: set[str] = set()


def hide(secrets: object) -> None:
    """Keep texts out of every line of this process from now on.

    Args:
        secrets: settings, of which every secret is taken; or mappings, lists and tuples of them or of `SecretStr`.
    """
    _hidden.update(secret for secret in _secrets_in(secrets) if len(secret) >= _SHORTEST_SECRET)


def _secrets_in(value: object) -> Iterator[str]:
    if isinstance(value, SecretStr):
        text = value.get_secret_value()
        if "://" not in text:  # of a URL the password alone is secret, and that is known by its place
            yield text
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _secrets_in(getattr(value, name))
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _secrets_in(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _secrets_in(inner)


def redact(text: str) -> str:
    """Return `text` without link signatures, keys, URL passwords and what `hide` was given."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    for secret in _hidden:
        text = text.replace(secret, "***")
    return text


def _in_one_line(text: str) -> str:
    """Return `text` with control characters written as Python writes them."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


class _Redacted:
    """Takes out of a line what must not stand there.

    Args:
        prompts: leave prompts in it, shortened.
    """

    def __init__(self, prompts: bool) -> None:
        self._masked = _SECRET_FIELDS if prompts else _SECRET_FIELDS | _PROMPT_FIELDS

    def __call__(
        self, _logger: object, _method: str, event: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:  # Any: structlog's events
        for name, value in event.items():
            if name in self._masked:
                event[name] = "***"
            elif isinstance(value, str):
                event[name] = redact(value) if name in _TRACEBACKS else _in_one_line(redact(value))
                if name in _PROMPT_FIELDS and len(value) > _LONGEST_PROMPT:
                    event[name] = event[name][:_LONGEST_PROMPT] + "…"
        return event


def _with_trace(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Name the trace that a line belongs to, where there is one. Any: structlog's events."""
    if trace_id := tracing.trace_id():
        event.setdefault("trace_id", trace_id)
    return event


def is_configured() -> bool:
    """Return whether this process has a log; a command that speaks to people has none."""
    return structlog.is_configured()


def configure_logs(level: str, process: str, *, prompts: bool = False, secrets: object = ()) -> None:
    """Set logging up for this process.

    Args:
        level: "debug", "info", "warning" or "error".
        process: shown with each line, e.g. "serve".
        prompts: prompts may stand in the log.
        secrets: as for `hide`.
    """
    hide(secrets)
    # Any: structlog's processors are typed loosely on purpose
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        lambda _l, _m, event: {**event, "process": process},
        _with_trace,
        structlog.processors.format_exc_info,
        _Redacted(prompts),
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
        wrapper_class=structlog.make_filtering_bound_logger(root.level),  # a line that nobody sees costs nothing
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    logging.captureWarnings(True)


def log_crashes() -> None:
    """Let an error that nobody has caught be a line of the log like any other: Python's own print redacts nothing."""

    def crashed(kind: type[BaseException], err: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            sys.__excepthook__(kind, err, trace)
            return
        structlog.get_logger().critical("process crashed", exc_info=(kind, err, trace))

    def thread_crashed(about: threading.ExceptHookArgs) -> None:
        if about.exc_value is not None and not issubclass(about.exc_type, SystemExit):
            trouble = (about.exc_type, about.exc_value, about.exc_traceback)
            structlog.get_logger().critical("thread crashed", exc_info=trouble)

    sys.excepthook, threading.excepthook = crashed, thread_crashed
