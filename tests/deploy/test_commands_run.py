"""Every command of the documents is carried out here, or it is said who carries it out or what that needs.

They run as a reader would run them, in a copy of the tree, but for three things: the checkpoint is a tiny one in a
folder of the test's own, caches lie there too, and the server's port is a free one.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from document_commands import COMMANDS
from PIL import Image
from server_process import environment, photo_bytes

from hunyuan.accel.flashinfer_modules import BUILT_MODULES
from hunyuan.checkpoint.tiny import write_tiny_checkpoint
from scripts.support.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("hunyuan", "scripts", "deploy")
FILES = (
    *("service.py", "locustfile.py", "bentofile.yaml", "deployment.yaml", "pyproject.toml", "README.md", "LICENSE"),
    *("requirements.txt", "requirements-dev.txt", "requirements.lock"),
)

SERVE = r"^MODEL_ID=\S+ \S+bentoml serve service:HunyuanImage$"
ASKS_A_SERVER = (r"^until curl .*/readyz; do sleep 5; done$", r"^curl .*/edit ")
BY_ITSELF = (
    r"bentoml build ",
    r"-m hunyuan plan ",
    r"-m hunyuan quantize ",
    r"scripts/benchmarks/bench_load\.py \S+ --tiny$",
    r"^scripts/checks/lock\.sh$",
    r"-m hunyuan kernels --list$",
)
CHECKS_KERNELS = r"-m hunyuan kernels --check$"
INSTALLED = {  # the same, in an environment that the wheel is installed in
    r"^\.venv/bin/pip install \.$": ("tests/cli/test_install.py", '"pip", "install"'),
    r"^\.venv/bin/hunyuan serve$": ("tests/cli/test_install.py", '"serve", "--model"'),
    r"^\.venv/bin/hunyuan doctor$": ("tests/cli/test_install.py", '"doctor"'),
    r"^\.venv/bin/hunyuan edit ": ("tests/cli/test_edit.py", '"edit"'),
    r"^\.venv/bin/hunyuan generate ": ("tests/cli/test_edit.py", '"generate"'),
}
BY_OTHERS = INSTALLED | {  # pattern -> the file that runs it, and a word of it there
    r"uv pip install --python \.venv -r requirements-dev\.txt && scripts/checks/test\.sh$": (
        ".ci/run",
        "readme_command.py test",
    ),
    r"bentoml serve service:HunyuanImage$": ("tests/server_process.py", '"bentoml", "serve", target'),
    # with a stand-in for the hub's client
    r"scripts/download_model\.sh ": ("tests/deploy/test_download.py", "scripts/download_model.sh"),
    r"-m hunyuan compare ": ("tests/compare/test_weights.py", '"compare"'),
    r"-m hunyuan verify ": ("tests/cli/test_main.py", '["verify", str(tmp_path)]'),
    r"^\.venv/bin/locust ": ("tests/scripts/test_locustfile.py", '"locust", "-f"'),
    r"scripts/benchmark_h100\.sh ": ("tests/scripts/test_benchmarks.py", "scripts/benchmark_h100.sh"),
    r"scripts/image/replay_image\.py": ("scripts/checks/image.sh", "scripts/image/replay_image.py"),
    r"scripts/checks/licences\.py ": ("scripts/checks/image.sh", "scripts/checks/licences.py"),
    r"scripts/checks/audit\.py$": ("scripts/checks/test.sh", "scripts/checks/audit.py"),
    r"api_keys\.txt( && chmod 600 \S+)?$": ("tests/test_callers.py", 'BLOCKS["docs/operations.md-0"]'),
    r"keys/(api_keys|prometheus)|^install --directory": ("tests/deploy/test_compose.py", "install --directory"),
    r"^EDIT_API_KEY=.* scripts/curl_edit\.sh ": ("tests/test_callers.py", 'BLOCKS["docs/operations.md-1"]'),
}
NEEDS = {  # pattern -> what is missing here; their syntax and options are what test_commands.py looks at
    r"scripts/checks/attack_service\.py$": "twenty minutes (tests/test_attacks.py is its short form)",
    r"^(python3 -m venv \.venv && )?\.venv/bin/pip install -r requirements(-dev)?\.txt$": "time: CI uses uv",
    r"bentoml containerize ": "a Docker engine",
    r"^docker run ": "a Docker engine and a GPU",
    r"^docker compose ": "a Docker engine and GPUs (tests/deploy/test_box.py runs what is in the file)",
    r"^kubectl ": "a Kubernetes cluster",
    r"bentoml (cloud|deployment|deploy) ": "a BentoCloud account",
    r"scripts/image/replay_apt\.py ": "root and debootstrap (tests/deploy/test_bento.py reads the same steps)",
    r"scripts/benchmarks/bench_engine\.py": "a GPU (tests/scripts/test_bench_engine.py runs it in short on a CPU)",
    r"scripts/benchmarks/bench_token\.py": "a GPU (tests/scripts/test_bench_token.py runs it in short on a CPU)",
    r"-m hunyuan kernels --jobs": "nvcc (tests/accel/test_build.py has what can be shown without it)",
}


def only(patterns: Iterable[str]) -> list[str]:
    return [line for line in dict.fromkeys(COMMANDS) if any(re.search(pattern, line) for pattern in patterns)]


@dataclass(frozen=True)
class Place:
    """A copy of the tree, with a checkpoint in `models`."""

    tree: Path
    models: Path
    port: int
    env: dict[str, str]

    def adapted(self, line: str) -> str:
        line = line.replace("/models/", f"{self.models}/").replace("/tmp/tiny-checkpoint", str(self.models / "bench"))
        return line.replace("127.0.0.1:8000", f"127.0.0.1:{self.port}")

    def run(self, line: str) -> subprocess.CompletedProcess[str]:
        command = ["bash", "-euo", "pipefail", "-c", self.adapted(line)]
        return subprocess.run(
            command, cwd=self.tree, env=self.env, capture_output=True, text=True, check=False, timeout=240
        )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("commands")
    tree, models, port = folder / "tree", folder / "models", free_port()
    tree.mkdir()
    for name in FOLDERS:
        shutil.copytree(ROOT / name, tree / name)
    for name in FILES:
        shutil.copy2(ROOT / name, tree)
    (tree / ".venv").symlink_to(sys.prefix)
    (tree / "photo.jpg").write_bytes(photo_bytes(128, 96))
    write_tiny_checkpoint(models / "HunyuanImage-3-Instruct")
    own = environment(folder) | {"BENTOML_PORT": str(port), "BENTOML_HOST": "127.0.0.1", "PYTHONPATH": ""}
    del own["MODEL_ID"]  # the commands name one themselves, or mean the demo
    own.pop("VIRTUAL_ENV", None)
    return Place(tree, models, port, own)


@pytest.fixture(scope="module")
def served(place: Place) -> Iterator[Place]:
    """With the server that the README's own line starts, ready by the README's own line."""
    (line,) = only([SERVE])
    with (place.tree / "serve.log").open("wb") as log:
        process = subprocess.Popen(
            ["bash", "-c", f"exec env {place.adapted(line)}"],
            cwd=place.tree,
            env=place.env,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        yield place
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, (place.tree / "serve.log").read_text()


def test_every_command_is_accounted_for() -> None:
    known = [SERVE, CHECKS_KERNELS, *ASKS_A_SERVER, *BY_ITSELF, *BY_OTHERS, *NEEDS]
    for line in COMMANDS:
        assert [pattern for pattern in known if re.search(pattern, line)], f"nobody runs: {line}"
    for pattern in known:
        assert only([pattern]), f"no document has {pattern} any more"


@pytest.mark.parametrize("pattern", BY_OTHERS)
def test_who_is_said_to_run_a_command_does(pattern: str) -> None:
    name, word = BY_OTHERS[pattern]
    assert word in (ROOT / name).read_text(), f"{name} does not run it"


@pytest.mark.slow
@pytest.mark.parametrize("line", only(BY_ITSELF))
def test_command(place: Place, line: str) -> None:
    before = (place.tree / "requirements.lock").read_bytes()
    result = place.run(line)
    assert result.returncode == 0, result.stdout + result.stderr
    assert (place.tree / "requirements.lock").read_bytes() == before, "requirements.lock is not what lock.sh makes"


def test_command_that_checks_the_kernels(place: Place) -> None:
    (line,) = only([CHECKS_KERNELS])
    result = place.run(line)
    lines = [line.split() for line in result.stdout.splitlines()]
    assert [name for _, name in lines] == list(BUILT_MODULES), result.stderr
    assert result.returncode == any(state == "missing" for state, _ in lines)


@pytest.mark.server
def test_commands_that_ask_a_server(served: Place) -> None:
    for line in sorted(only(ASKS_A_SERVER), key=lambda line: not line.startswith("until")):
        result = served.run(line)
        assert result.returncode == 0, f"{line}\n{result.stdout}{result.stderr}"
        if "/edit " in line:
            assert "HTTP/1.1 200" in result.stdout
            with Image.open(served.tree / "edited.png") as image:
                assert image.format == "PNG"
