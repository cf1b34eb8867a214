"""Templates of wordings: drawing a sentence at random, and telling whether a sentence could have been drawn.

A template is text with `(one|other|)` choices, which may be nested, and `{slot}` places that stand for one of the
templates of that name. Knows nothing of edits or languages.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True, eq=False)
class Scope:
    """A slot whose templates have slots of their own."""

    templates: Sequence[str]
    slots: Slots


Slots = Mapping[str, Sequence[str] | Scope]


def draw(template: str, slots: Slots, rng: random.Random) -> str:
    """One sentence of the template, with single spaces."""
    return " ".join(_draw(parsed(template), slots, rng).split())


def raw(template: str, slots: Slots, rng: random.Random) -> str:
    """The same with its spaces as they are, for pieces that are put together."""
    return _draw(parsed(template), slots, rng)


# A parsed template: texts, slot names in a tuple ("slot", name), and choices as lists of parsed templates.
Node = str | tuple[str, str] | list["Nodes"]
Nodes = list[Node]


@cache
def parsed(template: str) -> Nodes:
    """Raises `ValueError` for brackets that do not match."""
    nodes, rest = _sequence(template, 0)
    if rest != len(template):
        raise ValueError(f"template {template!r}: unmatched ) or | at {rest}")
    return nodes


def _sequence(text: str, at: int) -> tuple[Nodes, int]:
    nodes: Nodes = []
    while at < len(text) and text[at] not in "|)":
        if text[at] == "(":
            choice: list[Nodes] = []
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
            if found is None:
                raise ValueError(f"template {text!r}: unmatched }} at {at}")
            nodes.append(found.group())
            at = found.end()
    return nodes, at


def _draw(nodes: Nodes, slots: Slots, rng: random.Random) -> str:
    parts = []
    for node in nodes:
        if isinstance(node, str):
            parts.append(node)
        elif isinstance(node, tuple):
            slot = slots[node[1]]
            if isinstance(slot, Scope):
                parts.append(_draw(parsed(rng.choice(slot.templates)), slot.slots, rng))
            else:
                parts.append(_draw(parsed(rng.choice(slot)), slots, rng))
        else:
            parts.append(_draw(rng.choice(node), slots, rng))
    return "".join(parts)


class Matcher:
    """Tells whether a sentence is one of the templates', blind to case, spaces, and `an` for `a`."""

    def __init__(self, templates: Sequence[str], slots: Slots) -> None:
        self._whole, self._slots = tuple(templates), slots
        self._words: dict[int, dict[int, set[str]]] = {}
        self._indexes: dict[int, dict[str, list[Nodes]]] = {}
        self._firsts: dict[str, frozenset[str]] = {}
        self._choices: dict[int, tuple[dict[int, set[str]], list[Nodes]]] = {}

    def fullmatch(self, text: str) -> bool:
        squeezed = _squeezed(text)
        return len(squeezed) in self._ends(self._whole, squeezed, 0, {})

    def _ends(self, templates: Sequence[str], text: str, at: int, known: dict[tuple[int, int], set[int]]) -> set[int]:
        """Where in the text a sentence of these templates may end that begins at a place."""
        key = id(templates), at
        if key not in known:
            if id(templates) not in self._indexes:
                self._index(templates)
            ends = {at + n for n, words in self._words[id(templates)].items() if text[at : at + n] in words}
            index = self._indexes[id(templates)]
            for nodes in index.get(text[at : at + 1], []) + index.get("", []):
                ends |= self._after(nodes, text, {at}, known)
            known[key] = ends
        return known[key]

    def _after(self, nodes: Nodes, text: str, at: set[int], known: dict[tuple[int, int], set[int]]) -> set[int]:
        for node in nodes:
            if isinstance(node, str):
                literal = _literal(node)
                at = {start + len(literal) for start in at if text.startswith(literal, start)}
            elif isinstance(node, tuple):
                at = {end for start in at for end in self._ends(self._slot(node[1]), text, start, known)}
            else:
                words, others = self._options(node)
                ends = {start + n for start in at for n, of in words.items() if text[start : start + n] in of}
                at = ends.union(*(self._after(option, text, at, known) for option in others))
            if not at:
                break
        return at

    def _options(self, choice: list[Nodes]) -> tuple[dict[int, set[str]], list[Nodes]]:
        """A choice's plain words by length, and its other options."""
        if id(choice) not in self._choices:
            plain = [option for option in choice if all(isinstance(node, str) for node in option)]
            words: dict[int, set[str]] = {}
            for option in plain:
                word = _squeezed(_text(option))
                words.setdefault(len(word), set()).add(word)
            self._choices[id(choice)] = words, [option for option in choice if option not in plain]
        return self._choices[id(choice)]

    def _slot(self, name: str) -> Sequence[str]:
        slot = self._slots[name]
        if isinstance(slot, Scope):
            raise TypeError(f"slot {name}: a matcher's slots all share one scope")
        return slot

    def _index(self, templates: Sequence[str]) -> None:
        """Plain words by length, and the other templates by the sign they begin with ("" where that is open)."""
        words: dict[int, set[str]] = {}
        index: dict[str, list[Nodes]] = {}
        for template in dict.fromkeys(templates):
            if not set(template) & set("({"):
                words.setdefault(len(_squeezed(template)), set()).add(_squeezed(template))
                continue
            nodes = parsed(template)
            for sign in self._first(nodes):
                index.setdefault(sign, []).append(nodes)
        self._words[id(templates)], self._indexes[id(templates)] = words, index

    def _first(self, nodes: Nodes) -> set[str]:
        """The signs that a sentence may begin with; "" if it may be empty."""
        firsts = {""}
        for node in nodes:
            if "" not in firsts:
                break
            firsts.discard("")
            if isinstance(node, str):
                firsts.add(_squeezed(node)[:1])
            elif isinstance(node, list):
                firsts |= {sign for option in node for sign in self._first(option)}
            else:
                if node[1] not in self._firsts:
                    of_slot = {sign for t in self._slot(node[1]) for sign in self._first(parsed(t))}
                    self._firsts[node[1]] = frozenset(of_slot)
                firsts |= self._firsts[node[1]]
        return firsts


_AN = re.compile(r"\ban\b")


def _squeezed(text: str) -> str:
    return "".join(_AN.sub("a", text.lower()).split())


_literal = cache(_squeezed)


_ARTICLES = re.compile(r"\b([Aa])([Nn]?) (?:an? )?(?=([A-Za-z]{2,}))(?!(?:is|and|or|in|of|on|as|at|if)\b)")
_VOWELS_AS_SPOKEN = re.compile(
    r"(?!eu|on(?:e|ce)\b|u(?:s[eu]|ni(?![dmn])|to|fo))[aeiou]|hour|heir|honest|honou?r", re.IGNORECASE
)


def articled(text: str) -> str:
    """English with `a` or `an` as the word behind wants, whatever the template said, and only one of them at a time.

    Knows the phrasebook's words, not all of English; what is short for something, in capitals, keeps what it has.
    """

    def article(found: re.Match[str]) -> str:
        a, word = found[1], found[3]
        if word.isupper() and not a.isupper():
            return found[0]
        n = "n" if _VOWELS_AS_SPOKEN.match(word) else ""
        return a + (n.upper() if a.isupper() and word.isupper() else n) + " "

    return _ARTICLES.sub(article, text)


SEPARATORS = ".,;。，；"


def bare(template: str) -> str:
    """A template without the separators that its sentences may begin with."""
    return _text(_bare(parsed(template)))


def _bare(nodes: Nodes) -> Nodes:
    if not nodes or isinstance(nodes[0], tuple):
        return nodes
    first = nodes[0]
    return [first.lstrip(SEPARATORS) if isinstance(first, str) else [_bare(option) for option in first], *nodes[1:]]


def gerund(template: str) -> str:
    """An order's template with its first word as a gerund: `(turn|make) it red` becomes `(turning|making) it red`.

    A slot in the first place becomes the slot of that name with `_ing` behind it.
    """
    nodes = list(parsed(template))
    return _text([_doing(nodes[0]), *nodes[1:]])


def _doing(node: Node) -> Node:
    if isinstance(node, tuple):
        return "slot", node[1] + "_ing"
    if isinstance(node, list):
        return [[_doing(option[0]), *option[1:]] if option else option for option in node]
    word, space, rest = node.partition(" ")
    head, hyphen, verb = word.rpartition("-")
    return head + hyphen + _ing(verb) + space + rest


_DOUBLED = (
    "bin blur chop clip crop cut deblur dig dim dip dispel drop fit flip flop fog get hem hflip hit knit let "
    "mat nip output pan pin plan plug pop put rid rim rub run scan scrap set shed shut sit skip slap slip slot snap "
    "snip spin split step stop strip swap tap thin tip transfer trim up vflip wrap zip"
)


def _ing(verb: str) -> str:
    if verb in _DOUBLED.split():
        return verb + verb[-1] + "ing"
    if verb.endswith("ie"):
        return verb[:-2] + "ying"
    return verb[:-1] + "ing" if verb.endswith("e") and not verb.endswith(("ee", "ye")) else verb + "ing"


def _text(nodes: Nodes) -> str:
    parts = []
    for node in nodes:
        if isinstance(node, str):
            parts.append(node)
        elif isinstance(node, tuple):
            parts.append("{" + node[1] + "}")
        else:
            parts.append("(" + "|".join(_text(option) for option in node) + ")")
    return "".join(parts)
