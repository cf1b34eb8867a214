"""What a quantization has done so far: written after every weight file, read to go on after an interruption.

Knows the journal file, the lock that keeps a second process out, and what makes an earlier start the same job. Does
not know how weights are quantized.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hunyuan.checkpoint.folder import JOURNAL_FILE, read_json
from hunyuan.checkpoint.safetensors_file import ShardReader, write_durably
from hunyuan.errors import CheckpointError

VERSION = 1
LOCK_FILE = "quantization.lock"


class Journal:
    """The finished weight files of a job, each with its size, format and measured errors."""

    def __init__(self, out: Path, job: dict[str, Any], planned: Sequence[str]) -> None:
        """Starts a journal in `out`, or goes on with the one that is there.

        Args:
            job: what is quantized and how; a journal of another job is refused.
            planned: the names of all weight files.

        Raises:
            CheckpointError: the folder holds something else, or another job's half.
        """
        self._path = out / JOURNAL_FILE
        self._content: dict[str, Any] = {"version": VERSION, "job": job, "planned": list(planned), "done": {}}
        if self._path.is_file():
            found = read_json(out, JOURNAL_FILE)
            if {**found, "done": {}, "mixed": None} != {**self._content, "mixed": None}:
                raise CheckpointError(
                    f"{out.name} holds the beginning of another quantization (other source or options): "
                    "choose another folder or delete it"
                )
            self._content = found
            self._forget_changed(out)
        elif out.is_dir() and _others(out):
            raise CheckpointError(f"{out.name} is not empty; choose another folder")
        else:
            out.mkdir(parents=True, exist_ok=True)
            self._save()

    @property
    def done(self) -> dict[str, Any]:
        """By file name: `size`, `format` and `errors`."""
        return self._content["done"]

    @property
    def mixed(self) -> dict[str, Any] | None:
        """Which layers were chosen for fp8 and by what, once all were measured."""
        return self._content.get("mixed")

    def choose(self, mixed: dict[str, Any]) -> None:
        self._content["mixed"] = mixed
        self._save()

    def finish(self, name: str, entry: dict[str, Any]) -> None:
        self.done[name] = entry
        self._save()

    def forget(self, name: str) -> None:
        """Its file is about to be replaced."""
        self.done.pop(name, None)
        self._save()

    def close(self) -> None:
        """The folder is complete."""
        self._path.unlink(missing_ok=True)

    def _save(self) -> None:
        write_durably(self._path, json.dumps(self._content) + "\n")

    def _forget_changed(self, out: Path) -> None:
        for name, entry in list(self.done.items()):
            path = out / name
            if not path.is_file() or path.stat().st_size != entry["size"]:
                del self.done[name]


def _others(out: Path) -> set[str]:
    """What is in the folder beside a journal that a kill stopped at its very first writing."""
    return {path.name for path in out.iterdir()} - {JOURNAL_FILE + ".partial", LOCK_FILE}


@contextmanager
def sole_writer(out: Path) -> Iterator[None]:
    """Keeps other processes from quantizing into `out` meanwhile; a killed process keeps nobody out.

    Makes the folder where there is none, and takes its own file away at the end.

    Raises:
        CheckpointError: another one is at it.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / LOCK_FILE
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not _locked(handle, path):
            raise CheckpointError(
                f"another process is quantizing into {out.name}: wait for it, or choose another folder"
            )
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
    finally:
        os.close(handle)


def _locked(handle: int, path: Path) -> bool:
    """Also False where whoever held the lock took the file away in between: a new file is another lock."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(handle), path.stat())
    except (BlockingIOError, FileNotFoundError):
        return False


def fingerprint(source: Path, shards: Iterable[ShardReader]) -> str:
    """Changes with the source's config and with every tensor's name, type, shape and place; reads no weights."""
    digest = hashlib.sha256((source / "config.json").read_bytes())
    for shard in shards:
        digest.update(repr((shard.name, sorted(shard.entries.items()))).encode())
    return digest.hexdigest()
