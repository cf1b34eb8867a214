"""Which checkpoint a folder holds: by fingerprints that the tests put in place, names, types and config.json."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hunyuan.checkpoint import identity, packed, verify
from hunyuan.checkpoint.builtin import known_checkpoints
from hunyuan.checkpoint.folder import read_config
from hunyuan.checkpoint.load import load_model
from hunyuan.checkpoint.network_fit import misfits
from hunyuan.checkpoint.quantize import GIB, QuantizeOptions, quantize_folder
from hunyuan.checkpoint.tensor_table import expected_tensors
from hunyuan.checkpoint.tiny import write_tiny_checkpoint
from hunyuan.checkpoint.tiny_config import TinyShape
from hunyuan.cli.main import main
from hunyuan.demo import FOLDER
from hunyuan.formats.config import CheckpointConfig

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests/data"
SHARDS = 9  # of a tiny checkpoint; some stacks of experts then lie in two of them


def bf16_print(folder: Path, key: str) -> str:
    """As the published fingerprints are defined, without the code under test."""
    for path in folder.glob("*.safetensors"):
        weights = load_file(path)
        if key in weights:
            data = weights[key].bfloat16().view(torch.uint8).numpy().tobytes()
            return hashlib.sha256(data).hexdigest()[:16]
    raise AssertionError(f"no {key}")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One tiny checkpoint for each published one."""
    parent = tmp_path_factory.mktemp("published")
    made = {
        identity.INSTRUCT: write_tiny_checkpoint(parent / "instruct", seed=1, shards=SHARDS),
        identity.DISTIL: write_tiny_checkpoint(parent / "distil", TinyShape(distil=True), seed=2, shards=SHARDS),
        identity.BASE: write_tiny_checkpoint(parent / "base", seed=3, shards=SHARDS),
    }
    change_config(made[identity.BASE], model_version=identity.BASE)
    return made


@pytest.fixture(autouse=True)
def table(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> identity.Table:
    """The published fingerprints are those of the tiny checkpoints."""
    keys = (identity.FIRST, identity.LAST)
    prints = {name: {key: bf16_print(folder, key) for key in keys} for name, folder in folders.items()}
    monkeypatch.setattr(identity, "PUBLISHED", prints)
    return prints


@pytest.fixture
def instruct(folders: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(folders[identity.INSTRUCT], tmp_path / "copy"))


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    raw = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in raw.items() if value is not None}))


def verified(folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, list[str]]:
    """Status of `hunyuan verify`, what it says the folder is, and what is wrong."""
    status = main(["verify", str(folder)])
    out, err = capsys.readouterr()
    said, *rest = out.splitlines()
    assert rest == ([] if status else [f"{folder} is complete"])
    return status, said.removeprefix(f"{folder}: "), err.splitlines()


# --- whole


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (identity.INSTRUCT, "HunyuanImage-3.0-Instruct by its fingerprints, 347 tensors"),
        (identity.DISTIL, "HunyuanImage-3.0-Instruct-Distil by its fingerprints, 355 tensors"),
        (identity.BASE, "HunyuanImage-3.0 (base) by its fingerprints, 347 tensors"),
    ],
)
def test_a_whole_folder_is_named(folders: dict[str, Path], name: str, said: str, capsys) -> None:
    expected = f"{said}, 2 layers, not quantized (BF16)"
    assert verified(folders[name], capsys) == (0, expected, [])


def test_the_script_alone_names_it_too(folders: dict[str, Path]) -> None:
    """As scripts/download_model.sh runs it: nothing installed, and the published table, which these are not in."""
    command = [sys.executable, "-S", str(ROOT / "hunyuan/checkpoint/verify.py"), str(folders[identity.DISTIL])]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env={"PATH": os.environ["PATH"]})
    assert "unknown weights (no known fingerprint: " in result.stdout
    assert "built like HunyuanImage-3.0-Instruct-Distil, 355 tensors" in result.stdout


def test_an_unknown_one_is_said_and_not_refused(tmp_path: Path, capsys) -> None:
    folder = write_tiny_checkpoint(tmp_path / "other", seed=9)
    own = bf16_print(folder, identity.FIRST)
    status, said, wrong = verified(folder, capsys)
    assert (status, wrong) == (0, [])
    assert said.startswith(f"unknown weights (no known fingerprint: {identity.FIRST} has {own}), built like ")


def test_the_same_numbers_in_fp32_have_the_same_fingerprint(folders: dict[str, Path], instruct: Path) -> None:
    for path in instruct.glob("*.safetensors"):
        save_file({key: value.float() for key, value in load_file(path).items()}, path)
    said = identity.describe(identity.look(instruct))
    assert said.startswith(f"{identity.INSTRUCT} by its fingerprints, ")
    assert said.endswith("not quantized (F32)")
    for path in instruct.glob("*.safetensors"):
        save_file({key: value.float() + 1e-4 for key, value in load_file(path).items()}, path)
    assert identity.describe(identity.look(instruct)).startswith("unknown weights")


def test_another_last_norm_is_said(instruct: Path, capsys) -> None:
    for path in instruct.glob("*.safetensors"):
        weights = load_file(path)
        if identity.LAST in weights:
            weights[identity.LAST] *= 2
            save_file(weights, path)
    status, said, _ = verified(instruct, capsys)
    assert status == 0
    own = bf16_print(instruct, identity.LAST)
    assert said.startswith(f"{identity.INSTRUCT} by its fingerprints, but {identity.LAST} has {own}: changed, ")


@pytest.mark.slow
def test_the_demo_is_known(tmp_path: Path, capsys) -> None:
    packed.unpack(FOLDER, tmp_path / "demo")
    status, said, wrong = verified(tmp_path / "demo", capsys)
    assert (status, wrong) == (0, [])
    assert said.startswith("the built-in demo by its fingerprints, ")
    own = known_checkpoints(tmp_path / "demo")["the built-in demo"]
    assert own == {identity.FIRST: bf16_print(tmp_path / "demo", identity.FIRST)}


# --- not whole


def holder(folder: Path, key: str) -> Path:
    return next(path for path in folder.glob("*.safetensors") if key in load_file(path))


def test_a_missing_shard(instruct: Path, capsys) -> None:
    gone = holder(instruct, identity.LAST)
    gone.unlink()
    status, said, wrong = verified(instruct, capsys)
    assert (status, wrong) == (1, [f"{gone.name} is missing"])
    assert said.startswith(f"{identity.INSTRUCT} by its fingerprints, {identity.LAST} cannot be read, ")


def test_the_shard_that_tells_is_missing(instruct: Path, capsys) -> None:
    holder(instruct, identity.FIRST).unlink()
    status, said, _ = verified(instruct, capsys)
    assert status == 1
    assert said.startswith(f"unknown weights ({identity.FIRST} cannot be read), built like ")


def test_a_truncated_shard(instruct: Path, capsys) -> None:
    cut = holder(instruct, identity.LAST)
    cut.write_bytes(cut.read_bytes()[:-1000])
    status, said, wrong = verified(instruct, capsys)
    assert status == 1
    assert len(wrong) == 1
    assert wrong[0].startswith(f"{cut.name} is no safetensors file or not a whole one: ")
    assert "cut off; download it again" in wrong[0]
    assert said.startswith(identity.INSTRUCT)


def test_a_folder_without_weights_or_at_all(tmp_path: Path, capsys) -> None:
    status, said, wrong = verified(tmp_path, capsys)
    assert (status, said) == (1, f"unknown weights ({identity.FIRST} cannot be read)")
    assert "config.json is missing" in wrong
    assert verified(tmp_path / "none", capsys)[0] == 1


def test_a_damaged_header_does_not_stop_the_naming(instruct: Path) -> None:
    entry = {"dtype": 7, "shape": "x", "data_offsets": [5, 1]}
    text = json.dumps({identity.FIRST: entry}).encode()
    holder(instruct, identity.FIRST).write_bytes(len(text).to_bytes(8, "little") + text)
    (instruct / "config.json").write_text("[" * 100_000)
    assert identity.describe(identity.look(instruct)).startswith("unknown weights")
    assert verify.problems(instruct)


# --- another config.json beside the right weights


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        (
            {"cfg_distilled": True, "use_meanflow": True},
            [
                "config.json says cfg_distilled true, but the weights lack guidance_emb.*",
                "config.json says use_meanflow true, but the weights lack timestep_r_emb.*",
            ],
        ),
        (
            {"model_version": identity.BASE},
            [
                "the weights are HunyuanImage-3.0-Instruct's, but config.json says model_version HunyuanImage-3.0, "
                "which is the base model's"
            ],
        ),
        ({"num_hidden_layers": 3}, ["config.json says num_hidden_layers 3, the weights have 2"]),
        ({"num_hidden_layers": None, "vocab_size": None}, ["config.json does not say vocab_size, num_hidden_layers"]),
        (
            {"vocab_size": 64},
            ["config.json says vocab_size and hidden_size [64, 64], but model.wte.weight has [3904, 64]"],
        ),
        (
            {"quantization_config": {"quant_method": "hunyuan-bento", "version": 1, "experts": "fp8"}},
            ["config.json says experts 'fp8' of layer 0, but the weights are BF16"],
        ),
    ],
)
def test_a_config_of_another_checkpoint(instruct: Path, changes: dict[str, Any], wrong: list[str], capsys) -> None:
    change_config(instruct, **changes)
    rows = load_file(holder(instruct, "model.wte.weight"))["model.wte.weight"].shape[0]
    found = verified(instruct, capsys)
    assert (found[0], [line.replace(f"[{rows}, ", "[3904, ") for line in found[2]]) == (1, wrong)
    assert found[1].startswith(identity.INSTRUCT)


def test_distil_weights_with_the_config_of_instruct(folders: dict[str, Path], tmp_path: Path, capsys) -> None:
    """They would be run with two rows of guidance; the load refuses them, and this says why."""
    folder = Path(shutil.copytree(folders[identity.DISTIL], tmp_path / "copy"))
    shutil.copyfile(folders[identity.INSTRUCT] / "config.json", folder / "config.json")
    status, said, wrong = verified(folder, capsys)
    assert status == 1
    assert said.startswith(identity.DISTIL)
    assert wrong[0] == "config.json says cfg_distilled false, but the weights hold guidance_emb.*"


def test_base_weights_without_a_version(folders: dict[str, Path], tmp_path: Path, capsys) -> None:
    folder = Path(shutil.copytree(folders[identity.BASE], tmp_path / "copy"))
    change_config(folder, model_version=None)
    status, _, wrong = verified(folder, capsys)
    assert status == 1
    assert wrong == [
        "the weights are the base model's, whose config.json says model_version HunyuanImage-3.0, not None"
    ]


def test_a_shape_that_only_the_network_knows(instruct: Path, capsys) -> None:
    change_config(instruct, moe_intermediate_size=64)
    status, _, wrong = verified(instruct, capsys)
    assert status == 1
    assert len(wrong) == 1
    assert wrong[0].startswith("the weights do not match config.json; ")
    assert "model.layers.0.mlp.experts.0.down_proj.weight" in wrong[0]


# --- as caches and our own commands leave them


def test_a_snapshot_in_the_hubs_cache(instruct: Path, tmp_path: Path, capsys) -> None:
    cache = tmp_path / "hub/models--tencent--HunyuanImage-3.0-Instruct"
    snapshot = cache / "snapshots" / ("a1b2c3d4e5" * 4)
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    for number, path in enumerate(sorted(instruct.iterdir())):
        path.rename(cache / "blobs" / f"{number:064x}")
        (snapshot / path.name).symlink_to(Path("../../blobs") / f"{number:064x}")
    status, said, wrong = verified(snapshot, capsys)
    assert (status, wrong) == (0, [])
    assert said.startswith(f"{identity.INSTRUCT} by its fingerprints, 347 tensors")
    blob = (snapshot / "model-0005-of-0009.safetensors").resolve()
    blob.unlink()
    status, said, wrong = verified(snapshot, capsys)
    assert status == 1
    assert "which is not there; a snapshot's files lie in the blobs folder" in wrong[0]
    assert said.startswith(identity.INSTRUCT)


def one_layer_in_fp8(folder: Path) -> QuantizeOptions:
    specs = expected_tensors(read_config(folder).with_formats(("fp8", "mxfp4"), "bf16"))
    size = sum(spec.nbytes for spec in specs.values()) + 100
    return QuantizeOptions("mixed", budget_gib=size / GIB, reserve_gib=0.0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (lambda folder: QuantizeOptions("4bit"), "experts mxfp4, attention and shared MLP BF16"),
        (lambda folder: QuantizeOptions("4bit", dense="fp8"), "experts mxfp4, attention and shared MLP fp8"),
        (lambda folder: QuantizeOptions("fp8"), "experts fp8, attention and shared MLP BF16"),
        (one_layer_in_fp8, "experts fp8 in 1 of 2 layers and mxfp4 in 1 of 2 layers, attention and shared MLP BF16"),
    ],
    ids=["4bit", "4bit-dense", "fp8", "mixed"],
)
def test_what_we_quantized(
    folders: dict[str, Path], tmp_path: Path, options: Callable[[Path], QuantizeOptions], said: str, capsys
) -> None:
    source, out = folders[identity.DISTIL], tmp_path / "out"
    quantize_folder(source, out, options(source))
    status, line, wrong = verified(out, capsys)
    assert (status, wrong) == (0, [])
    assert line.startswith(f"{identity.DISTIL} by its fingerprints, ")
    assert line.endswith(f"2 layers, quantized by hunyuan quantize ({said})")
    config = json.loads((out / "config.json").read_text())
    change_config(out, quantization_config=config["quantization_config"] | {"note": "of a later version"})
    assert verified(out, capsys)[1].endswith("), note of a later version")
    change_config(out, quantization_config=None)
    status, line, wrong = verified(out, capsys)
    assert status == 1
    assert wrong[0].startswith("config.json says experts 'bf16' of layer 0, but the weights are ")
    assert "quantized by hunyuan quantize" in line


def test_a_half_quantized_folder_says_how_to_go_on(instruct: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("hunyuan.checkpoint.quantize.build_report", lambda *_: pytest.fail("stop"))
        with pytest.raises(pytest.fail.Exception):
            quantize_folder(instruct, out, QuantizeOptions())
    status, _, wrong = verified(out, capsys)
    assert status == 1
    assert "the same hunyuan quantize command goes on from there" in wrong[0]
    assert "config.json is missing" in wrong
    quantize_folder(instruct, out, QuantizeOptions())
    (out / verify.JOURNAL).write_text("{}")  # as after a kill behind config.json, the last file of all
    assert verified(out, capsys)[::2] == (0, [])


def test_what_another_program_quantized(instruct: Path) -> None:
    change_config(instruct, quantization_config={"quant_method": "compressed-tensors"})
    said = identity.describe(identity.look(instruct))
    assert said.endswith("quantized by another program (quant_method 'compressed-tensors')")
    assert "quant_method" in misfits(instruct)[0]


# --- the published Distil folder


@pytest.fixture(scope="module")
def distil_config() -> CheckpointConfig:
    return CheckpointConfig.from_dict(json.loads((DATA / "distil_config.json").read_text()))


def test_the_published_distil_config_is_read_as_it_is(distil_config: CheckpointConfig) -> None:
    raw = json.loads((DATA / "distil_config.json").read_text())
    assert not {"model_version", "image_base_size", "patch_size", "patch_embed_hidden_dim", "img_proj_type"} & {*raw}
    assert distil_config.model_version == identity.INSTRUCT  # with its ratio tokens
    assert distil_config.has_extra_ratios
    assert (distil_config.image_base_size, distil_config.patch_size, distil_config.patch_embed_hidden_dim) == (
        1024,
        1,
        1024,
    )
    assert distil_config.num_gen_special_tokens == 3
    assert len(expected_tensors(distil_config)) == 5169


def test_a_distil_folder_of_the_published_size(
    distil_config: CheckpointConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """Headers as in the published folder, above files of holes: 32 shards, most stacks of experts in two of them."""
    folder = write_tiny_checkpoint(tmp_path / "distil")
    (folder / "model.safetensors").unlink()
    shutil.copyfile(DATA / "distil_config.json", folder / "config.json")
    shards = sparse_shards(folder, distil_config)
    assert len(shards) == 32
    stacks = defaultdict(set)
    for shard, keys in enumerate(shards):
        for key in keys:
            if ".experts." in key:
                stacks[key.split(".")[2], key.split(".")[6]].add(shard)
    assert len(stacks) == 64
    assert sum(len(places) > 1 for places in stacks.values()) >= 50
    zeros = hashlib.sha256(bytes(8192)).hexdigest()[:16]
    monkeypatch.setattr(identity, "PUBLISHED", {identity.DISTIL: {identity.FIRST: zeros, identity.LAST: zeros}})
    status, said, wrong = verified(folder, capsys)
    assert (status, wrong) == (0, [])
    expected = f"{identity.DISTIL} by its fingerprints, 5,169 tensors, 32 layers, not quantized (BF16)"
    assert said == expected


def sparse_shards(folder: Path, config: CheckpointConfig, most: int = 5_290_000_000) -> list[list[str]]:
    """Writes the weight files without their values, which read as zeros and take no room; returns each one's keys."""
    shards: list[list[str]] = [[]]
    size, specs = 0, expected_tensors(config)
    for key, spec in sorted(specs.items()):  # one expert's matrices after another's
        if size + spec.nbytes > most:
            shards.append([])
            size = 0
        shards[-1].append(key)
        size += spec.nbytes
    places = {}
    for number, keys in enumerate(shards):
        header, end = {}, 0
        for key in keys:
            start, end = end, end + specs[key].nbytes
            kind = "F32" if specs[key].float32 else "BF16"
            header[key] = {"dtype": kind, "shape": specs[key].shape, "data_offsets": [start, end]}
        text = json.dumps(header).encode()
        name = f"model-{number + 1:04d}-of-{len(shards):04d}.safetensors"
        places |= dict.fromkeys(keys, name)
        with (folder / name).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + end)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return shards


def test_stacks_across_shards_load_as_from_one_file(folders: dict[str, Path], tmp_path: Path) -> None:
    """As 57 of the published Distil's 64 do."""
    sharded = folders[identity.DISTIL]
    index = json.loads((sharded / "model.safetensors.index.json").read_text())["weight_map"]
    stacks = defaultdict(set)
    for key, name in index.items():
        if ".experts." in key:
            stacks[key.split(".")[2], key.split(".")[6]].add(name)
    assert any(len(names) > 1 for names in stacks.values())
    whole = write_tiny_checkpoint(tmp_path / "whole", TinyShape(distil=True), seed=2)
    device, config = torch.device("cpu"), read_config(whole)
    for target in (config, config.with_formats("mxfp4", "bf16")):
        ours, theirs = (
            dict(load_model(folder, target, device, torch.float32).named_parameters()) for folder in (sharded, whole)
        )
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
