"""The tiny checkpoint: its files, its tokenizer, and a model made of it that keeps to its script."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast

from hunyuan.checkpoint.folder import read_config
from hunyuan.checkpoint.load import load_model
from hunyuan.checkpoint.tensor_table import expected_tensors
from hunyuan.checkpoint.tiny import write_tiny_checkpoint
from hunyuan.checkpoint.tiny_config import TinyShape
from hunyuan.checkpoint.tiny_tokenizer import SCRIPT_COT_TEXT, build_tokenizer, script_pairs, special_tokens
from hunyuan.errors import CheckpointError
from hunyuan.generation.kv_cache import KVCache
from hunyuan.model.attention import split_segments
from hunyuan.model.network import HunyuanImage3
from hunyuan.model.rope import positions_2d, rope_table
from hunyuan.prompt.resolution import Size, resolution_group
from hunyuan.prompt.system_prompt import SystemPrompts

GOLDEN = Path(__file__).parents[1] / "data" / "golden_a" / "checkpoint"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "out")


def load(folder: Path) -> HunyuanImage3:
    return load_model(folder, read_config(folder), CPU, torch.float32)


def read(folder: Path, name: str) -> dict:
    return json.loads((folder / name).read_text())


# --- files


def test_folder_holds_the_official_files_and_is_small(folder):
    assert {path.name for path in folder.iterdir()} == {path.name for path in GOLDEN.iterdir()}
    assert sum(path.stat().st_size for path in folder.iterdir()) < 6e6


def test_weight_file_is_as_readable_as_the_others(folder):
    modes = {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert len(modes) == 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_stored_dtypes(tmp_path, dtype):
    out = write_tiny_checkpoint(tmp_path / "out", dtype=dtype)
    specs = expected_tensors(read_config(out))
    weights = load_file(out / "model.safetensors")
    assert weights.keys() == specs.keys()
    for key, weight in weights.items():
        assert weight.dtype == (torch.float32 if specs[key].float32 else getattr(torch, dtype)), key


def test_configs_say_what_the_golden_ones_say(folder):
    ours, golden = read(folder, "config.json"), read(GOLDEN, "config.json")
    sizes = {"vocab_size", "max_position_embeddings", "rope_scaling", "image_fixed_shapes"}
    ids = {key for key in ours if key.endswith("_id")}
    nested = {"vit", "vit_processor", "vit_aligner"}
    for key in ours.keys() - sizes - ids - nested:
        assert ours[key] == golden[key], key
    for key in nested:
        assert {k: v for k, v in ours[key].items() if golden[key][k] != v} == {}
    assert read(folder, "tokenizer_config.json") == read(GOLDEN, "tokenizer_config.json")
    generation, golden_generation = (read(f, "generation_config.json") for f in (folder, GOLDEN))
    changed = {key for key, value in generation.items() if golden_generation[key] != value}
    assert changed == {"bot_task", "use_system_prompt", "max_length", "eos_token_id", "pad_token_id"}


@pytest.mark.parametrize(("extra", "size"), [(False, "288x224"), (True, "1024x768")])
def test_all_pictures_are_about_the_base_size_unless_the_four_extra_shapes_are_asked_for(tmp_path, extra, size):
    config = read_config(write_tiny_checkpoint(tmp_path / "out", TinyShape(extra_ratios=extra)))
    assert str(resolution_group(config.image_base_size, config.has_extra_ratios).nearest(Size(4, 3)).size) == size


def test_distil_config(tmp_path):
    out = write_tiny_checkpoint(tmp_path / "out", TinyShape(distil=True))
    config = read_config(out)
    assert (config.cfg_distilled, config.use_meanflow) == (True, True)
    assert read(out, "generation_config.json")["diff_infer_steps"] == 8
    with safe_open(out / "model.safetensors", "pt") as file:
        assert "timestep_r_emb.mlp.2.bias" in file.offset_keys()


def test_shards_hold_the_same_weights_as_one_file(tmp_path, folder):
    out = write_tiny_checkpoint(tmp_path / "out", shards=3)
    shards = [f"model-000{i}-of-0003.safetensors" for i in (1, 2, 3)]
    assert sorted(path.name for path in out.glob("*.safetensors")) == shards
    parts = {name: load_file(out / name) for name in shards}
    index = read(out, "model.safetensors.index.json")
    assert index["weight_map"] == {key: name for name, part in parts.items() for key in part}
    single = load_file(folder / "model.safetensors")
    together = {key: weight for part in parts.values() for key, weight in part.items()}
    assert together.keys() == single.keys()
    assert all(torch.equal(together[key], single[key]) for key in single)
    assert index["metadata"]["total_size"] == sum(w.numel() * w.element_size() for w in single.values())


def test_seed_decides_the_weights_and_nothing_else(tmp_path, folder):
    again = write_tiny_checkpoint(tmp_path / "again")
    other = write_tiny_checkpoint(tmp_path / "other", seed=1)
    for path in folder.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes(), path.name
        same = (other / path.name).read_bytes() == path.read_bytes()
        assert same == (path.suffix != ".safetensors"), path.name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": 48}, "hidden: 48, expected a multiple of 32"),
        ({"heads": 3}, "heads must be a multiple of kv_heads"),
        ({"kv_heads": 0}, "kv_heads: 0, expected greater than or equal to 1"),
        ({"head_dim": 18}, "head_dim: 18, expected a multiple of 4"),
        ({"topk": 9}, "topk must be at most experts"),
        ({"experts": 1, "topk": 1}, "experts: 1, expected greater than or equal to 2"),
        ({"base_size": 300}, "base_size: 300, expected 256, 512"),
        ({"layers": 0, "max_positions": 0}, "layers: 0, expected .* 1; max_positions: 0, expected"),
        ({"torch_dtype": "float16"}, "torch_dtype: 'float16', expected 'bfloat16' or 'float32'"),
        ({"width": 3}, "width: 3, "),
    ],
)
def test_impossible_shapes_are_refused(changes, message):
    with pytest.raises(CheckpointError, match=message):
        TinyShape(**changes)


@pytest.mark.parametrize(
    ("options", "message"), [({"dtype": "float16"}, "dtype"), ({"shards": 0}, "shards"), ({"shards": 9999}, "shards")]
)
def test_impossible_options_write_nothing(tmp_path, options, message):
    with pytest.raises(CheckpointError, match=message):
        write_tiny_checkpoint(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_full_folder_is_refused_unless_forced(tmp_path):
    out = write_tiny_checkpoint(tmp_path / "out", shards=2)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="not empty"):
        write_tiny_checkpoint(out)
    assert (out / "model-0002-of-0002.safetensors").exists()
    write_tiny_checkpoint(out, force=True)
    assert [path.name for path in out.glob("model*")] == ["model.safetensors"]
    assert (out / "notes.txt").read_text() == "mine"


def test_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(CheckpointError, match="is a file"):
        write_tiny_checkpoint(tmp_path / "out", force=True)


def test_system_prompts_can_be_read(folder):
    prompts = SystemPrompts.read(folder)
    texts = [
        prompts.preset(name).strip() for name in ("en_unified", "en_vanilla", "en_recaption", "en_think_recaption")
    ]
    assert len(set(texts)) == 4
    assert all(texts)
    assert "\n" in texts[0]


# --- tokenizer


def test_special_tokens_stand_in_the_official_order():
    golden = json.loads((GOLDEN / "tokenizer.json").read_text())["added_tokens"]
    official = [token["content"] for token in golden if not token["content"].startswith("<|extra_")]
    tokenizer = build_tokenizer()
    ids = [tokenizer.token_to_id(name) for name in special_tokens()]
    assert ids == list(range(ids[0], tokenizer.get_vocab_size()))
    assert [name for name in special_tokens() if not name.startswith("<|extra_")] == official
    assert tokenizer.token_to_id("<img_ratio_33>") > tokenizer.token_to_id("<img_ratio_32>") + 1


def test_tokenizer_and_config_agree(folder):
    tokenizer, config, generation = (
        build_tokenizer(),
        read(folder, "config.json"),
        read(folder, "generation_config.json"),
    )
    names = {"bos": "<|startoftext|>", "eos": "<|endoftext|>", "pad": "<pad>", "im_start": "<boi>", "image": "<img>"}
    keys = {"im_start": "im_start_id", "image": "image_token_id"}
    for key, token in names.items():
        assert config[keys.get(key, f"{key}_token_id")] == tokenizer.token_to_id(token)
    assert generation["eos_token_id"] == [config["eos_token_id"]]
    assert generation["pad_token_id"] == config["pad_token_id"]
    assert config["vocab_size"] % 64 == 0
    assert tokenizer.get_vocab_size() <= config["vocab_size"] < tokenizer.get_vocab_size() + 64


def test_tokenizer_keeps_any_text(folder):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    text = "Change the colours: 海 naïve\n\t\U0001f984 x"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
    assert len(ids) < len(text.encode())
    assert len(tokenizer.encode("a<think><img_ratio_36>", add_special_tokens=False)) == 3


# --- the script


@pytest.mark.parametrize(
    ("shape", "seed"),
    [
        (TinyShape(), 0),
        (TinyShape(), 1),
        (TinyShape(distil=True), 2),
        (TinyShape(hidden=32, head_dim=8, layers=1), 3),
        (TinyShape(layers=6, heads=8, kv_heads=8, experts=4, topk=4, base_size=1024), 4),
        (TinyShape(hidden=256, head_dim=128, expert_width=128), 5),
    ],
    ids=["default", "other seed", "distil", "narrow", "deep", "wide"],
)
@torch.no_grad()
def test_script_is_followed_whatever_came_before(tmp_path, shape, seed):
    model = load(write_tiny_checkpoint(tmp_path / "out", shape, seed=seed))
    config = model.config
    current, following = torch.tensor(script_pairs(build_tokenizer(), shape.base_size)).T
    generator = torch.Generator().manual_seed(seed)
    length = 300
    for image_size in (0.0, 0.3, 3.0):
        # A context of random tokens, the first half overwritten by what images might leave there.
        x = model.embed_tokens(torch.randint(config.vocab_size, (length,), generator=generator))
        if image_size:
            x[: length // 2] = image_size * torch.randn(length // 2, config.hidden_size, generator=generator)
        places = torch.randperm(length, generator=generator)[: len(current)]
        x[places] = model.embed_tokens(current)
        rope = rope_table(positions_2d(0, length, []), config.attention_head_dim, config.rope_theta)
        cache = KVCache.allocate(config, 1, length, torch.float32, CPU)
        hidden = model.model(x[None], rope, cache, split_segments(0, length, []))[0]
        logits = model.logits(hidden[places])
        best = logits.gather(1, following[:, None])
        assert (best - logits.scatter(1, following[:, None], -torch.inf).max(dim=1, keepdim=True).values).min() > 20


def test_script_leads_from_tag_to_tag_and_reads_back():
    tokenizer = build_tokenizer()
    follow = dict(script_pairs(tokenizer, 512))
    for tag in ("think", "recaption"):
        ids = [tokenizer.token_to_id(f"<{tag}>")]
        while ids[-1] in follow:
            ids.append(follow[ids[-1]])
        assert len(ids) == 8
        text = tokenizer.decode(ids, skip_special_tokens=False)
        assert text in SCRIPT_COT_TEXT
        assert text.endswith(f"</{tag}>")
        assert tokenizer.encode(text, add_special_tokens=False).ids == ids
    # What the engine has to force by itself.
    for end in ("</think>", "</recaption>", "<answer>", "<boi>"):
        assert tokenizer.token_to_id(end) not in follow


@pytest.mark.parametrize("base", [256, 1024])
def test_script_picks_the_bucket_of_a_1000x700_photo(base):
    tokenizer = build_tokenizer()
    picked = tokenizer.id_to_token(dict(script_pairs(tokenizer, base))[tokenizer.token_to_id(f"<img_size_{base}>")])
    assert picked == f"<img_ratio_{resolution_group(base).nearest(Size(1000, 700)).index}>"


# --- pictures


@torch.no_grad()
@pytest.mark.slow
def test_pictures_have_contrast_and_depend_on_latents_and_weights(tmp_path, folder):
    model, other = load(folder), load(write_tiny_checkpoint(tmp_path / "out", seed=1))
    latents = torch.randn(2, 8, 6, 5, generator=torch.Generator().manual_seed(0))
    pictures = model.decode_image(latents)
    assert pictures.shape == (2, 3, 96, 80)
    assert 0.1 < pictures.std() < 0.6
    assert (pictures.abs() > 1).float().mean() < 0.05
    assert (pictures[0] - pictures[1]).abs().mean() > 0.1
    assert (pictures - other.decode_image(latents)).abs().mean() > 0.1


@torch.no_grad()
def test_encoded_picture_outweighs_its_noise(folder):
    model = load(folder)
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(2, 3, 4, 5, generator=generator) * 2 - 1
    posterior = model.encode_image(torch.nn.functional.interpolate(coarse, scale_factor=16, mode="bilinear"))
    spread = posterior.mean.std()
    assert 0.2 < spread < 5
    assert (0.5 * posterior.logvar).exp().mean() < 0.3 * spread
    assert (posterior.mean[0] - posterior.mean[1]).abs().mean() > 0.1 * spread
