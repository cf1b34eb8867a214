"""The Job of deploy/kubernetes-model.yaml: its own command on a Bento's own files, with a stand-in for the Hub."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from stand_in_hub import HF

from hunyuan.checkpoint import verify
from hunyuan.checkpoint.folder import read_config
from hunyuan.checkpoint.tiny import write_tiny_checkpoint
from hunyuan.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
OFFLINE = "from huggingface_hub import constants; print(constants.HF_HUB_OFFLINE)"


def container(name: str, kind: str) -> dict[str, Any]:
    objects = yaml.safe_load_all((ROOT / name).read_text())
    (found,) = (o for o in objects if o["kind"] == kind)
    return dict(found["spec"]["template"]["spec"]["containers"][0])


def values(entries: list[dict[str, Any]]) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in entries if "value" in entry}


JOB = container("deploy/kubernetes-model.yaml", "Job")
IMAGE = values(yaml.safe_load((ROOT / "bentofile.yaml").read_text())["envs"])


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Bento's src folder, as the image holds it: no other file of the tree is there."""
    home = tmp_path_factory.mktemp("bentoml")
    own = {"BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True"}
    command = [str(Path(sys.executable).parent / "bentoml"), "build", "--output", "tag"]
    subprocess.run(command, cwd=ROOT, env=os.environ | own, check=True, stdout=subprocess.DEVNULL)
    return next(home.glob("bentos/*/*/bento.yaml")).parent / "src"


def run(tmp_path: Path, source: Path, hub: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """The container's command with /models and /cache in `tmp_path`, and enough disk."""
    tools = tmp_path / "bin"
    tools.mkdir(exist_ok=True)
    (tools / "hf").write_text(HF)
    (tools / "df").write_text("#!/bin/sh\necho Avail\necho 250000000000\n")
    for tool in tools.iterdir():
        tool.chmod(0o755)
    places = {"/models": str(tmp_path / "models"), "/cache": str(tmp_path / "cache")}
    (tmp_path / "cache").mkdir(exist_ok=True)
    given = {name: moved(value, places) for name, value in (IMAGE | values(JOB["env"])).items()}
    paths = f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    own = {"PATH": paths, "SOURCE": str(hub), "CALLED": str(tmp_path / "called"), "PYTHONPATH": ""}
    command = [moved(part, places) for part in JOB["command"]]
    return subprocess.run(
        command, cwd=source, env=os.environ | given | own | more, capture_output=True, text=True, check=False
    )


def moved(text: str, places: dict[str, str]) -> str:
    for old, new in places.items():
        text = text.replace(f"{old}/", f"{new}/").replace(f" {old}\n", f" {new}\n")
        text = new if text == old else text
    return text


@pytest.mark.slow
def test_the_job_makes_what_the_deployment_serves(tmp_path: Path, source: Path) -> None:
    hub = write_tiny_checkpoint(tmp_path / "hub", shards=3)
    result = run(tmp_path, source, hub)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "download tencent/HunyuanImage-3.0-Instruct --local-dir" in (tmp_path / "called").read_text()
    served = values(container("deploy/kubernetes.yaml", "Deployment")["env"])["MODEL_ID"]
    folder = tmp_path / served.lstrip("/")
    assert verify.problems(folder) == []
    assert set(read_config(folder).expert_formats) == {"mxfp4"}
    assert Settings(model_id=folder).folder == folder
    again = run(tmp_path, source, hub)  # a pod that is started again
    assert again.returncode == 0, again.stderr


@pytest.mark.slow
def test_a_download_that_fails_fails_the_job(tmp_path: Path, source: Path) -> None:
    hub = write_tiny_checkpoint(tmp_path / "hub", shards=3)
    next(hub.glob("*.safetensors")).write_bytes(b"")
    result = run(tmp_path, source, hub)
    assert result.returncode != 0
    assert "it is empty" in result.stderr
    assert not (tmp_path / "models/HunyuanImage-3-Instruct-4bit").exists()


def test_the_image_is_offline_and_the_job_is_not() -> None:
    for given, offline in ((IMAGE, "True"), (IMAGE | values(JOB["env"]), "False")):
        command = [sys.executable, "-c", OFFLINE]
        result = subprocess.run(command, env=os.environ | given, capture_output=True, text=True, check=True)
        assert result.stdout.strip() == offline


def test_its_folder_is_where_the_image_has_the_code() -> None:
    assert JOB["workingDir"] == "/home/bentoml/bento/src"
    assert "token" not in (ROOT / "deploy/kubernetes.yaml").read_text().replace("automountServiceAccountToken", "")
