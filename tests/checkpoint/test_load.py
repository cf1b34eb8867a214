"""The loader: every tensor in its place once, little held at a time, and one clear error for a folder that is wrong."""

from __future__ import annotations

import gc
import json
import logging
import os
import re
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_model import Buffers, model_config
from torch import Tensor

from hunyuan.checkpoint import folder as folders
from hunyuan.checkpoint import load
from hunyuan.checkpoint.folder import check_keys, read_config, read_json, weight_files
from hunyuan.checkpoint.load import empty_model, load_model
from hunyuan.checkpoint.safetensors_file import ShardReader
from hunyuan.checkpoint.tensor_table import expected_tensors
from hunyuan.checkpoint.tiny import write_tiny_checkpoint
from hunyuan.checkpoint.tiny_config import TinyShape
from hunyuan.errors import CheckpointError
from hunyuan.model.attention import split_segments
from hunyuan.model.network import HunyuanImage3
from hunyuan.model.rope import positions_2d, rope_table
from hunyuan.plan.weights import weight_bytes

CPU = torch.device("cpu")
SHARDS = [f"model-000{i}-of-0003.safetensors" for i in (1, 2, 3)]
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("single") / "out")


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("sharded") / "out", shards=3)


@pytest.fixture
def broken(sharded: Path, tmp_path: Path) -> Path:
    """A copy of the sharded checkpoint for a test to damage."""
    return shutil.copytree(sharded, tmp_path / "broken")


def loaded(folder: Path, dtype: torch.dtype = torch.float32) -> HunyuanImage3:
    return load_model(folder, read_config(folder), CPU, dtype)


def stored(folder: Path) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        weights |= load_file(path)
    return weights


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Changes the tensors of a weight file, or the values of a JSON file, in place."""
    if path.suffix == ".json":
        value = json.loads(path.read_text())
        change(value)
        path.write_text(json.dumps(value))
    else:
        weights = load_file(path)
        change(weights)
        save_file(weights, path)


def error_of(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        loaded(folder)
    return str(caught.value)


def nbytes(tensors: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


# --- what is loaded


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_tensor_stands_in_its_place(single, dtype):
    dtype = getattr(torch, dtype)
    model, config = loaded(single, dtype), read_config(single)
    parameters = dict(model.named_parameters())
    filled = dict.fromkeys(parameters, 0)
    specs, weights = expected_tensors(config), stored(single)
    for key, weight in weights.items():
        target = parameters[specs[key].param]
        place = target if specs[key].slot is None else target[specs[key].slot]
        assert torch.equal(place.float(), weight.float()), key
        assert place.dtype == (torch.float32 if key.startswith("vae.") or key.endswith("wg.weight") else dtype)
        filled[specs[key].param] += weight.numel()
    assert filled == {name: parameter.numel() for name, parameter in parameters.items()}


@pytest.mark.parametrize(
    ("device", "dtype", "expected"),
    [
        ("cuda", "bfloat16", "float16"),
        ("cuda:1", "float16", "float16"),
        ("cuda", "float32", "float32"),
        ("cpu", "float32", "float32"),
        ("cpu", "bfloat16", "float32"),
    ],
)
def test_where_the_autoencoder_gets_which_type(device, dtype, expected):
    found = load.autoencoder_dtype(torch.device(device), getattr(torch, dtype))
    assert found == getattr(torch, expected)


@pytest.mark.parametrize(("place", "expected"), [("cpu", torch.float32), ("cuda", torch.float16)])
def test_the_autoencoders_fp32_weights_are_rounded_once(single, tmp_path, monkeypatch, place, expected):
    """Stored in fp32 as published, with values that bf16 would round: they must not pass through it."""
    folder = shutil.copytree(single, tmp_path / "fp32")
    generator, exact = torch.Generator().manual_seed(1), {}

    def widen(weights: dict[str, Tensor]) -> None:
        for key in [key for key in weights if key.startswith("vae.")]:
            weights[key] = exact[key] = weights[key].float() + 1e-3 * torch.rand(
                weights[key].shape, generator=generator
            )

    edit(folder / "model.safetensors", widen)
    choose = load.autoencoder_dtype
    monkeypatch.setattr(load, "autoencoder_dtype", lambda _, dtype: choose(torch.device(place), dtype))
    parameters = dict(loaded(folder, torch.bfloat16).named_parameters())
    assert len(exact) > 50
    for key, weight in exact.items():
        once, twice = weight.to(expected), weight.bfloat16().to(expected)
        assert torch.equal(parameters[key], once), key
        assert weight.numel() < 8 or not torch.equal(once, twice), key
    assert parameters["model.wte.weight"].dtype == torch.bfloat16


def test_shards_load_the_same_as_one_file(single, sharded):
    ours, theirs = (dict(loaded(folder).named_parameters()) for folder in (single, sharded))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.trap(9)
def test_experts_are_stacked_at_load_by_their_own_number(single):
    model, weights = loaded(single), stored(single)
    for layer in range(2):
        experts = model.model.layers[layer].mlp.experts
        for name in ("gate_and_up_proj", "down_proj"):
            keys = [f"model.layers.{layer}.mlp.experts.{e}.{name}.weight" for e in range(8)]
            assert torch.equal(getattr(experts, name), torch.stack([weights[k].float() for k in keys]))


@pytest.mark.trap(9)
def test_experts_are_stacked_by_number_in_files_of_any_order(tmp_path):
    """Twelve experts: 10 sorts before 2. Shards hold them in turns and last first."""
    folder = write_tiny_checkpoint(tmp_path / "out", TinyShape(experts=12), dtype="float32")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    keys = sorted(weights, reverse=True)
    parts = {"b.safetensors": keys[::2], "a.safetensors": keys[1::2]}
    for name, part in parts.items():
        save_file({key: weights[key] for key in part}, folder / name)
    weight_map = {key: name for name, part in parts.items() for key in part}
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    stack = loaded(folder).model.layers[1].mlp.experts.down_proj
    for expert in range(12):
        assert torch.equal(stack[expert], weights[f"model.layers.1.mlp.experts.{expert}.down_proj.weight"]), expert


@pytest.mark.trap(9)
@torch.no_grad()
def test_weights_exist_once_and_stay_once_after_a_forward(single):
    model = loaded(single, torch.bfloat16)
    # Everything in 16 bits, but the router and on a CPU the autoencoder.
    size = sum(w.numel() * (4 if k.startswith("vae.") or ".gate." in k else 2) for k, w in stored(single).items())
    assert nbytes(model.parameters()) == size

    def storages() -> dict[int, int]:
        tensors = [
            value
            for module in model.modules()
            for holder in (vars(module), module._parameters, module._buffers)
            for value in holder.values()
            if isinstance(value, Tensor)
        ]
        return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}

    before = storages()
    assert sum(before.values()) == size
    assert not any("experts." in name for name, _ in model.named_modules())
    rope = rope_table(positions_2d(0, 6, []), 16, 10000.0)
    model.model(model.embed_tokens(torch.arange(6))[None], rope, Buffers(), split_segments(0, 6, []))
    assert storages() == before


@pytest.mark.trap(14)
def test_router_is_fp32_to_the_last_bit_in_a_bf16_model(single):
    model, weights = loaded(single, torch.bfloat16), stored(single)
    for layer in range(2):
        router, key = model.model.layers[layer].mlp.gate.wg.weight, f"model.layers.{layer}.mlp.gate.wg.weight"
        assert router.dtype == torch.float32
        assert torch.equal(router, weights[key])
        assert not torch.equal(router, router.bfloat16().float())
    others = {
        p.dtype for name, p in model.named_parameters() if "mlp.gate.wg" not in name and not name.startswith("vae.")
    }
    assert others == {torch.bfloat16}


def test_model_is_ready_for_inference(single):
    model = loaded(single)
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert {t.device for t in (*model.parameters(), *model.buffers())} == {CPU}


def test_device_is_obeyed(single):
    model = load_model(single, read_config(single), torch.device("meta"), torch.bfloat16)
    assert {t.device.type for t in (*model.parameters(), *model.buffers())} == {"meta"}


def test_loaded_weights_do_not_hang_on_the_file(tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "out", dtype="float32")
    model = loaded(folder)
    before = {name: p.clone() for name, p in model.named_parameters()}
    path = folder / "model.safetensors"
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"\xff" * (path.stat().st_size // 2))
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_tied_embeddings_need_no_second_matrix(broken):
    edit(broken / "config.json", lambda raw: raw.update(tie_word_embeddings=True))
    for shard in SHARDS:
        edit(broken / shard, lambda weights: weights.pop("lm_head.weight", None))
    edit(broken / INDEX, lambda index: index["weight_map"].pop("lm_head.weight"))
    model = loaded(broken)
    assert model.lm_head.weight is model.model.wte.weight
    assert torch.equal(model.lm_head.weight, stored(broken)["model.wte.weight"].float())


def test_distil_checkpoint_loads(tmp_path):
    model = loaded(write_tiny_checkpoint(tmp_path / "out", TinyShape(distil=True, layers=1)))
    weight = stored(tmp_path / "out")["timestep_r_emb.mlp.2.weight"]
    assert torch.equal(model.timestep_r_emb.mlp[2].weight, weight.float())


@pytest.mark.trap(11)
def test_folder_may_have_dots_in_its_name(single, tmp_path):
    folder = shutil.copytree(single, tmp_path / "v1.0.dots" / "HunyuanImage-3.0.Instruct")
    assert torch.equal(loaded(folder).lm_head.weight, loaded(single).lm_head.weight)


def test_other_files_in_the_folder_do_not_matter(single, tmp_path):
    folder = shutil.copytree(single, tmp_path / "out")
    (folder / "modeling.py").write_text("raise SystemExit")
    (folder / "other.safetensors").write_bytes(b"no weights")
    assert loaded(folder) is not None


def test_index_wins_over_a_single_file(sharded, tmp_path):
    folder = shutil.copytree(sharded, tmp_path / "out")
    (folder / "model.safetensors").write_bytes(b"left behind")
    assert weight_files(folder) == SHARDS


def test_progress_shows_in_the_log_and_not_on_a_pipe(sharded, caplog, capfd):
    caplog.set_level(logging.INFO, logger="hunyuan")
    loaded(sharded)
    count = len(expected_tensors(read_config(sharded)))
    assert caplog.messages[0] == f"loading {count} tensors from 3 files of out"
    assert re.fullmatch(r"all weights loaded: 0\.0\d GB in \d+\.\d s", caplog.messages[1])
    assert len(caplog.messages) == 2
    assert capfd.readouterr().err == ""


# --- how much is held


class WatchedShard(ShardReader):
    """A weight file that notes what is read through it, and where to."""

    reads: ClassVar[list[tuple[str, int, int]]]
    buffers: ClassVar[dict[int, int]]

    def read_into(self, buffer: Tensor, start: int) -> None:
        super().read_into(buffer, start)
        self.reads.append((self.name, start, len(buffer)))
        storage = buffer.untyped_storage()
        self.buffers[storage.data_ptr()] = storage.nbytes()


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> type[WatchedShard]:
    # A class of its own: each test counts from zero.
    kind = type("Watched", (WatchedShard,), {"reads": [], "buffers": {}})
    monkeypatch.setattr(folders, "ShardReader", kind)
    return kind


def test_everything_goes_through_a_few_small_buffers(sharded, watched, monkeypatch):
    monkeypatch.setattr(load, "PIECE_BYTES", 4096)
    model = loaded(sharded)
    assert len(watched.buffers) <= 2
    assert max(watched.buffers.values()) == 4096
    monkeypatch.undo()
    plain = dict(loaded(sharded).named_parameters())
    assert all(torch.equal(p, plain[name]) for name, p in model.named_parameters())


def test_each_byte_is_read_once(sharded, watched, monkeypatch):
    monkeypatch.setattr(load, "PIECE_BYTES", 10_000)
    loaded(sharded)
    for name in SHARDS:
        with ShardReader(sharded / name) as shard:
            entries = list(shard.entries.values())
        at = entries[0].start
        for _, start, size in sorted(read for read in watched.reads if read[0] == name):
            assert start == at
            at += size
        assert at == entries[-1].start + entries[-1].size == (sharded / name).stat().st_size


def test_shards_are_closed(sharded, monkeypatch):
    opened: list[ShardReader] = []

    class Noted(ShardReader):
        def __init__(self, path: Path) -> None:
            super().__init__(path)
            opened.append(self)

    monkeypatch.setattr(folders, "ShardReader", Noted)
    loaded(sharded)
    assert len(opened) == 3
    assert all(shard._file == -1 for shard in opened)


# --- what is refused


def test_all_differences_are_named_in_one_error(broken):
    def damage(weights: dict[str, Tensor]) -> None:
        if "model.ln_f.weight" in weights:
            weights["model.ln_f.bias"] = torch.zeros(64)
        weights.pop("model.ln_f.weight", None)
        weights.pop("model.layers.1.mlp.experts.3.down_proj.weight", None)
        if "vision_aligner.layers.0.bias" in weights:
            weights["vision_aligner.layers.0.bias"] = torch.zeros(65)
        if "model.layers.0.mlp.experts.7.gate_and_up_proj.weight" in weights:
            weights["model.layers.0.mlp.experts.7.gate_and_up_proj.weight"] = torch.zeros(32, 64)
            weights["model.layers.0.mlp.experts.8.gate_and_up_proj.weight"] = torch.zeros(64, 64)

    for shard in SHARDS:
        edit(broken / shard, damage)
    message = error_of(broken)
    missing, unexpected, shapes = message.split("; ")[1:]
    assert missing == "2 missing: model.layers.1.mlp.experts.3.down_proj.weight, model.ln_f.weight"
    assert unexpected.startswith("2 unexpected: ")
    assert "model.ln_f.bias" in unexpected
    assert "model.layers.0.mlp.experts.8.gate_and_up_proj.weight" in unexpected
    assert shapes.startswith("2 of the wrong shape: ")
    assert "vision_aligner.layers.0.bias (65,) instead of (64,)" in shapes
    assert "model.layers.0.mlp.experts.7.gate_and_up_proj.weight (32, 64) instead of (64, 64)" in shapes


def test_same_number_of_values_in_another_shape_is_refused(broken):
    key = "model.layers.0.mlp.experts.0.down_proj.weight"
    for shard in SHARDS:
        edit(broken / shard, lambda weights: key in weights and weights.update({key: torch.zeros(32, 64)}))
    assert f"1 of the wrong shape: {key} (32, 64) instead of (64, 32)" in error_of(broken)


def test_long_lists_of_names_are_cut_with_their_number():
    specs = expected_tensors(model_config())
    with pytest.raises(CheckpointError) as caught:
        check_keys(specs, {})
    message = str(caught.value)
    assert f"{len(specs)} missing: " in message
    assert message.endswith(f" and {len(specs) - 200} more")
    assert message.count(", ") == 199


def test_config_of_another_size_is_refused_and_named(broken):
    edit(broken / "config.json", lambda raw: raw.update(num_experts=9))
    message = error_of(broken)
    assert "model.layers.1.mlp.experts.8.down_proj.weight" in message
    assert "model.layers.0.mlp.gate.wg.weight (8, 64) instead of (9, 64)" in message


def test_nothing_is_built_for_weights_that_do_not_match(broken, monkeypatch):
    edit(broken / SHARDS[2], lambda weights: weights.popitem())
    monkeypatch.setattr(load, "empty_model", lambda *_: pytest.fail("built before the check"))
    assert "1 missing" in error_of(broken)


def test_failure_on_the_way_leaves_no_half_model(sharded, watched, monkeypatch):
    built: list[weakref.ref[HunyuanImage3]] = []

    def build(*arguments: Any) -> HunyuanImage3:
        model = empty_model(*arguments)
        built.append(weakref.ref(model))
        return model

    def fail(_self: ShardReader, _buffer: Tensor, _start: int) -> None:
        raise OSError("the disk went away")

    monkeypatch.setattr(load, "empty_model", build)
    monkeypatch.setattr(watched, "read_into", fail)
    with pytest.raises(OSError, match="went away") as caught:
        loaded(sharded)
    assert len(built) == 1
    del caught
    gc.collect()
    assert built[0]() is None


@pytest.mark.parametrize("gone", [SHARDS[1:2], SHARDS[1:]])
def test_missing_shards_are_named(broken, gone):
    for name in gone:
        (broken / name).unlink()
    message = error_of(broken)
    assert message == f"weight files named by {INDEX} are missing: {', '.join(gone)}"


@pytest.mark.parametrize("kept", [0, 4, 2000, -1])
def test_truncated_shard_is_named(broken, kept):
    path = broken / SHARDS[1]
    path.write_bytes(path.read_bytes()[:kept])
    assert error_of(broken).startswith(f"{SHARDS[1]} cannot be read as safetensors: ")


def test_truncated_single_file_is_named(single, tmp_path):
    folder = shutil.copytree(single, tmp_path / "out")
    (folder / "model.safetensors").write_bytes((single / "model.safetensors").read_bytes()[:-1])
    assert error_of(folder).startswith("model.safetensors cannot be read as safetensors: ")


def test_key_of_the_index_that_no_shard_holds_is_named(broken):
    key = "time_embed.mlp.0.bias"
    for shard in SHARDS:
        edit(broken / shard, lambda weights: weights.pop(key, None))
    assert key in json.loads((broken / INDEX).read_text())["weight_map"]
    assert error_of(broken).endswith(f"1 missing: {key}")


def test_folder_without_weights(broken):
    for path in (*broken.glob("*.safetensors"), broken / INDEX):
        path.unlink()
    assert error_of(broken) == f"neither {INDEX} nor model.safetensors is in the checkpoint folder broken"


def test_index_without_a_map(broken):
    (broken / INDEX).write_text('{"metadata": {}}')
    assert error_of(broken) == f"{INDEX}: weight_map must map each key to the name of a file"


@pytest.mark.parametrize("name", [3, ["a"], None])
def test_index_that_names_no_file(broken, name):
    edit(broken / INDEX, lambda raw: raw["weight_map"].update({"lm_head.weight": name}))
    assert error_of(broken) == f"{INDEX}: weight_map must map each key to the name of a file"


def test_index_key_that_nobody_holds_is_named(broken):
    edit(broken / INDEX, lambda raw: raw["weight_map"].update({"novel.weight": SHARDS[0]}))
    assert error_of(broken).endswith(f"that their shards do not hold: novel.weight (in {SHARDS[0]})")


def test_key_in_two_shards_is_named(broken):
    edit(broken / SHARDS[0], lambda weights: weights.update({"model.ln_f.weight": torch.zeros(64)}))
    edit(broken / SHARDS[1], lambda weights: weights.update({"model.ln_f.weight": torch.zeros(64)}))
    assert error_of(broken).endswith("in more than one shard: model.ln_f.weight")


def test_weights_of_another_kind_are_named(broken):
    key = "model.layers.0.mlp.shared_mlp.down_proj.weight"

    def quantize(weights: dict[str, Tensor]) -> None:
        if key in weights:
            weights[key] = weights[key].to(torch.int8)

    for shard in SHARDS:
        edit(broken / shard, quantize)
    assert error_of(broken).endswith(f"not stored as config.json says: {key} I8 instead of BF16 or F16 or F32")


def test_file_that_shrinks_while_it_is_read_is_named(broken, watched, monkeypatch):
    """Its header was fine when it was opened."""
    real = WatchedShard.read_into

    def shrink(self: WatchedShard, buffer: Tensor, start: int) -> None:
        if self.name == SHARDS[1]:
            os.truncate(broken / SHARDS[1], 5000)
        real(self, buffer, start)

    monkeypatch.setattr(watched, "read_into", shrink)
    assert error_of(broken) == f"{SHARDS[1]} became shorter while it was read"


@pytest.mark.parametrize("name", ["config.json", INDEX])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is no valid JSON: "),
        (b"", "is no valid JSON: "),
        (b"\xff\xfe{}", "is no valid JSON: "),
        (b"[]", "holds no JSON object"),
        (b"null", "holds no JSON object"),
    ],
)
def test_broken_json_is_named(broken, name, content, message):
    (broken / name).write_bytes(content)
    assert error_of(broken).startswith(f"{name} {message}")


def test_missing_json_is_named_with_its_folder(broken):
    (broken / "config.json").unlink()
    assert error_of(broken) == "config.json is missing in the checkpoint folder broken"


def test_folder_in_place_of_a_file_is_missing(tmp_path):
    (tmp_path / "config.json").mkdir()
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        read_json(tmp_path, "config.json")


# --- a second copy


def test_a_copy_for_painting_holds_what_a_step_reads_and_shares_nothing(single: Path) -> None:
    config = read_config(single).with_formats("mxfp4", "fp8")
    model = load_model(single, config, CPU, torch.bfloat16)
    copy = load.copy_for_painting(model, config, CPU)
    ours, theirs = dict(copy.named_parameters()), dict(model.named_parameters())
    assert ours.keys() == theirs.keys()
    held = {name for name, parameter in ours.items() if not parameter.is_meta}
    assert {name.split(".")[0] for name in ours.keys() - held} == {
        "vae",
        "vision_model",
        "vision_aligner",
        "lm_head",
        "model",
    }
    assert [name for name in ours.keys() - held if name.startswith("model.")] == ["model.ln_f.weight"]
    for name in held:
        assert ours[name].dtype == theirs[name].dtype
        assert torch.equal(ours[name], theirs[name]), name
        assert ours[name].data_ptr() != theirs[name].data_ptr(), name
        assert not ours[name].requires_grad
    assert not copy.training


def test_a_copy_takes_what_the_plan_says(single: Path) -> None:
    config = read_config(single).with_formats("mxfp4", "bf16")
    copy = load.copy_for_painting(load_model(single, config, CPU, torch.float32), config, CPU)
    parts = weight_bytes(config, itemsize=4)
    planned = sum(parts.layer(i) for i in range(config.num_hidden_layers)) + parts.painting
    assert sum(p.numel() * p.element_size() for p in copy.parameters() if not p.is_meta) == planned


def test_a_copy_reads_no_file(single: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded(single)
    monkeypatch.setattr(ShardReader, "read_into", lambda *_: pytest.fail("read"))
    load.copy_for_painting(model, read_config(single), CPU)
