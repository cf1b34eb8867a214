"""Loads the official model through its own remote code: what has to be there, and the arguments it gets.

Knows transformers, file names and settings; does not know requests.
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import torch
import transformers

from hunyuan.checkpoint.folder import checkpoint_name, read_json
from hunyuan.errors import CheckpointError, OutOfMemory, SettingsError
from hunyuan.placement import choose_device
from hunyuan.settings import Settings

TRANSFORMERS = "4.57"  # 5.x changed the StaticCache that the official code subclasses


def check_packages() -> None:
    if not transformers.__version__.startswith(f"{TRANSFORMERS}."):
        raise SettingsError(
            f"HUNYUAN_ENGINE=official needs transformers {TRANSFORMERS}.x; installed is {transformers.__version__}"
        )
    if importlib.util.find_spec("accelerate") is None:
        raise SettingsError("HUNYUAN_ENGINE=official needs the package accelerate (for device_map)")


def check_folder(folder: Path) -> None:
    """Names everything that is missing at once, before any remote code runs."""
    missing = [name for name in ("config.json", "generation_config.json") if not (folder / name).is_file()]
    if "config.json" not in missing:
        auto_map = read_json(folder, "config.json").get("auto_map", {})
        if not isinstance(auto_map, dict) or not all(isinstance(value, str) for value in auto_map.values()):
            raise CheckpointError("config.json: auto_map must map names to names")
        for key in ("AutoConfig", "AutoModelForCausalLM"):
            file = auto_map.get(key, "").split(".")[0] + ".py"  # "file.Class"
            if not (folder / file).is_file():
                missing.append(file if key in auto_map else f"auto_map.{key} in config.json")
    if missing:
        name = checkpoint_name(folder)
        raise CheckpointError(f"{name} cannot run with HUNYUAN_ENGINE=official: no {', '.join(missing)}")


def load_arguments(settings: Settings) -> dict[str, Any]:
    """The authors' arguments of `from_pretrained`, as far as the settings leave a choice."""
    cuda = choose_device(settings.device).type == "cuda"
    refused = {
        "HUNYUAN_WEIGHTS": settings.weights not in ("auto", "bf16"),
        "HUNYUAN_DENSE": settings.dense != "bf16",
        "HUNYUAN_ATTENTION": settings.attention != "bf16",
        "HUNYUAN_ROUTER": settings.router != "fp32",
        "HUNYUAN_NOISE_DEVICE": cuda and settings.noise_device == "cpu",
        "HUNYUAN_MOE_IMPL": settings.moe_impl == "torch" or (not cuda and settings.moe_impl == "flashinfer"),
    }
    if any(refused.values()):
        names = ", ".join(name for name, wrong in refused.items() if wrong)
        raise SettingsError(f"the official engine cannot honour {names} on this device; leave it at its default")
    return {
        "attn_implementation": "sdpa",
        "moe_impl": "flashinfer" if cuda and settings.moe_impl != "eager" else "eager",
        "moe_drop_tokens": True,
        "device_map": "auto" if cuda else "cpu",
        "torch_dtype": "auto" if settings.dtype == "auto" else getattr(torch, settings.dtype),
        "trust_remote_code": True,
    }


def module_name(folder: Path) -> str:
    """A folder name that is safe as the name of a Python module and belongs to this code alone.

    transformers imports remote code as `transformers_modules.<folder name>`: a dot in it breaks the
    import, and folders of one name share the modules of whichever was first. Named by its code's bytes, a
    folder shares modules only with its equals, and is another one once its code was replaced.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    return f"checkpoint_{digest.hexdigest()[:24]}"


def load_model(link: Path, name: str, arguments: dict[str, Any]) -> Any:
    model: Any
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(str(link), **arguments)
        model.load_tokenizer(str(link))
    except ImportError as error:
        raise SettingsError(f"the official code of {name} needs a package that is not installed: {error}") from error
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(f"{name} does not fit the GPU memory with HUNYUAN_ENGINE=official") from error
    except Exception as error:
        raise CheckpointError(f"the official code could not load {name}: {type(error).__name__}: {error}") from error
    return model
