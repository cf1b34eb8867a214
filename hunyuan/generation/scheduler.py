"""The flow-matching schedule and its Euler step (docs/model.md, section 17). Pure arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

TRAIN_STEPS = 1000


@dataclass(frozen=True)
class Schedule:
    """`sigmas` fp32 `[steps + 1]` from 1 to 0, on the CPU."""

    sigmas: Tensor

    @classmethod
    def create(cls, steps: int, shift: float) -> Schedule:
        sigmas = torch.linspace(1, 0, steps + 1)
        return cls(shift * sigmas / (1 + (shift - 1) * sigmas))

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1

    @property
    def timesteps(self) -> Tensor:
        """fp32 `[steps + 1]`, 1000 to 0; step i runs at entry i and lands on entry i + 1."""
        return self.sigmas * TRAIN_STEPS

    def step(self, latents: Tensor, velocity: Tensor, index: int) -> Tensor:
        """One Euler step in fp32."""
        # A scalar on the CPU goes to the GPU as a kernel's argument: nothing is copied and nobody waits.
        delta = self.sigmas[index + 1] - self.sigmas[index]
        return latents.float() + delta * velocity.float()

    def clean(self, latents: Tensor, velocity: Tensor, index: int) -> Tensor:
        """The noise-free latents that step `index` predicts, fp32: the rest of the way in one straight step."""
        return latents.float() - self.sigmas[index] * velocity.float()


def classifier_free_guidance(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """fp32, both rows of one shape."""
    return unconditional + scale * (conditional - unconditional)
