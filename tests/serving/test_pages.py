"""The pages as files: what they name is there, how they are sent, and that their colours can be read."""

from __future__ import annotations

import re

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route
from starlette.testclient import TestClient

from hunyuan.api_keys import keys_of
from hunyuan.demo import ABOUT, REQUESTS
from hunyuan.serving.door import Door
from hunyuan.serving.http_errors import Unauthorized
from hunyuan.serving.pages import FILES, FOLDER, is_named, use_our_pages

KB = 1000
UI = [FOLDER / name for name in FILES.values() if name.startswith("ui/")]
HTML = (FOLDER / "ui/index.html").read_text()
CSS = (FOLDER / "ui/ui.css").read_text()


@pytest.fixture(scope="module")
def client() -> httpx.Client:
    async def framework(_: object) -> Response:
        return Response("the framework's")

    app = Starlette(routes=[Route("/", framework, name="index"), Route("/kept", framework)])
    use_our_pages(app)
    return TestClient(app, follow_redirects=False)


def test_every_file_in_the_folder_is_served_and_no_other() -> None:
    there = {path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*") if path.is_file()}
    assert sorted(FILES.values()) == sorted(there)


def test_the_page_is_small() -> None:
    assert sum(path.stat().st_size for path in UI) < 40 * KB


@pytest.mark.parametrize("path", FILES)
def test_a_file_is_sent_once_and_then_only_asked_for(client: httpx.Client, path: str) -> None:
    first = client.get(path)
    assert first.status_code == 200
    assert first.content == (FOLDER / FILES[path]).read_bytes()
    policy = dict(part.split(" ", 1) for part in first.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert first.headers["x-content-type-options"] == "nosniff"
    assert first.headers["cache-control"] == "no-cache"
    again = client.get(path, headers={"If-None-Match": f'"old", W/{first.headers["etag"]}'})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]
    assert client.get(path, headers={"If-None-Match": '"old"'}).status_code == 200
    assert client.head(path).headers["content-length"] == str(len(first.content))


def test_tags_differ_and_the_star_names_any(client: httpx.Client) -> None:
    tags = [client.get(path).headers["etag"] for path in FILES]
    assert len(set(tags)) == len(tags)
    assert is_named('"a"', ["*"])
    assert not is_named('"a"', ['"b"', 'W/"c", a'])
    assert not is_named('"a"', [])


def test_the_slash_at_its_end_leads_to_the_page(client: httpx.Client) -> None:
    """Its files are named from the folder above: with the slash they would not be found."""
    answer = client.get("/ui/")
    assert (answer.status_code, answer.headers["location"]) == (308, "../ui")
    assert client.get("/kept").text == "the framework's"


def test_no_file_wants_a_key() -> None:
    door = Door(keys_of("team:3f9a-not-a-real-key-0217"))
    for path in (*FILES, "/ui/"):
        assert door.admit({"type": "http", "path": path, "method": "GET", "headers": []}) is None
    with pytest.raises(Unauthorized):
        door.admit({"type": "http", "path": "/v1/images/edits", "method": "GET", "headers": []})


def test_every_file_that_is_named_is_there() -> None:
    named = set(re.findall(r'(?:src|href)="(ui/[^"]+)"', HTML))
    for script in (path for path in UI if path.suffix == ".js"):
        named |= {f"ui/{name}" for name in re.findall(r'from "\./([^"]+)"', script.read_text())}
    assert named | {"ui/index.html"} == {path.relative_to(FOLDER).as_posix() for path in UI}


def test_every_element_that_a_script_asks_for_is_there() -> None:
    there = set(re.findall(r'id="([\w-]+)"', HTML))
    for script in (path for path in UI if path.suffix == ".js"):
        assert set(re.findall(r'byId\("([\w-]+)"\)', script.read_text())) <= there, script.name


def test_nothing_is_written_where_the_policy_forbids_it() -> None:
    assert not re.search(r"<script>|<style|\sstyle=|\son\w+=", HTML)
    for path in UI:
        assert not re.search(r"https?://|//[a-z]+\.|@import|eval\(|innerHTML", path.read_text()), path.name


def test_the_demos_requests_are_offered() -> None:
    chips = re.search(r'<p class="chips">(.*?)</p>', HTML, re.DOTALL)
    assert chips is not None
    assert tuple(re.findall(r'<button type="button">(.*?)</button>', chips[1])) == REQUESTS


def colours(block: str) -> dict[str, str]:
    found = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{3,6});", block))
    return {
        name: value if len(value) == 7 else "#" + "".join(c * 2 for c in value[1:]) for name, value in found.items()
    }


def contrast(one: str, other: str) -> float:
    """WCAG 2's ratio of two colours, 1 to 21."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_can_be_read_in_both_schemes(scheme: int) -> None:
    colour = colours(re.findall(r":root \{(.*?)\}", CSS, re.DOTALL)[scheme])
    pairs = [("ink", "paper"), ("ink", "card"), ("ink", "well"), ("soft", "paper"), ("soft", "well"), ("soft", "card")]
    for text, ground in [*pairs, ("on-ink", "ink"), ("bad", "bad-well")]:
        assert contrast(colour[text], colour[ground]) >= 4.5, (text, ground)
    assert contrast(colour["accent"], colour["paper"]) >= 3  # the ring of the focus, the bar


@pytest.mark.parametrize("page", ["index.html", "ui/index.html"])
def test_of_the_demo_no_more_is_promised_than_it_keeps(page: str) -> None:
    told = (FOLDER / page).read_text(encoding="utf-8")
    for text in (told, ABOUT):
        assert "about 256x256 pixels" in text
        assert "should give the picture back" in text
    assert all(request in told and request in ABOUT for request in REQUESTS)
