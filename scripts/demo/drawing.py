"""Training batches with their pictures drawn and encoded, each by a process of its own on the same GPU.

Drawing a batch is thousands of small operations, which keep a CPU core busier than the GPU: in the training's own
process it took longer than the step. Knows pictures, tokens and the autoencoder; knows no transformer and no losses.
"""

from __future__ import annotations

import io
import pickle
import random
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import IterableDataset

from hunyuan.model.config import ModelConfig
from hunyuan.model.vae import Vae
from scripts.demo import state
from scripts.demo.autoencoder import planar
from scripts.demo.pictures import Pictures
from scripts.demo.sequences import Batch, Stream
from scripts.demo.transformer import latents

AHEAD = 2
"""Drawings that are unpacked before the training asks for them."""


@dataclass
class Drawn:
    """What was drawn for batches that differ in their words only.

    Attributes:
        batches: each for a step of its own.
        sources: per source, pictures fp32 `[n, 3, rows, columns]` in 0..1, as small as the vision tower takes them.
        conds: per source, its scaled latents fp32 `[n, channels, h, w]`.
        clean: the scaled latents of the exact answers.
        exact: these answers themselves, uint8 `[n, 3, rows, columns]`, if they were asked for.
        guess: the network's own latest answers, once it has given some.
    """

    batches: tuple[Batch, ...]
    sources: list[Tensor]
    conds: list[Tensor]
    clean: Tensor
    exact: Tensor | None = None
    guess: Tensor | None = None

    def to(self, device: torch.device) -> Drawn:
        """On a device, in fp32; copies from pinned memory do not wait."""
        sources, conds = ([_sent(x, device) for x in part] for part in (self.sources, self.conds))
        batches = tuple(batch.to(device) for batch in self.batches)
        exact = None if self.exact is None else self.exact.to(device, non_blocking=True)
        return Drawn(batches, sources, conds, _sent(self.clean, device), exact)

    def pin_memory(self) -> Drawn:
        """In memory that a GPU copies from by itself."""
        sources, conds = ([x.pin_memory() for x in part] for part in (self.sources, self.conds))
        batches = tuple(batch.pin_memory() for batch in self.batches)
        exact = None if self.exact is None else self.exact.pin_memory()
        return Drawn(batches, sources, conds, self.clean.pin_memory(), exact)

    def packed(self) -> bytes:
        """For another process, floats in fp16.

        As bytes it goes through a pipe; tensors would go through shared memory, of which a container may have 64 MB,
        less than a handful of batches take.
        """
        sources, conds = ([x.half() for x in part] for part in (self.sources, self.conds))
        file = io.BytesIO()
        _Pickler(file, protocol=5).dump(Drawn(self.batches, sources, conds, self.clean.half(), self.exact))
        return file.getvalue()

    @classmethod
    def unpacked(cls, packed: bytes, device: torch.device) -> Drawn:
        """What another process packed, on a device."""
        drawn: Drawn = pickle.loads(packed)
        return (drawn.pin_memory() if device.type == "cuda" else drawn).to(device)


class _Pickler(pickle.Pickler):
    """Writes tensors as NumPy's arrays; PyTorch would make a zip file of each, which takes long to open."""

    def reducer_override(self, value: Any) -> Any:
        return (torch.from_numpy, (value.numpy(),)) if isinstance(value, Tensor) else NotImplemented


def _sent(x: Tensor, device: torch.device) -> Tensor:
    return x.to(device, non_blocking=True).float()


class Pool:
    """Drawn batches on their way into training, in random order.

    A drawing serves several steps, in other words, at other times and with other noise; the pool keeps these steps
    apart. A thread receives and unpacks the next drawings while the training goes on.

    Args:
        packed: drawings, as `DrawnStream` yields them, endless.
        least: batches to choose from.
    """

    def __init__(self, packed: Iterator[bytes], device: torch.device, least: int, seed: int) -> None:
        self.packed, self.device, self.least, self.rng = packed, device, least, random.Random(seed)
        self.ready: list[tuple[Drawn, Batch]] = []
        # Each thread has a GPU of its own choice, the first at its start.
        chosen = (torch.cuda.set_device, (device,)) if device.type == "cuda" else (None, ())
        self._thread = ThreadPoolExecutor(1, "drawings", *chosen)
        self._coming = deque(self._thread.submit(self._next) for _ in range(AHEAD))

    def take(self) -> tuple[Drawn, Batch]:
        """One batch and its drawing; waits for drawings while there are too few."""
        while len(self.ready) < self.least:
            fresh = self._coming.popleft().result()
            self._coming.append(self._thread.submit(self._next))
            self.ready.extend((fresh, batch) for batch in fresh.batches)
        place = self.rng.randrange(len(self.ready))
        self.ready[place], self.ready[-1] = self.ready[-1], self.ready[place]
        return self.ready.pop()

    def close(self) -> None:
        """Ends the thread, after the drawing that it is at."""
        self._thread.shutdown(cancel_futures=True)

    def _next(self) -> Drawn:
        return Drawn.unpacked(next(self.packed), self.device)


def autoencoder_of(config: ModelConfig, folder: Path, device: torch.device, dtype: torch.dtype | None = None) -> Vae:
    """The planar autoencoder that a finished training left in a state folder; by default in bfloat16 on a GPU.

    Raises:
        FileNotFoundError: there is none.
    """
    done = state.load(folder, "autoencoder_average")
    if done is None:
        raise FileNotFoundError(f"{folder} holds no autoencoder: train that first")
    vae = planar(Vae(config.vae))
    vae.load_state_dict({key: value.float() for key, value in done["weights"].items()})
    vae.requires_grad_(False)
    return vae.to(device, dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32))


class DrawnStream(IterableDataset):
    """Endless drawn batches, packed; each worker of a loader has random sequences of its own.

    Args:
        stream: what to draw.
        archive: the pictures, from `pack.py`.
        folder: the state folder, with a finished autoencoder.
        device: where to draw and encode.
        exact: whether the answers are wanted as pictures, too.
    """

    def __init__(self, stream: Stream, archive: Path, folder: Path, device: torch.device, exact: bool = False) -> None:
        self.stream, self.archive, self.folder, self.device, self.exact = stream, archive, folder, device, exact

    def __iter__(self) -> Iterator[bytes]:
        worker = torch.utils.data.get_worker_info()
        seed = self.stream.seed * 1000 + (worker.id if worker else 0)
        torch.manual_seed(seed)
        config = self.stream.sequences.config
        vae, pictures = autoencoder_of(config, self.folder, self.device), Pictures(self.archive, self.device, seed)
        for batches in self.stream:
            yield drawn(batches, pictures, vae, config, self.exact).packed()


@torch.no_grad()
def drawn(batches: tuple[Batch, ...], pictures: Pictures, vae: Vae, config: ModelConfig, exact: bool = False) -> Drawn:
    """Draws and encodes the pictures of batches that ask for the same."""
    batch = batches[0]
    sources, target = pictures.draw(list(batch.requests), *batch.size)
    conds = [latents(vae, source, draw=True).cpu() for source in sources]
    patch = config.vit.patch_size
    small = [
        F.interpolate(source, (block.vit.height * patch, block.vit.width * patch), mode="bilinear", antialias=True)
        for source, block in zip(sources, batch.conds, strict=True)
    ]
    # Requests are for drawing only; without them less is copied between processes.
    silent = tuple(replace(batch, requests=()) for batch in batches)
    kept = (target * 255).round().byte().cpu() if exact else None
    return Drawn(silent, [x.cpu() for x in small], conds, latents(vae, target, draw=False).cpu(), kept)
