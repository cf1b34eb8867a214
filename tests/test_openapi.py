"""Requests made up from the service's own OpenAPI page: never a 5xx, and one shape for every error.

schemathesis reads /docs.json of a real server and makes valid and invalid forms; the engine is a stand-in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from hypothesis.strategies import SearchStrategy
from local_server import STAND_IN, LocalServer, local_server
from sample_photos import encoded, photo
from schemathesis import GenerationMode

pytestmark = pytest.mark.server

PLAIN_PATHS = {"/livez", "/healthz", "/readyz", "/metrics", "/", "/docs.json", "/schema.json"}
EXAMPLES = 60
SEEN: Counter[int] = Counter()


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    with local_server(target=STAND_IN) as running:
        yield running


@pytest.fixture(scope="module")
def api(server: LocalServer) -> schemathesis.schemas.BaseSchema:
    return schemathesis.openapi.from_url(f"{server.url}/docs.json")


def assert_ours(status: int, headers: dict[str, str], body: object) -> None:
    assert status < 500, body
    if status == 200:
        return
    assert isinstance(body, dict), body
    assert set(body) == {"error", "message", "request_id"}
    assert all(isinstance(value, str) and value for value in body.values())
    assert body["request_id"] == headers["x-request-id"]


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_whatever_the_page_allows_or_forbids(api: schemathesis.schemas.BaseSchema, mode: GenerationMode) -> None:
    paths = set()
    for found in api.get_all_operations():
        operation = found.ok()
        paths.add(operation.path)
        try_many(operation.as_strategy(generation_mode=mode), EXAMPLES if operation.path == "/edit" else 3)
    assert "/edit" in paths
    assert SEEN[400] >= EXAMPLES / 2  # what schemathesis calls an image is none


def try_many(cases: SearchStrategy[schemathesis.Case], count: int) -> None:
    """The library's own pytest marks need an older pytest; its strategies work without them."""

    @settings(max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=HealthCheck)
    @given(case=cases)
    def attempt(case: schemathesis.Case) -> None:
        answer = case.call(timeout=20)
        SEEN[answer.status_code] += 1
        if case.operation.path in PLAIN_PATHS:
            assert answer.status_code < 500
            return
        headers = {name.lower(): values[0] for name, values in answer.headers.items()}
        assert_ours(answer.status_code, headers, None if answer.status_code == 200 else answer.json())

    with suppress(Unsatisfiable):  # nothing can be invalid about a GET without parameters
        attempt()


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
@pytest.mark.parametrize("path", ["/edit", "/edit/", "/nothing", "/..%2fetc"])
def test_other_methods_and_paths_get_the_envelope(server: LocalServer, method: str, path: str) -> None:
    answer = httpx.request(method, f"{server.url}{path}", timeout=20)
    assert answer.status_code in {404, 405}
    assert_ours(answer.status_code, dict(answer.headers), answer.json())
