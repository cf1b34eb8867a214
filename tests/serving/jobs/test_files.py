"""Files of jobs are whole or not there, nobody else's to read, and never outside their folder."""

from __future__ import annotations

import errno
import logging
import os
import stat
from pathlib import Path

import pytest

from hunyuan.serving.http_errors import JobNotFound, NoStorage
from hunyuan.serving.jobs.files import RECORD, RESULT, SOURCE, JobFiles
from hunyuan.serving.jobs.job import EditFields, Job, new_id


@pytest.fixture
def files(tmp_path: Path) -> JobFiles:
    return JobFiles(tmp_path)


def a_job(created: float = 1.0) -> Job:
    return Job(new_id(None), "r", EditFields("x", None, None, "auto"), created=created)


def names(files: JobFiles) -> set[str]:
    return {path.name for path in files.folder.iterdir()}


def test_what_was_written_is_read_and_only_by_its_owner(files: JobFiles) -> None:
    job = a_job()
    umask = os.umask(0)
    try:
        files.write(job.id, SOURCE, b"picture")
    finally:
        os.umask(umask)
    (path,) = files.folder.iterdir()
    assert path.name == f"{job.id}.source"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert files.read(job.id, SOURCE) == b"picture"
    files.write(job.id, SOURCE, b"another")
    assert files.read(job.id, SOURCE) == b"another"
    assert len(names(files)) == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("call", ["fsync", "replace", "open"])
def test_a_disk_that_does_not_take_it_keeps_what_was_there(
    files: JobFiles, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    job = a_job()
    files.write(job.id, RESULT, b"before")

    def full(*_: object, **__: object) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(f"hunyuan.serving.jobs.files.os.{call}", full)
        with pytest.raises(NoStorage, match=os.strerror(number)) as caught:
            files.write(job.id, RESULT, b"after" * 1000)
    assert (caught.value.status, caught.value.code) == (507, "no_storage")
    assert names(files) == {f"{job.id}.png"}
    assert files.read(job.id, RESULT) == b"before"


@pytest.mark.parametrize("job_id", ["../escaped", "/etc/passwd", "", "a/b", "..", "0" * 32 + "/../x"])
def test_no_path_leads_out_of_the_folder(files: JobFiles, job_id: str) -> None:
    with pytest.raises(JobNotFound):
        files.write(job_id, RECORD, b"x")
    with pytest.raises(JobNotFound):
        files.read(job_id, RECORD)
    assert names(files) == set()


def test_what_has_gone_is_not_found(files: JobFiles) -> None:
    job = a_job()
    for kind in (RECORD, SOURCE, RESULT):
        files.write(job.id, kind, b"x")
    files.remove(job.id)
    files.remove(job.id)
    assert names(files) == set()
    with pytest.raises(JobNotFound):
        files.read(job.id, RESULT)


def test_a_start_finds_the_jobs_and_sweeps_what_belongs_to_none(files: JobFiles) -> None:
    later, earlier, lost = a_job(2.0), a_job(1.0), a_job()
    for job in (later, earlier):
        files.write(job.id, RECORD, job.to_json())
        files.write(job.id, SOURCE, b"x")
    files.write(lost.id, SOURCE, b"its record was never written")
    (files.folder / f"{earlier.id}.png.0badcafe.part").write_bytes(b"half")
    (files.folder / "notes.txt").write_text("not ours")
    (files.folder / ".lock").touch()
    assert [job.id for job in files.load()] == [earlier.id, later.id]
    assert names(files) == {
        *(f"{job.id}{kind}" for job in (later, earlier) for kind in (RECORD, SOURCE)),
        "notes.txt",
        ".lock",
    }


def test_a_record_that_is_none_is_named_and_passed_over(files: JobFiles, caplog: pytest.LogCaptureFixture) -> None:
    broken, renamed, good = a_job(), a_job(), a_job()
    (files.folder / f"{broken.id}.json").write_bytes(b'{"id": ')
    (files.folder / f"{renamed.id}.json").write_bytes(good.to_json())
    files.write(good.id, RECORD, good.to_json())
    with caplog.at_level(logging.ERROR):
        assert [job.id for job in files.load()] == [good.id]
    assert f"{broken.id}.json is no job" in caplog.text
