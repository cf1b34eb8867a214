"""PEFT's `adapter_config.json`: how strongly each layer's pair of matrices counts.

Knows the fields that decide that, and refuses those that would make an adapter something else than `W + c B A` on the
published weights (https://huggingface.co/docs/peft/package_reference/lora). Knows no tensors.
"""

from __future__ import annotations

import re
from dataclasses import field
from math import sqrt
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, field_validator
from pydantic.dataclasses import dataclass

from hunyuan.model.config import problems

CONFIG_FILE = "adapter_config.json"
_SIMPLE = re.compile(r"\^?[\w.\\]+\$?")
Alpha = Annotated[float, Field(allow_inf_nan=False)]
Rank = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="ignore"))
class PeftConfig:
    """Patterns are layers' names or the ends of such, from a dot on; `^` in front means the whole name.

    Attributes:
        init_lora_weights: other words than these (`pissa`, `olora`, ...) changed the published weights too.
    """

    peft_type: Literal["LORA"]
    r: Rank
    lora_alpha: Alpha
    rank_pattern: dict[str, Rank] | None = None
    alpha_pattern: dict[str, Alpha] | None = None
    use_rslora: bool = False
    use_dora: Literal[False] | None = None
    fan_in_fan_out: Literal[False] | None = None
    layer_replication: None = None
    init_lora_weights: bool | Literal["gaussian", "orthogonal", "eva"] | None = field(default=True)

    @field_validator("rank_pattern", "alpha_pattern")
    @classmethod
    def _are_simple(cls, patterns: dict[str, Any] | None) -> dict[str, Any] | None:
        wrong = [pattern for pattern in patterns or {} if not _SIMPLE.fullmatch(pattern)]
        if wrong:
            raise ValueError(f"the pattern {wrong[0][:80]!r} is more than a layer's name or the end of one")
        return patterns

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PeftConfig:
        """Raises `ValueError`, which names the fields."""
        try:
            return TypeAdapter(cls).validate_python(values)
        except ValidationError as error:
            raise ValueError(problems(error)) from error

    def rank(self, layer: str) -> int:
        """What the config says it is; the tensors have to have it."""
        return _found(self.rank_pattern, layer) or self.r

    def strength(self, layer: str) -> float:
        """What B A is multiplied with."""
        alpha, rank = _found(self.alpha_pattern, layer), self.rank(layer)
        return (self.lora_alpha if alpha is None else alpha) / (sqrt(rank) if self.use_rslora else rank)


def _found(patterns: dict[str, Any] | None, layer: str) -> Any:
    return next((value for pattern, value in (patterns or {}).items() if _fits(pattern, layer)), None)


def _fits(pattern: str, layer: str) -> bool:
    whole, name = pattern.startswith("^"), pattern.strip("^$").replace("\\.", ".")
    return layer == name or (not whole and layer.endswith(f".{name}"))
