"""A whole calibration as `hunyuan quantize` needs it: layer by layer, and able to go on where it was.

Between two layers all there is to know is the hidden states; they are kept in the folder that is written, until it is
complete. Knows the order of things and that file; the parts are this folder's other files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from math import sqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from hunyuan.calibration.experts import OutputErrors, quantize_experts
from hunyuan.calibration.layers import LayerRunner
from hunyuan.calibration.requests import fingerprint, held_out, read_requests
from hunyuan.calibration.sequences import embed_requests
from hunyuan.checkpoint.adapters.merge import Adapters
from hunyuan.checkpoint.folder import OpenWeights, read_config
from hunyuan.checkpoint.load import drop_part, load_part
from hunyuan.checkpoint.quantize_tasks import Measured, measured_mxfp4
from hunyuan.checkpoint.safetensors_file import ShardReader, ShardWriter
from hunyuan.checkpoint.tensor_table import meta_model
from hunyuan.engines.native import read_small_files
from hunyuan.errors import CheckpointError
from hunyuan.formats.config import CheckpointConfig
from hunyuan.generation.job import Checkpoint
from hunyuan.model.network import HunyuanImage3
from hunyuan.prompt.layout import LayoutBuilder
from hunyuan.requests import EditRequest

METHOD = 2
"""Changes whenever the same requests would give other values, or other things are measured."""
_STATE = "calibration_{}.state"
_ROWS = 4096  # of the hidden states that are on their way to or from a file

SmallFiles = Callable[[HunyuanImage3], Checkpoint]


class Calibration:
    """Chooses the experts' values of one layer after the other; used by `quantize_folder`.

    Args:
        requests: at least four; every fourth only measures.
        checkpoint: puts tokenizer, prompts and defaults of the folder beside a network.
        device, dtype: of the hidden states and of what computes them.
    """

    def __init__(
        self, requests: Sequence[EditRequest], checkpoint: SmallFiles, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.requests, self.checkpoint, self.device, self.dtype = requests, checkpoint, device, dtype
        self.held = held_out(len(requests))
        self.runner: LayerRunner | None = None
        self.hidden = torch.empty(0)

    @classmethod
    def of_folder(cls, folder: Path, requests: Path | None, device: torch.device) -> Calibration:
        """For a checkpoint folder and the requests of a file or folder, or the built-in ones: see `read_requests`.

        It computes in bfloat16 on a GPU and in fp32 on a CPU, as an edit does there.
        """
        config = read_config(folder)
        tokenizer, generation, prompts = read_small_files(folder, config)
        layouts = LayoutBuilder(tokenizer, config, generation.sequence_template)

        def checkpoint(model: HunyuanImage3) -> Checkpoint:
            return Checkpoint(model, tokenizer, layouts, prompts, generation)

        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        return cls(read_requests(requests, config.image_base_size), checkpoint, device, dtype)

    @property
    def job(self) -> dict[str, Any]:
        """What makes two calibrations the same."""
        name = str(self.dtype).removeprefix("torch.")
        return {"method": METHOD, "requests": fingerprint(self.requests), "count": len(self.requests), "dtype": name}

    @contextmanager
    def _enough_memory(self) -> Iterator[None]:
        """Raises `CheckpointError` where a GPU's memory is used up: all requests' hidden states are on it."""
        try:
            yield
        except torch.cuda.OutOfMemoryError as error:
            raise CheckpointError(
                f"the GPU's memory is not enough to calibrate on {len(self.requests)} requests; take fewer, or smaller "
                "pictures"
            ) from error

    def start(self, weights: OpenWeights, adapters: Adapters, config: CheckpointConfig, out: Path, layer: int) -> int:
        """Embeds the requests; returns the layer to go on with: `layer`, or 0 where its hidden states are not kept."""
        with self._enough_memory():
            return self._start(weights, adapters, meta_model(config), out, layer)

    def _start(self, weights: OpenWeights, adapters: Adapters, model: HunyuanImage3, out: Path, layer: int) -> int:
        def outside(name: str) -> bool:
            return not name.startswith("model.layers.")

        load_part(model, weights, adapters, outside, self.device, self.dtype)
        with tqdm(total=len(self.requests), desc="embedding requests", disable=None) as bar:
            self.hidden, spans = embed_requests(self.checkpoint(model), self.requests, lambda _: bar.update())
        self.runner = LayerRunner(model, weights, adapters, spans, self.held)
        drop_part(model, outside)
        return layer if layer == 0 or self._restore(out, layer) else 0

    def quantize(
        self, layer: int, writer: ShardWriter, update: Callable[[int], object]
    ) -> tuple[dict[str, list[Measured]], dict[str, Any]]:
        """Runs a layer and writes its experts; what was measured of its weights, by tensor, and of its outputs."""
        if self.runner is None:
            raise RuntimeError("the calibration has not been started")
        with self._enough_memory():
            return self._quantize(self.runner, layer, writer, update)

    def _quantize(
        self, runner: LayerRunner, layer: int, writer: ShardWriter, update: Callable[[int], object]
    ) -> tuple[dict[str, list[Measured]], dict[str, Any]]:
        routed = runner.before_experts(layer, self.hidden)
        if routed is None:
            return {}, {}
        errors, found = OutputErrors(), dict[str, list[Measured]]()
        out = torch.zeros(self.hidden.shape, device=self.device)
        read: dict[int, tuple[Tensor, Tensor]] = {}

        def expert(number: int) -> tuple[Tensor, Tensor]:
            read[number] = runner.expert(layer, number)
            return read[number]

        count = runner.model.config.num_experts[layer]
        with torch.inference_mode():
            for made in quantize_experts(expert, count, routed, out, errors):
                for name, original in zip(("gate_and_up", "down"), read.pop(made.expert), strict=True):
                    key = f"model.layers.{layer}.mlp.experts.{name}"
                    values, scale = getattr(made, name)
                    writer.write(f"{key}_proj", values, made.expert * values.numel())
                    writer.write(f"{key}_scale", scale, made.expert * scale.numel())
                    found.setdefault(f"{key}_proj", []).append(measured_mxfp4(made.expert, original, values, scale))
                    update(original.numel() * original.itemsize)
            self.hidden += out.to(self.hidden.dtype)
            after = float(self.hidden[runner.held].float().square().sum(dtype=torch.float64))
        return found, summary(errors, after)

    def keep(self, out: Path, layer: int) -> None:
        """Keeps the hidden states before `layer`."""
        state = ShardWriter(out / _STATE.format(layer), {"hidden": (self.hidden.dtype, tuple(self.hidden.shape))})
        try:
            for first, rows in zip(range(0, len(self.hidden), _ROWS), self.hidden.split(_ROWS), strict=True):
                state.write("hidden", rows, first * self.hidden.shape[1])
        except BaseException:
            state.abandon()
            raise
        state.finish()

    @staticmethod
    def forget(out: Path, layer: int | None = None) -> None:
        """Deletes the hidden states before `layer`, or all."""
        for path in out.glob(_STATE.format("*" if layer is None else layer)):
            path.unlink()

    @torch.inference_mode()
    def _restore(self, out: Path, layer: int) -> bool:
        path = out / _STATE.format(layer)
        with suppress(CheckpointError, KeyError), ShardReader(path) as state:
            entry, found = state.entries["hidden"], torch.empty_like(self.hidden)
            if entry.shape == found.shape and entry.dtype == found.dtype:
                for first, rows in zip(range(0, len(found), _ROWS), found.split(_ROWS), strict=True):
                    rows.copy_(state.rows("hidden", first, len(rows)))
                self.hidden = found
                return True
        return False


def summary(errors: OutputErrors, stream: float) -> dict[str, Any]:
    """A layer's output errors on held out tokens, relative: of its experts' sum, of the residual stream, by expert.

    Args:
        stream: the sum of squares of the residual stream behind the layer.
    """

    def relative(error: float, square: float) -> float | None:
        return sqrt(error / square) if square > 0 else None

    totals = {"plain": errors.layer_plain, "calibrated": errors.layer_chosen, "fp8": errors.layer_fp8}
    by_expert = {"plain": errors.plain, "calibrated": errors.chosen, "fp8": errors.fp8}
    found: dict[str, Any] = {kind: relative(error, errors.layer_square) for kind, error in totals.items()}
    found |= {f"{kind}_of_stream": relative(error, stream) for kind, error in totals.items()}
    for kind, lost in by_expert.items():
        found[f"experts_{kind}"] = [relative(e, s) for e, s in zip(lost, errors.square, strict=True)]
    return found | {"tokens": errors.tokens, "few_tokens": errors.few}
