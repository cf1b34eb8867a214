"""The wordings of both languages made ready for drawing: templates, slots and which sentences are known.

Knows the templates and which task each belongs to; nothing of chances, typing errors or pictures.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from random import Random

from scripts.demo import (
    grammar,
    phrases,
    politeness,
    unknown_en,
    unknown_zh,
    wordings_en,
    wordings_pictures,
    wordings_zh,
)
from scripts.demo.edits import COLOURS, Step
from scripts.demo.speech import SUBJECTS_ZH, Language
from scripts.demo.tasks import SHAPES, SUBJECTS, Task

Words = Mapping[str, Sequence[str]]

_FRAME_SHARE = 0.4


@dataclass(frozen=True)
class Lexicon:
    """One language.

    Attributes:
        colours, shapes, subjects: the names of each.
        results, frames: per edit, what its answer is; and sentences that ask for any of them.
        joint: what stands between two results.
        picture_wordings: per task kind (`shape`, `subject`, `white`, `beside`, `onto`) its templates.
        unknown: per number of sources, templates of what has not been learned.
    """

    edits: Words
    results: Words
    frames: Sequence[str]
    slots: Words
    colours: Words
    shapes: Words
    subjects: Words
    picture_slots: Words
    picture_wordings: Words
    unknown_slots: Words
    unknown: Sequence[Sequence[str]]
    negated: Sequence[str]
    mixed: Sequence[str]
    prefixes: Sequence[str]
    statement_prefixes: Sequence[str]
    suffixes: Sequence[str]
    connectors: Sequence[str]
    joint: str

    def step(self, step: Step, rng: Random) -> tuple[str, bool]:
        """One edit in words, and whether it is an order (and not a statement)."""
        template = rng.choice(self.edits[step.name])
        if rng.random() < _FRAME_SHARE:
            template = rng.choice(self.frames).replace("{result}", rng.choice(self.results[step.name]))
        slots = {**self.slots, "c": self.colours[step.colour]} if step.colour else self.slots
        return grammar.draw(template.removeprefix("~"), slots, rng), not template.startswith("~")

    def pair(self, steps: Sequence[Step], rng: Random) -> tuple[str, bool]:
        """Two edits in words, in the given order, and whether they begin as an order."""
        (first, order), (second, _) = (self.step(step, rng) for step in steps)
        chance = rng.random()
        if chance < 0.55:
            return first + rng.choice(self.connectors) + second, order
        results = [self._result(step, rng) for step in steps]
        if chance < 0.75:
            return first + self.joint + results[1], order
        frame = rng.choice(self.frames)
        both = results[0] + self.joint + results[1]
        text = grammar.draw(frame.removeprefix("~").replace("{result}", both), self.slots, rng)
        return text, not frame.startswith("~")

    def _result(self, step: Step, rng: Random) -> str:
        slots = {**self.slots, "c": self.colours[step.colour]} if step.colour else self.slots
        return grammar.draw(rng.choice(self.results[step.name]), slots, rng)

    def picture(self, task: Task, rng: Random) -> str:
        """A task without a source, or with two, in words."""
        kind = "white" if task.ground == "white" and rng.random() < 0.6 else task.kind
        return grammar.draw(rng.choice(self.picture_wordings[kind]), self._picture_slots(task), rng)

    def _picture_slots(self, task: Task) -> Words:
        what = self.shapes[task.shape] if task.shape else self.subjects.get(task.subject or "", ())
        colour = self.colours[task.colour] if task.colour else ("",)
        both = [f"{c} {w}" if w.isascii() else f"{c}{w}" for c in colour for w in what]
        ground = self.colours[task.ground] if task.ground else ()
        return {**self.picture_slots, "c": colour, "what": what, "g": ground, "cwhat": both}

    def stranger(self, sources: int, rng: Random) -> str:
        """Something that has not been learned, in words; may by chance be known all the same (`knows`)."""
        chance = rng.random()
        if sources == 1 and chance < 0.2:
            template = rng.choice(self.negated)
        elif sources == 1 and chance < 0.4:
            template = rng.choice(self.mixed)
        else:
            template = rng.choice(self.unknown[sources])
        return self._filled(template, rng)

    def _filled(self, template: str, rng: Random) -> str:
        for name in ("edit", "request"):
            if "{" + name + "}" in template:
                text = self.any_edit(rng) if name == "edit" else self._filled(rng.choice(self.unknown[1]), rng)
                template = template.replace("{" + name + "}", re.sub(r"[(){}|]", "", text))
        return grammar.draw(template, self._all_unknown_slots, rng)

    def any_edit(self, rng: Random) -> str:
        """Any edit in words."""
        name = rng.choice(list(self.edits))
        step = Step(name, rng.choice(list(COLOURS)) if any("{c}" in t for t in self.edits[name]) else None)
        return self.step(step, rng)[0]

    def knows(self, text: str, sources: int) -> bool:
        """Whether a core sentence (no politeness around it) is a known request, alone or as two."""
        if sources != 1:
            return bool(self._known_pictures.fullmatch(text))
        if self._known_edits.fullmatch(text):
            return True
        if self._known_pairs.fullmatch(text):
            return True
        for connector in sorted({*self.connectors, self.joint}, key=len, reverse=True):
            parts = text.split(connector)
            if len(parts) > 1 and all(self._known_edits.fullmatch(part.strip()) for part in parts):
                return True
        return False

    def could_say(self, text: str, sources: int) -> bool:
        """Whether any training sentence, typing errors aside, is this one."""
        for core in self._cores(text):
            if self.knows(core, sources) or self._known_strangers[sources].fullmatch(core):
                return True
            if sources == 1 and (self._is_negated(core) or self._is_mixed(core)):
                return True
        return False

    def _cores(self, text: str) -> set[str]:
        text = " ".join(text.split())
        heads = {
            text[len(p) :] for p in (*self.prefixes, *self.statement_prefixes) if text.lower().startswith(p.lower())
        }
        return {h[: len(h) - len(s)].strip() for h in heads for s in self.suffixes if h.lower().endswith(s.lower())}

    def _is_negated(self, core: str) -> bool:
        return any(
            (
                found := re.fullmatch(
                    grammar.pattern(t.replace("{edit}", "\0"), self._all_unknown_slots).replace(
                        re.escape("\0"), "(.+)"
                    ),
                    core,
                    re.IGNORECASE,
                )
            )
            and self._known_edits.fullmatch(found.group(1).strip())
            for t in set(self.negated)
        )

    def _is_mixed(self, core: str) -> bool:
        for connector in self._mixed_connectors:
            at = core.find(connector)
            while at >= 0:
                sides = core[:at].strip(), core[at + len(connector) :].strip()
                for known, other in (sides, sides[::-1]):
                    if self._known_edits.fullmatch(known) and self._known_strangers[1].fullmatch(other):
                        return True
                at = core.find(connector, at + 1)
        return False

    @cached_property
    def _mixed_connectors(self) -> set[str]:
        return {re.sub(r"{edit}|{request}", "", t) for t in self.mixed}

    @cached_property
    def _all_unknown_slots(self) -> Words:
        return {**self._result_slots, **self.picture_slots, **self.unknown_slots}

    @cached_property
    def _known_edits(self) -> re.Pattern[str]:
        templates = [t.removeprefix("~") for ts in self.edits.values() for t in ts]
        return grammar.compiled([*templates, *self._framed], self._result_slots)

    @cached_property
    def _known_pairs(self) -> re.Pattern[str]:
        both = "{result}" + self.joint + "{result}"
        return grammar.compiled([frame.replace("{result}", both) for frame in self._framed], self._result_slots)

    @cached_property
    def _framed(self) -> list[str]:
        return [frame.removeprefix("~") for frame in self.frames]

    @cached_property
    def _result_slots(self) -> Words:
        names = sorted({name for names in self.colours.values() for name in names})
        return {**self.slots, "c": names, "result": [r for rs in self.results.values() for r in rs]}

    @cached_property
    def _known_pictures(self) -> re.Pattern[str]:
        names = sorted({name for names in self.colours.values() for name in names})
        shapes = sorted({name for names in self.shapes.values() for name in names})
        subjects = sorted({name for names in self.subjects.values() for name in names})
        gap = " " if shapes[0].isascii() else ""
        both = [f"{c}{gap}{s}" for c in names for s in shapes] + subjects
        slots = {**self.picture_slots, "c": names, "g": names, "what": shapes + subjects, "cwhat": both}
        return grammar.compiled([t for ts in self.picture_wordings.values() for t in ts], slots)

    @cached_property
    def _known_strangers(self) -> list[re.Pattern[str]]:
        return [grammar.compiled(ts, self._all_unknown_slots) for ts in self.unknown]


_OWN_COLOURS = {name: (name,) for name in COLOURS}
_OWN_SHAPES = {name: (name,) for name in SHAPES}
_P = wordings_pictures

ENGLISH = Lexicon(
    edits=wordings_en.EDITS,
    results=phrases.RESULTS_EN,
    frames=phrases.FRAMES_EN,
    slots=wordings_en.SLOTS,
    colours={**_OWN_COLOURS, **wordings_en.COLOURS},
    shapes={**_OWN_SHAPES, **_P.SHAPES_EN},
    subjects={name: (name,) for name in SUBJECTS},
    picture_slots=_P.SLOTS_EN,
    picture_wordings={
        **{"shape": _P.SHAPE_EN, "subject": _P.SUBJECT_EN, "white": _P.WHITE_EN},
        **{"beside": _P.BESIDE_EN, "onto": _P.ONTO_EN},
    },
    unknown_slots=unknown_en.SLOTS,
    unknown=(_P.UNKNOWN_TEXT_EN, (*unknown_en.REQUESTS, *unknown_en.FOREIGN), _P.UNKNOWN_TWO_EN),
    negated=unknown_en.NEGATED,
    mixed=unknown_en.MIXED,
    prefixes=politeness.PREFIXES_EN,
    statement_prefixes=politeness.STATEMENT_PREFIXES_EN,
    suffixes=politeness.SUFFIXES_EN,
    connectors=politeness.CONNECTORS_EN,
    joint=" and ",
)
CHINESE = Lexicon(
    edits=wordings_zh.EDITS,
    results=phrases.RESULTS_ZH,
    frames=phrases.FRAMES_ZH,
    slots=wordings_zh.SLOTS,
    colours=wordings_zh.COLOURS,
    shapes=_P.SHAPES_ZH,
    subjects={name: (zh,) for name, zh in SUBJECTS_ZH.items()},
    picture_slots=_P.SLOTS_ZH,
    picture_wordings={
        **{"shape": _P.SHAPE_ZH, "subject": _P.SUBJECT_ZH, "white": _P.WHITE_ZH},
        **{"beside": _P.BESIDE_ZH, "onto": _P.ONTO_ZH},
    },
    unknown_slots=unknown_zh.SLOTS,
    unknown=(_P.UNKNOWN_TEXT_ZH, unknown_zh.REQUESTS, _P.UNKNOWN_TWO_ZH),
    negated=unknown_zh.NEGATED,
    mixed=unknown_zh.MIXED,
    prefixes=politeness.PREFIXES_ZH,
    statement_prefixes=politeness.STATEMENT_PREFIXES_ZH,
    suffixes=politeness.SUFFIXES_ZH,
    connectors=politeness.CONNECTORS_ZH,
    joint="，",
)
LEXICONS: dict[Language, Lexicon] = {"en": ENGLISH, "zh": CHINESE}
