"""PEFT's config: ranks, strengths, and what is refused because the weights would be others."""

from __future__ import annotations

from typing import Any

import pytest

from hunyuan.checkpoint.adapters.peft import PeftConfig

LAYER = "model.layers.1.self_attn.qkv_proj"


def config(**values: Any) -> PeftConfig:
    return PeftConfig.from_dict({"peft_type": "LORA", "r": 8, "lora_alpha": 4, "bias": "none", **values})


def test_strength_is_alpha_over_rank_or_its_root() -> None:
    assert config().strength(LAYER) == 0.5
    assert config(r=16, use_rslora=True).strength(LAYER) == 1.0


@pytest.mark.parametrize(
    ("pattern", "fits"),
    [
        (LAYER, True),
        ("qkv_proj", True),
        ("self_attn.qkv_proj", True),
        (r"layers\.1\.self_attn\.qkv_proj$", True),
        (f"^{LAYER}", True),
        ("^qkv_proj", False),
        ("kv_proj", False),
        ("o_proj", False),
    ],
)
def test_a_pattern_is_a_name_or_the_end_of_one(pattern: str, fits: bool) -> None:
    changed = config(rank_pattern={pattern: 2}, alpha_pattern={pattern: 6})
    assert (changed.rank(LAYER), changed.strength(LAYER)) == ((2, 3.0) if fits else (8, 0.5))


def test_the_first_pattern_that_fits_counts() -> None:
    assert config(alpha_pattern={"o_proj": 1, "qkv_proj": 8, LAYER: 16}).strength(LAYER) == 1.0


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"peft_type": "LOHA"}, "peft_type"),
        ({"r": 0}, "r: 0"),
        ({"lora_alpha": "inf"}, "lora_alpha"),
        ({"use_dora": True}, "use_dora"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights"),
        ({"layer_replication": [[0, 4]]}, "layer_replication"),
        ({"rank_pattern": {"(a+)+$": 2}}, "'(a+)+$' is more than a layer's name"),
        ({"rank_pattern": {"q": 0}}, "rank_pattern.q"),
    ],
)
def test_what_is_not_a_plain_adapter_is_refused_by_name(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        config(**values)
    assert said in str(caught.value)
