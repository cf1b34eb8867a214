"""Several GPUs that train one model: each takes batches of its own, and all step by the mean of their gradients.

    torchrun --nproc-per-node 2 -m scripts.demo.train transformer ...

Without torchrun there is one rank, and nothing is exchanged. Knows parameters and their gradients; knows no model.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from scripts.demo.optimizer import gradient


@dataclass(frozen=True)
class Ranks:
    """The processes of one training, and which of them this is.

    Attributes:
        rank: from 0; rank 0 decides the learning rate and the end, prints and saves.
        count: of processes.
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def join(cls, device: torch.device) -> Ranks:
        """Waits for the other ranks that torchrun started; alone there is nothing to wait for."""
        count = int(os.environ.get("WORLD_SIZE", "1"))
        if count == 1:
            return cls()
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
        return cls(dist.get_rank(), count)

    @property
    def leads(self) -> bool:
        return self.rank == 0

    @torch.no_grad()
    def average(self, parameters: Sequence[nn.Parameter]) -> None:
        """Every parameter's gradient becomes the mean over the ranks; a missing one counts as zeros."""
        if self.count == 1:
            return
        flat = torch.cat([gradient(p).flatten() for p in parameters])
        dist.all_reduce(flat)
        parts = (flat / self.count).split([p.numel() for p in parameters])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter)

    def agreed(self, value: float) -> float:
        """Rank 0's value; without a wait for a GPU."""
        if self.count == 1:
            return value
        told = torch.tensor(value, dtype=torch.float64)
        dist.broadcast(told, src=0)
        return float(told)

    def leave(self) -> None:
        """Frees what `join` took."""
        if self.count > 1:
            dist.destroy_process_group()


ALONE = Ranks()
