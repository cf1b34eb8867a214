#!/usr/bin/env python
"""Feeds thousands of broken pictures to the code that opens uploads, and some of them to a server.

    scripts/checks/fuzz_images.py [--files 2000] [--http 2000] [--warm-up 4000] [--seed 0] [--url http://127.0.0.1:8000]

Every file must end as a picture or as `InvalidImage`, within two seconds, and leave no memory behind. Over HTTP every
answer must be 200 or a 4xx with our envelope. Without --url, the server is started here, with the stand-in engine
(`stand_in_service.py`): what a broken file can break comes before the model. Exits 1 when anything else happened.

The same seed makes the same files; `--only NUMBER` makes one of them again. A crash or a hang inside a decoder ends
this process with a traceback: run it again with `--verbose`, and the last line names the file.
"""

from __future__ import annotations

import argparse
import faulthandler
import resource
import struct
import sys
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import httpx
import numpy as np
import psutil
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from hunyuan.compare.sample_photos import encoded, photo  # noqa: E402
from hunyuan.errors import InvalidImage  # noqa: E402
from hunyuan.pictures.reader import read_picture  # noqa: E402
from scripts.support.local_server import STAND_IN, LocalServer, key_headers, server_for  # noqa: E402

MAX_PIXELS = 50_000_000  # the service's default
SLOW_S = 2.0
HANG_S = 20.0
MEMORY_GROWTH = 1.05
WARM_UP = 0.2  # the part of the files in process after which memory should have found its level
# The framework keeps some kilobytes of each request until its own timeout, 30 s after this, would have passed. With
# the usual 300 s a run would be over before the memory finds its level.
SETTINGS = {"HUNYUAN_REQUEST_TIMEOUT_S": "5"}
ENVELOPE = {"error", "message", "request_id"}


@dataclass
class Report:
    """What became of the files. `problems` is empty when all went as it should."""

    outcomes: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    slowest: str = ""
    mib_before: float = 0.0
    mib_after: float = 0.0

    def note(self, name: str, outcome: str, seconds: float) -> None:
        self.outcomes[outcome] += 1
        if seconds > self.slowest_s:
            self.slowest_s, self.slowest = seconds, name
        if seconds > SLOW_S:
            self.problems.append(f"{name}: took {seconds:.1f} s")

    def check_memory(self) -> None:
        if self.mib_after > self.mib_before * MEMORY_GROWTH:
            self.problems.append(f"memory grew from {self.mib_before:.0f} to {self.mib_after:.0f} MiB")

    def print(self, title: str) -> None:
        print(f"{title}: {sum(self.outcomes.values())} files, {len(self.problems)} problems")
        for outcome, count in self.outcomes.most_common():
            print(f"  {count:6} {outcome}")
        print(f"  slowest {self.slowest_s:.3f} s ({self.slowest})")
        print(f"  memory {self.mib_before:.0f} MiB after warm-up, {self.mib_after:.0f} MiB at the end")
        for problem in self.problems[:20]:
            print(f"  PROBLEM {problem}")


@lru_cache(maxsize=1)
def originals() -> tuple[tuple[str, bytes], ...]:
    """Whole files of every kind that is allowed: modes, compression, rotation, colour profiles, second pictures."""
    image, small = photo(160, 120), photo(40, 30, seed=1)
    alpha = image.copy()
    alpha.putalpha(small.convert("L").resize(image.size))
    deep = Image.fromarray(np.linspace(0, 65535, 160 * 120).reshape(120, 160).astype(np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 6
    return (
        ("rgb.png", encoded(image, "PNG", icc_profile=b"no profile" * 20, exif=exif)),
        ("palette.png", encoded(image.quantize(64), "PNG", transparency=3)),
        ("alpha.png", encoded(alpha, "PNG")),
        ("deep.png", encoded(deep, "PNG")),
        ("bits.png", encoded(image.convert("1"), "PNG")),
        ("frames.png", encoded(image, "PNG", save_all=True, append_images=[image.rotate(90)])),
        ("photo.jpg", encoded(image, "JPEG", quality=90, exif=exif)),
        ("progressive.jpg", encoded(image, "JPEG", progressive=True, subsampling=0)),
        ("grey.jpg", encoded(image.convert("L"), "JPEG")),
        ("cmyk.jpg", encoded(image.convert("CMYK"), "JPEG")),
        ("phone.jpg", encoded(image, "MPO", save_all=True, append_images=[small])),
        ("lossy.webp", encoded(image, "WEBP", exif=exif)),
        ("lossless.webp", encoded(image, "WEBP", lossless=True)),
        ("alpha.webp", encoded(alpha, "WEBP")),
        ("photo.avif", encoded(image, "AVIF", speed=10, exif=exif)),
        ("frames.webp", encoded(image, "WEBP", save_all=True, append_images=[image.rotate(90)])),
    )


def flip(data: bytes, rng: np.random.Generator) -> bytes:
    """1 to 32 bytes become others; half of the time all of them in the header."""
    changed = bytearray(data)
    end = min(len(data), 128) if rng.random() < 0.5 else len(data)
    for at in rng.integers(0, end, rng.integers(1, 33)):
        changed[at] ^= int(rng.integers(1, 256))
    return bytes(changed)


def cut(data: bytes, rng: np.random.Generator) -> bytes:
    """The end is missing, or a piece of the middle."""
    start, end = sorted(int(n) for n in rng.integers(0, len(data) + 1, 2))
    return data[:start] if rng.random() < 0.5 else data[:start] + data[end:]


def splice(data: bytes, rng: np.random.Generator) -> bytes:
    """The beginning of one file, the end of another of any format."""
    other = originals()[int(rng.integers(len(originals())))][1]
    return data[: int(rng.integers(len(data)))] + other[int(rng.integers(len(other))) :]


def repeat(data: bytes, rng: np.random.Generator) -> bytes:
    """A piece comes twice, as a chunk or a marker may."""
    start, end = sorted(int(n) for n in rng.integers(0, len(data) + 1, 2))
    return data[:end] + data[start:]


def consistent(data: bytes, rng: np.random.Generator) -> bytes:
    """Flips, and for PNG right checksums over them: without those no mutation gets past the checksum."""
    changed = flip(data, rng)
    if not data.startswith(b"\x89PNG"):
        return changed
    out, at = bytearray(data[:8]), 8
    while at + 12 <= len(data):  # the lengths of the whole file: a flipped one would lose the thread
        (length,) = struct.unpack(">I", data[at : at + 4])
        kind, body = changed[at + 4 : at + 8], changed[at + 8 : at + 8 + length]
        if rng.random() < 0.9:
            kind = data[at + 4 : at + 8]
        out += struct.pack(">I", length) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        at += 12 + length
    return bytes(out)


def enlarge(data: bytes, rng: np.random.Generator) -> bytes:
    """A PNG that claims up to 8,000 x 8,000 pixels and holds few: memory is asked for before the end is noticed."""
    if not data.startswith(b"\x89PNG"):
        return flip(data, rng)
    width = int(rng.integers(16, 8000))
    size = struct.pack(">II", width, int(rng.integers(max(16, width // 8), min(8000, width * 8))))
    header = b"IHDR" + size + data[24:29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


MUTATIONS = (flip, cut, splice, repeat, consistent, enlarge)


def mutated(number: int, seed: int) -> tuple[str, bytes]:
    """File `number`: its name says what was done to which file."""
    rng = np.random.default_rng((seed, number))
    name, data = originals()[int(rng.integers(len(originals())))]
    mutation = MUTATIONS[int(rng.integers(len(MUTATIONS)))]
    return f"#{number} {mutation.__name__} {name}", mutation(data, rng)


def files(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    return (mutated(number, seed) for number in range(count))


def outcome_in_process(data: bytes) -> str:
    """Anything that is neither a picture nor `InvalidImage` is raised."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on odd files; a server does not stop for them either
        try:
            ready = read_picture(data, MAX_PIXELS)
        except InvalidImage:
            return "refused"
    if ready.mode != "RGB" or min(ready.size) < 1:
        raise AssertionError(f"read_picture returned {ready.mode} {ready.size}")
    return "a picture"


def fuzz_in_process(count: int, seed: int, watch: bool = False, verbose: bool = False) -> Report:
    """`watch`: a file that takes longer than HANG_S ends the process; a decoder cannot be interrupted from Python."""
    report, process = Report(), psutil.Process()
    for number, (name, data) in enumerate(files(count, seed)):
        if number == int(count * WARM_UP):
            report.mib_before = process.memory_info().rss / 2**20
        if watch:
            faulthandler.dump_traceback_later(HANG_S, exit=True)
        if verbose:
            print(name, flush=True)
        started = time.perf_counter()
        try:
            outcome = outcome_in_process(data)
        except Exception as error:
            outcome = f"{type(error).__name__}"
            report.problems.append(f"{name}: {type(error).__name__}: {error}")
        report.note(name, outcome, time.perf_counter() - started)
    if watch:
        faulthandler.cancel_dump_traceback_later()
    report.mib_after = process.memory_info().rss / 2**20
    report.check_memory()
    return report


def fuzz_over_http(server: LocalServer, count: int, seed: int, warm_up: int) -> Report:
    """Sends `warm_up + count` files; only the later ones may not make the server's memory grow."""
    report = Report()
    with httpx.Client(base_url=server.url, timeout=HANG_S, headers=key_headers()) as client:
        for number, (name, data) in enumerate(files(warm_up + count, seed)):
            if number == warm_up:
                report.mib_before = server.rss_mib() or 0.0
            started = time.perf_counter()
            try:
                answer = client.post("/edit", files={"image": ("x", data)}, data={"prompt": "x", "steps": "1"})
            except httpx.HTTPError as error:
                report.problems.append(f"{name}: no answer, {type(error).__name__}")
                report.note(name, type(error).__name__, 0.0)
                continue
            outcome = outcome_of_answer(answer)
            if not outcome.startswith(("200", "400 invalid_image")):
                report.problems.append(f"{name}: {outcome}")
            report.note(name, outcome, time.perf_counter() - started)
        answer = client.post("/edit", files={"image": ("x", originals()[0][1])}, data={"prompt": "x", "steps": "1"})
        if answer.status_code != 200:
            report.problems.append(f"a good file afterwards: {outcome_of_answer(answer)}")
    report.mib_after = server.rss_mib() or 0.0
    report.check_memory()
    return report


def outcome_of_answer(answer: httpx.Response) -> str:
    if answer.status_code == 200:
        return "200" if answer.content.startswith(b"\x89PNG") else "a 200 that is no PNG"
    try:
        body = answer.json()
    except ValueError:
        return f"{answer.status_code} without JSON"
    if not isinstance(body, dict) or set(body) != ENVELOPE:
        return f"{answer.status_code} without our envelope"
    return f"{answer.status_code} {body['error']}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=2000, help="broken files in process (default 2000)")
    parser.add_argument("--http", type=int, default=2000, help="broken files over HTTP (default 2000)")
    parser.add_argument("--warm-up", type=int, default=4000, help="files over HTTP before those (default 4000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--url", help="a server on this machine; default: one is started")
    parser.add_argument("--only", type=int, help="try the one file of this number, in process, and write it to x.bin")
    parser.add_argument("--verbose", action="store_true", help="name each file before it is tried in process")
    options = parser.parse_args()
    if options.only is not None:
        name, data = mutated(options.only, options.seed)
        Path("x.bin").write_bytes(data)
        print(f"{name}: {len(data)} bytes, written to x.bin: {outcome_in_process(data)}")
        return 0
    faulthandler.enable()
    reports = [fuzz_in_process(options.files, options.seed, watch=True, verbose=options.verbose)]
    reports[0].print("in process")
    print(f"  peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
    if options.http:
        with server_for(options.url, SETTINGS, STAND_IN) as server:
            reports.append(fuzz_over_http(server, options.http, options.seed, options.warm_up))
        reports[1].print("over HTTP")
    return 1 if any(report.problems for report in reports) else 0


if __name__ == "__main__":
    sys.exit(main())
