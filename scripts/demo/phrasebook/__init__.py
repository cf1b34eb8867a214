"""The demo's wordings, as text: this folder's TOML files, and reading them.

Each file says at its top what its templates (`grammar.py`) are for. Knows nothing of what they mean.
"""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent


@cache
def read(name: str) -> dict[str, dict[str, tuple[str, ...]]]:
    """A file's sections: by name, the templates of each, which stand one to a line; an empty line is an empty one."""
    raw = _raw(name)
    return {
        section: {key: tuple(text.removesuffix("\n").split("\n")) if text else () for key, text in entries.items()}
        for section, entries in raw.items()
    }


@cache
def lines(name: str) -> dict[str, tuple[str, ...]]:
    """A file without sections, written like one of `read`."""
    return {key: tuple(text.removesuffix("\n").split("\n")) for key, text in _raw(name).items()}


@cache
def words(name: str) -> dict[str, tuple[str, ...]]:
    """A file of word lists, the words apart by commas (Chinese ones by spaces)."""
    return {
        key: tuple(word.strip() for line in text.split("\n") for word in line.split(",") if word.strip())
        for key, text in _raw(name).items()
    }


def _raw(name: str) -> dict:
    return tomllib.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8"))
