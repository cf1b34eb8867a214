"""Makes the pictures of docs/ui.md: the page with real edits of the built-in demo, in Debian's Chromium.

    python -m scripts.demo.screenshots [URL]

Without the address of a server on this machine that serves the demo it starts one. Knows the page by its elements.
"""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from scripts.support.local_server import server_for

ROOT = Path(__file__).parents[2]
PHOTOS = ROOT / "tests/data/demo/photos"
OUT = ROOT / "docs/pictures"
SETTINGS = {"MODEL_ID": "demo", "HUNYUAN_DEVICE": "cpu"}
WIDE: dict[str, Any] = {"viewport": {"width": 1280, "height": 800}}
PHONE: dict[str, Any] = {
    "viewport": {"width": 390, "height": 844},
    "device_scale_factor": 1.5,
    "is_mobile": True,
    "has_touch": True,
}
PATIENCE_MS = 300_000


def main() -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        raise SystemExit("there is no chromium here: apt-get install chromium")
    url = sys.argv[1] if len(sys.argv) > 1 else None
    OUT.mkdir(exist_ok=True)
    with server_for(url, SETTINGS) as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        show(browser, server.url, "ui-light", "astronaut", "Turn it into an old photo", done=False, **WIDE)
        show(browser, server.url, "ui-dark", "coffee", "Make it black and white", color_scheme="dark", **WIDE)
        show(browser, server.url, "ui-phone", "chelsea", "Tint it blue", **PHONE)
        browser.close()


def show(browser: Browser, url: str, name: str, photo: str, prompt: str, *, done: bool = True, **options: Any) -> None:
    """One edit, photographed when it is done, or at its last preview."""
    context = browser.new_context(**options)
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.goto(f"{url}/ui")
    page.wait_for_selector("#demo:visible")  # the pictures are said to be the demo's
    page.set_input_files("#first", PHOTOS / f"{photo}.webp")
    page.fill("#prompt", prompt)
    page.evaluate("document.getElementById('seed').value = '1'")
    page.click("#go")
    page.wait_for_selector("#done:visible" if done else "#compare:visible")
    if done:
        page.evaluate("document.activeElement.blur()")
        page.evaluate("scrollTo(0, 0)")
    page.wait_for_timeout(300)
    keep(page, name)
    context.close()


def keep(page: Page, name: str) -> None:
    picture = Image.open(io.BytesIO(page.screenshot()))
    path = OUT / f"{name}.webp"
    picture.convert("RGB").save(path, quality=80, method=6)
    print(f"{path.relative_to(ROOT)}: {picture.width}x{picture.height}, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
