"""The command line of scripts/make_tiny_checkpoint.py."""

from __future__ import annotations

import importlib.util
import json
import shlex
from pathlib import Path
from types import ModuleType

import pytest

from hunyuan.checkpoint.load import read_config


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = Path(__file__).parents[1] / "scripts" / "make_tiny_checkpoint.py"
    spec = importlib.util.spec_from_file_location("make_tiny_checkpoint", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_option_reaches_the_checkpoint(script, tmp_path, capsys):
    out = tmp_path / "out"
    sizes = shlex.split(
        "--hidden 96 --layers 3 --heads 6 --kv-heads 3 --head-dim 8 --experts 4 --topk 3 --expert-width 24"
    )
    rest = shlex.split("--base-size 512 --max-positions 999 --shards 2 --distil --dtype float32 --torch-dtype bfloat16")
    assert script.main([str(out), "--seed", "7", *sizes, *rest]) == 0
    assert "wrote" in capsys.readouterr().out
    config = read_config(out)
    assert (config.hidden_size, config.num_hidden_layers, config.attention_head_dim) == (96, 3, 8)
    assert (config.num_attention_heads, config.num_key_value_heads) == (6, 3)
    assert (config.num_experts, config.moe_topk, config.moe_intermediate_size) == ((4,) * 3, (3,) * 3, (24,) * 3)
    assert (config.image_base_size, config.max_position_embeddings) == (512, 999)
    assert (config.cfg_distilled, config.torch_dtype) == (True, "bfloat16")
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {f"model-000{i}-of-0002.safetensors" for i in (1, 2)}


def test_seed_and_force(script, tmp_path):
    out = tmp_path / "out"
    weights = []
    for arguments in (["--seed", "1"], ["--seed", "2", "--force"], ["--seed", "1", "--force"]):
        assert script.main([str(out), *arguments]) == 0
        weights.append((out / "model.safetensors").read_bytes())
    assert weights[0] == weights[2] != weights[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hidden", "100"], "hidden must be a multiple of 32"),
        (["--heads", "3"], "heads must be a multiple of kv_heads"),
        (["--base-size", "100"], "invalid choice: 100"),
        (["--shards", "0"], "shards must be 1 to"),
    ],
)
def test_wrong_options_are_explained(script, tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit) as exit_info:
        script.main([str(tmp_path / "out"), *arguments])
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_full_folder_is_refused(script, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SystemExit):
        script.main([str(tmp_path)])
    assert "not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
