"""A real Chromium for tests of the page, and the page as a user has it: by its roles and words.

Where there is no Chromium (Debian's package is enough), tests are skipped and say so.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WANTED = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium")
PATIENCE_S = 60  # an edit of the demo on a busy machine


@contextmanager
def chromium() -> Iterator[Browser]:
    expect.set_options(timeout=PATIENCE_S * 1000)
    with sync_playwright() as playwright:
        # No sandbox: it wants rights that a container's root does not have, and only our own page is opened.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visit:
    """One visitor's page at `url`/ui.

    Attributes:
        asked: the addresses that the browser asked for.
        complaints: what it wrote to its console, and exceptions that nobody caught; statuses of 400 and more are not
            among them.
    """

    def __init__(self, browser: Browser, url: str, **options: Any) -> None:
        self.context = browser.new_context(accept_downloads=True, **options)
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE_S * 1000)
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda message: self._note(message.text))
        self.page.on("pageerror", lambda error: self._note(str(error)))
        self.page.goto(f"{url}/ui")
        expect(self.page.locator("#model")).not_to_be_empty()

    def _note(self, text: str) -> None:
        if not text.startswith("Failed to load resource: the server responded with a status of"):
            self.complaints.append(text)

    def choose(self, *files: tuple[str, bytes], kind: str = "image/jpeg") -> None:
        self.page.locator("#first").set_input_files(
            [{"name": name, "mimeType": kind, "buffer": content} for name, content in files]
        )

    def ask(self, prompt: str, **more: str) -> None:
        """Fills the form in; the fields of `more` are those behind "More"."""
        self.page.get_by_label("What to").fill(prompt)
        self.page.locator("#more").evaluate("(details) => { details.open = true }")
        for name, value in more.items():
            self.page.get_by_label(name).fill(value)

    def press(self, name: str) -> None:
        self.page.get_by_role("button", name=name, exact=True).click()

    def result(self) -> bytes:
        """The finished picture as it is downloaded."""
        link = self.page.get_by_role("link", name="Download")
        expect(link).to_be_visible()
        with self.page.expect_download() as download:
            link.click()
        return download.value.path().read_bytes()

    def close(self) -> None:
        self.context.close()
