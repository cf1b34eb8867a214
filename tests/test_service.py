"""The service's own ASGI app with a stand-in for the editor: what a client sees, without a model."""

from __future__ import annotations

import importlib
import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from types import ModuleType
from typing import Any, NamedTuple
from urllib.parse import unquote

import httpx
import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from hunyuan.errors import InvalidRequest, OutOfMemory
from hunyuan.requests import CancelToken, EditRequest, EditResult, ProgressCallback

# BentoML 1.4 with Pydantic 2.11 and later; neither concerns what it does.
OLD_PYDANTIC = (
    "ignore:The `__get_pydantic_core_schema__` method:DeprecationWarning",
    "ignore:Accessing the 'model_fields' attribute on the instance:DeprecationWarning",
)
pytestmark = [pytest.mark.filterwarnings(line) for line in OLD_PYDANTIC]


class StandInEditor:
    """Does what the prompt says, in the sense of a test; remembers the requests."""

    model_name = "stand-in"
    notice = "a stand-in for the model"

    def __init__(self) -> None:
        self.requests: list[EditRequest] = []
        self.warmed = False
        self.running = self.most = 0

    def warm_up(self) -> None:
        self.warmed = True

    def run(
        self,
        request: EditRequest,
        on_progress: ProgressCallback | None = None,
        cancel: CancelToken | None = None,
        *_: object,
    ) -> EditResult:
        self.requests.append(request)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            return self._answer(request)
        finally:
            self.running -= 1

    def _answer(self, request: EditRequest) -> EditResult:
        if request.prompt == "explode secretly":
            raise RuntimeError(f"cannot draw {request.prompt!r}")
        if request.prompt == "too big":
            raise OutOfMemory("the device ran out of memory") from MemoryError("asked for 80 GiB")
        if request.prompt == "refuse":
            raise InvalidRequest("resolution", "this checkpoint cannot")
        time.sleep(0.02)
        image = request.images[0]
        assert isinstance(image, Image.Image)
        seed = 7 if request.seed is None else request.seed
        timings = {"prepare": 0.0012, "total": 1.5}
        cot = "<think>a sea</think><recaption>a blue boat, 蓝</recaption>"
        return EditResult(image.convert("RGB"), cot, seed, image.size, request.steps or 28, 3, timings)


class Served(NamedTuple):
    client: TestClient
    editor: StandInEditor
    module: ModuleType
    while_loading: dict[str, httpx.Response]


def photo(width: int = 64, height: int = 48, fmt: str = "JPEG") -> bytes:
    values = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(values).save(buffer, format=fmt)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One app for the whole module: BentoML allows one `to_asgi()` a process."""
    editor, loaded = StandInEditor(), threading.Event()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path_factory.mktemp("metrics")))
        patch.setenv("BENTOML_HOME", str(tmp_path_factory.mktemp("bentoml")))
        patch.setenv("BENTOML_DO_NOT_TRACK", "1")
        patch.setenv("HUNYUAN_MAX_UPLOAD_MB", "1")
        patch.setenv("HUNYUAN_JOBS_DIR", str(tmp_path_factory.mktemp("jobs")))
        patch.delenv("MODEL_ID", raising=False)
        module = importlib.import_module("service")

        def load_editor(settings: object) -> StandInEditor:
            loaded.wait()
            return editor

        patch.setattr(module, "load_editor", load_editor)
        with TestClient(module.HunyuanImage.to_asgi(), raise_server_exceptions=False) as client:
            while_loading = {path: client.get(path) for path in ("/livez", "/readyz")}
            while_loading["/edit"] = edit(client)
            loaded.set()
            until_ready(client)
            yield Served(client, editor, module, while_loading)


def until_ready(client: TestClient) -> None:
    end = time.monotonic() + 10
    while client.get("/readyz").status_code != 200:
        assert time.monotonic() < end
        time.sleep(0.01)


def edit(client: TestClient, image: bytes | None = None, headers: dict[str, str] | None = None, **fields: str) -> Any:
    files = {"image": ("photo.jpg", photo() if image is None else image)}
    return client.post("/edit", files=files, data={"prompt": "make it blue", **fields}, headers=headers or {})


def assert_envelope(answer: httpx.Response, status: int, code: str) -> str:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert set(body) == {"error", "message", "request_id"}
    assert body["error"] == code
    assert body["request_id"] == answer.headers["x-request-id"]
    return str(body["message"])


def test_while_loading_it_lives_but_is_not_ready(served: Served) -> None:
    assert served.while_loading["/livez"].status_code == 200
    assert served.while_loading["/readyz"].status_code == 503
    assert served.while_loading["/readyz"].headers["content-type"].startswith("text/plain")
    answer = served.while_loading["/edit"]
    assert_envelope(answer, 503, "loading")
    assert int(answer.headers["retry-after"]) > 0
    assert "x-model" not in answer.headers


def test_once_ready_it_says_what_it_serves(served: Served) -> None:
    answer = served.client.get("/readyz")
    assert answer.text.startswith("ready: stand-in: a stand-in for the model")
    assert answer.headers["content-type"].startswith("text/plain")
    assert answer.headers["x-model"] == "stand-in"
    assert served.editor.warmed
    assert served.client.get("/livez").status_code == 200


def test_an_edit_is_a_png_with_its_headers(served: Served) -> None:
    answer = edit(served.client, seed="42", steps="8", resolution="4:3", headers={"X-Request-ID": "mine-1"})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/png"
    picture = Image.open(BytesIO(answer.content))
    assert (picture.format, picture.size, picture.mode) == ("PNG", (64, 48), "RGB")
    shown = {name: answer.headers[name] for name in ("x-request-id", "x-seed", "x-image-size", "x-steps", "x-model")}
    assert shown == {
        "x-request-id": "mine-1",
        "x-seed": "42",
        "x-image-size": "64x48",
        "x-steps": "8",
        "x-model": "stand-in",
    }
    timings = answer.headers["server-timing"].split(", ")
    assert timings[0].startswith("queue;dur=")
    assert timings[1:] == ["prepare;dur=1.2", "total;dur=1500.0"]
    request = served.editor.requests[-1]
    assert (request.prompt, request.seed, request.steps, request.resolution) == ("make it blue", 42, 8, "4:3")


def test_defaults_are_the_engines_business(served: Served) -> None:
    answer = edit(served.client)
    request = served.editor.requests[-1]
    assert (request.seed, request.steps, request.resolution) == (None, None, "auto")
    assert (answer.headers["x-seed"], answer.headers["x-steps"]) == ("7", "28")
    assert unquote(answer.headers["x-recaption"]) == "a blue boat, 蓝"


@pytest.mark.parametrize("prompt", ["42", "true", '"quoted"', '{"a": 1}', "把背景变蓝"])
def test_a_prompt_arrives_literally(served: Served, prompt: str) -> None:
    assert edit(served.client, prompt=prompt).status_code == 200
    assert served.editor.requests[-1].prompt == prompt


@pytest.mark.parametrize(
    ("fields", "code", "message"),
    [
        (
            {"image": b"no picture"},
            "invalid_image",
            "image: the file (10 bytes) is none of PNG, JPEG",
        ),
        ({"image": b""}, "invalid_image", "image: the file is empty"),
        ({"image": photo()[:900]}, "invalid_image", "image: the file is cut short"),
        ({"image": photo(15, 15)}, "invalid_image", "image: got 15x15 px"),
        ({"prompt": " "}, "invalid_prompt", "prompt: it is blank"),
        ({"seed": "-1"}, "invalid_field", "seed: got -1"),
        ({"steps": "1000"}, "invalid_field", "steps: got 1000; allowed is a whole number from 1 to 100"),
        ({"resolution": "huge"}, "invalid_field", "resolution: got 'huge'"),
        ({"guidance": "3"}, "unknown_field", "guidance: there is no such field"),
    ],
)
def test_bad_input_is_named_and_stays_out_of_the_log(
    served: Served, fields: dict[str, Any], code: str, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "bentoml"):
        assert message in assert_envelope(edit(served.client, **fields), 400, code)
    assert "Traceback" not in caplog.text


def test_an_address_is_not_fetched(served: Served) -> None:
    fields = {"image": (None, "http://127.0.0.1:9/a.png"), "prompt": (None, "x")}
    assert "not fetched" in assert_envelope(served.client.post("/edit", files=fields), 400, "invalid_image")


@pytest.mark.parametrize(
    "content_type", ["application/json", "text/plain", "application/vnd.bentoml+pickle", "application/x-url-encoded"]
)
def test_other_media_types_are_refused(served: Served, content_type: str) -> None:
    answer = served.client.post("/edit", content=b"{}", headers={"Content-Type": content_type})
    assert_envelope(answer, 415, "unsupported_media_type")


@pytest.mark.trap(17)
def test_a_body_over_the_limit_is_refused(served: Served) -> None:
    message = assert_envelope(edit(served.client, image=bytes(1_100_000)), 413, "payload_too_large")
    assert "1,048,576 bytes" in message
    boundary = {"Content-Type": "multipart/form-data; boundary=b"}
    part = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    pieces = (piece for piece in (part, *[bytes(100_000)] * 12))
    assert_envelope(served.client.post("/edit", content=pieces, headers=boundary), 413, "payload_too_large")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("POST", "/edit/", 404, "not_found"),
        ("GET", "/edit", 405, "method_not_allowed"),
        ("POST", "/docs.json", 405, "method_not_allowed"),
    ],
)
def test_the_frameworks_errors_wear_the_envelope(
    served: Served, method: str, path: str, status: int, code: str
) -> None:
    assert_envelope(served.client.request(method, path), status, code)


def test_the_engines_refusal_reaches_the_caller(served: Served) -> None:
    message = assert_envelope(edit(served.client, prompt="refuse"), 400, "invalid_field")
    assert message == "resolution: this checkpoint cannot"


def test_a_failed_edit_is_503_and_its_details_are_logged_without_the_prompt(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    answer = edit(served.client, prompt="explode secretly")
    message = assert_envelope(answer, 503, "inference_failed")
    assert "RuntimeError" not in message
    assert "RuntimeError: cannot draw '<prompt>'" in caplog.text
    assert "secretly" not in caplog.text + message
    assert answer.headers["x-request-id"] in caplog.text
    assert edit(served.client).status_code == 200


def test_the_file_holds_the_prompt_only_where_the_operator_wants_it(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "Prompt" not in Image.open(BytesIO(edit(served.client).content)).text
    server = served.module.SERVER
    monkeypatch.setattr(server, "settings", server.settings.model_copy(update={"png_prompt": True}))
    text = Image.open(BytesIO(edit(served.client, seed="5", steps="3").content)).text
    assert text["Prompt"] == "make it blue"
    assert {name: text[name] for name in ("Seed", "Steps", "Size", "Model")} == {
        "Seed": "5",
        "Steps": "3",
        "Size": "64x48",
        "Model": "stand-in",
    }
    assert text["Software"].startswith("hunyuan-image-bento ")


def test_running_out_of_memory_has_its_own_code(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    assert_envelope(edit(served.client, prompt="too big"), 503, "out_of_memory")
    assert "asked for 80 GiB" in caplog.text


def test_requests_run_one_at_a_time(served: Served) -> None:
    served.editor.most = 0
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda seed: edit(served.client, seed=str(seed)), range(6)))
    assert [answer.headers["x-seed"] for answer in answers] == [str(seed) for seed in range(6)]
    assert served.editor.most == 1


def test_the_openapi_page_is_true(served: Served) -> None:
    operation = served.client.get("/docs.json").json()["paths"]["/edit"]["post"]
    body = operation["requestBody"]["content"]["multipart/form-data"]
    fields = body["schema"]["properties"]
    assert set(fields) == {"image", "prompt", "seed", "steps", "resolution"}
    assert body["schema"]["required"] == ["image", "prompt"]
    assert body["schema"]["additionalProperties"] is False
    assert "encoding" not in body
    assert (fields["image"]["type"], fields["image"]["format"]) == ("string", "binary")
    assert (fields["prompt"]["minLength"], fields["prompt"]["maxLength"]) == (1, 4000)
    assert (fields["seed"]["minimum"], fields["seed"]["maximum"]) == (0, 2**63 - 1)
    assert (fields["steps"]["minimum"], fields["steps"]["maximum"]) == (1, 100)
    assert fields["resolution"]["default"] == "auto"
    answers = operation["responses"]
    assert set(answers["200"]["content"]) == {"image/png"}
    assert set(answers["200"]["headers"]) >= {"X-Seed", "X-Request-ID", "Server-Timing"}
    assert set(answers) == {"200", "400", "401", "408", "413", "415", "429", "431", "503", "504"}


def test_schema_for_bentomls_own_client(served: Served) -> None:
    (route,) = served.client.get("/schema.json").json()["routes"]
    assert route["input"]["properties"]["image"]["type"] == "file"
    assert route["output"]["media_type"] == "image/png"
    assert route["is_task"] is True


def test_the_openapi_page_shows_the_routes_of_jobs(served: Served) -> None:
    paths = served.client.get("/docs.json").json()["paths"]
    found = {path: list(item) for path, item in paths.items() if path.startswith("/edit/")}
    assert found == {
        "/edit/submit": ["post"],
        "/edit/status": ["get"],
        "/edit/get": ["get"],
        "/edit/retry": ["post"],
        "/edit/cancel": ["put"],
    }
    submit = paths["/edit/submit"]["post"]
    assert submit["requestBody"] == paths["/edit"]["post"]["requestBody"]
    assert set(submit["responses"]) == {*paths["/edit"]["post"]["responses"], "507"}
    assert set(paths["/edit/get"]["get"]["responses"]["200"]["content"]) == {"image/png"}


def test_metrics_are_plain(served: Served) -> None:
    answer = served.client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")


def test_the_services_configuration(served: Served) -> None:
    config = served.module.HunyuanImage.config
    assert config["resources"] == {"gpu": 1, "gpu_type": "nvidia-h100-80gb"}
    assert config["workers"] == 1
    assert config["traffic"]["timeout"] > served.module.SETTINGS.request_timeout_s
    assert config["http"]["port"] == 8000
