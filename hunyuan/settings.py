"""Every setting of the service, read once from the environment and validated.

This file does not know what the settings are used for; `Editor.load` and `service.py` do. The names and
defaults are part of the public interface (README, section Settings).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from hunyuan.errors import SettingsError

ENV_PREFIX = "HUNYUAN_"
LONGEST_S = 86_400  # a day; what is meant as "for ever" has to be a number


class Settings(BaseSettings):
    """The one configuration object. Keyword arguments win over the environment.

    Raises:
        SettingsError: a value is malformed, or a `HUNYUAN_*` variable is none of ours.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        extra="forbid",
        frozen=True,
        populate_by_name=True,
        protected_namespaces=(),
        env_ignore_empty=True,
    )

    model_id: Path | None = Field(None, validation_alias="MODEL_ID", description="checkpoint folder; unset: tiny one")
    engine: Literal["native", "official"] = "native"
    device: Literal["auto", "cuda", "cpu"] = "auto"
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    weights: Literal["auto", "bf16", "fp8", "4bit", "mixed"] = "auto"
    dense: Literal["bf16", "fp8"] = "bf16"
    moe_impl: Literal["auto", "flashinfer", "torch", "eager"] = "auto"
    noise_device: Literal["auto", "cpu"] = Field("auto", description="auto: the model's device")
    default_steps: int | None = Field(None, ge=1, le=100, description="unset: 28, and 8 for a Distil checkpoint")
    request_timeout_s: float = Field(300, gt=0, le=LONGEST_S)
    stuck_s: float = Field(120, gt=0, le=LONGEST_S)
    queue_size: int = Field(8, ge=1)
    max_upload_mb: float = Field(20, ge=0.001, le=4096)
    max_pixels: int = Field(50_000_000, ge=256)
    prompt_max_chars: int = Field(4000, ge=1)
    png_prompt: bool = False
    cache_dir: Path | None = None

    def __init__(self, **values: Any) -> None:
        unknown = unknown_variables()
        if unknown:
            raise SettingsError(f"unknown settings {', '.join(unknown)}; known are {', '.join(known_variables())}")
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise SettingsError(_describe(error)) from error

    @field_validator("model_id")
    @classmethod
    def _is_a_folder(cls, path: Path | None) -> Path | None:
        if path is not None and not path.is_dir():
            raise ValueError(f"no such folder: {path} (a local path is meant; nothing is downloaded at start)")
        return path

    def lines(self) -> list[str]:
        """One `NAME=value` line a setting, for the log at start."""
        return [f"{variable(name)}={getattr(self, name)}" for name in type(self).model_fields]


def variable(name: str) -> str:
    """The environment variable that sets the field `name`."""
    return "MODEL_ID" if name == "model_id" else f"{ENV_PREFIX}{name.upper()}"


def known_variables() -> list[str]:
    return [variable(name) for name in Settings.model_fields]


def unknown_variables() -> list[str]:
    known = set(known_variables())
    return sorted(name for name in os.environ if name.upper().startswith(ENV_PREFIX) and name.upper() not in known)


def _describe(error: ValidationError) -> str:
    parts = []
    for item in error.errors():
        name = str(item["loc"][0]) if item["loc"] else "settings"
        shown = variable(name) if name in Settings.model_fields else name
        parts.append(f"{shown}={item.get('input')!r}: {item['msg']}")
    return "; ".join(parts)
