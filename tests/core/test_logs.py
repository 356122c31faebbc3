"""Lines of the log: what is taken out of each, and what each says of where it comes from."""

from __future__ import annotations

import io
import json
import logging
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog

from polyreel import logs
from polyreel.logs import configure_logs, log_crashes
from polyreel.profiles import load_settings
from polyreel.settings import Settings

Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def configure(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Lines]]:
    """Return what sets logging up as a process does; it returns a reader of the lines."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    monkeypatch.setattr(logs, "_hidden", set())
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)

    def set_up(level: str = "debug", **how: object) -> Lines:
        stream = io.StringIO()
        with monkeypatch.context() as only_here:
            only_here.setattr(sys, "stderr", stream)
            configure_logs(level, "serve", **how)
        return lambda: [json.loads(line) for line in stream.getvalue().splitlines()]

    yield set_up
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.fixture
def settings_with_secrets() -> Settings:
    return load_settings(
        api_keys="team:my-old-vendor-key-0123",
        link_secret="a-link-secret-of-mine",
        key_pepper="a-pepper-nobody-guesses",
        redis_url="redis://:redis-password@queue.internal:6379/0",
        s3={"secret_access_key": "an-aws-secret-access-key"},
        log_prompts=False,
    ).settings


@pytest.mark.parametrize(
    "text",
    [
        "GET /files/a.mp4?exp=1&sig=0123456789abcdef",
        "GET /v3/user?key=0123456789abcdef",
        "Authorization: Bearer 0123456789abcdef",
        "prk_0123456789abcdef" + "x" * 34,
        "whsec_0123456789abcdef",
        "redis://:0123456789abcdef@host",
    ],
)
def test_what_looks_like_a_secret_is_taken_out_of_every_text(configure: Callable[..., Lines], text: str) -> None:
    lines = configure()
    structlog.get_logger().info("x", reason=text)
    logging.getLogger("uvicorn.error").warning("%s", text)
    try:
        raise ValueError(text)
    except ValueError:
        structlog.get_logger().exception("y")
    assert len(lines()) == 3
    assert "0123456789abcdef" not in json.dumps(lines())


def test_the_servers_own_secrets_are_taken_out_wherever_they_turn_up(
    configure: Callable[..., Lines], settings_with_secrets: Settings
) -> None:
    lines = configure(secrets=settings_with_secrets)
    secrets = ["my-old-vendor-key-0123", "a-link-secret-of-mine", "a-pepper-nobody-guesses", "an-aws-secret-access-key"]
    for secret in [*secrets, "redis-password"]:
        structlog.get_logger().info("refused", reason=f"what came was {secret}, at redis://:{secret}@queue.internal")
    assert len(lines()) == 5
    assert not any(secret in json.dumps(lines()) for secret in secrets)
    assert lines()[-1]["reason"].endswith("redis://:***@queue.internal")


def test_a_prompt_is_on_no_line_unless_the_operator_wants_it(configure: Callable[..., Lines]) -> None:
    lines = configure()
    structlog.get_logger().info("job submitted", prompt="a cat", negative_prompt="a dog")
    assert (lines()[0]["prompt"], lines()[0]["negative_prompt"]) == ("***", "***")
    lines = configure(prompts=True)
    structlog.get_logger().info("job submitted", prompt="a cat\nin a hat", negative_prompt="x" * 100_000, key="k")
    [line] = lines()
    assert line["prompt"] == "a cat\\nin a hat"
    assert line["negative_prompt"] == "x" * 500 + "…"
    assert line["key"] == "***"


def test_a_line_below_the_level_is_none_and_costs_no_redaction(
    configure: Callable[..., Lines], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = configure(level="info")
    read: list[str] = []
    monkeypatch.setattr(logs, "redact", lambda text: read.append(text) or text)
    structlog.get_logger().debug("request served", route="/v3/user")
    assert (lines(), read) == ([], [])
    structlog.get_logger().info("request served", route="/v3/user")
    assert [line["route"] for line in lines()] == ["/v3/user"]


def test_what_libraries_and_python_say_is_a_line_like_any_other(configure: Callable[..., Lines]) -> None:
    lines = configure()
    logging.getLogger("some.library").error("it said sig=%s", "0123456789abcdef")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        logging.captureWarnings(True)
        warnings.warn("old: whsec_0123456789abcdef", DeprecationWarning, stacklevel=1)
    assert [line["level"] for line in lines()] == ["error", "warning"]
    assert {line["process"] for line in lines()} == {"serve"}
    assert "0123456789abcdef" not in json.dumps(lines())


def test_a_crash_that_nobody_caught_is_a_line_without_secrets(configure: Callable[..., Lines]) -> None:
    lines = configure()
    log_crashes()
    try:
        raise RuntimeError("Bearer 0123456789abcdef")
    except RuntimeError as err:
        sys.excepthook(RuntimeError, err, err.__traceback__)

    def crash() -> None:
        raise RuntimeError("Bearer 0123456789abcdef")

    thread = threading.Thread(target=crash)
    thread.start()
    thread.join()
    assert [line["event"] for line in lines()] == ["process crashed", "thread crashed"]
    assert all("RuntimeError: Bearer ***" in line["exception"] for line in lines())
