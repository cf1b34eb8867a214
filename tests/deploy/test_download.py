"""The download script, with a stand-in for `hf`, and the check of what came."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from stand_in_hub import HF

from hunyuan.checkpoint import verify
from hunyuan.checkpoint.tiny import write_tiny_checkpoint

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts/download_model.sh"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint", shards=3)


def download(tmp_path: Path, source: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    tools = tmp_path / "bin"
    tools.mkdir(exist_ok=True)
    (tools / "hf").write_text(HF)
    (tools / "hf").chmod(0o755)
    if "DF_FREE" in variables:
        (tools / "df").write_text(f"#!/bin/sh\necho Avail\necho {variables['DF_FREE']}\n")
        (tools / "df").chmod(0o755)
    own = {"PATH": f"{tools}:{os.environ['PATH']}", "SOURCE": str(source), "CALLED": str(tmp_path / "called")}
    return subprocess.run(
        [str(SCRIPT), *arguments], env=os.environ | own | variables, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("which", "repo", "folder"),
    [
        ("instruct", "tencent/HunyuanImage-3.0-Instruct", "HunyuanImage-3-Instruct"),
        ("distil", "tencent/HunyuanImage-3.0-Instruct-Distil", "HunyuanImage-3-Instruct-Distil"),
    ],
)
def test_downloads_and_verifies(tmp_path: Path, checkpoint: Path, which: str, repo: str, folder: str) -> None:
    result = download(
        tmp_path, checkpoint, which, str(tmp_path / "models"), "--revision", "abc", DF_FREE="200000000000"
    )
    assert result.returncode == 0, result.stderr
    assert "is complete" in result.stdout
    target = tmp_path / "models" / folder
    assert "." not in target.name
    called = (tmp_path / "called").read_text().strip()
    assert called == f"download {repo} --local-dir {target} --revision abc"


def test_too_little_disk_is_said_before_anything_is_fetched(tmp_path: Path, checkpoint: Path) -> None:
    result = download(tmp_path, checkpoint, "instruct", str(tmp_path / "models"), DF_FREE="90000000000")
    assert result.returncode == 1
    assert "90 GB free" in result.stderr
    assert "170 GB wanted" in result.stderr
    assert not (tmp_path / "called").exists()


def test_a_failed_or_short_download_fails(tmp_path: Path, checkpoint: Path) -> None:
    models = str(tmp_path / "models")
    assert download(tmp_path, checkpoint, "distil", models, DF_FREE="999999999999", HF_STATUS="3").returncode == 3
    short = tmp_path / "short"
    write_tiny_checkpoint(short, shards=3)
    shard = sorted(short.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-1])
    result = download(tmp_path, short, "distil", str(tmp_path / "other"), DF_FREE="999999999999")
    assert result.returncode == 1
    assert shard.name in result.stderr


def test_usage_is_printed(tmp_path: Path, checkpoint: Path) -> None:
    result = download(tmp_path, checkpoint)
    assert result.returncode == 2
    assert "download_model.sh instruct|distil" in result.stderr


def test_verify_names_every_problem(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "c", shards=3)
    assert verify.problems(folder) == []
    first, second, third = sorted(folder.glob("*.safetensors"))
    first.unlink()
    second.write_bytes(b"\xff" * 64)
    index = json.loads((folder / verify.INDEX).read_text())
    index["weight_map"]["no.such.tensor"] = third.name
    (folder / verify.INDEX).write_text(json.dumps(index))
    (folder / "config.json").unlink()
    found = "\n".join(verify.problems(folder))
    for expected in (
        "config.json is missing",
        f"{first.name} is missing",
        f"{second.name} is no safetensors file or not a whole one: ",
    ):
        assert expected in found
    assert f"{third.name} lacks 1 tensors of the index, no.such.tensor" in found


def test_verify_takes_one_file_and_refuses_none(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "c")
    assert verify.problems(folder) == []
    (folder / verify.ONE_FILE).unlink()
    assert verify.problems(folder) == ["model.safetensors.index.json and model.safetensors are missing"]
    (folder / verify.INDEX).write_text("[]")
    assert "is not an index" in verify.problems(folder)[0]
    command = [sys.executable, str(ROOT / "hunyuan/checkpoint/verify.py"), str(folder)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 1
