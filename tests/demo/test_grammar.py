"""Templates: what can be drawn, and that a matcher knows exactly that."""

import random

import pytest

from scripts.demo import grammar
from scripts.demo.grammar import Matcher, Scope, bare

SLOTS = {"pic": ("it", "the (photo|picture)"), "c": ("red", "blue")}
TEMPLATE = "make {pic} (very |){c}( (please|now)|)"


def test_draws_are_matched_and_all_alternatives_come():
    drawn = {grammar.draw(TEMPLATE, SLOTS, random.Random(seed)) for seed in range(400)}
    assert len(drawn) == 3 * 2 * 2 * 3
    assert "make the photo very blue please" in drawn
    matcher = Matcher([TEMPLATE], SLOTS)
    assert all(matcher.fullmatch(text) for text in drawn)
    assert matcher.fullmatch("MAKE IT RED")


@pytest.mark.parametrize("text", ["make it green", "make it", "make it red blue", "make the red", "please make it red"])
def test_what_cannot_be_drawn_is_not_matched(text):
    assert not Matcher([TEMPLATE], SLOTS).fullmatch(text)


def test_signs_are_plain_text():
    assert Matcher(["b+w."], {}).fullmatch("b+w.")
    assert not Matcher(["b+w."], {}).fullmatch("bbwx")


def test_a_sentence_may_begin_or_end_with_nothing():
    matcher = Matcher(
        ["{before}{core}{after}", ""], {"before": ("", "please "), "core": ("(a|)b",), "after": ("", "!")}
    )
    assert all(matcher.fullmatch(text) for text in ("b", "ab", "please b", "please ab!", ""))
    assert not any(matcher.fullmatch(text) for text in ("a", "please", "b!!"))


def test_a_choice_may_have_plain_options_and_others():
    matcher = Matcher(["turn (it|the {c} one|) (up(per|)|down) (now|)"], {"c": ("red", "blue")})
    assert all(matcher.fullmatch(text) for text in ("turn it up", "turn upper now", "turn the red one down"))
    assert not any(matcher.fullmatch(text) for text in ("turn the one up", "turn it", "turn it up down"))


def test_a_scope_has_slots_of_its_own():
    slots = {"first": Scope(("{c}",), {"c": ("red",)}), "second": Scope(("{c}",), {"c": ("blue",)}), "c": ("green",)}
    assert grammar.draw("{first} {second} {c}", slots, random.Random(0)) == "red blue green"
    with pytest.raises(TypeError, match="first"):
        Matcher(["{first}"], slots).fullmatch("red")


@pytest.mark.parametrize(
    ("order", "doing"),
    [
        ("make it red", "making it red"),
        ("(flip|dye|(cut|see)) it (up|)", "(flipping|dyeing|(cutting|seeing)) it (up|)"),
        ("{get} it red", "{get_ing} it red"),
        ("sepia-tone it", "sepia-toning it"),
        ("tie it", "tying it"),
        ("(up|tap|nudge) the light", "(upping|tapping|nudging) the light"),
    ],
)
def test_gerunds(order, doing):
    assert grammar.gerund(order) == doing


@pytest.mark.parametrize("template", ["a)b", "(a|b", "a|b"])
def test_broken_templates(template):
    with pytest.raises(ValueError, match="template"):
        grammar.draw(template, {}, random.Random(0))


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("(. It's|(. |; | - |, )it's) mine(, really|.|)", "( It's|( | | - | )it's) mine(, really|.|)"),
        ("，(急|谢谢，)", "(急|谢谢，)"),
        ("{core}, please", "{core}, please"),
        ("", ""),
    ],
)
def test_bare_begins_without_a_separator(template: str, expected: str) -> None:
    assert bare(template) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a orange frame", "an orange frame"),
        ("on an blue background", "on a blue background"),
        ("Like an a old photo", "Like an old photo"),
        ("A ORANGE ONE", "AN ORANGE ONE"),
        ("An uniform one for a hour", "A uniform one for an hour"),
        ("a one-off, a unicorn, a unusual one", "a one-off, a unicorn, an unusual one"),
        ("plan a, x a b, option a is it", "plan a, x a b, option a is it"),
        ("an HDR look, an unidentified one", "an HDR look, an unidentified one"),
    ],
)
def test_an_article_goes_by_the_word_behind_it(text: str, expected: str) -> None:
    assert grammar.articled(text) == expected


def test_a_matcher_takes_either_article() -> None:
    matcher = Matcher(["put an {c} frame", "bananas"], {"c": ("red", "orange")})
    assert all(matcher.fullmatch(text) for text in ("put a red frame", "put an red frame", "put an orange frame"))
    assert not matcher.fullmatch("baaas")
