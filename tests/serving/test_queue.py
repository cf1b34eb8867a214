"""Places, order and time in front of the model, with a clock that the test turns."""

from __future__ import annotations

from statistics import fmean

import pytest
from PIL import Image

from hunyuan.errors import Cancelled
from hunyuan.requests import CancelToken, EditRequest, EditResult
from hunyuan.serving.http_errors import QueueFull, ShuttingDown
from hunyuan.serving.queue import EditQueue, QueuedEdit, State
from hunyuan.serving.records import EditRecord

RESULT = EditResult(Image.new("RGB", (1, 1)), None, 0, (1, 1), 1, 0)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def job() -> QueuedEdit:
    return QueuedEdit(CancelToken(), EditRecord(1, "auto", None, None))


def admitted(queue: EditQueue, *, put: bool = True) -> QueuedEdit:
    new = job()
    queue.admit(new)
    if put:
        queue.put(new, EditRequest("x"))
    return new


def run_one(queue: EditQueue, clock: Clock, seconds: float) -> None:
    admitted(queue)
    running = queue.next()
    clock.now += seconds
    queue.end(running, RESULT)


def test_a_place_is_taken_before_anything_is_decoded() -> None:
    queue = EditQueue(1)
    first, second = admitted(queue, put=False), admitted(queue, put=False)
    with pytest.raises(QueueFull, match="1 edits are waiting"):
        queue.admit(job())
    assert (first.state, second.state, queue.depth) == (State.ADMITTED, State.ADMITTED, 0)
    queue.leave(first)
    admitted(queue)


def test_first_come_first_served_and_the_wait_is_measured() -> None:
    clock, depths = Clock(), list[int]()
    queue = EditQueue(5, clock, depths.append)
    jobs = [admitted(queue) for _ in range(3)]
    clock.now += 2
    assert queue.next() is jobs[0]
    clock.now += 3
    queue.end(jobs[0], RESULT)
    assert queue.next() is jobs[1]
    assert [job.edit.queue_s for job in jobs] == [2, 5, None]
    assert depths == [1, 2, 3, 2, 1]
    assert jobs[0].done.result() is RESULT


def test_it_is_known_how_many_come_before() -> None:
    queue = EditQueue(5)
    jobs = [admitted(queue) for _ in range(3)]
    late = admitted(queue, put=False)
    assert [queue.ahead_of(job) for job in (*jobs, late)] == [0, 1, 2, 3]
    queue.next()
    assert [queue.ahead_of(job) for job in (*jobs, late)] == [0, 1, 2, 3]
    queue.leave(jobs[1])
    queue.end(jobs[0], RESULT)
    assert [queue.ahead_of(job) for job in (*jobs, late)] == [0, 0, 0, 1]


def test_a_waiting_job_that_is_left_frees_its_place_at_once() -> None:
    queue = EditQueue(1)
    running, waiting = admitted(queue), admitted(queue)
    assert queue.next() is running
    queue.leave(waiting)
    assert (waiting.state, queue.depth, queue.awaited) == (State.ENDED, 0, 1)
    admitted(queue)


def test_a_running_job_that_is_left_keeps_its_place_until_it_ends() -> None:
    clock = Clock()
    queue = EditQueue(1, clock)
    running = admitted(queue)
    queue.next()
    admitted(queue)
    queue.leave(running)
    assert running.cancel.cancelled
    assert queue.awaited == 1
    with pytest.raises(QueueFull):
        queue.admit(job())
    clock.now += 7
    assert queue.overdue_s() == 7
    queue.end(running, Cancelled("x"))
    assert queue.overdue_s() == 0
    admitted(queue)


def test_leaving_after_the_end_changes_nothing() -> None:
    queue = EditQueue(1)
    done = admitted(queue)
    queue.end(queue.next(), RESULT)
    queue.leave(done)
    assert not done.cancel.cancelled
    assert queue.overdue_s() == 0


def test_a_result_for_nobody_is_thrown_away() -> None:
    queue = EditQueue(1)
    gone = admitted(queue)
    queue.next()
    gone.done.cancel()
    queue.leave(gone)
    queue.end(gone, RESULT)
    assert gone.done.cancelled()


def test_closing_answers_all_who_wait_and_lets_the_running_one_be() -> None:
    queue = EditQueue(3)
    running = admitted(queue)
    queue.next()
    waiting, decoding = admitted(queue), admitted(queue, put=False)
    queue.close(ShuttingDown)
    for left in (waiting, decoding):
        assert isinstance(left.done.exception(0), ShuttingDown)
    queue.put(decoding, EditRequest("x"))  # its picture is decoded only now
    assert queue.depth == 0
    with pytest.raises(ShuttingDown):
        queue.admit(job())
    queue.end(running, RESULT)
    assert running.done.result() is RESULT
    assert queue.awaited == 0


def test_sending_away_is_for_those_who_wait_now() -> None:
    queue = EditQueue(3)
    running = admitted(queue)
    queue.next()
    waiting, decoding = admitted(queue), admitted(queue, put=False)
    queue.send_away(ShuttingDown)
    for left in (waiting, decoding):
        assert isinstance(left.done.exception(0), ShuttingDown)
    assert (queue.leave(waiting), queue.leave(running)) == (False, True)
    assert admitted(queue).state is State.WAITING


def test_retry_after_follows_the_measured_edits() -> None:
    clock = Clock()
    queue = EditQueue(2, clock)
    assert queue.retry_after_s() == 1
    for seconds in (10, 4, 4, 100):
        run_one(queue, clock, seconds)
    for _ in range(3):
        admitted(queue)
    queue.next()
    clock.now += 5
    assert queue.retry_after_s() == 3 * 7 - 5  # the median, not the mean that one slow edit spoils
    with pytest.raises(QueueFull) as caught:
        queue.admit(job())
    assert caught.value.retry_after_s == 16
    clock.now += 1000
    assert queue.retry_after_s() == 2 * 7  # an edit that takes longer than usual may end at any moment


def test_retry_after_may_follow_the_mean_of_uneven_turns() -> None:
    clock = Clock()
    queue = EditQueue(9, clock, usual=fmean)
    for seconds in (27, 9, 9, 9):  # the first one's turn held the texts of all
        run_one(queue, clock, seconds)
    for _ in range(4):
        admitted(queue)
    assert queue.retry_after_s() == 4 * 13.5


def test_those_who_wait_are_seen_in_order_and_go_on_waiting() -> None:
    queue = EditQueue(9)
    jobs = [admitted(queue) for _ in range(3)]
    admitted(queue, put=False)
    assert queue.next() is jobs[0]
    assert queue.waiting(1) == jobs[1:2]
    assert queue.waiting(9) == jobs[1:]
    assert (queue.depth, jobs[1].state) == (2, State.WAITING)


def test_what_was_begun_for_one_who_waits_ends_with_its_place() -> None:
    queue = EditQueue(9)
    gone, sent = admitted(queue), admitted(queue)
    queue.leave(gone)
    assert (gone.cancel.cancelled, sent.cancel.cancelled) == (True, False)
    queue.close(ShuttingDown)
    assert sent.cancel.cancelled


def test_a_failed_edit_does_not_count_as_a_measured_one() -> None:
    clock = Clock()
    queue = EditQueue(2, clock)
    admitted(queue)
    queue.end(queue.next(), ValueError())
    admitted(queue)
    assert queue.retry_after_s() == 15
