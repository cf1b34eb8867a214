"""Quantizing a folder: the same pictures as from the dequantized weights, true reports, interruptions, refusals."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from own_process import cost_of
from safetensors.torch import load_file, save_file
from torch import Tensor

from hunyuan import Editor, EditRequest, Settings
from hunyuan.checkpoint import quantize_tasks
from hunyuan.checkpoint.folder import JOURNAL_FILE, read_config
from hunyuan.checkpoint.load import load_model
from hunyuan.checkpoint.quantize import QuantizeOptions, plan_shards, quantize_folder
from hunyuan.checkpoint.quantize_report import REPORT_FILE
from hunyuan.checkpoint.tensor_table import expected_tensors
from hunyuan.checkpoint.tiny import write_tiny_checkpoint
from hunyuan.checkpoint.tiny_config import TinyShape
from hunyuan.errors import CheckpointError
from hunyuan.formats.numbers import dequantize_fp8, dequantize_mxfp4

CPU = torch.device("cpu")
INDEX = "model.safetensors.index.json"
SHARD = "model-000{}-of-0004.safetensors"
GIB = 2**30


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three layers in three shards; the experts of layer 1 have outliers, which 4 bits render worse."""
    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("source") / "official", TinyShape(layers=3), shards=3)
    for path in folder.glob("*.safetensors"):
        weights = load_file(path)
        for key in weights:
            if ".layers.1.mlp.experts." in key:
                weights[key][::7, ::5] *= 6
        save_file(weights, path)
    (folder / "modeling.py").write_text("raise SystemExit")
    (folder / ".hidden").write_text("")
    return folder


@pytest.fixture(scope="module")
def four_bit(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("quantized") / "4bit"
    quantize_folder(source, out, QuantizeOptions())
    return out


def mixed(folder: Path, dense: str = "bf16") -> QuantizeOptions:
    """With the budget for one layer in fp8."""
    config = read_config(folder)
    formats = ("fp8",) + ("mxfp4",) * (config.num_hidden_layers - 1)
    specs = expected_tensors(config.with_formats(formats, dense))
    size = sum(spec.nbytes for spec in specs.values()) + 100
    return QuantizeOptions("mixed", dense=dense, budget_gib=size / GIB, reserve_gib=0.0)


def stored(folder: Path) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        weights |= load_file(path)
    return weights


def dequantized(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The official layout's tensors, fp32 where they were quantized; stacks are taken apart."""
    plain: dict[str, Tensor] = {}
    for key, value in weights.items():
        if ".experts." in key and key.endswith("_proj"):
            scale = weights[key.removesuffix("_proj") + "_scale"]
            mxfp4 = value.dtype == torch.uint8
            stack = dequantize_mxfp4(value, scale) if mxfp4 else dequantize_fp8(value, scale[:, None, None])
            layer, name = key.split(".experts.")
            plain |= {f"{layer}.experts.{e}.{name}.weight": matrix for e, matrix in enumerate(stack)}
        elif key + "_scale" in weights:
            plain[key] = dequantize_fp8(value, weights[key + "_scale"][:, None])
        elif not key.endswith("_scale"):
            plain[key] = value
    return plain


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def edit_once(folder: Path) -> tuple[np.ndarray, str | None]:
    editor = Editor.load(Settings(model_id=folder, device="cpu", dtype="float32", moe_impl="eager"))
    result = editor.run(EditRequest("A blue house", seed=5, steps=1, max_new_tokens=6))
    return np.asarray(result.image).astype(int), result.cot_text


# --- what is written


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        (None, QuantizeOptions()),
        (TinyShape(hidden=96, heads=3, kv_heads=1, experts=5, topk=3, expert_width=64, distil=True), None),
    ],
)
@pytest.mark.slow
def test_quantized_editor_is_the_plain_one_on_dequantized_weights(golden, tmp_path, shape, options):
    source = golden / "checkpoint" if shape is None else write_tiny_checkpoint(tmp_path / "source", shape, shards=2)
    quantize_folder(source, tmp_path / "quantized", options or mixed(source, "fp8"))
    plain = shutil.copytree(source, tmp_path / "plain", ignore=shutil.ignore_patterns("*.safetensors*"))
    save_file(dequantized(stored(tmp_path / "quantized")), plain / "model.safetensors")
    image, text = edit_once(tmp_path / "quantized")
    wanted, wanted_text = edit_once(plain)
    assert text == wanted_text
    assert int(np.abs(image - wanted).max()) <= 1


@pytest.mark.trap(15)
def test_what_is_not_quantized_is_the_same_to_the_last_bit(source, four_bit):
    before, after = stored(source), dequantized(stored(four_bit))
    assert before.keys() == after.keys()
    for key, weight in before.items():
        if ".experts." not in key:
            assert after[key].dtype == weight.dtype
            assert torch.equal(after[key], weight), key


def test_names_types_and_shapes_are_the_tables(four_bit):
    specs = expected_tensors(read_config(four_bit))
    weights = stored(four_bit)
    assert {key: tuple(value.shape) for key, value in weights.items()} == {k: s.shape for k, s in specs.items()}
    experts = "model.layers.2.mlp.experts."
    found = {key.removeprefix(experts): (w.dtype, *w.shape) for key, w in weights.items() if key.startswith(experts)}
    assert found == {
        "gate_and_up_proj": (torch.uint8, 8, 64, 32),
        "gate_and_up_scale": (torch.uint8, 8, 64, 2),
        "down_proj": (torch.uint8, 8, 64, 16),
        "down_scale": (torch.uint8, 8, 64, 1),
    }


def test_parameters_of_a_quantized_model_are_the_stored_ones(source, tmp_path):
    quantize_folder(source, tmp_path / "out", mixed(source, "fp8"))
    model = load_model(tmp_path / "out", read_config(tmp_path / "out"), CPU, torch.bfloat16)
    parameters = dict(model.named_parameters())
    for key, weight in stored(tmp_path / "out").items():
        assert parameters[key].shape == weight.shape
        if weight.dtype.itemsize == 1:
            assert parameters[key].dtype == weight.dtype
        assert torch.equal(parameters[key].float(), weight.float()), key


def test_small_files_come_along_and_the_config_says_what_it_is(source, four_bit):
    names = {path.name for path in four_bit.iterdir()}
    small = {"generation_config.json", "tokenizer.json", "tokenizer_config.json", "system_prompt.py", "modeling.py"}
    assert names == {*small, "config.json", INDEX, REPORT_FILE, *(SHARD.format(i) for i in range(1, 5))}
    for name in small:
        assert (four_bit / name).read_bytes() == (source / name).read_bytes()
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (source, four_bit))
    section = after.pop("quantization_config")
    assert section == {"quant_method": "hunyuan-bento", "version": 1, "experts": "mxfp4", "dense": "bf16"}
    assert after == before


def test_the_index_names_every_tensor_and_counts_their_bytes(four_bit):
    index = json.loads((four_bit / INDEX).read_text())
    weights = stored(four_bit)
    assert index["weight_map"].keys() == weights.keys()
    assert index["metadata"]["total_size"] == sum(w.numel() * w.element_size() for w in weights.values())


def test_reported_errors_are_the_measured_ones(source, tmp_path):
    report = quantize_folder(source, tmp_path / "out", mixed(source, "fp8"))
    assert json.loads((tmp_path / "out" / REPORT_FILE).read_text()) == report
    before, after = stored(source), dequantized(stored(tmp_path / "out"))

    def error(keys: list[str]) -> Any:
        difference = sum(float((after[k] - before[k].float()).double().square().sum()) for k in keys)
        whole = sum(float(before[k].double().square().sum()) for k in keys)
        return pytest.approx((difference / whole) ** 0.5, rel=1e-5)

    seen = set()
    for key, entry in report["tensors"].items():
        if ".experts." in key:
            layer, name = key.split(".experts.")
            keys = [f"{layer}.experts.{e}.{name}.weight" for e in range(8)]
            assert entry["experts"] == [error([k]) for k in keys]
        else:
            keys = [key]
        assert entry["relative_error"] == error(keys), key
        seen |= set(keys)
    assert seen == {key for key in before if not torch.equal(before[key].float(), after[key].float())}
    for row in report["layers"]:
        keys = [key for key in before if key.startswith(f"model.layers.{row['layer']}.mlp.experts.")]
        assert row["relative_error"] == error(keys)


def test_mixed_keeps_the_worst_layer_in_fp8(source, four_bit, tmp_path):
    options = mixed(source)
    report = quantize_folder(source, tmp_path / "out", options)
    assert read_config(tmp_path / "out").expert_formats == ("mxfp4", "fp8", "mxfp4")
    errors = {row["layer"]: row["choice"]["mxfp4"] for row in report["layers"]}
    in_4_bits = json.loads((four_bit / REPORT_FILE).read_text())["layers"]
    assert errors == {row["layer"]: row["relative_error"] for row in in_4_bits}
    assert max(errors, key=lambda layer: errors[layer]) == 1
    chosen = report["layers"][1]
    assert chosen["choice"]["fp8"] == pytest.approx(chosen["relative_error"], rel=1e-6)
    total = sum(w.numel() * w.element_size() for w in stored(tmp_path / "out").values())
    assert total <= options.budget_gib * GIB
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(p.name for p in four_bit.iterdir())


def test_a_budget_below_four_bits_is_refused(source, tmp_path):
    least = sum(spec.nbytes for spec in expected_tensors(read_config(source).with_formats("mxfp4", "bf16")).values())
    for budget, reserve in ((least / GIB - 1e-6, 0.0), (12 + least / GIB - 1e-6, 12.0)):
        with pytest.raises(CheckpointError, match="too small: 4-bit weights take"):
            quantize_folder(source, tmp_path / "out", QuantizeOptions("mixed", budget_gib=budget, reserve_gib=reserve))
    assert not (tmp_path / "out").exists()


def test_every_tensor_is_in_one_planned_file(source):
    config = read_config(source)
    plan = plan_shards(config)
    assert sorted(s.key for part in plan.values() for s in part) == sorted(expected_tensors(config))
    assert {s.key.split(".")[2] for s in plan[SHARD.format(2)]} == {"1"}


# --- interruptions


@pytest.mark.slow
def test_killed_anywhere_is_refused_and_goes_on_to_the_same_folder(source, tmp_path):
    count, budget = 6, repr(mixed(source).budget_gib)
    arguments = ["--weights", "mixed", "--budget-gib", budget, "--reserve-gib", "0", "--device", "cpu"]
    driver = [sys.executable, str(Path(__file__).with_name("killed_quantize.py"))]
    subprocess.run([*driver, str(source), str(tmp_path), str(count), *arguments], check=True, stdout=subprocess.PIPE)
    whole = content(tmp_path / "whole")
    assert whole == content_of(source, tmp_path / "uninterrupted")
    done = []
    for number in range(count):
        folder = tmp_path / str(number)
        with pytest.raises(CheckpointError) as caught:
            read_config(folder)
        message = str(caught.value)
        assert message.startswith(f"config.json is missing in the checkpoint folder {number}: it was being quantized")
        finished = list(json.loads((folder / JOURNAL_FILE).read_text())["done"])
        done.append(len(finished))
        assert f"{len(finished)} of 4 weight files are done" in message
        assert all((f"{SHARD.format(i)}" in message) != (SHARD.format(i) in finished) for i in range(1, 5))
        assert content_of(source, folder) == whole
    assert done[0] < 4
    assert done[-1] == 4


def content_of(source: Path, out: Path) -> dict[str, bytes]:
    quantize_folder(source, out, mixed(source))
    return content(out)


def test_killed_at_the_journals_first_writing_starts_anew(source, four_bit, tmp_path):
    (tmp_path / f"{JOURNAL_FILE}.partial").write_text("{")
    quantize_folder(source, tmp_path, QuantizeOptions())
    assert content(tmp_path) == content(four_bit)


def test_a_finished_folder_is_left_alone(source, four_bit):
    times = {path: path.stat().st_mtime_ns for path in four_bit.iterdir()}
    report = quantize_folder(source, four_bit, QuantizeOptions())
    assert report == json.loads((four_bit / REPORT_FILE).read_text())
    assert {path: path.stat().st_mtime_ns for path in four_bit.iterdir()} == times


def test_a_finished_file_is_not_written_again_unless_it_changed(source, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("hunyuan.checkpoint.quantize.build_report", lambda *_: pytest.fail("stop"))
        with pytest.raises(pytest.fail.Exception):
            quantize_folder(source, out, QuantizeOptions())
    (out / SHARD.format(3)).write_bytes(b"damaged")
    times = {path.name: path.stat().st_mtime_ns for path in out.glob("*.safetensors")}
    quantize_folder(source, out, QuantizeOptions())
    changed = [path.name for path in out.glob("*.safetensors") if path.stat().st_mtime_ns != times[path.name]]
    assert changed == [SHARD.format(3)]


# --- quantized while loading


@pytest.mark.parametrize(("word", "dense"), [("mxfp4", "bf16"), ("fp8", "fp8")])
def test_quantizing_on_the_way_gives_what_the_script_writes(source, tmp_path, caplog, word, dense):
    options = QuantizeOptions("4bit" if word == "mxfp4" else "fp8", dense=dense)
    quantize_folder(source, tmp_path / "out", options)
    target = read_config(source).with_formats((word,) * 3, dense)
    ours = dict(load_model(source, target, CPU, torch.float32).named_parameters())
    assert "`hunyuan quantize` does it once and for all" in caplog.text
    caplog.clear()
    theirs = dict(load_model(tmp_path / "out", target, CPU, torch.float32).named_parameters())
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]  # nothing to advise
    assert ours.keys() == theirs.keys()
    for name, parameter in ours.items():
        assert parameter.dtype == theirs[name].dtype
        assert torch.equal(parameter.float(), theirs[name].float()), name


def test_one_format_does_not_become_another(four_bit):
    config = read_config(four_bit)
    for word in ("bf16", "fp8"):
        with pytest.raises(CheckpointError, match=f"experts mxfp4 as {word}"):
            load_model(four_bit, config.with_formats(word, config.dense_format), CPU, torch.float32)


# --- refusals


def refused(source: Path, out: Path, options: QuantizeOptions | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        quantize_folder(source, out, options or QuantizeOptions())
    return str(caught.value)


def test_bad_sources_are_refused_before_anything_is_written(source, four_bit, tmp_path):
    out = tmp_path / "out"
    assert "is quantized already" in refused(four_bit, out)
    gone = shutil.copytree(source, tmp_path / "gone")
    (gone / "model-0002-of-0003.safetensors").unlink()
    assert refused(gone, out).endswith("are missing: model-0002-of-0003.safetensors")
    short = shutil.copytree(source, tmp_path / "short")
    path = short / "model-0003-of-0003.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert refused(short, out).startswith(f"{path.name} cannot be read as safetensors: the file has ")
    narrow = write_tiny_checkpoint(tmp_path / "narrow", TinyShape(expert_width=24))
    key = "model.layers.0.mlp.experts.down_proj"
    assert refused(narrow, out) == f"config.json: {key}: 24 columns; MXFP4 needs a multiple of 32"
    small = QuantizeOptions("mixed", budget_gib=1.0, reserve_gib=12.0)
    assert "the budget of 1 GiB is too small" in refused(source, out, small)
    assert not out.exists()


def test_a_value_that_is_no_number_is_named(source, tmp_path):
    bad = shutil.copytree(source, tmp_path / "bad")
    key = "model.layers.1.mlp.experts.3.down_proj.weight"
    for path in bad.glob("*.safetensors"):
        weights = load_file(path)
        if key in weights:
            weights[key][5, 5] = float("nan")
            save_file(weights, path)
    assert refused(bad, tmp_path / "out").startswith(f"{key}: a weight is not a finite number")


@pytest.mark.parametrize("word", ["fp8", "mxfp4"])
def test_a_value_that_is_no_number_is_named_while_loading(source, tmp_path, word):
    folder = shutil.copytree(source, tmp_path / "bad")
    key = "model.layers.2.mlp.experts.1.down_proj.weight"
    path = next(p for p in folder.glob("*.safetensors") if key in load_file(p))
    weights = load_file(path)
    weights[key][3, 5] = float("inf")
    save_file(weights, path)
    config = read_config(folder).with_formats(word, "bf16")
    with pytest.raises(CheckpointError, match=f"{key}: a weight is not a finite number"):
        load_model(folder, config, CPU, torch.float32)


def test_other_content_is_not_overwritten(source, four_bit, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    assert "is not empty" in refused(source, tmp_path)
    assert "holds another checkpoint" in refused(source, four_bit, QuantizeOptions("fp8"))
    half = shutil.copytree(four_bit, tmp_path / "half")
    (half / "config.json").unlink()
    job = {**json.loads((half / REPORT_FILE).read_text())["job"], "weights": "fp8"}
    (half / JOURNAL_FILE).write_text(json.dumps({"version": 1, "job": job, "planned": [], "done": {}}))
    assert "the beginning of another quantization" in refused(source, half)
    assert (tmp_path / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "quantization_config.version: 2, expected 1"),
        ({"quant_method": "gptq"}, "quantization_config.quant_method: 'gptq', expected 'hunyuan-bento'"),
        ({"experts": ["mxfp4"]}, "quantization_config.experts: ['mxfp4'], expected one of bf16, fp8, mxfp4"),
    ],
)
def test_an_unknown_quantization_is_refused(four_bit, tmp_path, change, message):
    folder = shutil.copytree(four_bit, tmp_path / "out")
    raw = json.loads((folder / "config.json").read_text())
    raw["quantization_config"] |= change
    (folder / "config.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError) as caught:
        read_config(folder)
    assert message in str(caught.value)


def test_a_type_that_the_config_does_not_say_is_refused(four_bit, source, tmp_path):
    folder = shutil.copytree(four_bit, tmp_path / "out")
    weights = load_file(folder / SHARD.format(1))
    key = "model.layers.0.mlp.experts.down_scale"
    weights[key] = weights[key].bfloat16()
    dense = "model.layers.0.self_attn.o_proj.weight"
    weights[dense] = weights[dense].to(torch.uint8)
    save_file(weights, folder / SHARD.format(1))
    with pytest.raises(CheckpointError) as caught:
        load_model(folder, read_config(folder), CPU, torch.float32)
    assert f"{key} BF16 instead of U8" in str(caught.value)
    assert f"{dense} U8 instead of BF16 or F16 or F32" in str(caught.value)


# --- memory


@pytest.mark.slow
def test_memory_is_bounded_by_a_few_matrices(tmp_path):
    """In a process of its own: what other tests have freed would hide what this takes."""
    assert cost_of(quantize_and_watch_memory, tmp_path).refusal is None


def quantize_and_watch_memory(folder: Path) -> None:
    """Twelve layers of 6 MB: the whole would show, a matrix a worker does not."""
    shape = TinyShape(hidden=256, experts=16, expert_width=256, layers=12)
    source = write_tiny_checkpoint(folder / "source", shape)
    quantize_folder(write_tiny_checkpoint(folder / "warm"), folder / "warm_out", QuantizeOptions(workers=2))
    process, most = psutil.Process(), 0
    before = process.memory_info().rss
    real = quantize_tasks._square

    def measure(weight: Tensor) -> float:
        nonlocal most
        most = max(most, process.memory_info().rss - before)
        return real(weight)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantize_tasks, "_square", measure)
        quantize_folder(source, folder / "out", QuantizeOptions(workers=2))
    assert (source / "model.safetensors").stat().st_size > 75e6
    assert 0 < most < 25e6
