"""What one request may ask of the demo checkpoint: the closed world of its tasks.

Knows which edits go together and how large the answer is; nothing of wordings, files or the arithmetic itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from scripts.demo.edits import COLOURS, NAMES, Step, in_order, steps_of, turned

Kind = Literal["edit", "unknown", "shape", "subject", "beside", "onto"]
Family = Literal["edit", "turn", "text", "beside", "onto"]
"""What a batch has in common: 1, 1, 0, 2 and 2 source pictures; `turn` and `beside` change the answer's size."""

SOURCES: dict[Family, int] = {"edit": 1, "turn": 1, "text": 0, "beside": 2, "onto": 2}

SHAPES = ("circle", "square", "triangle", "star", "heart", "ring", "diamond", "cross")

SUBJECTS: dict[str, str] = {
    "apple": "food/fruit/apple.png",
    "banana": "food/fruit/banana.png",
    "lemon": "food/fruit/lemon.png",
    "pear": "food/fruit/pear.png",
    "strawberry": "food/fruit/strawberry.png",
    "cherry": "food/fruit/cherry_jean_victor_balin_.png",
    "mushroom": "plants/mushroom.png",
    "flower": "plants/flowers/flower1_juliane_krug_01.png",
    "tree": "plants/trees/evergreen/tree.png",
    "snowman": "recreation/holiday/snowman_01.png",
    "guitar": "recreation/music/guitar_jarno_vasamaa1.png",
    "balloon": "recreation/party/balloon-red-aj.png",
    "ball": "recreation/toys/ball.png",
    "robot": "recreation/toys/robot_ganson.png",
    "book": "education/books/diary_costea_bogdan_01.png",
    "cat": "animals/mammals/cartoon_cat_gerald_g._01.png",
    "pig": "animals/mammals/pig_marcelo_caiafa1.png",
    "sheep": "animals/mammals/sheep-md-v0.1.png",
    "tiger": "animals/mammals/big_cats/tiger_graig_ryan_smith_-_01.png",
    "ladybug": "animals/bugs/ladybug_01.png",
    "butterfly": "animals/bugs/butterfly_jonathan_dietr_01.png",
    "house": "buildings/homes/house_christoph_brill_01.png",
    "hat": "people/clothing/hats/hat_01.png",
    "cake": "food/desserts/cake1_jarno_vasamaa_01.png",
}
"""Clip art that can be asked for by its name, and its file in the package."""


@dataclass(frozen=True)
class Task:
    """One request's meaning.

    `edit` has one or two steps in their order; `shape` and `subject` have `ground`, the background's colour; `unknown`
    keeps the (first) picture, or paints plain grey where there is none.
    """

    kind: Kind
    steps: tuple[Step, ...] = ()
    shape: str | None = None
    subject: str | None = None
    colour: str | None = None
    ground: str | None = None


UNKNOWN = Task("unknown")

_ONE_TONE, _SATURATION, _WARMTH = ("bw", "sepia", "invert", "tint"), ("vivid", "pale"), ("warmer", "cooler")
# Of each of these at most one: two would undo or hide each other, or say the same.
_APART = (
    *((*_ONE_TONE, *_SATURATION), (*_ONE_TONE, *_WARMTH)),
    *(("brighter", "darker"), ("contrast", "flat"), ("background",), ("blur", "sharpen", "pixelate")),
    *(("mirror", "upside", "left", "right"), ("frame",)),
)


def go_together(first: Step, second: Step) -> bool:
    """Whether two steps may be asked for at once: none hides the other and, where both name a colour, these are two."""
    apart = any(first.name in names and second.name in names for names in _APART)
    return not apart and (first.colour is None or first.colour != second.colour)


def single_steps() -> list[Step]:
    """Every edit that one word can name."""
    return [step for name in NAMES for step in steps_of(name)]


def edit_tasks(pairs: bool = True) -> list[Task]:
    """Every edit task: all single steps and, with `pairs`, all pairs that go together."""
    steps = single_steps()
    tasks = [Task("edit", (step,)) for step in steps]
    if pairs:
        tasks += [Task("edit", in_order(pair)) for pair in combinations(steps, 2) if go_together(*pair)]
    return tasks


def text_tasks() -> list[Task]:
    """Every picture that can be made from words alone."""
    colours = list(COLOURS)
    shapes = [Task("shape", shape=s, colour=c, ground=g) for s in SHAPES for c in colours for g in colours if c != g]
    return shapes + [Task("subject", subject=s, ground=g) for s in SUBJECTS for g in colours]


def family(task: Task, sources: int = 1) -> Family:
    """The batch a task belongs to; `sources` decides for `unknown`."""
    if task.kind == "edit":
        return "turn" if turned(task.steps) else "edit"
    if task.kind == "unknown":
        return ("text", "edit", "onto")[sources]
    if task.kind in ("shape", "subject"):
        return "text"
    return task.kind  # type: ignore[return-value]


def beside_size(height: int, width: int) -> tuple[int, int]:
    """Height and width of two pictures of this size side by side, among the sizes whose halves are whole tokens."""
    sizes = ((128, 512), (128, 448), (128, 384), (160, 352), (192, 320), (224, 288), (256, 256), (320, 192), (352, 160))
    return min(sizes, key=lambda size: abs(size[0] / size[1] - height / (2 * width)))
