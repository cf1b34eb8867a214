"""Which edits may be asked for at once."""

import pytest

from scripts.demo.edits import Step
from scripts.demo.tasks import edit_tasks, go_together


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Step("background", "red"), Step("bw")),
        (Step("background", "red"), Step("brighter")),
        (Step("background", "red"), Step("sharpen")),
        (Step("background", "red"), Step("tint", "blue")),
        (Step("tint", "red"), Step("frame", "white")),
        (Step("tint", "red"), Step("contrast")),
        (Step("vivid"), Step("warmer")),
        (Step("brighter"), Step("contrast")),
        (Step("mirror"), Step("frame", "black")),
    ],
)
def test_what_can_both_be_seen_goes_together(first: Step, second: Step) -> None:
    assert go_together(first, second)
    assert go_together(second, first)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Step("bw"), Step("vivid")),
        (Step("bw"), Step("sepia")),
        (Step("sepia"), Step("cooler")),
        (Step("brighter"), Step("darker")),
        (Step("mirror"), Step("upside")),
        (Step("blur"), Step("blur")),
        (Step("background", "red"), Step("background", "blue")),
        (Step("background", "red"), Step("frame", "red")),
    ],
)
def test_what_would_undo_or_hide_each_other_does_not(first: Step, second: Step) -> None:
    assert not go_together(first, second)
    assert not go_together(second, first)


def test_no_task_is_there_twice() -> None:
    tasks = edit_tasks()
    assert len(tasks) == len(set(tasks))
