"""The files of jobs: a record, the source picture and the result, each written whole or not at all.

Knows one folder. Every file has mode 0600 and gets its name only when it is complete and on the disk, so neither a
full disk nor the end of the process leaves half of one. A job exists where its record does; a picture without a record
is what such an end has left, and goes at the next start. Used by one thread at a time.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from hunyuan.serving.http_errors import JobNotFound, NoStorage
from hunyuan.serving.jobs.job import ID, Job

logger = logging.getLogger(__name__)

RECORD, SOURCE, RESULT = ".json", ".source", ".png"
_UNFINISHED = ".part"


class JobFiles:
    """Names are made of job ids only, which are ours: nothing that a caller sends becomes part of a path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, job_id: str, kind: str, data: bytes) -> None:
        """Raises `NoStorage` where the disk does not take it; nothing is left of it then."""
        path = self._path(job_id, kind)
        part = path.with_name(f"{path.name}.{secrets.token_hex(4)}{_UNFINISHED}")
        try:
            self._write_new(part, data)
            os.replace(part, path)
            self._sync_folder()
        except OSError as error:
            part.unlink(missing_ok=True)
            raise NoStorage(f"the disk does not take it ({error.strerror})") from error

    def read(self, job_id: str, kind: str) -> bytes:
        """Raises `JobNotFound` where it has gone."""
        try:
            return self._path(job_id, kind).read_bytes()
        except FileNotFoundError:
            raise JobNotFound from None

    def remove(self, job_id: str) -> None:
        """The record first: without it the rest is nobody's."""
        for kind in (RECORD, SOURCE, RESULT):
            try:
                self._path(job_id, kind).unlink(missing_ok=True)
            except OSError as error:
                logger.error("a file of a job cannot be removed: %s", error.strerror)

    def remove_result(self, job_id: str) -> None:
        self._path(job_id, RESULT).unlink(missing_ok=True)

    def load(self) -> list[Job]:
        """The jobs of the folder, in the order they were made; pictures that belong to none are removed."""
        jobs = sorted(self._records(), key=lambda job: job.created)
        known = {job.id for job in jobs}
        for path in self.folder.iterdir():
            stem, _, _ = path.name.partition(".")
            is_picture = path.suffix in (SOURCE, RESULT) and stem not in known
            if ID.fullmatch(stem) and (path.suffix == _UNFINISHED or is_picture):
                path.unlink(missing_ok=True)
        return jobs

    def _records(self) -> Iterator[Job]:
        for path in self.folder.glob(f"*{RECORD}"):
            if not ID.fullmatch(path.stem):
                continue
            try:
                job = Job.from_json(path.read_bytes())
            except (OSError, ValueError) as error:
                logger.error("%s is no job and is passed over: %s", path.name, type(error).__name__)
                continue
            if job.id == path.stem:
                yield job

    def _path(self, job_id: str, kind: str) -> Path:
        if not ID.fullmatch(job_id):
            raise JobNotFound
        return self.folder / f"{job_id}{kind}"

    @staticmethod
    def _write_new(path: Path, data: bytes) -> None:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with open(file, "wb") as writer:
            writer.write(data)
            writer.flush()
            os.fsync(writer.fileno())

    def _sync_folder(self) -> None:
        folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
