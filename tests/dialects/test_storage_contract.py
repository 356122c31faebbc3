"""What every dialect says while results cannot be stored: its own words, before any GPU time is spent."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

import server.storage_watch
from polyreel.errors import StorageAway, StorageFailed, StorageFull
from polyreel.storage.local import LocalStorage
from server.dialects import Dialect
from tests.conftest import Api
from tests.dialects.calling import SECTIONS, assert_is_error, call, content_of, every_dialect, every_submit, headers_of

pytestmark = pytest.mark.anyio


@every_submit
async def test_without_space_a_submit_is_refused_until_there_is_some(
    make_api: Callable[..., Api], dialect: Dialect, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = [99_999_999]
    monkeypatch.setattr(server.storage_watch, "_SPACE_BELIEVED_S", 0.0)
    monkeypatch.setattr(server.storage_watch, "_SPACE_PATIENCE_S", 60.0)
    monkeypatch.setattr(LocalStorage, "free_bytes", lambda self: free[0])
    api = make_api(min_free_mb=100.0, dialects=SECTIONS)
    [refused], jobs = await call(api, dialect, content_of(dialect, api.key), headers_of(dialect, api.key))
    assert_is_error(dialect, refused, 503, 507)
    assert int(refused.headers["Retry-After"]) > 0
    assert "min_free_mb" not in refused.text, "what is wrong is for the operator"
    assert jobs == []
    free[0] = 100_000_000
    [taken], jobs = await call(api, dialect, content_of(dialect, api.key), headers_of(dialect, api.key))
    assert taken.status_code in (200, 202)
    assert len(jobs) == 1


@every_submit
async def test_a_wrong_request_is_told_what_is_wrong_with_it_also_without_space(
    make_api: Callable[..., Api], dialect: Dialect
) -> None:
    api = make_api(min_free_mb=1e12, dialects=SECTIONS)
    [refused], _ = await call(api, dialect, b"[]", headers_of(dialect, api.key))
    assert_is_error(dialect, refused, 400, 401, 422)


@every_dialect
@pytest.mark.parametrize("kind", [StorageFull, StorageAway, StorageFailed])
def test_trouble_with_the_storage_is_the_servers_fault_and_never_a_503_that_a_client_repeats_at_once(
    dialect: Dialect, kind: type[StorageFailed]
) -> None:
    settings = dialect.settings.model_validate(SECTIONS.get(dialect.name, {}))
    answer = dialect.render_error(kind("The storage of the results does not answer right now."), settings)
    assert answer.status_code in (500, 503, 507)
    if dialect.name in ("huggingface", "universal"):  # @huggingface/inference repeats a 503 without a pause
        assert answer.status_code != 503
    assert json.loads(bytes(answer.body))
