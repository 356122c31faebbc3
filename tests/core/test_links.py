"""Signed links: good as they were made, until they expire, and in no other form."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from polyreel.links import LinkSigner, file_url, link_signer
from polyreel.profiles import load_settings

KEY = "out/7b1e/7b1e.mp4"
SIGNER = LinkSigner(b"0" * 32)
# The formula written out: printf 'v1\nGET\nout/7b1e/7b1e.mp4\n2000000000' | openssl dgst -sha256 -hmac 000…0
SIGNATURE = "5f3154af62209abfc46932d148bfa6f96018fb5c553504b1cad13f058fd71a16"
EXP = "2000000000"


def test_a_link_is_the_key_its_expiry_and_their_signature() -> None:
    assert SIGNER.path(KEY, 2000000000.9) == f"/files/{KEY}?exp={EXP}&sig={SIGNATURE}"
    assert SIGNER.is_valid(KEY, EXP, SIGNATURE, now=1999999999.0)


@pytest.mark.parametrize(
    ("key", "exp", "sig"),
    [
        ("out/7b1e/7b1f.mp4", EXP, SIGNATURE),
        ("out/7b1e/7b1e.mp4/", EXP, SIGNATURE),
        ("", EXP, SIGNATURE),
        (KEY, "2000000001", SIGNATURE),
        (KEY, "9999999999999", SIGNATURE),
        (KEY, "-1", SIGNATURE),
        (KEY, "2e9", SIGNATURE),
        (KEY, "", SIGNATURE),
        (KEY, "２０００００００００", SIGNATURE),
        (KEY, EXP, SIGNATURE[:-1]),
        (KEY, EXP, SIGNATURE.upper()),
        (KEY, EXP, "0" * 64),
        (KEY, EXP, "é" * 64),
        (KEY, EXP, ""),
    ],
)
def test_an_altered_link_is_not_valid(key: str, exp: str, sig: str) -> None:
    assert not SIGNER.is_valid(key, exp, sig, now=0.0)


def test_another_servers_link_is_not_valid() -> None:
    assert not LinkSigner(b"1" * 32).is_valid(KEY, EXP, SIGNATURE, now=0.0)


def test_a_link_outlives_the_secret_that_signed_it_and_the_next_one_signs_new_links() -> None:
    after = LinkSigner(b"1" * 32, old=(b"0" * 32,))
    assert after.is_valid(KEY, EXP, SIGNATURE, now=0.0)
    assert not after.is_valid(KEY, "2000000001", SIGNATURE, now=0.0)
    assert after.path(KEY, 2000000000) == LinkSigner(b"1" * 32).path(KEY, 2000000000)
    assert SIGNATURE not in after.path(KEY, 2000000000)


def test_the_secrets_come_from_the_settings_or_are_made_once(tmp_path: Path) -> None:
    given = load_settings(state_dir=tmp_path, link_secret="of today, 16 or more", old_link_secrets="of yesterday, b")
    assert link_signer(given.settings) == LinkSigner(b"of today, 16 or more", (b"of yesterday", b"b"))
    made = load_settings(state_dir=tmp_path).settings
    assert link_signer(made) == link_signer(made)
    assert len(link_signer(made).secret) == 32


@pytest.mark.parametrize(("now", "valid"), [(1999999999.999, True), (2000000000.0, False), (2000000001.0, False)])
def test_a_link_is_good_until_the_second_that_it_names(now: float, valid: bool) -> None:
    assert SIGNER.is_valid(KEY, EXP, SIGNATURE, now=now) is valid


def test_a_link_that_expired_by_the_clock_is_not_valid() -> None:
    query = parse_qs(urlsplit(SIGNER.path(KEY, 1000000000)).query)
    assert not SIGNER.is_valid(KEY, query["exp"][0], query["sig"][0])


def test_a_whole_link_stands_under_the_base() -> None:
    url = file_url(SIGNER, "https://video.example.com", KEY, 2000000000)
    assert url == f"https://video.example.com/files/{KEY}?exp={EXP}&sig={SIGNATURE}"
