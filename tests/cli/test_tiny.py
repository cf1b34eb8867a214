"""`hunyuan tiny`: every option, and what it refuses."""

from __future__ import annotations

import json
import shlex

import pytest

from hunyuan.checkpoint.folder import read_config
from hunyuan.cli.main import main


def test_every_option_reaches_the_checkpoint(tmp_path, capsys):
    out = tmp_path / "out"
    sizes = shlex.split(
        "--hidden 96 --layers 3 --heads 6 --kv-heads 3 --head-dim 8 --experts 4 --topk 3 --expert-width 24"
    )
    rest = shlex.split(
        "--base-size 512 --extra-ratios --max-positions 999 --shards 2 --distil --dtype float32 --torch-dtype bfloat16"
    )
    assert main(["tiny", str(out), "--seed", "7", *sizes, *rest]) == 0
    assert "wrote" in capsys.readouterr().out
    config = read_config(out)
    assert (config.hidden_size, config.num_hidden_layers, config.attention_head_dim) == (96, 3, 8)
    assert (config.num_attention_heads, config.num_key_value_heads) == (6, 3)
    assert (config.num_experts, config.moe_topk, config.moe_intermediate_size) == ((4,) * 3, (3,) * 3, (24,) * 3)
    assert (config.image_base_size, config.has_extra_ratios, config.max_position_embeddings) == (512, True, 999)
    assert (config.cfg_distilled, config.torch_dtype) == (True, "bfloat16")
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {f"model-000{i}-of-0002.safetensors" for i in (1, 2)}


def test_seed_and_force(tmp_path):
    out = tmp_path / "out"
    weights = []
    for arguments in (["--seed", "1"], ["--seed", "2", "--force"], ["--seed", "1", "--force"]):
        assert main(["tiny", str(out), *arguments]) == 0
        weights.append((out / "model.safetensors").read_bytes())
    assert weights[0] == weights[2] != weights[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hidden", "100"], "hidden: 100, expected a multiple of 32"),
        (["--heads", "3"], "heads must be a multiple of kv_heads"),
        (["--base-size", "100"], "invalid choice: 100"),
        (["--shards", "0"], "shards must be 1 to"),
    ],
)
def test_wrong_options_are_explained(tmp_path, capsys, arguments, message):
    try:
        status = main(["tiny", str(tmp_path / "out"), *arguments])
    except SystemExit as exit_:  # argparse's own refusals
        status = exit_.code
    assert status == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_full_folder_is_refused(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["tiny", str(tmp_path)]) == 2
    assert "not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
