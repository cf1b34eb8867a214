"""Kills quantizations in the middle: `python killed_quantize.py SRC OUT COUNT ARGUMENT...`.

Counts the writes and renames of a whole run into `OUT/whole`, then repeats it COUNT times into `OUT/0`, `OUT/1`, ...,
each in a process of its own that ends by SIGKILL right before another one of them. The last comes just before
config.json appears.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import hunyuan.checkpoint.quantize  # here, and not in each of the processes  # noqa: F401
from hunyuan.cli.main import main as command


class Counter:
    """Counts calls, and kills the process before call number `last`."""

    def __init__(self, last: int = 0) -> None:
        self.calls, self.last = 0, last

    def watch(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **options: Any) -> Any:
            self.calls += 1
            if self.calls == self.last:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **options)

        return watched


def run(source: str, out: Path, arguments: list[str], last: int = 0) -> int:
    """Quantizes and returns how many writes and renames that took."""
    counter = Counter(last)
    os.pwrite, os.replace = counter.watch(os.pwrite), counter.watch(os.replace)
    assert command(["quantize", source, str(out), *arguments]) == 0
    return counter.calls


def main(source: str, out: str, count: str, *arguments: str) -> None:
    in_child = os.fork() == 0
    if in_child:
        (Path(out) / "calls").write_text(str(run(source, Path(out) / "whole", list(arguments))))
        os._exit(0)
    assert os.wait()[1] == 0
    calls = int((Path(out) / "calls").read_text())
    for number in range(int(count)):
        last = calls - (calls - 2) * (int(count) - 1 - number) // int(count)
        if os.fork() == 0:
            run(source, Path(out) / str(number), list(arguments), last)
            os._exit(0)
        assert os.WTERMSIG(os.wait()[1]) == signal.SIGKILL


if __name__ == "__main__":
    main(*sys.argv[1:])
