"""Log lines for a person at a terminal: short, coloured by level, with a bar for the edit under way.

Knows records and a terminal. What is logged, and when it is JSON instead, is `logs.py`'s business.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from datetime import datetime
from typing import Any, TextIO

BAR = "bar"  # the attribute of a record that is no line but moves the bar: (stage, done, total)
_COLOURS = {logging.WARNING: "33", logging.ERROR: "31", logging.CRITICAL: "1;31"}
_WIDTH = 30
_CLEAR_LINE = "\r\x1b[K"


class TextLines(logging.Formatter):
    """`time level text`; the fields of a request become a sentence."""

    def __init__(self, coloured: bool) -> None:
        super().__init__()
        self._coloured = coloured

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", None)
        text = record.getMessage() if fields is None else sentence(fields)
        if record.exc_info:
            text = f"{text}\n{self.formatException(record.exc_info)}"
        moment = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        line = f"{moment} {record.levelname.lower():8} {text}"
        colour = _COLOURS.get(record.levelno)
        return f"\x1b[{colour}m{line}\x1b[0m" if self._coloured and colour else line


def sentence(fields: Mapping[str, Any]) -> str:
    """A request's record in words; what is unknown is left out."""
    what = f"job {fields['state']}" if fields.get("event") == "job" else f"{fields['path']} {fields['status']}"
    parts = [what, fields["error"], f"{fields['seconds']:.2f} s"]
    if fields["input_size"]:
        parts.append(f"{fields['input_size']} to {fields['output_size'] or 'nothing'}")
    for name in ("seed", "steps", "tokens"):
        if fields[name] is not None:
            parts.append(f"{name} {fields[name]}")
    parts += [f"{stage} {seconds:.2f} s" for stage, seconds in (fields["stages"] or {}).items() if stage != "total"]
    return ", ".join(str(part) for part in parts if part) + f" ({fields['request_id']})"


class TerminalHandler(logging.StreamHandler[TextIO]):
    """Lines above, one bar below them. Used by one thread only, so the two never mix."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self.setFormatter(TextLines(coloured=not os.environ.get("NO_COLOR")))
        self._bar = ""

    def emit(self, record: logging.LogRecord) -> None:
        moved = getattr(record, BAR, None)
        if moved is not None:
            self._bar = bar(*moved)
            self.stream.write(_CLEAR_LINE + self._bar)
        else:
            if hasattr(record, "fields"):  # a request is over, and with it what the bar showed
                self._bar = ""
            self.stream.write(f"{_CLEAR_LINE}{self.format(record)}\n{self._bar}")
        self.flush()


def bar(stage: str, done: int, total: int) -> str:
    filled = _WIDTH * done // max(total, 1)
    return f"{stage:8} [{'#' * filled}{'.' * (_WIDTH - filled)}] {done}/{total}"
