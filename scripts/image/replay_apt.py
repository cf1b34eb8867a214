#!/usr/bin/env python
"""Replays the system part of the image's Dockerfile in a Debian root made by debootstrap: `replay_apt.py ROOT`.

ROOT is made if it is not there (about 400 MB), from the package mirror that this machine uses. Runs, in order and with
the Dockerfile's own variables, its RUN steps up to the one that makes the Python environment: the user, apt-get, uv.
Debian stands for the CUDA base, so this shows that the steps and package names work together on a Debian system; not
that Ubuntu's repositories have them, nor anything about CUDA or Python 3.12. Needs root and debootstrap.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.image.replay_image import build_bento, image_environment

SUITE = "bookworm"
SEARCH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
APT = ("sources.list", "sources.list.d/debian.sources")


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__.split("\n")[0], file=sys.stderr)
        return 2
    root = Path(sys.argv[1]).resolve()
    if not (root / "bin/sh").exists():
        subprocess.run(["debootstrap", "--variant=minbase", SUITE, str(root), *mirror()], check=True)
    dockerfile = (build_bento(root.parent / "home") / "env/docker/Dockerfile").read_text()
    environment = image_environment(dockerfile)
    arguments = dict(re.findall(r"^ARG (BENTO_\w+)=(\S+)$", dockerfile, flags=re.MULTILINE))
    own = environment | arguments | {"PATH": SEARCH, "HOME": "/root"}
    for name in ("/etc/resolv.conf", "/etc/hosts"):
        shutil.copy(name, root / name.lstrip("/"))
    if "PIP_CERT" in os.environ:  # an index behind a certificate of its own
        shutil.copy(os.environ["PIP_CERT"], root / "index.crt")
        own["PIP_CERT"] = "/index.crt"
    before = mib(root)
    for step in steps(dockerfile):
        started = time.monotonic()
        command = ["chroot", str(root), "/bin/sh", "-c", step]
        result = subprocess.run(command, env=own, capture_output=True, text=True, check=False)
        took = time.monotonic() - started
        print(f"[{took:4.0f} s] status {result.returncode}: {' '.join(step.split())[:90]}", flush=True)
        if result.returncode:
            print(result.stdout[-2000:] + result.stderr[-2000:])
            return 1
    print(f"{before} MiB before these steps, {mib(root)} after")
    return 0


def mib(root: Path) -> int:
    """Files' sizes on disk, as `du` has them."""
    return int(subprocess.run(["du", "-smx", str(root)], check=True, capture_output=True, text=True).stdout.split()[0])


def steps(dockerfile: str) -> list[str]:
    """The RUN commands before `uv venv`."""
    joined = dockerfile.replace("\\\n", " ")
    found = re.findall(r"^RUN (.*)$", joined, flags=re.MULTILINE)
    end = next(i for i, step in enumerate(found) if "uv venv" in step)
    return found[:end]


def mirror() -> list[str]:
    """The address that this machine's apt takes Debian from; nothing, and so debootstrap's own, where it has none."""
    for name in APT:
        path = Path("/etc/apt") / name
        if path.exists():
            address = re.search(r"^(?:URIs:|deb)\s+(?:\[[^]]*\]\s*)?(\S+)", path.read_text(), flags=re.MULTILINE)
            if address:
                return [address[1]]
    return []


if __name__ == "__main__":
    os.environ.setdefault("DEBIAN_FRONTEND", "noninteractive")
    sys.exit(main())
