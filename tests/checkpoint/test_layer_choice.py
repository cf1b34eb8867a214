"""Which layers are kept in fp8: by what they gain, as many as fit, and never one that gains nothing."""

from __future__ import annotations

import pytest

from hunyuan.checkpoint.full_size import full_size_config
from hunyuan.checkpoint.layer_choice import (
    LayerErrors,
    choice_table,
    extra_bytes,
    fill,
    token_bytes,
    with_fp8_layers,
    worth_fp8,
)
from hunyuan.checkpoint.quantize_plan import stored_bytes
from hunyuan.formats.config import CheckpointConfig

ERRORS = {0: LayerErrors(0.11, 0.03), 1: LayerErrors(0.13, 0.03), 2: LayerErrors(0.12, 0.1), 3: LayerErrors(0.02, 0.03)}


@pytest.fixture(scope="module")
def config() -> CheckpointConfig:
    return CheckpointConfig.from_dict({**full_size_config(experts="bf16"), "num_hidden_layers": 4})


def test_the_largest_gain_comes_first_and_none_is_left_out_but_those_that_gain_nothing():
    assert worth_fp8(ERRORS) == [1, 0, 2]  # 3 is better in 4 bits
    assert ERRORS[0].gain == pytest.approx(0.10583, abs=1e-5)
    assert ERRORS[3].gain == 0


def test_as_many_as_fit(config):
    extra = extra_bytes(config)
    assert len(set(extra.values())) == 1
    each = extra[0]
    assert each == stored_bytes(with_fp8_layers(config, [0], "bf16")) - stored_bytes(
        config.with_formats("mxfp4", "bf16")
    )
    kept = [fill(config, ERRORS, n * each) for n in range(5)]
    assert kept == [[], [1], [0, 1], [0, 1, 2], [0, 1, 2]]
    assert fill(config, ERRORS, 2 * each - 1) == [1]
    assert with_fp8_layers(config, [0, 2], "bf16").expert_formats == ("fp8", "mxfp4", "fp8", "mxfp4")


def test_a_token_reads_its_experts_and_all_else(config):
    whole = with_fp8_layers(config, (), "bf16")
    layer = 64 * 3 * 3072 * 4096 * 17 / 32  # experts' bytes: 4.25 bits a value
    read = token_bytes(whole)
    hidden, vocabulary = config.hidden_size, config.vocab_size
    assert read == pytest.approx(stored_bytes(whole) - _outside(whole) - 4 * layer * 7 / 8)
    assert read > hidden * vocabulary * 2


def _outside(config: CheckpointConfig) -> int:
    """What no decoded token reads: everything outside the layers but lm_head."""
    from hunyuan.checkpoint.tensor_table import expected_tensors

    return sum(
        s.nbytes for key, s in expected_tensors(config).items() if not key.startswith(("model.layers.", "lm_head."))
    )


def test_the_table_says_cost_and_gain(config):
    lines = choice_table(config, ERRORS, [0, 1], "its weights").splitlines()
    assert lines[0].endswith("relative error of its weights")
    assert [line.split()[1] for line in lines[2:6]] == ["fp8", "fp8", "4", "4"]
    assert lines[2].split()[2:] == ["1.055", "141.56", "0.11000", "0.03000", "0.10583"]
    assert lines[-1].startswith("2 of 4 layers in fp8: 2.11 GiB more; decoding reads ")
    assert lines[-1].endswith("all layers' errors together 0.20928 in 4 bits, 0.12884 so")
