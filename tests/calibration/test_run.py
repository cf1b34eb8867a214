"""A calibrated quantization of a tiny model: hidden states are the model's own, interruptions, reports, refusals."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_files import random_pairs, write_peft
from safetensors.torch import load_file
from torch import Tensor, nn

from hunyuan.adapters import adapters_of
from hunyuan.calibration.run import Calibration
from hunyuan.checkpoint.adapters.keys import LinearLayers
from hunyuan.checkpoint.folder import JOURNAL_FILE, OpenWeights, read_config
from hunyuan.checkpoint.journal import Journal
from hunyuan.checkpoint.layer_choice import LayerErrors
from hunyuan.checkpoint.load import load_model
from hunyuan.checkpoint.quantize import QuantizeOptions, quantize_folder
from hunyuan.checkpoint.quantize_report import REPORT_FILE, table
from hunyuan.checkpoint.tensor_table import expected_tensors
from hunyuan.checkpoint.tiny import write_tiny_checkpoint
from hunyuan.checkpoint.tiny_config import TinyShape
from hunyuan.cli.main import main
from hunyuan.errors import CheckpointError
from hunyuan.formats.modules import Mxfp4Experts
from hunyuan.generation.kv_cache import KVCache
from hunyuan.model.network import HunyuanImage3
from hunyuan.model.vae import Posterior

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(
        tmp_path_factory.mktemp("source") / "official", TinyShape(layers=3, experts=4), shards=3
    )


@pytest.fixture(scope="module")
def requests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four requests without pictures, of several lengths."""
    path = tmp_path_factory.mktemp("requests") / "requests.jsonl"
    lines = [{"prompt": f"A house {'and a tree ' * n}", "resolution": ("1:1", "4:3")[n % 2]} for n in range(4)]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.fixture(scope="module", autouse=True)
def _quick_autoencoder() -> Iterator[None]:
    def encode(self: HunyuanImage3, pixels: Tensor) -> Posterior:
        mean = nn.functional.avg_pool2d(pixels, 16)[:, :1, None].expand(-1, 8, -1, -1, -1)
        return Posterior(mean, torch.zeros_like(mean))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HunyuanImage3, "encode_image", encode)
        yield


def options(source: Path, requests: Path, **changes: Any) -> QuantizeOptions:
    return QuantizeOptions(calibration=Calibration.of_folder(source, requests, CPU), workers=1, **changes)


def stored(folder: Path) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        weights |= load_file(path)
    return weights


@pytest.fixture(scope="module")
def calibrated(source: Path, requests: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("calibrated") / "4bit"
    quantize_folder(source, out, options(source, requests))
    return out


@pytest.mark.slow
def test_hidden_states_are_those_of_the_whole_model(source, requests, tmp_path, monkeypatch):
    """Layer by layer with the quantized experts, and the finished folder's own network, on the first request's text."""
    calibration = Calibration.of_folder(source, requests, CPU)
    first: list[tuple[Tensor, Any]] = []
    keep = calibration.start

    def start(*arguments: Any) -> int:
        found = keep(*arguments)
        assert calibration.runner is not None
        span = calibration.runner.spans[0]
        first.append((calibration.hidden[span.rows].clone(), span))
        return found

    monkeypatch.setattr(calibration, "start", start)
    out = tmp_path / "out"
    quantize_folder(source, out, QuantizeOptions(calibration=calibration, workers=1))
    config = read_config(out)
    model = load_model(out, config, CPU, torch.float32)
    x, span = first[0]
    kv = KVCache.allocate(config, 1, span.stop, torch.float32, CPU)
    with torch.inference_mode():
        wanted = model.model(x[None], span.tokens.rope, kv, span.tokens.segments)[0]
    assert torch.allclose(calibration.hidden[span.rows], wanted, atol=1e-4, rtol=1e-4)


def test_the_folder_is_a_checkpoint_and_the_report_says_what_the_output_lost(source, calibrated):
    config = read_config(calibrated)
    with OpenWeights(calibrated, expected_tensors(config)):
        pass
    assert set(config.expert_formats) == {"mxfp4"}
    names = {path.name for path in calibrated.iterdir()}
    assert not [name for name in names if ".state" in name or ".partial" in name or name == JOURNAL_FILE]
    report = json.loads((calibrated / REPORT_FILE).read_text())
    assert report["job"]["calibration"]["count"] == 4
    for row in report["layers"]:
        found = row["output"]
        assert found["calibrated"] > 0
        assert 0 < found["fp8"] < 0.5 * found["plain"] < 0.25
        assert len(found["experts_plain"]) == len(found["tokens"]) == 4
        assert all(n in found["few_tokens"] or found["tokens"][n] >= 32 for n in range(4))
    shown = table(report, config)
    assert "output error on held out requests" in shown
    assert "too few tokens chose them" in shown
    before, after = stored(source), stored(calibrated)
    for key, weight in before.items():
        if ".experts." not in key:
            assert torch.equal(weight, after[key]), key


def interrupt_at(calibration: Any, layer: int) -> None:
    real = calibration.quantize

    def quantize(number: int, *arguments: Any) -> Any:
        if number == layer:
            raise KeyboardInterrupt
        return real(number, *arguments)

    calibration.quantize = quantize


@pytest.mark.slow
def test_it_goes_on_where_it_was(source, requests, calibrated, tmp_path, monkeypatch):
    monkeypatch.setattr("hunyuan.calibration.run._ROWS", 100)  # hidden states go to the file and back in pieces
    out = tmp_path / "out"
    first = options(source, requests)
    interrupt_at(first.calibration, 2)
    with pytest.raises(KeyboardInterrupt):
        quantize_folder(source, out, first)
    with pytest.raises(CheckpointError, match="it was being quantized and is not complete"):
        read_config(out)
    assert [path.name for path in out.glob("*.state")] == ["calibration_2.state"]
    done = {path.name: path.stat().st_mtime_ns for path in out.glob("model-*.safetensors")}
    assert len(done) == 2
    quantize_folder(source, out, options(source, requests))
    assert all((out / name).stat().st_mtime_ns == time for name, time in done.items())
    for key, weight in stored(calibrated).items():
        assert torch.equal(stored(out)[key], weight), key


@pytest.mark.slow
def test_without_the_hidden_states_it_begins_again(source, requests, calibrated, tmp_path):
    out = tmp_path / "out"
    first = options(source, requests)
    interrupt_at(first.calibration, 1)
    with pytest.raises(KeyboardInterrupt):
        quantize_folder(source, out, first)
    (out / "calibration_1.state").write_bytes(b"damaged")
    quantize_folder(source, out, options(source, requests))
    for key, weight in stored(calibrated).items():
        assert torch.equal(stored(out)[key], weight), key


def test_other_requests_are_another_job(source, requests, tmp_path):
    out = tmp_path / "out"
    first = options(source, requests)
    interrupt_at(first.calibration, 1)
    with pytest.raises(KeyboardInterrupt):
        quantize_folder(source, out, first)
    other = tmp_path / "other.jsonl"
    other.write_text(requests.read_text().replace("house", "castle"))
    with pytest.raises(CheckpointError, match="beginning of another quantization"):
        quantize_folder(source, out, options(source, other))


def mixed(source: Path, requests: Path) -> QuantizeOptions:
    """With the budget for one layer in fp8."""
    one = read_config(source).with_formats(("fp8", "mxfp4", "mxfp4"), "bf16")
    size = sum(spec.nbytes for spec in expected_tensors(one).values()) + 100
    return options(source, requests, weights="mixed", budget_gib=size / 2**30, reserve_gib=0.0)


@pytest.mark.slow
def test_mixed_keeps_the_layer_in_fp8_whose_output_gains_most(source, requests, tmp_path, monkeypatch):
    """Interrupted behind the choice, too: then it goes on without calibrating."""
    out, keep = tmp_path / "mixed", Journal.choose

    def choose(self: Journal, found: dict[str, Any]) -> None:
        keep(self, found)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "choose", choose)
        with pytest.raises(KeyboardInterrupt):
            quantize_folder(source, out, mixed(source, requests))
    with pytest.raises(CheckpointError, match="it was being quantized and is not complete"):
        read_config(out)
    again = mixed(source, requests)
    interrupt_at(again.calibration, 0)
    quantize_folder(source, out, again)
    report = json.loads((out / REPORT_FILE).read_text())
    errors = {row["layer"]: LayerErrors(**row["choice"]) for row in report["layers"]}
    best = max(errors, key=lambda layer: errors[layer].gain)
    assert all(0 < found.fp8 < found.mxfp4 for found in errors.values())
    assert [n for n, kind in enumerate(read_config(out).expert_formats) if kind == "fp8"] == [best]
    shown = table(report, read_config(out))
    assert "in relative error of the residual stream, held out requests" in shown
    assert "1 of 3 layers in fp8" in shown


def test_too_many_requests_for_a_gpu_are_said(source, requests, tmp_path, monkeypatch):
    def full(*_: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    for place in ("hunyuan.calibration.run.embed_requests", "hunyuan.calibration.run.quantize_experts"):
        with monkeypatch.context() as patch:
            patch.setattr(place, full)
            with pytest.raises(CheckpointError, match="not enough to calibrate on 4 requests; take fewer"):
                quantize_folder(source, tmp_path / "out", options(source, requests))


@pytest.mark.slow
def test_the_command_line(source, requests, tmp_path, capsys):
    arguments = ["quantize", str(source), str(tmp_path / "out"), "--device", "cpu"]
    assert main([*arguments, "--weights", "fp8", "--calibrate"]) == 2
    assert "--calibrate: chooses 4-bit values" in capsys.readouterr().err
    assert main([*arguments, "--calibrate", str(tmp_path / "none.jsonl")]) == 2
    assert "none.jsonl" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*arguments, "--calibrate", str(requests)]) == 0
    assert "calibrated" in capsys.readouterr().out


@pytest.mark.slow
def test_adapters_are_in_the_weights_that_are_calibrated(source, requests, tmp_path):
    layers = LinearLayers(read_config(source))
    lora = adapters_of(f"{write_peft(tmp_path / 'ink', random_pairs(layers, layers.specs))}:0.5")
    quantize_folder(source, tmp_path / "out", options(source, requests, lora=lora))
    config = read_config(source)
    merged = dict(load_model(source, config, CPU, torch.float32, lora).named_parameters())
    found = load_model(tmp_path / "out", read_config(tmp_path / "out"), CPU, torch.float32)
    for name, value in found.named_parameters():
        if "gate_and_up_proj" in name and ".experts." in name:
            experts = found.get_submodule(name.rpartition(".")[0])
            for number, wanted in enumerate(merged[name]):
                assert isinstance(experts, Mxfp4Experts)
                apart = experts.matrix("gate_and_up", number, torch.float32) - wanted
                assert float(apart.norm() / wanted.norm()) < 0.25, (name, number)
        elif "qkv_proj" in name:
            assert torch.allclose(value, merged[name], atol=0.02), name
