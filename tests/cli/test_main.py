"""The command line as a whole: quick help without torch, examples, one line per error, exit statuses."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from hunyuan.cli import main as cli
from hunyuan.errors import CheckpointError, OutOfMemory

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "numpy", "PIL", "pydantic", "bentoml", "flashinfer")


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        "import sys, hunyuan.cli.main as m\n"
        "try: m.main(['--help'])\n"
        "except SystemExit: print([name for name in sys.argv[1:] if name in sys.modules])"
    )
    started = time.process_time()
    command = [sys.executable, "-c", code, *HEAVY]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert told.splitlines()[-1] == "[]"
    for name in cli.COMMANDS:
        assert f"\n    {name} " in told
    assert time.process_time() - started < 1


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help_with_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main([name, "--help"])
    assert end.value.code == 0
    told = capsys.readouterr().out
    examples = told[told.index("examples:") :]
    assert examples.count(f"hunyuan {name}") >= 1
    assert told.startswith(f"usage: hunyuan {name} ")


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_the_examples_options_exist(name: str) -> None:
    """Each example parses; what it names need not exist."""
    import shlex

    for line in cli.load(name).EXAMPLES.splitlines():
        words = shlex.split(line, comments=True)
        words = words[words.index("hunyuan") + 1 :]
        assert cli.build_parser(words[0]).parse_args(words).command == name


def test_a_command_s_file_for_every_name_and_the_other_way_round() -> None:
    others = {"__init__", "main", "types", "picture", "progress"}
    files = {path.stem for path in (ROOT / "hunyuan/cli").glob("*.py")} - others
    assert files == set(cli.COMMANDS)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (CheckpointError("two\nlines"), 2),
        (OutOfMemory("no room"), 1),
        (FileNotFoundError(2, "No such file", "x.png"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_an_error_is_a_line_and_a_status(monkeypatch, capsys, tmp_path, error, status) -> None:
    def fail(_arguments: object) -> int:
        raise error

    monkeypatch.setattr(cli.load("verify"), "run", fail)
    assert cli.main(["verify", str(tmp_path)]) == status
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")


def test_a_mistake_of_ours_keeps_its_traceback(monkeypatch, tmp_path) -> None:
    def fail(_arguments: object) -> int:
        raise RuntimeError("a bug")

    monkeypatch.setattr(cli.load("verify"), "run", fail)
    with pytest.raises(RuntimeError):
        cli.main(["verify", str(tmp_path)])


@pytest.mark.parametrize("words", [["nonsense"], ["verify"], ["verify", "a", "b"]])
def test_a_wrong_command_line_is_a_line_and_status_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert line.endswith("--help`")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["kernels", "--module", "foo"], "--module: there is no module 'foo'"),
        (["compare", "FOLDER", "nowhere"], "MODEL_ID='nowhere'"),
        (["compare", "FOLDER", "FOLDER", "--json", "no/numbers.json"], "--json: there is no folder no"),
        (["tiny", "nowhere", "--heads", "5"], "got heads=5, kv_heads=2"),
    ],
)
def test_what_is_wrong_is_said_before_the_work(words, told, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hunyuan.editor.Editor.load", lambda *_: pytest.fail("loaded"))
    assert cli.main([str(tmp_path) if word == "FOLDER" else word for word in words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line


def test_python_m_is_the_same() -> None:
    from hunyuan import __version__

    command = [sys.executable, "-m", "hunyuan", "--version"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout == (
        f"hunyuan {__version__}\n"
    )
