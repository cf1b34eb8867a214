"""What `bentoml build` makes of this tree: contents, image, and that the lock file is the requirements'."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from deployment_names import assert_read

from hunyuan.serving.pages import FILES
from scripts.checks import licences
from scripts.image import replay_apt, replay_image

ROOT = Path(__file__).resolve().parents[2]
TOOLS = Path(sys.executable).parent


@pytest.fixture(scope="module")
def bento(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("bentoml")
    own = {"BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True"}
    command = [str(TOOLS / "bentoml"), "build", "--output", "tag"]
    result = subprocess.run(command, cwd=ROOT, env=os.environ | own, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return next(home.glob("bentos/*/*/bento.yaml")).parent


@pytest.fixture(scope="module")
def dockerfile(bento: Path) -> str:
    return (bento / "env/docker/Dockerfile").read_text()


def test_contents(bento: Path) -> None:
    names = {str(path.relative_to(bento / "src")) for path in (bento / "src").rglob("*") if path.is_file()}
    assert {
        "service.py",
        "hunyuan/editor.py",
        "hunyuan/accel/prepare.py",
        "hunyuan/accel/build/cut.py",
        "scripts/download_model.sh",
        "hunyuan/cli/quantize.py",
        "LICENSE",
    } <= names
    ours = {str(path.relative_to(ROOT)) for path in (ROOT / "hunyuan").rglob("*.py")}
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "hunyuan/accel/build/sources").iterdir()}
    assert sources
    sources |= {str(path.relative_to(ROOT)) for path in (ROOT / "hunyuan/demo").iterdir() if path.is_file()}
    assert ours | sources | {f"hunyuan/serving/static/{name}" for name in FILES.values()} <= names
    allowed = re.compile(
        r"hunyuan/[\w/]+\.py|hunyuan/checkpoint/full_size\.json|hunyuan/accel/build/sources/\w+\.cuh?|hunyuan/demo/\w+\.(json|safetensors\.xz)|hunyuan/serving/static/(ui/)?\w+\.(html|css|js)|service\.py|scripts/download_model\.sh|bentofile\.yaml|README\.md|LICENSE|requirements\.\w+"
    )
    assert [name for name in sorted(names) if not allowed.fullmatch(name)] == []
    assert not [name for name in names if "test" in name or name.endswith((".safetensors", ".pyc"))]
    assert sum(path.stat().st_size for path in bento.rglob("*") if path.is_file()) < 30 * 2**20  # most: the demo


def test_the_newer_build_was_taken(bento: Path, dockerfile: str) -> None:
    """The older one drops the base image's uv and half the options in silence."""
    made = yaml.safe_load((bento / "bento.yaml").read_text())
    assert made["spec"] == 2
    assert made["image"]["base_image"].startswith("nvidia/cuda:12.8.")
    assert made["image"]["python_version"] == "3.12"
    assert "uv venv --python 3.12 /app/.venv" in dockerfile
    assert "python3-dev" in dockerfile


def test_kernels_are_compiled_after_the_packages_are_installed(bento: Path, dockerfile: str) -> None:
    order = (
        "COPY --chown=bentoml:bentoml ./src/hunyuan/accel/build ./src/hunyuan/accel/build",
        "pip install -r",
        "./env/docker/script__",
    )
    places = [dockerfile.find(step) for step in order]
    assert -1 not in places, "service.py's image must `build_include` what deploy/image_setup.sh runs"
    assert places == sorted(places)
    script = next((bento / "env/docker").glob("script__*"))
    assert script.read_text() == (ROOT / "deploy/image_setup.sh").read_text()


def test_kernels_can_be_compiled_from_what_is_there_by_then(bento: Path, dockerfile: str, tmp_path: Path) -> None:
    """At that step of the Dockerfile the rest of the Bento is not copied yet."""
    for name in re.findall(r"^COPY \S+ \./(src/\S+) ", dockerfile, flags=re.MULTILINE):
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (bento / name).is_dir() and subprocess.run(["cp", "-r", str(bento / name), str(target)], check=True)
        (bento / name).is_file() and target.write_bytes((bento / name).read_bytes())
    command = [sys.executable, "-m", "hunyuan", "kernels", "--check", "--module", "no_such_module"]
    result = subprocess.run(command, cwd=tmp_path / "src", capture_output=True, text=True, check=False)
    assert result.stdout == "missing  no_such_module\n", result.stderr


def test_hadolint_finds_no_error(bento: Path) -> None:
    command = [str(TOOLS / "hadolint"), "--failure-threshold", "error", str(bento / "env/docker/Dockerfile")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_image_environment_names_what_somebody_reads(dockerfile: str) -> None:
    environment = replay_image.image_environment(dockerfile)
    assert environment["MODEL_ID"] == "/models/HunyuanImage-3-Instruct"
    assert "." not in Path(environment["MODEL_ID"]).name
    given = {env["name"]: env["value"] for env in yaml.safe_load((ROOT / "bentofile.yaml").read_text())["envs"]}
    assert given.items() <= environment.items(), "a variable that BentoML's Dockerfile sets before cannot be replaced"
    assert_read(given)


def test_docker_s_rule_for_arguments() -> None:
    text = 'ENV A=1\nARG A=2\nENV A=$A\nARG B="x y"\nENV B=$B\nENV PATH=/app:${PATH}\n'
    assert replay_image.image_environment(text) == {"A": "1", "B": "x y", "PATH": "/app:"}


def test_requirements_are_exact_and_locked_with_hashes(bento: Path) -> None:
    wanted = [line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    locked = licences.locked_versions((ROOT / "requirements.lock").read_text())
    for requirement in filter(None, wanted):
        name, _, version = requirement.partition("==")
        assert locked[licences.normal(name)] == version, f"{requirement}: run scripts/checks/lock.sh"
    text = (ROOT / "requirements.lock").read_text()
    assert len(re.findall(r"==\S+ \\\n    --hash=sha256:", text)) == len(locked)
    assert "://" not in text
    installed = (bento / "env/python/requirements.txt").read_text()
    assert licences.locked_versions(installed) == locked
    assert text.count("--hash") == installed.count("--hash")


def test_the_list_of_licences_is_the_lock_file_s() -> None:
    rows = re.findall(r"^\| ([\w-]+) \| (\d\S*) \| (.+) \|$", licences.OUT.read_text(), flags=re.MULTILINE)
    listed = {name: version for name, version, _ in rows}
    assert listed == licences.locked_versions((ROOT / "requirements.lock").read_text()), (
        "run scripts/checks/licences.py"
    )
    assert [name for name, _, licence in rows if licence in ("", "UNKNOWN")] == []


def test_the_system_steps_end_where_python_s_begin(dockerfile: str) -> None:
    steps = replay_apt.steps(dockerfile)
    assert "useradd" in steps[0]
    assert any("apt-get install" in step and "python3-dev" in step for step in steps)
    assert steps[-1].endswith("pip install uv")
