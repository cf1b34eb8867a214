"""One background job and all that is remembered of it, as plain values and as the JSON of its file.

Knows no disk, no queue and no HTTP. Times are seconds since 1970, because they have to outlive the process.
"""

from __future__ import annotations

import re
import secrets
import time
from dataclasses import dataclass, field
from typing import Literal

from pydantic import TypeAdapter

from hunyuan.errors import HunyuanError
from hunyuan.serving.records import EditRecord

# The words of BentoML's task interface. `failed` is also what ended with its process.
JobState = Literal["pending", "in_progress", "completed", "failed", "canceled"]
STATES: tuple[JobState, ...] = ("pending", "in_progress", "completed", "failed", "canceled")

ID = re.compile(r"(?:[a-z0-9]{1,32}-)?[0-9a-f]{32}")
OVERHEAD_BYTES = 4096  # of a job's record without its prompt, rounded up to what a disk gives it


def new_id(replica: str | None) -> str:
    """128 random bits: who knows an id may fetch the picture, so nobody may guess one."""
    return secrets.token_hex(16) if replica is None else f"{replica}-{secrets.token_hex(16)}"


@dataclass
class JobError:
    """Why a job gave no picture: what `POST /edit` would have answered."""

    status: int
    code: str
    message: str

    @classmethod
    def of(cls, error: HunyuanError) -> JobError:
        return cls(error.status, error.code, str(error))


class JobFailed(HunyuanError):
    """The error that a job ended with, raised again for the one who asks for its result."""

    def __init__(self, error: JobError) -> None:
        super().__init__(error.message)
        self.status, self.code = error.status, error.code


@dataclass
class EditFields:
    """What a job was asked to do; the picture is a file of its own."""

    prompt: str
    seed: int | None
    steps: int | None
    resolution: str

    def record(self) -> EditRecord:
        """A record of the edit that they ask for, before anything is known of it."""
        return EditRecord(len(self.prompt), self.resolution, self.seed, self.steps)


@dataclass(eq=False)
class Job:
    """`headers` are those of its result. `started` and `ended` are None before that happened."""

    id: str
    request_id: str
    fields: EditFields
    created: float = field(default_factory=time.time)
    state: JobState = "pending"
    started: float | None = None
    ended: float | None = None
    error: JobError | None = None
    headers: dict[str, str] = field(default_factory=dict)
    source_bytes: int = 0
    result_bytes: int = 0

    @property
    def finished(self) -> bool:
        return self.ended is not None

    @property
    def size(self) -> int:
        """Bytes that it takes on the disk, or a little less."""
        return self.source_bytes + self.result_bytes + len(self.fields.prompt.encode()) + OVERHEAD_BYTES

    def end(self, state: JobState, error: JobError | None = None) -> None:
        self.state, self.error, self.ended = state, error, time.time()

    def to_json(self) -> bytes:
        return _JSON.dump_json(self, indent=1)

    @staticmethod
    def from_json(text: bytes) -> Job:
        """Raises `ValueError` where `text` is no job."""
        return _JSON.validate_json(text)


_JSON = TypeAdapter(Job)
