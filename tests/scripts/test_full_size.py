"""The real sizes: they give the published number of parameters, and random weights of every format are usable."""

from __future__ import annotations

from math import prod
from pathlib import Path

import pytest
import torch
from small_model import model_config, raw_config

from hunyuan.checkpoint.folder import read_config
from hunyuan.checkpoint.full_size import full_size_config
from hunyuan.checkpoint.load import empty_model
from hunyuan.checkpoint.tensor_table import expected_tensors
from hunyuan.engines.native import read_small_files
from hunyuan.formats.config import QUANT_METHOD, QUANT_VERSION, CheckpointConfig
from scripts.support.full_size import randomize, write_small_files


def test_the_real_model_has_its_83_billion_parameters() -> None:
    config = CheckpointConfig.from_dict(full_size_config(experts="bf16"))
    sizes = {key: prod(spec.shape) for key, spec in expected_tensors(config).items()}
    assert sum(sizes.values()) == pytest.approx(83.0e9, rel=2e-3)
    assert sum(size for key, size in sizes.items() if ".experts." in key) == pytest.approx(77.3e9, rel=1e-3)


def test_small_files_make_a_folder_that_lacks_nothing_but_weights(tmp_path: Path) -> None:
    write_small_files(tmp_path / "full", full_size_config(layers=4, dense="fp8", distil=True), distil=True)
    config = read_config(tmp_path / "full")
    assert (config.num_hidden_layers, config.cfg_distilled) == (4, True)
    assert (config.expert_formats, config.dense_format) == (("mxfp4",) * 4, "fp8")
    tokenizer, generation, _ = read_small_files(tmp_path / "full", config)
    assert generation.guidance_scale == 2.5
    assert max(tokenizer.ratios) < config.vocab_size


@pytest.mark.parametrize(("experts", "dense"), [("mxfp4", "bf16"), ("fp8", "fp8"), (["bf16", "mxfp4"], "bf16")])
def test_random_weights_keep_the_stream_alive(experts: str | list[str], dense: str) -> None:
    quantization = {"quant_method": QUANT_METHOD, "version": QUANT_VERSION, "experts": experts, "dense": dense}
    config = model_config(**raw_config(quantization_config=quantization))
    models = [empty_model(config, torch.device("cpu"), torch.float32) for _ in range(2)]
    for model in models:
        randomize(model, 2, seed=3)
    ours, again = (dict(model.named_parameters()) for model in models)
    for name in ours:
        assert torch.equal(ours[name].float(), again[name].float()), name
    for block in (layer.mlp for layer in models[0].model.layers):
        out = block.experts(torch.randn(64, config.hidden_size), torch.full((64, 1), 1.0), torch.zeros(64, 1).long())
        assert 1e-3 < float(out.std()) < 30
