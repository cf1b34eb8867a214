"""A packed checkpoint comes back value for value, and a damaged one says so."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hunyuan.checkpoint.folder import read_config
from hunyuan.checkpoint.load import load_model
from hunyuan.checkpoint.packed import PACKED_FILES, SMALL_FILES, pack, unpack
from hunyuan.checkpoint.tiny import write_tiny_checkpoint
from hunyuan.errors import CheckpointError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint; half of its 3D kernels are of a single frame."""
    out = write_tiny_checkpoint(tmp_path_factory.mktemp("packed") / "folder")
    weights = load_file(out / "model.safetensors")
    for key in [key for key, value in weights.items() if value.dim() == 5 and "decoder" in key]:
        weights[key][:, :, ::2] = 0
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    return out


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    pack(folder, folder.parent / "packed")
    return folder.parent / "packed"


@pytest.fixture
def packed(whole: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage: packing takes a second."""
    return Path(shutil.copytree(whole, tmp_path / "packed"))


def test_a_packed_folder_comes_back_as_it_was(folder: Path, packed: Path, tmp_path: Path) -> None:
    unpack(packed, tmp_path / "back")
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "back"))
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert value.dtype == after[key].dtype
        assert torch.equal(value, after[key]), key
    for name in SMALL_FILES:
        assert (folder / name).read_bytes() == (tmp_path / "back" / name).read_bytes()
    load_model(tmp_path / "back", read_config(tmp_path / "back"), torch.device("cpu"), torch.float32)


def test_slices_of_zeros_are_not_stored(folder: Path, packed: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    decoder = sum(v.numel() for k, v in weights.items() if v.dim() == 5 and v.shape[2] == 3 and "decoder" in k)
    rest = sum(v.numel() for v in weights.values()) - decoder
    size = sum((packed / name).stat().st_size for name in PACKED_FILES)
    assert size < 2 * (rest + decoder / 3)


@pytest.mark.parametrize("name", [*SMALL_FILES, *PACKED_FILES])
def test_a_missing_file_is_named(packed: Path, tmp_path: Path, name: str) -> None:
    (packed / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        unpack(packed, tmp_path / "back")


@pytest.mark.parametrize("name", PACKED_FILES)
def test_a_damaged_file_is_named(packed: Path, tmp_path: Path, name: str) -> None:
    file = packed / name
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 255
    file.write_bytes(raw)
    with pytest.raises(CheckpointError, match=f"{name} is damaged"):
        unpack(packed, tmp_path / "back")
