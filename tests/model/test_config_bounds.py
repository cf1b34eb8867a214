"""Numbers in config.json that no model has: refused at once, by name, and before anything is made of them."""

from __future__ import annotations

import copy
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from own_process import Cost, cost_of

from hunyuan import Editor, Settings
from hunyuan.checkpoint import tiny_config
from hunyuan.checkpoint.folder import INDEX_FILE, MOST_FILES, weight_files
from hunyuan.checkpoint.full_size import full_size_config
from hunyuan.checkpoint.tiny import write_tiny_checkpoint
from hunyuan.checkpoint.tiny_tokenizer import build_tokenizer
from hunyuan.errors import CheckpointError
from hunyuan.model.config import MOST_EXPERTS, ModelConfig

WIDTH = 1 << 16
MOST = {
    "hidden_size": WIDTH,
    "attention_head_dim": WIDTH,
    "intermediate_size": WIDTH,
    "moe_intermediate_size": WIDTH,
    "patch_embed_hidden_dim": WIDTH,
    "vae_downsample_factor": 256,
    "num_hidden_layers": 512,
    "num_experts": 4096,
    "moe_topk": 4096,
    "num_shared_expert": 4096,
    "moe_layer_num_skipped": 512,
    "num_attention_heads": 4096,
    "num_key_value_heads": 4096,
    "max_position_embeddings": 1 << 20,
    "image_base_size": 4096,
    "vocab_size": 1 << 22,
    "vae.block_out_channels": WIDTH,
    "vae.in_channels": 64,
    "vae.out_channels": 64,
    "vae.latent_channels": WIDTH,
    "vae.layers_per_block": 16,
    "vae.ffactor_spatial": 256,
    "vae.ffactor_temporal": 256,
    "vit.hidden_size": WIDTH,
    "vit.intermediate_size": WIDTH,
    "vit.num_channels": 64,
    "vit.num_patches": WIDTH,
    "vit.num_hidden_layers": 512,
    "vit.num_attention_heads": 4096,
    "vit.patch_size": 256,
    "vit_processor.max_num_patches": 1 << 14,
    "vit_aligner.input_dim": WIDTH,
    "vit_aligner.n_embed": WIDTH,
    "vit_aligner.depth": 64,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture
def folder(tmp_path: Path, whole: Path) -> Path:
    """With a config of its own; the other files are links."""
    for path in whole.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "config.json").unlink()
    shutil.copy(whole / "config.json", tmp_path)
    return tmp_path


def changed(raw: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    section = raw = copy.deepcopy(raw)
    *above, key = path.split(".")
    for name in above:
        section = section[name]
    section[key] = value
    return raw


def change(folder: Path, path: str, value: Any) -> None:
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(changed(raw, path, value)))


def load(folder: Path) -> Cost:
    return cost_of(Editor.load, Settings(model_id=folder, device="cpu"))


RAW = tiny_config.model_config(tiny_config.DEFAULT_SHAPE, build_tokenizer())
LISTS = ("vae.block_out_channels", "vae_downsample_factor")


def refused(changes: dict[str, Any]) -> str:
    raw = RAW
    for path, value in changes.items():
        raw = changed(raw, path, value)
    with pytest.raises(CheckpointError) as caught:
        ModelConfig.from_dict(raw)
    assert len(str(caught.value)) < 5000
    return str(caught.value)


@pytest.mark.parametrize("path", MOST)
def test_a_number_beyond_its_bound_is_named(path: str) -> None:
    for value in (MOST[path] + 1, 10**9, 10**30):
        told = refused({path: [value] * 2 if path in LISTS else value})
        assert re.search(rf"{path}(\.\d)?: {value}, at most {MOST[path]} is allowed", told)


@pytest.mark.parametrize("path", MOST)
def test_the_bound_itself_is_allowed(path: str) -> None:
    raw = changed(RAW, path, [MOST[path]] * 5 if path in LISTS else MOST[path])
    try:
        ModelConfig.from_dict(raw)
        told = ""
    except CheckpointError as error:  # it may not fit the other values
        told = str(error)
    assert f"at most {MOST[path]} is" not in told


@pytest.mark.parametrize("path", MOST)
def test_what_is_no_such_number_is_named(path: str) -> None:
    for value in ([10**9] * 8, -(10**12), "x" * 10**6):
        assert path in refused({path: value})


def test_a_long_list_is_named() -> None:
    told = refused({"vae.block_out_channels": [32] * 100_000})
    assert re.search(r"vae.block_out_channels: \[32, 32.*at most 512 items", told)


def test_not_every_one_of_many_wrong_numbers_is_told() -> None:
    every = dict.fromkeys(("num_experts", "moe_topk", "num_shared_expert", "moe_intermediate_size"), [10**9] * 512)
    assert refused({"num_hidden_layers": 512, **every}).count("is allowed") == 20


@pytest.mark.parametrize("experts", [4096, [4096] * 512])
def test_experts_of_all_layers_are_bounded_together(experts: Any) -> None:
    others = {"num_hidden_layers": 512, "moe_topk": 2, "num_shared_expert": 1, "moe_intermediate_size": 32}
    assert f"num_experts: {4096 * 512} in all; at most 16384" in refused({**others, "num_experts": experts})


def test_the_published_models_are_far_below() -> None:
    raw = full_size_config(experts="bf16")
    ModelConfig.from_dict(raw)
    assert raw["num_hidden_layers"] * raw["num_experts"] * 8 <= MOST_EXPERTS


# --- through the whole loading, in a process of its own


@pytest.mark.parametrize(
    ("path", "value"), [("num_hidden_layers", 10**9), ("num_experts", 10**7), ("vit.num_hidden_layers", 10**8)]
)
def test_loading_refuses_at_once(folder: Path, path: str, value: int) -> None:
    change(folder, path, value)
    cost = load(folder)
    assert re.search(rf"{path}(\.0)?: {value}, at most", cost.refusal or "")
    assert cost.mib < 100
    assert cost.seconds < 2


@pytest.mark.parametrize(
    "values",
    [
        {"num_hidden_layers": 512, "num_experts": 32, "moe_topk": 2, "num_shared_expert": 1},
        {"vit.num_hidden_layers": 512},
        {"vae.layers_per_block": 16},
        {"hidden_size": 65536, "vit_aligner.n_embed": 65536},
        {"vocab_size": 1 << 22},
    ],
    ids=lambda values: next(iter(values)),
)
def test_the_bounds_themselves_cost_little(folder: Path, values: dict[str, Any]) -> None:
    """Numbers that the weights do not bear out: the files' headers are looked at before anything is allocated."""
    for path, value in values.items():
        change(folder, path, value)
    cost = load(folder)
    assert cost.refusal
    assert cost.mib < 800
    assert cost.seconds < 30


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("rms_norm_eps", -1.0),
        ("rms_norm_eps", 1e9),
        ("vit.layer_norm_eps", 0.0),
        ("rope_theta", -1.0),
        ("rope_theta", 0.0),
        ("vae.scaling_factor", -1.0),
        ("vit_processor.image_mean", []),
        ("vit_processor.image_std", [0.5, 0.0, 0.5]),
        ("vit_processor.rescale_factor", -1.0),
        ("vit.hidden_act", "x" * 10**6),
    ],
)
def test_numbers_that_make_no_picture_are_refused_by_name(path: str, value: Any) -> None:
    told = refused({path: value})
    assert path in told
    assert len(told) < 500


def test_an_index_of_countless_files_is_refused_at_once(folder: Path) -> None:
    index = {"weight_map": {f"key{i}": f"file{i}" for i in range(MOST_FILES + 1)}}
    (folder / INDEX_FILE).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=f"names {MOST_FILES + 1} weight files; at most {MOST_FILES}"):
        weight_files(folder)
