"""Our own engine: a loaded checkpoint and one `EditJob` a request.

Knows how settings and hardware decide device, dtype and backends. The computation itself is in
`hunyuan.generation` and `hunyuan.model`; what makes it fast is in `hunyuan.accel`, and without that all runs plainly.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType

import torch

from hunyuan.cache_dirs import user_cache_dirs
from hunyuan.checkpoint.folder import read_config, read_json
from hunyuan.checkpoint.layer_choice import LayerErrors, choice_table
from hunyuan.checkpoint.load import copy_for_painting, load_model
from hunyuan.checkpoint.sensitivity import weight_errors
from hunyuan.engines.cpu_threads import threads_for
from hunyuan.errors import OutOfMemory, SettingsError
from hunyuan.formats.config import CheckpointConfig
from hunyuan.formats.fp8_attention import Fp8AttentionOperations
from hunyuan.generation.company import TextCompany
from hunyuan.generation.config import GenerationConfig
from hunyuan.generation.job import Checkpoint, EditJob
from hunyuan.generation.shared_text import SharedTextJob
from hunyuan.generation.workspace import Workspace, text_company
from hunyuan.model.config import ModelConfig
from hunyuan.model.network import HunyuanImage3
from hunyuan.model.operations import PLAIN, Operations, use_operations
from hunyuan.placement import Placement, choose_device
from hunyuan.plan.choice import Choice, DoesNotFit, Gpu, choose
from hunyuan.plan.memory import MOST_EXPERT_TOKENS, TEXT_ROW_TOKENS, Work, text_rows
from hunyuan.plan.table import render
from hunyuan.prompt.layout import LayoutBuilder
from hunyuan.prompt.system_prompt import SystemPrompts
from hunyuan.prompt.tokenizer import Tokenizer
from hunyuan.requests import CancelToken, EditRequest, EditResult, PreviewCallback, ProgressCallback, TextCallback
from hunyuan.settings import Settings

DEFAULT_PRESET = "en_unified"
SmallFiles = tuple[Tokenizer, GenerationConfig, SystemPrompts]

log = logging.getLogger(__name__)


class NativeEngine:
    """Runs edits on one device, a model spread over several, or two copies. A request's state is its job.

    Attributes:
        job_type, shared_job_type: what an edit is, decoded alone and in company; a benchmark has jobs of its own.
    """

    job_type: type[EditJob] = EditJob
    shared_job_type: type[SharedTextJob] = SharedTextJob

    def __init__(
        self,
        checkpoint: Checkpoint,
        noise_on_cpu: bool = False,
        workspace: Workspace | None = None,
        company: TextCompany | None = None,
    ) -> None:
        self.checkpoint, self.noise_on_cpu, self.workspace, self.company = checkpoint, noise_on_cpu, workspace, company

    @classmethod
    def load(cls, folder: Path, settings: Settings) -> NativeEngine:
        """Raises `SettingsError` and `CheckpointError`."""
        device = choose_device(settings.device)
        dtype = choose_dtype(settings, device)
        if device.type == "cuda" and dtype == torch.float32:
            torch.backends.cudnn.allow_tf32 = False  # on by default for convolutions; float32 here means float32
        choice = choose_weights(
            read_config(folder), settings, visible_gpus(device), dtype, lambda: weight_errors(folder, device)
        )
        log.info("device %s, dtype %s, weights %s: %s", device, dtype, choice.weights, choice.reason)
        impl = choose_impl(choice.config, device, dtype, settings.moe_impl)
        if settings.attention == "fp8" and (accel := acceleration()) is not None:
            accel.refuse_missing_fp8_attention(choice.config, device, dtype)
        small = read_small_files(folder, choice.config)
        # All that is cheap to check has been checked: now the weights.
        placement = place(choice, device)
        model = load_model(folder, choice.config, placement, dtype, settings.lora or ())
        capacity = None if choice.plan is None else choice.plan.work.capacity
        return cls.assemble(model, small, impl, settings, placement, capacity, second_copy(model, choice))

    @classmethod
    def assemble(
        cls,
        model: HunyuanImage3,
        small: SmallFiles,
        impl: str,
        settings: Settings,
        placement: Placement | None = None,
        capacity: int | None = None,
        second: HunyuanImage3 | None = None,
    ) -> NativeEngine:
        """An engine over weights that are in place; the model is rearranged for speed.

        Args:
            impl: the experts' backend, from `choose_impl`.
            capacity: tokens per row to keep buffers for; None: the checkpoint's longest sequence.
            second: a copy of the model on another device, for the unguided row (`checkpoint.load.copy_for_painting`).

        Raises:
            SettingsError: the backend cannot compute these weights after all.
        """
        tokenizer, generation, prompts = small
        placement = placement or Placement.single(model.device, model.config.num_hidden_layers)
        capacity = capacity or model.config.max_position_embeddings
        cache_dir = settings.cache_dir or user_cache_dirs()[0]
        operations = plain_operations(settings)
        use_operations(model, operations)
        if second is not None:
            use_operations(second, operations)
            log.info("guidance: the guided row on %s, the unguided one on %s", model.device, second.device)
        accel, workspace = acceleration(), None
        if accel is not None:
            fused = accel.FUSED_DECODING and settings.text_batch == 1
            workspace = accel.prepare(model, placement, impl, capacity, MOST_EXPERT_TOKENS, cache_dir, second, fused)
        elif placement.is_split:
            raise SettingsError("a model over several GPUs needs hunyuan.accel, which is not installed")
        company = None if settings.text_batch == 1 else prepare_company(model, impl, settings.text_batch, capacity)
        layouts = LayoutBuilder(tokenizer, model.config, generation.sequence_template)
        checkpoint = Checkpoint(model, tokenizer, layouts, prompts, generation, second)
        return cls(checkpoint, settings.noise_device == "cpu", workspace, company)

    def run(
        self,
        request: EditRequest,
        *,
        seed: int,
        steps: int,
        on_progress: ProgressCallback | None,
        cancel: CancelToken | None,
        on_text: TextCallback | None = None,
        on_preview: PreviewCallback | None = None,
    ) -> EditResult:
        """See `Editor.run`. `on_text` is called in this thread, between two tokens, `on_preview` between two steps."""
        checkpoint, on_cpu = self.checkpoint, self.noise_on_cpu
        job = self.job_type(
            checkpoint, request, seed, steps, on_cpu, on_progress, cancel, self.workspace, on_text, on_preview
        )
        return self.finish(job)

    @property
    def text_places(self) -> int:
        """How many texts more may be begun; 0 where each is decoded alone."""
        return 0 if self.company is None else self.company.places

    def begin(
        self,
        request: EditRequest,
        *,
        seed: int,
        steps: int,
        on_progress: ProgressCallback | None,
        cancel: CancelToken | None,
        on_text: TextCallback | None = None,
        on_preview: PreviewCallback | None = None,
    ) -> SharedTextJob:
        """See `Editor.begin`."""
        if self.company is None:
            raise RuntimeError("this engine decodes each text alone")
        checkpoint, on_cpu = self.checkpoint, self.noise_on_cpu
        job = self.shared_job_type(
            checkpoint, request, seed, steps, on_cpu, on_progress, cancel, self.workspace, on_text, on_preview
        )
        with self._at_work():
            job.begin(self.company)
        return job

    def finish(self, job: EditJob) -> EditResult:
        """See `Editor.finish`. A job that was not begun runs from its start."""
        with self._at_work():
            return job.run()

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        model = self.checkpoint.model
        try:
            with threads_for(model.config.hidden_size, model.device):
                yield
        except torch.cuda.OutOfMemoryError as error:
            raise OutOfMemory("the device ran out of memory on this request; try a smaller resolution") from error
        finally:
            if (accel := acceleration()) is not None:
                accel.COMPILED.report("in an edit")  # in the first one, which warms up, and then never again


@cache
def acceleration() -> ModuleType | None:
    """`hunyuan.accel.prepare`; None, said in the log, where the package has no `accel`."""
    try:
        from hunyuan.accel import prepare
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("hunyuan.accel"):
            raise
        log.warning("hunyuan.accel is not there: every operation runs in its plain form")
        return None
    return prepare


def prepare_company(model: HunyuanImage3, impl: str, rows: int, capacity: int) -> TextCompany | None:
    """For `HUNYUAN_TEXT_BATCH`; rows have `TEXT_ROW_TOKENS` or `capacity`, if that is less."""
    capacity = min(capacity, TEXT_ROW_TOKENS)
    accel = acceleration()
    return (
        text_company(model, rows, capacity, None)
        if accel is None
        else accel.prepare_company(model, impl, rows, capacity)
    )


def choose_impl(config: CheckpointConfig, device: torch.device, dtype: torch.dtype, moe_impl: str) -> str:
    """The experts' backend. Raises `SettingsError` for one that cannot compute these weights here."""
    accel = acceleration()
    if accel is not None:
        return accel.choose_impl(config, device, dtype, moe_impl)
    if moe_impl not in ("auto", "eager"):
        raise SettingsError(
            f"HUNYUAN_MOE_IMPL={moe_impl} needs hunyuan.accel, which is not installed; use auto or eager"
        )
    return "eager"


def plain_operations(settings: Settings) -> Operations:
    """What the model computes with unless something faster takes its place, which then keeps to these numbers."""
    if settings.router == "fp32" and settings.attention == "bf16":
        return PLAIN
    log.info("router in %s, attention of denoising in %s", settings.router, settings.attention)
    kind = Fp8AttentionOperations if settings.attention == "fp8" else Operations
    return kind(torch.bfloat16 if settings.router == "bf16" else torch.float32)


def read_small_files(folder: Path, config: ModelConfig) -> SmallFiles:
    """Tokenizer, generation config and system prompts; the preset that is used by default must be among them."""
    needed = ["<guidance>"] * config.cfg_distilled + ["<timestep_r>"] * config.use_meanflow
    tokenizer = Tokenizer(folder, config.image_base_size, config.has_extra_ratios, needed)
    generation = GenerationConfig.from_dict(read_json(folder, "generation_config.json"))
    prompts = SystemPrompts.read(folder)
    prompts.preset(DEFAULT_PRESET)
    return tokenizer, generation, prompts


def choose_weights(
    config: CheckpointConfig,
    settings: Settings,
    gpus: list[Gpu],
    dtype: torch.dtype,
    measure: Callable[[], Mapping[int, LayerErrors]] | None = None,
) -> Choice:
    """What format the weights are to have, printed with the memory it takes. Raises `SettingsError`.

    Args:
        measure: what each layer loses, which only mixed weights of an official folder ask for.
    """
    measured: dict[int, LayerErrors] = {}

    def errors() -> Mapping[int, LayerErrors]:
        log.info("weights: measuring which layers gain most from fp8, on some experts of each")
        measured.update(measure() if measure else {})
        return measured

    try:
        work = Work.create(config, texts=text_rows(settings.text_batch))
        choice = choose(
            config, settings.weights, settings.dense, gpus, work=work, itemsize=dtype.itemsize, errors=errors
        )
    except DoesNotFit as error:
        log.error("memory plan\n%s", render(error.choice))
        raise
    if choice.plan is not None:
        log.info("memory plan\n%s", render(choice))
    if measured:
        kept = [n for n, kind in enumerate(choice.config.expert_formats) if kind == "fp8"]
        log.info("%s", choice_table(choice.config, measured, kept, "some of its experts' weights"))
    return choice


def visible_gpus(device: torch.device) -> list[Gpu]:
    """None on a CPU, all that CUDA_VISIBLE_DEVICES shows otherwise. Properties are read, nothing is allocated."""
    count = torch.cuda.device_count() if device.type == "cuda" else 0
    every = [torch.cuda.get_device_properties(i) for i in range(count)]
    return [Gpu(p.name, p.total_memory) for p in every]


def place(choice: Choice, device: torch.device) -> Placement:
    """Everything on the first device, or the layers in order over the GPUs that the plan uses."""
    if choice.plan is None or len(choice.gpus) == 1 or choice.plan.copies:
        return Placement.single(device, choice.config.num_hidden_layers)
    devices = [torch.device("cuda", i) for i in range(len(choice.gpus))]
    return Placement.in_order(devices, choice.plan.layer_counts)


def second_copy(model: HunyuanImage3, choice: Choice) -> HunyuanImage3 | None:
    """On the plan's second GPU, taken from the first one's memory; None where the plan has one copy."""
    if choice.plan is None or not choice.plan.copies:
        return None
    device, began = torch.device("cuda", 1), time.monotonic()
    second = copy_for_painting(model, choice.config, device)
    torch.cuda.synchronize(device)
    log.info("second copy: on %s after %.1f s", device, time.monotonic() - began)
    return second


def choose_dtype(settings: Settings, device: torch.device) -> torch.dtype:
    if settings.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return torch.bfloat16 if settings.dtype == "bfloat16" else torch.float32
