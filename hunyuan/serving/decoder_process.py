"""One process that decodes pictures: file bytes in, RGB bytes out, one at a time, until its socket closes.

Knows limits and memory files. Which process gets which picture, and when one is killed, is `decoders.py`; what a
file may hold is `hunyuan.pictures`. Started as `python -m hunyuan.serving.decoder_process SOCKET PARENT`.

A job is a message of JSON with the file in a memory file (memfd) beside it; so is the answer, with 4 bytes per pixel.
Nothing has a name in any file system, so nothing is left behind by a process that is killed.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

from PIL import Image

from hunyuan.errors import InvalidImage
from hunyuan.pictures.reader import read_picture

MESSAGE_BYTES = 4096
READY = b"ready"
PIXEL = "RGBX"  # as Pillow keeps RGB in memory: packing and unpacking are plain copies
PIXEL_BYTES = len(PIXEL)
_KEPT_BYTES = 64 * 2**20  # of the memory file between two pictures: new pages cost more than what is written to them
_BYTES_A_PIXEL = 32  # of memory at the worst moment: a picture with alpha is there in several forms at once
_BASE_BYTES = 256 * 2**20
_PR_SET_PDEATHSIG = 1


def memory_limit(max_pixels: int) -> int:
    """Bytes that decoding may take beside what the process has when it is ready."""
    return _BASE_BYTES + _BYTES_A_PIXEL * max_pixels


def main(descriptor: int, parent: int) -> None:
    _end_with(parent)
    # Both come to the whole process group from a terminal or a supervisor; the service says when this process ends.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a dump would put somebody's picture on a disk
    Image.MAX_IMAGE_PIXELS = None  # the limit is ours, and its message too
    ready_bytes = _address_space()
    connection = socket.socket(fileno=descriptor)
    pixels = os.memfd_create("pixels")
    connection.send(READY)
    while True:
        message, files, _, _ = socket.recv_fds(connection, MESSAGE_BYTES, 1)
        if not message:
            return  # the service has gone
        if os.fstat(pixels).st_size > _KEPT_BYTES:
            os.ftruncate(pixels, 0)
        _answer(connection, json.loads(message), files[0], pixels, ready_bytes)


def _answer(connection: socket.socket, job: dict[str, Any], file: int, pixels: int, ready_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (ready_bytes + memory_limit(job["max_pixels"]), resource.RLIM_INFINITY))
    # Counts CPU seconds of all threads; the kernel ends the process, wherever it is then.
    signal.setitimer(signal.ITIMER_PROF, job["cpu_s"])
    answer: dict[str, Any]
    try:
        with open(file, "rb") as upload:
            upload.seek(0)
            picture = read_picture(upload.read(), job["max_pixels"])
        _write(picture, pixels)
        answer = {"size": picture.size}
    except InvalidImage as error:
        answer = {"invalid": str(error).removeprefix(f"{error.field}: ")}
    except MemoryError:
        answer = {"memory": memory_limit(job["max_pixels"])}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    message = json.dumps(answer).encode()
    if "size" in answer:
        socket.send_fds(connection, [message], [pixels])
    else:
        connection.send(message)


def _write(picture: Image.Image, file: int) -> None:
    """The pixels' bytes into the memory file, a band of rows at a time so that no second copy is needed.

    The service has read the last picture before it sends a job, so that the same file can be used again.
    """
    width, height = picture.size
    rows = max(1, 2**20 // (width * PIXEL_BYTES))
    for top in range(0, height, rows):
        band = picture.crop((0, top, width, min(top + rows, height)))
        os.pwrite(file, band.tobytes("raw", PIXEL), top * width * PIXEL_BYTES)


def _end_with(parent: int) -> None:
    """The kernel kills this process when the thread that started it ends, be it by SIGKILL."""
    prctl: Callable[..., int] = ctypes.CDLL(None, use_errno=True).prctl
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before that was asked for
        os._exit(0)


def _address_space() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[0]) * mmap.PAGESIZE


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
