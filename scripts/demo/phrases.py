"""The wordings of one edit, by the part that they play in a sentence. Knows templates; nothing of chances."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scripts.demo import grammar
from scripts.demo.speech import Language

Words = Mapping[str, Sequence[str]]
ROLES = ("order", "say", "doing", "result", "state", "noun")


@dataclass(frozen=True)
class Phrases:
    """The wordings of one edit, or of all that has not been learned.

    Attributes:
        order: what somebody is told to do; say: the same and statements.
        doing: the orders as gerunds.
        result, state, noun: what the answer is, what the picture is too much of, what it is to get.
        ordinary: what most people type first; ordinary_orders: those that are orders.
    """

    order: Sequence[str]
    say: Sequence[str]
    doing: Sequence[str]
    result: Sequence[str]
    state: Sequence[str]
    noun: Sequence[str]
    ordinary: Sequence[str] = ()
    ordinary_orders: Sequence[str] = ()

    @classmethod
    def of(cls, sections: Words, language: Language, ordinary: Sequence[str] = ()) -> Phrases:
        orders = tuple(t for t in sections["orders"] if not t.startswith("~"))
        said = tuple(t.removeprefix("~") for t in sections["orders"])
        doing = tuple(grammar.gerund(t) for t in orders) if language == "en" else orders
        typed = tuple(t.removeprefix("~") for t in ordinary)
        told = tuple(t for t in ordinary if not t.startswith("~"))
        return cls(orders, said, doing, sections["results"], sections["states"], sections["nouns"], typed, told)

    def slots(self, number: str = "") -> dict[str, Sequence[str]]:
        return {role + number: getattr(self, role) for role in ROLES} | {"ordinary" + number: self.ordinary_orders}
