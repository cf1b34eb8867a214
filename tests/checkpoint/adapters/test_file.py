"""LoRA files that do not fit, and what is said of them."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from lora_files import random_pairs, write_kohya, write_peft
from safetensors.torch import load_file, save_file
from small_model import model_config

from hunyuan.adapters import Adapter
from hunyuan.checkpoint.adapters.file import MOST_RANK, AdapterFile, name_of
from hunyuan.checkpoint.adapters.keys import LinearLayers
from hunyuan.errors import CheckpointError

QKV, DOWN = "model.layers.0.self_attn.qkv_proj", "model.layers.1.mlp.experts.0.down_proj"


@pytest.fixture(scope="module")
def layers() -> LinearLayers:
    return LinearLayers(model_config())


def error_of(path: Path, layers: LinearLayers) -> str:
    with pytest.raises(CheckpointError) as caught:
        AdapterFile(Adapter(path), layers)
    assert str(caught.value).startswith(("adapter ", path.name))
    return str(caught.value)


def changed(path: Path, changes: dict[str, torch.Tensor | None]) -> Path:
    tensors = load_file(path)
    for key, value in changes.items():
        if value is None:
            del tensors[key]
        else:
            tensors[key] = value
    save_file(tensors, path)
    return path


def key_of(layer: str, end: str) -> str:
    return f"lora_unet_{layer.replace('.', '_')}.{end}"


def test_everything_that_is_wrong_is_named_in_one_error(layers: LinearLayers, tmp_path: Path) -> None:
    path = write_kohya(tmp_path / "bad.safetensors", random_pairs(layers, [QKV, DOWN]), 1.0)
    outputs, inputs = layers.specs[QKV].shape
    changes = {
        "lora_unet_model_layers_9_self_attn_qkv_proj.alpha": torch.ones(()),
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(2, inputs),
        key_of(QKV, "lora_up.weight"): torch.ones(outputs + 1, 3),
        key_of(DOWN, "lora_down.weight"): None,
    }
    said = error_of(changed(path, changes), layers)
    assert said.startswith("adapter bad: 2 keys name no linear layer of this network: ")
    assert "lora_unet_model_layers_9_self_attn_qkv_proj.alpha" in said
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in said
    assert "2 layers do not fit: " in said
    wanted = f"(3, {inputs}) and ({outputs + 1}, 3) instead of (rank, {inputs}) and ({outputs}, rank)"
    assert f"{QKV}: {wanted}" in said
    assert f"{DOWN}: " in said
    assert "without its other half" in said


@pytest.mark.parametrize(
    ("end", "value", "said"),
    [
        ("lora_up.weight", torch.ones(1, 1, dtype=torch.int8), "is I8 instead of BF16 or F16 or F32"),
        ("alpha", torch.ones(2), "has the shape (2,); one number is meant"),
        ("alpha", torch.tensor(float("nan")), "is no number"),
        ("alpha", torch.tensor(True), "is BOOL instead of"),
        ("lora_mid.weight", torch.ones(1, 1), "name no linear layer"),
    ],
)
def test_odd_tensors_are_refused(
    layers: LinearLayers, tmp_path: Path, end: str, value: torch.Tensor, said: str
) -> None:
    path = write_kohya(tmp_path / "odd.safetensors", random_pairs(layers, [QKV]), 1.0)
    assert said in error_of(changed(path, {key_of(QKV, end): value}), layers)


def test_a_rank_has_bounds(layers: LinearLayers, tmp_path: Path) -> None:
    path = write_kohya(tmp_path / "wide.safetensors", random_pairs(layers, [QKV], rank=MOST_RANK + 1), 1.0)
    assert f"rank {MOST_RANK + 1}; 1 to {MOST_RANK} are taken" in error_of(path, layers)
    path = write_kohya(tmp_path / "none.safetensors", random_pairs(layers, [QKV], rank=0), 1.0)
    assert f"rank 0; 1 to {MOST_RANK} are taken" in error_of(path, layers)


def test_a_layer_is_named_once(layers: LinearLayers, tmp_path: Path) -> None:
    path = write_kohya(tmp_path / "twice.safetensors", random_pairs(layers, [QKV]), 1.0)
    inputs = layers.specs[QKV].shape[1]
    said = error_of(changed(path, {f"base_model.model.{QKV}.lora_A.weight": torch.ones(3, inputs)}), layers)
    assert "are for the same layer" in said


def test_peft_needs_its_config_and_the_ranks_it_says(layers: LinearLayers, tmp_path: Path) -> None:
    folder = write_peft(tmp_path / "ink", random_pairs(layers, [QKV]), {"rank_pattern": {"qkv_proj": 4}})
    assert "rank 3; adapter_config.json says 4" in error_of(folder, layers)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 3}')
    assert "adapter_config.json: lora_alpha: missing" in error_of(folder, layers)
    (folder / "adapter_config.json").unlink()
    assert "put PEFT's adapter_config.json beside the file" in error_of(folder, layers)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    assert "has no adapter_model.safetensors" in error_of(folder, layers)


def test_no_pickle_is_opened(layers: LinearLayers, tmp_path: Path) -> None:
    path = tmp_path / "code.safetensors"
    path.write_bytes(pickle.dumps({"a": 1}))
    assert "a Python pickle" in error_of(path, layers)
    torch.save({"a": torch.ones(2)}, path)
    assert "a zip archive, as PyTorch's own format is" in error_of(path, layers)


def test_an_empty_or_cut_file_is_refused(layers: LinearLayers, tmp_path: Path) -> None:
    path = tmp_path / "empty.safetensors"
    save_file({}, path)
    assert "it holds no adapter at all" in error_of(path, layers)
    write_kohya(path, random_pairs(layers, [QKV]), 1.0)
    path.write_bytes(path.read_bytes()[:-4])
    assert "it is cut off" in error_of(path, layers)


def test_a_name_is_the_file_s_or_the_folder_s_where_all_files_have_one(tmp_path: Path) -> None:
    (tmp_path / "faces").mkdir()
    assert name_of(Adapter(tmp_path / "ink v2.safetensors")) == "ink v2"
    assert name_of(Adapter(tmp_path / "faces")) == "faces"
    assert name_of(Adapter(tmp_path / "faces" / "adapter_model.safetensors")) == "faces"
