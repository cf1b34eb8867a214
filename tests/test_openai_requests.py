"""What /v1 answers to the bad requests of `POST /edit`, in its own shape, and to some that only it can get.

The editor is the scripted one of the fault tests. After each bad request a good one must work.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from bad_requests import (
    BODIES,
    END,
    FIELDS,
    IMAGE,
    IMAGES,
    PHOTO,
    PROMPT,
    UPLOAD_LIMIT_MB,
    Bad,
    assert_leave_no_memory_behind,
    part,
    send,
)
from openai_events import assert_error, events_of
from server_process import Server, running

pytestmark = pytest.mark.server

FAULTY = Path(__file__).parent / "faulty"
EDITS, GENERATIONS, MODELS = "/v1/images/edits", "/v1/images/generations", "/v1/models"
URL = "data:image/jpeg;base64," + base64.b64encode(PHOTO).decode()
ROUTES = {
    **{
        f"{method} {EDITS}": Bad(405, "method_not_allowed", "takes POST only", b"", None, method)
        for method in ("GET", "PUT")
    },
    f"POST {MODELS}": Bad(405, "method_not_allowed", "GET", b"", None, path=MODELS),
    **{
        f"POST {path}": Bad(404, "not_found", EDITS, IMAGE + PROMPT + END, path=path)
        for path in ("/v1", "/v1/", f"{EDITS}/", "/v1/images/variations", "/v1/chat/completions")
    },
}


def json_bad(status: int, code: str, says: str, path: str = EDITS, **fields: Any) -> Bad:
    body = json.dumps({"prompt": "good", **fields}).encode()
    return Bad(status, code, says, body, "application/json", path=path)


JSON = {
    "no images": json_bad(400, "invalid_image", "images: this field is missing"),
    "an address": json_bad(400, "invalid_image", "not fetched", images=["http://127.0.0.1:9/a.png"]),
    "a broken data URL": json_bad(400, "invalid_image", "base64 is broken", images=["data:image/png;base64,?"]),
    "no picture": json_bad(400, "invalid_image", "images[0]: ", images=["data:image/png;base64,AAAA"]),
    "one of three no picture": json_bad(
        400, "invalid_image", "images[1]: ", images=[URL, "data:image/png;base64,AAAA", URL]
    ),
    "one of two files no picture": Bad(
        *(400, "invalid_image", "image[1]: "),
        part("image[]", PHOTO, "a.jpg") + part("image[]", b"AAA", "b.jpg") + PROMPT + END,
        path=EDITS,
    ),
    "n as text": json_bad(400, "invalid_field", "n: got '2'", images=[URL], n="2"),
    "a mask": json_bad(400, "invalid_field", "mask: this model takes no mask", images=[URL], mask={"image_url": URL}),
    "an unknown field": json_bad(400, "unknown_field", "hue: there is no such field", images=[URL], hue=1),
    "a field in the address": json_bad(400, "unknown_field", "n: fields go into the body", f"{GENERATIONS}?n=2"),
    "an address of a form's field": json_bad(400, "unknown_field", "seed: fields go", f"{EDITS}?seed=1", images=[URL]),
    "a picture to generate from": json_bad(400, "invalid_field", EDITS, GENERATIONS, images=[URL]),
    "a form to generate from": Bad(415, "unsupported_media_type", "application/json", PROMPT + END, path=GENERATIONS),
    "an address to answer with": json_bad(
        400, "invalid_field", "keeps no pictures", GENERATIONS, response_format="url"
    ),
    "transparency": json_bad(400, "invalid_field", "no transparency", GENERATIONS, background="transparent"),
    "no prompt": Bad(
        400, "invalid_prompt", "prompt: this field is missing", b"{}", "application/json", path=GENERATIONS
    ),
    "too large": json_bad(413, "payload_too_large", "1,048,576", images=["data:image/png;base64," + "A" * 1_100_000]),
}


def twin(name: str, bad: Bad) -> Bad:
    """The same request to /v1, where what is called `resolution` is `size`, and JSON is a way in."""
    body = bad.body.replace(b'name="resolution"', b'name="size"') if isinstance(bad.body, bytes) else bad.body
    says = bad.says.replace("resolution: ", "size: ").replace("image, prompt, seed", "image, image[], prompt")
    if name == "JSON":
        return bad._replace(status=400, code="invalid_image", says="images: this field is missing", path=EDITS)
    return bad._replace(body=body, says=says, path=bad.path if bad.path != "/edit" else EDITS)


TAKEN_HERE = {"list of images"}
TWINS = {name: twin(name, bad) for name, bad in (FIELDS | IMAGES | BODIES).items() if name not in TAKEN_HERE}
TWINS |= {name: bad._replace(path=bad.path if bad.path != "/edit" else EDITS) for name, bad in ROUTES.items()}
CASES = {**TWINS, **{f"JSON: {name}": bad for name, bad in JSON.items()}}
STREAM = part("stream", "true") + part("stream_progress", "true")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("bad")
    extra = {"FAULTS_RECORD": str(folder / "record"), "HUNYUAN_MAX_UPLOAD_MB": str(UPLOAD_LIMIT_MB)}
    with running(folder, "faulty_service:HunyuanImage", FAULTY, **extra) as shared:
        yield shared


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30, verify=False) as shared:
        yield shared


def assert_refused(server: Server, answer: httpx.Response, bad: Bad, request_id: str) -> None:
    error = assert_error(answer, bad.status, bad.code)
    assert bad.says in error["message"]
    assert error["type"] == "invalid_request_error"
    assert answer.headers["x-request-id"] == request_id
    if bad.code in ("invalid_image", "invalid_prompt", "invalid_field", "unknown_field"):
        assert error["message"].startswith(f"{error['param']}: ")
    else:
        assert error["param"] is None
    line = server.request_line(request_id)
    assert (line["status"], line["error"]) == (bad.status, bad.code)


@pytest.mark.parametrize("name", CASES)
def test_a_bad_request_gets_openais_shape_and_the_next_one_works(
    server: Server, client: httpx.Client, name: str
) -> None:
    bad, number = CASES[name], list(CASES).index(name)
    assert_refused(server, send(client, bad, f"bad-{number}"), bad, f"bad-{number}")
    good = send(client, Bad(200, "", "", IMAGE + PROMPT + part("steps", "1") + END, path=EDITS), f"good-{number}")
    assert good.status_code == 200, good.text
    assert set(good.json()) == {"created", "data", "size", "quality", "background", "output_format", "usage"}


@pytest.mark.parametrize("name", [name for name in TWINS if name in FIELDS | IMAGES])
def test_asking_for_a_stream_changes_nothing_about_it(server: Server, client: httpx.Client, name: str) -> None:
    bad, request_id = CASES[name], f"stream-{list(CASES).index(name)}"
    assert isinstance(bad.body, bytes)
    answer = send(client, bad._replace(body=STREAM + bad.body), request_id)
    assert_refused(server, answer, bad, request_id)


def test_the_table_is_as_long_as_that_of_an_edit() -> None:
    assert len(CASES) >= len(FIELDS | IMAGES | BODIES) - len(TAKEN_HERE) + len(ROUTES) + len(JSON) >= 90


def test_several_files_and_words_alone_are_taken(client: httpx.Client) -> None:
    body = part("image[]", PHOTO, "a.jpg") * 3 + PROMPT + part("steps", "1") + END
    assert send(client, Bad(200, "", "", body, path=EDITS), "three").status_code == 200
    words = client.post(GENERATIONS, json={"prompt": "good", "steps": 1})
    assert words.status_code == 200
    urls = client.post(EDITS, json={"prompt": "good", "steps": 1, "images": [URL, {"image_url": URL}]})
    assert urls.status_code == 200


def test_the_events_of_a_stream_are_those_of_the_documents(client: httpx.Client) -> None:
    wish = {"prompt": "good", "images": [URL], "n": 2, "steps": 3, "stream": True, "seed": 5, "output_format": "jpeg"}
    with client.stream("POST", EDITS, json={**wish, "partial_images": 1, "stream_progress": True}) as answer:
        assert answer.headers["cache-control"] == "no-cache"
        events = list(events_of(answer))
    assert events[0] == {"type": "hunyuan.queue", "ahead": 0}
    kinds = [event["type"] for event in events]
    assert set(kinds[1:]) == {"hunyuan.stage", "hunyuan.text", "image_edit.partial_image", "image_edit.completed"}
    edits = client.get("/docs.json").json()["paths"][EDITS]["post"]
    told = edits["responses"]["200"]["content"]["text/event-stream"]["schema"]["description"]
    assert {*kinds, "error"} == set(told.partition(": ")[2].split(", ")), "the OpenAPI page names the same"
    made = {"size": "64x48", "quality": "medium", "background": "opaque", "output_format": "jpeg"}
    for index in (0, 1):
        mine = [event for event in events[1:] if event["index"] == index]
        partial, completed = (next(e for e in mine if e["type"].endswith(kind)) for kind in ("image", "completed"))
        assert mine[-1] is completed
        assert base64.b64decode(partial.pop("b64_json")).startswith(b"\xff\xd8")
        assert partial.pop("created_at") > 1.7e9
        assert partial == {"type": "image_edit.partial_image", "index": index, "partial_image_index": 0, **made}
        assert base64.b64decode(completed.pop("b64_json")).startswith(b"\xff\xd8")
        assert completed.pop("created_at") > 1.7e9
        assert completed.pop("usage")["total_tokens"] == 123
        extras = {"revised_prompt": None, "cot_text": None, "seed": 5 + index}
        assert completed == {"type": "image_edit.completed", "index": index, **made, **extras}
        last = [event for event in mine if event["type"] == "hunyuan.stage"][-1]
        assert last == {"type": "hunyuan.stage", "index": index, "stage": "denoise", "done": 3, "total": 3}
        assert "".join(event["text"] for event in mine if event["type"] == "hunyuan.text") == "0 1 2 "


def test_without_progress_there_are_openais_events_only(client: httpx.Client) -> None:
    wish = {"prompt": "good", "steps": 3, "stream": True, "partial_images": 2}
    with client.stream("POST", GENERATIONS, json=wish) as answer:
        kinds = [event["type"] for event in events_of(answer)]
    assert kinds == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]


def test_the_log_knows_the_route_and_nothing_of_the_request(server: Server, client: httpx.Client) -> None:
    wish = {"prompt": "error-step private", "system_prompt": "discreet", "cot_text": "unsaid", "n": 2, "steps": 1}
    answer = client.post(GENERATIONS, json=wish, headers={"X-Request-ID": "private"})
    assert_error(answer, 503, "inference_failed")
    line = server.request_line("private")
    assert (line["path"], line["images"], line["pictures"], line["error"]) == (GENERATIONS, 0, 0, "inference_failed")
    log = server.log.read_text()
    assert "shapes do not match" in log
    for secret in ("error-step private", "discreet", "unsaid", "base64"):
        assert secret not in log


def test_bad_requests_leave_no_memory_behind(server: Server, client: httpx.Client) -> None:
    assert_leave_no_memory_behind(server, client, CASES)
