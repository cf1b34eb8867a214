"""Runs inside the sandbox of replay_image.py: starts the entry point, checks where it is, sends one edit, ends it.

Knows the container's paths and the HTTP interface; uses nothing that the image does not have.
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from PIL import Image

URL = "http://127.0.0.1:8000"
READY_WITHIN_S = 240
LOG = Path("/cache/serve.log")


def main() -> int:
    check_surroundings()
    with LOG.open("wb") as log:
        server = subprocess.Popen([sys.argv[1]], stdout=log, stderr=subprocess.STDOUT)
    try:
        started = time.monotonic()
        wait_until_ready(server)
        print(f"  ready after {time.monotonic() - started:.0f} s", flush=True)
        edit()
    except Exception as error:
        print(f"  {type(error).__name__}: {error}\n{LOG.read_text()[-4000:]}", flush=True)
        return 1
    finally:
        server.send_signal(signal.SIGTERM)
        print(f"  ended on SIGTERM with status {server.wait(timeout=60)}", flush=True)
    print(f"  written: {sorted(str(path) for path in Path('/cache').iterdir())}", flush=True)
    return 0


def check_surroundings() -> None:
    """That the sandbox is what it claims: not root, no network but loopback, nothing writable but /cache."""
    assert os.getuid() != 0, "runs as root"
    links = set(os.listdir("/sys/class/net")) if Path("/sys/class/net").exists() else {"lo"}
    assert links == {"lo"}, f"sees network devices {links}"
    for folder in ("/", "/app/.venv", "/home/bentoml/bento/src", "/models", "/usr"):
        assert not os.access(folder, os.W_OK), f"{folder} is writable"
    assert os.access("/cache", os.W_OK), "/cache is not writable"


def wait_until_ready(server: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < until:
        if server.poll() is not None:
            raise RuntimeError(f"the server ended with status {server.returncode}")
        try:
            with urllib.request.urlopen(f"{URL}/readyz", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise RuntimeError(f"not ready within {READY_WITHIN_S} s")


def edit() -> None:
    picture = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(picture, "PNG")
    fields = (("prompt", b"Make it blue"), ("seed", b"1"), ("steps", b"2"))
    parts = [f'--x\r\nContent-Disposition: form-data; name="{n}"\r\n\r\n'.encode() + v + b"\r\n" for n, v in fields]
    head = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
    body = b"".join([*parts, head, picture.getvalue(), b"\r\n--x--\r\n"])
    request = urllib.request.Request(f"{URL}/edit", body, {"Content-Type": "multipart/form-data; boundary=x"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        image = Image.open(io.BytesIO(answer.read()))
        facts = {name: answer.headers[name] for name in ("X-Seed", "X-Steps", "X-Model", "X-Image-Size")}
    assert image.format == "PNG", image.format
    print(f"  edit: {image.size} {json.dumps(facts)}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
