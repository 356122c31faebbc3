"""`polyreel keys …`: what scripts read, what people read, and which queue it uses."""

from __future__ import annotations

import fcntl
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from polyreel.broker import queue_of
from polyreel.cli import app
from polyreel.errors import ConfigurationError
from polyreel.key_store import KeyStore, pepper_of
from polyreel.keys import KEY_PATTERN, KeyLimits, key_id
from polyreel.profiles import load_settings
from polyreel.records import connect

Run = Callable[..., Result]


@pytest.fixture
def run(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Call `polyreel keys` with the test's own Redis."""
    monkeypatch.setenv("REDIS_URL", redis_url)
    return lambda *words: CliRunner().invoke(app, ["keys", *words, "--state-dir", str(tmp_path)])


def keys(run: Run) -> list[dict[str, object]]:
    result = run("list", "--json")
    assert result.exit_code == 0
    found: list[dict[str, object]] = json.loads(result.stdout)
    return found


def test_create_prints_the_key_alone_and_the_words_beside_it(run: Run) -> None:
    result = run("create", "alice")
    assert result.exit_code == 0
    assert re.fullmatch(KEY_PATTERN + r"\n", result.stdout)
    assert result.stderr == (
        f"The key {key_id(result.stdout.strip())} of alice: read, submit; no limits. "
        "It is shown this once; who loses it makes another.\n"
    )


def test_every_flag_is_kept(run: Run) -> None:
    result = run(
        "create",
        "team.video",
        "--scopes=admin, read",
        "--requests-per-minute=60",
        "--max-queued=20",
        "--max-running=2",
        "--gpu-seconds-per-day=3600",
        "--models=ltx-tiny,atelier",
        "--expires=30d",
        "--retention=1d",
        "--json",
    )
    made = json.loads(result.stdout)
    text = made.pop("key")
    assert key_id(text) == made["id"]
    assert (made["owner"], made["scopes"]) == ("team.video", ["admin", "read"])
    assert KeyLimits.from_dict(made["limits"]) == KeyLimits(60, 20, 2, 3600.0, ("ltx-tiny", "atelier"), 86400.0)
    assert made["expires_at"] - made["created_at"] == pytest.approx(30 * 86400, abs=1)
    assert keys(run) == [made | {"state": "active"}]
    assert text not in run("list", "--json").stdout


def test_the_table_says_what_people_want_to_know(run: Run) -> None:
    made = json.loads(run("create", "alice", "--max-running=2", "--json").stdout)
    run("create", "bob", "--expires=12h")
    run("revoke", made["id"])
    heading, first, second = run("list").stdout.splitlines()
    assert heading.split() == ["id", "owner", "scopes", "limits", "state", "made", "last", "used"]
    assert first.split()[:6] == [made["id"], "alice", "read,", "submit", "max_running", "2"]
    assert re.search(r"revoked +\d{4}-\d\d-\d\d \d\d:\d\d UTC +never", first)
    assert re.search(r"no limits +until \d{4}-\d\d-\d\d \d\d:\d\d UTC", second)


def test_a_key_is_revoked_by_its_id(run: Run) -> None:
    made = json.loads(run("create", "alice", "--json").stdout)
    assert run("revoke", made["id"]).stdout == f"The key {made['id']} of alice is revoked.\n"
    assert [key["state"] for key in keys(run)] == ["revoked"]
    assert json.loads(run("revoke", made["id"], "--json").stdout)["revoked_at"] > 0


def test_a_rotated_key_stays_good_for_a_day_unless_said_otherwise(run: Run) -> None:
    made = json.loads(run("create", "alice", "--max-queued=3", "--json").stdout)
    result = run("rotate", made["id"])
    assert re.fullmatch(KEY_PATTERN + r"\n", result.stdout)
    old, new = keys(run)
    assert (new["account"], new["limits"]) == (old["account"], {"max_queued": 3})
    assert old["expires_at"] - new["created_at"] == pytest.approx(86400, abs=1)
    run("rotate", str(new["id"]), "--overlap=0s")
    assert [key["state"] for key in keys(run)] == ["active", "expired", "active"]


WRONG = [
    (["create", "a b"], "NAME must be 1 to 64 letters"),
    (
        ["create", "a", "--scopes=reed"],
        "--scopes: there is no scope 'reed'. Did you mean read? Scopes: submit, read",
    ),
    (["create", "a", "--scopes=,"], "--scopes: name one or more of submit, read, admin."),
    (
        ["create", "a", "--models=ltx-tny"],
        "--models: 'ltx-tny' is no name of the catalogue. Did you mean ltx-tiny? It has atelier, ltx-tiny, "
        "animatediff-tiny. If the server runs with another profile, name it: --config.",
    ),
    (["create", "a", "--models="], "--models: name one or more models of the catalogue, or leave it out for all."),
    (["create", "a", "--expires=soon"], "--expires: write a whole number and s, m, h or d, such as 24h or 30d."),
    (["create", "a", "--expires=0d"], "--expires: write a whole number"),
    (["create", "a", "--retention=0h"], "--retention: write a whole number"),
    (["create", "a", "--retention=a week"], "--retention: write a whole number"),
    (["rotate", "abcdefgh", "--overlap=-1h"], "--overlap: write a whole number"),
    (["revoke", "abcdefgh"], "No key has this id; `polyreel keys list` shows them all."),
]


@pytest.mark.parametrize(("words", "message"), WRONG, ids=[" ".join(words) for words, _ in WRONG])
def test_what_is_wrong_is_named(run: Run, words: list[str], message: str) -> None:
    result = run(*words)
    assert isinstance(result.exception, ConfigurationError)
    assert message in str(result.exception)
    assert keys(run) == []


@pytest.mark.parametrize("flag", ["--requests-per-minute", "--max-queued", "--max-running", "--gpu-seconds-per-day"])
def test_a_limit_is_at_least_one(run: Run, flag: str) -> None:
    assert run("create", "alice", f"{flag}=0").exit_code == 2
    assert keys(run) == []


def test_a_redis_that_does_not_answer_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "unix:///nowhere/redis.sock")
    result = run("create", "alice")
    assert isinstance(result.exception, ConfigurationError)
    said = str(result.exception)
    assert said.startswith("redis_url: the Redis at /nowhere/redis.sock cannot be used: Error 2 connecting to ")
    assert "Start it, or set REDIS_URL=redis://HOST:6379/0 to one that answers" in said


def test_where_nothing_runs_the_state_folders_queue_is_started_for_the_moment(tmp_path: Path) -> None:
    state_dir = tmp_path / "state"
    words = ["--state-dir", str(state_dir), "--json"]
    made = json.loads(CliRunner().invoke(app, ["keys", "create", "alice", *words]).stdout)
    [kept] = json.loads(CliRunner().invoke(app, ["keys", "list", *words]).stdout)
    assert kept["id"] == made["id"]
    settings = load_settings(state_dir=state_dir).settings
    with queue_of(state_dir) as url:
        # Now it runs, as under `polyreel up`: the running one is used, since two would lose each other's keys.
        CliRunner().invoke(app, ["keys", "create", "bob", *words])
        with connect(url, patient=False) as client:
            assert [key.owner for key in KeyStore(client, pepper_of(settings)).all()] == ["alice", "bob"]


def test_where_another_queue_is_in_use_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polyreel.broker._SOON_S", 0.1)
    (tmp_path / "queue").mkdir()
    with (tmp_path / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = CliRunner().invoke(app, ["keys", "list", "--state-dir", str(tmp_path)])
    assert isinstance(result.exception, ConfigurationError)
    assert str(result.exception) == (
        f"redis_url: polyreel up uses {tmp_path} with another queue than the embedded one, or that does not answer. "
        "Set REDIS_URL as it has it."
    )
