"""Finds the command that was named, reads its arguments, and turns errors into one line and an exit status.

Knows the commands' names and one line about each. A command's file is imported when it is named, and what it needs
(torch, BentoML) when it runs, so that `hunyuan --help` is quick and works where those are missing.

Exit status: 0 done; 1 tried and not done, or the answer is no; 2 the command line, a setting, a folder or a request is
wrong; 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import NoReturn

from hunyuan.errors import CheckpointError, HunyuanError, InvalidRequest, SettingsError

COMMANDS = {
    "serve": "start the HTTP service",
    "edit": "edit a photo as a prompt says, and write the picture to a file",
    "generate": "make a picture from a prompt, and write it to a file",
    "doctor": "say what this machine has and what that allows",
    "plan": "say which weights fit a GPU and what its memory goes to, without one",
    "quantize": "turn the official checkpoint into a smaller one (4 bits, fp8 or mixed)",
    "compare": "run the same edits through two sets of weights and say how far apart they are",
    "verify": "say which checkpoint a folder holds and whether it is complete",
    "kernels": "compile FlashInfer's kernels for Hopper, or say which are there",
    "demo": "write the built-in demo as a checkpoint folder, to quantize or compare it",
    "tiny": "write a small random checkpoint, for trying and testing",
}
WRONG = (SettingsError, CheckpointError, InvalidRequest)


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong, as every other error is said; the usage is `--help`'s."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {' '.join(message.split())}; see `{self.prog} --help`\n")


class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults; leaves the examples' lines alone."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        unset = action.default is None or action.default is False or action.default == []
        return action.help if unset else super()._get_help_string(action)


def build_parser(chosen: str | None = None) -> argparse.ArgumentParser:
    """The parser of all commands; only `chosen` has its arguments, the others their name and one line."""
    from hunyuan import __version__

    parser = Parser(
        prog="hunyuan",
        description="HunyuanImage-3.0-Instruct: serve it, edit pictures with it, prepare its weights.",
        epilog="`hunyuan COMMAND --help` has a command's options and examples.",
    )
    parser.add_argument("--version", action="version", version=f"hunyuan {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    for name, summary in COMMANDS.items():
        sub = commands.add_parser(name, help=summary, formatter_class=Formatter)
        if name == chosen:
            module = load(name)
            sub.description, sub.epilog = module.DESCRIPTION, f"examples:\n{module.EXAMPLES}"
            module.add_arguments(sub)
    return parser


def load(name: str) -> ModuleType:
    """A command's file: `DESCRIPTION`, `EXAMPLES`, `add_arguments(parser)` and `run(arguments) -> exit status`."""
    return importlib.import_module(f"hunyuan.cli.{name}")


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    chosen = next((word for word in words if not word.startswith("-")), None)
    arguments = build_parser(chosen).parse_args(words)
    try:
        return int(load(arguments.command).run(arguments))
    except HunyuanError as error:
        return failed(error, 2 if isinstance(error, WRONG) else 1)
    except OSError as error:
        return failed(error, 1)
    except KeyboardInterrupt:
        return failed("interrupted", 130)


def failed(error: object, status: int) -> int:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return status
