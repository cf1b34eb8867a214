"""The fast path against the plain one at the real sizes: `bench_engine.py --check`.

Both compute the backbone's output from the same fresh random inputs and the same weights; the plain one in fp32 on the
dequantized weights, and its router's choices are given to both. A token in fused launches is routed by its own router:
its error holds a changed choice, too, where two experts nearly tie. Does not compare text or pictures: random weights
of the real sizes make neither.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor

from hunyuan.accel import prepare as acceleration
from hunyuan.checkpoint.folder import read_config
from hunyuan.checkpoint.full_size import full_size_config
from hunyuan.checkpoint.load import empty_model
from hunyuan.engines.native import NativeEngine, choose_impl, read_small_files
from hunyuan.generation.kv_cache import KVCache
from hunyuan.generation.prefill import run_tokens
from hunyuan.generation.workspace import Decode
from hunyuan.model.attention import Segment, attend
from hunyuan.model.config import ModelConfig
from hunyuan.model.network import HunyuanImage3
from hunyuan.model.operations import Operations, use_operations
from hunyuan.model.rope import positions_2d, rope_table
from hunyuan.plan.weights import FORMATS
from hunyuan.prompt.layout import CondShape, Layout
from hunyuan.prompt.resolution import Size, resolution_group
from hunyuan.settings import Settings
from scripts.support.full_size import randomize, write_small_files
from scripts.support.route_replay import recorded_routes, replayed_routes

LIMITS = {"bf16": 1e-2, "fp8": 8e-2, "4bit": 8e-2}  # of ||fast - plain|| / ||plain||
LAYERS = 4
FUSED = ", fused"
TEXT = "a red boat on a calm lake in the evening " * 60


@dataclass(frozen=True)
class Case:
    name: str
    size: Size
    images: int = 1
    distil: bool = False


CASES = (
    Case("1024x1024", Size(1024, 1024)),
    Case("720x1280", Size(720, 1280)),
    Case("three images", Size(1024, 1024), images=3),
    Case("Distil", Size(1024, 1024), distil=True),
)


def check(options: argparse.Namespace) -> int:
    """Prints one line a case and stage; 1 where a limit is missed."""
    if options.device != "cuda":
        print("not run: the fast path needs a Hopper GPU")
        return 0
    layers = min(options.layers, LAYERS)
    seed = torch.seed() % 2**31
    fp8 = "fp8" in (options.dense, options.attention)
    limit = max(LIMITS[options.weights], LIMITS["fp8"] if fp8 else 0.0)
    print(f"{layers} layers, seed {seed}, limit {limit:g}; plain: fp32 on the dequantized weights, same choices")
    worst = 0.0
    for distil in (False, True):
        pair = Pair.build(options, layers, distil, seed)
        for case in (c for c in CASES if c.distil == distil):
            for stage, error in pair.errors(case).items():
                print(f"{case.name:14} {stage:17} {error:.2e}", flush=True)
                worst = max(worst, error)
        del pair
        torch.cuda.empty_cache()
    print(f"largest {worst:.2e}: {'within' if worst <= limit else 'OVER'} the limit {limit:g}")
    return 0 if worst <= limit else 1


class HeadByHead(Operations):
    """The plain operations, attending for one key-value head after the other.

    In fp32 PyTorch writes all scores down; those of three pictures and all heads do not fit beside the weights.
    """

    def attend(self, q: Tensor, keys: Tensor, values: Tensor, segments: Sequence[Segment]) -> Tensor:
        group = q.shape[2] // keys.shape[2]
        queries, pairs = q.split(group, dim=2), zip(keys.split(1, dim=2), values.split(1, dim=2), strict=True)
        parts = [attend(mine, *pair, segments) for mine, pair in zip(queries, pairs, strict=True)]
        return torch.cat(parts, dim=2)  # [rows, tokens, heads, head_dim]


@dataclass
class Pair:
    """One set of weights in the plain fp32 form and on the fast path."""

    plain: HunyuanImage3
    engine: NativeEngine
    generator: torch.Generator
    in_fp8: bool  # attention of denoising
    fused: Decode | None  # where the engine decodes by it

    @classmethod
    def build(cls, options: argparse.Namespace, layers: int, distil: bool, seed: int) -> Pair:
        device = torch.device("cuda")
        raw = full_size_config(layers, FORMATS[options.weights], options.dense, distil)
        with tempfile.TemporaryDirectory() as folder:
            write_small_files(Path(folder), raw, distil)
            config = read_config(Path(folder))
            small = read_small_files(Path(folder), config)
        model = empty_model(config, device, torch.bfloat16)
        randomize(model, layers, seed)
        plain = empty_model(config, device, torch.float32)
        use_operations(plain, HeadByHead())
        values = dict(model.named_parameters())
        for name, parameter in plain.named_parameters():
            parameter.data.copy_(values[name])
        del values
        impl = choose_impl(config, device, model.dtype, options.moe_impl)
        settings = Settings(moe_impl=options.moe_impl, attention=options.attention)
        acceleration.FUSED_DECODING = not options.unfused
        engine = NativeEngine.assemble(model, small, impl, settings)
        generator = torch.Generator(device).manual_seed(seed)
        return cls(plain, engine, generator, options.attention == "fp8", _fused(engine))

    @property
    def config(self) -> ModelConfig:
        return self.plain.config

    @torch.inference_mode()
    def errors(self, case: Case) -> dict[str, float]:
        """Relative error by stage: the fixed tokens, a denoising step of all rows, one decoded token.

        With attention in fp8 also what it alone does to the step: against the fast path with attention in bf16.
        """
        layout, rows = self._layout(case), 1 if case.distil else 2
        block = layout.generated
        prefix = self._noise(1, block.timestep)
        image = self._noise(rows, block.image.stop - block.timestep)
        token = self._noise(1, 1)
        with recorded_routes(self.plain.operations) as routes:
            expected = run(self.plain, layout, prefix.float(), image.float(), token.float())
        fast = self.engine.checkpoint.model
        operations = fast.model.ln_f.operations
        with replayed_routes(operations, routes):
            ours = run(fast, layout, prefix, image, token, self.fused)
        found = {stage: relative(output, expected[stage.removesuffix(FUSED)]) for stage, output in ours.items()}
        if self.in_fp8:
            with patch.object(operations, "fp8_block", None), replayed_routes(operations, routes):
                in_bf16 = run(fast, layout, prefix, image, token)
            found["its fp8 attention"] = relative(ours["step"], in_bf16["step"])
        return found

    def _noise(self, rows: int, tokens: int) -> Tensor:
        shape = (rows, tokens, self.config.hidden_size)
        return torch.randn(shape, device="cuda", dtype=torch.bfloat16, generator=self.generator)

    def _layout(self, case: Case) -> Layout:
        group = resolution_group(self.config.image_base_size)
        bucket = group.nearest(case.size)
        shapes = [CondShape(bucket, (32, 32))] * case.images
        return self.engine.checkpoint.layouts.image_layout("Paint.", TEXT, shapes, bucket, f"<think>{TEXT}</think>")


def _fused(engine: NativeEngine) -> Decode | None:
    """The fused layers, if the engine decodes by them."""
    from hunyuan.accel.fused_decoding import fused_decode  # needs Triton
    from hunyuan.accel.kernels.choosing import FusedStep

    workspace = engine.workspace
    decoder = None if workspace is None else workspace.decoder
    return fused_decode(engine.checkpoint.model) if decoder and isinstance(decoder.step, FusedStep) else None


def run(
    model: HunyuanImage3, layout: Layout, prefix: Tensor, image: Tensor, token: Tensor, fused: Decode | None = None
) -> dict[str, Tensor]:
    """The backbone's outputs, fp32: prefill of one row, a step of all rows, and a token decoded after the prefix.

    Args:
        fused: another form of the layers, for the same token once more.
    """
    config, block = model.config, layout.generated
    kv = KVCache.allocate(config, len(image), len(layout), model.dtype, model.device)
    first = run_tokens(model, layout, prefix, 0, kv.select(0))
    for row in range(1, len(image)):
        kv.select(row).copy_prefix(kv.select(0), block.timestep)
    step = run_tokens(model, layout, image, block.timestep, kv)
    position = torch.tensor([block.timestep], dtype=torch.int32, device=model.device)
    place = positions_2d(block.timestep, block.timestep + 1, []).to(model.device)
    rope = rope_table(place, config.attention_head_dim, config.rope_theta)
    found = {"prefill": first, "step": step, "decode": model.model.decode(token, rope, kv.select(0), position)}
    if fused is not None:
        found["decode" + FUSED] = fused(token, rope, kv.select(0), position)
    return {stage: output.float() for stage, output in found.items()}


def relative(ours: Tensor, expected: Tensor) -> float:
    return float((ours.double() - expected.double()).norm() / expected.double().norm())
