"""Decoding the texts of several requests together, a token of each at a time.

A step's time goes into reading weights, which several texts can share. Each text is a lane: its own row of keys and
values, and its own buffers of `decoding.DecodeStep` for rules, draws and results, so that nothing of a text depends on
those beside it. Lanes come and go between two looks of the host; the running ones stand first, without a gap. Knows no
queue and no pictures, and not how logits are computed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from hunyuan.generation.decoding import DecodeStep, TextRun
from hunyuan.generation.kv_cache import KVCache
from hunyuan.generation.sampling import Sampling

# Tokens int64 [n], their positions int32 [n] and their rows of the buffers int32 [n] -> logits fp32 [n, vocab].
LanesForward = Callable[[Tensor, Tensor, Tensor], Tensor]


class LaneSteps:
    """One token of each running lane, on buffers that keep their place.

    Args:
        forward: must not wait for the device where a step is captured.
        vocab: how many logits there are.
        lanes: how many there may be.
        capacity: most tokens a request may decode.
    """

    def __init__(self, forward: LanesForward, vocab: int, lanes: int, capacity: int, device: torch.device) -> None:
        self.forward, self.device, self.lanes = forward, device, lanes
        self.token = torch.zeros(lanes, dtype=torch.int64, device=device)
        self.position, self.row = torch.zeros(2, lanes, dtype=torch.int32, device=device)
        self.steps = [DecodeStep(_alone, vocab, capacity, device) for _ in range(lanes)]
        for i, step in enumerate(self.steps):
            step.token, step.position = self.token[i : i + 1], self.position[i : i + 1]

    def advance(self, count: int) -> None:
        """Feeds the first `count` lanes' last tokens and chooses their next ones."""
        logits = self.forward(self.token[:count], self.position[:count], self.row[:count])  # [count, vocab]
        self.position[:count].add_(1)
        for step, scores in zip(self.steps, logits, strict=False):
            step.choose(scores)

    def move(self, source: int, target: int) -> None:
        """Lane `source` goes on as lane `target`."""
        self.steps[target].take_over(self.steps[source])
        self.row[target] = self.row[source]


def _alone(token: Tensor, position: Tensor) -> Tensor:
    raise RuntimeError("a lane advances with the others")


@dataclass(eq=False)
class Lane:
    """One request's text on its way.

    Attributes:
        kv: its row of keys and values, `[1, capacity, ...]`.
        tokens: what the host has seen.
        outcome: None while it runs; then all its tokens, or what stopped it.
        seconds: that it has been decoded, whatever was done between.
    """

    row: int
    kv: KVCache
    run: TextRun | None = None
    check: Callable[[], None] = lambda: None
    on_token: Callable[[list[int]], None] = lambda tokens: None
    tokens: list[int] = field(default_factory=list)
    launched: int = 0
    outcome: list[int] | BaseException | None = None
    seconds: float = 0.0

    @property
    def left(self) -> int:
        """How many tokens may still be launched."""
        return 0 if self.run is None else len(self.run.uniform) - self.launched


class TextCompany:
    """Decodes up to `rows.rows` texts together.

    Args:
        rows: keys and values for texts only, one row each.
        look_every: the host reads the new tokens after so many.
    """

    def __init__(self, steps: LaneSteps, rows: KVCache, look_every: int = 1) -> None:
        self.steps, self.rows, self.look_every = steps, rows, look_every
        self._free = list(range(rows.rows))
        self._running: list[Lane] = []

    @property
    def places(self) -> int:
        """How many texts more may come."""
        return len(self._free)

    @property
    def capacity(self) -> int:
        """Tokens of one row, prompt and text together."""
        return self.rows.capacity

    def supports(self, sampling: Sampling) -> bool:
        return self.steps.steps[0].supports(sampling)

    def open(self) -> Lane:
        """A row for a text whose prompt is about to be run. Raises `RuntimeError` if there is none."""
        if not self._free:
            raise RuntimeError(f"all {self.rows.rows} rows for texts are taken")
        row = self._free.pop(0)
        return Lane(row, self.rows.select(row))

    def close(self, lane: Lane) -> None:
        """Gives the lane's row back; ends its text if that still runs."""
        if lane in self._running:
            self._end(lane, [])
        if lane.row not in self._free:
            self._free.append(lane.row)

    @torch.inference_mode()
    def begin(
        self,
        lane: Lane,
        logits: Tensor,
        run: TextRun,
        check: Callable[[], None],
        on_token: Callable[[list[int]], None],
    ) -> None:
        """Lets the text run; `check` and `on_token` as in `TextDecoder.decode`, and what they raise ends it alone.

        Args:
            logits: fp32 `[vocab]` after the prompt, whose keys and values are in `lane.kv`.

        Raises:
            ValueError: see `DecodeStep.fill`; or `run.uniform` is empty.
        """
        if not len(run.uniform):
            raise ValueError("no token may be decoded")
        lane.run, lane.check, lane.on_token = run, check, on_token
        on_token(lane.tokens)
        place = len(self._running)
        self.steps.steps[place].fill(run)
        self.steps.row[place] = lane.row
        self.steps.steps[place].choose(logits)
        lane.launched = 1
        self._running.append(lane)
        self._look([lane])

    @torch.inference_mode()
    def decode(self, wanted: Lane) -> list[int]:
        """Decodes all running texts until `wanted` has ended; returns its tokens, the stop token included.

        Raises:
            whatever ended it: what its `check` or `on_token` raised.
        """
        while wanted.outcome is None:
            began, at_work = time.perf_counter(), list(self._running)
            self._launch()
            self._look(list(self._running))
            for lane in at_work:
                lane.seconds += time.perf_counter() - began
        if isinstance(wanted.outcome, BaseException):
            raise wanted.outcome
        return wanted.outcome

    def launch(self, count: int) -> None:
        """Computes one more token of each of the first `count` lanes."""
        self.steps.advance(count)

    def _launch(self) -> None:
        """As many tokens as every lane may have, up to the next look."""
        for _ in range(min([self.look_every, *(lane.left for lane in self._running)])):
            for lane in list(self._running):
                self._told(lane, lane.check)
            if not self._running:
                return
            self.launch(len(self._running))
            for lane in self._running:
                lane.launched += 1

    def _look(self, lanes: Sequence[Lane]) -> None:
        """Reads the new tokens of running lanes, and ends the texts that are complete."""
        for lane in lanes:
            run, place = lane.run, self._running.index(lane)
            assert run is not None
            ended = False
            for token in self.steps.steps[place].read(len(lane.tokens), lane.launched):
                lane.tokens.append(token)
                ended = token in run.plan.stop or len(lane.tokens) == len(run.uniform)
                if ended:
                    break
            self._told(lane, partial(lane.on_token, lane.tokens))
            if ended and lane.outcome is None:
                self._end(lane, lane.tokens)

    def _told(self, lane: Lane, call: Callable[[], None]) -> None:
        """What one request's callback raises ends its text and no other."""
        try:
            call()
        except BaseException as error:
            self._end(lane, error)

    def _end(self, lane: Lane, outcome: list[int] | BaseException) -> None:
        """Takes a lane out; the last one goes on in its place."""
        lane.outcome = outcome
        place, last = self._running.index(lane), len(self._running) - 1
        if place < last:
            self.steps.move(last, place)
            self._running[place] = self._running[last]
        self._running.pop()


def one_by_one(forwards: Sequence[Callable[[Tensor, Tensor], Tensor]]) -> LanesForward:
    """The obviously right way, which gains nothing: each lane's token by itself; `forwards` by row of the buffers."""

    def forward(tokens: Tensor, positions: Tensor, rows: Tensor) -> Tensor:
        each = zip(rows.tolist(), tokens.split(1), positions.split(1), strict=True)
        return torch.stack([forwards[row](token, position) for row, token, position in each])

    return forward
