"""The wheel: built, installed into an environment of its own, and used from a folder that is not the checkout.

What it depends on is not installed again: the new environment sees the packages of the one that runs the tests.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import httpx
import pytest
from server_process import Server, environment, photo_bytes

from hunyuan import __version__
from hunyuan.checkpoint.tiny import write_tiny_checkpoint
from scripts.support.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
UV = Path(sys.executable).parent / "uv"


def uv(*arguments: str) -> None:
    done = subprocess.run([str(UV), *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    uv("build", "--wheel", "--offline", "--no-build-isolation", "--python", sys.executable, "--out-dir", str(out), ".")
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def place(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the environment `venv` in it."""
    folder = tmp_path_factory.mktemp("installed")
    uv("venv", "--offline", "--python", sys.executable, str(folder / "venv"))
    uv("pip", "install", "--offline", "--no-deps", "--python", str(folder / "venv"), str(wheel))
    return folder


def variables(place: Path) -> dict[str, str]:
    return environment(place) | {"PYTHONPATH": sysconfig.get_path("purelib")}


def run(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(place / "venv/bin/hunyuan"), *arguments]
    return subprocess.run(command, cwd=place, env=variables(place), capture_output=True, text=True, check=False)


def test_the_wheel_holds_the_package_the_service_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert archive.read("hunyuan/_service.py") == (ROOT / "service.py").read_bytes()
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        told = archive.read(metadata).decode().split("\n\n")[0].splitlines()
    # The page at /, the real model's config, C++ for the kernels, the demo.
    kinds = {".py", ".html", ".css", ".js", ".json", ".cu", ".cuh", ".xz"}
    ours = {path.relative_to(ROOT).as_posix() for path in (ROOT / "hunyuan").rglob("*") if path.suffix in kinds}
    assert names == ours | {"hunyuan/_service.py"}
    assert f"Version: {__version__}" in told
    lines = [line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    pinned = {line.lower().replace("_", "-") for line in lines if line}
    assert {line.split(": ")[1] for line in told if line.startswith("Requires-Dist")} == pinned


def test_the_installed_command_is_the_wheel_s(place: Path) -> None:
    assert run(place, "--version").stdout == f"hunyuan {__version__}\n"
    code = "import hunyuan; print(hunyuan.__file__)"
    found = subprocess.run(
        [str(place / "venv/bin/python"), "-c", code],
        cwd=place,
        env=variables(place),
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(found.stdout.strip()).is_relative_to(place / "venv")


@pytest.mark.slow
def test_doctor_knows_the_pinned_packages_there(place: Path) -> None:
    told = run(place, "doctor")
    assert "as pinned" in told.stdout, told.stderr
    assert " 0 of 0 " not in told.stdout


@pytest.mark.server
def test_serve_works_from_any_folder(place: Path) -> None:
    model = write_tiny_checkpoint(place / "model")
    port = free_port()
    command = [str(place / "venv/bin/hunyuan"), "serve", "--model", str(model), "--host", "127.0.0.1"]
    with (place / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--port", str(port), "--", "--timeout", "300"],
            cwd=place,
            env=variables(place),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = Server(process, f"http://127.0.0.1:{port}", place / "log.txt", port, place)
    try:
        server.wait_until()
        answer = httpx.post(
            f"{server.url}/edit",
            files={"image": ("a.jpg", photo_bytes(), "image/jpeg")},
            data={"prompt": "blue", "steps": "1"},
            timeout=120,
        )
        assert answer.status_code == 200, answer.text
        assert answer.headers["X-Model"] == "model"
    finally:
        server.stop()
    assert process.returncode == 0, server.log.read_text()


@pytest.mark.parametrize(
    ("arguments", "variable", "message"),
    [
        (["--model", "nowhere"], {}, "error: MODEL_ID="),
        ([], {"HUNYUAN_QUEUE_SIZE": "0"}, "error: HUNYUAN_QUEUE_SIZE="),
        (["--port", "70000"], {}, "'70000' is not a port, 1 to 65535"),
    ],
)
def test_serve_says_what_is_wrong_in_a_line(arguments, variable, message) -> None:
    command = [sys.executable, "-m", "hunyuan", "serve", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | variable, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
