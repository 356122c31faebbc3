"""The secrets that machines share: made once, in Redis, begun with those of an older version, and never made up."""

from __future__ import annotations

import base64
import secrets
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis
from structlog.testing import capture_logs

from polyreel.errors import ConfigurationError, QueueUnavailable
from polyreel.key_store import KeyStore, pepper_of
from polyreel.keys import digest_of
from polyreel.links import link_signer
from polyreel.profiles import load_settings
from polyreel.records import connect
from polyreel.settings import Settings
from polyreel.shared_secrets import Name, redis_name, shared_secret
from polyreel.signing import load_signer

NAMES: tuple[Name, ...] = ("link", "pepper", "webhook")
FILES = {"link": "link-secret", "pepper": "pepper", "webhook": "webhook-secret"}


def machine(redis_url: str, state_dir: Path, **given: object) -> Settings:
    """Return the settings of one machine of a server: the same Redis, a disk of its own."""
    return load_settings(redis_url=redis_url, state_dir=state_dir, **given).settings


def test_two_machines_check_each_others_links(redis_url: str, tmp_path: Path) -> None:
    one, two = (link_signer(machine(redis_url, tmp_path / name)) for name in ("one", "two"))
    link = one.path("out/a/a.mp4", 4_000_000_000)
    assert two.is_valid("out/a/a.mp4", "4000000000", link.partition("sig=")[2])
    assert two.path("out/a/a.mp4", 4_000_000_000) == link


def test_two_machines_give_an_owner_the_same_webhook_secret(redis_url: str, tmp_path: Path) -> None:
    one, two = (load_signer(machine(redis_url, tmp_path / name)) for name in ("one", "two"))
    assert one.secrets_of("alice") == two.secrets_of("alice")
    assert one.secrets_of("alice") != one.secrets_of("bob")


def test_a_key_that_one_machine_makes_is_good_on_the_other(redis_url: str, tmp_path: Path) -> None:
    one, two = (machine(redis_url, tmp_path / name) for name in ("one", "two"))
    with connect(redis_url, patient=False) as client:
        text, key = KeyStore(client, pepper_of(one)).create("alice")
        assert client.hget(f"polyreel:key:{key.id}", "digest") == digest_of(pepper_of(two), text)
        assert KeyStore(client, pepper_of(two)).has_usable()


@pytest.mark.parametrize("name", NAMES)
def test_of_twenty_makers_at_once_one_makes_it(redis_url: str, tmp_path: Path, name: Name) -> None:
    with ThreadPoolExecutor(20) as pool:
        made = list(pool.map(lambda n: shared_secret(machine(redis_url, tmp_path / str(n)), name), range(20)))
    assert len(set(made)) == 1
    assert len(made[0]) == 32


@pytest.mark.parametrize("name", NAMES)
def test_who_draws_one_while_another_gives_his_to_redis_uses_that(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: Name
) -> None:
    first: list[bytes] = []
    draw = secrets.token_bytes

    def slowly(size: int) -> bytes:
        if size != 32:  # redis-py gives its connections names
            return draw(size)
        monkeypatch.undo()
        first.append(shared_secret(machine(redis_url, tmp_path / "quicker"), name))
        return b"2" * size

    monkeypatch.setattr("secrets.token_bytes", slowly)
    assert shared_secret(machine(redis_url, tmp_path / "slower"), name) == first[0] != b"2" * 32


@pytest.mark.parametrize("name", NAMES)
def test_it_lies_in_redis_for_good_and_as_a_copy_that_only_its_user_can_read(
    redis_url: str, tmp_path: Path, name: Name
) -> None:
    secret = shared_secret(machine(redis_url, tmp_path), name)
    with connect(redis_url, patient=False) as client:
        assert base64.b64decode(str(client.get(redis_name(name)))) == secret
        assert client.ttl(redis_name(name)) == -1, "no expiry"
        copy = tmp_path / FILES[name]
        assert copy.read_bytes() == secret
        assert stat.S_IMODE(copy.stat().st_mode) == 0o600
        client.flushall()
    assert shared_secret(machine(redis_url, tmp_path), name) == secret, "a Redis that lost its memory gets it again"


@pytest.mark.parametrize("name", NAMES)
def test_an_upgraded_machine_gives_all_what_it_had(redis_url: str, tmp_path: Path, name: Name) -> None:
    (tmp_path / FILES[name]).write_bytes(b"the one of the older version, 32")
    assert shared_secret(machine(redis_url, tmp_path), name) == b"the one of the older version, 32"
    assert shared_secret(machine(redis_url, tmp_path / "new machine"), name) == b"the one of the older version, 32"


@pytest.mark.parametrize(
    ("name", "consequence"),
    [
        ("link", "links that this machine gave before are not good any more (old_link_secrets can name its secret)"),
        ("pepper", "keys that were made with this machine's are not good any more"),
        ("webhook", "receivers that know the secrets of before refuse webhooks (webhook_secrets can name both)"),
    ],
)
def test_a_machine_with_another_file_uses_the_shared_one_and_says_what_that_means(
    redis_url: str, tmp_path: Path, name: Name, consequence: str
) -> None:
    shared = shared_secret(machine(redis_url, tmp_path / "first"), name)
    file = tmp_path / "second" / FILES[name]
    file.parent.mkdir()
    file.write_bytes(b"of its own")
    with capture_logs() as logs:
        assert shared_secret(machine(redis_url, file.parent), name) == shared
    [said] = logs
    assert (said["log_level"], said["file"], said["consequence"]) == ("warning", str(file), consequence)
    assert file.read_bytes() == b"of its own", "nothing that may be needed is overwritten"
    assert not any(base64.b64encode(secret).decode() in str(logs) for secret in (shared, b"of its own"))


def test_only_the_pepper_that_the_keys_were_made_under_is_shared(redis_url: str, tmp_path: Path) -> None:
    """Else the machine that is upgraded first would lock out whoever has a key that another one made."""
    with connect(redis_url, patient=False) as client:
        KeyStore(client, b"of the machine that made the keys").create("alice")
        for kept in (None, b"of another machine"):
            if kept:
                (tmp_path / "pepper").write_bytes(kept)
            with pytest.raises(
                ConfigurationError, match=r"^key_pepper: the keys in this Redis were made under a pepper"
            ):
                pepper_of(machine(redis_url, tmp_path))
            assert client.get("polyreel:secret:pepper") is None
        (tmp_path / "pepper").write_bytes(b"of the machine that made the keys")
        assert pepper_of(machine(redis_url, tmp_path)) == b"of the machine that made the keys"
        assert KeyStore(client, pepper_of(machine(redis_url, tmp_path / "new"))).has_usable()


def test_secrets_of_the_settings_are_used_and_written_nowhere(redis_url: str, tmp_path: Path) -> None:
    secret = "whsec_" + base64.b64encode(bytes(range(32))).decode()
    given = {"link_secret": "a link secret of ours", "key_pepper": "a pepper of ours", "webhook_secrets": secret}
    settings = machine(redis_url, tmp_path / "state", **given)
    assert link_signer(settings).secret == b"a link secret of ours"
    assert pepper_of(settings) == b"a pepper of ours"
    assert load_signer(settings).server_secrets == [bytes(range(32))]
    with redis.Redis.from_url(redis_url) as client:
        assert client.keys("polyreel:secret:*") == []
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("name", NAMES)
def test_while_redis_is_away_nothing_is_made_up(tmp_path: Path, name: Name) -> None:
    """Not even from the file: another machine may have given Redis another one since."""
    (tmp_path / FILES[name]).write_bytes(b"a copy")
    with pytest.raises(QueueUnavailable):
        shared_secret(machine(f"unix://{tmp_path}/nowhere.sock", tmp_path), name)
    assert sorted(path.name for path in tmp_path.iterdir()) == [FILES[name]]


def test_a_folder_that_cannot_be_written_is_no_reason_to_stop(redis_url: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    settings = machine(redis_url, tmp_path).model_copy(update={"state_dir": tmp_path / "file" / "state"})
    assert shared_secret(settings, "link") == shared_secret(settings, "link")


def test_without_redis_it_is_the_state_folders(tmp_path: Path) -> None:
    settings = load_settings(state_dir=tmp_path).settings
    assert shared_secret(settings, "link") == (tmp_path / "link-secret").read_bytes()
