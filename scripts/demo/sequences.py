"""Token sequences of training: laid out by the product's own `LayoutBuilder`, then packed to one length per batch.

A batch's samples are alike in their number of source pictures and in all sizes, so that pictures stand at the same
places; only the texts behind them differ in length. What is packed: the sequence up to the tokens that paint
(`prefix`, padded at its end), and what to predict there. Knows tokens; knows no pixels and no network.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from tokenizers import Tokenizer as BpeTokenizer
from torch import Tensor
from torch.utils.data import IterableDataset

from hunyuan.model.config import ModelConfig
from hunyuan.prompt.images import vision_grid
from hunyuan.prompt.layout import CondBlock, CondShape, Layout, LayoutBuilder
from hunyuan.prompt.resolution import Bucket, Size, resolution_group
from hunyuan.prompt.tokenizer import Tokenizer
from scripts.demo.sizes import SYSTEM
from scripts.demo.tasks import Family
from scripts.demo.wordings import Request

TEXT_ROOM = 100
"""Tokens of a prefix that are neither pictures nor the fixed beginning: prompt, thoughts, recaption, tags."""

TASKS = {"think_recaption": 0.65, "recaption": 0.15, "think": 0.1, "image": 0.1}
GUIDANCE_DROP = 0.05


_TRIES = 50


class TooLong(ValueError):
    """A request's prefix has more tokens than training's sequences have room for."""


class PromptTokenizer(Tokenizer):
    """The checkpoint's tokenizer, but for the prompt, which is cut up in a new way each time (BPE dropout)."""

    def __init__(self, folder: Path, base_size: int, extra_ratios: bool, dropout: float) -> None:
        super().__init__(folder, base_size, extra_ratios)
        self.prompt = ""
        self._loose = BpeTokenizer.from_file(str(folder / "tokenizer.json"))
        self._loose.model.dropout = dropout or None

    def encode(self, text: str) -> list[int]:
        if text and text == self.prompt:
            return self._loose.encode(text, add_special_tokens=False).ids
        return super().encode(text)


@dataclass
class Batch:
    """Samples of one family and one size.

    Attributes:
        requests: what was asked, for drawing the pictures.
        size: height and width of the sources (of the answer, where there are none).
        prefix: int64 `[n, room]`.
        spoken, words: int64 `[m]`: places in the flattened prefix after which the model has to speak, and what.
        length: int64 `[n]`, real tokens of each prefix.
        conds: where the source pictures stand.
        grid: rows and columns of the tokens that are painted.
    """

    requests: Sequence[Request]
    size: tuple[int, int]
    prefix: Tensor
    spoken: Tensor
    words: Tensor
    length: Tensor
    conds: list[CondBlock]
    grid: tuple[int, int]

    @property
    def room(self) -> int:
        return self.prefix.shape[1]

    def to(self, device: torch.device) -> Batch:
        """Its tensors on a device; copies from a loader's pinned memory do not wait."""
        names = ("prefix", "spoken", "words", "length")
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=True) for name in names})

    def pin_memory(self) -> Batch:
        """For `DataLoader`."""
        names = ("prefix", "spoken", "words", "length")
        return replace(self, **{name: getattr(self, name).pin_memory() for name in names})


class Sequences:
    """Makes batches' token sequences.

    Args:
        copies: noisy answers that stand behind each prefix.
        dropout: how loosely prompts are cut up.
    """

    def __init__(self, folder: Path, config: ModelConfig, copies: int, dropout: float = 0.1) -> None:
        self.config, self.copies = config, copies
        self._made_of = (folder, config, copies, dropout)
        self.tokenizer = PromptTokenizer(folder, config.image_base_size, config.has_extra_ratios, dropout)
        self.builder = LayoutBuilder(self.tokenizer, config, "instruct")
        self.group = resolution_group(config.image_base_size, config.has_extra_ratios)
        t = self.tokenizer
        self.pad = t.id("<pad>")
        self._closing = {t.think: t.end_think, t.recaption: t.end_recaption}

    def __reduce__(self) -> tuple[type[Sequences], tuple[Path, ModelConfig, int, float]]:
        """Another process reads the tokenizer's file itself.

        A pipe holds 64 kB, and the tokenizer is larger: with it, each process that was started waited for the one
        before to have imported everything, 50 seconds for six of them.
        """
        return Sequences, self._made_of

    def bucket(self, height: int, width: int) -> Bucket:
        """The bucket of exactly this size. Raises `ValueError` if there is none."""
        bucket = self.group.nearest(Size(width, height))
        if bucket.size != Size(width, height):
            raise ValueError(f"{width}x{height} is no bucket; the nearest is {bucket.size}")
        return bucket

    def room(self, sources: int) -> int:
        """The length that all prefixes with so many sources are padded to.

        Together with the copies of the answer it fills FlexAttention's tiles, of 128 tokens, to the last one.
        """
        area = (self.config.image_base_size // 16) ** 2
        least = sources * (area + self.config.vit_processor.max_num_patches + 8) + TEXT_ROOM
        behind = self.copies * (1 + area)
        return -(-(least + behind) // 128) * 128 - behind

    def layout(
        self, request: Request, sources: Sequence[CondShape], answer: Bucket, task: str, loose: bool = True
    ) -> Layout:
        """The product's layout of the image stage, the text that `task` asks for in it.

        With `loose` the prompt is cut up at random, which makes more tokens of it.
        """
        think, recaption = f"<think>{request.think}</think>", f"<recaption>{request.recaption}</recaption>"
        texts = {"think_recaption": think + recaption, "think": think, "recaption": recaption, "image": None}
        self.tokenizer.prompt = request.prompt if loose else ""
        return self.builder.image_layout(SYSTEM, request.prompt, sources, answer, texts[task])

    def shape(self, height: int, width: int) -> CondShape:
        size = Size(width, height)
        return CondShape(
            self.bucket(height, width),
            vision_grid(size, self.config.vit.patch_size, self.config.vit_processor.max_num_patches),
        )

    def batch(
        self,
        rng: random.Random,
        requests: Sequence[Request],
        sources: int,
        size: tuple[int, int],
        answer: tuple[int, int],
        drop: float = GUIDANCE_DROP,
    ) -> Batch:
        """Packs one sample per request.

        Args:
            sources: pictures that come with each request, all of `size` (height, width).
            answer: height and width of what is painted.
            drop: how many of the samples are without their text, for guidance.
        """
        shapes, bucket, room = [self.shape(*size)] * sources, self.bucket(*answer), self.room(sources)
        prefix = torch.full((len(requests), room), self.pad)
        spoken: list[int] = []
        words: list[int] = []
        lengths = []
        layouts = [self._fitting(rng, request, shapes, bucket) for request in requests]
        for row, layout in enumerate(layouts):
            dropped = rng.random() < drop
            ids = (layout.uncond_ids if dropped else layout.ids)[: layout.generated.timestep]
            prefix[row, : len(ids)] = torch.tensor(ids)
            if not dropped:
                places = self.spoken(ids)
                spoken += [row * room + place for place in places]
                words += [ids[place + 1] for place in places]
            lengths.append(len(ids))
        grid = layouts[0].generated.image
        # Where every sample has lost its text, nothing is spoken at all.
        places_and_words = torch.tensor(spoken, dtype=torch.int64), torch.tensor(words, dtype=torch.int64)
        length, shape = torch.tensor(lengths), (grid.height, grid.width)
        return Batch(requests, size, prefix, *places_and_words, length, layouts[0].conds, shape)

    def _fitting(self, rng: random.Random, request: Request, sources: Sequence[CondShape], answer: Bucket) -> Layout:
        """A layout for a random bot task; one that is too long for its room in fewer tokens or with less text.

        Raises:
            TooLong: it does not fit even so.
        """
        room = self.room(len(sources))
        task = rng.choices(list(TASKS), list(TASKS.values()))[0]
        for attempt in ((task, True), (task, False), ("recaption", False)):
            layout = self.layout(request, sources, answer, *attempt)
            if layout.generated.timestep <= room:
                return layout
        raise TooLong(f"a prefix of {layout.generated.timestep} tokens does not fit {room}: {request.prompt!r}")

    def spoken(self, ids: Sequence[int]) -> list[int]:
        """After which tokens the model speaks itself: its thoughts, the recaption, and the last size's ratio."""
        places, closing = [], None
        for here, token in enumerate(ids[:-1]):
            if closing is None and token in self._closing:
                closing = self._closing[token]
            elif closing == token:
                closing = None
            if closing is not None:
                places.append(here)
        return [*places, len(ids) - 2]


class Drawn(Protocol):
    """What the stream needs to know of the data: `scripts.demo.wordings` and `scripts.demo.pictures`."""

    def family(self, rng: random.Random) -> tuple[Family, tuple[int, int]]: ...
    def request(self, rng: random.Random, family: Family) -> Request: ...
    def reworded(self, rng: random.Random, request: Request) -> Request: ...
    def sources(self, family: Family) -> int: ...
    def answer(self, family: Family, size: tuple[int, int]) -> tuple[int, int]: ...


class Stream(IterableDataset):
    """Endless batches, several wordings of each; each worker of a loader has a random sequence of its own.

    Args:
        count: samples per batch.
        wordings: batches of the same tasks, in other words each, so that pictures which take long to draw serve again.
    """

    def __init__(self, sequences: Sequences, drawn: Drawn, count: int, seed: int, wordings: int = 2) -> None:
        self.sequences, self.drawn, self.count, self.seed, self.wordings = sequences, drawn, count, seed, wordings

    def __iter__(self) -> Iterator[tuple[Batch, ...]]:
        worker = torch.utils.data.get_worker_info()
        rng = random.Random(f"{self.seed}/{worker.id if worker else 0}")
        while True:
            family, size = self.drawn.family(rng)
            requests = [self.drawn.request(rng, family) for _ in range(self.count)]
            shape = self.drawn.sources(family), size, self.drawn.answer(family, size)
            first = self._worded(rng, requests, *shape)
            yield (first, *(self._worded(rng, self._again(rng, requests), *shape) for _ in range(self.wordings - 1)))

    def _worded(
        self, rng: random.Random, requests: list[Request], sources: int, size: tuple[int, int], answer: tuple[int, int]
    ) -> Batch:
        """The requests' batch, in other words if one of them is too long: it must not end a training."""
        for _ in range(_TRIES):
            try:
                return self.sequences.batch(rng, requests, sources, size, answer)
            except TooLong:
                requests = self._again(rng, requests)
        raise TooLong(f"none of {_TRIES} wordings of {len(requests)} requests fits")

    def _again(self, rng: random.Random, requests: list[Request]) -> list[Request]:
        return [self.drawn.reworded(rng, request) for request in requests]
