"""One process that decodes pictures: file bytes in, RGB bytes out, one at a time, until its socket closes.

Knows limits and memory files. Which process gets which picture, and when one is killed, is `decoders.py`; what a
file may hold is `hunyuan.pictures`. Started as `python -m hunyuan.serving.decoder_process SOCKET PARENT`.

A job is a message of JSON with the file in a memory file (memfd) beside it; so is the answer, with 4 bytes per pixel
in a new one each time: the service keeps it as the picture. Nothing has a name in any file system, so nothing is left
behind by a process that is killed.
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
import warnings
from collections.abc import Callable
from typing import Any, BinaryIO

from PIL import Image

from hunyuan.errors import InvalidImage
from hunyuan.pictures.reader import read_picture
from hunyuan.serving.pixel_file import new_pixel_file, write_pixels

MESSAGE_BYTES = 4096
READY = b"ready"
_BYTES_A_PIXEL = 32  # of memory at the worst moment: a picture with alpha is there in several forms at once
_BASE_BYTES = 256 * 2**20
_PR_SET_PDEATHSIG = 1


def memory_limit(max_pixels: int) -> int:
    """Bytes that decoding may take beside what the process has when it is ready."""
    return _BASE_BYTES + _BYTES_A_PIXEL * max_pixels


def main(descriptor: int, parent: int) -> None:
    _end_with(parent)
    # They come to the whole process group from a terminal or a supervisor; the service says when this process ends.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a dump would put somebody's picture on a disk
    Image.MAX_IMAGE_PIXELS = None  # the limit is ours, and its message too
    ready_bytes = _address_space()
    connection = socket.socket(fileno=descriptor)
    warnings.simplefilter("ignore")  # Pillow's remarks on odd files; the log is not for them
    connection.send(READY)
    while True:
        message, files, _, _ = socket.recv_fds(connection, MESSAGE_BYTES, 1)
        if not message:
            return  # the service has gone
        _answer(connection, json.loads(message), files[0], ready_bytes)


def _answer(connection: socket.socket, job: dict[str, Any], file: int, ready_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (ready_bytes + memory_limit(job["max_pixels"]), resource.RLIM_INFINITY))
    # Counts CPU seconds of all threads; the kernel ends the process, wherever it is then.
    signal.setitimer(signal.ITIMER_PROF, job["cpu_s"])
    answer: dict[str, Any]
    with new_pixel_file() as pixels:
        try:
            answer = {"size": _decode(file, pixels, job["max_pixels"])}
        except InvalidImage as error:
            answer = {"invalid": str(error).removeprefix(f"{error.field}: ")}
        except MemoryError:
            answer = {"memory": memory_limit(job["max_pixels"])}
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        # The picture is freed by now: no process that waits for its next job holds one.
        message = json.dumps(answer).encode()
        if "size" in answer:
            socket.send_fds(connection, [message], [pixels.fileno()])
        else:
            connection.send(message)


def _decode(file: int, pixels: BinaryIO, max_pixels: int) -> tuple[int, int]:
    with open(file, "rb") as upload:
        upload.seek(0)
        picture = read_picture(upload.read(), max_pixels)
    write_pixels(picture, pixels)
    return picture.size


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
