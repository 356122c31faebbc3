"""All processes of a server store into one place: who has another one does not start, and says what to do."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from structlog.testing import capture_logs
from typer.testing import CliRunner

from polyreel import storage_marker
from polyreel.cli import app
from polyreel.errors import ConfigurationError, QueueUnavailable, StorageAway, StorageFailed
from polyreel.profiles import load_settings
from polyreel.records import connect
from polyreel.settings import Settings
from polyreel.storage import Storage, connect_storage
from polyreel.storage.local import LocalStorage
from polyreel.storage_marker import adopt, claim, known_of, mark_of
from tests.core.jobs import redis_time


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with connect(redis_url, patient=False) as client:
        yield client


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The name of the machine that the test is on; it may change it."""
    names = ["gpu-1"]
    monkeypatch.setattr("socket.gethostname", lambda: names[-1])
    return names


def at(folder: Path, redis_url: str = "redis://redis.test:6379/0") -> Settings:
    """Return settings that store in a folder, for a Redis that other machines can reach."""
    return load_settings(redis_url=redis_url, state_dir=folder, storage=folder.as_uri()).settings


def storage_of(settings: Settings) -> Storage:
    return connect_storage(settings.storage_url, settings.s3)


def start(client: redis.Redis, settings: Settings, wait_s: float = 0.0) -> None:
    claim(client, storage_of(settings), settings, wait_s)


def test_the_first_process_marks_the_place_and_the_others_find_their_mark(client: redis.Redis, tmp_path: Path) -> None:
    settings = at(tmp_path / "shared")
    start(client, settings)
    known = known_of(client)
    assert known is not None
    assert (tmp_path / "shared" / "polyreel" / "storage-id").read_text() == f"{known.id}\n"
    assert known.place == f"file://{tmp_path}/shared on gpu-1"
    assert known.is_marked
    assert abs(known.since - redis_time(client)) < 60
    assert client.ttl("polyreel:storage") == -1
    start(client, settings)
    assert known_of(client) == known


def test_a_folder_that_machines_share_is_one_place(client: redis.Redis, tmp_path: Path, machine: list[str]) -> None:
    start(client, at(tmp_path / "shared"))
    machine.append("gpu-2")
    (tmp_path / "mounted elsewhere").symlink_to(tmp_path / "shared")
    start(client, at(tmp_path / "mounted elsewhere"))


def test_a_worker_with_a_folder_of_its_own_does_not_start(
    client: redis.Redis, tmp_path: Path, machine: list[str]
) -> None:
    start(client, at(tmp_path / "one"))
    machine.append("gpu-2")
    with pytest.raises(ConfigurationError) as refused:
        start(client, at(tmp_path / "two"), wait_s=0.3)
    assert str(refused.value) == (
        f"storage: the results of this server lie in file://{tmp_path}/one on gpu-1, and file://{tmp_path}/two on "
        "gpu-2 is another place: it does not carry that one's mark. What is stored in one, nobody finds in the other. "
        "Let all machines have the same folder (a shared volume, NFS), or use a bucket (storage: s3://BUCKET/PREFIX). "
        "If results are to be here from now on: polyreel storage adopt."
    )
    assert mark_of(storage_of(at(tmp_path / "two"))) is None, "a refused start leaves nothing"


def test_a_folder_of_another_server_is_refused(client: redis.Redis, tmp_path: Path) -> None:
    start(client, at(tmp_path / "one"))
    client.delete("polyreel:storage")
    start(client, at(tmp_path / "two"))
    with pytest.raises(ConfigurationError, match="it carries the mark of another server"):
        start(client, at(tmp_path / "one"))


def test_a_volume_that_is_not_mounted_is_another_place(client: redis.Redis, tmp_path: Path) -> None:
    """Results would lie under the mount point, and be gone when it is mounted again."""
    folder = tmp_path / "volume"
    start(client, at(folder))
    folder.rename(tmp_path / "not mounted")
    with pytest.raises(ConfigurationError, match="it does not carry that one's mark"):
        start(client, at(folder))


def test_on_one_machine_a_folder_that_was_emptied_is_marked_again(client: redis.Redis, tmp_path: Path) -> None:
    """Who deletes the results of a server on a laptop has not moved them."""
    settings = at(tmp_path / "results", "unix:///state/redis.sock")
    start(client, settings)
    known = known_of(client)
    assert known is not None
    (tmp_path / "results" / "polyreel" / "storage-id").unlink()
    start(client, settings)
    assert mark_of(storage_of(settings)) == known.id
    with pytest.raises(ConfigurationError, match="another place"):
        start(client, at(tmp_path / "other", "unix:///state/redis.sock"))


def test_of_many_that_start_at_once_one_marks_and_none_is_refused(client: redis.Redis, tmp_path: Path) -> None:
    settings, failed = at(tmp_path / "shared"), list[BaseException]()

    def process() -> None:
        try:
            start(client, settings, wait_s=30)
        except BaseException as err:
            failed.append(err)

    threads = [threading.Thread(target=process) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    known = known_of(client)
    assert known is not None
    assert mark_of(storage_of(settings)) == known.id


def test_a_process_on_another_machine_waits_for_the_first_to_write_its_mark(
    client: redis.Redis, tmp_path: Path, machine: list[str]
) -> None:
    storage = storage_of(at(tmp_path / "shared"))
    first = storage_marker.Known("0" * 32, "file:///shared on gpu-1", 0.0, is_marked=False)
    client.set("polyreel:storage", json.dumps(storage_marker.asdict(first)))
    machine.append("gpu-2")
    waiter = threading.Thread(target=start, args=(client, at(tmp_path / "shared"), 30))
    waiter.start()
    storage_marker._put(storage, first.id)
    waiter.join(30)
    assert not waiter.is_alive()


def test_what_the_first_process_left_undone_when_it_died_is_done(client: redis.Redis, tmp_path: Path) -> None:
    settings = at(tmp_path / "shared")
    start(client, settings)
    known = known_of(client)
    assert known is not None
    (tmp_path / "shared" / "polyreel" / "storage-id").unlink()
    client.set("polyreel:storage", json.dumps(storage_marker.asdict(known) | {"is_marked": False}))
    start(client, settings)
    assert known_of(client) == known
    assert mark_of(storage_of(settings)) == known.id


def test_an_emptied_redis_takes_up_the_place_that_was_marked(client: redis.Redis, tmp_path: Path) -> None:
    start(client, at(tmp_path / "results"))
    before = known_of(client)
    client.flushall()
    with capture_logs() as logs:
        start(client, at(tmp_path / "results"))
    after = known_of(client)
    assert before is not None
    assert after is not None
    assert (after.id, after.place) == (before.id, before.place)
    assert [log["event"] for log in logs] == [
        "this Redis knew of no storage and takes up the one that was marked before"
    ]


def test_a_place_is_adopted_and_the_old_one_is_refused_from_then_on(
    client: redis.Redis, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(client, at(tmp_path / "old"))
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setenv("POLYREEL_STORAGE", (tmp_path / "new").as_uri())
    words = ["--state-dir", str(tmp_path / "state")]
    shown = CliRunner().invoke(app, ["storage", "show", *words])
    assert shown.stdout == (
        f"This machine's: file://{tmp_path}/new on gpu-1\nThe server's:   file://{tmp_path}/old on gpu-1\n"
        "They are not the same.\n"
    )
    done = CliRunner().invoke(app, ["storage", "adopt", *words])
    assert done.stdout == f"The server's results lie in file://{tmp_path}/new on gpu-1 from now on.\n"
    start(client, at(tmp_path / "new"))
    with pytest.raises(ConfigurationError, match="another place"):
        start(client, at(tmp_path / "old"))
    assert json.loads(CliRunner().invoke(app, ["storage", "show", "--json", *words]).stdout)["is_same"]
    [entry] = json.loads(CliRunner().invoke(app, ["audit", "--json", *words]).stdout)
    assert (entry["action"], entry["subject"]) == ("storage.adopt", f"file://{tmp_path}/new on gpu-1")
    assert entry["actor"].startswith("command line (")
    assert "storage.adopt" in CliRunner().invoke(app, ["audit", *words]).stdout


def test_a_storage_that_is_away_is_compared_later(client: redis.Redis, tmp_path: Path) -> None:
    class Away(LocalStorage):
        def size(self, key: str) -> int | None:
            raise StorageAway("The storage does not answer.")

    with capture_logs() as logs:
        claim(client, Away(tmp_path), at(tmp_path))
    assert [(log["log_level"], log["reason"]) for log in logs] == [("warning", "The storage does not answer.")]
    assert known_of(client) is None


def test_a_place_that_could_not_be_marked_is_free_for_who_can(
    client: redis.Redis, tmp_path: Path, machine: list[str]
) -> None:
    """A container that is made anew, with the right to write this time, has another name."""

    class ReadOnly(LocalStorage):
        def put(self, source: Path, key: str) -> None:
            raise StorageFailed("The result could not be stored: Permission denied.")

    with capture_logs() as logs:
        claim(client, ReadOnly(tmp_path), at(tmp_path))
    assert [log["reason"] for log in logs] == ["The result could not be stored: Permission denied."]
    assert known_of(client) is None
    machine.append("gpu-2")
    start(client, at(tmp_path))
    known = known_of(client)
    assert known is not None
    assert (known.place, known.id) == (f"file://{tmp_path} on gpu-2", mark_of(LocalStorage(tmp_path)))


def test_who_waits_for_a_mark_that_cannot_be_written_tries_to_write_its_own(
    client: redis.Redis, tmp_path: Path, machine: list[str]
) -> None:
    first = storage_marker.Known("0" * 32, "file:///shared on gpu-1", 0.0, is_marked=False)
    client.set("polyreel:storage", json.dumps(storage_marker.asdict(first)))
    machine.append("gpu-2")
    waiter = threading.Thread(target=start, args=(client, at(tmp_path), 30))
    waiter.start()
    storage_marker._forget(client, first)
    waiter.join(20)
    assert not waiter.is_alive()
    known = known_of(client)
    assert known is not None
    assert (known.place, known.id) == (f"file://{tmp_path} on gpu-2", mark_of(LocalStorage(tmp_path)))


def test_results_in_memory_are_one_processs_own(client: redis.Redis, tmp_path: Path) -> None:
    settings = load_settings(state_dir=tmp_path, storage="memory:").settings
    start(client, settings)
    assert known_of(client) is None
    with pytest.raises(ConfigurationError, match="memory: is no place that processes could share"):
        adopt(client, storage_of(settings), settings)


def test_without_redis_it_says_so(tmp_path: Path) -> None:
    with connect("unix:///nowhere/redis.sock", patient=False) as client, pytest.raises(QueueUnavailable):
        start(client, at(tmp_path))


def test_no_sweep_takes_the_mark(client: redis.Redis, tmp_path: Path) -> None:
    settings = at(tmp_path)
    start(client, settings)
    storage = storage_of(settings)
    assert storage.sweep(4e9) == 0
    assert mark_of(storage) is not None
