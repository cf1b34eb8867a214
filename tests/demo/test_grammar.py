"""Templates: what can be drawn, and that a pattern matches exactly that."""

import random
import re

import pytest

from scripts.demo import grammar

SLOTS = {"pic": ("it", "the (photo|picture)"), "c": ("red", "blue")}
TEMPLATE = "make {pic} (very |){c}( (please|now)|)"


def test_draws_are_matched_and_all_alternatives_come():
    drawn = {grammar.draw(TEMPLATE, SLOTS, random.Random(seed)) for seed in range(400)}
    assert len(drawn) == 3 * 2 * 2 * 3
    assert "make the photo very blue please" in drawn
    pattern = grammar.compiled([TEMPLATE], SLOTS)
    assert all(pattern.fullmatch(text) for text in drawn)
    assert pattern.fullmatch("MAKE IT RED")


@pytest.mark.parametrize("text", ["make it green", "make it", "make it red blue", "make the red", "please make it red"])
def test_what_cannot_be_drawn_is_not_matched(text):
    assert not grammar.compiled([TEMPLATE], SLOTS).fullmatch(text)


def test_signs_are_plain_text():
    assert re.fullmatch(grammar.pattern("b+w.", {}), "b+w.")
    assert not re.fullmatch(grammar.pattern("b+w.", {}), "bbwx")


@pytest.mark.parametrize("template", ["a)b", "(a|b", "a|b"])
def test_broken_templates(template):
    with pytest.raises(ValueError, match="template"):
        grammar.draw(template, {}, random.Random(0))
