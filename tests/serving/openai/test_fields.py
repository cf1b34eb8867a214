"""Single values of the fields under /v1, from a form's text and from JSON."""

from __future__ import annotations

import inspect

import pytest
from openai.resources.images import Images

from hunyuan.errors import InvalidPrompt, InvalidRequest, UnknownField
from hunyuan.serving.openai.fields import KINDS, REFUSED, from_json, from_text, refuse


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("prompt", " a ", " a "),
        ("n", "3", 3),
        ("seed", "-1", -1),
        ("stream", "true", True),
        ("stream", "false", False),
        ("guidance_scale", "2.5", 2.5),
        ("guidance_scale", "3", 3.0),
        ("flow_shift", "1e0", 1.0),
    ],
)
def test_a_forms_text_spells_a_value(name: str, text: str, value: object) -> None:
    assert from_text(name, text) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(("n", text) for text in ("two", "1.5", " 1", "true", "１", "9" * 5000)),
        *(("stream", text) for text in ("True", "1", "yes", "null")),
        *(("guidance_scale", text) for text in ("nan", "inf", "1e999", "1,5", "0x1", "")),
    ],
)
def test_nothing_is_guessed(name: str, text: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^{name}: got ") as caught:
        from_text(name, text)
    assert len(str(caught.value)) < 120


@pytest.mark.parametrize(
    ("name", "value"),
    [("prompt", "a"), ("n", 2), ("stream", True), ("guidance_scale", 3), ("guidance_scale", 2.5)],
)
def test_json_has_the_value_itself(name: str, value: object) -> None:
    assert from_json(name, value) == value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("n", value) for value in ("2", 2.0, True, [2], {})),
        *(("stream", value) for value in (1, "true", None, [])),
        *(("guidance_scale", value) for value in ("2.5", False)),
        *(("size", value) for value in (1024, ["auto"], True)),
    ],
)
def test_json_of_another_kind_is_refused(name: str, value: object) -> None:
    with pytest.raises(InvalidRequest, match=f"^{name}: got ") as caught:
        from_json(name, value)
    assert caught.value.field == name


@pytest.mark.parametrize(("value", "kind"), [(["a"], "a list"), (None, "null"), (5, "a number")])
def test_a_prompt_that_is_no_text_has_the_prompts_code(value: object, kind: str) -> None:
    with pytest.raises(InvalidPrompt, match=f"prompt: got {kind}; text is allowed"):
        from_json("prompt", value)


def test_a_refusal_says_why_and_an_unknown_name_what_there_is() -> None:
    assert str(refuse("mask", REFUSED)) == "mask: this model takes no mask; say in the prompt where to change what"
    unknown = refuse("x" * 200, REFUSED)
    assert isinstance(unknown, UnknownField)
    assert all(name in str(unknown) for name in KINDS)
    assert len(unknown.field) == 64


@pytest.mark.parametrize("method", ["edit", "generate"])
def test_every_parameter_of_openais_client_is_taken_or_refused_with_a_reason(method: str) -> None:
    """Its newest version has some that came after this API was written: none of them is just unknown."""
    of_the_client = {"self", "extra_headers", "extra_query", "extra_body", "timeout"}
    parameters = inspect.signature(getattr(Images, method)).parameters.keys() - of_the_client
    assert parameters - KINDS.keys() - REFUSED.keys() == ({"image"} if method == "edit" else set())


def test_no_field_is_both_taken_and_refused() -> None:
    assert not KINDS.keys() & REFUSED.keys()
