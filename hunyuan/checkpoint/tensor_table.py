"""What every tensor of a checkpoint is called, its shape, and where it goes: read off the network's own modules.

The network is built without memory for its weights, in the formats of the config; its parameters bear the checkpoint's
names. Only the official folders' experts differ: they are stored one by one, and stacked here. Knows no files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import prod

import torch
from torch import nn

from hunyuan.errors import CheckpointError
from hunyuan.formats.config import CheckpointConfig
from hunyuan.formats.modules import use_weight_formats
from hunyuan.formats.numbers import FP8
from hunyuan.model.network import HunyuanImage3

ROUTER_SUFFIX = ".mlp.gate.wg.weight"

STORED_TYPES = {
    "plain": ("BF16", "F16", "F32"),
    "router": ("BF16", "F16", "F32"),
    "scale": ("F32",),
    "fp8": ("F8_E4M3",),
    "mxfp4": ("U8",),
    "mxfp4_scale": ("U8",),
}
"""By the kind of a tensor: how safetensors may name its type."""
_VALUE_BYTES = {"plain": 2, "router": 4, "scale": 4, "fp8": 1, "mxfp4": 1, "mxfp4_scale": 1}


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a checkpoint.

    Attributes:
        key: its name in the checkpoint's files.
        shape: its shape there.
        kind: what its values are, a key of `STORED_TYPES`. "plain" takes the model's dtype; the others keep their own.
        param: the name of the parameter it fills in our module tree: the key itself, but for the official
            checkpoint's experts, which are stacked into `[experts, 2F, H]` and `[experts, H, F]`.
        slot: its index in that stack, None for a tensor that is a parameter of its own.
    """

    key: str
    shape: tuple[int, ...]
    kind: str
    param: str
    slot: int | None = None

    @property
    def float32(self) -> bool:
        """The router's weights and fp8's scales stay float32 whatever the model's dtype (docs/model.md, section 1)."""
        return self.kind in ("router", "scale")

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Its size where it is used, with 16 bits per value for what takes the model's dtype."""
        return self.numel * _VALUE_BYTES[self.kind]


@lru_cache(maxsize=16)
def expected_tensors(config: CheckpointConfig) -> dict[str, TensorSpec]:
    """Every tensor that a checkpoint with this config holds, by its key; quantized ones as docs/weights.md has them.

    The result is shared between callers.

    Raises:
        CheckpointError: sizes that a module cannot be built with: columns that do not divide into MXFP4's blocks,
            channels that do not divide into a norm's groups.
    """
    model = meta_model(config)
    specs = (spec for name, parameter in model.named_parameters() for spec in _specs(name, parameter))
    return {spec.key: spec for spec in specs}


def meta_model(config: CheckpointConfig) -> HunyuanImage3:
    """The network in the config's formats, without memory for its weights. Raises as `expected_tensors` does."""
    try:
        with torch.device("meta"):
            model = HunyuanImage3(config)
            use_weight_formats(model, config)
    except ValueError as error:
        raise CheckpointError(f"config.json: {error}") from error
    return model


def _specs(name: str, parameter: nn.Parameter) -> Iterator[TensorSpec]:
    kind, shape = _kind(name, parameter), tuple(parameter.shape)
    mlp, found, matrix = name.rpartition(".experts.")
    if not found or kind != "plain":
        yield TensorSpec(name, shape, kind, name)
        return
    for expert in range(shape[0]):
        yield TensorSpec(f"{mlp}.experts.{expert}.{matrix}.weight", shape[1:], kind, name, expert)


def _kind(name: str, parameter: nn.Parameter) -> str:
    scale = name.endswith("_scale")
    if parameter.dtype == torch.uint8:
        return "mxfp4_scale" if scale else "mxfp4"
    if parameter.dtype == FP8:
        return "fp8"
    return "scale" if scale else "router" if name.endswith(ROUTER_SUFFIX) else "plain"
