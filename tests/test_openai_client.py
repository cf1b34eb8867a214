"""OpenAI's own client, against a real server with the tiny checkpoint: what it reads is what was painted."""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from openai.types import ImagesResponse
from PIL import Image
from server_process import Server, photo_bytes, running

pytestmark = pytest.mark.server

PHOTO, OTHER = photo_bytes(64, 64), photo_bytes(60, 64, "PNG")
EXTRA: dict[str, Any] = {"steps": 3, "seed": 5, "max_new_tokens": 16}
WISH: dict[str, Any] = {"prompt": "Make the sky red", "size": "1:1", "extra_body": EXTRA}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("openai")) as shared:
        yield shared


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(api_key="none is needed", base_url=f"{server.url}/v1", max_retries=0) as shared:
        yield shared


def pixels(b64_json: str | None, fmt: str = "PNG") -> np.ndarray:
    assert b64_json is not None
    with Image.open(BytesIO(base64.b64decode(b64_json))) as picture:
        assert picture.format == fmt
        return np.asarray(picture.convert("RGB"))


def only(answer: ImagesResponse) -> Any:
    assert answer.data is not None
    (image,) = answer.data
    return image


@pytest.fixture(scope="module")
def edited(client: openai.OpenAI) -> ImagesResponse:
    return client.images.edit(image=("a.jpg", PHOTO), **WISH)


def test_an_edit_is_that_of_the_other_route(server: Server, edited: ImagesResponse) -> None:
    fields = {"prompt": WISH["prompt"], "resolution": "1:1", "steps": "3", "seed": "5"}
    answer = httpx.post(f"{server.url}/edit", files={"image": ("a.jpg", PHOTO)}, data=fields, timeout=100)
    assert answer.status_code == 200, answer.text
    with Image.open(BytesIO(answer.content)) as picture:
        assert np.array_equal(np.asarray(picture), pixels(only(edited).b64_json))


def test_an_answer_tells_how_the_picture_came_about(edited: ImagesResponse) -> None:
    image, usage = only(edited), edited.usage
    assert (edited.background, edited.output_format, edited.quality) == ("opaque", "png", "medium")
    assert (edited.size, image.size) == ("256x256", "256x256")
    assert image.seed == 5
    assert image.cot_text.startswith("<think>")
    assert image.revised_prompt in image.cot_text
    assert usage is not None
    details, written = usage.input_tokens_details, usage.output_tokens_details
    assert written is not None
    assert details.image_tokens > 0 < details.text_tokens
    assert (written.image_tokens, 0 < written.text_tokens <= 16) == (16 * 16, True)
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens


def test_several_pictures_are_those_of_the_seeds_alone(client: openai.OpenAI, edited: ImagesResponse) -> None:
    both = client.images.edit(image=("a.jpg", PHOTO), n=2, **WISH)
    assert both.data is not None
    assert [image.seed for image in both.data] == [5, 6]  # type: ignore[attr-defined]
    alone = client.images.edit(image=("a.jpg", PHOTO), **{**WISH, "extra_body": {**EXTRA, "seed": 6}})
    assert both.data[0].b64_json == only(edited).b64_json
    assert both.data[1].b64_json == only(alone).b64_json
    assert both.data[0].b64_json != both.data[1].b64_json
    assert both.usage is not None
    assert edited.usage is not None
    assert both.usage.input_tokens == 2 * edited.usage.input_tokens


def test_a_fusion_and_its_twin_in_json(server: Server, client: openai.OpenAI, edited: ImagesResponse) -> None:
    fused = client.images.edit(image=[("a.jpg", PHOTO), ("b.png", OTHER)], **WISH)
    assert edited.usage is not None
    assert fused.usage is not None
    assert fused.usage.input_tokens_details.image_tokens > edited.usage.input_tokens_details.image_tokens
    urls = [
        f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
        for kind, data in (("jpeg", PHOTO), ("png", OTHER))
    ]
    body = {"prompt": WISH["prompt"], "size": "1:1", **EXTRA, "images": [{"image_url": url} for url in urls]}
    answer = httpx.post(f"{server.url}/v1/images/edits", json=body, timeout=100)
    assert answer.json()["data"][0]["b64_json"] == only(fused).b64_json


def test_words_alone_in_another_format(client: openai.OpenAI) -> None:
    made = client.images.generate(**WISH, output_format="webp", output_compression=80, background="opaque")
    assert made.output_format == "webp"
    assert pixels(only(made).b64_json, "WEBP").shape == (256, 256, 3)
    assert made.usage is not None
    assert made.usage.input_tokens_details.image_tokens == 0


def test_a_stream_with_previews_ends_with_the_same_picture(client: openai.OpenAI, edited: ImagesResponse) -> None:
    events = list(client.images.edit(image=("a.jpg", PHOTO), stream=True, partial_images=2, **WISH))
    assert [event.type for event in events] == ["image_edit.partial_image"] * 2 + ["image_edit.completed"]
    first, second, completed = events
    assert [first.partial_image_index, second.partial_image_index] == [0, 1]  # type: ignore[union-attr]
    assert completed.usage.total_tokens == edited.usage.total_tokens  # type: ignore[union-attr]
    assert completed.b64_json == only(edited).b64_json
    last = pixels(completed.b64_json).astype(int)
    far, near = (np.abs(pixels(event.b64_json).astype(int) - last).mean() for event in (first, second))
    assert far > near > 0


def test_a_stream_tells_of_progress_and_of_the_thinking(client: openai.OpenAI, edited: ImagesResponse) -> None:
    wish = {**WISH, "extra_body": {**EXTRA, "stream_progress": True}}
    events = [event.to_dict() for event in client.images.edit(image=("a.jpg", PHOTO), stream=True, **wish)]
    assert events[0] == {"type": "hunyuan.queue", "ahead": 0}
    text = "".join(str(event["text"]) for event in events if event["type"] == "hunyuan.text")
    assert text == only(edited).cot_text
    stages = [event for event in events if event["type"] == "hunyuan.stage"]
    assert list(dict.fromkeys(event["stage"] for event in stages)) == ["prefill", "think", "denoise", "vae"]
    assert stages[-1] == {"type": "hunyuan.stage", "index": 0, "stage": "vae", "done": 1, "total": 1}
    assert events[-1]["type"] == "image_edit.completed"


def test_the_asynchronous_client_does_the_same(server: Server, edited: ImagesResponse) -> None:
    async def stream() -> list[Any]:
        async with openai.AsyncOpenAI(api_key="any", base_url=f"{server.url}/v1", max_retries=0) as client:
            return [event async for event in await client.images.edit(image=("a.jpg", PHOTO), stream=True, **WISH)]

    (completed,) = asyncio.run(stream())
    assert completed.b64_json == only(edited).b64_json


def test_low_quality_paints_faster_and_something_else(client: openai.OpenAI) -> None:
    """The step cache forecasts steps; with as many steps as this some are."""
    wish = {**WISH, "extra_body": {**EXTRA, "steps": 8, "bot_task": "image"}}
    medium, low = (only(client.images.generate(**wish, quality=quality)) for quality in ("medium", "low"))
    assert not np.array_equal(pixels(medium.b64_json), pixels(low.b64_json))


def test_there_is_one_model(server: Server, client: openai.OpenAI) -> None:
    served = httpx.get(f"{server.url}/readyz").headers["x-model"]
    (listed,) = client.models.list()
    assert listed.id == served
    assert client.models.retrieve(served) == listed


@pytest.mark.parametrize("name", ["gpt-image-1", "tiny/more", "{model:path}", "ünï"])
def test_another_model_is_not_found(server: Server, client: openai.OpenAI, name: str) -> None:
    before = endpoints_counted(server)
    with pytest.raises(openai.NotFoundError, match="no such model here") as caught:
        client.models.retrieve(name)
    error = caught.value
    assert (error.code, error.param, error.type) == ("model_not_found", "model", "invalid_request_error")
    assert endpoints_counted(server) == before


def endpoints_counted(server: Server) -> set[str]:
    """Names that somebody tries must not become figures: there is no end of them."""
    return set(re.findall(r'endpoint="(/v1/models/[^"]*)"', httpx.get(f"{server.url}/metrics").text))


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"background": "transparent"}, "background", "invalid_field"),
        ({"response_format": "url"}, "response_format", "invalid_field"),
        ({"mask": ("m.png", OTHER)}, "mask", "invalid_field"),
        ({"input_fidelity": "high"}, "input_fidelity", "invalid_field"),
        ({"markup": ("m.png", OTHER)}, "markup", "invalid_field"),
        ({"svg": {"model": "x"}}, "svg[model]", "invalid_field"),
        ({"frame_count": 4}, "frame_count", "invalid_field"),
        ({"output_format": "gif"}, "output_format", "invalid_field"),
        ({"n": 5}, "n", "invalid_field"),
        ({"image": ("a.txt", b"no picture")}, "image", "invalid_image"),
        ({"prompt": " "}, "prompt", "invalid_prompt"),
        ({"extra_body": {"hue": 1}}, "hue", "unknown_field"),
    ],
)
def test_errors_are_typed(client: openai.OpenAI, fields: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.edit(**{"image": ("a.jpg", PHOTO), "prompt": "x", **fields})
    error = caught.value
    assert (error.param, error.code, error.type) == (param, code, "invalid_request_error")
    assert error.request_id


def test_what_there_is_not_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.embeddings.create(model="any", input="x")
    assert (caught.value.code, caught.value.param) == ("not_found", None)
