"""Which layers lose most, from a sample of their experts; and the engine that asks for it."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from hunyuan import Settings
from hunyuan.checkpoint.folder import read_config
from hunyuan.checkpoint.quantize import QuantizeOptions, quantize_folder
from hunyuan.checkpoint.sensitivity import sampled_matrices, weight_errors
from hunyuan.checkpoint.tiny import write_tiny_checkpoint
from hunyuan.checkpoint.tiny_config import TinyShape
from hunyuan.engines.native import choose_weights
from hunyuan.plan.choice import Gpu

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("source") / "official", TinyShape(layers=3), shards=2)


def test_of_all_experts_it_is_what_quantizing_measures(source, tmp_path):
    for kind, place in (("4bit", 0), ("fp8", 1)):
        report = quantize_folder(source, tmp_path / kind, QuantizeOptions(kind))
        found = weight_errors(source, CPU, most=1000)
        assert {row["layer"]: pytest.approx(row["relative_error"], rel=1e-6) for row in report["layers"]} == {
            layer: errors[place] for layer, errors in found.items()
        }


def test_a_few_of_each_layer_are_read(source):
    config = read_config(source)
    found = list(sampled_matrices(config, 2))
    assert {layer for layer, _, _ in found} == {0, 1, 2}
    experts = sorted({expert for _, _, expert in found})
    assert experts == [0, config.num_experts[0] // 2]
    whole, part = weight_errors(source, CPU, most=1000), weight_errors(source, CPU)
    assert all(part[n].mxfp4 == pytest.approx(whole[n].mxfp4, rel=0.05) for n in range(3))


def test_the_engine_measures_for_mixed_alone_and_says_what_each_layer_costs(source, caplog):
    caplog.set_level(logging.INFO, "hunyuan")
    gpu = Gpu("GPU", 100 << 30)
    for weights in ("auto", "mixed"):
        settings = Settings(model_id=source, weights=weights)
        choice = choose_weights(
            read_config(source), settings, [gpu], torch.bfloat16, lambda: weight_errors(source, CPU)
        )
        said = "in relative error of some of its experts' weights" in caplog.text
        assert said == ("measuring which layers gain most" in caplog.text) == (weights == "mixed")
    assert choice.config.expert_formats == ("fp8",) * 3
    assert "3 of 3 layers in fp8" in caplog.text
