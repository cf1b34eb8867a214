"""What one decoded token is made of, as cases for `bench_token.py`: each part in the ways that the kernels know.

Draws weights and inputs of the model's sizes, experts in MXFP4. Measures nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

Run = Callable[[], Tensor]
BF16, FP8 = torch.bfloat16, torch.float8_e4m3fn
EPS = 1e-5


@dataclass(frozen=True)
class Sizes:
    hidden: int = 4096
    heads: int = 32
    kv_heads: int = 8
    dim: int = 128
    width: int = 3072
    experts: int = 64
    topk: int = 8
    text: int = 7000
    vocab: int = 133120


SMALL = Sizes(128, 4, 2, 32, 128, 8, 2, 9, 300)


@dataclass(frozen=True)
class Made:
    """Calls on different weights, and what the first of them should give."""

    runs: list[Run]
    exact: Run


@dataclass(frozen=True)
class Case:
    """One part of a token in one way. `make` gets the number of sets of weights; `cut` is what the way is called by."""

    part: str
    way: str
    make: Callable[[int], Made]
    bytes: float
    cut: Any = None
    pdl: bool = False


class Bench:
    """Draws inputs and makes the cases."""

    def __init__(self, device: str, dense: str, seed: int) -> None:
        from hunyuan.accel.hopper import HopperOperations

        self.s, self.device = (Sizes() if device == "cuda" else SMALL), device
        self.fp8, self.now = dense == "fp8", HopperOperations(attention="sdpa")  # that one, for prompts, is not used
        self.generator = torch.Generator(device).manual_seed(seed)

    def draw(self, *shape: int, dtype: torch.dtype = BF16) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=self.device, dtype=torch.float32).to(dtype)

    def cases(self) -> list[Case]:
        s, inner = self.s, self.s.heads * self.s.dim
        made = [
            *self.dense("qkv", inner + 2 * s.kv_heads * s.dim, s.hidden, norm=True),
            *self.dense("o", s.hidden, inner, residual=True),
            *self.dense("router", s.experts, s.hidden, norm=True, keep=True),
            *self.dense("gate_and_up", s.width, s.hidden, norm=True, gated=True),
            *self.dense("down", s.hidden, s.width),
            *self.dense("lm_head", s.vocab, s.hidden, norm=True, wide=True),
        ]
        # The interpreter has no loops that run to a loaded number, as attention's does.
        layers = self.layer() if self.device == "cuda" else []
        return (
            made
            + self.experts()
            + layers
            + [Case("sampling", way, partial(self.sampling, way == "fused"), 0) for way in ("now", "fused")]
        )

    def layer_of(self, outputs: int, inputs: int, name: str) -> Any:
        """A linear layer of random weights of about unit gain."""
        from hunyuan.formats.modules import Fp8Linear

        if self.fp8 and name != "router":
            made: Any = Fp8Linear(inputs, outputs).to(self.device)
            made.weight.data = torch.cat(
                [(64 * self.draw(n, inputs)).clamp(-448, 448).to(FP8) for n in pieces(outputs)]
            )
            made.weight_scale.data = (0.5 + self.draw(outputs, dtype=torch.float32).abs()) / 64 / inputs**0.5
            return made
        made = nn.Linear(inputs, outputs, bias=False, device="meta")
        kind = torch.float32 if name == "router" else BF16
        weight = torch.cat([(self.draw(n, inputs) / inputs**0.5).to(kind) for n in pieces(outputs)])
        made.weight = nn.Parameter(weight, requires_grad=False)
        return made

    def dense(self, name: str, outputs: int, inputs: int, **around: bool) -> list[Case]:
        from hunyuan.accel.kernels.projection import ROWS, Rows

        each = 4 if name == "router" else 1 if self.fp8 else 2
        size, pairs = float(outputs * inputs * each * (2 if around.get("gated") else 1)), around.get("gated", False)
        make = partial(self.products, name, outputs, inputs, around)
        narrow, wide = [(1, 4), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8)], [(1, 2), (1, 4), (2, 4), (2, 8), (4, 8)]
        cuts = narrow if each == 1 else wide
        ways = [Rows(max(1, rows // 2) if pairs else rows, warps) for rows, warps in cuts]
        cases = [Case(name, "now", partial(make, None, False), size)]
        for rows in dict.fromkeys(ways if self.device == "cuda" else [Rows(32)]):
            label = f"{rows.rows} x {rows.warps}"
            cases.append(Case(name, f"{label} pdl", partial(make, rows, True), size, rows, True))
            if pairs is False and rows == ROWS[each]:
                cases.append(Case(name, label, partial(make, rows, False), size, rows))
        return cases

    def products(
        self, name: str, outputs: int, inputs: int, around: dict[str, bool], rows: Any, pdl: bool, sets: int
    ) -> Made:
        """`sets` dense products with what stands around them."""
        gain, residual = 1 + 0.3 * self.draw(inputs), self.draw(1, outputs)
        out_dtype = torch.float32 if around.get("wide") or around.get("keep") else BF16
        runs, exact = list[Run](), list[Run]()
        for _ in range(sets):
            layer = self.layer_of(outputs * (2 if around.get("gated") else 1), inputs, name)
            given = Product(self, layer, self.draw(1, inputs), gain, residual, around, out_dtype)
            runs.append(given.now if rows is None else partial(given.projected, rows, pdl))
            exact.append(given.plain)
        return Made(runs, exact[0])

    def experts(self) -> list[Case]:
        from hunyuan.accel.experts.streamed import DEFAULT, Units

        s, cases = self.s, list[Case]()
        one = s.hidden * s.width * 17 / 32 * s.topk
        first = [(2, 2), (4, 4), (8, 4), (8, 8), (16, 8), (2, 4)]
        second = [(4, 4, 4), (4, 4, 2), (4, 4, 1), (8, 8, 4), (8, 8, 2), (8, 8, 1), (2, 2, 2), (8, 4, 4), (8, 4, 1)]
        for product, ways in ((0, first), (1, second)):
            name, size = ("experts, first", "experts, second")[product], one * (2 - product)
            make = partial(self.expert_products, product)
            cases.append(Case(name, "now", partial(make, None, False), size))
            for cut in [Units(*way) for way in ways] if self.device == "cuda" else [Units(32, 4)]:
                label = f"{cut.units} x {cut.warps}" + (f", {cut.splits} splits" if product else "")
                cases.append(Case(name, f"{label} pdl", partial(make, cut, True), size, cut, True))
                if cut == DEFAULT[product]:
                    cases.append(Case(name, label, partial(make, cut, False), size, cut))
        return cases

    def expert_products(self, product: int, cut: Any, pdl: bool, sets: int) -> Made:
        """One product through disjoint sets of one layer's experts."""
        from hunyuan.accel.experts.small_batch import Blocks, SmallBatch
        from hunyuan.accel.experts.streamed import Streamed

        s, stacks = self.s, self.stacks()
        plain = (Blocks(32, 128, plain=True), Blocks(32, 128, plain=True)) if self.device == "cpu" else None
        small: Any = SmallBatch(stacks, plain) if cut is None else Streamed(stacks, (cut, cut), pdl)
        order = torch.randperm(s.experts, generator=self.generator, device=self.device).int()
        x, h = self.draw(1, s.hidden), self.draw(s.topk, s.width)
        weights, added = self.draw(1, s.topk, dtype=torch.float32).softmax(-1), (x, self.draw(1, s.hidden))
        runs, early = list[Run](), {} if cut is None else {"early": True}
        for chosen in order.view(-1, 1, s.topk)[:sets]:
            if product == 0:
                runs.append(partial(small.first_product, x, chosen, **early))
            elif cut is None:
                runs.append(partial(lambda c: self.now.add(small.second_product(h, weights, c), added), chosen))
            else:
                runs.append(partial(small.second_product, h, weights, chosen, added=added, **early))

        def exact() -> Tensor:
            parts = [(stacks.dequantized(int(e)), h[i].float()) for i, e in enumerate(order[: s.topk])]
            if product == 0:
                both = torch.stack([(x.float() @ matrices[0].T)[0] for matrices, _ in parts])
                return both[:, : s.width] * nn.functional.silu(both[:, s.width :])
            total = sum(w * (matrices[1] @ row) for w, (matrices, row) in zip(weights[0], parts, strict=True))
            return total[None] + added[0].float() + added[1].float()

        return Made(runs, exact)

    def stacks(self) -> Any:
        """One layer's experts: any bits are weights in the humming layout."""
        from hunyuan.accel.experts.small_batch import Stacks

        s = self.s

        def matrix(rows: int, columns: int) -> tuple[Tensor, Tensor, Tensor]:
            values = self.bytes(0, 256, s.experts, rows, columns // 2)
            offsets = self.bytes(5, 8, s.experts, rows // 64, columns // 128, 16, 16)
            return values, offsets, torch.full((s.experts,), 0.34 / columns**0.5, device=self.device)

        (a, a_offsets, a_scale), (b, b_offsets, b_scale) = matrix(2 * s.width, s.hidden), matrix(s.hidden, s.width)
        return Stacks(a, b, a_scale, b_scale, a_offsets, b_offsets)

    def bytes(self, low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, dtype=torch.uint8, device=self.device, generator=self.generator)

    def layer(self) -> list[Case]:
        s, each = self.s, 1 if self.fp8 else 2
        inner = s.heads * s.dim
        dense = s.hidden * (2 * inner + 2 * s.kv_heads * s.dim + 3 * s.width) * each
        size = dense + 3 * s.hidden * s.width * 17 / 32 * s.topk + 4 * s.text * s.kv_heads * s.dim
        ways = [("now", False, False), ("fused", True, False), ("fused pdl", True, True)]
        return [Case("layer", way, partial(self.layers, fused, None, pdl), size, None, pdl) for way, fused, pdl in ways]

    def layers(self, fused: bool, cuts: Any, pdl: bool, sets: int) -> Made:
        """One run through as many layers as there are sets of weights."""
        from hunyuan.accel.fused_decoding import FusedDecoding
        from hunyuan.generation.kv_cache import KVCache
        from hunyuan.model.rope import positions_2d, rope_table

        s = self.s
        model, config = self.transformer(sets)
        kv = KVCache.allocate(config, 1, s.text + 8, BF16, torch.device(self.device))
        for buffer in (*kv.keys, *kv.values):
            buffer.copy_(self.draw(*buffer.shape))
        rope = rope_table(positions_2d(s.text - 1, s.text, []).to(self.device), s.dim, 10000.0)
        x, position = self.draw(1, 1, s.hidden), torch.tensor([s.text - 1], dtype=torch.int32, device=self.device)
        way = FusedDecoding(model, self.now, cuts, pdl) if fused else model.decode
        return Made([partial(way, x, rope, kv, position)], partial(model.decode, x, rope, kv, position))

    def transformer(self, layers: int) -> Any:
        from hunyuan.accel.experts.flashinfer import take_stacks
        from hunyuan.accel.experts.small_batch import SmallBatch
        from hunyuan.formats.modules import Fp8Linear, Mxfp4Experts
        from hunyuan.model.operations import use_operations
        from hunyuan.model.transformer import Transformer
        from scripts.support.full_size import randomize

        s, config = self.s, layer_config(layers, self.s)
        with torch.device("meta"):
            model: Any = Transformer(config).bfloat16()
            for layer in model.layers:
                layer.mlp.gate.wg.float()
                layer.mlp.experts = Mxfp4Experts(s.experts, s.hidden, s.width)
            for module in list(model.layers.modules()) if self.fp8 else []:
                for name, child in list(module.named_children()):
                    if isinstance(child, nn.Linear) and name != "wg":
                        setattr(module, name, Fp8Linear(child.in_features, child.out_features))
        model = model.to_empty(device=self.device).requires_grad_(False)
        randomize(model, layers)
        for layer in model.layers:
            stacks = take_stacks(layer.mlp.experts, "humming")
            layer.mlp.experts = ExpertsNow(stacks, SmallBatch(stacks))
        use_operations(model, self.now)
        return model, config

    def sampling(self, fused: bool, _sets: int) -> Made:
        """What follows the logits in a step."""
        from hunyuan.accel.kernels.choosing import FusedStep
        from hunyuan.generation.decoding import DecodeStep, TextRun
        from hunyuan.generation.sampling import Sampling
        from hunyuan.generation.text import TextPlan

        def no_network(_token: Tensor, _position: Tensor) -> Tensor:
            raise NotImplementedError

        made = (no_network, self.s.vocab, 64, torch.device(self.device))
        step, other = FusedStep(*made) if fused else DecodeStep(*made), DecodeStep(*made)
        uniform = torch.full((64,), 0.5, dtype=torch.float64, device=self.device)
        plan, sampling = TextPlan((), frozenset(), None, (), 0), Sampling(True, 0.6, min(1024, self.s.vocab), 0.95)
        for one in (step, other):
            one.fill(TextRun(plan, sampling, uniform, 1, 0))
        logits = self.draw(self.s.vocab, dtype=torch.float32)

        def run(step: DecodeStep) -> Tensor:
            step.count.zero_()
            step.choose(logits)
            return step.token

        return Made([partial(run, step)], partial(run, other))


@dataclass(frozen=True)
class Product:
    """One dense product and what stands around it, in three ways."""

    bench: Bench
    layer: Any
    x: Tensor
    gain: Tensor
    residual: Tensor
    around: dict[str, bool]
    out_dtype: torch.dtype

    def now(self) -> Tensor:
        from hunyuan.accel.kernels.gemv import gemv

        ops = self.bench.now
        x = ops.rms_norm(self.x, self.gain, EPS) if self.around.get("norm") else self.x
        out = gemv(x, self.layer.weight, getattr(self.layer, "weight_scale", None), self.out_dtype)
        out = ops.swiglu(out) if self.around.get("gated") else out
        return ops.add(self.residual, [out]) if self.around.get("residual") else out

    def projected(self, rows: Any, pdl: bool) -> Tensor:
        from hunyuan.accel.kernels.projection import Norm, project

        kept = torch.empty_like(self.x) if self.around.get("keep") else None
        norm = Norm(self.gain, EPS, kept) if self.around.get("norm") else None
        return project(
            self.x, self.layer.weight, getattr(self.layer, "weight_scale", None), norm=norm,
            gated=self.around.get("gated", False), residual=self.residual if self.around.get("residual") else None,
            out_dtype=self.out_dtype, rows=rows, pdl=pdl,
        )  # fmt: skip

    def plain(self) -> Tensor:
        from hunyuan.model.operations import PLAIN

        x = PLAIN.rms_norm(self.x.float(), self.gain.float(), EPS) if self.around.get("norm") else self.x.float()
        matrix = self.layer.dequantized() if hasattr(self.layer, "weight_scale") else self.layer.weight.float()
        out = x @ matrix.T
        out = PLAIN.swiglu(out) if self.around.get("gated") else out
        return out + self.residual.float() if self.around.get("residual") else out


class ExpertsNow(nn.Module):
    """The one-token kernels that the engine uses, without FlashInfer beside them."""

    def __init__(self, stacks: Any, small: Any) -> None:
        super().__init__()
        self.stacks, self.small = stacks, small

    def forward(self, x: Tensor, weights: Tensor, index: Tensor) -> Tensor:
        return self.small(x, weights, index)


def pieces(rows: int) -> list[int]:
    """Rows drawn at a time."""
    return [min(16384, rows - at) for at in range(0, rows, 16384)]


def layer_config(layers: int, s: Sizes) -> Any:
    from hunyuan.checkpoint.full_size import full_size_config
    from hunyuan.formats.config import CheckpointConfig

    raw = full_size_config(layers)
    raw |= {"hidden_size": s.hidden, "num_attention_heads": s.heads, "num_key_value_heads": s.kv_heads,
            "attention_head_dim": s.dim, "num_experts": s.experts, "moe_topk": [s.topk] * layers,
            "moe_intermediate_size": [s.width] * layers, "num_shared_expert": [1] * layers,
            "vit_aligner": {**raw["vit_aligner"], "n_embed": s.hidden}}  # fmt: skip
    return CheckpointConfig.from_dict(raw)
