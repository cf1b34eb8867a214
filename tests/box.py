"""A box of replicas behind HAProxy, as deploy/compose.yaml has it: its own haproxy.cfg, with other addresses.

Knows processes and that file. What is asked of the box is the tests' business.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from server_process import ROOT, Server, photo_bytes, start

from scripts.support.ports import free_port

KEY = "3f9a-not-a-real-key-0217"
AUTHORIZATION = {"Authorization": f"Bearer {KEY}"}
DEFAULTS = {"EDITS_PER_GPU": "1", "QUEUE_SIZE": "64", "MAX_UPLOAD_BYTES": "20971520"}
needs_haproxy = pytest.mark.skipif(shutil.which("haproxy") is None, reason="no haproxy here (Debian's package)")


@dataclass
class Box:
    """`replicas` are gpu0, gpu1, ...; `url` is the proxy's."""

    replicas: list[Server]
    proxy: subprocess.Popen[bytes]
    url: str
    figures: str
    log: Path

    def edit(self, request_id: str = "", prompt: str = "good x", **fields: Any) -> httpx.Response:
        path, timeout = fields.pop("path", "/edit"), fields.pop("timeout", 60)
        headers = AUTHORIZATION | ({"X-Request-ID": request_id} if request_id else {})
        files = {"image": ("a.jpg", photo_bytes(), "image/jpeg")}
        data = {"prompt": prompt, **{name: str(value) for name, value in fields.items()}}
        return httpx.post(f"{self.url}{path}", files=files, data=data, headers=headers, timeout=timeout)

    def submit(self, prompt: str, steps: int) -> str:
        """A job's id."""
        files, data = {"image": ("a.jpg", photo_bytes())}, {"prompt": prompt, "steps": str(steps)}
        answer = httpx.post(f"{self.url}/edit/submit", files=files, data=data, headers=AUTHORIZATION, timeout=30)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["task_id"])

    def request_line(self, request_id: str, seconds: float = 5) -> dict[str, Any]:
        """The one line about a request in the logs of all replicas."""
        end = time.monotonic() + seconds
        while True:
            lines = [line for replica in self.replicas for line in replica.requests()]
            found = [line for line in lines if line["request_id"] == request_id]
            assert len(found) <= 1, found
            if found:
                return found[0]
            assert time.monotonic() < end, request_id
            time.sleep(0.05)

    def up(self) -> set[str]:
        """The replicas that the proxy sends edits to."""
        text = httpx.get(f"{self.figures}/metrics").text
        return set(re.findall(r'haproxy_server_status\{proxy="edits",server="(\w+)",state="UP"\} 1', text))

    def wait_for(self, *names: str, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while self.up() != set(names):
            assert time.monotonic() < end, (self.up(), self.log.read_text())
            time.sleep(0.1)

    def waiting(self) -> int:
        return self._sum(r"haproxy_(?:backend|server)_current_queue")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Each of the scripted replicas works on an edit until the `with` ends; these edits all succeed."""
        releases = [replica.folder / "release" for replica in self.replicas]
        for file in releases:
            file.unlink(missing_ok=True)
        with ThreadPoolExecutor(len(releases)) as pool:
            edits = [pool.submit(self.edit, f"held-{n}", "held edit") for n in range(len(releases))]
            try:
                self.until_running(edits)
                yield
            finally:
                for file in releases:
                    file.touch()
            assert [one.result().status_code for one in edits] == [200] * len(edits)

    def until_running(self, edits: Sequence[Future[Any]], seconds: float = 20) -> None:
        """Returns when all of `edits` are with the replicas; a busy machine may take a while to send them."""
        end = time.monotonic() + seconds
        while (running := self._sum("haproxy_server_current_sessions")) != len(edits):
            ended = [one.exception() or one.result() for one in edits if one.done()]
            assert not ended, (ended, self.log.read_text())
            assert time.monotonic() < end, (running, self.log.read_text())
            time.sleep(0.02)

    def _sum(self, metric: str) -> int:
        text = httpx.get(f"{self.figures}/metrics").text
        return sum(map(int, re.findall(metric + r'\{proxy="edits"[^}]*\} (\d+)', text)))


def configuration(replicas: Sequence[Server], port: int, figures: int, keys: Path, **changes: str) -> str:
    """deploy/haproxy.cfg for replicas on this machine; each of `changes` replaces a line's beginning and its value."""
    text = (ROOT / "deploy/haproxy.cfg").read_text()
    for number, replica in enumerate(replicas):
        text = replaced(text, f"gpu{number}:8000", f"127.0.0.1:{replica.port}")
    absent = range(len(replicas), 8)
    text = "".join(line for line in text.splitlines(True) if not any(f"gpu{n}" in line for n in absent))
    text = replaced(text, "bind :8000", f"bind 127.0.0.1:{port}")
    text = replaced(text, "bind :8404", f"bind 127.0.0.1:{figures}")
    text = replaced(text, "/keys/", f"{keys}/")
    text = replaced(text, "172.30.0.16/28", "127.0.0.1/32")
    for name, value in changes.items():
        words = name.replace("_", " ")
        text, count = re.subn(rf"^( +{words} )\S+$", rf"\g<1>{value}", text, flags=re.M)
        assert count == 1, words
    return text


def replaced(text: str, old: str, new: str) -> str:
    assert old in text, old
    return text.replace(old, new)


@contextmanager
def proxy_before(
    replicas: list[Server],
    folder: Path,
    variables: dict[str, str] | None = None,
    port: int | None = None,
    **changes: str,
) -> Iterator[Box]:
    """HAProxy, through the container's own script, until the `with` ends."""
    folder.mkdir(exist_ok=True)
    port = port or free_port()
    figures, log = free_port(), folder / "haproxy.log"
    keys, file = folder / "keys", folder / "haproxy.cfg"
    keys.write_text(f"# of the test\nbox : {KEY}\n")
    file.write_text(configuration(replicas, port, figures, folder, **changes))
    command = [str(ROOT / "deploy/haproxy.sh"), str(keys), str(folder), "haproxy", "-W", "-db", "-f", str(file)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=os.environ | DEFAULTS | (variables or {}), stdout=output, stderr=subprocess.STDOUT
        )
    box = Box(replicas, process, f"http://127.0.0.1:{port}", f"http://127.0.0.1:{figures}", log)
    try:
        until_listening(box)
        yield box
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)


def until_listening(box: Box, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while True:
        assert box.proxy.poll() is None, box.log.read_text()
        assert time.monotonic() < end, box.log.read_text()
        try:
            httpx.get(f"{box.figures}/metrics", timeout=2)
            return
        except httpx.TransportError:
            time.sleep(0.05)


@contextmanager
def replicas_in(folder: Path, count: int = 2, **extra: str) -> Iterator[list[Server]]:
    """So many servers that trust a proxy on this machine and want the key; ready."""
    with ExitStack() as stack:
        servers = []
        for number in range(count):
            own = folder / f"gpu{number}"
            own.mkdir(parents=True, exist_ok=True)
            servers.append(replica(own, number, **extra))
            stack.callback(servers[-1].stop)
        for server in servers:
            server.wait_until()
        yield servers


def replica(folder: Path, number: int, port: int | None = None, **extra: str) -> Server:
    settings = {
        "HUNYUAN_REPLICA": f"gpu{number}",
        "HUNYUAN_API_KEYS": f"box:{KEY}",
        "HUNYUAN_TRUSTED_PROXIES": "127.0.0.1",
        "HUNYUAN_JOBS_DIR": str(folder / "jobs"),
    }
    target = extra.pop("target", "service:HunyuanImage")
    if target != "service:HunyuanImage":
        extra = {"FAULTS_RECORD": str(folder / "record")} | extra
    cwd = ROOT / "tests/faulty" if target.startswith("faulty") else ROOT
    return start(folder, target, cwd, port, **(settings | extra))
