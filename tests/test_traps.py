"""Each trap of docs/traps.md that code can fall into is guarded by a test, and the table names tests that exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ROOT = TESTS.parent
REQUIRED = (1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 13, 14, 15, 16)


@cache
def guards() -> dict[int, set[str]]:
    """Trap number -> `path::name` of the tests that carry its mark."""
    found: dict[int, set[str]] = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.FunctionDef | ast.ClassDef):
                continue
            for decorator in node.decorator_list:
                match = re.fullmatch(r"pytest\.mark\.trap\((\d+)\)", ast.unparse(decorator))
                if match:
                    found.setdefault(int(match[1]), set()).add(f"{path.relative_to(ROOT).as_posix()}::{node.name}")
    return found


@cache
def table() -> dict[int, list[str]]:
    """Trap number -> the tests that docs/traps.md names for it."""
    rows = re.findall(r"^\| (\d+) \|.*\|([^|]*)\|$", (ROOT / "docs" / "traps.md").read_text(encoding="utf-8"), re.M)
    return {int(number): re.findall(r"`([^`]+)`", tests) for number, tests in rows}


@pytest.mark.parametrize("number", REQUIRED)
def test_the_trap_is_guarded(number: int) -> None:
    assert guards().get(number), f"no test carries pytest.mark.trap({number})"


def test_the_table_has_every_trap_in_order() -> None:
    assert list(table()) == list(range(1, 18))
    assert guards().keys() <= table().keys()


@pytest.mark.parametrize("number", range(1, 18))
def test_the_table_names_marked_tests(number: int) -> None:
    named = table()[number]
    assert [name for name in named if name not in guards().get(number, set())] == []
    assert named or number not in REQUIRED
