"""The shell commands that the README and the deployment documents show."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("command_line", "deployment", "kernels", "operations", "settings", "weights")
DOCUMENTS = ("README.md", *(f"docs/{page}.md" for page in PAGES))


def blocks() -> Iterator[tuple[str, str]]:
    for document in DOCUMENTS:
        text = (ROOT / document).read_text()
        for number, match in enumerate(re.findall(r"^```bash[^\n]*\n(.*?)^```", text, re.M | re.S)):
            yield f"{document}-{number}", match


BLOCKS = dict(blocks())
COMMANDS = [" ".join(line.split()) for text in BLOCKS.values() for line in text.replace("\\\n", " ").splitlines()]
"""One a line, continued lines joined."""
