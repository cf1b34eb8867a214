#!/usr/bin/env python
"""Replays what the image does with Python, without Docker, and does an edit in it.

    python scripts/image/replay_image.py [--work FOLDER] [--python /usr/bin/python3.12]

Builds the Bento, makes /app/.venv from the Bento's own requirements as its Dockerfile does, runs its set-up script
(without compiling kernels), then starts the Bento's own entry point as user 1034 with no network, on a read-only root
with /cache as the one writable folder and a tiny checkpoint mounted read-only, and sends one edit. Every step runs in a
bubblewrap sandbox that has the container's paths. What this cannot show: the base image, its apt packages and nvcc.

Needs root, bubblewrap, setpriv, Python 3.12, 9 GB of disk and the package index (for the install alone). Exit status 77
where this machine lacks one of the first four or makes no sandboxes, 1 where the replay fails.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from string import Template

ROOT = Path(__file__).resolve().parents[2]
BENTO_PATH = "/home/bentoml/bento"
CHECKPOINT = "/models/HunyuanImage-3-Instruct"
USER = "1034"
# What `docker run` is told besides the image's own variables; the README's command says the same.
AT_RUN = {"TMPDIR": "/cache", "BENTOML_HOME": "/cache/bentoml"}
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc")
STARTED = time.monotonic()
CANNOT = 77  # no other program's exit status means this here


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, help="folder to keep (default: a temporary one)")
    parser.add_argument("--keep-packages", action="store_true", help="use the packages that are installed in --work")
    parser.add_argument("--python", default=find_python(), help="a Python 3.12 (default: %(default)s)")
    arguments = parser.parse_args()
    if lacks := what_is_missing(arguments.python):
        print(f"cannot replay the image: {lacks}", file=sys.stderr)
        return CANNOT
    with tempfile.TemporaryDirectory(prefix="replay-") as scratch:
        work = (arguments.work or Path(scratch)).resolve()
        return replay(work, arguments.python, arguments.keep_packages)


def what_is_missing(python: str | None) -> str | None:
    """Why the replay cannot be done on this machine, or None."""
    if os.geteuid() != 0:
        return "it needs root"
    for program in ("bwrap", "setpriv"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    if python is None:
        return "Python 3.12 is not installed"
    probe = shlex.split("bwrap --ro-bind / / --unshare-pid --unshare-net --proc /proc --dev /dev true")
    result = subprocess.run(probe, capture_output=True, text=True, check=False)
    return f"bwrap makes no sandbox here: {result.stderr.strip()}" if result.returncode else None


def find_python() -> str | None:
    """A Python 3.12 that starts: on the path, or one of pyenv's."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found = [shutil.which("python3.12"), *map(str, sorted(pyenv.glob("versions/3.12*/bin/python3.12"), reverse=True))]
    return next((python for python in found if python and works(python)), None)


def works(python: str) -> bool:
    return subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode == 0


def replay(work: Path, python: str, keep_packages: bool) -> int:
    for name in ("app", "cache", "models"):
        (work / name).mkdir(parents=True, exist_ok=True)
    say("bentoml build")
    bento = build_bento(work / "home")
    dockerfile = (bento / "env/docker/Dockerfile").read_text()
    environment = image_environment(dockerfile)
    if not keep_packages:
        say("install")
        install(work, bento, python, environment)
    say("set-up script")
    set_up(work, bento, python, environment)
    say("tiny checkpoint")
    maker = [sys.executable, "-m", "hunyuan", "tiny", str(work / CHECKPOINT.lstrip("/")), "--force"]
    subprocess.run(maker, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    say(f"serve: user {USER}, no network, read-only root")
    status = serve_and_ask(work, bento, python, environment)
    say("the image's Python steps replayed and an edit done" if status == 0 else "FAILED")
    return 1 if status else 0


def say(what: str) -> None:
    print(f"[{time.monotonic() - STARTED:5.0f} s] {what}", flush=True)


def build_bento(home: Path) -> Path:
    """The folder of the one Bento in a fresh `home`."""
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    command = [str(Path(sys.executable).parent / "bentoml"), "build", "--output", "tag"]
    own = {"BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True"}
    subprocess.run(command, cwd=ROOT, env=os.environ | own, check=True, stdout=subprocess.DEVNULL)
    bento = next(home.glob("bentos/*/*/bento.yaml")).parent
    # The Dockerfile copies with --chown, and makes the entry point executable.
    subprocess.run(["chown", "-R", f"{USER}:{USER}", str(bento)], check=True)
    (bento / "env/docker/entrypoint.sh").chmod(0o755)
    return bento


def image_environment(dockerfile: str) -> dict[str, str]:
    """The variables of the finished image. As in Docker, an ARG does not replace an ENV of the same name."""
    env: dict[str, str] = {}
    arguments: dict[str, str] = {}
    for kind, name, value in re.findall(r"^(ARG|ENV) (\w+)=(.*)$", dockerfile, flags=re.MULTILINE):
        known = defaultdict(str, arguments | env)  # a name that nobody has set is empty
        plain = " ".join(shlex.split(Template(value).substitute(known)))
        (env if kind == "ENV" else arguments)[name] = plain
    return env


def sandbox(python: str, *options: str) -> list[str]:
    """bubblewrap with the folders of a system, read-only, and the interpreter; nothing of this repository."""
    prefix = ask(python, "sys.base_prefix")
    # Folders that bubblewrap makes by itself are closed to everybody but root.
    above = [str(folder) for path in (prefix, BENTO_PATH) for folder in reversed(Path(path).parents[:-1])]
    binds = [part for folder in above for part in ("--perms", "0755", "--dir", folder)]
    binds += [part for folder in (*SYSTEM, prefix) for part in ("--ro-bind-try", folder, folder)]
    shared = ["--unshare-pid", "--unshare-ipc", "--die-with-parent", "--proc", "/proc", "--dev", "/dev"]
    return ["bwrap", *shared, *binds, *options]


def ask(python: str, expression: str) -> str:
    command = [python, "-c", f"import sys; print({expression})"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _variables(values: dict[str, str]) -> list[str]:
    return [part for name, value in values.items() for part in ("--setenv", name, value)]


def install(work: Path, bento: Path, python: str, environment: dict[str, str]) -> None:
    """The Dockerfile's `uv venv` and `uv pip install`. uv's cache lies beside what it installs, where it can link."""
    uv = (Path(sys.executable).parent / "uv").resolve()
    steps = (
        f"uv --quiet venv --clear --python {shlex.quote(ask(python, 'sys.executable'))} /app/.venv\n"
        f"uv --quiet --directory ./src pip install -r {BENTO_PATH}/env/python/requirements.txt\n"
    )
    mounts = ["--bind", str(work / "app"), "/app", "--ro-bind", str(uv), "/uv/uv"]
    mounts += ["--tmpfs", "/tmp", "--ro-bind", str(bento), BENTO_PATH, "--chdir", BENTO_PATH]
    mounts += ["--unsetenv", "UV_NO_CACHE"]
    own = {name: value for name, value in environment.items() if name != "UV_NO_CACHE"}
    own |= {"VIRTUAL_ENV": "/app/.venv", "UV_CACHE_DIR": "/app/uv-cache", "PATH": f"/uv:{os.environ['PATH']}"}
    command = sandbox(python, *mounts, *_variables(own), "bash", "-euc", steps)
    subprocess.run(command, check=True)
    shutil.rmtree(work / "app/uv-cache")


def set_up(work: Path, bento: Path, python: str, environment: dict[str, str]) -> None:
    shutil.rmtree(work / "cache")
    (work / "cache").mkdir()
    mounts = ["--bind", str(work / "app"), "/app", "--bind", str(work / "cache"), "/cache", "--tmpfs", "/tmp"]
    mounts += ["--ro-bind", str(bento), BENTO_PATH, "--chdir", BENTO_PATH]
    own = environment | {"BUILD_KERNELS": "0", "PATH": f"/app/.venv/bin:{os.environ['PATH']}"}
    script = next((bento / "env/docker").glob("script__*")).name
    subprocess.run(sandbox(python, *mounts, *_variables(own), "bash", f"./env/docker/{script}"), check=True)


def serve_and_ask(work: Path, bento: Path, python: str, environment: dict[str, str]) -> int:
    mounts = ["--ro-bind", str(work / "app"), "/app", "--bind", str(work / "cache"), "/cache"]
    mounts += ["--ro-bind", str(work / "models"), "/models", "--ro-bind", str(bento), BENTO_PATH]
    mounts += ["--ro-bind", str(ROOT / "scripts/image/replay_edit.py"), "/replay_edit.py", "--chdir", BENTO_PATH]
    mounts += ["--unshare-net", "--remount-ro", "/", "--clearenv", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    become = ["setpriv", "--reuid", USER, "--regid", USER, "--clear-groups", "--no-new-privs"]
    own = environment | AT_RUN | {"HOME": "/home/bentoml", "PATH": "/app/.venv/bin:/usr/local/bin:/usr/bin:/bin"}
    command = [*_variables(own), *become, "python", "/replay_edit.py", f"{BENTO_PATH}/env/docker/entrypoint.sh"]
    os.chown(work / "cache", int(USER), int(USER))
    return subprocess.run(sandbox(python, *mounts, *command), check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
