"""The page in a real Chromium, over a whole server with real (tiny) models: the journey of whoever makes a video.

Pictures of it are kept in `.artefacts/`; `make screenshot` puts one into the README.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest
from PIL import Image

from tests.browser.conftest import Visit
from tests.conftest import KEY, OTHER_KEY, LiveServer
from tests.server.pictures import png

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

Open = Callable[..., Visit]

IN_README = Path(__file__).parents[2] / "docs" / "images" / "page.png"

HEADERS = {"Authorization": f"Bearer {KEY}"}
OTHERS = {"Authorization": f"Bearer {OTHER_KEY}"}

PROMPT = "A large red circle moving right on a black background"

#: Would run if a prompt became markup.
HOSTILE = "<script>window.stolen = 1</script><img src=x onerror='window.stolen = 1'> \u202eevil {key} 🎬"

#: Long enough to be seen at work on a fast machine: 4 s there.
LONG = {"num_frames": 33, "width": 448, "height": 320, "num_inference_steps": 50}

#: What Chromium writes for each answer that refuses, whoever handles it.
REFUSED = "Failed to load resource: the server responded with a status of {}"


def card(visit: Visit, number: int = 0) -> str:
    """Return the selector of a card, the newest first."""
    job_id = visit.page.locator(".job").nth(number).get_attribute("data-id")
    return f".job[data-id='{job_id}']"


def plays(visit: Visit, selector: str) -> bool:
    """Return whether a video moves."""
    return bool(
        visit.page.evaluate(
            "selector => { const v = document.querySelector(selector); return v && v.currentTime > 0 && !v.error; }",
            f"{selector} video",
        )
    )


def test_the_journey_from_the_key_to_a_playing_video(live: LiveServer, visit: Open) -> None:
    page = (here := visit(live.base_url)).page

    # A wrong key is told of where it was entered; the right one opens the studio.
    page.fill("#key", "not-a-key-of-this-server")
    page.get_by_role("button", name="Sign in").click()
    here.until(lambda: "API key" in page.inner_text("#key-error"), "the wrong key is refused")
    here.shot("sign-in")
    here.sign_in(KEY)
    assert page.evaluate("() => [sessionStorage.length, localStorage.length]") == [1, 0]
    assert "alice" in page.inner_text("#usage")

    # The model's real limits and defaults.
    page.select_option("#model", "animatediff-tiny")
    assert page.is_visible("#travel-switch")
    page.select_option("#model", "ltx-tiny")
    assert page.is_hidden("#travel-switch")
    page.select_option("#model", "atelier")
    defaults = {"width": "256", "height": "256", "num_frames": "17", "num_inference_steps": "20", "fps": "16"}
    assert {name: page.input_value(f"#{name}") for name in defaults} == defaults
    limits = {"width": "1280", "height": "1280", "num_frames": "129", "num_inference_steps": "100"}
    assert {name: page.get_attribute(f"#{name}", "max") for name in limits} == limits

    # Submitted twice: the first one is seen at work, the second one in its place in the queue.
    here.fill(prompt=PROMPT, **LONG)
    here.submit()
    page.wait_for_selector(".job")
    first = card(here)
    here.fill(prompt="A blue star rising on a white background", num_frames=9, num_inference_steps=10)
    here.submit()
    here.until(lambda: page.locator(".job").count() == 2, "the second job is shown")
    second = card(here)
    values: list[float] = []
    shown: set[str] = set()

    def is_done() -> bool:
        value = page.evaluate("s => document.querySelector(s + ' progress').value", first)
        if page.is_visible(f"{first} .live") and (not values or values[-1] != value):
            values.append(value)
        if re.search(r"step \d+ of 50", page.inner_text(first)):
            shown.add("step")
        if page.locator(f"{first} .preview").count() and "preview" not in shown:
            shown.add("preview")
            here.shot("progress")
        if "next in line" in page.inner_text(second):
            shown.add("position")
        return bool(page.locator(f"{first} video").count())

    here.until(is_done, "the first video is done")
    assert values == sorted(values), "progress never goes back"
    assert len(values) >= 4, f"the bar was to move three times at least: {values}"
    assert shown == {"step", "preview", "position"}

    # The video is one that Chromium decodes, and it plays.
    page.locator(first).scroll_into_view_if_needed()
    here.until(lambda: plays(here, first), "the video plays")
    size = page.evaluate(
        "s => { const v = document.querySelector(s); return [v.videoWidth, v.videoHeight]; }", f"{first} video"
    )
    assert size == [448, 320]
    here.until(lambda: page.locator(f"{second} video").count(), "the second video is done")

    # Settings, receipt, and again with the same seed.
    page.locator(f"{first} summary", has_text="Settings").click()
    page.locator(f"{first} summary", has_text="Receipt").click()
    facts = page.inner_text(first)
    [job] = [
        one
        for one in httpx2.get(f"{live.base_url}/polyreel/v1/jobs", headers=HEADERS).json()["jobs"]
        if one["id"] in first
    ]
    assert str(job["request"]["seed"]) in facts
    assert job["outputs"][0]["sha256"] in facts
    assert "shipped:atelier" in facts
    here.shot("done", full_page=True)
    page.locator(first).get_by_role("button", name="Again with this seed").click()
    assert page.input_value("#seed") == str(job["request"]["seed"])
    assert (page.input_value("#prompt"), page.input_value("#num_frames"), page.input_value("#width")) == (
        PROMPT,
        "33",
        "448",
    )

    # Nothing is lost by a reload.
    page.reload()
    page.wait_for_selector(f"{first} video")
    page.locator(first).scroll_into_view_if_needed()
    here.until(lambda: plays(here, first), "the video plays after a reload")
    if os.environ.get("SCREENSHOT"):
        take_picture(here)

    # Cancelled in the middle.
    page.select_option("#model", "atelier")
    here.fill(prompt=HOSTILE, **{**LONG, "num_inference_steps": 100})
    newest = card(here)
    here.submit()
    here.until(lambda: card(here) != newest, "the third job is shown")
    third = card(here)
    # One like it was measured, so it is known how long this one takes.
    here.until(lambda: " left" in page.inner_text(f"{third} .where"), "the estimate is shown")
    page.locator(third).get_by_role("button", name="Cancel").click()
    here.until(lambda: "Cancelled." in page.inner_text(third), "it is cancelled")
    assert page.inner_text(f"{third} .prompt") == HOSTILE
    assert page.evaluate("() => window.stolen") is None

    # A refused request names the fix, at its field.
    here.fill(num_frames=5000)
    here.submit()
    here.until(lambda: page.inner_text("#compose-error"), "the refusal is shown")
    assert page.inner_text("#compose-error") == "num_frames must be between 1 and 129, got 5000"
    assert page.get_attribute("#num_frames", "aria-invalid") == "true"
    assert page.evaluate("() => document.activeElement.id") == "num_frames"
    here.shot("refused")

    # Deleted, after a question.
    page.locator(second).get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Keep it").click()
    assert page.locator(second).count() == 1
    page.locator(second).get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    here.until(lambda: page.locator(second).count() == 0, "it is gone")
    gone = second.partition("'")[2].partition("'")[0]
    assert httpx2.get(f"{live.base_url}/polyreel/v1/jobs/{gone}", headers=HEADERS).status_code == 404

    assert sorted(here.mistakes) == [REFUSED.format("400 (Bad Request)"), REFUSED.format("401 (Unauthorized)")]
    assert here.strangers() == []


def take_picture(here: Visit) -> None:
    """Take the picture of the README."""
    page = here.page
    page.select_option("#model", "atelier")
    here.fill(prompt=PROMPT, **LONG)
    here.submit()
    here.until(lambda: page.locator(".job .preview").count(), "a preview frame")
    page.evaluate("() => scrollTo(0, 0)")
    # With few colours: the noise of the tiny models would take half a megabyte.
    with Image.open(here.shot("page")) as picture:
        picture.convert("RGB").quantize(224, dither=Image.Dither.NONE).save(IN_README, optimize=True)
    assert IN_README.stat().st_size < 300_000
    here.until(lambda: page.locator(".job .preview").count() == 0, "the video is done")


def test_a_picture_and_several_prompts_make_what_was_asked_for(live: LiveServer, visit: Open) -> None:
    """Signed in as another owner, on a device that remembers the key."""
    page = (here := visit(live.base_url)).page
    page.check("#remember")
    here.sign_in(OTHER_KEY)
    assert page.evaluate("() => [sessionStorage.length, localStorage.length]") == [0, 1]
    small = {"width": 128, "height": 128, "num_inference_steps": 2}

    page.select_option("#model", "ltx-tiny")
    page.set_input_files("#image", {"name": "cat.txt", "mimeType": "text/plain", "buffer": b"no picture"})
    here.until(lambda: "PNG, JPEG" in page.inner_text("#image-error"), "what is no picture is refused")
    page.set_input_files("#image", {"name": "cat.png", "mimeType": "image/png", "buffer": png(64, 64)})
    page.wait_for_selector("#first-frame img")
    here.fill(prompt="it runs", num_frames=9, **small)
    page.click("#code > summary")
    here.until(lambda: "base64 < image.png" in page.inner_text("#code-text"), "the call reads the picture from a file")
    assert "iVBOR" not in page.inner_text("#code-text")
    here.submit()
    page.wait_for_selector(".job")

    page.select_option("#model", "animatediff-tiny")
    page.check("#travels")
    for number, (prompt, frames) in enumerate([("dusk", 8), ("dawn", 9)]):
        page.locator("#spans textarea").nth(number).fill(prompt)
        page.locator("#spans input").nth(number).fill(str(frames))
    assert page.input_value("#num_frames") == "17"
    page.locator("details.more summary", has_text="More settings").click()
    page.get_by_label("style-tiny", exact=True).check()
    page.get_by_label("webm").check()
    page.fill("#seed", "9007199254740993")
    here.fill(**small)

    # In each dialect, without the key until its owner asks for it.
    here.until(lambda: page.locator("#dialect option").count() == 6, "the calls of all dialects")
    page.select_option("#dialect", "huggingface")
    reason = "model: animatediff-tiny has no name in this API"
    here.until(lambda: page.inner_text("#code-notes").startswith(reason), "why there is no call")
    assert page.inner_text("#code-text") == ""
    page.select_option("#dialect", "native")
    here.until(lambda: '"prompt": "dusk"' in page.inner_text("#code-text"), "our own call")
    assert OTHER_KEY not in page.inner_text("#code-text")
    page.check("#show-key")
    assert f"KEY='{OTHER_KEY}'" in page.inner_text("#code-text")
    page.get_by_label("Python").check()
    assert f'KEY = "{OTHER_KEY}"' in page.inner_text("#code-text")
    page.uncheck("#show-key")
    assert OTHER_KEY not in page.inner_text("#code-text")

    here.submit()
    here.until(lambda: page.locator(".job video").count() == 2, "both videos are done")
    newest, oldest = httpx2.get(f"{live.base_url}/polyreel/v1/jobs", headers=OTHERS).json()["jobs"][:2]
    assert [image["frame_index"] for image in oldest["request"]["images"]] == [0]
    asked = newest["request"]
    assert asked["prompts"] == [{"prompt": "dusk", "num_frames": 8}, {"prompt": "dawn", "num_frames": 9}]
    assert asked["loras"] == [{"name": "style-tiny", "strength": 1.0}]
    assert sorted(output["format"] for output in newest["outputs"]) == ["mp4", "webm"]
    assert asked["seed"] == 9007199254740993
    page.locator(card(here)).get_by_role("button", name="Again with this seed").click()
    assert page.input_value("#seed") == "9007199254740993"

    page.get_by_role("button", name="Sign out").click()
    assert page.evaluate("() => [sessionStorage.length, localStorage.length]") == [0, 0]
    assert page.locator(".job").count() == 0
    assert here.mistakes == []
    assert here.strangers() == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_use_it(live: LiveServer, visit: Open, scheme: str) -> None:
    """Nothing serious for axe, in both schemes, at the width of a phone too; and the keyboard alone will do."""
    page = (here := visit(live.base_url, color_scheme=scheme, reduced_motion="reduce")).page
    page.wait_for_selector("#sign-in", state="visible")
    assert here.violations() == []
    page.keyboard.type(KEY)
    page.keyboard.press("Enter")
    page.wait_for_selector("#status article")
    page.select_option("#model", "animatediff-tiny")
    for summary in page.locator("details.more > summary").all():
        if summary.is_visible():
            summary.focus()
            page.keyboard.press("Enter")
    page.click("#add-keyframe")
    page.check("#travels")
    here.until(lambda: page.inner_text("#code-text") or page.inner_text("#code-notes"), "the snippets")
    assert here.violations() == []
    here.shot(f"all-{scheme}", full_page=True)
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 360
    assert here.violations() == []
    here.shot(f"phone-{scheme}", full_page=True)
    assert page.locator("video").evaluate_all("all => all.every(one => one.paused)"), "motion was not wanted"

    # The colours of the device can be chosen, and are kept.
    ground = "() => getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(ground)
    page.click("#theme")
    page.click("#theme") if scheme == "light" else None
    assert page.evaluate(ground) != before
    page.reload()
    assert page.evaluate(ground) != before
    assert here.mistakes == []


def test_the_reference_works_without_any_other_host(live: LiveServer, visit: Open) -> None:
    page = (here := visit(live.base_url)).page
    page.goto(f"{live.base_url}/docs")
    page.wait_for_selector("#operations-tag-Novita_v3, [data-tag='Novita v3']")
    tags = page.locator("[data-tag]").evaluate_all("all => all.map(one => one.dataset.tag)")
    assert tags[:3] == ["Polyreel", "Hugging Face Inference", "Hugging Face universal handler"]
    page.locator("[data-tag='Novita v3']").click()
    page.get_by_text("/v3/async/txt2video").first.click()
    page.wait_for_selector(".opblock.is-open .opblock-section")
    here.shot("reference")
    assert here.mistakes == []
    assert here.strangers() == []
