"""The commands of the README and the deployment documents: each parses, and names only what exists."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path

import pytest
from document_commands import BLOCKS, COMMANDS

from hunyuan.cli import main as cli
from hunyuan.settings import known_variables

ROOT = Path(__file__).resolve().parents[2]
FROM_THE_SHELL = {"PWD", "PATH", "HOME"}


@cache
def help_of(*command: str) -> str:
    result = subprocess.run([*command, "--help"], cwd=ROOT, capture_output=True, text=True, check=False)
    return result.stdout + result.stderr


@cache
def our_help_of(command: str) -> str:
    told = StringIO()
    with redirect_stdout(told), pytest.raises(SystemExit):
        cli.main([command, "--help"])
    return told.getvalue()


def long_options(command: str) -> set[str]:
    return set(re.findall(r"(?<=\s)(--[a-z][a-z-]*)", re.sub(r"'[^']*'", "", command)))


@pytest.mark.parametrize("name", BLOCKS)
def test_block_parses(name: str) -> None:
    result = subprocess.run(["bash", "-n"], input=BLOCKS[name], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", BLOCKS)
def test_block_names_no_undefined_variable_and_no_absent_file(name: str) -> None:
    text = BLOCKS[name]
    assigned = set(re.findall(r"(?:^|\s)(\w+)=", text))
    assert set(re.findall(r"\$\{?(\w+)", text)) - assigned - FROM_THE_SHELL == set()
    for path in re.findall(r"(?:^|\s)((?:scripts|deploy|docs|tests)/[\w./-]+)", text):
        assert (ROOT / path).exists(), path
    for variable in re.findall(r"\bHUNYUAN_[A-Z_]+", text):
        assert variable in known_variables()


def test_scripts_know_the_options_they_are_given() -> None:
    for command in COMMANDS:
        script = re.search(r"(scripts/[\w/]+\.(?:py|sh))", command)
        if script:
            source = (ROOT / script[1]).read_text()
            for option in long_options(command[script.end() :]):
                assert option in source, f"{script[1]} has no {option}"


def test_our_commands_know_the_options_they_are_given() -> None:
    calls = [call for command in COMMANDS if (call := re.search(r"(?:-m |bin/)hunyuan ([a-z]+)\b(.*)", command))]
    assert calls
    for call in calls:
        for option in long_options(call[2]):
            assert option in our_help_of(call[1]), f"hunyuan {call[1]} has no {option}"


@pytest.mark.parametrize("subcommand", ["build", "containerize", "serve", "deploy"])
def test_bentoml_knows_the_options_it_is_given(subcommand: str) -> None:
    tool = str(Path(sys.executable).parent / "bentoml")
    for command in COMMANDS:
        call = re.search(rf"bentoml {subcommand}\b(.*)", command)
        for option in long_options(call[1]) if call else ():
            assert option in help_of(tool, subcommand)


@pytest.mark.parametrize(
    ("tool", "subcommand"), [("docker", "run"), ("kubectl", "apply"), ("kubectl", "rollout status")]
)
def test_clients_know_the_options_they_are_given(tool: str, subcommand: str) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"no {tool} client here to ask for its options")
    calls = [call[1] for command in COMMANDS if (call := re.search(rf"^{tool} {subcommand}\b(.*)", command))]
    assert calls
    for option in {option for call in calls for option in long_options(call)}:
        assert option in help_of(tool, *subcommand.split())


def test_docker_run_gives_what_the_replay_gives() -> None:
    from scripts.image import replay_image

    (run,) = (command for command in COMMANDS if command.startswith("docker run"))
    for name, value in replay_image.AT_RUN.items():
        assert f"--env {name}={value}" in run
    for flag in ("--gpus all", "--read-only", "--tmpfs /cache:rw,exec,", ":/models:ro", "--shm-size", "--health-cmd"):
        assert flag in run
