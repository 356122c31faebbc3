"""API keys: whose they are, and that their text is kept nowhere."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from polyreel.errors import ConfigurationError, InvalidKey, MissingKey
from polyreel.keys import load_keys
from polyreel.secret_files import read_or_make
from polyreel.settings import load_settings

ALICE, BOB = "alice-key-0123456789", "bob-key-0123456789ab"


def everything_in(folder: Path) -> bytes:
    return b"\n".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def test_two_owners_are_told_apart_by_their_keys(tmp_path: Path) -> None:
    keys, made = load_keys(load_settings(state_dir=tmp_path, api_keys=f"alice:{ALICE},bob:{BOB}").settings)
    assert keys.owner_of(ALICE) == "alice"
    assert keys.owner_of(BOB) == "bob"
    assert made is None


@pytest.mark.parametrize("key", [None, ""])
def test_no_key_is_missing(tmp_path: Path, key: str | None) -> None:
    keys, _ = load_keys(load_settings(state_dir=tmp_path, api_keys=f"alice:{ALICE}").settings)
    with pytest.raises(MissingKey):
        keys.owner_of(key)


@pytest.mark.parametrize("key", [ALICE[:-1], f"{ALICE} ", ALICE.upper(), "alice", "é\ud800"])
def test_any_other_key_is_invalid(tmp_path: Path, key: str) -> None:
    keys, _ = load_keys(load_settings(state_dir=tmp_path, api_keys=f"alice:{ALICE}").settings)
    with pytest.raises(InvalidKey) as refused:
        keys.owner_of(key)
    assert key not in str(refused.value)


def test_configured_keys_are_kept_as_hashes_only(tmp_path: Path) -> None:
    keys, _ = load_keys(load_settings(state_dir=tmp_path, api_keys=f"alice:{ALICE}").settings)
    assert ALICE.encode() not in everything_in(tmp_path)
    assert ALICE not in repr(keys)


def test_a_key_is_made_once_and_shown_once(tmp_path: Path) -> None:
    settings = load_settings(state_dir=tmp_path).settings
    keys, made = load_keys(settings)
    assert made is not None
    assert keys.owner_of(made) == "local"
    again, shown_again = load_keys(settings)
    assert shown_again is None
    assert again.owner_of(made) == "local"


def test_a_made_key_is_on_disk_as_a_hash_that_only_its_user_can_read(tmp_path: Path) -> None:
    _, made = load_keys(load_settings(state_dir=tmp_path / "state").settings)
    assert made is not None
    assert made.encode() not in everything_in(tmp_path)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "state").iterdir()}
    assert modes == {"pepper": 0o600, "local-key.json": 0o600}
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700


def test_two_servers_make_different_keys(tmp_path: Path) -> None:
    keys, _ = load_keys(load_settings(state_dir=tmp_path / "a").settings)
    _, made_elsewhere = load_keys(load_settings(state_dir=tmp_path / "b").settings)
    with pytest.raises(InvalidKey):
        keys.owner_of(made_elsewhere)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "video.example.com"])
def test_a_reachable_server_does_not_start_without_a_key(tmp_path: Path, host: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        load_keys(load_settings(state_dir=tmp_path, host=host).settings)
    assert str(refused.value) == (
        f"api_keys: no API key is configured, and host {host} can be reached from other machines. "
        "Set POLYREEL_API_KEYS=name:key (16 or more characters), or listen on --host 127.0.0.1."
    )
    assert not (tmp_path / "local-key.json").exists()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_a_server_on_loopback_starts_without_a_key(tmp_path: Path, host: str) -> None:
    assert load_keys(load_settings(state_dir=tmp_path, host=host).settings)[1] is not None


def test_a_secret_is_drawn_once(tmp_path: Path) -> None:
    drawn = read_or_make(tmp_path / "new" / "secret")
    assert len(drawn) == 32
    assert read_or_make(tmp_path / "new" / "secret") == drawn
    assert read_or_make(tmp_path / "new" / "other") != drawn
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["other", "secret"]
