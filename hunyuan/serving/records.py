"""One HTTP request on its way through the server, and what there is to tell about it afterwards.

Plain values that every layer fills in as it learns them; logs and metrics read them when the answer is out. Nothing
here may hold the prompt, a picture or the value of a header.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hunyuan.errors import HunyuanError

if TYPE_CHECKING:  # as in openai/events.py
    from starlette.types import Scope

RECORD = "hunyuan.record"  # the key of the `RequestRecord` in the ASGI scope

Pixels = tuple[int, int]  # (width, height)


@dataclass
class GpuMemory:
    """Bytes on the card around one edit."""

    gpu: int  # its number among those that the process sees
    before: int
    after: int
    peak: int


@dataclass
class EditRecord:
    """What is known of one edit. None: not known, or the request ended before."""

    prompt_chars: int
    resolution: str
    seed: int | None
    steps: int | None
    admitted: bool = False  # had a place in the queue
    images: int = 1
    input_size: Pixels | None = None
    output_size: Pixels | None = None
    pictures: int = 0  # finished ones; the figures below are of all of them together
    steps_done: int = 0
    tokens: int = 0
    queue_s: float | None = None
    stages: dict[str, float] = field(default_factory=dict)  # seconds
    gpu_memory: tuple[GpuMemory, ...] = ()  # one of each GPU that is used

    def tell_stages(self, before: Mapping[str, float], seconds: Mapping[str, float]) -> None:
        """`before`, that of the pictures before this one, and `seconds` of this one, under way or finished."""
        self.stages = {**before, **{name: before.get(name, 0.0) + more for name, more in seconds.items()}}


@dataclass
class RequestRecord:
    """One HTTP request. `started` and `ended` are `time.monotonic()` values; `status` is None until it is sent."""

    request_id: str
    path: str = ""
    caller: str | None = None  # the name of the key that it came with
    proxy_s: float = 0.0  # that it waited in front of this process; `started` is so much earlier
    started: float = field(default_factory=time.monotonic)
    ended: float | None = None
    error: HunyuanError | None = None
    status: int | None = None
    bytes_in: int = 0
    bytes_out: int = 0
    edit: EditRecord | None = None

    @property
    def seconds(self) -> float:
        return (time.monotonic() if self.ended is None else self.ended) - self.started


def record_of(scope: Scope) -> RequestRecord:
    record = scope[RECORD]
    assert isinstance(record, RequestRecord)
    return record
