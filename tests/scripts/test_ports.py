"""scripts/support/ports.py: a port is given to one process, and to none where somebody listens."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.support import ports
from scripts.support.ports import PORTS, free_port

ROOT = Path(__file__).parents[2]
ASK = """
import sys
from scripts.support.ports import free_port
print(*(free_port() for _ in range(20)), flush=True)
sys.stdin.read()
"""


def some_from(first: int) -> Iterator[int]:
    return iter(range(first, PORTS.stop))


def test_two_processes_are_never_given_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both count from the same number on, and nobody listens yet."""
    other = subprocess.Popen([sys.executable, "-c", ASK], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdin is not None
    assert other.stdout is not None
    with other, other.stdin:
        theirs = [int(word) for word in other.stdout.readline().split()]
        monkeypatch.setattr(ports, "_left", some_from(theirs[0]))
        ours = [free_port() for _ in range(20)]
    assert len({*theirs, *ours}) == 40
    assert {*theirs, *ours} <= set(PORTS)
    monkeypatch.setattr(ports, "_left", some_from(theirs[0]))
    assert free_port() in theirs  # which ended with the other process


@pytest.mark.parametrize("address", ["127.0.0.1", ""])
def test_a_port_that_somebody_listens_on_is_passed_over(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    with socket.socket() as taken:
        taken.bind((address, free_port()))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(ports, "_claim", lambda port: True)  # as if it were not ours
        monkeypatch.setattr(ports, "_left", some_from(port))
        assert free_port() > port


def test_when_none_is_left_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "_left", iter(()))
    with pytest.raises(RuntimeError, match="ports 20000 to 32767: each is taken"):
        free_port()


def test_no_outgoing_connection_takes_one() -> None:
    """By the kernel's default; where this machine has another range, a probe is all there is."""
    lowest, _ = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    if lowest < 32768:
        pytest.skip(f"this machine's outgoing connections have ports from {lowest} on")
    assert PORTS.stop <= lowest
