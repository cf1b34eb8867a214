"""Requests made up from the service's own OpenAPI page: never a 5xx, one shape for every error, memory flat.

schemathesis reads /docs.json of a real server and makes valid and invalid forms; the engine is a stand-in. The long
form is the same with more examples, and prints its figures:

    OPENAPI_EXAMPLES=1000 python -m pytest -s tests/test_openapi.py
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

import httpx
import pytest
from openai_events import assert_error_body

from hunyuan import __version__
from hunyuan.compare.sample_photos import encoded, photo
from hunyuan.serving.jobs.routes import ACTIONS
from scripts.support.local_server import STAND_IN, LocalServer, local_server

if TYPE_CHECKING:  # imported where they are needed: they take as long as PyTorch, and every run collects this file
    import schemathesis
    from hypothesis.strategies import SearchStrategy

pytestmark = pytest.mark.server

PLAIN_PATHS = {"/livez", "/healthz", "/readyz", "/metrics", "/", "/docs.json", "/schema.json"}
WORDS_ALONE = "/v1/images/generations"
EXAMPLES = int(os.environ.get("OPENAPI_EXAMPLES", "60"))
MEMORY_GROWTH = 1.05
SEEN: Counter[int] = Counter()


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    with local_server(target=STAND_IN) as running:
        yield running


@pytest.fixture(scope="module")
def api(server: LocalServer) -> schemathesis.schemas.BaseSchema:
    import schemathesis

    return schemathesis.openapi.from_url(f"{server.url}/docs.json")


def assert_ours(status: int, headers: dict[str, str], body: object) -> None:
    assert status < 500, body
    if status == 200:
        return
    assert isinstance(body, dict), body
    assert set(body) == {"error", "message", "request_id"}
    assert all(isinstance(value, str) and value for value in body.values())
    assert body["request_id"] == headers["x-request-id"]


@pytest.mark.parametrize("kind", ["positive", "negative"])
@pytest.mark.parametrize("path", ["/edit", "/edit/submit", "/v1/images/edits", WORDS_ALONE])
def test_whatever_the_page_allows_or_forbids(
    server: LocalServer, api: schemathesis.schemas.BaseSchema, path: str, kind: str
) -> None:
    from schemathesis import GenerationMode

    mode = GenerationMode(kind)
    operations = {found.ok().path: found.ok() for found in api.get_all_operations()}
    for operation in operations.values():  # the first requests of a process fill its caches
        try_many(operation.as_strategy(generation_mode=mode), 10 if operation.path == path else 3)
    SEEN.clear()
    before, began = server.rss_mib() or 0.0, time.monotonic()
    try_many(operations[path].as_strategy(generation_mode=mode), EXAMPLES)
    after = server.rss_mib() or 0.0
    answers = ", ".join(f"{count} x {status}" for status, count in sorted(SEEN.items()))
    print(
        f"{path}, {kind}: {answers} in {time.monotonic() - began:.0f} s; memory {before:.0f} MiB, then {after:.0f} MiB"
    )
    if path != WORDS_ALONE:
        assert SEEN[400] >= EXAMPLES / 2  # what schemathesis calls an image is none
    elif kind == "positive":
        assert SEEN[200] >= EXAMPLES / 4
    assert 0 < after < before * MEMORY_GROWTH


def try_many(cases: SearchStrategy[schemathesis.Case], count: int) -> None:
    """The library's own pytest marks need an older pytest; its strategies work without them."""
    from hypothesis import HealthCheck, given, settings
    from hypothesis.errors import Unsatisfiable

    @settings(max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=HealthCheck)
    @given(case=cases)
    def attempt(case: schemathesis.Case) -> None:
        answer = case.call(timeout=20)
        SEEN[answer.status_code] += 1
        if case.operation.path in PLAIN_PATHS:
            assert answer.status_code < 500
            return
        headers = {name.lower(): values[0] for name, values in answer.headers.items()}
        body = None if answer.status_code == 200 else answer.json()
        if case.operation.path.startswith("/v1/") and body is not None:
            assert answer.status_code < 500, body
            assert_error_body(body, body["error"]["code"])
        else:
            assert_ours(answer.status_code, headers, body)

    with suppress(Unsatisfiable):  # nothing can be invalid about a GET without parameters
        attempt()


def test_the_page_is_this_services_and_says_where_a_key_goes(server: LocalServer) -> None:
    page = httpx.get(f"{server.url}/docs.json", timeout=20).json()
    assert (page["info"]["title"], page["info"]["version"]) == ("hunyuan-image-bento", __version__)
    assert page["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    assert "bentoml.com" not in json.dumps(page)
    operations = {(m, path): told for path, item in page["paths"].items() for m, told in item.items()}
    ours = {name: told for name, told in operations.items() if name[1] not in PLAIN_PATHS}
    jobs = {(m.lower(), f"/edit/{action}") for action, m in ACTIONS.items()}
    painting = {("post", "/edit"), ("post", "/v1/images/edits"), ("post", WORDS_ALONE)}
    assert set(ours) == jobs | painting | {("get", "/v1/models"), ("get", "/v1/models/{model}")}
    for name, told in ours.items():
        assert told["security"] == [{}, {"key": []}], name
        assert told["responses"]["401"]["description"].startswith("unauthorized"), name


@pytest.mark.parametrize("steps", ["1", "100", None])
@pytest.mark.parametrize("resolution", ["auto", "1024x1024", "4:3", None])
def test_a_form_within_the_documented_bounds_is_accepted(
    server: LocalServer, steps: str | None, resolution: str | None
) -> None:
    fields = {"prompt": "x", "steps": steps, "resolution": resolution}
    data = {name: value for name, value in fields.items() if value is not None}
    files = {"image": ("x.png", encoded(photo(64, 48), "PNG"))}
    answer = httpx.post(f"{server.url}/edit", files=files, data=data, timeout=20)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/png"


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS"])
@pytest.mark.parametrize("path", ["/edit", "/edit/", "/nothing", "/..%2fetc", "/v2/images/edits"])
def test_other_methods_and_paths_get_the_envelope(server: LocalServer, method: str, path: str) -> None:
    answer = httpx.request(method, f"{server.url}{path}", timeout=20)
    assert answer.status_code in {404, 405}
    assert_ours(answer.status_code, dict(answer.headers), answer.json())
