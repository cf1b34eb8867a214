"""How many jobs are kept, for how long, and which goes first."""

from __future__ import annotations

import pytest

from hunyuan.serving.http_errors import JobNotFound, NoStorage
from hunyuan.serving.jobs.job import EditFields, Job, new_id
from hunyuan.serving.jobs.table import JobTable

OWN = Job(new_id(None), "", EditFields("", None, None, "auto")).size


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def job_of(source_bytes: int = 0, ended: float | None = None) -> Job:
    job = Job(new_id(None), "", EditFields("", None, None, "auto"), source_bytes=source_bytes)
    if ended is not None:
        job.state, job.ended = "completed", ended
    return job


def filled(table: JobTable, *jobs: Job) -> JobTable:
    for job in jobs:
        table.readmit(job)
    return table


def test_a_finished_job_goes_when_its_time_is_over_also_before_the_broom(clock: Clock) -> None:
    old, running = job_of(ended=990), job_of()
    table = filled(JobTable(9, 10**9, 20, clock), old, running)
    assert table.get(old.id) is old
    assert (table.expires(old), table.expires(running)) == (1010, None)
    clock.now = 1010
    with pytest.raises(JobNotFound):
        table.get(old.id)
    assert len(table) == 2
    assert table.surplus() == [old]
    assert len(table) == 1
    clock.now = 10**9
    assert table.get(running.id) is running
    assert table.surplus() == []


def test_the_one_that_ended_first_goes_first(clock: Clock) -> None:
    jobs = [job_of(ended=999), job_of(ended=997), job_of(), job_of(ended=998)]
    table = filled(JobTable(1, 10**9, 100, clock), *jobs)
    assert table.surplus() == [jobs[1], jobs[3]]
    assert table.get(jobs[0].id) is jobs[0]
    assert table.get(jobs[2].id) is jobs[2]


def test_a_new_job_takes_the_room_of_finished_ones(clock: Clock) -> None:
    first, second = job_of(100, ended=998), job_of(100, ended=999)
    table = filled(JobTable(9, 3 * OWN + 250, 100, clock), first, second)
    new = job_of(100)
    assert table.add(new) == [first]
    assert table.size == 2 * OWN + 200
    with pytest.raises(JobNotFound):
        table.get(first.id)


def test_unfinished_jobs_never_give_way(clock: Clock) -> None:
    finished, running = job_of(100, ended=999), job_of(1000)
    table = filled(JobTable(9, 3 * OWN + 1150, 100, clock), running, finished)
    with pytest.raises(NoStorage, match=r"its 9,..."):
        table.add(job_of(5000))
    assert table.get(finished.id) is finished, "nothing goes for what does not fit anyway"
    assert table.add(job_of(100)) == [finished]


def test_a_result_counts_too(clock: Clock) -> None:
    finished, running = job_of(100, ended=999), job_of(100)
    table = filled(JobTable(9, 2 * OWN + 300, 100, clock), running, finished)
    assert table.grow(running, 100) == []
    assert table.size == 2 * OWN + 300
    other = filled(JobTable(9, 2 * OWN + 300, 100, clock), running, finished)
    assert other.grow(running, 101) == [finished]
    with pytest.raises(NoStorage):
        other.grow(running, 10**6)


def test_an_unknown_id(clock: Clock) -> None:
    with pytest.raises(JobNotFound):
        JobTable(1, 1, 1, clock).get("../../etc/passwd")
