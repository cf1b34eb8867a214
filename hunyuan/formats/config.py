"""A checkpoint's config: the network's shape, and in which number formats the folder stores its weights.

The second is our own section `quantization_config` (docs/weights.md). Knows the formats' names; no tensors, no files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field, replace
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import ConfigDict, Field, field_validator, model_validator
from pydantic.dataclasses import dataclass

from hunyuan.model.config import ModelConfig

ExpertFormat = Literal["bf16", "fp8", "mxfp4"]
DenseFormat = Literal["bf16", "fp8"]
QUANT_METHOD, QUANT_VERSION = "hunyuan-bento", 1


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="ignore"))
class MergedAdapter:
    """A LoRA file that was merged into the weights before they were quantized; `sha256` is the file's, in hex."""

    name: Annotated[str, Field(min_length=1, max_length=255)]
    scale: Annotated[float, Field(allow_inf_nan=False)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="ignore"))
class Quantization:
    """How weights are stored; "bf16" stands for the model's own dtype.

    Attributes:
        experts: of all layers, or of each.
        dense: of attention, shared MLP and lm_head.
        lora: the adapters in the weights.
    """

    quant_method: Literal["hunyuan-bento"] = "hunyuan-bento"
    version: Literal[1] = 1
    experts: str | tuple[str, ...] = "bf16"
    dense: DenseFormat = "bf16"
    lora: Annotated[tuple[MergedAdapter, ...], Field(max_length=256)] = ()

    @field_validator("experts", mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        words = [value] if isinstance(value, str) else value
        if not isinstance(words, list | tuple) or any(word not in get_args(ExpertFormat) for word in words):
            raise ValueError(f"expected one of {', '.join(get_args(ExpertFormat))}, or a list of them")
        return value


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="ignore", protected_namespaces=()))
class CheckpointConfig(ModelConfig):
    """`quantization_config` is absent where the weights are in the model's own dtype."""

    quantization_config: Quantization | None = field(default=None)

    @model_validator(mode="after")
    def _one_format_per_layer(self) -> Self:
        if len(self.expert_formats) != self.num_hidden_layers:
            words = f"{', '.join(get_args(ExpertFormat))}, or a list of {self.num_hidden_layers}"
            raise ValueError(f"quantization_config.experts: {list(self.expert_formats)}, expected one of {words}")
        return self

    @property
    def expert_formats(self) -> tuple[str, ...]:
        """How each layer's experts are stored."""
        experts = "bf16" if self.quantization_config is None else self.quantization_config.experts
        return (experts,) * self.num_hidden_layers if isinstance(experts, str) else experts

    @property
    def dense_format(self) -> str:
        return "bf16" if self.quantization_config is None else self.quantization_config.dense

    @property
    def merged_adapters(self) -> tuple[MergedAdapter, ...]:
        """Those that are in the folder's weights."""
        return () if self.quantization_config is None else self.quantization_config.lora

    @property
    def formats(self) -> tuple[tuple[str, ...], str]:
        """Of the experts by layer, and of the dense layers."""
        return self.expert_formats, self.dense_format

    def with_formats(self, experts: str | Sequence[str], dense: str) -> Self:
        """The same model with its experts, of all layers or of each, and its dense layers in these formats."""
        words = [experts] * self.num_hidden_layers if isinstance(experts, str) else experts
        if {*words, dense} == {"bf16"}:
            return replace(self, quantization_config=None)
        same = len(set(words)) == 1 and len(words) == self.num_hidden_layers
        section = Quantization(
            experts=words[0] if same else tuple(words),
            dense=dense,  # type: ignore[arg-type]
            lora=self.merged_adapters,
        )
        return replace(self, quantization_config=section)
