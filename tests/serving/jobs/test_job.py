"""A job's id, and its record as JSON."""

from __future__ import annotations

import re

import pytest

from hunyuan.errors import DeadlineExceeded
from hunyuan.serving.jobs.job import ID, EditFields, Job, JobError, JobFailed, new_id


def a_job(prompt: str = "make it blue") -> Job:
    return Job(new_id(None), "request-1", EditFields(prompt, 42, None, "auto"))


def test_ids_are_random_and_name_their_replica() -> None:
    ids = {new_id(None) for _ in range(1000)}
    assert len(ids) == 1000
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in ids)
    assert re.fullmatch("gpu0-[0-9a-f]{32}", new_id("gpu0"))
    assert all(ID.fullmatch(one) for one in (*ids, new_id("gpu0")))


@pytest.mark.parametrize(
    "text", ["", ".", "..", "../x", "0" * 31, "0" * 33, "G" * 32, "a-b-" + "0" * 32, "0" * 32 + "\n", "/" + "0" * 32]
)
def test_what_is_no_id(text: str) -> None:
    assert ID.fullmatch(text) is None


@pytest.mark.parametrize("prompt", ["make it blue", '"蓝" 🌅\n\x00', "x" * 4000])
def test_a_record_comes_back_as_it_was(prompt: str) -> None:
    job = a_job(prompt)
    job.started, job.source_bytes, job.headers = 12.25, 7, {"X-Seed": "42"}
    job.end("failed", JobError(503, "out_of_memory", "no"))
    again = Job.from_json(job.to_json())
    assert vars(again) == vars(job)
    assert again.finished


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"id": "x"}', b"\xff\xfe", b"null"])
def test_what_is_no_record(text: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - pydantic's own words
        Job.from_json(text)


def test_a_state_that_nobody_knows_is_no_record() -> None:
    with pytest.raises(ValueError, match="state"):
        Job.from_json(a_job().to_json().replace(b'"pending"', b'"sleeping"'))


def test_its_error_is_raised_again_as_it_was() -> None:
    failed = JobFailed(JobError.of(DeadlineExceeded("too late")))
    assert (failed.status, failed.code, str(failed)) == (504, "timeout", "too late")


def test_its_size_counts_everything() -> None:
    job = a_job("蓝")
    empty = job.size
    job.source_bytes, job.result_bytes = 100, 10
    assert job.size == empty + 110
    assert len(job.to_json()) < empty
