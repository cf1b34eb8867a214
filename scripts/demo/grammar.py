"""Templates of wordings: drawing a sentence at random, and telling whether a sentence could have been drawn.

A template is text with `(one|other|)` choices, which may be nested, and `{slot}` places that stand for one of the
templates of that name. Knows nothing of edits or languages.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from functools import cache

Slots = Mapping[str, Sequence[str]]


def draw(template: str, slots: Slots, rng: random.Random) -> str:
    """One sentence of the template, with single spaces."""
    return " ".join(_draw(_parse(template), slots, rng).split())


def pattern(template: str, slots: Slots) -> str:
    """A regular expression that matches every sentence of the template; more or fewer spaces do not count."""
    return _pattern(_parse(template), slots)


def compiled(templates: Sequence[str], slots: Slots) -> re.Pattern[str]:
    """One expression for all templates, blind to case; to be used with `fullmatch`."""
    return re.compile("|".join(pattern(t, slots) for t in templates), re.IGNORECASE)


# A parsed template: texts, slot names in a tuple ("slot", name), and choices as lists of parsed templates.
_Node = str | tuple[str, str] | list["_Nodes"]
_Nodes = list[_Node]


@cache
def _parse(template: str) -> _Nodes:
    nodes, rest = _sequence(template, 0)
    if rest != len(template):
        raise ValueError(f"template {template!r}: unmatched ) or | at {rest}")
    return nodes


def _sequence(text: str, at: int) -> tuple[_Nodes, int]:
    nodes: _Nodes = []
    while at < len(text) and text[at] not in "|)":
        if text[at] == "(":
            choice: list[_Nodes] = []
            while at < len(text) and text[at] in "(|":
                option, at = _sequence(text, at + 1)
                choice.append(option)
            if at == len(text):
                raise ValueError(f"template {text!r}: a ( is never closed")
            nodes.append(choice)
            at += 1
        elif text[at] == "{":
            end = text.index("}", at)
            nodes.append(("slot", text[at + 1 : end]))
            at = end + 1
        else:
            found = re.compile(r"[^(){|]+").match(text, at)
            assert found is not None
            nodes.append(found.group())
            at = found.end()
    return nodes, at


def _draw(nodes: _Nodes, slots: Slots, rng: random.Random) -> str:
    parts = []
    for node in nodes:
        if isinstance(node, str):
            parts.append(node)
        elif isinstance(node, tuple):
            parts.append(_draw(_parse(rng.choice(slots[node[1]])), slots, rng))
        else:
            parts.append(_draw(rng.choice(node), slots, rng))
    return "".join(parts)


def _pattern(nodes: _Nodes, slots: Slots) -> str:
    parts = []
    for node in nodes:
        if isinstance(node, str):
            parts.append(" *".join(re.escape(part) for part in node.split(" ")))
        elif isinstance(node, tuple):
            parts.append("(?:" + "|".join(_pattern(_parse(t), slots) for t in slots[node[1]]) + ")")
        else:
            parts.append("(?:" + "|".join(_pattern(option, slots) for option in node) + ")")
    return "".join(parts)
