"""Our own engine: a loaded checkpoint and one `EditJob` a request.

Knows how settings and hardware decide device, dtype and backends. The computation itself is in
`hunyuan.generation` and `hunyuan.model`.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from hunyuan.checkpoint.load import load_model, read_config, read_json
from hunyuan.errors import OutOfMemory, SettingsError
from hunyuan.generation.config import GenerationConfig
from hunyuan.generation.job import Checkpoint, EditJob
from hunyuan.model.config import ModelConfig
from hunyuan.prompt.layout import Composer
from hunyuan.prompt.system_prompt import SystemPrompts
from hunyuan.prompt.tokenizer import Tokenizer
from hunyuan.requests import CancelToken, EditRequest, EditResult, ProgressCallback
from hunyuan.settings import Settings, variable

DEFAULT_PRESET = "en_unified"
_AVAILABLE = {"weights": ("auto", "bf16"), "dense": ("bf16",), "moe_impl": ("auto", "eager")}

log = logging.getLogger(__name__)


class NativeEngine:
    """Runs edits on one device. Holds weights only; each request's state is its own `EditJob`."""

    def __init__(self, checkpoint: Checkpoint, noise_on_cpu: bool = False) -> None:
        self.checkpoint, self.noise_on_cpu = checkpoint, noise_on_cpu

    @classmethod
    def load(cls, folder: Path, settings: Settings) -> NativeEngine:
        """Raises `SettingsError` and `CheckpointError`."""
        check_available(settings)
        device = choose_device(settings)
        dtype = choose_dtype(settings, device)
        if device.type == "cuda" and dtype == torch.float32:
            torch.backends.cudnn.allow_tf32 = False  # on by default for convolutions; float32 here means float32
        config = read_config(folder)
        log.info("device %s, dtype %s, mixture of experts: eager", device, dtype)
        small = load_small_files(folder, config)
        prompts = SystemPrompts.read(folder)
        prompts.preset(DEFAULT_PRESET)
        model = load_model(folder, config, device, dtype)
        tokenizer, generation = small
        composer = Composer(tokenizer, config, generation.sequence_template)
        return cls(Checkpoint(model, tokenizer, composer, prompts, generation), settings.noise_device == "cpu")

    def run(
        self,
        request: EditRequest,
        *,
        seed: int,
        steps: int,
        on_progress: ProgressCallback | None,
        cancel: CancelToken | None,
    ) -> EditResult:
        job = EditJob(self.checkpoint, request, seed, steps, self.noise_on_cpu, on_progress, cancel)
        try:
            return job.run()
        except torch.cuda.OutOfMemoryError as error:
            raise OutOfMemory("the device ran out of memory on this request; try a smaller resolution") from error


def load_small_files(folder: Path, config: ModelConfig) -> tuple[Tokenizer, GenerationConfig]:
    """Tokenizer and generation config: cheap, so they fail before the weights are read."""
    needed = ["<guidance>"] * config.cfg_distilled + ["<timestep_r>"] * config.use_meanflow
    tokenizer = Tokenizer(folder, config.image_base_size, config.model_version, needed)
    generation = GenerationConfig.from_dict(read_json(folder, "generation_config.json"))
    return tokenizer, generation


def check_available(settings: Settings) -> None:
    """Raises `SettingsError` for a backend that this version does not have."""
    for name, available in _AVAILABLE.items():
        value = getattr(settings, name)
        if value not in available:
            raise SettingsError(f"{variable(name)}={value} is not available here; available: {', '.join(available)}")


def choose_device(settings: Settings) -> torch.device:
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise SettingsError("HUNYUAN_DEVICE=cuda, but torch finds no CUDA device; use auto or cpu")
    if settings.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(settings.device)


def choose_dtype(settings: Settings, device: torch.device) -> torch.dtype:
    if settings.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return torch.bfloat16 if settings.dtype == "bfloat16" else torch.float32
