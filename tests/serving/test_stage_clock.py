"""The times of an edit that did not finish, by what its engine reported until then."""

from __future__ import annotations

import pytest

from hunyuan.serving.stage_clock import StageClock

WHOLE = [  # what the native engine reports, and the seconds that pass before each
    (2.0, "prefill", 0, 9),
    (1.0, "prefill", 9, 9),
    (0.5, "think", 1, 7),
    (0.5, "think", 2, 7),
    (0.25, "denoise", 0, 3),
    (0.75, "denoise", 1, 3),
    (4.0, "denoise", 2, 3),
    (4.0, "denoise", 3, 3),
    (0.0, "vae", 0, 1),
    (3.0, "vae", 1, 1),
]


class Time:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("reports", "then", "seconds"),
    [
        (0, 3.0, {"prepare": 3.0}),
        (1, 0.5, {"prepare": 2.0, "prefill": 0.5}),
        (2, 4.0, {"prepare": 2.0, "prefill": 1.0, "think": 4.0}),
        (4, 1.0, {"prepare": 2.0, "prefill": 1.0, "think": 2.0}),
        (5, 5.0, {"prepare": 2.0, "prefill": 1.0, "think": 1.0, "first_step": 5.25}),
        (7, 1.0, {"prepare": 2.0, "prefill": 1.0, "think": 1.0, "first_step": 1.0, "denoise": 5.0}),
        (9, 1.0, {"prepare": 2.0, "prefill": 1.0, "think": 1.0, "first_step": 1.0, "denoise": 8.0, "vae": 1.0}),
        (10, 0.0, {"prepare": 2.0, "prefill": 1.0, "think": 1.0, "first_step": 1.0, "denoise": 8.0, "vae": 3.0}),
    ],
)
def test_time_goes_to_the_stage_it_was_spent_in(reports: int, then: float, seconds: dict[str, float]) -> None:
    time = Time()
    clock = StageClock(time)
    for passed, stage, done, total in WHOLE[:reports]:
        time.now += passed
        clock.progress(stage, done, total)  # type: ignore[arg-type]
    time.now += then
    told = clock.so_far()
    assert told.pop("total") == pytest.approx(time.now - 100.0)
    assert {name: value for name, value in told.items() if value} == pytest.approx(seconds)


def test_time_that_went_into_something_else_is_left_out() -> None:
    time = Time()
    clock = StageClock(time)
    time.now += 2
    clock.progress("prefill", 0, 9)
    time.now += 50
    clock.skip()
    time.now += 1
    clock.progress("prefill", 9, 9)
    assert clock.so_far() == {"prepare": 2.0, "prefill": 1.0, "think": 0.0, "total": 3.0}
