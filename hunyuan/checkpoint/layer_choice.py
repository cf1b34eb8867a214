"""Which layers' experts to keep in fp8 where the others are in 4 bits: what each layer costs and gains.

Knows formats' sizes and errors that others have measured; reads no weights and plans no memory.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import sqrt
from typing import NamedTuple

from hunyuan.checkpoint.quantize_plan import expert_bytes
from hunyuan.checkpoint.tensor_table import expected_tensors
from hunyuan.formats.config import CheckpointConfig

GIB = 2**30


class LayerErrors(NamedTuple):
    """A layer's relative error with its experts in 4 bits and in fp8, measured in the same way."""

    mxfp4: float
    fp8: float

    @property
    def gain(self) -> float:
        """How much error fp8 takes away; 0 where calibrated 4 bits are as good. Errors of layers add up as squares."""
        return sqrt(max(0.0, self.mxfp4**2 - self.fp8**2))


def worth_fp8(errors: Mapping[int, LayerErrors]) -> list[int]:
    """The layers that gain anything, the largest gain first."""
    gaining = [layer for layer, found in errors.items() if found.gain > 0]
    return sorted(gaining, key=lambda layer: (-errors[layer].gain, layer))


def extra_bytes(config: CheckpointConfig) -> dict[int, int]:
    """By layer with experts: how much larger they are in fp8 than in 4 bits."""
    dense = config.dense_format
    narrow, wide = (expert_bytes(config.with_formats(kind, dense)) for kind in ("mxfp4", "fp8"))
    return {layer: wide[layer] - narrow[layer] for layer in sorted(narrow)}


def fill(config: CheckpointConfig, errors: Mapping[int, LayerErrors], free: float) -> list[int]:
    """The layers to keep in fp8 where `free` bytes are left beside 4 bits, in their order."""
    kept, extra = [], extra_bytes(config)
    for layer in worth_fp8(errors):
        if extra[layer] <= free:
            kept.append(layer)
            free -= extra[layer]
    return sorted(kept)


def with_fp8_layers(config: CheckpointConfig, kept: Collection[int], dense: str) -> CheckpointConfig:
    """The same model with the experts of some layers in fp8 and the others' in 4 bits."""
    return config.with_formats(["fp8" if n in kept else "mxfp4" for n in range(config.num_hidden_layers)], dense)


def token_bytes(config: CheckpointConfig) -> float:
    """What decoding one token reads: all layers' weights and lm_head, of the experts the share that a token chooses."""
    total = 0.0
    for spec in expected_tensors(config).values():
        if spec.key.startswith("model.layers."):
            total += spec.nbytes * (_share(config, int(spec.key.split(".")[2])) if ".experts." in spec.key else 1)
        elif spec.key.startswith("lm_head."):
            total += spec.nbytes
    return total


def _share(config: CheckpointConfig, layer: int) -> float:
    return config.moe_topk[layer] / config.num_experts[layer]


def choice_table(
    config: CheckpointConfig, errors: Mapping[int, LayerErrors], kept: Collection[int], measure: str
) -> str:
    """One line per layer with experts, then what those that are kept cost together.

    Args:
        measure: what the errors are of.
    """
    extra, dense = extra_bytes(config), config.dense_format
    lines = [
        f"experts in fp8 instead of 4 bits: what each layer costs, and what it gains in relative error of {measure}",
        f"{'layer':>5}  {'kept in':<7} {'GiB more':>9} {'MB more a token':>16} {'4 bits':>9} {'fp8':>9} {'gain':>9}",
    ]
    for layer, found in sorted(errors.items()):
        word, more = "fp8" if layer in kept else "4 bits", extra[layer] * _share(config, layer) / 1e6
        cells = "".join(f" {value:>9.5f}" for value in (found.mxfp4, found.fp8, found.gain))
        lines.append(f"{layer:>5}  {word:<7} {extra[layer] / GIB:>9.3f} {more:>16.2f}{cells}")
    plain = token_bytes(with_fp8_layers(config, (), dense))
    more = token_bytes(with_fp8_layers(config, kept, dense)) - plain
    before = sqrt(sum(e.mxfp4**2 for e in errors.values()))
    after = sqrt(sum((e.fp8 if n in kept else e.mxfp4) ** 2 for n, e in errors.items()))
    lines.append(
        f"{len(kept)} of {len(errors)} layers in fp8: {sum(extra[n] for n in kept) / GIB:.2f} GiB more; decoding reads "
        f"{100 * more / plain:.1f} % more a token; all layers' errors together {before:.5f} in 4 bits, {after:.5f} so"
    )
    return "\n".join(lines)
