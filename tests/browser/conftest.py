"""A real Chromium, and what is asked of every page in it."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.drop_in.running import npm_folder

#: Names under which systems have the browser.
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")

#: It runs as root in containers, where it has no sandbox and little shared memory.
_FLAGS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--autoplay-policy=no-user-gesture-required"]

#: How long a test waits for what must come, seconds: models are loaded and run meanwhile, on whatever machine.
PATIENCE_S = 180.0

#: Kept after the run, and not committed.
ARTEFACTS = Path(__file__).parents[2] / ".artefacts"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """The browser. A laptop without it skips the test, CI fails. Any: of playwright, which is imported here alone.

    For one module: playwright leaves an event loop in this thread until it is stopped.
    """
    path = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if path is None:
        if os.environ.get("CI"):
            pytest.fail("chromium is needed for the tests of the page")
        pytest.skip("chromium is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=_FLAGS)
        yield browser
        browser.close()


@dataclass
class Visit:
    """A page that is watched.

    Attributes:
        page: of playwright. Any: it is imported where it is needed alone.
        errors: what the console calls an error, and what no script caught.
        requests: all that was asked for.
    """

    page: Any
    base_url: str
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def sign_in(self, key: str) -> None:
        """Sign in at the start of a visit."""
        self.page.fill("#key", key)
        self.page.get_by_role("button", name="Sign in").click()
        self.page.wait_for_selector("#studio", state="visible")
        self.page.wait_for_selector("#status article")

    def fill(self, **fields: object) -> None:
        """Fill fields of the form in, by their ids."""
        for name, value in fields.items():
            self.page.fill(f"#{name}", str(value))

    def submit(self) -> None:
        """Press the button."""
        self.page.get_by_role("button", name="Make the video").click()

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        """Wait until a condition holds and return what it gave. Playwright's own `wait_for_function` needs eval."""
        deadline = time.monotonic() + PATIENCE_S
        while not (found := condition()):
            if time.monotonic() > deadline:
                self.shot("gave-up")
                raise AssertionError(f"not within {PATIENCE_S:g} s: {what}")
            self.page.wait_for_timeout(50)
        return found

    def shot(self, name: str, **options: Any) -> Path:
        """Keep a picture of what is seen."""
        ARTEFACTS.mkdir(exist_ok=True)
        path = ARTEFACTS / f"{name}.png"
        self.page.screenshot(path=path, **options)
        return path

    def violations(self) -> list[str]:
        """Return what axe-core calls serious or critical, with the elements."""
        source = npm_folder(["axe-core@4.14.1"]) / "node_modules" / "axe-core" / "axe.min.js"
        self.page.evaluate(source.read_text("utf-8"))
        found = self.page.evaluate("() => axe.run(document, {resultTypes: ['violations']})")
        return [
            f"{one['id']}: {node['html'][:150]} {node['failureSummary'][:300]}"
            for one in found["violations"]
            if one["impact"] in ("serious", "critical")
            for node in one["nodes"]
        ]

    @property
    def mistakes(self) -> list[str]:
        """The errors, but for answers of a server that is too busy, which it gives and the page shows as such."""
        return [error for error in self.errors if "503 (Service Unavailable)" not in error]

    def strangers(self) -> list[str]:
        """Return the requests to other hosts."""
        return [url for url in self.requests if not url.startswith((f"{self.base_url}/", "data:", "blob:"))]


@pytest.fixture
def visit(chromium: Any) -> Iterator[Callable[..., Visit]]:
    """Return a function that opens a page in a profile of its own; keyword arguments are playwright's."""
    contexts = []

    def open_page(base_url: str, **options: Any) -> Visit:
        context = chromium.new_context(
            **{"viewport": {"width": 1360, "height": 900}, "color_scheme": "light", **options}
        )
        context.set_default_timeout(PATIENCE_S * 1000)
        contexts.append(context)
        visit = Visit(context.new_page(), base_url)
        visit.page.on("console", lambda said: said.type == "error" and visit.errors.append(said.text))
        visit.page.on("pageerror", lambda error: visit.errors.append(str(error)))
        visit.page.on("request", lambda request: visit.requests.append(request.url))
        visit.page.goto(f"{base_url}/")
        return visit

    yield open_page
    for context in contexts:
        context.close()
