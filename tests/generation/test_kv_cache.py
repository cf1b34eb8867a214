"""Key-value buffers, shared prefixes and a request's random numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hunyuan import Editor
from hunyuan.generation.kv_cache import KVCache, shared_prefix
from hunyuan.generation.random_numbers import RequestRandom, half_normal_on_cpu

CPU = torch.device("cpu")


@pytest.fixture
def cache(golden_editor: Editor) -> KVCache:
    config = replace(golden_editor.engine.checkpoint.model.config, num_hidden_layers=2)
    return KVCache.allocate(config, 2, 10, torch.float32, CPU)


def _block(value: float, tokens: int, rows: int = 2) -> torch.Tensor:
    return torch.full((rows, tokens, 2, 16), value)


def test_write_returns_everything_up_to_its_end(cache: KVCache) -> None:
    cache.write(1, 0, _block(1, 4), _block(2, 4))
    keys, values = cache.write(1, 4, _block(3, 2), _block(4, 2))
    assert keys.shape == values.shape == (2, 6, 2, 16)
    assert keys[0, :, 0, 0].tolist() == [1, 1, 1, 1, 3, 3]
    assert values[1, :, 0, 0].tolist() == [2, 2, 2, 2, 4, 4]


def test_writing_again_replaces_in_place(cache: KVCache) -> None:
    cache.write(0, 0, _block(1, 6), _block(1, 6))
    place = cache.keys[0].data_ptr()
    keys, _ = cache.write(0, 4, _block(9, 2), _block(9, 2))
    assert keys[0, :, 0, 0].tolist() == [1, 1, 1, 1, 9, 9]
    assert keys.data_ptr() == place == cache.keys[0].data_ptr()


def test_a_selected_row_shares_memory(cache: KVCache) -> None:
    cache.write(0, 0, _block(1, 3), _block(1, 3))
    cache.select(1).write(0, 0, _block(5, 3, rows=1), _block(5, 3, rows=1))
    assert cache.keys[0][:, 0, 0, 0].tolist() == [1, 5]


def test_a_prefix_goes_into_every_row(cache: KVCache, golden_editor: Editor) -> None:
    source = KVCache.allocate(golden_editor.engine.checkpoint.model.config, 1, 5, torch.float32, CPU)
    for layer in range(2):
        source.write(layer, 0, _block(7, 5, rows=1), _block(8, 5, rows=1))
    cache.write(0, 0, _block(0, 10), _block(0, 10))
    cache.copy_prefix(source, 3)
    assert cache.keys[0][1, :5, 0, 0].tolist() == [7, 7, 7, 0, 0]
    assert cache.values[1][0, :3, 1, 3].tolist() == [8, 8, 8]


@pytest.mark.parametrize(
    ("first", "second", "blocks", "expected"),
    [
        ([1, 2, 3], [1, 2, 4], [], 2),
        ([1, 2, 3], [1, 2, 3, 4], [], 3),
        ([5], [6], [], 0),
        ([1, 9, 9, 9, 2], [1, 9, 9, 9, 3], [(1, 4)], 4),  # the whole block is shared
        ([1, 9, 9, 9], [1, 9, 9, 7], [(1, 4)], 1),  # differs inside a block
        ([1, 9, 9], [1, 9, 9, 9], [(1, 4)], 1),  # ends inside a block
    ],
)
def test_shared_prefix(first: list[int], second: list[int], blocks: list[tuple[int, int]], expected: int) -> None:
    assert shared_prefix(first, second, blocks) == expected
    assert shared_prefix(second, first, [], blocks) == expected


@pytest.mark.parametrize("section", ["e2e_t2i_fixed_easymoe", "e2e_t2i_recaption_easymoe"])
def test_initial_noise_equals_the_recorded_one(golden: Path, section: str) -> None:
    """256 places are whole blocks of 16 draws, 247 x 8 are not."""
    seed = {"e2e_t2i_fixed_easymoe": 42, "e2e_t2i_recaption_easymoe": 3}[section]
    recorded = load_file(golden / f"{section}.safetensors")["latents_0"]
    noise = RequestRandom(seed, CPU, noise_on_cpu=True).normal(recorded.shape, torch.bfloat16, CPU)
    assert noise.dtype == torch.bfloat16
    assert torch.equal(noise.float(), recorded)


@pytest.mark.parametrize("size", [1, 15, 16, 17, 31, 32, 1000])
def test_half_normal_sizes(size: int) -> None:
    values = half_normal_on_cpu((size,), torch.bfloat16, torch.Generator().manual_seed(0))
    assert values.shape == (size,)
    assert values.dtype == torch.bfloat16
    assert torch.isfinite(values.float()).all()


def test_text_draws_do_not_repeat_the_image_draws() -> None:
    random = RequestRandom(5, CPU, noise_on_cpu=False)
    image = torch.rand(8, generator=random.image)
    text = torch.rand(8, generator=random.text)
    assert not torch.equal(image, text)


def test_text_sampling_leaves_the_noise_alone() -> None:
    quiet, busy = (RequestRandom(5, CPU, noise_on_cpu=False) for _ in range(2))
    torch.rand(100, generator=busy.text)
    assert torch.equal(torch.rand(8, generator=quiet.image), torch.rand(8, generator=busy.image))


@pytest.mark.parametrize("seed", [0, 2**63 - 1])
def test_extreme_seeds(seed: int) -> None:
    assert RequestRandom(seed, CPU, noise_on_cpu=True).normal((4,), torch.float32, CPU).shape == (4,)
