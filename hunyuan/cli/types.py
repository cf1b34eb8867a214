"""What several commands' arguments share. A type raises argparse's own error with what came and what is allowed."""

from __future__ import annotations

import argparse
from typing import Any


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not (text.isascii() and text.isdecimal()) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def not_negative(text: str) -> int:
    """A whole number of at least 0."""
    if not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def old_name(parser: argparse.ArgumentParser, name: str, dest: str, **options: Any) -> None:
    """What an option was called before it had the name that HTTP and Python use: taken still, not shown."""
    parser.add_argument(name, dest=dest, default=argparse.SUPPRESS, help=argparse.SUPPRESS, **options)
