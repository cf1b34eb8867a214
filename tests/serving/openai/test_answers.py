"""The objects that /v1 answers with."""

from __future__ import annotations

import base64
from io import BytesIO

import pytest
from PIL import Image

from hunyuan.requests import EditResult, TokenUsage
from hunyuan.serving.openai.answers import Painter, answer_of, image_of, usage_of
from hunyuan.serving.openai.call import call_of
from hunyuan.settings import Settings

PAINTER = Painter("a model", "1.0", show_prompt=False)
COT = "<think>a sea</think><recaption> a blue boat </recaption>"


def result(seed: int = 7, usage: TokenUsage | None = None, width: int = 32) -> EditResult:
    image = Image.new("RGB", (width, 16), (10, 200, 30))
    return EditResult(image, COT, seed, image.size, 4, 9, {}, usage)


def test_an_answer_has_openais_fields_and_our_extras() -> None:
    call = call_of("image_edit", {"prompt": "a", "quality": "high"}, [b"x"], Settings())
    results = [result(7, TokenUsage(1, 20, 300, 4000)), result(8, TokenUsage(2, 20, 100, 4000), width=48)]
    answer = answer_of(results, [image_of(one, call, PAINTER) for one in results], call)
    first, second = answer.pop("data")
    assert answer.pop("created") > 1.7e9
    assert answer == {
        "size": "32x16",
        "quality": "high",
        "background": "opaque",
        "output_format": "png",
        "usage": {
            "input_tokens": 43,
            "input_tokens_details": {"image_tokens": 40, "text_tokens": 3},
            "output_tokens": 8400,
            "output_tokens_details": {"image_tokens": 8000, "text_tokens": 400},
            "total_tokens": 8443,
        },
    }
    with Image.open(BytesIO(base64.b64decode(first.pop("b64_json")))) as picture:
        assert (picture.format, picture.text["Seed"], "Prompt" in picture.text) == ("PNG", "7", False)
    assert first == {"revised_prompt": "a blue boat", "cot_text": COT, "seed": 7, "size": "32x16"}
    assert (second["seed"], second["size"]) == (8, "48x16")


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
@pytest.mark.parametrize(("operation", "mark"), [("image_edit", b"composite"), ("image_generation", b"/trained")])
def test_the_file_says_how_it_was_made(output_format: str, operation: str, mark: bytes) -> None:
    call = call_of(operation, {"prompt": "a", "output_format": output_format}, [], Settings())  # type: ignore[arg-type]
    file = base64.b64decode(PAINTER.base64_of(result(), call))
    assert mark in file
    assert b"rainedAlgorithmicMedia" in file


def test_a_missing_count_is_no_count() -> None:
    assert usage_of([TokenUsage(1, 2, 3, 4), None]) is None
