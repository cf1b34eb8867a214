"""A few processes that decode uploads: warm, limited, and killed when nobody waits for their work any more.

Knows processes, threads and time. What happens inside such a process is `decoder_process.py`; HTTP is elsewhere.

Each process has a thread here that starts it, hands it one picture after the other and replaces it. The thread lives
as long as the service: the kernel ends the process with the thread that started it, so that not even SIGKILL leaves
one behind.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from PIL import Image

from hunyuan.errors import HunyuanError, InferenceFailed, InvalidImage, OutOfMemory
from hunyuan.serving.decoder_process import MESSAGE_BYTES, READY
from hunyuan.serving.http_errors import Restarting
from hunyuan.serving.pixel_file import picture_of

logger = logging.getLogger(__name__)

MODULE = "hunyuan.serving.decoder_process"
POLL_S = 1.0
START_WITHIN_S = 60.0
HANG_FACTOR = 6  # a process may wait for the CPU, but not this many times as long as it may use it
_KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ", "PYTHONPATH", "VIRTUAL_ENV")
# Memory goes back when a picture is freed (`TRIM`, of the heap, from which all but the largest blocks come: `MMAP`);
# keeping it for the next one would save nothing, because huge pages make new memory cheap where the kernel has them.
_SETTINGS = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MALLOC_ARENA_MAX"), "1") | {
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(2 * 2**20),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}

# Why a process was replaced: its caller left (or the deadline passed), its CPU time was used up, it neither answered
# nor used its time, or it ended by itself (a crash inside a decoder, the kernel's out-of-memory killer).
KillReason = Literal["caller", "cpu", "hang", "crash"]
KILL_REASONS: tuple[KillReason, ...] = ("caller", "cpu", "hang", "crash")


@dataclass(eq=False)
class _Decoding:
    data: bytes
    done: Future[Image.Image] = field(default_factory=Future)
    process: subprocess.Popen[bytes] | None = None
    left: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def taken_by(self, process: subprocess.Popen[bytes] | None) -> bool:
        """Returns false where the caller has left already."""
        with self.lock:
            self.process = process
            return not self.left

    def leave(self) -> None:
        """The caller wants nothing more: a process that works for it is killed."""
        with self.lock:
            self.left = True
            if self.process is not None:
                self.process.kill()


class Decoders:
    """The pool.

    Args:
        number: of processes.
        cpu_s: CPU seconds that one picture may take.
        stuck_s: how long a process may be missing before `alive` turns false.
        on_seconds: told how long each decoding took.
        on_kill: told why a process had to be replaced.
        on_ready: told the number of usable processes whenever it changes.
    """

    def __init__(
        self,
        number: int,
        max_pixels: int,
        cpu_s: float,
        stuck_s: float,
        on_seconds: Callable[[float], None] = lambda seconds: None,
        on_kill: Callable[[KillReason], None] = lambda reason: None,
        on_ready: Callable[[int], None] = lambda number: None,
    ) -> None:
        self.max_pixels, self.cpu_s = max_pixels, cpu_s
        self.on_seconds, self.on_kill, self._on_ready = on_seconds, on_kill, on_ready
        self.jobs: queue.SimpleQueue[_Decoding | None] = queue.SimpleQueue()
        self._stuck_s = stuck_s
        self._slots = [_Slot(self, f"decoder-{i}") for i in range(number)]

    def start(self) -> None:
        """Returns at once; pictures that come before a process is ready wait for it."""
        for slot in self._slots:
            slot.start()

    def stop(self) -> None:
        """Ends all processes. Does nothing the second time."""
        for slot in self._slots:
            slot.stop()
        for _ in self._slots:
            self.jobs.put(None)

    @property
    def alive(self) -> bool:
        """Every process is there, or has not been missing for long."""
        return all(slot.missing_s <= self._stuck_s for slot in self._slots)

    @property
    def trouble(self) -> str:
        """Why pictures cannot be decoded, for people; empty where they can."""
        return "" if self.alive else "pictures cannot be decoded; this process has to be restarted"

    @property
    def processes(self) -> list[int]:
        """The process ids of those that are usable."""
        return [slot.process.pid for slot in self._slots if slot.process is not None and slot.missing_since is None]

    def count(self) -> None:
        self._on_ready(len(self.processes))

    async def decode(self, data: bytes) -> Image.Image:
        """An uploaded file's picture: upright, RGB (in mode RGBX). Cancelling this kills the process that works on it.

        Raises:
            InvalidImage: what `read_picture` raises, or the file takes more time or memory than is allowed.
            Restarting: no process can be had.
        """
        job = _Decoding(data)
        self.jobs.put(job)
        future = asyncio.wrap_future(job.done)
        try:
            while True:
                done, _ = await asyncio.wait({future}, timeout=POLL_S)
                if done:
                    return future.result()
                if not self.alive:
                    raise Restarting("this server cannot decode pictures and is about to be restarted; try again later")
        finally:
            if not future.done():
                job.leave()
                future.cancel()


class _Slot:
    """One process after the other, and the thread that looks after it."""

    def __init__(self, pool: Decoders, name: str) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.missing_since: float | None = None
        self._starting = False  # for the first time since it is missing; that has a limit of its own
        self._pool, self._name = pool, name
        self._closing = threading.Event()
        self._socket: socket.socket | None = None
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)

    def start(self) -> None:
        self.missing_since, self._starting = time.monotonic(), True
        self._thread.start()

    def stop(self) -> None:
        self._closing.set()
        if self.process is not None:
            self.process.kill()

    @property
    def missing_s(self) -> float:
        since = self.missing_since
        return 0.0 if since is None or self._starting else time.monotonic() - since

    # -- the thread --------------------------------------------------------------------------------------------

    def _main(self) -> None:
        try:
            while self._ensure_process():
                job = self._pool.jobs.get()
                if job is None or self._closing.is_set():
                    return
                self._serve(job)
                del job  # with its picture, or it would stay until the next one comes
        finally:
            self._end_process()

    def _serve(self, job: _Decoding) -> None:
        """Whatever happens, the caller hears of it and the thread goes on."""
        if not job.done.set_running_or_notify_cancel():
            return
        started = time.monotonic()
        outcome: Image.Image | BaseException
        try:
            if not self._is_there() and not self._replaced():
                raise InferenceFailed("the server is shutting down")
            outcome = self._decoded(job)
        except BaseException as error:
            outcome = error
        self._pool.on_seconds(time.monotonic() - started)
        if isinstance(outcome, BaseException):
            job.done.set_exception(outcome)
        else:
            job.done.set_result(outcome)

    def _decoded(self, job: _Decoding) -> Image.Image:
        assert self.process is not None
        assert self._socket is not None
        if not job.taken_by(self.process):
            raise InferenceFailed("the caller has gone")
        try:
            message, files = self._exchange(self._socket, job.data)
        except TimeoutError:
            self.process.kill()
            raise self._failure(job, hung=True) from None
        except ConnectionError:
            message, files = b"", []
        if not job.taken_by(None) or not message:
            for file in files:
                os.close(file)
            raise self._failure(job)
        return self._read(json.loads(message), files)

    def _exchange(self, connection: socket.socket, data: bytes) -> tuple[bytes, list[int]]:
        file = os.memfd_create("upload")
        try:
            with open(file, "wb", closefd=False) as writer:
                writer.write(data)
            job = {"max_pixels": self._pool.max_pixels, "cpu_s": self._pool.cpu_s}
            socket.send_fds(connection, [json.dumps(job).encode()], [file])
        finally:
            os.close(file)
        connection.settimeout(self._pool.cpu_s * HANG_FACTOR)
        message, files, _, _ = socket.recv_fds(connection, MESSAGE_BYTES, 1)
        return message, files

    def _read(self, answer: dict[str, object], files: list[int]) -> Image.Image:
        if not files:
            if "memory" in answer:
                raise InvalidImage(f"decoding it takes more memory than the {answer['memory']:,} bytes allowed")
            raise InvalidImage(str(answer["invalid"]))
        (file,) = files
        try:
            return picture_of(file, *answer["size"])  # type: ignore[misc]
        finally:
            os.close(file)

    def _failure(self, job: _Decoding, hung: bool = False) -> HunyuanError:
        """The process has ended, or is being killed: what its caller is told, and a new process."""
        assert self.process is not None
        self._set_missing()
        status = self.process.wait()
        reason, error = self._why(job, hung, status)
        self._pool.on_kill(reason)
        if reason != "caller":
            logger.warning("a decoder was replaced: %s (status %d)", reason, status)
        return error

    def _why(self, job: _Decoding, hung: bool, status: int) -> tuple[KillReason, HunyuanError]:
        if job.left:
            return "caller", InferenceFailed("the caller has gone")
        if hung:
            return "hang", InferenceFailed("decoding the picture did not end; the server's log has the details")
        if status == -signal.SIGPROF:
            limit = f"{self._pool.cpu_s:g} seconds of CPU time"
            return "cpu", InvalidImage(f"decoding it takes more than the {limit} allowed; save it in a simpler way")
        if status == -signal.SIGKILL:
            return "crash", OutOfMemory("the server ran out of memory while it decoded the picture; try a smaller one")
        return "crash", InvalidImage("the decoder failed on this file; save it again in another program or format")

    # -- the process -------------------------------------------------------------------------------------------

    def _is_there(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def _replaced(self) -> bool:
        """An idle process has ended by itself."""
        if not self._closing.is_set():
            self._pool.on_kill("crash")
            logger.warning("an idle decoder ended by itself")
        return self._ensure_process()

    def _ensure_process(self) -> bool:
        """Starts a process where there is none; tries for ever. Returns false when the pool is closing."""
        failed = False
        while not self._closing.is_set():
            if self._is_there():
                return True
            self._set_missing()
            self._end_process()
            self._starting = not failed
            try:
                self._start_process()
            except (OSError, EOFError) as error:
                failed, self._starting = True, False
                if not self._closing.is_set():  # or `stop` has killed it
                    logger.error("a decoder cannot be started: %s: %s", type(error).__name__, error)
                self._closing.wait(POLL_S)
            else:
                self.missing_since, self._starting = None, False
                self._pool.count()
                return True
        return False

    def _start_process(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket = ours
        with theirs:
            command = [sys.executable, "-P", "-m", MODULE, str(theirs.fileno()), str(os.getpid())]
            self.process = subprocess.Popen(
                command,
                cwd="/",
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
            )
        ours.settimeout(START_WITHIN_S)
        if ours.recv(len(READY)) != READY:
            raise EOFError("it ended before it was ready")

    def _end_process(self) -> None:
        if self._socket is not None:
            self._socket.close()
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def _set_missing(self) -> None:
        if self.missing_since is None:
            self.missing_since = time.monotonic()
            self._pool.count()


def _environment() -> dict[str, str]:
    """What it needs to find its code; no secret of the service's."""
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    path = [str(Path(__file__).resolve().parents[2]), *filter(None, [kept.get("PYTHONPATH")])]
    return kept | _SETTINGS | {"PYTHONPATH": os.pathsep.join(path)}
