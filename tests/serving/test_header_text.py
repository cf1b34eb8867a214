"""Text in a header: it comes back whole, or cut at a whole character."""

from __future__ import annotations

from urllib.parse import unquote

import pytest

from hunyuan.serving.header_text import MOST_BYTES, percent_encoded


@pytest.mark.parametrize("text", ["Make it blue.", "把背景变蓝", "a\r\nX-Evil: 1", '100 % "quoted", new\tline', ""])
def test_it_comes_back_as_it_was(text: str) -> None:
    value = percent_encoded(text)
    assert value.isascii()
    assert value.isprintable()
    assert " " not in value
    assert unquote(value) == text


def test_a_long_text_is_cut_at_a_whole_character() -> None:
    value = percent_encoded("a" + "蓝" * 500)
    assert len(value) <= MOST_BYTES
    assert len(value) > MOST_BYTES - 9  # a character of three bytes takes nine
    assert unquote(value, errors="strict") == "a" + "蓝" * ((len(value) - 1) // 9)
