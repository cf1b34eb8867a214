"""The built-in checkpoints: the demo comes unpacked out of the package, the tiny one is made."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from hunyuan.checkpoint import builtin, packed
from hunyuan.checkpoint.builtin import KINDS
from hunyuan.checkpoint.tiny import write_tiny_checkpoint
from hunyuan.errors import CheckpointError


@pytest.fixture
def packed_folder(packed_tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny checkpoint in the demo's place in the package; a test may damage it."""
    folder = Path(shutil.copytree(packed_tiny / "packed", tmp_path / "packed"))
    monkeypatch.setattr(builtin, "FOLDER", folder)
    return folder


@pytest.mark.slow
def test_the_demo_is_unpacked_once_and_whole(
    packed_folder: Path, packed_tiny: Path, tmp_path: Path, monkeypatch
) -> None:
    made = KINDS["demo"].folder(tmp_path / "cache")
    for path in (packed_tiny / "whole").iterdir():
        assert (made / path.name).read_bytes() == path.read_bytes(), path.name
    assert made.name.startswith("hunyuan-demo-")
    monkeypatch.setattr(packed, "unpack", lambda *_: pytest.fail("unpacked again"))
    assert KINDS["demo"].folder(tmp_path / "cache") == made


def test_other_weights_get_a_folder_of_their_own(packed_folder: Path, tmp_path: Path) -> None:
    old = KINDS["demo"].folder(tmp_path / "cache")
    config = json.loads((packed_folder / "config.json").read_text())
    (packed_folder / "config.json").write_text(json.dumps(config | {"rope_theta": 500.0}))
    new = KINDS["demo"].folder(tmp_path / "cache")
    assert new != old
    assert sorted((tmp_path / "cache").iterdir()) == sorted([old, new])


def test_a_damaged_package_is_said_and_leaves_nothing(packed_folder: Path, tmp_path: Path) -> None:
    file = packed_folder / packed.PACKED_FILES[1]
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"packed checkpoint: autoencoder\.safetensors\.xz is damaged"):
        KINDS["demo"].folder(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_tiny_one_is_the_written_one(tmp_path: Path) -> None:
    made = KINDS["tiny"].folder(tmp_path / "cache")
    expected = write_tiny_checkpoint(tmp_path / "written")
    for path in expected.iterdir():
        assert (made / path.name).read_bytes() == path.read_bytes(), path.name
