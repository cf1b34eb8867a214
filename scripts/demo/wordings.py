"""Training requests, drawn at random: a task, its prompt in English or Chinese, and what the model says to it.

The one door to the wordings for trainer and judge. Knows chances, politeness and typing errors; nothing of pictures or
tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from string import ascii_lowercase, digits

from scripts.demo import grammar
from scripts.demo.edits import COLOURED, COLOURS, NAMES, TURNS, Step, in_order
from scripts.demo.lexicon import LEXICONS, Lexicon
from scripts.demo.speech import Language, parse, recaption, think
from scripts.demo.tasks import SHAPES, SOURCES, SUBJECTS, UNKNOWN, Family, Task, go_together

__all__ = ["FAMILY_SHARE", "Request", "could_say", "draw", "parse", "recaption", "think", "worded"]

FAMILY_SHARE: dict[Family, float] = {"edit": 0.62, "turn": 0.18, "text": 0.07, "beside": 0.06, "onto": 0.07}
"""Which part of the training batches is of which family."""

_UNKNOWN_SHARE: dict[Family, float] = {"edit": 0.34, "turn": 0.0, "text": 0.16, "beside": 0.0, "onto": 0.18}
_PAIR_SHARE: dict[Family, float] = {"edit": 0.25, "turn": 0.4, "text": 0.0, "beside": 0.0, "onto": 0.0}
_CHINESE_SHARE = 0.35
_TYPO_SHARE = 0.15
_LOOSE_SHARE = 0.12
_NONSENSE_SHARE = 0.04
_COINED_SHARE = 0.2
_UNADORNED_SHARE, _CONTEXT_SHARE = 0.35, 0.3  # with nothing around it; else, with a remark beside it
_QUESTION = re.compile(r"吗$|^(can|could|would|will|may|is|are|do|does|how|what|why|who|where)\b", re.IGNORECASE)
_ENDS, _PAUSES = tuple(".!?…。！？"), tuple(",;:，；：")
# Longer prompts would not leave room for thoughts in training's sequences.
_LONGEST = {"en": 130, "zh": 44}
# Words that may go or come without changing what is meant.
_IDLE = {"the", "a", "an", "it", "this", "my", "please", "in", "to", "of", "for", "me", "be", "with"}
_FILLERS = ("really", "just", "maybe", "please", "totally", "kind of", "somehow", "nicely", "um", "like", "finally")
# A background wants the most practice, each of the coloured edits is twelve, and some are mistaken more often.
_WEIGHT = {
    **{"background": 8.0, "tint": 3.5, "frame": 2.5},
    **{"sharpen": 1.6, "flat": 1.4, "pale": 1.4, "mirror": 2.5, "upside": 2.5},
}


@dataclass(frozen=True)
class Request:
    """One training request.

    Attributes:
        sources: how many pictures come with it.
        think, recaption: what the model says, without the tags.
    """

    task: Task
    prompt: str
    language: Language
    sources: int
    think: str
    recaption: str


def draw(rng: Random, family: Family) -> Request:
    """A random request of one family."""
    return worded(rng, _task(rng, family), SOURCES[family])


def worded(rng: Random, task: Task, sources: int) -> Request:
    """A task in words, of a random language."""
    language: Language = "zh" if rng.random() < _CHINESE_SHARE else "en"
    lexicon = LEXICONS[language]
    prompt = _prompt(lexicon, task, sources, rng)
    while len(prompt) > _LONGEST[language]:
        prompt = _prompt(lexicon, task, sources, rng)
    return Request(task, prompt, language, sources, think(task, language, sources), recaption(task, language, sources))


def could_say(prompt: str, sources: int) -> bool:
    """Whether training could draw this prompt, typing errors and idle words aside."""
    return any(lexicon.could_say(prompt, sources) for lexicon in LEXICONS.values())


def _task(rng: Random, family: Family) -> Task:
    if rng.random() < _UNKNOWN_SHARE[family]:
        return UNKNOWN
    if family in ("beside", "onto"):
        return Task("beside" if family == "beside" else "onto")
    if family == "text":
        ground = rng.choice(list(COLOURS))
        if rng.random() < 0.45:
            return Task("subject", subject=rng.choice(list(SUBJECTS)), ground=ground)
        colour = rng.choice([name for name in COLOURS if name != ground])
        return Task("shape", shape=rng.choice(SHAPES), colour=colour, ground=ground)
    names = TURNS if family == "turn" else [name for name in NAMES if name not in TURNS]
    first = _step(rng, names)
    if rng.random() < _PAIR_SHARE[family]:
        others = [name for name in NAMES if name not in TURNS]
        second = _step(rng, others)
        while not go_together(first, second):
            second = _step(rng, others)
        return Task("edit", in_order((first, second)))
    return Task("edit", (first,))


def _step(rng: Random, names: Sequence[str]) -> Step:
    name = rng.choices(names, [_WEIGHT.get(name, 1.0) for name in names])[0]
    return Step(name, rng.choice(list(COLOURS)) if name in COLOURED else None)


def _prompt(lexicon: Lexicon, task: Task, sources: int, rng: Random) -> str:
    core, order = _core(lexicon, task, sources, rng)
    if rng.random() < _UNADORNED_SHARE:
        text = _unadorned(lexicon, core, rng)
    else:
        text = _loosened(_polite(lexicon, core, order, rng), rng)
        if sources == 1 and rng.random() < _CONTEXT_SHARE:  # what a remark is about would be there to be drawn, too
            text = _in_context(lexicon, text, rng)
    return _disturbed(grammar.articled(text), rng)


def _core(lexicon: Lexicon, task: Task, sources: int, rng: Random) -> tuple[str, bool]:
    """The request without politeness, and whether it is an order."""
    if task.kind == "unknown":
        if rng.random() < _NONSENSE_SHARE:
            return _nonsense(rng), False
        coined = _coined(lexicon, rng)
        text = lexicon.stranger(sources, rng, coined)
        while lexicon.knows(text, sources):
            text = lexicon.stranger(sources, rng, coined)
        return text, rng.random() < 0.6
    if task.kind != "edit":
        return lexicon.picture(task, rng), True
    if len(task.steps) == 1:
        return lexicon.step(task.steps[0], rng)
    return lexicon.pair(rng.sample(task.steps, 2), rng)


def _unadorned(lexicon: Lexicon, core: str, rng: Random) -> str:
    """As people type it first: sometimes with a full stop or a question mark."""
    text = _cased(core.strip(), rng)
    if text.endswith((*_ENDS, *_PAUSES, "-")) or rng.random() < 0.7:
        return text
    chinese, asked = lexicon.language == "zh", _QUESTION.search(text)
    return text + (("？" if chinese else "?") if asked else ("。" if chinese else "."))


def _polite(lexicon: Lexicon, core: str, order: bool, rng: Random) -> str:
    before = lexicon.prefixes if order else lexicon.statement_prefixes
    around = [
        grammar.raw(rng.choice(templates), lexicon.strange_slots, rng) for templates in (before, lexicon.suffixes)
    ]
    return _cased(" ".join((around[0] + core + around[1]).split()), rng)


def _cased(text: str, rng: Random) -> str:
    """Sometimes with a capital, rarely in capitals."""
    chance = rng.random()
    if chance < 0.35:
        return text[:1].upper() + text[1:]
    return text.upper() if chance > 0.95 and len(text) < _LONGEST["en"] * 0.6 else text


def _in_context(lexicon: Lexicon, text: str, rng: Random) -> str:
    """Between remarks that ask for nothing, of which a part is about things that nobody knows."""
    before, after = rng.choice(((True, False), (False, True), (False, True), (True, True)))
    coined = _coined(lexicon, rng)
    lead, trail = (lexicon.remark(w, rng, coined) if on else "" for w, on in (("before", before), ("after", after)))
    if lead.rstrip().endswith(_ENDS):
        text = text[:1].upper() + text[1:]
    if text.endswith(_ENDS + _PAUSES):
        trail = trail.lstrip(grammar.SEPARATORS)
    return " ".join((lead + text + trail).split())


def _loosened(text: str, rng: Random) -> str:
    """English spoken carelessly, now and then: an idle word less or a filler more."""
    words = text.split(" ")
    if rng.random() >= _LOOSE_SHARE or len(words) < 3 or not text.isascii():
        return text
    idle = [i for i, word in enumerate(words) if word.lower() in _IDLE]
    if idle and rng.random() < 0.6:
        del words[rng.choice(idle)]
    else:
        words.insert(rng.randrange(1, len(words)), rng.choice(_FILLERS))
    return " ".join(words)


def _disturbed(text: str, rng: Random) -> str:
    """With one or two typing errors, now and then, in words of four letters and more."""
    if rng.random() >= _TYPO_SHARE:
        return text
    words = text.split(" ")
    for _ in range(1 if rng.random() < 0.7 else 2):
        long = [i for i, word in enumerate(words) if len(word) >= 4 and word.isascii()]
        if long:
            i = rng.choice(long)
            words[i] = _mistyped(words[i], rng)
    return " ".join(words)


def _mistyped(word: str, rng: Random) -> str:
    at = rng.randrange(1, len(word) - 1)
    kind = rng.randrange(4)
    if kind == 0:
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    if kind == 1:
        return word[:at] + word[at + 1 :]
    if kind == 2:
        return word[:at] + word[at] + word[at:]
    return word[:at] + rng.choice(ascii_lowercase) + word[at + 1 :]


def _coined(lexicon: Lexicon, rng: Random) -> tuple[str, ...]:
    """Words that nobody knows, for things; mostly none."""
    if rng.random() >= _COINED_SHARE:
        return ()
    signs, count = lexicon.signs, rng.choice((2, 2, 3)) if lexicon.language == "zh" else rng.choice((2, 3))
    return tuple("".join(rng.choice(signs) for _ in range(count)) for _ in range(4))


def _nonsense(rng: Random) -> str:
    """Letters, numbers or signs that mean nothing."""
    signs, longest = rng.choice(((ascii_lowercase, 8), (ascii_lowercase, 8), (digits, 6), ("?!.,-+*/#&%=_~:;<>", 5)))

    def word() -> str:
        return "".join(rng.choice(signs) for _ in range(rng.randrange(1, longest + 1)))

    return " ".join(word() for _ in range(rng.randrange(1, 6)))
