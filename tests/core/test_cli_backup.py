"""`polyreel backup`, `restore` and `migrate`: what they print, and their exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from polyreel.audit import entries
from polyreel.cli import app
from polyreel.errors import ConfigurationError
from polyreel.job import JobStatus
from polyreel.queue import Queue
from polyreel.state_lock import state_lock
from tests.core.jobs import open_queue, queued, take
from tests.core.test_upgrade import version_1

Run = Callable[..., Result]


@pytest.fixture
def run(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Call `polyreel` with the test's own Redis."""
    monkeypatch.setenv("REDIS_URL", redis_url)
    return lambda *words: CliRunner().invoke(app, [*words, "--state-dir", str(tmp_path / "state")])


@pytest.fixture
def queue(redis_url: str) -> Iterator[Queue]:
    queue = open_queue(redis_url)
    yield queue
    queue.records.client.close()


def test_a_backup_is_put_back_with_one_word(run: Run, queue: Queue, tmp_path: Path) -> None:
    client = queue.records.client
    queue.submit(queued())
    file = tmp_path / "b.tar.gz"
    made = run("backup", str(file), "--json")
    assert made.exit_code == 0, made.output
    said = json.loads(made.stdout)
    assert (said["manifest"]["jobs"], said["files"], said["bytes"]) == ({"queued": 1}, 0, file.stat().st_size)
    assert [entry.action for entry in entries(client, 5)] == ["backup.create"]
    client.close()
    refused = run("restore", str(file))
    assert isinstance(refused.exception, ConfigurationError)
    assert "not empty" in str(refused.exception)
    client.flushall()
    client.close()
    done = run("restore", str(file), "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["keys"] == said["manifest"]["keys"]
    assert len(queue.records.open_ids()) == 1
    assert entries(client, 1)[0].action == "backup.restore"


def test_words_for_people_say_what_is_in_it(run: Run, queue: Queue, tmp_path: Path) -> None:
    queue.submit(queued())
    shown = run("backup", str(tmp_path / "b.tar")).stdout
    assert "(jobs: 1 queued)" in shown
    assert "0 results of 0.0 MB. Writes were held for " in shown
    queue.records.client.flushall()
    queue.records.client.close()
    assert "0 jobs that ran wait again. 0 results verified." in run("restore", str(tmp_path / "b.tar")).stdout


def test_what_a_record_names_and_is_not_there_ends_with_1(run: Run, queue: Queue, tmp_path: Path) -> None:
    taken = take(queue)
    output = {"key": "out/a/1/a.gif", "format": "gif", "media_type": "image/gif", "bytes": 1, "height": 1, "width": 1}
    output |= {"num_frames": 1, "fps": 8.0, "sha256": "0" * 64}
    queue.records.advance(taken.job_id, taken.fence, JobStatus.SUCCEEDED, outputs=[output])
    run("backup", str(tmp_path / "b.tar"))
    queue.records.client.flushall()
    queue.records.client.close()
    done = run("restore", str(tmp_path / "b.tar"))
    assert done.exit_code == 1
    assert "1 results are missing: out/a/1/a.gif" in done.stderr


def test_nothing_is_restored_into_a_state_folder_that_is_in_use(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("backup", str(tmp_path / "b.tar"))
    monkeypatch.delenv("REDIS_URL")
    with state_lock(tmp_path / "state") as is_mine:
        assert is_mine
        refused = run("restore", str(tmp_path / "b.tar"))
    assert str(refused.exception) == f"state_dir: polyreel up runs on {tmp_path / 'state'}; stop it first."


def test_migrate_says_by_its_exit_code_whether_there_is_something_to_do(run: Run, queue: Queue) -> None:
    client = queue.records.client
    assert run("migrate", "--check").exit_code == 0
    version_1(client, 1)
    looked = run("migrate", "--check", "--json")
    assert (looked.exit_code, json.loads(looked.stdout)["to_migrate"]) == (1, 1)
    assert "To bring up to date: 1 (polyreel migrate)" in run("migrate", "--check").stdout
    assert json.loads(run("migrate", "--check", "--json").stdout)["records"] == {"1": 1}, "looking changed nothing"
    done = run("migrate", "--json")
    assert (done.exit_code, json.loads(done.stdout)["migrated"]) == (0, 1)
    assert entries(client, 1)[0].action == "records.migrate"
    queue.records.client.hset(f"polyreel:job:{queue.submit(queued()).job.id}", "schema", "9")
    newer = run("migrate", "--check")
    assert (newer.exit_code, "1 unfinished jobs are of a newer polyreel" in newer.stderr) == (2, True)
