"""The two loops, `scripts/check` and `scripts/checks/test.sh`: what they leave out, and that every test is in one."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHECK, WHOLE = ROOT / "scripts/check", ROOT / "scripts/checks/test.sh"


def selections(script: Path) -> list[str]:
    return re.findall(r'-m pytest .*?-m (?:"([^"]+)"|(\w+))', script.read_text())


def test_every_test_is_in_one_of_ci_s_passes() -> None:
    passes = [quoted or word for quoted, word in selections(WHOLE)]
    assert passes == ["not (slow or server or alone)", "(slow or server) and not alone", "alone"]
    for marks in itertools.product((False, True), repeat=3):
        slow, server, alone = marks
        chosen = [eval(each, {"slow": slow, "server": server, "alone": alone}) for each in passes]
        assert sum(chosen) == 1, marks


def test_the_marks_that_are_left_out_exist_and_are_explained() -> None:
    markers = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["markers"]
    ((chosen, _),) = selections(CHECK)
    left_out = set(re.findall(r"\w+", chosen)) - {"not", "or"}
    assert left_out <= {re.match(r"\w+", line)[0] for line in markers}
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert all(f"`{mark}`" in text for mark in left_out - {"gpu"})


def test_a_wrong_type_fails_the_check_although_the_tests_pass(tmp_path: Path) -> None:
    """With stand-ins for the tools: the status is the worst of all."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, status in (("mypy", 1), ("ruff", 0), ("python", 0)):
        (tools / name).write_text(f"#!/bin/sh\necho {name} $*\nexit {status}\n")
        (tools / name).chmod(0o755)
    run = subprocess.run(
        [str(CHECK), "tests/x"],
        env=os.environ | {"VIRTUAL_ENV": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert "python -m pytest" in run.stdout
    assert "tests/x" in run.stdout
    (tools / "mypy").write_text("#!/bin/sh\nexit 0\n")
    (tools / "python").write_text("#!/bin/sh\nexit 1\n")
    run = subprocess.run([str(CHECK)], env=os.environ | {"VIRTUAL_ENV": str(tmp_path)}, check=False)
    assert run.returncode == 1


@pytest.mark.parametrize(
    ("failing", "expected"),
    [
        ({}, 0),
        ({"ruff": 1}, 1),
        ({"mypy": 1}, 1),
        ({"-m pytest": 1}, 1),
        ({"replay_image": 1}, 1),
        ({"replay_image": 0}, 1),  # it says that it is done, and there is no image
        ({"audit": 1}, 1),
    ],
    ids=str,
)
def test_whatever_fails_beside_the_tests_fails_the_whole(
    tmp_path: Path, failing: dict[str, int], expected: int
) -> None:
    """With stand-ins for the tools; a machine that cannot replay the image says so."""
    tools = tmp_path / "bin"
    tools.mkdir()
    statuses = {"replay_image": 77} | failing
    cases = "".join(f'*"{word}"*) exit {status};; ' for word, status in statuses.items())
    for name in ("mypy", "ruff", "python"):
        (tools / name).write_text(f'#!/bin/sh\necho "$0 $*"\ncase "$0 $*" in {cases}esac\n')
        (tools / name).chmod(0o755)
    own = os.environ | {"VIRTUAL_ENV": str(tmp_path), "TMPDIR": str(tmp_path)}
    run = subprocess.run([str(WHOLE)], env=own, capture_output=True, text=True, check=False)
    assert run.returncode == expected, run.stdout + run.stderr
    assert ("== done" in run.stdout) == (expected == 0)
    assert ("IMAGE NOT REPLAYED" in run.stdout) == (expected == 0 or "audit" in failing)


def test_the_smoke_test_needs_no_package_of_the_tests() -> None:
    source = (ROOT / "scripts/checks/smoke.py").read_text()
    imported = set(re.findall(r"^(?:from|import) (\w+)", source, flags=re.MULTILINE))
    assert imported <= {"hunyuan", "scripts", *sys.stdlib_module_names}
