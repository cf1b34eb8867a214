"""The table of aims counts what it says it counts."""

from __future__ import annotations

from scripts.demo.findings import Finding, aims


def finding(task: str, psnr: float | None, said: bool = True, nearest: bool = True) -> Finding:
    return Finding("", task, said, nearest, psnr, 33.0, None, "")


def rows(*findings: Finding) -> dict[str, str]:
    lines = [line.strip("| ").split(" | ") for line in aims(findings).splitlines()[2:]]
    return {cells[0]: cells[-1] for cells in lines}


def test_an_edit_counts_as_right_when_it_is_said_and_nearest() -> None:
    found = rows(*(finding("bw", 30.0, *right) for right in ((True, True), (True, False), (False, True))))
    assert found["right edit, said and nearest"] == "33 % (1 of 3)"


def test_means_leave_out_pairs_and_other_words() -> None:
    found = rows(
        finding("bw", 32.0), finding("tint:red", 31.0), finding("bw upside", 10.0), finding("sepia", 10.0, said=False)
    )
    assert found["colour edits, below the ceiling"] == "1.5 dB (31.5 of 33.0 dB)"
    assert found["mirror and upside down, below the ceiling"] == "none"


def test_unknown_requests_are_counted_apart() -> None:
    found = rows(finding("bw", 32.0), finding("unknown", 30.0, nearest=False), finding("unknown", 32.5))
    assert found["unknown requests that give back the source"] == "50 % (1 of 2)"
    assert found["right edit, said and nearest"] == "100 % (1 of 1)"
