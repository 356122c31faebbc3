"""Common misconfigurations, each made as a user makes it: the message names the setting, what came and what to do.

The exit code is 2 and there is no traceback. A secret is never quoted.
"""

from __future__ import annotations

import importlib
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import redis

from polyreel import cli, cli_config, logs, processes, tracing
from polyreel.broker import start_embedded
from polyreel.errors import ConfigurationError
from polyreel.redis_fitness import check_redis
from polyreel.state_lock import state_lock
from polyreel.supervisor import Supervisor
from tests.core.misconfigurations import CASES, SECRET, Case


@pytest.fixture
def polyreel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Case], tuple[object, Case]]]:
    """Run a command line in this process, the processes that it becomes among it; none may come to run anything."""
    for module, name in ((logs, "configure_logs"), (logs, "log_crashes"), (tracing, "configure_tracing")):
        monkeypatch.setattr(module, name, lambda *_, **__: None)  # they are for whole processes
    monkeypatch.setattr(processes.setproctitle, "setproctitle", lambda _: None)
    monkeypatch.setattr(Supervisor, "_run", lambda _: pytest.fail("it was started"))

    def become(_: str, words: list[str]) -> None:
        module = importlib.import_module(words[3])
        entrance = module if hasattr(module, "main") else importlib.import_module(f"{words[3]}.__main__")
        sys.exit(entrance.main(words[4:]))

    def check_here(process: str, flags: list[str]) -> None:
        importlib.import_module(processes.PROCESS_MODULES[process]).check(*flags_of(flags))

    monkeypatch.setattr(os, "execv", become)
    monkeypatch.setattr(cli_config, "_pass", check_here)  # in two processes of their own, which takes seconds
    with ExitStack() as stack:
        stack.enter_context(patch.dict(os.environ))  # a worker sets some for its libraries
        taken = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        stack.enter_context(state_lock(tmp_path / "used"))
        (tmp_path / "file").touch()

        names = {"{tmp}": str(tmp_path), "{port}": str(taken.getsockname()[1])}

        def run(case: Case) -> tuple[object, Case]:
            words = case.words.split()
            if case.yaml:
                below = "" if case.yaml.startswith(("-", "extends")) else "extends: tiny\n"
                (tmp_path / "my.yaml").write_text(filled(below + case.yaml + "\n", names))
                words += ["--config", str(tmp_path / "my.yaml")]
            for name, value in case.environment.items():
                monkeypatch.setenv(name, value)
            monkeypatch.setattr(sys, "argv", ["polyreel", *(filled(word, names) for word in words)])
            with pytest.raises(SystemExit) as ended:
                cli.main()
            shown = replace(case, value=filled(case.value, names))
            return ended.value.code, shown

        yield run


def filled(text: str, names: dict[str, str]) -> str:
    for name, value in names.items():
        text = text.replace(name, value)
    return text


def flags_of(flags: list[str]) -> tuple[str | None, Path | None]:
    """Return --config and --state-dir."""
    given = dict(flag.removeprefix("--").split("=", 1) for flag in flags)
    return given.get("config"), Path(given["state-dir"]) if "state-dir" in given else None


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Redis that wants a password, without one."""
    broker = start_embedded(tmp_path_factory.mktemp("locked"))
    with redis.Redis.from_url(broker.url) as client:
        client.config_set("requirepass", "the right one")
    yield broker.url
    broker.stop()


@pytest.mark.parametrize("words", ["keys list", "serve --port 0", "courier", "audit"])
@pytest.mark.parametrize("query", ["", f"?password={SECRET}"])
def test_a_wrong_password_of_redis_is_told_without_it(
    polyreel: Callable[[Case], tuple[object, Case]],
    capfd: pytest.CaptureFixture[str],
    locked: str,
    words: str,
    query: str,
) -> None:
    case = Case("", words, "redis_url", "", "", environment={"REDIS_URL": locked + query})
    assert polyreel(case)[0] == 2
    said = capfd.readouterr().err
    assert f"redis_url: the Redis at {locked.removeprefix('unix://')} cannot be used: it wants another password" in said
    assert "Set REDIS_URL=redis://USER:PASSWORD@HOST:6379/0 with the right ones" in said
    assert SECRET not in said
    assert "Traceback" not in said


def test_a_database_that_redis_does_not_have_is_told(
    polyreel: Callable[[Case], tuple[object, Case]], capfd: pytest.CaptureFixture[str], redis_url: str
) -> None:
    assert polyreel(Case("", "keys list", "", "", "", environment={"REDIS_URL": f"{redis_url}?db=99"}))[0] == 2
    said = capfd.readouterr().err
    assert "cannot be used: DB index is out of range. Set REDIS_URL to a database that it has" in said


def test_a_redis_that_is_away_or_says_nothing_of_itself_ends_no_start(redis_url: str) -> None:
    check_redis("redis://127.0.0.1:1/0")
    check_redis(redis_url)
    with redis.Redis.from_url(redis_url) as client:
        client.acl_setuser("quiet", enabled=True, nopass=True, commands=["+@all", "-info"], keys="*")
        check_redis(f"{redis_url}?username=quiet&password=any")
        client.acl_deluser("quiet")


def test_a_redis_that_is_too_old_is_told(monkeypatch: pytest.MonkeyPatch, redis_url: str) -> None:
    monkeypatch.setattr(redis.Redis, "info", lambda *_: {"redis_version": "6.2.7"})
    with pytest.raises(ConfigurationError, match=r"redis_url: the Redis at .* is 6\.2\.7\. Use Redis 7 or newer"):
        check_redis(redis_url)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.about)
def test_a_misconfiguration_is_told_with_its_setting_its_value_and_its_cure(
    polyreel: Callable[[Case], tuple[object, Case]], capfd: pytest.CaptureFixture[str], case: Case
) -> None:
    code, case = polyreel(case)
    said = capfd.readouterr()
    assert code == 2
    assert case.setting in said.err
    assert case.value in said.err
    assert case.fix in said.err
    assert SECRET not in said.err + said.out
    assert "Traceback" not in said.err + said.out
