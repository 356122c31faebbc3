"""An API that starts before Redis: it makes no secret up, and has the shared ones when Redis answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anyio
import pytest
import redis
from pydantic import SecretStr

from polyreel.broker import start_embedded
from polyreel.errors import ConfigurationError, QueueUnavailable
from polyreel.keys import ApiKeys
from polyreel.links import link_signer
from polyreel.settings import Settings
from polyreel.storage_marker import claim
from server.app import create_app
from tests.conftest import KEY, Api

pytestmark = pytest.mark.anyio

AUTH = {"Authorization": f"Bearer {KEY}"}


async def test_an_api_that_started_first_signs_as_the_others_once_redis_answers(
    make_api: Callable[..., Api], settings: Settings, tmp_path: Path
) -> None:
    broker = start_embedded(tmp_path / "later")
    broker.stop()
    api = make_api(redis_url=SecretStr(broker.url))
    with pytest.raises(QueueUnavailable):
        _ = api.app.state.services.signer
    refused = await api.http.get("/polyreel/v1/webhooks/secret", headers=AUTH)
    assert refused.status_code == 503
    assert (await api.http.get("/health")).status_code == 200
    assert (await api.http.get("/files/out/a?exp=4000000000&sig=00")).status_code == 503, "good or not, who knows"
    assert not (settings.state_dir / "link-secret").exists()

    broker = start_embedded(tmp_path / "later")
    try:
        other = settings.model_copy(update={"redis_url": SecretStr(broker.url), "state_dir": tmp_path / "other"})
        made_elsewhere = link_signer(other)
        with anyio.fail_after(60):
            while (await api.http.get("/polyreel/v1/webhooks/secret", headers=AUTH)).status_code == 503:
                pass  # a busy machine may need more than the tenth of a second that a request waits
        assert api.app.state.services.signer == made_elsewhere
        assert (await api.http.get("/files/out/a?exp=4000000000&sig=00")).status_code == 403
    finally:
        broker.stop()


async def test_secrets_of_the_settings_need_no_redis(make_api: Callable[..., Api], tmp_path: Path) -> None:
    api = make_api(
        redis_url=SecretStr(f"unix://{tmp_path}/nowhere.sock"),
        link_secret=SecretStr("a link secret of ours"),
        key_pepper=SecretStr("a pepper of ours"),
        webhook_secrets=(SecretStr("whsec_" + "A" * 43 + "="),),
    )
    assert api.app.state.services.signer.secret == b"a link secret of ours"
    assert (await api.http.get("/polyreel/v1/webhooks/secret", headers=AUTH)).status_code == 200


def test_an_api_whose_folder_is_not_that_of_the_others_is_not_made(
    settings: Settings, keys: ApiKeys, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_app(settings, keys)
    monkeypatch.setattr("socket.gethostname", lambda: "another-machine")
    monkeypatch.setattr("polyreel.storage_marker.WAIT_S", 0.0)
    elsewhere = settings.model_copy(update={"state_dir": settings.state_dir.with_name("another disk")})
    with pytest.raises(
        ConfigurationError, match=r"^storage: the results of this server lie in file://.*/state/results"
    ):
        create_app(elsewhere, keys)


async def test_an_api_that_turns_out_not_to_fit_when_redis_is_back_ends(
    settings: Settings, keys: ApiKeys, redis_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    away = settings.model_copy(update={"redis_url": SecretStr(f"unix://{tmp_path}/redis.sock")})
    joining = create_app(away, keys).state.services.joining
    ended: list[bool] = []
    joining.on_misfit = lambda: ended.append(True)
    await joining.join_late()
    assert ended == []
    (tmp_path / "redis.sock").symlink_to(redis_url.removeprefix("unix://"))  # it is back
    monkeypatch.setattr("polyreel.storage_marker.place_of", lambda _settings: "file:///results on another-machine")
    monkeypatch.setattr("polyreel.storage_marker.mark_of", lambda _storage: "f" * 32)
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        claim(client, joining._storage, settings)
    monkeypatch.setattr("polyreel.storage_marker.mark_of", lambda _storage: "0" * 32)
    with anyio.fail_after(60):
        while not ended:
            await joining.join_late()
    await joining.join_late()
    assert ended == [True], "once"
    assert str(joining.misfit).startswith(
        "storage: the results of this server lie in file:///results on another-machine"
    )
