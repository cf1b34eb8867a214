"""One validation: the same bounds and the same words, whether a request comes from Python or over HTTP."""

from __future__ import annotations

from typing import Any

import pytest

from hunyuan.errors import InvalidRequest
from hunyuan.requests import EditRequest
from hunyuan.serving.inputs import values_of
from hunyuan.serving.multipart import Form
from hunyuan.settings import Settings
from hunyuan.validation import validate

SETTINGS = Settings(prompt_max_chars=50)
BAD = [
    ("prompt", " \u200b"),
    ("prompt", "x" * 51),
    ("prompt", "a\ud83d"),
    ("seed", -1),
    ("seed", 2**63),
    ("steps", 0),
    ("steps", 101),
    ("resolution", "huge"),
    ("resolution", "9:1"),
]


def words(call: Any, *arguments: Any) -> str:
    with pytest.raises(InvalidRequest) as caught:
        call(*arguments)
    return str(caught.value)


@pytest.mark.parametrize(("field", "value"), BAD)
def test_python_and_http_are_refused_in_the_same_words(field: str, value: Any) -> None:
    fields = {"prompt": "a", field: value}
    over_http = Form({"image": b"x"}, {name: str(value) for name, value in fields.items()})
    assert words(validate, EditRequest(**fields), SETTINGS) == words(values_of, over_http, SETTINGS)


@pytest.mark.parametrize("field", ["cot_text", "system_prompt"])
def test_half_a_character_is_refused_in_every_text(field: str) -> None:
    said = words(validate, EditRequest("a", **{field: "ab\udc00"}), SETTINGS)
    assert said == f"{field}: character 2 is half a character; send whole Unicode text"
