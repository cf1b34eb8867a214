"""The checkpoint's `generation_config.json` and what a request overrides of it (docs/model.md, section 3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hunyuan.errors import CheckpointError
from hunyuan.generation.sampling import Sampling
from hunyuan.requests import EditRequest

_REQUIRED = ("diff_guidance_scale", "flow_shift")


@dataclass(frozen=True)
class GenerationConfig:
    """The checkpoint's defaults. Sampling keys that the file leaves out have transformers' defaults."""

    sequence_template: str
    guidance_scale: float
    flow_shift: float
    drop_think: bool
    do_sample: bool
    temperature: float
    top_k: int
    top_p: float

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> GenerationConfig:
        missing = [key for key in _REQUIRED if key not in raw]
        if missing:
            raise CheckpointError(f"generation_config.json: missing {', '.join(missing)}")
        try:
            return cls._read(raw)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"generation_config.json: a value is of the wrong kind ({error})") from error

    @classmethod
    def _read(cls, raw: Mapping[str, Any]) -> GenerationConfig:
        return cls(
            sequence_template=raw.get("sequence_template", "pretrain"),
            guidance_scale=float(raw["diff_guidance_scale"]),
            flow_shift=float(raw["flow_shift"]),
            drop_think=bool(raw.get("drop_think", False)),
            do_sample=bool(raw.get("do_sample", False)),
            temperature=float(raw.get("temperature") or 1.0),
            top_k=int(raw.get("top_k", 50) or 0),
            top_p=float(raw.get("top_p", 1.0)),
        )


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
