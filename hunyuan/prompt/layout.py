"""The token sequence of a request (docs/model.md, section 12).

Knows the order of the pieces, the two chat templates, the image blocks and the unconditional row. The result
is plain numbers; embeddings, masks and keys are made from them elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from hunyuan.errors import CheckpointError
from hunyuan.model.config import ModelConfig
from hunyuan.model.rope import Grid
from hunyuan.prompt.resolution import Bucket
from hunyuan.prompt.tokenizer import Tokenizer
from hunyuan.requests import BotTask

TextTask = Literal["auto", "image", "think", "recaption", "img_ratio"]
ImageKind = Literal["cond_joint_image", "gen_image"]


def text_task(bot_task: BotTask) -> TextTask:
    """What the prompt of an edit's text stage asks for."""
    return "recaption" if bot_task == "recaption" else "think"


@dataclass(frozen=True)
class Template:
    """The fixed strings of a chat format. Each is a text piece of its own, empty ones included."""

    user: str
    assistant: str
    separator: str
    answer: str
    end_answer: str


TEMPLATES = {
    "instruct": Template("User: ", "Assistant: ", "\n\n", "<answer>", "</answer>"),
    "pretrain": Template("", "", "", "", ""),
}


@dataclass(frozen=True)
class Piece:
    """One piece of the sequence: text, or an image block when `text` is None."""

    kind: Literal["text"] | ImageKind
    start: int
    stop: int
    text: str | None = None


@dataclass(frozen=True)
class CondBlock:
    """A condition image in the sequence; `vit` covers the real patches only, `vit_stop` its padding too."""

    timestep: int
    vae: Grid
    vit: Grid
    vit_stop: int


@dataclass(frozen=True)
class GenBlock:
    """The picture to paint: its special tokens stand right before its image tokens."""

    timestep: int
    guidance: int | None
    timestep_r: int | None
    image: Grid


@dataclass
class Layout:
    """A whole sequence. `uncond_ids` is the row for classifier-free guidance, of equal length."""

    ids: list[int]
    uncond_ids: list[int]
    pieces: list[Piece]
    conds: list[CondBlock]
    gen: GenBlock | None = None
    cond_attention: str = "joint_full"

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def generated(self) -> GenBlock:
        """The block of the picture to paint. Raises `ValueError` for a text layout, which has none."""
        if self.gen is None:
            raise ValueError("a text layout has no picture to paint")
        return self.gen

    @property
    def read_tokens(self) -> tuple[int, int]:
        """How many tokens are read before anything is written: (of text, of condition images)."""
        stop = next((piece.start for piece in self.pieces if piece.kind == "gen_image"), len(self))
        images = sum(piece.stop - piece.start for piece in self.pieces if piece.kind == "cond_joint_image")
        return stop - images, images

    @property
    def grids(self) -> list[Grid]:
        """The stretches with two-dimensional positions, in order (docs/model.md, section 8)."""
        grids: list[Grid] = []
        for block in self.conds:
            if self.cond_attention != "causal":
                grids.append(block.vae)
            if self.cond_attention in ("full", "joint_full"):
                grids.append(block.vit)
        return grids + ([self.gen.image] if self.gen else [])

    @property
    def full_blocks(self) -> list[tuple[int, int]]:
        """The [start, stop) ranges with bidirectional attention, in order (docs/model.md, section 14)."""
        blocks: list[tuple[int, int]] = []
        for block in self.conds:
            if self.cond_attention == "joint_full":
                blocks.append((block.vae.start, block.vit_stop))
            elif self.cond_attention != "causal":
                blocks.append((block.vae.start, block.vae.stop))
                if self.cond_attention == "full":
                    blocks.append((block.vit.start, block.vit_stop))
        return blocks + ([(self.gen.image.start, self.gen.image.stop)] if self.gen else [])


@dataclass(frozen=True)
class CondShape:
    """What the layout needs to know of a condition image: its bucket and its grid of vision patches."""

    bucket: Bucket
    vision_grid: tuple[int, int]  # rows, columns


@dataclass
class _Builder:
    """Appends pieces to both rows at once."""

    tokenizer: Tokenizer
    config: ModelConfig
    ids: list[int] = field(default_factory=list)
    uncond_ids: list[int] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)
    conds: list[CondBlock] = field(default_factory=list)
    gen: GenBlock | None = None

    def tokens(self, ids: Sequence[int], guided: bool = False) -> int:
        """Appends ids, `<cfg>` in their place in the unconditional row if `guided`; returns their start."""
        start = len(self.ids)
        self.ids += ids
        self.uncond_ids += [self.tokenizer.cfg] * len(ids) if guided else ids
        return start

    def text(self, text: str, guided: bool = False) -> None:
        start = self.tokens(self.tokenizer.encode(text), guided)
        self.pieces.append(Piece("text", start, len(self.ids), text))

    def _image_head(self, bucket: Bucket) -> int:
        tk = self.tokenizer
        if bucket.index >= len(tk.ratios):
            raise CheckpointError(f"this model has no token <img_ratio_{bucket.index}>")
        start = self.tokens([tk.boi, tk.size, tk.ratios[bucket.index]])
        return start

    def _grid(self, bucket: Bucket) -> Grid:
        down_h, down_w = self.config.vae_downsample_factor
        grid = Grid(len(self.ids), bucket.size.height // down_h, bucket.size.width // down_w)
        self.tokens([self.tokenizer.img] * (grid.height * grid.width))
        return grid

    def cond_image(self, shape: CondShape) -> None:
        tk, patches = self.tokenizer, self.config.vit_processor.max_num_patches
        start = self._image_head(shape.bucket)
        timestep = self.tokens([tk.timestep])
        vae = self._grid(shape.bucket)
        self.tokens([tk.joint_sep])
        vit = Grid(self.tokens([tk.img] * patches), *shape.vision_grid)
        self.conds.append(CondBlock(timestep, vae, vit, vit.start + patches))
        self.tokens([tk.eoi])
        self.pieces.append(Piece("cond_joint_image", start, len(self.ids)))

    def gen_image(self, bucket: Bucket) -> None:
        tk, config = self.tokenizer, self.config
        start = self._image_head(bucket)
        timestep = self.tokens([tk.timestep])
        guidance = self.tokens([tk.id("<guidance>")]) if config.cfg_distilled else None
        timestep_r = self.tokens([tk.id("<timestep_r>")]) if config.use_meanflow else None
        self.gen = GenBlock(timestep, guidance, timestep_r, self._grid(bucket))
        self.tokens([tk.eoi])
        self.pieces.append(Piece("gen_image", start, len(self.ids)))

    def build(self) -> Layout:
        attention = self.config.cond_token_attn_type
        return Layout(self.ids, self.uncond_ids, self.pieces, self.conds, self.gen, attention)


class LayoutBuilder:
    """Lays out the sequences of one checkpoint.

    Args:
        template: `sequence_template` of the generation config, `instruct` or `pretrain`.

    Raises:
        CheckpointError: an unknown template.
    """

    def __init__(self, tokenizer: Tokenizer, config: ModelConfig, template: str) -> None:
        if template not in TEMPLATES:
            raise CheckpointError(f"sequence_template={template!r}, accepted: {', '.join(TEMPLATES)}")
        self.tokenizer, self.config, self.template = tokenizer, config, TEMPLATES[template]

    def _question(self, system: str, prompt: str, images: Sequence[CondShape]) -> _Builder:
        """Everything up to the assistant's turn: system text, images, prompt."""
        builder = _Builder(self.tokenizer, self.config)
        builder.tokens([self.tokenizer.bos])
        if system:
            builder.text("")
            builder.text(system)
            builder.text(self.template.separator)
        builder.text(self.template.user)
        for shape in images:
            builder.cond_image(shape)
        builder.text(prompt, guided=True)
        builder.text(self.template.separator)
        return builder

    def text_layout(
        self,
        system: str,
        prompt: str,
        images: Sequence[CondShape],
        task: TextTask,
        cot: str | None = None,
        drop_think: bool = False,
    ) -> Layout:
        """The prompt of the text stage, ending where the model continues.

        With a `cot` (only for `img_ratio`) the model has already thought and just picks the ratio.
        """
        t = self.template
        marker = {
            "auto": "",
            "image": "",
            "think": "<think>",
            "recaption": "<recaption>",
            "img_ratio": f"{t.answer}<boi>{self.tokenizer.size_text}",
        }[task]
        builder = self._question(system, prompt, images)
        if cot:
            builder.text(t.assistant)
            self._add_cot(builder, cot, drop_think)
            builder.text(marker)
        else:
            # Prefix and marker are tokenized as one piece; the bare image task has no prefix at all.
            builder.text("" if task == "image" else t.assistant + marker)
        return builder.build()

    def image_layout(
        self,
        system: str,
        prompt: str,
        images: Sequence[CondShape],
        output: Bucket,
        cot: str | None = None,
        drop_think: bool = False,
    ) -> Layout:
        """The whole sequence of the image stage."""
        builder = self._question(system, prompt, images)
        builder.text(self.template.assistant)
        if cot:
            self._add_cot(builder, cot, drop_think)
        builder.text(self.template.answer)
        builder.gen_image(output)
        builder.text(self.template.end_answer)
        builder.text(self.template.separator)
        return builder.build()

    def _add_cot(self, builder: _Builder, cot: str, drop_think: bool) -> None:
        """Tags become pieces of their own; text outside complete tags becomes one answer piece."""
        for tag in ("think", "recaption"):
            opening, closing = f"<{tag}>", f"</{tag}>"
            if opening in cot and closing in cot:
                before, inner, after = _cut(cot, opening, closing)
                if before:
                    self._add_cot(builder, before, drop_think)
                if not (drop_think and tag == "think"):
                    builder.text(opening)
                    builder.text(inner, guided=True)
                    builder.text(closing)
                if after:
                    self._add_cot(builder, after, drop_think)
                return
        builder.text(f"{self.template.answer}{cot}{self.template.end_answer}", guided=True)


def _cut(text: str, opening: str, closing: str) -> tuple[str, str, str]:
    """Before the first opening tag, inside it, and after the first closing tag.

    Where tags repeat, "inside" and "after" end at the next tag and the rest is not used, as in the official
    sequences.
    """
    before, inside = text.split(opening)[:2]
    return before, inside.split(closing, maxsplit=1)[0], text.split(closing)[1]


def keep_recaption(cot: str) -> str:
    """`drop_think` on a finished text: only the recaption, its tags complete, when there is one."""
    if "<recaption>" not in cot:
        return cot
    inner = cot.split("<recaption>")[1].split("</recaption>", maxsplit=1)[0]
    return f"<recaption>{inner}</recaption>"
