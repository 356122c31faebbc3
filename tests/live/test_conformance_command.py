"""`polyreel conformance` against a whole server, as an operator runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import LiveServer

pytestmark = pytest.mark.slow


def conformance(base_url: str, key: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "polyreel", "conformance", "--base-url", base_url, *arguments]
    environment = {**os.environ, "CONFORMANCE_KEY": key, "COLUMNS": "200"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250, check=False)


def test_our_server_conforms_to_every_contract(live: LiveServer) -> None:
    done = conformance(live.base_url, live.key, "--json")
    findings = json.loads(done.stdout)
    assert [one for found in findings.values() for one in found if not one["conforms"]] == []
    assert sorted(findings) == ["huggingface", "modelslab", "native", "novita", "openai", "universal"]
    assert done.returncode == 0, done.stderr


def test_the_table_says_what_does_not_conform_and_not_the_key(live: LiveServer) -> None:
    done = conformance(live.base_url, "no-key-of-this-server", "--dialect", "novita")
    assert done.returncode == 1
    assert "NO  no prompts: HTTP status" in done.stdout
    assert "ok  a wrong key: HTTP status" in done.stdout
    assert done.stdout.rstrip().endswith("conform")
    assert "no-key-of-this-server" not in done.stdout + done.stderr


def test_a_server_that_is_not_there_conforms_in_nothing() -> None:
    done = conformance("http://127.0.0.1:9", "any-key-0123456789", "--dialect", "huggingface")
    assert done.returncode == 1
    assert "no answer (ConnectError)" in done.stdout
