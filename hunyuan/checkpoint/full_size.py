"""The published model's `config.json`, for those who have no checkpoint folder at hand.

`full_size.json` holds its keys and values as docs/model.md, section 2, has them. Makes no weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hunyuan.formats.config import QUANT_METHOD, QUANT_VERSION

FULL_SIZE_FILE = Path(__file__).with_name("full_size.json")


def full_size_config(
    layers: int = 32, experts: str | list[str] = "mxfp4", dense: str = "bf16", distil: bool = False
) -> dict[str, Any]:
    """`config.json` of the real model with that many layers.

    Args:
        experts: how the experts are stored, bf16, fp8 or mxfp4, or a list of one word per layer.
        dense: bf16 or fp8: attention, shared MLP and lm_head.
    """
    raw: dict[str, Any] = json.loads(FULL_SIZE_FILE.read_text(encoding="utf-8"))
    raw["num_hidden_layers"] = layers
    if distil:
        raw |= {"cfg_distilled": True, "use_meanflow": True}
    if experts != "bf16" or dense != "bf16":
        quantization = {"quant_method": QUANT_METHOD, "version": QUANT_VERSION, "experts": experts, "dense": dense}
        raw["quantization_config"] = quantization
    return raw
