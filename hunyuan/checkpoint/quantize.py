"""Turns an official checkpoint folder into one with 4-bit, fp8 or mixed weights, weight file by weight file.

Holds one matrix a worker at a time. Every finished file is durable and in the journal, so a job that was killed goes
on where it was; index and config come last, so that a half-written folder is never taken for a whole one. Knows which
tensor is stored how; the arithmetic is in `hunyuan.formats.numbers`, the bytes in `safetensors_file.py`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from hunyuan.adapters import Adapter
from hunyuan.checkpoint.adapters.merge import Adapters
from hunyuan.checkpoint.calibrator import Calibrator
from hunyuan.checkpoint.folder import CONFIG_FILE, INDEX_FILE, JOURNAL_FILE, OpenWeights, read_config, read_json
from hunyuan.checkpoint.journal import Journal, fingerprint, sole_writer
from hunyuan.checkpoint.layer_choice import fill, with_fp8_layers
from hunyuan.checkpoint.quantize_plan import moe_layers, plan_shards, stored_bytes
from hunyuan.checkpoint.quantize_report import REPORT_FILE, Report, build_report, layer_errors
from hunyuan.checkpoint.quantize_tasks import Measured, Task, shard_tasks, stored_content
from hunyuan.checkpoint.safetensors_file import ShardReader, ShardWriter, write_durably
from hunyuan.checkpoint.tensor_table import TensorSpec, expected_tensors
from hunyuan.errors import CheckpointError
from hunyuan.formats.config import QUANT_METHOD, QUANT_VERSION, CheckpointConfig

GIB = 2**30
_FORMATS = {"4bit": "mxfp4", "mixed": "mxfp4", "fp8": "fp8"}  # what the experts start as
_LARGEST_SMALL_FILE = 64 << 20
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".partial")


@dataclass(frozen=True)
class QuantizeOptions:
    """What to write. `budget_gib`, of GPU memory, and `reserve_gib`, of it left free, count for "mixed" alone, which
    needs them."""

    weights: str = "4bit"
    dense: str = "bf16"
    budget_gib: float = 0.0
    reserve_gib: float = 0.0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    workers: int = 0  # 0: a few
    calibration: Calibrator | None = None
    lora: tuple[Adapter, ...] = ()

    def __post_init__(self) -> None:
        if self.weights not in _FORMATS or self.dense not in ("bf16", "fp8"):
            raise CheckpointError(f"cannot quantize to weights {self.weights!r}, dense {self.dense!r}")
        if self.calibration is not None and self.weights == "fp8":
            raise CheckpointError("calibration chooses 4-bit values; fp8 has none")

    @property
    def thread_count(self) -> int:
        return self.workers or (4 if self.device.type == "cuda" else min(16, os.cpu_count() or 1))


def quantize_folder(source: Path, out: Path, options: QuantizeOptions) -> Report:
    """Writes the folder `out`, or goes on with it, and returns the report that it stores there too.

    Raises:
        CheckpointError: the source is incomplete or already quantized, an adapter does not fit it, `out` holds
            something else or another process is writing it, a matrix does not divide into blocks, or the budget is too
            small. Nothing has been written then.
    """
    config = read_config(source)
    if config.quantization_config is not None:
        raise CheckpointError(f"{source.name} is quantized already; start from the official folder")
    first = config.with_formats(_FORMATS[options.weights], options.dense)
    if options.weights == "mixed":
        free_bytes(first, options)  # raises for a budget that is too small
    with OpenWeights(source, expected_tensors(config)) as weights, Adapters(options.lora, source) as adapters:
        job: dict[str, Any] = {"source": fingerprint(source, weights.shards.values()), "weights": options.weights}
        job |= {"dense": options.dense, "quantization": QUANT_VERSION, **adapters.job()}
        if options.weights == "mixed":
            job |= {"budget_gib": options.budget_gib, "reserve_gib": options.reserve_gib}
        if options.calibration is not None:
            job |= {"calibration": options.calibration.job}
        expected_tensors(first)  # for its errors about the target, before anything is written
        with sole_writer(out):
            return _Job(source, out, options, weights, adapters, job).run(first)


def free_bytes(config: CheckpointConfig, options: QuantizeOptions) -> float:
    """What the budget leaves beside a model with all experts in MXFP4, `config`. Raises `CheckpointError`: nothing."""
    free = (options.budget_gib - options.reserve_gib) * GIB - stored_bytes(config)
    if free < 0:
        raise CheckpointError(
            f"the budget of {options.budget_gib:.4g} GiB is too small: 4-bit weights take "
            f"{stored_bytes(config) / GIB:.4g} GiB and an edit {options.reserve_gib:.4g} GiB beside them"
        )
    return free


class _Job:
    """One run: the source, where it goes, and what is done."""

    def __init__(
        self,
        source: Path,
        out: Path,
        options: QuantizeOptions,
        weights: OpenWeights,
        adapters: Adapters,
        job: dict[str, Any],
    ) -> None:
        self.source, self.out, self.options, self.weights, self.job = source, out, options, weights, job
        self.adapters = adapters
        self.held: dict[str, ShardReader] = weights.where()

    def run(self, first: CheckpointConfig) -> Report:
        finished = self._finished_before()
        if finished is not None:
            return finished
        self.journal = Journal(self.out, self.job, list(plan_shards(first)))
        self._check_room(first)
        target = first
        if self.journal.mixed is None:
            self._write_shards(first)
        if self.options.weights == "mixed":
            target = self._choose(first)
            self._write_shards(target)
        return self._complete(target)

    def _check_room(self, config: CheckpointConfig) -> None:
        written = sum(entry["size"] for entry in self.journal.done.values())
        needed, free = stored_bytes(config) - written, shutil.disk_usage(self.out).free
        if needed > free:
            raise CheckpointError(
                f"{needed / 1e9:.1f} GB are still to be written and the disk has {free / 1e9:.1f} free"
            )

    def _finished_before(self) -> Report | None:
        """The report of an `out` that this very job completed."""
        if not (self.out / CONFIG_FILE).is_file() or not (self.out / REPORT_FILE).is_file():
            return None
        report: Report = read_json(self.out, REPORT_FILE)
        if report.get("job") != self.job:
            raise CheckpointError(f"{self.out.name} holds another checkpoint; choose another folder")
        (self.out / JOURNAL_FILE).unlink(missing_ok=True)
        return report

    def _choose(self, config: CheckpointConfig) -> CheckpointConfig:
        if self.journal.mixed is None:
            errors = {n: layer_errors(self._entry(config, n)) for n in moe_layers(config)}
            kept = fill(config, errors, free_bytes(config, self.options))
            self.journal.choose({"layers": kept, "errors": [[n, *found] for n, found in errors.items()]})
        return with_fp8_layers(config, (self.journal.mixed or {})["layers"], config.dense_format)

    def _entry(self, config: CheckpointConfig, layer: int) -> dict[str, Any]:
        return self.journal.done[list(plan_shards(config))[layer]]

    def _write_shards(self, config: CheckpointConfig) -> None:
        calibration = self.options.calibration if self.journal.mixed is None else None
        if calibration is not None:
            self._start(calibration, config)
        waiting = self._waiting(config)
        tasks = {name: self._tasks(specs, calibration) for name, (_, specs) in waiting.items()}
        total = (
            sum(spec.nbytes for spec in self.weights.specs.values() if ".experts." in spec.key) if calibration else 0
        )
        total += sum(task.size for part in tasks.values() for task in part)
        with tqdm(total=total, desc="quantizing", unit="B", unit_scale=True, mininterval=1.0, disable=None) as progress:
            for number, (name, specs) in enumerate(plan_shards(config).items()):
                if name not in waiting:
                    continue
                layer = number if number < config.num_hidden_layers else None
                used = None if layer is None else calibration
                entry = self._write_shard(name, specs, tasks[name], progress.update, used, layer or 0)
                if used is not None and layer is not None:
                    used.keep(self.out, layer + 1)
                size = (self.out / name).stat().st_size
                self.journal.finish(name, {"size": size, "format": waiting[name][0], **entry})
                if used is not None:
                    used.forget(self.out, layer)

    def _waiting(self, config: CheckpointConfig) -> dict[str, tuple[str, list[TensorSpec]]]:
        """The files that are not there yet: the format of their experts, and their tensors."""
        waiting = {}
        for number, (name, specs) in enumerate(plan_shards(config).items()):
            kind = config.expert_formats[number] if number in moe_layers(config) else "plain"
            done = self.journal.done.get(name)
            # A mixed job comes here twice: all layers are measured in 4 bits, then some are replaced.
            if done is None or done["format"] != kind:
                waiting[name] = (kind, specs)
        return waiting

    def _start(self, calibration: Calibrator, config: CheckpointConfig) -> None:
        """Layers follow from each other: what lies behind the first that is missing is done again."""
        names = list(plan_shards(config))[: config.num_hidden_layers]
        missing = [number for number, name in enumerate(names) if name not in self.journal.done]
        if missing:
            plain = config.with_formats("bf16", "bf16")
            first = calibration.start(self.weights, self.adapters, plain, self.out, missing[0])
            for name in names[first:]:
                self.journal.forget(name)

    def _tasks(self, specs: list[TensorSpec], calibration: Calibrator | None) -> list[Task]:
        """The steps of one file; calibration writes the experts itself."""
        plain = [spec for spec in specs if calibration is None or ".experts." not in spec.key]
        fp8_too = self.options.weights == "mixed" and self.journal.mixed is None
        return shard_tasks(plain, self.weights.specs, self.held, self.adapters, fp8_too)

    def _write_shard(
        self,
        name: str,
        specs: list[TensorSpec],
        tasks: list[Task],
        update: Callable[[int], object],
        calibration: Calibrator | None,
        layer: int,
    ) -> dict[str, Any]:
        """Writes one file; returns what was measured: `errors` by tensor, with calibration `output` too."""
        if name in self.journal.done:
            self.journal.forget(name)
        writer = ShardWriter(self.out / name, stored_content(specs, self.held))
        try:
            measured = self._run(tasks, writer, update)
            entry: dict[str, Any] = {}
            if calibration is not None:
                found, output = calibration.quantize(layer, writer, update)
                measured, entry = measured | found, {"output": output} if output else {}
        except BaseException:
            writer.abandon()
            raise
        writer.finish()
        # In the stack's order, whichever was done first: the report must not depend on it.
        return {
            "errors": {key: [list(m) for m in sorted(results)] for key, results in sorted(measured.items())},
            **entry,
        }

    def _run(
        self, tasks: list[Task], writer: ShardWriter, update: Callable[[int], object]
    ) -> dict[str, list[Measured]]:
        """All steps of a file, several at a time; what they measured, by tensor."""
        measured: dict[str, list[Measured]] = {}
        with ThreadPoolExecutor(self.options.thread_count, "quantize") as pool:
            futures = {pool.submit(task.run, writer, self.options.device): task for task in tasks}
            try:
                for future in as_completed(futures):
                    result = future.result()
                    if result is not None:
                        measured.setdefault(futures[future].key, []).append(result)
                    update(futures[future].size)
            finally:
                pool.shutdown(cancel_futures=True)
        return measured

    def _complete(self, config: CheckpointConfig) -> Report:
        """Everything beside the weights; config.json makes the folder a checkpoint, so it is last."""
        for stale in self.out.glob("*.partial"):
            stale.unlink()
        if self.options.calibration is not None:
            self.options.calibration.forget(self.out)
        for path in sorted(self.source.iterdir()):
            self._copy_small_file(path)
        report = build_report(config, self.job, self.journal.done, self.journal.mixed)
        write_durably(self.out / REPORT_FILE, json.dumps(report, indent=1) + "\n")
        plan = plan_shards(config)
        places = {spec.key: name for name, specs in plan.items() for spec in specs}
        stored = stored_content([spec for specs in plan.values() for spec in specs], self.held)
        total = sum(dtype.itemsize * prod(shape) for dtype, shape in stored.values())
        index = {"metadata": {"total_size": total}, "weight_map": places}
        write_durably(self.out / INDEX_FILE, json.dumps(index, indent=2) + "\n")
        write_durably(self.out / CONFIG_FILE, json.dumps(self._raw_config(config), indent=2) + "\n")
        self.journal.close()
        return report

    def _copy_small_file(self, path: Path) -> None:
        own = (CONFIG_FILE, INDEX_FILE, JOURNAL_FILE, REPORT_FILE)
        if not path.is_file() or path.name.startswith(".") or path.name in own or path.suffix in _WEIGHT_SUFFIXES:
            return
        if path.stat().st_size <= _LARGEST_SMALL_FILE:
            shutil.copyfile(path, self.out / path.name)

    def _raw_config(self, config: CheckpointConfig) -> dict[str, Any]:
        words = list(config.expert_formats)
        experts = words[0] if len(set(words)) == 1 else words
        section: dict[str, Any] = {"quant_method": QUANT_METHOD, "version": QUANT_VERSION, "experts": experts}
        section["dense"] = config.dense_format
        if self.adapters.files:
            section["lora"] = [asdict(record) for record in self.adapters.records()]
        return {**read_json(self.source, CONFIG_FILE), "quantization_config": section}
