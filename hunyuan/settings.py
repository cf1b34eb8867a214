"""Every setting of the service, read once from the environment and validated.

This file does not know what the settings are used for; `Editor.load` and `service.py` do. The names and
defaults are part of the public interface (docs/settings.md). Which variables only look like ours is in
`platform_variables.py`.
"""

from __future__ import annotations

import os
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from hunyuan.adapters import Adapter, adapters_of
from hunyuan.api_keys import ApiKey, keys_in, keys_of
from hunyuan.errors import SettingsError
from hunyuan.origins import origin_of
from hunyuan.platform_variables import service_links

Network = IPv4Network | IPv6Network
Device = Literal["auto", "cuda", "cpu"]
Dtype = Literal["auto", "bfloat16", "float32"]
Weights = Literal["auto", "bf16", "fp8", "4bit", "mixed"]
Dense = Literal["bf16", "fp8"]
Attention = Literal["bf16", "fp8"]
ENV_PREFIX = "HUNYUAN_"
LONGEST_S = 86_400  # a day; what is meant as "for ever" has to be a number
Builtin = Literal["demo", "tiny"]
"""The values of MODEL_ID that ask for a checkpoint of the package; a folder of such a name is `./demo`."""
TILDE = "~ stands for the home folder in a shell only; write the whole path"
_NEVER_EMPTY = ("model_id", "api_keys", "api_keys_file")  # without them something else is served, or to everybody
_IN_AN_IMAGE = ("BENTOML_CONTAINERIZED", "BENTOCLOUD_DEPLOYMENT_URL")  # as BentoML itself tells


class Settings(BaseSettings):
    """The one configuration object. Keyword arguments win over the environment.

    Raises:
        SettingsError: a value is malformed, a `HUNYUAN_*` variable is none of ours, MODEL_ID is empty, or it is unset
            in an image, where nobody means the built-in checkpoint by saying nothing.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        extra="forbid",
        frozen=True,
        populate_by_name=True,
        protected_namespaces=(),
        env_ignore_empty=True,  # as compose files write what is unset; the defaults are harmless but for _NEVER_EMPTY's
        hide_input_in_errors=True,  # a traceback that shows pydantic's own error shows no key
    )

    model_id: Builtin | Path | None = Field(
        None,
        validation_alias="MODEL_ID",
        description="checkpoint folder; demo (as unset outside an image), tiny: built-in",
    )
    engine: Literal["native", "official"] = "native"
    device: Device = "auto"
    dtype: Dtype = "auto"
    weights: Weights = "auto"
    dense: Dense = "bf16"
    attention: Attention = Field("bf16", description="of denoising; fp8: less exact, for Hopper's kernel")
    router: Literal["fp32", "bf16"] = Field("fp32", description="what the choice of experts is computed in")
    lora: Annotated[tuple[Adapter, ...] | None, NoDecode] = Field(
        None, description="adapters to merge into the weights: PATH[:SCALE], comma between them"
    )
    moe_impl: Literal["auto", "flashinfer", "torch", "eager"] = "auto"
    noise_device: Literal["auto", "cpu"] = Field("auto", description="auto: the model's device")
    default_steps: int | None = Field(
        None, ge=1, le=100, description="unset: 28, Distil 8, the checkpoint's own if lower"
    )
    request_timeout_s: float = Field(300, gt=0, le=LONGEST_S)
    text_batch: int = Field(1, ge=1, le=8, description="texts of waiting requests decoded together; 1: each alone")
    stuck_s: float = Field(120, gt=0, le=LONGEST_S)
    queue_size: int = Field(8, ge=1, le=10_000)
    max_upload_mb: float = Field(20, ge=0.001, le=4096)
    max_pixels: int = Field(50_000_000, ge=256, le=10**9)
    max_decode_s: float = Field(10, gt=0, le=3600)
    prompt_max_chars: int = Field(4000, ge=1, le=10**6)
    idle_s: float = Field(10, ge=0.1, le=LONGEST_S, description="that a request or an answer may stand still")
    min_rate_kb_s: float = Field(16, ge=0, le=1024, description="KiB a second, of bodies and answers")
    max_connections: int = Field(1024, ge=16, le=100_000)
    peer_share: float = Field(0.25, gt=0, le=1, description="of connections and uploads, for one address")
    trusted_proxies: Annotated[tuple[Network, ...] | None, NoDecode] = Field(
        None, description="addresses and CIDR ranges, comma between them"
    )
    api_keys: Annotated[tuple[ApiKey, ...] | None, NoDecode] = Field(None, description="NAME:KEY, comma between them")
    api_keys_file: Path | None = Field(None, description="a file of NAME:KEY lines, in place of api_keys")
    cors_origins: Annotated[tuple[str, ...] | None, NoDecode] = Field(
        None, description="of pages elsewhere that may call, comma between them"
    )
    jobs_dir: Path | None = Field(None, description="unset: a folder of the user's")
    jobs_keep_s: float = Field(86_400, ge=1, le=30 * LONGEST_S, description="from a job's end")
    jobs_kept: int = Field(1000, ge=1, le=100_000, description="finished jobs")
    jobs_mb: float = Field(2048, ge=0.1, le=10**7, description="MiB of all jobs together")
    jobs_proxy: str | None = Field(
        None, pattern=r"^https?://[^\s/?#@]+$", description="address of a proxy in whose queue jobs stand, too"
    )
    replica: str | None = Field(
        None, pattern=r"^[a-z0-9]{1,32}$", description="this process's name among others: small letters and digits"
    )
    png_prompt: bool = False
    log_format: Literal["auto", "json", "text"] = Field("auto", description="auto: text on a terminal, else JSON")
    cache_dir: Path | None = None

    def __init__(self, **values: Any) -> None:
        unknown = unknown_variables()
        if unknown:
            raise SettingsError(f"unknown settings {', '.join(unknown)}; known are {', '.join(known_variables())}")
        values = {name: "" for name in _NEVER_EMPTY if _is_set_but_empty(name)} | values
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise SettingsError(_describe(error)) from error

    @field_validator("model_id", mode="before")
    @classmethod
    def _says_something(cls, value: Any) -> Any:
        if isinstance(value, str) and not value.strip():
            raise ValueError("set but empty; name a checkpoint folder, or demo for the built-in demo")
        return value

    @field_validator("model_id")
    @classmethod
    def _is_a_folder(cls, path: Path | str | None) -> Path | str | None:
        try:
            if isinstance(path, Path) and not path.is_dir():
                raise ValueError(_why_no_folder(path))
        except OSError as error:
            raise ValueError(f"the folder cannot be looked at: {error.strerror}") from error
        return path

    @field_validator("lora", mode="before")
    @classmethod
    def _are_adapters(cls, value: Any) -> Any:
        return None if value is None else adapters_of(value)

    @field_validator("trusted_proxies", mode="before")
    @classmethod
    def _are_addresses(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return tuple(_network(item.strip()) for item in value.split(",") if item.strip())

    @field_validator("api_keys", mode="before")
    @classmethod
    def _are_keys(cls, value: Any) -> Any:
        return keys_of(value) if isinstance(value, str) else value

    @field_validator("api_keys_file", mode="before")
    @classmethod
    def _holds_keys(cls, value: Any) -> Any:
        if value is not None:
            if not str(value):
                raise ValueError("set but empty; name a file, or leave the setting out to let everybody in")
            keys_in(Path(value))
        return value

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _are_origins(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return tuple(origin_of(item.strip()) for item in value.split(",") if item.strip())

    @field_validator("cache_dir", "jobs_dir")
    @classmethod
    def _is_a_whole_path(cls, path: Path | None) -> Path | None:
        if path is not None and str(path).startswith("~"):
            raise ValueError(TILDE)
        return path

    @model_validator(mode="after")
    def _names_a_model_in_an_image(self) -> Settings:
        if "model_id" not in self.model_fields_set and any(name in os.environ for name in _IN_AN_IMAGE):
            raise ValueError("MODEL_ID is unset; name the mounted checkpoint folder, or demo for the built-in demo")
        return self

    @model_validator(mode="after")
    def _has_one_place_for_keys(self) -> Settings:
        if self.api_keys is not None and self.api_keys_file is not None:
            raise ValueError("HUNYUAN_API_KEYS and HUNYUAN_API_KEYS_FILE are both set; keep one")
        return self

    @property
    def keys(self) -> tuple[ApiKey, ...]:
        """Of those who may call; empty: everybody may. Reads the file again."""
        return keys_in(self.api_keys_file) if self.api_keys_file is not None else self.api_keys or ()

    @property
    def folder(self) -> Path | None:
        """The checkpoint folder that was named; None asks for the built-in checkpoint `builtin`."""
        return self.model_id if isinstance(self.model_id, Path) else None

    @property
    def builtin(self) -> Builtin | None:
        """The built-in checkpoint that is asked for, the demo by saying nothing; None where a folder was named."""
        return None if isinstance(self.model_id, Path) else self.model_id or "demo"

    def lines(self) -> list[str]:
        """One `NAME=value` line per setting, for the log at start."""
        return [f"{variable(name)}={_shown(getattr(self, name))}" for name in type(self).model_fields]


def _why_no_folder(path: Path) -> str:
    text = str(path)
    if path.exists():
        return f"{text} is a file; a checkpoint folder is meant"
    if path.is_symlink():
        return f"{text} is a link to {os.readlink(path)}, which is not there"
    if text.startswith("~"):
        return TILDE
    if text != text.strip():
        return f"no such folder: {text!r}; are the blanks meant?"
    if text[0] in "\"'":
        return f"no such folder: {text} (the quotes are a part of the name here; leave them out)"
    return f"no such folder: {text} (a local path is meant; nothing is downloaded at start)"


def _network(text: str) -> Network:
    """Callers' IPv4 addresses are compared as such, also where a socket for both kinds shows them as IPv6."""
    network = ip_network(text, strict=False)
    mapped = network.network_address.ipv4_mapped if isinstance(network, IPv6Network) else None
    return network if mapped is None else ip_network(f"{mapped}/{network.prefixlen - 96}", strict=False)


def _is_set_but_empty(field: str) -> bool:
    return any(name.upper() == variable(field) and not text for name, text in os.environ.items())


def _shown(value: Any) -> str:
    """Of a key its name alone."""
    if isinstance(value, tuple) and any(isinstance(item, ApiKey) for item in value):
        return ",".join(key.name for key in value)
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def variable(name: str) -> str:
    """The environment variable that sets the field `name`."""
    return "MODEL_ID" if name == "model_id" else f"{ENV_PREFIX}{name.upper()}"


def known_variables() -> list[str]:
    return [variable(name) for name in Settings.model_fields]


def unknown_variables() -> list[str]:
    """Variables with our prefix that are no settings, but for those that a platform writes by itself."""
    known = set(known_variables())
    return sorted(name for name in _prefixed() if name.upper() not in known and name not in ignored_variables())


def ignored_variables() -> list[str]:
    """Variables with our prefix that a container platform has written about services beside us."""
    known = set(known_variables())
    return sorted(service_links({name: value for name, value in _prefixed().items() if name.upper() not in known}))


def _prefixed() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.upper().startswith(ENV_PREFIX)}


def _describe(error: ValidationError) -> str:
    parts = []
    for item in error.errors():
        if not item["loc"]:  # of the settings together
            parts.append(item["msg"].removeprefix("Value error, "))
            continue
        name = str(item["loc"][0])
        shown = variable(name) if name in Settings.model_fields else name
        given = item.get("input")
        given = str(given) if isinstance(given, Path) else given
        if name == "api_keys":
            parts.append(f"{shown}: {item['msg'].removeprefix('Value error, ')}")
            continue
        parts.append(f"{shown}={given!r}: {item['msg'].removeprefix('Value error, ')}")
    return "; ".join(dict.fromkeys(parts))
