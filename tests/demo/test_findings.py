"""The table of aims counts what it says it counts."""

from __future__ import annotations

from scripts.demo.findings import Finding, aims, table


def finding(task: str, psnr: float | None, said: bool = True, nearest: bool = True) -> Finding:
    return Finding("", task, said, nearest, psnr, 33.0, None, "")


def cells(*findings: Finding) -> list[list[str]]:
    return [line.strip("| ").split(" | ") for line in aims(findings).splitlines()[2:]]


def rows(*findings: Finding) -> dict[str, str]:
    return {name: reached for name, _, reached in cells(*findings)}


def test_an_edit_counts_as_right_when_it_is_said_and_nearest() -> None:
    found = rows(*(finding("bw", 30.0, *right) for right in ((True, True), (True, False), (False, True))))
    assert found["right edit, said and nearest"] == "33.3 % (1 of 3)"


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


def test_each_row_names_its_aim() -> None:
    assert {name: aim for name, aim, _ in cells(finding("blur", 40.0), finding("sharpen", 26.0))} == {
        "right edit, said and nearest": "95 %",
        "colour edits, below the ceiling": "1 dB",
        "mirror and upside down, below the ceiling": "1 dB",
        "background of clip art, below the ceiling": "2 dB",
        "blur": "27 dB",
        "sharpen": "27 dB",
        "unknown requests that give back the source": "90 %",
    }


def test_blur_and_sharpen_stand_beside_their_ceilings() -> None:
    found = rows(finding("blur", 40.0), finding("blur", 42.0), finding("sharpen", 26.0, said=False))
    assert found["blur"] == "41.0 of 33.0 dB"
    assert found["sharpen"] == "none"


def test_the_table_groups_by_the_first_edit_and_lists_what_went_wrong() -> None:
    text = table(
        [finding("tint:red", 30.0), finding("tint:blue upside", 20.0, nearest=False), finding("unknown", 33.0)]
    )
    head, _, tint, unknown, total, *rest = text.splitlines()
    assert head == "| edit | cases | said | right | PSNR, dB | ceiling | unedited |"
    assert tint == "| tint | 2 | 2 | 1 | 25.0 | 33.0 |  |"
    assert unknown == "| unknown | 1 | 1 | 1 | 33.0 | 33.0 |  |"
    assert total == "| all | 3 | 3 | 2 | 27.7 | 33.0 |  |"
    assert rest == ["", "Every wording that went wrong, and what the model said:", "", "- '' (tint:blue upside): ''"]
