"""What the OpenAPI page says of /v1 is what is taken."""

from __future__ import annotations

import pytest

from hunyuan.errors import InvalidRequest
from hunyuan.requests import MAX_IMAGES
from hunyuan.serving.openai.call import call_of
from hunyuan.serving.openai.fields import KINDS, Kind
from hunyuan.serving.openai.schema import FIELDS, operations
from hunyuan.settings import Settings

TYPES = {Kind.TEXT: "string", Kind.WHOLE: "integer", Kind.NUMBER: "number", Kind.FLAG: "boolean"}
WITH = {"partial_images": {"stream": True}, "output_compression": {"output_format": "jpeg"}}


def test_every_field_is_described_with_its_type() -> None:
    assert {name: schema["type"] for name, schema in FIELDS.items()} == {
        name: TYPES[kind] for name, kind in KINDS.items()
    }
    assert all(schema["description"] for schema in FIELDS.values())


def accepted(name: str, value: object) -> bool:
    try:
        call_of("image_edit", {"prompt": "a", **WITH.get(name, {}), name: value}, [b"x"], Settings())
    except InvalidRequest as error:
        return error.field != name  # refused for another reason: not what was to be seen
    return True


BOUNDED = [name for name, schema in FIELDS.items() if "minimum" in schema]


@pytest.mark.parametrize("name", BOUNDED)
def test_bounds_are_where_the_page_says(name: str) -> None:
    low, high = FIELDS[name]["minimum"], FIELDS[name]["maximum"]
    step = 1 if FIELDS[name]["type"] == "integer" else 0.005
    assert accepted(name, low)
    assert accepted(name, high)
    assert not accepted(name, low - step)
    assert not accepted(name, high + step)


@pytest.mark.parametrize("name", [name for name, schema in FIELDS.items() if "enum" in schema])
def test_words_are_those_of_the_page(name: str) -> None:
    assert all(accepted(name, word) for word in FIELDS[name]["enum"])
    assert not accepted(name, "another")


def test_the_routes_are_there_with_their_bodies() -> None:
    found = operations(Settings(), {400: "bad", 401: "no key", 503: "away"})
    assert {path: method for path, (method, _) in found.items()} == {
        "/v1/images/edits": "post",
        "/v1/images/generations": "post",
        "/v1/models": "get",
        "/v1/models/{model}": "get",
    }
    bodies = found["/v1/images/edits"][1]["requestBody"]["content"]
    assert set(bodies) == {"multipart/form-data", "application/json"}
    form = bodies["multipart/form-data"]["schema"]
    assert set(form["properties"]) == {"image", "image[]", *KINDS}
    assert form["properties"]["image[]"]["maxItems"] == MAX_IMAGES
    assert form["properties"]["prompt"]["maxLength"] == 4000
