"""What goes into an edit and what comes out: plain values, no model, no tensors.

The names, types and defaults here are the stable Python interface of the project.
"""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, get_args

from PIL import Image

from hunyuan.errors import Cancelled, DeadlineExceeded

MAX_IMAGES = 3
MAX_SEED = 2**63 - 1
MAX_STEPS = 100
MAX_PREVIEWS = 3

BotTask = Literal["image", "think", "recaption", "think_recaption"]
SystemPromptChoice = Literal[
    "None", "en_unified", "en_vanilla", "en_recaption", "en_think_recaption", "dynamic", "custom"
]
Stage = Literal["prepare", "prefill", "think", "first_step", "denoise", "vae"]
STAGES: tuple[Stage, ...] = get_args(Stage)
"""Of an edit, in order; progress counts the first step in `denoise`."""
StepCacheName = Literal["taylor", "spectrum"]
ImageSource = Image.Image | str | Path
ProgressCallback = Callable[[Stage, int, int], None]  # (stage, done, total)
TextCallback = Callable[[str], None]  # the next piece of what the model thinks
PreviewCallback = Callable[[int, Image.Image], None]  # (steps done, the clean picture that they predict)


class Begun(Protocol):
    """An edit whose text is decoded beside others' before its picture has its turn (`Editor.begin`)."""

    @property
    def thinking(self) -> bool:
        """Whether its text is still being decoded."""
        ...

    def close(self) -> None:
        """Gives it up; nothing happens after `Editor.finish`."""
        ...


# Control and format characters, marks without a letter under them, and separators: none of them shows anything.
_BLANK_CATEGORIES = frozenset({"Cc", "Cf", "Mn", "Me", "Zs", "Zl", "Zp"})
_BLANK_LETTERS = frozenset("\u115f\u1160\u2800\u3164\uffa0")  # fillers that Unicode counts among letters and symbols


def is_blank(text: str) -> bool:
    """True where nothing in `text` can be seen: blanks, zero-width and control characters, or nothing at all."""
    return all(unicodedata.category(letter) in _BLANK_CATEGORIES or letter in _BLANK_LETTERS for letter in text)


@dataclass
class EditRequest:
    """One picture to make or edit.

    `None` in the last block means the checkpoint's `generation_config.json`; `steps=None` means
    `HUNYUAN_DEFAULT_STEPS`; `seed=None` means drawn, and returned in the result.
    `resolution` is `auto`, `WIDTHxHEIGHT` or `W:H`. `cot_text`, when given, replaces the text stage. `previews` is how
    many pictures `on_preview` gets on the way; the result does not depend on it.
    """

    prompt: str
    images: Sequence[ImageSource] = ()
    seed: int | None = None
    steps: int | None = None
    resolution: str = "auto"
    bot_task: BotTask = "think_recaption"
    use_system_prompt: SystemPromptChoice = "en_unified"
    system_prompt: str | None = None
    infer_align_image_size: bool = True
    max_new_tokens: int = 2048
    cot_text: str | None = None
    guidance_scale: float | None = None
    flow_shift: float | None = None
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    drop_think: bool | None = None
    step_cache: StepCacheName | None = None
    previews: int = 0


@dataclass(frozen=True)
class TokenUsage:
    """What the model read and wrote for one picture, in tokens.

    Attributes:
        text: read: prompt, system prompt and the format around them; a given `cot_text` too.
        images: read: the pictures.
        thought: written: the text.
        picture: written: the picture's own.
    """

    text: int
    images: int
    thought: int
    picture: int


@dataclass
class EditResult:
    """The picture (RGB) and how it came about. `size` is (width, height); `timings` are seconds.

    `usage` is None where the engine does not tell (the official one).
    """

    image: Image.Image
    cot_text: str | None
    seed: int
    size: tuple[int, int]
    steps: int
    tokens: int
    timings: dict[str, float] = field(default_factory=dict)
    usage: TokenUsage | None = None

    @property
    def recaption(self) -> str | None:
        """The prompt as the model rewrote it, without its tags; None where it wrote none."""
        _, opening, rest = (self.cot_text or "").partition("<recaption>")
        return rest.partition("</recaption>")[0].strip() if opening else None


class CancelToken:
    """Tells a running edit to stop; looked at before each token and each step.

    Args:
        deadline: a `time.monotonic()` value after which the edit stops by itself; None: never.
    """

    def __init__(self, deadline: float | None = None) -> None:
        self.deadline = deadline
        self._cancelled = False

    def cancel(self) -> None:
        self._cancelled = True

    @property
    def cancelled(self) -> bool:
        return self._cancelled

    def check(self) -> None:
        """Raises `Cancelled` after `cancel()`, `DeadlineExceeded` after the deadline."""
        if self._cancelled:
            raise Cancelled("the request was cancelled")
        if self.deadline is not None and time.monotonic() >= self.deadline:
            raise DeadlineExceeded("the request's deadline passed")
