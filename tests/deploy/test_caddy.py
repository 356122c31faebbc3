"""deploy/caddy: https before the API, without holding back what streams."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tests.deploy.tools import program, run

CADDYFILE = "deploy/caddy/Caddyfile"


def handlers(node: Any) -> Iterator[dict[str, Any]]:
    """Yield every handler of Caddy's own form of the file. Any: it is JSON."""
    if isinstance(node, dict):
        if "handler" in node:
            yield node
        for value in node.values():
            yield from handlers(value)
    elif isinstance(node, list):
        for value in node:
            yield from handlers(value)


def adapted(**environment: str) -> dict[str, Any]:
    """Return the file in Caddy's own form. Any: it is JSON."""
    form: dict[str, Any] = json.loads(
        run(program("caddy"), "adapt", "--adapter", "caddyfile", "--config", CADDYFILE, **environment)
    )
    return form


def test_caddy_takes_the_file() -> None:
    run(program("caddy"), "validate", "--adapter", "caddyfile", "--config", CADDYFILE, TLS_HOST="v.example.com")


def test_the_file_is_formatted() -> None:
    run(program("caddy"), "fmt", "--diff", CADDYFILE)


def test_the_host_of_the_environment_is_served_by_the_api() -> None:
    form = adapted(TLS_HOST="video.example.com")
    (public,) = [server for server in form["apps"]["http"]["servers"].values() if server["listen"] == [":443"]]
    (route,) = [route for route in public["routes"] if route["match"][0]["host"] == ["video.example.com"]]
    (proxy,) = [each for each in handlers(route) if each["handler"] == "reverse_proxy"]
    assert proxy["upstreams"] == [{"dial": "server:8000"}]
    assert proxy["flush_interval"] == -1  # events and videos go on as they come


def test_slow_headers_and_large_bodies_are_cut() -> None:
    form = adapted()
    (public,) = [server for server in form["apps"]["http"]["servers"].values() if server["listen"] == [":443"]]
    assert public["read_header_timeout"] == 10_000_000_000  # nanoseconds
    assert [each["max_size"] for each in handlers(form) if each["handler"] == "request_body"] == [25_000_000]


def test_nobody_outside_reads_the_metrics_or_changes_the_configuration() -> None:
    form = adapted()
    refusals = [each for each in handlers(form) if each.get("status_code") == 404]
    assert len(refusals) == 1
    assert '"path": ["/metrics"]' in json.dumps(form)
    assert form["admin"] == {"disabled": True}


def test_the_log_holds_neither_keys_nor_signatures() -> None:
    (encoder,) = [log["encoder"] for log in adapted()["logging"]["logs"].values() if "encoder" in log]
    assert encoder["fields"]["request>headers"] == {"filter": "delete"}
    assert encoder["fields"]["request>uri"]["actions"] == [{"parameter": "sig", "type": "replace", "value": "REDACTED"}]
