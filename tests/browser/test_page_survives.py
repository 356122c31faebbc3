"""The page while parts of the server are killed, keys are revoked and jobs are deleted elsewhere."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import httpx2
import pytest

from polyreel.key_store import KeyStore, pepper_of
from polyreel.profiles import load_settings
from tests.browser.conftest import Visit
from tests.faults.stand import Stand

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """A server of one API process and one worker, whose jobs take as long as their prompts say."""
    stand = Stand(tmp_path_factory.mktemp("page") / "stand", apis=1, workers=1)
    stand.start()
    yield stand
    stand.close()


def test_it_goes_on_when_the_server_the_queue_a_job_or_the_key_goes(stand: Stand, visit: Callable[..., Visit]) -> None:
    settings = load_settings(str(stand.config), state_dir=stand.state, redis_url=stand.url).settings
    keys = KeyStore(stand.client, pepper_of(settings))
    key, stored = keys.create("carol", {"submit", "read", "admin"})
    base, [api] = stand.bases[0], stand.apis
    page = (here := visit(base)).page
    here.sign_in(key)
    assert page.is_visible("#models-part"), "an administrator is shown the models"
    page.click("#models-part > summary")
    page.get_by_role("button", name="pin first", exact=True).click()
    here.until(lambda: page.get_by_role("button", name="unpin first").count(), "the model is pinned")

    page.select_option("#model", "first")
    here.fill(prompt="a cat step_s=0.5", num_inference_steps=40)
    here.submit()
    here.until(lambda: re.search(r"step [1-9]\d* of 40", page.inner_text(".job")), "the job is at work")

    # The API process dies under the stream, and comes back.
    api.kill()
    here.until(lambda: page.is_visible("#banner"), "the page says that the server is away")
    assert "Trying again" in page.inner_text("#banner")
    here.shot("away")
    before = page.inner_text(".job .where")
    api.start()
    here.until(lambda: page.is_hidden("#banner"), "the page says no more that the server is away")
    here.until(lambda: page.inner_text(".job .where") != before, "the stream goes on")

    # So does the queue.
    stand.kill_valkey()
    here.until(lambda: page.is_visible("#banner"), "the page says that the queue is away")
    here.submit()
    here.until(lambda: page.inner_text("#compose-error"), "a submit is refused meanwhile")
    stand.start_valkey()
    here.until(lambda: page.is_hidden("#banner"), "the queue is back")
    here.until(lambda: page.locator(".job video").count(), "the job ends")

    # A job that is deleted elsewhere goes from the page.
    job_id = page.locator(".job").first.get_attribute("data-id")
    headers = {"Authorization": f"Bearer {key}"}
    assert httpx2.delete(f"{base}/polyreel/v1/jobs/{job_id}", headers=headers, timeout=30).json()["deleted"] is True
    here.until(lambda: page.locator(f".job[data-id='{job_id}']").count() == 0, "the card goes")

    # A key that is revoked is asked for again, and forgotten.
    KeyStore(stand.client, pepper_of(settings)).revoke(stored.id)
    here.until(lambda: page.is_visible("#sign-in"), "the page asks for a key")
    assert page.inner_text("#key-error") == "The API key was revoked."
    assert page.evaluate("() => sessionStorage.length") == 0
    assert here.strangers() == []
    assert [error for error in here.errors if "Failed to load resource" not in error] == []
