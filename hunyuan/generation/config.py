"""The checkpoint's `generation_config.json` and what a request overrides of it (docs/model.md, section 3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass

from hunyuan.errors import CheckpointError
from hunyuan.generation.sampling import Sampling
from hunyuan.model.config import problems
from hunyuan.requests import EditRequest


@pydantic_dataclass(frozen=True, config=ConfigDict(extra="ignore"))
class GenerationConfig:
    """The checkpoint's defaults. Sampling keys that the file leaves out have transformers' defaults."""

    guidance_scale: float = Field(validation_alias="diff_guidance_scale")
    flow_shift: float = Field()
    sequence_template: str = "pretrain"
    drop_think: bool = False
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> GenerationConfig:
        """Raises `CheckpointError` naming every key that is missing or of the wrong kind."""
        given = {key: value for key, value in raw.items() if value is not None}
        given |= {"temperature": raw.get("temperature") or 1.0, "top_k": raw.get("top_k", 50) or 0}  # null: no top-k
        try:
            return TypeAdapter(cls).validate_python(given)
        except ValidationError as error:
            raise CheckpointError(f"generation_config.json: {problems(error)}") from error


@dataclass(frozen=True)
class Options:
    """One request's values, the checkpoint's where the request has None."""

    sampling: Sampling
    guidance_scale: float
    flow_shift: float
    drop_think: bool

    @classmethod
    def resolve(cls, request: EditRequest, config: GenerationConfig) -> Options:
        def pick(name: str) -> Any:
            value = getattr(request, name)
            return getattr(config, name) if value is None else value

        sampling = Sampling(pick("do_sample"), pick("temperature"), pick("top_k"), pick("top_p"))
        return cls(sampling, pick("guidance_scale"), pick("flow_shift"), pick("drop_think"))
