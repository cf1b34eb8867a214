#!/usr/bin/env python
"""Prints a command of README.md, so that what people copy is what CI runs.

    python scripts/checks/readme_command.py NAME

NAME is the word after the fence's language: ```bash NAME. Exactly one such block must exist.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

README = Path(__file__).resolve().parents[2] / "README.md"


def command(name: str, text: str) -> str:
    """The body of the one fenced block with this name. Raises `ValueError` when there is none, or several."""
    blocks = re.findall(rf"^```bash {re.escape(name)}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    if len(blocks) != 1:
        raise ValueError(f"README.md holds {len(blocks)} blocks named {name}, expected one")
    return blocks[0].strip()


if __name__ == "__main__":
    print(command(sys.argv[1], README.read_text(encoding="utf-8")))
