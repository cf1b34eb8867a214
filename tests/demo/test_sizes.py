"""The demo's sizes: what a GPU's kernels ask for, and picture sizes relative to its base size only."""

from __future__ import annotations

import pytest
from PIL import Image

from hunyuan.checkpoint import tiny_tokenizer
from hunyuan.checkpoint.tensor_table import expected_tensors
from hunyuan.formats.config import CheckpointConfig
from hunyuan.prompt.images import prepare_cond_image
from scripts.demo import sizes


@pytest.fixture(scope="module")
def config() -> CheckpointConfig:
    return CheckpointConfig.from_dict(sizes.model_config(tiny_tokenizer.build_tokenizer()))


@pytest.mark.parametrize(
    ("photo", "bucket"), [((1024, 768), "288x224"), ((1280, 720), "320x192"), ((720, 1280), "192x320")]
)
def test_no_photograph_leaves_the_small_sizes(config: CheckpointConfig, photo: tuple[int, int], bucket: str) -> None:
    """The shapes for which the real model has sizes of its own, about a megapixel each."""
    assert str(prepare_cond_image(Image.new("RGB", photo), config, True).bucket.size) == bucket


def test_one_checkpoint_serves_all_kernels(config: CheckpointConfig) -> None:
    assert config.hidden_size % 128 == 0
    assert config.attention_head_dim == 128
    assert all(width % 128 == 0 for width in config.moe_intermediate_size)


def test_the_stored_values_fit_the_repository(config: CheckpointConfig) -> None:
    """Of an autoencoder's 3D kernels only the middle slices are stored; a value takes 1.36 bytes packed."""
    values = 0
    for spec in expected_tensors(config).values():
        taps = 3 if len(spec.shape) == 5 and spec.shape[2] == 3 else 1
        values += spec.numel // taps
    assert values < 18_000_000
