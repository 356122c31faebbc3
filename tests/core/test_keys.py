"""API keys: what they look like, whose they are, and that their text is kept nowhere."""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path

import pytest

from polyreel.errors import ConfigurationError, InvalidKey, MissingKey
from polyreel.keys import KEY_PATTERN, Caller, digest_of, key_id, load_keys, new_key
from polyreel.profiles import load_settings
from polyreel.secret_files import read_or_make

ALICE, BOB = "alice-key-0123456789", "bob-key-0123456789ab"


def everything_in(folder: Path) -> bytes:
    return b"\n".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def test_two_owners_are_told_apart_by_their_keys(tmp_path: Path) -> None:
    keys, made = load_keys(load_settings(state_dir=tmp_path, api_keys=f"alice:{ALICE},bob:{BOB}").settings)
    may = frozenset({"submit", "read"})
    assert keys.find(ALICE) == Caller("alice", scopes=may)
    assert keys.find(BOB) == Caller("bob", scopes=may)
    assert made is None


@pytest.mark.parametrize("key", [None, ""])
def test_no_key_is_missing(tmp_path: Path, key: str | None) -> None:
    keys, _ = load_keys(load_settings(state_dir=tmp_path, api_keys=f"alice:{ALICE}").settings)
    with pytest.raises(MissingKey):
        keys.find(key)


@pytest.mark.parametrize("key", [ALICE[:-1], f"{ALICE} ", ALICE.upper(), "alice", "é\ud800"])
def test_any_other_key_is_none_of_these(tmp_path: Path, key: str) -> None:
    keys, _ = load_keys(load_settings(state_dir=tmp_path, api_keys=f"alice:{ALICE}").settings)
    assert keys.find(key) is None


def test_a_text_longer_than_any_key_is_refused_unread(tmp_path: Path) -> None:
    longest = "k" * 4096
    keys, _ = load_keys(load_settings(state_dir=tmp_path, api_keys=f"alice:{longest}").settings)
    assert keys.find(longest) is not None
    with pytest.raises(InvalidKey) as refused:
        keys.find(longest + "k")
    assert str(refused.value) == "The API key is not known here."


def test_an_owner_may_be_made_an_admin(tmp_path: Path) -> None:
    given = {"api_keys": f"alice:{ALICE},bob:{BOB}", "admins": "bob"}
    keys, _ = load_keys(load_settings(state_dir=tmp_path, **given).settings)
    assert keys.find(BOB) == Caller("bob", scopes=frozenset({"submit", "read", "admin"}))
    assert keys.find(ALICE) == Caller("alice", scopes=frozenset({"submit", "read"}))


def test_an_admin_without_a_key_stops_the_start(tmp_path: Path) -> None:
    settings = load_settings(state_dir=tmp_path, api_keys=f"alice:{ALICE}", admins="alise").settings
    with pytest.raises(ConfigurationError, match=r"^admins: alise is no name of api_keys\. Did you mean alice\? "):
        load_keys(settings)


def test_configured_keys_are_kept_as_hashes_only(tmp_path: Path) -> None:
    keys, _ = load_keys(load_settings(state_dir=tmp_path, api_keys=f"alice:{ALICE}").settings)
    assert ALICE.encode() not in everything_in(tmp_path)
    assert ALICE not in repr(keys)


def test_a_key_is_made_once_and_shown_once(tmp_path: Path) -> None:
    settings = load_settings(state_dir=tmp_path).settings
    keys, made = load_keys(settings)
    assert made is not None
    local = Caller("local", scopes=frozenset({"submit", "read", "admin"}))
    assert re.fullmatch(KEY_PATTERN, made)
    assert keys.find(made) == local
    again, shown_again = load_keys(settings)
    assert shown_again is None
    assert again.find(made) == local


def test_a_key_that_an_older_version_made_stays_good(tmp_path: Path) -> None:
    old = "pr_2Yk0tqvvN0S-6mZZyO_old"
    remembered = {digest_of(read_or_make(tmp_path / "pepper"), old): "local"}
    (tmp_path / "local-key.json").write_text(json.dumps(remembered))
    keys, made = load_keys(load_settings(state_dir=tmp_path).settings)
    assert made is None
    assert keys.find(old) == Caller("local")


def test_a_made_key_is_on_disk_as_a_hash_that_only_its_user_can_read(tmp_path: Path) -> None:
    _, made = load_keys(load_settings(state_dir=tmp_path / "state").settings)
    assert made is not None
    assert made.encode() not in everything_in(tmp_path)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "state").iterdir()}
    assert modes == {"local-pepper": 0o600, "local-key.json": 0o600}
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700


def test_two_servers_make_different_keys(tmp_path: Path) -> None:
    keys, _ = load_keys(load_settings(state_dir=tmp_path / "a").settings)
    _, made_elsewhere = load_keys(load_settings(state_dir=tmp_path / "b").settings)
    assert keys.find(made_elsewhere) is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "video.example.com"])
def test_a_reachable_server_does_not_start_without_a_key(tmp_path: Path, host: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        load_keys(load_settings(state_dir=tmp_path, host=host).settings)
    assert str(refused.value) == (
        f"api_keys: there is no API key, and host {host} can be reached from other machines. Make one (polyreel keys "
        "create NAME; with compose: docker compose run --rm server keys create NAME), or set "
        "POLYREEL_API_KEYS=name:key (16 or more characters), or listen on --host 127.0.0.1."
    )
    assert not (tmp_path / "local-key.json").exists()


def test_a_reachable_server_starts_with_a_stored_key_alone(tmp_path: Path) -> None:
    (tmp_path / "local-key.json").write_text('{"what was good on loopback": "local"}')
    keys, made = load_keys(load_settings(state_dir=tmp_path, host="0.0.0.0").settings, lambda: True)
    assert (keys.callers, made) == ({}, None)


def test_of_two_servers_that_start_at_once_one_makes_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings(state_dir=tmp_path).settings
    other: list[str | None] = []

    def slowly() -> str:
        monkeypatch.undo()
        other.append(load_keys(settings)[1])  # meanwhile
        return new_key()

    monkeypatch.setattr("polyreel.keys.new_key", slowly)
    keys, made = load_keys(settings)
    assert made is None, "nobody is shown a key that is not good"
    assert keys.find(other[0]) == Caller("local")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["local-key.json", "local-pepper"]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_a_server_on_loopback_starts_without_a_key(tmp_path: Path, host: str) -> None:
    assert load_keys(load_settings(state_dir=tmp_path, host=host).settings)[1] is not None


def test_a_secret_is_drawn_once(tmp_path: Path) -> None:
    drawn = read_or_make(tmp_path / "new" / "secret")
    assert len(drawn) == 32
    assert read_or_make(tmp_path / "new" / "secret") == drawn
    assert read_or_make(tmp_path / "new" / "other") != drawn
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["other", "secret"]


def test_a_made_key_is_of_the_published_form() -> None:
    key = new_key()
    assert re.fullmatch(r"prk_[0-9A-Za-z]{46}", key)
    assert key_id(key) == key[4:12]
    assert new_key() != key


def test_the_checksum_is_the_crc32_of_what_stands_before_it_in_base_62() -> None:
    """Published in docs/security.md, so it never changes."""
    assert key_id("prk_abcdefgh" + "0" * 32 + "2VonbK") == "abcdefgh"


@pytest.mark.parametrize("place", range(4, 50))
def test_one_wrong_character_is_seen_without_asking_anybody(place: int) -> None:
    key = new_key()
    wrong = "A" if key[place] != "A" else "B"
    assert key_id(key[:place] + wrong + key[place + 1 :]) is None


@pytest.mark.parametrize("change", [lambda k: k[:-1], lambda k: k + "0", lambda k: "vsk" + k[3:], lambda k: k + "\n"])
def test_what_has_another_form_is_no_key_of_ours(change: object) -> None:
    assert callable(change)
    assert key_id(change(new_key())) is None
