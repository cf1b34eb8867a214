"""The pool of decoding processes: right pixels, limits, and that nothing goes on for a caller who has left."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pytest
from pictures.picture_files import jpeg_of_empty_scans
from server_process import ROOT, photo_bytes

from hunyuan.errors import InvalidImage, OutOfMemory
from hunyuan.pictures.reader import load_image, read_picture
from hunyuan.serving import decoders
from hunyuan.serving.decoders import Decoders
from hunyuan.serving.http_errors import Restarting
from hunyuan.serving.pixel_file import picture_of

MAX_PIXELS = 50_000_000


@cache
def slow() -> bytes:
    """A file that nobody's structure check refuses and that takes long: 36 million pixels of the slowest kind."""
    return photo_bytes(6000, 6000, "PNG", compress_level=1)


class Pool(Decoders):
    """One that remembers what it was told."""

    def __init__(self, number: int = 1, cpu_s: float = 30, stuck_s: float = 60) -> None:
        self.kills: list[str] = []
        self.seconds: list[float] = []
        super().__init__(number, MAX_PIXELS, cpu_s, stuck_s, self.seconds.append, self.kills.append)


@asynccontextmanager
async def pool(**options: Any) -> AsyncIterator[Pool]:
    started = Pool(**options)
    started.start()
    try:
        await started.decode(photo_bytes())  # the first process is there
        yield started
    finally:
        started.stop()


def run(work: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(work, 120)

    asyncio.run(bounded())


async def until(condition: Any, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.01)


def has_ended(pid: int) -> bool:
    """Nobody may have asked for its status yet."""
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


async def killed(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    await until(lambda: has_ended(pid), 10)


@pytest.mark.parametrize(
    "data",
    [photo_bytes(64, 48), photo_bytes(61, 47, "PNG", "LA"), photo_bytes(1000, 999, "WEBP"), photo_bytes(16, 128)],
)
def test_the_pixels_are_those_of_decoding_here(data: bytes) -> None:
    async def work() -> None:
        async with pool() as decoders:
            picture, here = await decoders.decode(data), read_picture(data, MAX_PIXELS)
            assert picture.convert("RGB").tobytes() == here.tobytes()
            assert load_image(picture).tobytes() == here.tobytes()  # what the engine makes of it

    run(work())


def test_a_picture_stays_as_it_is() -> None:
    """Not copied: whatever becomes of the process and of later pictures."""

    async def work() -> None:
        async with pool() as decoders:
            first, second = photo_bytes(64, 48), photo_bytes(1200, 1000, "PNG")
            pictures = [(data, await decoders.decode(data)) for data in (first, second, first)]
            await killed(decoders.processes[0])
            for data, picture in pictures:
                assert picture.convert("RGB").tobytes() == read_picture(data, MAX_PIXELS).tobytes()

    run(work())


def test_nothing_shrinks_or_changes_a_picture_under_the_service() -> None:
    file = os.memfd_create("pixels", os.MFD_ALLOW_SEALING)
    os.write(file, bytes(16 * 16 * 4))
    picture = picture_of(file, 16, 16)
    for change in (lambda: os.ftruncate(file, 0), lambda: os.pwrite(file, b"x", 0)):
        with pytest.raises(PermissionError):
            change()
    with pytest.raises(ValueError, match="length"):
        picture_of(file, 16, 17)  # larger than what is there
    os.close(file)
    assert picture.convert("RGB").tobytes() == bytes(16 * 16 * 3)


@pytest.mark.slow
def test_a_waiting_process_holds_no_picture_and_uses_no_cpu() -> None:
    """Of 12 megapixels, which are 48 MB, and of more that are claimed than are there."""

    async def work() -> None:
        async with pool() as decoders:
            process = psutil.Process(decoders.processes[0])
            before = process.memory_info().rss
            whole = photo_bytes(4000, 3000, "PNG", compress_level=1)
            for data in (whole, whole[: len(whole) // 2], photo_bytes(4000, 3000), photo_bytes(2000, 1500, "WEBP")):
                with suppress(InvalidImage):
                    await decoders.decode(data)
            await asyncio.sleep(0.1)
            assert process.memory_info().rss - before < 12 * 2**20
            used = sum(process.cpu_times()[:2])
            await asyncio.sleep(1)
            assert sum(process.cpu_times()[:2]) == used

    run(work())


def test_a_refusal_says_the_same_as_here() -> None:
    async def work() -> None:
        async with pool() as decoders:
            for data in (b"", b"no picture", photo_bytes()[:-500], photo_bytes(15, 40)):
                with pytest.raises(InvalidImage) as here:
                    read_picture(data, MAX_PIXELS)
                with pytest.raises(InvalidImage) as there:
                    await decoders.decode(data)
                assert str(there.value) == str(here.value)
            assert decoders.kills == []

    run(work())


@pytest.mark.slow
def test_a_caller_who_leaves_ends_the_work() -> None:
    async def work() -> None:
        async with pool() as decoders:
            (worker,) = decoders.processes
            task = asyncio.create_task(decoders.decode(slow()))
            await asyncio.sleep(0.05)
            task.cancel()
            await until(lambda: not psutil.pid_exists(worker), 10)
            assert (await decoders.decode(photo_bytes())).size == (64, 48)
            assert decoders.kills == ["caller"]
            assert worker not in decoders.processes

    run(work())


@pytest.mark.slow
def test_a_caller_who_leaves_in_the_line_is_never_worked_for() -> None:
    async def work() -> None:
        async with pool() as decoders:
            first = asyncio.create_task(decoders.decode(slow()))
            second = asyncio.create_task(decoders.decode(slow()))
            await asyncio.sleep(0.05)
            second.cancel()
            assert (await first).size == (6000, 6000)
            assert (await decoders.decode(photo_bytes())).size == (64, 48)
            assert len(decoders.seconds) == 3  # the pool's own first one, the slow one, the last one
            assert decoders.kills == []

    run(work())


def test_a_file_that_takes_too_long_is_refused_with_the_limit() -> None:
    async def work() -> None:
        async with pool(cpu_s=0.2) as decoders:
            with pytest.raises(InvalidImage, match=r"image: decoding it takes more than the 0\.2 seconds of CPU time"):
                await decoders.decode(slow())
            assert (await decoders.decode(photo_bytes())).size == (64, 48)
            assert decoders.kills == ["cpu"]

    run(work())


@pytest.mark.slow
def test_time_is_counted_for_each_file() -> None:
    async def work() -> None:
        async with pool(cpu_s=0.5) as decoders:
            data = photo_bytes(1500, 1500, "PNG")
            while sum(decoders.seconds) <= 0.6:  # more than one file may take, whatever the machine needs for it
                await decoders.decode(data)
            assert decoders.kills == []

    run(work())


def test_a_process_that_neither_answers_nor_works_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoders, "HANG_FACTOR", 0.5)

    async def work() -> None:
        async with pool(cpu_s=1) as decoders:
            (worker,) = decoders.processes
            os.kill(worker, signal.SIGSTOP)
            with pytest.raises(Exception, match="did not end"):
                await decoders.decode(photo_bytes())
            assert decoders.kills == ["hang"]
            assert (await decoders.decode(photo_bytes())).size == (64, 48)

    run(work())


def test_a_process_that_the_system_killed_is_no_fault_of_the_file() -> None:
    async def work() -> None:
        async with pool() as decoders:
            (worker,) = decoders.processes
            task = asyncio.create_task(decoders.decode(slow()))
            await asyncio.sleep(0.1)
            os.kill(worker, signal.SIGKILL)
            with pytest.raises(OutOfMemory):
                await task
            await until(lambda: decoders.processes)
            await killed(decoders.processes[0])  # an idle one
            assert (await decoders.decode(photo_bytes())).size == (64, 48)
            assert set(decoders.kills) == {"crash"}

    run(work())


def test_a_crash_inside_a_decoder_is_refused() -> None:
    async def work() -> None:
        async with pool() as decoders:
            (worker,) = decoders.processes
            task = asyncio.create_task(decoders.decode(slow()))
            await asyncio.sleep(0.1)
            os.kill(worker, signal.SIGSEGV)
            with pytest.raises(InvalidImage, match="the decoder failed on this file"):
                await task

    run(work())


def test_memory_has_a_limit() -> None:
    """Decoded in a process that may take nothing beside what it has, even a small picture is too much."""
    code = (
        "import resource, sys; from hunyuan.serving import decoder_process as d; "
        "d._BASE_BYTES = d._BYTES_A_PIXEL = 0; d.main(int(sys.argv[1]), int(sys.argv[2]))"
    )
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-c", code, str(theirs.fileno()), str(os.getpid())]
    with ours, subprocess.Popen(command, pass_fds=(theirs.fileno(),), cwd=ROOT) as process:
        theirs.close()
        assert ours.recv(100) == b"ready"
        file = os.memfd_create("upload")
        os.write(file, slow())
        socket.send_fds(ours, [json.dumps({"max_pixels": MAX_PIXELS, "cpu_s": 30}).encode()], [file])
        os.close(file)
        assert json.loads(ours.recv(4096)) == {"memory": 0}
        process.kill()


def test_what_memory_ran_out_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        async with pool() as decoders:
            monkeypatch.setattr(decoders._slots[0], "_exchange", lambda *given: (b'{"memory": 1234567}', []))
            with pytest.raises(InvalidImage, match="more memory than the 1,234,567 bytes allowed"):
                await decoders.decode(photo_bytes())

    run(work())


@pytest.mark.slow
def test_a_pool_that_cannot_be_refilled_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        async with pool(stuck_s=0.3) as decoders:
            assert decoders.alive
            assert decoders.trouble == ""
            monkeypatch.setattr("hunyuan.serving.decoders.MODULE", "no_such_module")
            await killed(decoders.processes[0])
            with pytest.raises(Restarting):
                await decoders.decode(photo_bytes())
            assert not decoders.alive
            assert "restarted" in decoders.trouble
            assert decoders.processes == []

    run(work())


def test_processes_end_with_the_pool() -> None:
    async def work() -> None:
        async with pool(number=2) as decoders:
            await until(lambda: len(decoders.processes) == 2)
            workers = decoders.processes
        await until(lambda: not any(psutil.pid_exists(pid) for pid in workers), 10)

    run(work())


KILLED = """
import asyncio, sys, time
from hunyuan.serving.decoders import Decoders
async def main():
    pool = Decoders(2, 50_000_000, 60, 60)
    pool.start()
    with open(sys.argv[1], "rb") as file:
        slow = file.read()
    work = [asyncio.create_task(pool.decode(slow)) for _ in range(2)]
    while len(pool.processes) < 2:
        await asyncio.sleep(.01)
    await asyncio.sleep(.1)
    print(*pool.processes, flush=True)
    await asyncio.gather(*work)
asyncio.run(main())
"""


def test_processes_end_with_a_service_that_is_killed(tmp_path: Path) -> None:
    """In the middle of their work, where they look at nothing."""
    (tmp_path / "slow.png").write_bytes(slow())
    command = [sys.executable, "-c", KILLED, str(tmp_path / "slow.png")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, cwd=tmp_path) as service:
        assert service.stdout is not None
        workers = [int(pid) for pid in service.stdout.readline().split()]
        assert len(workers) == 2
        assert not any(has_ended(pid) for pid in workers)
        service.kill()
    end = time.monotonic() + 1
    while not all(has_ended(pid) for pid in workers):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_decoding_process_loads_no_model() -> None:
    code = "import sys, hunyuan.serving.decoder_process; print('torch' in sys.modules, 'bentoml' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert shown.stdout.split() == ["False", "False"]


def test_attacks_end_by_their_own_time() -> None:
    """Whatever the structure's checks let through."""

    async def work() -> None:
        async with pool(cpu_s=0.5) as decoders:
            started = time.monotonic()
            with pytest.raises(InvalidImage):
                await decoders.decode(jpeg_of_empty_scans(7040, 7040, 25_000))
            assert time.monotonic() - started < 10

    run(work())
