"""The page at /ui in a real Chromium: what somebody does there, and what the server got and gave.

The editor is the scripted one of the fault tests where it matters when something happens; the built-in demo where it
matters which picture comes.
"""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Any

import httpx
import numpy as np
import pytest
from browser import WANTED, Visit, chromium
from PIL import Image
from playwright.sync_api import Browser, expect
from server_process import ROOT, Server, photo_bytes, running
from test_faults import STEP_S, edit, faulty, record, until_recorded

from hunyuan.demo import REQUESTS

pytestmark = [pytest.mark.server, pytest.mark.slow, WANTED]

PHOTO, OTHER = photo_bytes(), photo_bytes(48, 64, fmt="PNG")
KEY = "3f9a-not-a-real-key-0217"
PHONE = {"viewport": {"width": 320, "height": 640}, "is_mobile": True, "has_touch": True}
SEED = "9007199254740993"  # 2^53 + 1: no number of JavaScript


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as shared:
        yield shared


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The scripted editor; one edit may wait."""
    with faulty(tmp_path_factory.mktemp("page"), HUNYUAN_QUEUE_SIZE="1") as shared:
        yield shared


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The built-in demo: an edit takes a fifth of the tiny checkpoint's time on a CPU."""
    with running(tmp_path_factory.mktemp("demo"), MODEL_ID="demo") as shared:
        yield shared


@pytest.fixture
def visit(browser: Browser, server: Server) -> Iterator[Visit]:
    yield from visiting(Visit(browser, server.url), server)


def visiting(visitor: Visit, server: Server) -> Iterator[Visit]:
    """Whatever a visitor does, the browser asks nobody but the server and has nothing to complain about."""
    yield visitor
    visitor.close()
    assert visitor.complaints == []
    assert not [url for url in visitor.asked if not url.startswith((f"{server.url}/", "blob:", "data:"))]


def pixels(content: bytes) -> Any:
    return np.asarray(Image.open(BytesIO(content)))


# --- an edit and a fusion, by their pictures


def test_an_edit_is_the_picture_that_the_other_doors_give(browser: Browser, demo: Server) -> None:
    for visit in visiting(Visit(browser, demo.url), demo):
        visit.choose(("photo.jpg", PHOTO))
        visit.ask("Make the sky orange", Steps="2", Seed=SEED)
        visit.press("Edit")
        seen = visit.result()
        expect(visit.page.locator("#facts")).to_contain_text(f"seed {SEED}")
        expect(visit.page.locator("#thinking")).not_to_be_empty()
        expect(visit.page.get_by_label("Before and after")).to_be_visible()
    form = {"prompt": "Make the sky orange", "steps": "2", "seed": SEED}
    same = httpx.post(f"{demo.url}/edit", data=form, files={"image": PHOTO}, timeout=60)
    assert (pixels(seen) == pixels(same.content)).all()


def test_a_fusion_and_then_an_edit_of_its_result(browser: Browser, demo: Server) -> None:
    for visit in visiting(Visit(browser, demo.url), demo):
        visit.choose(("a.jpg", PHOTO), ("b.png", OTHER))
        visit.ask("The first beside the second", Steps="1", Seed="5")
        visit.page.get_by_label("Think first").uncheck()
        visit.press("Combine")
        seen = visit.result()
        visit.press("Use as source")
        expect(visit.page.locator("#thumbs li")).to_have_count(1)
        visit.ask("Mirror it")
        visit.press("Edit")
        chained = visit.result()
        expect(visit.page.locator("#earlier li")).to_have_count(2)
        visit.page.locator("#earlier button").first.click()
        assert visit.result() == seen
    form = {"prompt": "The first beside the second", "steps": "1", "seed": "5", "bot_task": "image"}
    assert (pixels(seen) == pixels(by_api(demo, form, PHOTO, OTHER))).all()
    again = by_api(demo, {**form, "prompt": "Mirror it"}, seen)
    assert (pixels(chained) == pixels(again)).all()


def by_api(server: Server, form: dict[str, str], *pictures: bytes) -> bytes:
    files = [("image[]", ("a", picture)) for picture in pictures]
    answer = httpx.post(f"{server.url}/v1/images/edits", data=form, files=files, timeout=60)
    return base64.b64decode(answer.raise_for_status().json()["data"][0]["b64_json"])


def test_words_alone_are_painted_with_all_digits_of_the_seed(browser: Browser, demo: Server) -> None:
    for visit in visiting(Visit(browser, demo.url), demo):
        visit.ask("A lighthouse", Steps="1", Seed=SEED, Size="1:1")
        visit.press("Paint")
        seen = visit.result()
        expect(visit.page.locator("#facts")).to_contain_text(f"seed {SEED}")
        expect(visit.page.get_by_label("Before and after")).to_be_hidden()
    body = {"prompt": "A lighthouse", "steps": 1, "seed": int(SEED), "size": "1:1"}
    answer = httpx.post(f"{demo.url}/v1/images/generations", json=body, timeout=60)
    assert (pixels(seen) == pixels(base64.b64decode(answer.json()["data"][0]["b64_json"]))).all()


# --- what is seen meanwhile


def test_progress_thinking_and_previews_are_shown_while_it_runs(visit: Visit) -> None:
    visit.choose(("photo.jpg", PHOTO))
    visit.ask("good watched", Steps="40")
    visit.press("Edit")
    page = visit.page
    expect(page.locator("#doing")).to_have_text(re.compile(r"Painting, step \d+ of 40"))
    bar = page.get_by_role("progressbar", name="Progress")
    first = int(bar.get_attribute("aria-valuenow") or 0)
    expect(page.locator("#thinking")).to_contain_text("0 1 2 3")
    expect(page.locator("#kind")).to_have_text("Preview")
    expect(page.get_by_alt_text("A preview of the new picture")).to_be_visible()
    assert first < int(bar.get_attribute("aria-valuenow") or 0)
    expect(page.get_by_role("status")).to_have_text("The picture is ready")
    expect(bar).to_be_hidden()
    assert visit.result().startswith(b"\x89PNG")


def test_cancelling_stops_the_server_within_a_step(visit: Visit, server: Server) -> None:
    visit.choose(("photo.jpg", PHOTO))
    visit.ask("good unwanted", Steps="90")
    visit.press("Edit")
    expect(visit.page.locator("#doing")).to_contain_text("Painting")
    left = time.time()
    visit.press("Cancel")
    stopped = until_recorded(server, "end unwanted", 5)
    assert stopped - left < 0.1 + 2 * STEP_S + 1  # the click, the look at the connection, the step, a busy machine
    expect(visit.page.get_by_role("status")).to_have_text("Cancelled")
    expect(visit.page.get_by_role("button", name="Edit", exact=True)).to_be_focused()
    visit.ask("good after-unwanted", Steps="1")
    visit.press("Edit")
    visit.result()


def test_a_full_queue_says_so_and_whoever_waits_sees_its_place(browser: Browser, server: Server) -> None:
    waiting, refused = Visit(browser, server.url), Visit(browser, server.url)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(edit, server, "good", "in-front", 90)
        until_recorded(server, "step in-front")
        waiting.ask("good patient", Steps="1")
        waiting.press("Paint")
        expect(waiting.page.locator("#doing")).to_have_text("Waiting: 1 picture is before yours")
        refused.ask("good refused", Steps="1")
        refused.press("Paint")
        expect(refused.page.get_by_role("alert")).to_contain_text("queue_full")
        expect(refused.page.get_by_role("alert")).to_contain_text(re.compile(r"Try again in \d+ s\."))
        assert first.result().status_code == 200
    waiting.result()
    refused.press("Paint")
    refused.result()
    for visitor in (waiting, refused):
        visitor.close()
        assert visitor.complaints == []


# --- what is refused


def test_a_refused_file_is_told_in_the_servers_words(visit: Visit, server: Server) -> None:
    visit.choose(("notes.png", b"only words"), kind="image/png")
    visit.ask("good words")
    visit.press("Edit")
    said = visit.page.get_by_role("alert")
    expect(said).to_contain_text("invalid_image")
    files = {"image": ("notes.png", b"only words")}
    error = httpx.post(f"{server.url}/v1/images/edits", data={"prompt": "good words"}, files=files).json()["error"]
    expect(said).to_contain_text(error["message"])
    visit.page.get_by_role("button", name="Remove picture 1, notes.png").click()
    expect(visit.page.get_by_label("Choose a picture")).to_be_focused()
    visit.ask("good words", Steps="1")
    visit.press("Paint")
    visit.result()
    expect(said).to_be_empty()


@pytest.mark.parametrize(("field", "value", "says"), [("Steps", "500", "steps: "), ("Size", "big", "size: ")])
def test_the_field_at_fault_is_marked_and_has_the_focus(visit: Visit, field: str, value: str, says: str) -> None:
    visit.ask("good fields", **{field: value})
    visit.press("Paint")
    expect(visit.page.get_by_role("alert")).to_contain_text(says)
    expect(visit.page.get_by_label(field)).to_be_focused()
    expect(visit.page.get_by_label(field)).to_have_attribute("aria-invalid", "true")


UNCOVERED = """() => {
  const alert = document.querySelector("[role=alert]"), { left, width, top, height } = alert.getBoundingClientRect();
  const seen = (part) => document.elementFromPoint(left + width / 2, top + height * part);
  return [0.05, 0.5, 0.95].every((part) => alert.contains(seen(part)));
}"""


@pytest.mark.parametrize("size", [(1200, 900), (1200, 600), (360, 740), (360, 500)])
def test_an_error_is_in_sight_wherever_the_page_was(browser: Browser, server: Server, size: tuple[int, int]) -> None:
    """The form is longer than these windows: the words must be neither below them nor under the button."""
    viewport = {"width": size[0], "height": size[1]}
    for visit in visiting(Visit(browser, server.url, viewport=viewport), server):
        visit.choose(("a.jpg", PHOTO), ("notes.png", b"only words"))
        visit.ask("good words")
        visit.page.get_by_label("What to").press("Control+Enter")
        expect(visit.page.get_by_role("alert")).to_contain_text("image[1]")
        visit.page.wait_for_timeout(1000)  # a window that still scrolls has come to rest
        assert visit.page.evaluate(UNCOVERED)
        expect(visit.page.get_by_role("button", name="Remove picture 2, notes.png")).to_be_focused()
        expect(visit.page.locator("#thumbs .bad")).to_have_count(1)
        visit.page.keyboard.press("Enter")
        expect(visit.page.locator("#thumbs .bad")).to_have_count(0)
        visit.page.locator("#stage").evaluate("(stage) => stage.scrollIntoView()")
        visit.ask("oom-step late", Steps="3")
        visit.page.get_by_label("What to").press("Control+Enter")
        expect(visit.page.get_by_role("alert")).to_contain_text("out_of_memory")
        visit.page.wait_for_timeout(1000)
        assert visit.page.evaluate(UNCOVERED)


def test_a_failure_within_the_stream_is_told(visit: Visit) -> None:
    visit.ask("oom-step late", Steps="3")
    visit.press("Paint")
    expect(visit.page.get_by_role("alert")).to_contain_text("out_of_memory")
    expect(visit.page.get_by_role("progressbar")).to_be_hidden()


def test_a_fourth_picture_is_left_out_and_named(visit: Visit) -> None:
    visit.choose(*((f"{name}.jpg", PHOTO) for name in "abcd"))
    expect(visit.page.get_by_role("alert")).to_contain_text("d.jpg")
    expect(visit.page.locator("#thumbs li")).to_have_count(3)
    expect(visit.page.get_by_label("Add a picture")).to_be_hidden()


# --- ways in


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_pictures_are_taken_by_drop_and_paste(visit: Visit, kind: str) -> None:
    visit.page.evaluate(
        """([kind, bytes]) => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], "photo.jpg", { type: "image/jpeg" }));
            const options = { dataTransfer: data, clipboardData: data, cancelable: true, bubbles: true };
            const Kind = kind === "drop" ? DragEvent : ClipboardEvent;
            document.body.dispatchEvent(new Kind(kind, options));
        }""",
        [kind, list(PHOTO)],
    )
    expect(visit.page.locator("#spread img")).to_have_js_property("naturalWidth", 64)
    visit.ask(f"good by-{kind}", Steps="1")
    visit.press("Edit")
    visit.result()


def test_the_keyboard_alone_will_do(visit: Visit, server: Server) -> None:
    visit.page.keyboard.press("Tab")  # the link to the API
    order = []
    for _ in range(4):
        visit.page.keyboard.press("Tab")
        order.append(visit.page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert order == ["first", "prompt", "SUMMARY", "go"]
    visit.choose(("photo.jpg", PHOTO))
    visit.page.locator("#prompt").focus()
    visit.page.keyboard.type("good typed")
    visit.page.keyboard.press("Control+Enter")
    visit.result()
    slider = visit.page.get_by_label("Before and after")
    slider.focus()
    visit.page.keyboard.press("Home")
    expect(slider).to_have_attribute("aria-valuetext", "100 % of the new picture")
    visit.ask("good escaped", Steps="90")
    visit.page.keyboard.press("Control+Enter")
    until_recorded(server, "step escaped")
    visit.page.keyboard.press("Escape")
    until_recorded(server, "end escaped", 5)


def test_every_control_has_a_name(visit: Visit) -> None:
    visit.choose(("photo.jpg", PHOTO))
    visit.ask("good named", Steps="1")
    visit.press("Edit")
    visit.result()
    nameless = visit.page.evaluate(
        """() => [...document.querySelectorAll("input, textarea, button, a, summary, img")].filter((element) =>
            !(element.labels?.length || element.ariaLabel || element.alt || element.textContent.trim() ||
            element.querySelector("img[alt]")?.alt))
            .map((element) => element.outerHTML)"""
    )
    assert nameless == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_narrow_phone(browser: Browser, server: Server, scheme: str) -> None:
    for visit in visiting(Visit(browser, server.url, color_scheme=scheme, **PHONE), server):
        visit.choose(("a.jpg", PHOTO), ("b.png", OTHER), ("c.jpg", PHOTO))
        visit.ask("good phone", Steps="1")
        expect(visit.page.get_by_role("button", name="Combine")).to_be_in_viewport()
        visit.press("Combine")
        visit.result()
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= 320
        paper = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert paper == {"light": "rgb(250, 249, 247)", "dark": "rgb(20, 19, 18)"}[scheme]


def test_nothing_moves_for_whoever_wants_that(browser: Browser, server: Server) -> None:
    for visit in visiting(Visit(browser, server.url, reduced_motion="reduce"), server):
        visit.page.locator("#bar i").first.evaluate("(part) => part.classList.add('open')")
        assert visit.page.locator("#bar i").first.evaluate("(part) => getComputedStyle(part).animationName") == "none"


# --- the server's state, and its key


def test_the_demo_says_what_it_knows(browser: Browser, server: Server, demo: Server) -> None:
    for visit in visiting(Visit(browser, server.url), server):
        expect(visit.page.locator("#demo")).to_be_hidden()  # it is another model
    for visit in visiting(Visit(browser, demo.url), demo):
        expect(visit.page.locator("#demo")).to_contain_text("This is the built-in demo")
        for request in REQUESTS:
            visit.press(request)
            expect(visit.page.get_by_label("What to")).to_have_value(request)
            expect(visit.page.get_by_label("What to")).to_be_focused()


def test_scripts_of_others_do_not_run(visit: Visit) -> None:
    """The policy is the server's, so it holds for whatever would get into the page."""
    ran = visit.page.evaluate(
        """() => { const script = document.createElement("script"); script.textContent = "window.ran = 1";
            document.head.append(script); return "ran" in window }"""
    )
    assert ran is False
    assert "script-src" in visit.complaints.pop()


def test_the_key_is_asked_for_and_kept_in_the_tab(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("keys")
    with faulty(folder, HUNYUAN_API_KEYS=f"team:{KEY}") as server:
        for visit in visiting(Visit(browser, server.url), server):
            visit.ask("good keyed", Steps="1")
            visit.press("Paint")
            door = visit.page.get_by_role("dialog", name="This server wants a key")
            expect(door).to_contain_text("this needs a key")
            visit.page.get_by_label("Key", exact=True).fill("another-not-a-real-key-1")
            visit.press("Continue")
            expect(door).to_contain_text("none of this server's")
            visit.page.get_by_label("Key", exact=True).fill(KEY)
            visit.page.keyboard.press("Enter")
            visit.result()
            visit.page.reload()
            visit.ask("good again", Steps="1")
            visit.press("Paint")
            visit.result()
            expect(door).to_be_hidden()
            assert not [url for url in visit.asked if KEY in url]
            kept = visit.page.evaluate("JSON.stringify([localStorage, document.cookie])")
            assert json.loads(kept) == [{}, ""]
        assert [what for _, what in record(server)].count("start again") == 1
        assert KEY not in server.log.read_text()


def test_the_page_is_linked_from_the_first_one(server: Server) -> None:
    assert 'href="ui"' in httpx.get(server.url).text
    assert (ROOT / "hunyuan/serving/static/ui/index.html").read_text() == httpx.get(f"{server.url}/ui").text
