"""How a training runs, whatever it trains: slices of time, the learning rate, what is kept, the progress line.

Knows parameters and scalars; does not know what a step computes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from scripts.demo import state
from scripts.demo.optimizer import Average, Optimizer, trapezoid
from scripts.demo.ranks import ALONE, Ranks

LOG_SECONDS, SAVE_SECONDS = 15.0, 120.0
OVER = -1.0  # instead of a learning rate


@dataclass
class Plan:
    """How long a training is.

    Attributes:
        steps: of the whole training; the learning rate falls towards it.
        until: when this slice ends, by `time.monotonic`; earlier when all steps are done.
        last: no slice follows: the learning rate has fallen when this one ends, whatever the step.
        falling: part of the training, or of the last slice, in which the learning rate falls.
        count: samples per step.
    """

    steps: int
    until: float
    count: int
    seed: int = 0
    last: bool = False
    warm: int = 200
    falling: float = 0.45

    def over(self, step: int) -> bool:
        return step >= self.steps or time.monotonic() >= self.until

    def factor(self, step: int, fresh: int, began: float) -> float:
        """The learning rate's, at `step` of the training, `fresh` of this slice, which runs since `began`."""
        done = step / self.steps
        if self.last:
            done = max(done, (time.monotonic() - began) / (self.until - began))
        return min((fresh + 1) / self.warm, trapezoid(done, self.falling))


@dataclass
class Training:
    """Parameters on their way: optimizer, average, and what is kept between two slices, if there is a folder for it."""

    name: str
    model: nn.Module
    optimizer: Optimizer
    folder: Path | None
    ranks: Ranks = ALONE
    step: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.names = [name for name, p in self.model.named_parameters() if p.requires_grad]
        self.average = Average([p for p in self.model.parameters() if p.requires_grad], decay=0.999)

    def resume(self) -> None:
        """Takes over the state folder's state, if there is one."""
        kept = None if self.folder is None else state.load(self.folder, self.name)
        if kept is None:
            return
        self.step = kept["step"]
        with torch.no_grad():
            for name, parameter, mean in zip(self.names, self.average.parameters, self.average.values, strict=True):
                parameter.copy_(kept["parameters"][name])
                mean.copy_(kept["average"][name])

    def save(self) -> None:
        if self.folder is None or not self.ranks.leads:
            return
        values = {
            "parameters": dict(zip(self.names, self.average.parameters, strict=True)),
            "average": dict(zip(self.names, self.average.values, strict=True)),
        }
        state.save(self.folder, self.name, {"step": self.step, **values})

    def run(self, plan: Plan, one: Callable[[], dict[str, Tensor]]) -> None:
        """Steps until the plan's steps or time are over, then saves.

        Args:
            one: forward and backward of one step; returns scalars for the progress line.
        """
        first = last_step = self.step
        ready = began = logged = saved = time.monotonic()
        while (rate := self._rate(plan, first, began)) != OVER:
            found = one()
            if self.step == first:
                began = time.monotonic()  # before this, kernels were compiled
                self._say(f"{self.name}: the first step, with what it compiles, took {began - ready:.0f} s")
            self.ranks.average(self.optimizer.parameters)
            self.optimizer.step(rate)
            self.step += 1
            self.average.update(self.step)
            for key, value in found.items():
                self.sums[key] = self.sums.get(key, 0) + value.detach()
            now = time.monotonic()
            if now - logged > LOG_SECONDS or self.step == plan.steps:
                self._log(plan, self.step - last_step, now - logged, now - began)
                logged, last_step = now, self.step
            if now - saved > SAVE_SECONDS:
                self.save()
                saved = now
        self.save()

    def _rate(self, plan: Plan, first: int, began: float) -> float:
        """The learning rate's factor for the next step, or that there is none; the same for all ranks."""
        return self.ranks.agreed(OVER if plan.over(self.step) else plan.factor(self.step, self.step - first, began))

    def _log(self, plan: Plan, steps: int, seconds: float, total: float) -> None:
        """The progress line: means since the last one."""
        rate = steps * plan.count * self.ranks.count / seconds
        means = ", ".join(f"{k} {float(v) / steps:.4f}" for k, v in self.sums.items())
        self._say(f"{self.name} {self.step}/{plan.steps} {total:.0f} s, {rate:.0f} pictures/s, {means}")
        self.sums = {}

    def _say(self, line: str) -> None:
        if self.ranks.leads:
            print(line, flush=True)
