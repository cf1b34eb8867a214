"""What a call costs in a process of its own: memory, time, and what it refuses.

The process is a fork of one that has imported the package and done nothing else, so that many such tests import it
once. Knows processes; what is called, and how much is too much, is the tests' business.
"""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from hunyuan.errors import HunyuanError

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["hunyuan.editor", "hunyuan.engines.native"])


class Cost(NamedTuple):
    """Why it was refused, None where it was not; the MiB by which it grew; the seconds that it computed."""

    refusal: str | None
    mib: float
    seconds: float


def cost_of(function: Callable[..., Any], *arguments: Any) -> Cost:
    """Calls a function that can be imported by its name. What else than `HunyuanError` it raises fails the test."""
    receiver, sender = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=_measure, args=(sender, function, arguments))
    process.start()
    sender.close()
    try:
        assert receiver.poll(120), "no answer within two minutes"
        refusal, mib, seconds = receiver.recv()  # EOFError: it has died, and what it said is in the test's output
    finally:
        process.kill()
        process.join()
        receiver.close()
    return Cost(refusal, mib, seconds)


def _measure(sender: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    refusal, before, started = None, _most_mib(), time.process_time()
    try:
        function(*arguments)
    except HunyuanError as error:
        refusal = str(error)[:2000]
    sender.send((refusal, _most_mib() - before, time.process_time() - started))


def _most_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
