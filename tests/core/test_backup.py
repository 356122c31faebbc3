"""A backup taken from a server at work, put back elsewhere: what was promised before still holds."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import redis
from pydantic import SecretStr

import polyreel.restore
from polyreel.backup import back_up
from polyreel.broker import EmbeddedBroker, start_embedded
from polyreel.errors import ConfigurationError
from polyreel.job import JobStatus, Output, attempt_key
from polyreel.key_store import KeyStore, pepper_of
from polyreel.keys import digest_of
from polyreel.links import link_signer
from polyreel.profiles import load_settings
from polyreel.queue import Queue
from polyreel.records import connect
from polyreel.redis_copy import open_copier, read_entries
from polyreel.restore import CLIENT_NAME, Restored, restore
from polyreel.settings import Settings
from polyreel.signing import load_signer
from polyreel.storage.local import LocalStorage
from polyreel.storage.memory import MemoryStorage
from polyreel.terms import Terms
from tests.core.jobs import assert_all_adds_up, claim, open_queue, order, queued, read, take


@pytest.fixture(scope="module")
def _other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedBroker]:
    broker = start_embedded(tmp_path_factory.mktemp("other"))
    yield broker
    broker.stop()


@pytest.fixture
def there(_other: EmbeddedBroker, tmp_path: Path) -> Settings:
    """Another server: an empty Redis, an empty state folder."""
    with redis.Redis.from_url(_other.url) as client:
        client.flushall()
    return load_settings(redis_url=_other.url, state_dir=tmp_path / "there").settings


@pytest.fixture
def here(redis_url: str, tmp_path: Path) -> Settings:
    return load_settings(redis_url=redis_url, state_dir=tmp_path / "here").settings


@pytest.fixture
def queue(here: Settings) -> Iterator[Queue]:
    assert here.redis_url
    queue = open_queue(here.redis_url.get_secret_value(), retention_s=600)
    yield queue
    queue.records.client.close()


def url_of(settings: Settings) -> str:
    assert settings.redis_url
    return settings.redis_url.get_secret_value()


def storage_of(settings: Settings) -> LocalStorage:
    return LocalStorage(settings.state_dir / "results")


def save(settings: Settings, path: Path, **options: bool) -> Path:
    with open_copier(url_of(settings), CLIENT_NAME) as client:
        back_up(path, client, storage_of(settings), settings, **options)
    return path


def put_back(settings: Settings, path: Path, **options: bool) -> Restored:
    with open_copier(url_of(settings), CLIENT_NAME) as client:
        return restore(path, client, storage_of(settings), settings, **options)


def finish(queue: Queue, settings: Settings, content: bytes, **fields: object) -> str:
    """Run a job to its end, with one file of this content."""
    taken = take(queue, **fields)
    job = read(queue, taken.job_id).job
    key = attempt_key(job.output_keys[0], taken.fence)
    settings.state_dir.mkdir(exist_ok=True)
    source = settings.state_dir / "made"
    source.write_bytes(content)
    storage_of(settings).put(source, key)
    digest = hashlib.sha256(content).hexdigest()
    output = Output(key, "gif", "image/gif", len(content), 64, 96, 9, 8.0, digest)
    assert queue.records.advance(taken.job_id, taken.fence, JobStatus.SUCCEEDED, outputs=[asdict(output)], progress=100)
    return job.id


def test_all_that_was_promised_holds_elsewhere(queue: Queue, here: Settings, there: Settings, tmp_path: Path) -> None:
    client = queue.records.client
    keys = KeyStore(client, pepper_of(here))
    text, key = keys.create("alice")
    done = finish(queue, here, b"a video", vendor={"note": "caf\u00e9 \u0000"})
    number = read(queue, done).number
    link = link_signer(here).path(read(queue, done).job.output_keys[0], time.time() + 500)
    running = take(queue, webhook="https://receiver.example/hook").job_id
    waiting = [
        queue.submit(queued(), Terms(idempotency_key="again", digest="d")).job.id,
        queue.submit(queued(owner="bob"), Terms(lane="bulk")).job.id,
    ]
    secrets_before = load_signer(here).secrets_of("alice")

    archive = save(here, tmp_path / "b.tar.gz")
    assert archive.stat().st_mode & 0o777 == 0o600
    restored = put_back(there, archive)

    assert restored.manifest.jobs == {"succeeded": 1, "loading": 1, "queued": 2}
    assert (restored.files, restored.verified, restored.missing, restored.damaged) == (1, 1, [], [])
    assert (restored.requeued, restored.expired) == (1, 0)
    other = open_queue(url_of(there), retention_s=600)
    with other.records.client as elsewhere:
        assert elsewhere.get(f"polyreel:number:{number}") == done
        assert read(other, done).job == read(queue, done).job
        assert 0 < elsewhere.ttl(f"polyreel:job:{done}") <= 600
        with storage_of(there).open(read(other, done).job.outputs[0].key) as file:
            assert file.read() == b"a video"
        path, _, query = link.partition("?")
        parts = dict(part.split("=") for part in query.split("&"))
        assert link_signer(there).is_valid(path.removeprefix("/files/"), parts["exp"], parts["sig"])
        assert load_signer(there).secrets_of("alice") == secrets_before
        [found] = KeyStore(elsewhere, pepper_of(there)).all()
        assert (found, found.owner) == (key, "alice")
        assert elsewhere.hget(f"polyreel:key:{key.id}", "digest") == digest_of(pepper_of(there), text)
        assert order(elsewhere)[0] == running, "it waits before all others"
        assert other.submit(queued(), Terms(idempotency_key="again", digest="d")).job.id == waiting[0]
        assert_all_adds_up(elsewhere)
        [first] = claim(other, "two")
        assert (first.job_id, read(other, running).job.attempts) == (running, 1)
        assert sorted(one.job_id for _ in range(2) for one in claim(other, "two")) == sorted(waiting)
        assert other.records.advance(running, first.fence, JobStatus.SUCCEEDED, progress=100)
        assert elsewhere.zcard("polyreel:webhooks") == 1


def test_a_copy_is_of_one_moment_and_writers_wait_for_it(queue: Queue, here: Settings) -> None:
    """A submit writes ten keys in one step: of each job, all of them are in the copy or none."""
    stop, made = threading.Event(), []

    def submit() -> None:
        with connect(url_of(here), patient=True):
            writer = open_queue(url_of(here), patient=True, max_open=100_000)
            with writer.records.client:
                while not stop.is_set():
                    made.append(writer.submit(queued()).job.id)

    thread = threading.Thread(target=submit)
    thread.start()
    while len(made) < 20:
        time.sleep(0.001)
    with open_copier(url_of(here), CLIENT_NAME) as client:
        entries = {entry["key"]: entry for entry in read_entries(client)}
    stop.set()
    thread.join(60)
    records = {key.removeprefix("polyreel:job:") for key in entries if key.startswith("polyreel:job:")}
    assert len(records) >= 20
    assert {name for name, _ in entries["polyreel:open"]["value"]} == records
    assert {name for name, _ in entries["polyreel:ready:ltx-tiny"]["value"]} == records
    assert set(entries["rq:queue:ltx-tiny"]["value"]) == records
    assert int(entries["polyreel:counts"]["value"]["submitted"]) == len(records)


def test_every_type_of_value_is_the_same_after_a_restore(here: Settings, there: Settings, tmp_path: Path) -> None:
    with redis.Redis.from_url(url_of(here)) as raw:
        raw.set("polyreel:bytes", b"\x00\xff\xfe text \xc3\xa9")
        raw.hset("polyreel:hash", mapping={b"\xff": b"\x80" * 3, "n": 1.5})
        raw.rpush("polyreel:list", *range(1200))
        raw.sadd("polyreel:set", "a", "b")
        raw.zadd("polyreel:zset", {"x": 1 / 3, "y": 2**53 - 1, "z": float("-inf")})
        raw.xadd("polyreel:audit", {"actor": "alice"}, id="1764028800000-3")
        raw.set("polyreel:soon", "gone", px=1)
        raw.set("polyreel:later", "kept", ex=500)
        raw.set("polyreel:worker:one", "lives", ex=15)
        raw.set("somebody:else", "not ours")
        time.sleep(0.01)
        archive = save(here, tmp_path / "b.tar")
        names = ["bytes", "hash", "list", "set", "zset", "audit"]
        before = [raw.dump(f"polyreel:{name}") for name in names]
        put_back(there, archive)
        with redis.Redis.from_url(url_of(there)) as other:
            assert [other.dump(f"polyreel:{name}") for name in names[:1]] == before[:1]
            assert other.hgetall("polyreel:hash") == raw.hgetall("polyreel:hash")
            assert other.lrange("polyreel:list", 0, -1) == raw.lrange("polyreel:list", 0, -1)
            assert other.smembers("polyreel:set") == {b"a", b"b"}
            assert other.zrange("polyreel:zset", 0, -1, withscores=True) == [
                (b"z", float("-inf")),
                (b"x", 1 / 3),
                (b"y", 2.0**53 - 1),
            ]
            assert other.xrange("polyreel:audit") == [(b"1764028800000-3", {b"actor": b"alice"})]
            assert abs(other.pttl("polyreel:later") - raw.pttl("polyreel:later")) < 5000
            assert other.exists("polyreel:soon", "polyreel:worker:one", "somebody:else") == 0


def test_what_has_expired_since_is_left_out(
    here: Settings, there: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with redis.Redis.from_url(url_of(here)) as raw:
        raw.set("polyreel:short", "x", ex=500)
        raw.set("polyreel:long", "x", ex=5000)
        archive = save(here, tmp_path / "b.tar")
    now_ms = polyreel.restore._now_ms
    monkeypatch.setattr(polyreel.restore, "_now_ms", lambda client: now_ms(client) + 501_000)
    restored = put_back(there, archive)
    assert (restored.keys, restored.expired) == (1, 1)


def test_a_file_that_is_missing_or_another_is_told(
    queue: Queue, here: Settings, there: Settings, tmp_path: Path
) -> None:
    gone, other = finish(queue, here, b"one"), finish(queue, here, b"two")
    good = finish(queue, here, b"three")
    missing, damaged = (read(queue, job).job.outputs[0].key for job in (gone, other))
    storage_of(here).delete(missing)
    storage_of(here).path(damaged).write_bytes(b"tow")
    restored = put_back(there, save(here, tmp_path / "b.tar.gz"))
    assert (restored.verified, restored.missing, restored.damaged) == (1, [missing], [damaged])
    assert good


def test_without_results_there_is_nothing_to_verify(
    queue: Queue, here: Settings, there: Settings, tmp_path: Path
) -> None:
    finish(queue, here, b"one")
    restored = put_back(there, save(here, tmp_path / "b.tar.gz", results=False))
    assert (restored.files, restored.verified, restored.missing) == (0, 0, [])
    assert restored.manifest.has_results is False


def test_results_keep_their_age(queue: Queue, here: Settings, there: Settings, tmp_path: Path) -> None:
    job = finish(queue, here, b"one")
    key = read(queue, job).job.outputs[0].key
    os.utime(storage_of(here).path(key), (1_700_000_000, 1_700_000_000))
    put_back(there, save(here, tmp_path / "b.tar.gz"))
    assert int(storage_of(there).path(key).stat().st_mtime) == 1_700_000_000


def test_what_is_there_is_not_written_over_unless_forced(
    queue: Queue, here: Settings, there: Settings, tmp_path: Path
) -> None:
    job = queue.submit(queued()).job.id
    link_signer(here)
    archive = save(here, tmp_path / "b.tar.gz")
    with redis.Redis.from_url(url_of(there), decode_responses=True) as other:
        other.set("polyreel:old", "1")
        other.close()
        with pytest.raises(ConfigurationError, match="not empty"):
            put_back(there, archive)
        other.delete("polyreel:old")
        other.close()
        (there.state_dir / "link-secret").parent.mkdir(parents=True, exist_ok=True)
        (there.state_dir / "link-secret").write_bytes(b"another")
        with pytest.raises(ConfigurationError, match="another secret than that of the backup"):
            put_back(there, archive)
        assert other.dbsize() == 0
        other.set("polyreel:old", "1")
        other.close()
        put_back(there, archive, force=True)
        assert other.exists("polyreel:old") == 0
        assert other.exists(f"polyreel:job:{job}") == 1
    assert (there.state_dir / "link-secret").read_bytes() == (here.state_dir / "link-secret").read_bytes()


def test_nothing_is_restored_under_processes_that_live(
    queue: Queue, here: Settings, there: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("polyreel.restore._LINGER_S", 0.0)
    archive = save(here, tmp_path / "b.tar.gz")
    with connect(url_of(there), patient=False) as living:
        living.ping()
        for force in (False, True):
            with pytest.raises(ConfigurationError, match="1 connections of polyreel's processes are open"):
                put_back(there, archive, force=force)
    put_back(there, archive)


def rewritten(archive: Path, change: Callable[[str, bytes], list[tuple[tarfile.TarInfo | str, bytes]]]) -> Path:
    """Return a copy of an archive, each of whose members `change` has replaced by others."""
    path = archive.with_name("changed.tar")
    with tarfile.open(archive) as old, tarfile.open(path, "w") as new:
        for member in old:
            file = old.extractfile(member)
            assert file
            for name, content in change(member.name, file.read()):
                info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
                info.size = len(content)
                new.addfile(info, io.BytesIO(content))
    return path


def link(name: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return member


FOREIGN = b'{"key": "other", "type": "string", "value": ""}\n'

HOSTILE: dict[str, Callable[[str, bytes], list[tuple[tarfile.TarInfo | str, bytes]]]] = {
    "a way up": lambda n, c: [(n, c), *([("results/../../x", b"x")] if n == "redis.jsonl" else [])],
    "an absolute path": lambda n, c: [(n, c), *([("/etc/x", b"x")] if n == "redis.jsonl" else [])],
    "a strange secret": lambda n, c: [(n, c), *([("secrets/id_rsa", b"x")] if n == "redis.jsonl" else [])],
    "a link": lambda n, c: [(n, c), *([(link("results/out/a/a.mp4"), b"")] if n == "redis.jsonl" else [])],
    "no manifest": lambda n, c: [] if n == "manifest.json" else [(n, c)],
    "no end": lambda n, c: [] if n == "complete.json" else [(n, c)],
    "a result too few": lambda n, c: [] if n.startswith("results/") else [(n, c)],
    "a foreign key": lambda n, c: [
        (n, c + b'{"key": "other", "type": "string", "value": ""}\n' * (n == "redis.jsonl"))
    ],
    "other records": lambda n, c: [(n, c.replace(b"alice", b"mallo") if n == "redis.jsonl" else c)],
    "a newer form": lambda n, c: [(n, c.replace(b'"format": 1', b'"format": 2'))],
    "newer records": lambda n, c: [(n, c.replace(b'"schema": 3', b'"schema": 4') if n == "manifest.json" else c)],
    "no JSON": lambda n, c: [(n, b"{" if n == "manifest.json" else c)],
}


@pytest.fixture
def archive(queue: Queue, here: Settings, tmp_path: Path) -> Path:
    finish(queue, here, b"a video")
    return save(here, tmp_path / "b.tar")


@pytest.mark.parametrize("hostile", HOSTILE)
def test_an_archive_that_is_no_backup_of_ours_changes_nothing(archive: Path, there: Settings, hostile: str) -> None:
    with pytest.raises(ConfigurationError):
        put_back(there, rewritten(archive, HOSTILE[hostile]), force=True)
    with redis.Redis.from_url(url_of(there)) as other:
        assert other.dbsize() == 0
    assert list(there.state_dir.rglob("*.mp4")) == []


def test_an_unchanged_copy_of_an_archive_is_one(archive: Path, there: Settings) -> None:
    assert put_back(there, rewritten(archive, lambda n, c: [(n, c)])).verified == 1


@pytest.mark.parametrize("part", [0.0, 0.3, 0.6, 0.9])
def test_an_archive_that_was_cut_off_changes_nothing(archive: Path, there: Settings, part: float) -> None:
    content = gzip.compress(archive.read_bytes())
    cut = archive.with_name("cut.tar.gz")
    cut.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(ConfigurationError):
        put_back(there, cut)
    with redis.Redis.from_url(url_of(there)) as other:
        assert other.dbsize() == 0


def test_a_backup_writes_over_no_file_and_needs_a_name_that_says_what_it_is(here: Settings, tmp_path: Path) -> None:
    (tmp_path / "b.tar").write_text("mine")
    for name, message in (
        ("b.tar", "exists; name a new file"),
        ("b.zip", "ends in .tar.gz or .tar"),
        ("no/b.tar", "No such file"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            save(here, tmp_path / name)
    assert (tmp_path / "b.tar").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ""] == ["b.tar"]


def test_what_a_backup_has_not_is_said(here: Settings, tmp_path: Path) -> None:
    given = here.model_copy(update={"link_secret": SecretStr("s" * 20), "storage": "s3://bucket/p"})
    with open_copier(url_of(here), CLIENT_NAME) as client:
        done = back_up(tmp_path / "b.tar", client, MemoryStorage(), given)
    assert [note.partition(" ")[2].partition(" and ")[0] for note in done.notes] == [
        "secrets of the settings (link_secret) are not in it: keep them with the settings.",
        "results are in s3://bucket/p",
    ]
    assert done.manifest.has_results is False
    assert json.loads(json.dumps(asdict(done)))["files"] == 0
