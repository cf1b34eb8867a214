"""The wordings of both languages made ready for drawing: templates, slots and which sentences are known.

Knows the templates, which task each belongs to and how often each kind comes up; nothing of typing errors or pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from random import Random

from scripts.demo import grammar, phrasebook, politeness, wordings_pictures
from scripts.demo.edits import COLOURED, COLOURS, Step
from scripts.demo.phrases import ROLES, Phrases, Words
from scripts.demo.speech import SUBJECTS_ZH, Language
from scripts.demo.tasks import SHAPES, SUBJECTS, Task

_ORDINARY_SHARE = 0.35  # how often an edit is asked for in ordinary words
# How often, in others, it is an order, a statement, what the answer is, what is wrong, what is missing, or a gerund.
_SENTENCES = {"order": 0.4, "said": 0.1, "result": 0.2, "state": 0.1, "noun": 0.13, "doing": 0.07}
# What has not been learned: on its own, a known edit for a part of the picture, a whole sentence, and so on.
# With `shade` a colour is none of the twelve; `empty` asks for nothing: greetings, thanks, numbers, code; `remark` is
# what stands around a request, without one.
_STRANGERS = {
    **{"alone": 0.30, "partial": 0.13, "whole": 0.19, "negated": 0.12, "mixed": 0.09, "foreign": 0.05},
    **{"shade": 0.05, "empty": 0.04, "remark": 0.03},
}
_EMPTY_SHARE = 0.15  # of what has not been learned, with no picture or with two
# Edits that more or less of can be asked for.
_GRADED = (
    *("brighter", "darker", "contrast", "flat", "warmer", "cooler", "vivid", "pale", "tint", "blur", "sharpen"),
    "pixelate",
)
# Edits that one can ask for by naming an object: "put the cat on blue" means the whole picture.
_ABOUT_OBJECTS = ("background", "frame")
# What Chinese also calls the colours of those; of a whole picture it would mean dark or light.
_SHORT_ZH = {"black": "黑", "white": "白"}


@dataclass(frozen=True)
class Lexicon:
    """One language.

    Attributes:
        edits: per edit its phrases; stranger: those of all that has not been learned.
        sentences: per kind the sentences around phrases.
        whole, foreign, empty: whole sentences that have not been learned.
        slots, strange_slots: what templates name; the latter only those of what has not been learned.
        picture_wordings: per task kind (`shape`, `subject`, `white`, `beside`, `onto`) its templates.
        unknown_pictures: per 0 or 2 sources, templates of what has not been learned.
        prefixes, statement_prefixes, suffixes: politeness before orders, before statements, and behind either.
        context: what stands around all that, `before` and `after`: what the picture is for, how it was taken.
    """

    language: Language
    edits: Mapping[str, Phrases]
    alone: Phrases
    sentences: Words
    whole: Sequence[str]
    foreign: Sequence[str]
    empty: Sequence[str]
    slots: Words
    strange_slots: Words
    colours: Words
    shapes: Words
    subjects: Words
    picture_slots: Words
    picture_wordings: Words
    unknown_pictures: Mapping[int, Sequence[str]]
    prefixes: Sequence[str]
    statement_prefixes: Sequence[str]
    suffixes: Sequence[str]
    context: Words

    def step(self, step: Step, rng: Random) -> tuple[str, bool]:
        """One edit in words, and whether it is an order (and not a statement)."""
        phrases, slots = self.edits[step.name], self._step_slots(step)
        if rng.random() < _ORDINARY_SHARE:
            template = rng.choice(phrases.ordinary)
            return grammar.draw(template, slots, rng), template in phrases.ordinary_orders
        return self._one(phrases, slots, rng)

    def pair(self, steps: Sequence[Step], rng: Random) -> tuple[str, bool]:
        """Two edits in words, in the given order, and whether they begin as an order."""
        slots: dict[str, Sequence[str] | grammar.Scope] = dict(self.slots)
        for number, step in zip("12", steps, strict=True):
            slots |= self._numbered(self.edits[step.name], self._step_slots(step), number)
        if rng.random() < _ORDINARY_SHARE:
            template = rng.choice(self.sentences["both_ordinary"])
            return grammar.draw(template.removeprefix("~"), slots, rng), not template.startswith("~")
        return self._two(self.sentences["both"], slots, rng)

    def _one(self, phrases: Phrases, slots: grammar.Slots, rng: Random) -> tuple[str, bool]:
        kinds = [kind for kind in _SENTENCES if kind == "said" or getattr(phrases, kind)]
        kind = rng.choices(kinds, [_SENTENCES[kind] for kind in kinds])[0]
        template = rng.choice(self.sentences[kind])
        text = grammar.draw(template.removeprefix("~"), {**slots, **phrases.slots()}, rng)
        return text, not template.startswith("~") and kind in ("order", "result", "noun")

    def _two(self, templates: Sequence[str], slots: grammar.Slots, rng: Random) -> tuple[str, bool]:
        template = rng.choice([t for t in templates if not any("{" + name + "}" in t for name in _missing(slots))])
        return grammar.draw(template, slots, rng), template.startswith("{order1}")

    def _numbered(self, phrases: Phrases, slots: grammar.Slots, number: str) -> dict[str, grammar.Scope]:
        """An edit's phrases as `order1` and so on, with slots of their own."""
        roles = {role: templates for role, templates in phrases.slots().items() if role != "order"}
        roles["order"] = roles.pop("say") if self.language == "zh" else (*phrases.order, *phrases.order, *phrases.say)
        return {role + number: grammar.Scope(templates, slots) for role, templates in roles.items()}

    def _step_slots(self, step: Step) -> Words:
        degrees = self.slots["deg_graded" if step.name in _GRADED else "deg_plain"]
        names = self.colours[step.colour] if step.colour else self._any_colour
        if self.language == "zh" and step.name in _ABOUT_OBJECTS and step.colour in _SHORT_ZH:
            names = (*names, _SHORT_ZH[step.colour])
        return {**self.slots, "deg": degrees, "c": names}

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

    def stranger(self, sources: int, rng: Random, coined: Sequence[str] = ()) -> str:
        """Something that has not been learned, in words; may by chance be known all the same (`knows`).

        Args:
            coined: words that are to stand for things.
        """
        slots = _with_things(self._all_slots, coined)
        if sources != 1:
            templates = self.empty if rng.random() < _EMPTY_SHARE else self.unknown_pictures[sources]
            return grammar.draw(rng.choice(templates), {**slots, **self.picture_slots}, rng)
        kind = rng.choices(list(_STRANGERS), list(_STRANGERS.values()))[0]
        if kind in ("whole", "foreign", "empty", "remark"):
            templates = self.context["before"] if kind == "remark" else getattr(self, kind)
            return grammar.draw(rng.choice(templates), slots, rng)
        if kind == "alone":
            return self._one(self.alone, slots, rng)[0]
        if kind in ("partial", "shade"):
            return self._near_miss(kind, slots, rng)
        step = _any_step(rng.choice(list(self.edits)), rng)
        phrases, own = self.edits[step.name], {**slots, **self._step_slots(step)}
        if kind == "negated":
            template = rng.choice([t for t in self.sentences["negated"] if "{state}" not in t or phrases.state])
            return grammar.draw(template, {**own, **phrases.slots()}, rng)
        numbers = rng.sample("12", 2)
        both = {**self._numbered(phrases, own, numbers[0]), **self._numbered(self.alone, slots, numbers[1])}
        return self._two(self.sentences["mixed"], {**slots, **both}, rng)[0]

    def _near_miss(self, kind: str, slots: Words, rng: Random) -> str:
        """A known edit of a thing in the picture (`partial`), or with a colour that is none of the twelve (`shade`)."""
        names: Sequence[str] = [name for name in self.edits if name not in _ABOUT_OBJECTS]
        places: Sequence[str] = ("{pic}", "{ba}")
        other = {"pic": self.strange_slots["the"]}
        if kind == "shade":
            names, places, other = COLOURED, ("{c}",), {"c": self.strange_slots["odd"]}
        step = _any_step(rng.choice(names), rng)
        phrases, own = self.edits[step.name], {**slots, **self._step_slots(step), **other}
        if rng.random() < _ORDINARY_SHARE:  # else short words would tell that an edit is known
            return grammar.draw(rng.choice([t for t in phrases.ordinary if any(p in t for p in places)]), own, rng)
        return self._one(phrases, own, rng)[0]

    def remark(self, where: str, rng: Random, coined: Sequence[str] = ()) -> str:
        """What stands `before` or `after` a request and asks for nothing, with its spaces; `coined` as above."""
        return grammar.raw(rng.choice(self.context[where]), _with_things(self.strange_slots, coined), rng)

    def knows(self, text: str, sources: int) -> bool:
        """Whether a core sentence (no politeness around it) is a known request, alone or as two."""
        return (self._known_edits if sources == 1 else self._known_pictures).fullmatch(text)

    def could_say(self, text: str, sources: int) -> bool:
        """Whether any training sentence, typing errors aside, is this one."""
        return self._sayable[sources].fullmatch(text)

    @cached_property
    def signs(self) -> list[str]:
        """What words that nobody knows can be made of: English syllables, Chinese signs."""
        if self.language == "zh":
            return sorted(set("".join(self.strange_slots["noun_thing"])))
        return [
            a + b + c for a in (*"bcdfghjklmnprstvwz", "sh", "tr", "gl") for b in "aeiou" for c in ("", *"bdgklmnprst")
        ]

    @cached_property
    def _any_colour(self) -> list[str]:
        short = _SHORT_ZH.values() if self.language == "zh" else ()
        return sorted({name for names in self.colours.values() for name in names}.union(short))

    @cached_property
    def _all_slots(self) -> Words:
        known = [t for name, phrases in self.edits.items() if name not in _ABOUT_OBJECTS for t in phrases.result]
        asked = [t for phrases in self.edits.values() for t in phrases.ordinary]
        more = {"c": self._any_colour, "deg": self.slots["deg_graded"], "known": known, "asked": asked}
        verbs = [grammar.gerund(verb) for verb in self.strange_slots["verb"]] if self.language == "en" else []
        return {**self.slots, **self.strange_slots, **more, "verb_ing": verbs}

    def _union(self, *phrases: Phrases) -> dict[str, Sequence[str]]:
        """Every role's templates of several phrases, as `order`, and as `order1` and `order2` those of a pair."""
        roles = {role: [t for p in phrases for t in getattr(p, role)] for role in (*ROLES, "ordinary")}
        orders = [t for p in phrases for t in p.ordinary_orders]
        paired = {**roles, "order": roles["say"], "ordinary": orders}
        numbered = {role + number: templates for role, templates in paired.items() for number in "12"}
        degrees = [*self.slots["deg_graded"], *self.slots["deg_plain"]]
        return {**roles, **numbered, "c": self._any_colour, "deg": degrees}

    @cached_property
    def _core_templates(self) -> list[str]:
        kinds = (*_SENTENCES, "both", "both_ordinary")
        return ["{ordinary}", *(t.removeprefix("~") for kind in kinds for t in self.sentences[kind])]

    @cached_property
    def _known_edits(self) -> grammar.Matcher:
        return grammar.Matcher(self._core_templates, {**self.slots, **self._union(*self.edits.values())})

    @cached_property
    def _known_pictures(self) -> grammar.Matcher:
        return grammar.Matcher([t for ts in self.picture_wordings.values() for t in ts], self._all_picture_slots)

    @cached_property
    def _all_picture_slots(self) -> Words:
        colours = self._any_colour
        shapes = sorted({name for names in self.shapes.values() for name in names})
        subjects = sorted({name for names in self.subjects.values() for name in names})
        gap = " " if self.language == "en" else ""
        both = [f"{c}{gap}{s}" for c in colours for s in shapes] + subjects
        return {**self.picture_slots, "c": colours, "g": colours, "what": shapes + subjects, "cwhat": both}

    @cached_property
    def _sayable(self) -> list[grammar.Matcher]:
        """Per number of sources, everything with its politeness."""
        union = {**self._all_slots, **self._union(*self.edits.values(), self.alone)}
        union["pic"] = [*self.slots["pic"], *self.strange_slots["the"]]
        union["c"] = [*self._any_colour, *self.strange_slots["odd"]]
        pictures = [t for ts in self.picture_wordings.values() for t in ts]
        one = [*self._core_templates, *self.sentences["negated"], *self.sentences["mixed"], *self.whole, *self.foreign]
        one += [*self.empty, *self.context["before"]]
        many = [[*pictures, *self.unknown_pictures[sources], *self.empty] for sources in (0, 2)]
        cores = (many[0], one, many[1])
        around = {"before": [*self.prefixes, *self.statement_prefixes], "after": self.suffixes}
        around |= {"lead": [""], "trail": [""]}
        slots = [
            {**union, **(self._all_picture_slots if i != 1 else {}), **around, "core": c} for i, c in enumerate(cores)
        ]
        slots[1] |= {"lead": ["", *self.context["before"]], "trail": self._trails}
        return [grammar.Matcher(["{lead}{before}{core}{after}{trail}"], own) for own in slots]

    @cached_property
    def _trails(self) -> list[str]:
        """Remarks behind a request, also without the sign that they begin with: behind a question mark, say."""
        after = self.context["after"]
        return ["", *after, *(grammar.bare(template) for template in after)]


def _any_step(name: str, rng: Random) -> Step:
    return Step(name, rng.choice(list(COLOURS)) if name in COLOURED else None)


def _missing(slots: grammar.Slots) -> list[str]:
    """Slots that have no template."""
    return [name for name, slot in slots.items() if not (slot.templates if isinstance(slot, grammar.Scope) else slot)]


def _with_things(slots: Words, coined: Sequence[str]) -> Words:
    """With other words for things, if there are any."""
    return {**slots, "noun_thing": coined} if coined else slots


def _with_gerunds(slots: Words) -> Words:
    """With what an order may begin with as gerunds, too."""
    return {**slots, **{f"{name}_ing": tuple(grammar.gerund(t) for t in slots[name]) for name in ("get", "set")}}


def _lexicon(language: Language) -> Lexicon:
    places = phrasebook.read(f"slots_{language}")
    groups = [phrasebook.read(f"edits_{language}_{group}") for group in ("colour", "light", "place")]
    unknown, ordinary = phrasebook.read(f"unknown_{language}")["alone"], phrasebook.lines(f"ordinary_{language}")
    own = {name: (name,) for name in (*COLOURS, *SHAPES, *SUBJECTS)}
    names = {**own, **wordings_pictures.NAMES[language]}
    if language == "zh":
        names |= {name: (zh,) for name, zh in SUBJECTS_ZH.items()}
    return Lexicon(
        language=language,
        edits={name: Phrases.of(kinds, language, ordinary[name]) for group in groups for name, kinds in group.items()},
        alone=Phrases.of(unknown, language),
        sentences=phrasebook.lines(f"sentences_{language}"),
        whole=unknown["whole"],
        foreign=unknown["foreign"],
        empty=unknown["empty"],
        slots=_with_gerunds(places["slots"]) if language == "en" else places["slots"],
        strange_slots={**phrasebook.words(f"words_{language}"), **places["strangers"]},
        colours={name: names[name] for name in COLOURS},
        shapes={name: names[name] for name in SHAPES},
        subjects={name: names[name] for name in SUBJECTS},
        picture_slots=wordings_pictures.SLOTS[language],
        picture_wordings=wordings_pictures.WORDINGS[language],
        unknown_pictures={0: unknown["text"], 2: unknown["two"]},
        prefixes=politeness.PREFIXES[language],
        statement_prefixes=politeness.STATEMENT_PREFIXES[language],
        suffixes=politeness.SUFFIXES[language],
        context=phrasebook.lines(f"context_{language}"),
    )


LEXICONS: dict[Language, Lexicon] = {"en": _lexicon("en"), "zh": _lexicon("zh")}
