#!/usr/bin/env python3
"""Times the transformer's operations one by one at the model's real sizes: fast ones beside plain ones.

Each line: median ms of both, what the fast one reaches in GB/s or TFLOP/s, its relative error against fp32 on fresh
random inputs, and whether two runs give the same bits. A CUDA graph is replayed where one token is computed.
`--device cpu` runs small sizes with Triton's interpreter, to see that the script works; its times mean nothing.
`--sweep` also tries other tiles for the one-token kernels.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

Run = Callable[[], Any]
BF16, FP8 = torch.bfloat16, torch.float8_e4m3fn


@dataclass(frozen=True)
class Sizes:
    tokens: int = 8240
    hidden: int = 4096
    heads: int = 32
    kv_heads: int = 8
    dim: int = 128
    width: int = 3072
    experts: int = 64
    topk: int = 8
    image: int = 4120
    keys: int = 11000
    prompt: int = 5700
    text: int = 7000
    vocab: int = 133120
    grid: int = 64
    patch: int = 1024


SMALL = Sizes(12, 64, 4, 2, 16, 48, 8, 2, 6, 20, 9, 21, 96, 4, 32)


@dataclass(frozen=True)
class Case:
    """One operation. `exact` computes it from fp32 copies; `flops` and `bytes` are what the fast form must do."""

    name: str
    fast: Run
    plain: Run
    exact: Run | None = None
    bytes: float = 0
    flops: float = 0
    graph: bool = False


class Bench:
    """Inputs drawn anew by each run, and the cases made of them."""

    def __init__(self, sizes: Sizes, device: str, attention: str, seed: int) -> None:
        from hunyuan.accel.hopper import HopperOperations
        from hunyuan.model.operations import PLAIN

        self.s, self.device, self.plain = sizes, device, PLAIN
        kernel, _, kind = attention.partition("-")
        self.fast = HopperOperations(attention=kernel, fp8_attention=kind == "fp8")
        self.generator = torch.Generator(device).manual_seed(seed)

    def draw(self, *shape: int, dtype: torch.dtype = BF16) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=self.device).to(dtype)

    def layer(self, outputs: int, inputs: int, fp8: bool) -> Any:
        from hunyuan.formats.modules import Fp8Linear

        weight = self.draw(outputs, inputs) / inputs**0.5
        if not fp8:
            made = nn.Linear(inputs, outputs, bias=False, device="meta")
            made.weight = nn.Parameter(weight, requires_grad=False)
            return made
        quantized = Fp8Linear(inputs, outputs).to(self.device)
        scale = weight.float().abs().amax(1) / 448
        quantized.weight.data = (weight.float() / scale[:, None]).to(FP8)
        quantized.weight_scale.data = scale
        return quantized

    def cases(self) -> list[Case]:
        made = []
        for tokens in (self.s.tokens, 1):
            made += self.rows(tokens) + self.routers(tokens) + self.qkv(tokens) + self.linears(tokens)
        made += self.attention() + self.patches()
        if self.device == "cpu":  # no fp8 products with a scale per row there, no loops that run to a loaded number
            return [c for c in made if f" fp8 {self.s.tokens}" not in c.name]
        return made + self.decode() + self.heads_in_fp8()

    def rows(self, tokens: int) -> list[Case]:
        s, (fast, plain) = self.s, (self.fast, self.plain)
        x, a, b = (self.draw(1, tokens, s.hidden) for _ in range(3))
        w, both, one = self.draw(s.hidden), self.draw(1, tokens, 2 * s.width), tokens == 1
        size, wf = 2.0 * x.numel(), w.float()
        return [
            Case(f"rms_norm {tokens}", lambda: fast.rms_norm(x, w, 1e-5), lambda: plain.rms_norm(x, w, 1e-5),
                 lambda: plain.rms_norm(x.float(), wf, 1e-5), 2 * size, graph=one),
            Case(f"add_rms_norm {tokens}", lambda: fast.add_rms_norm(x, [a, b], w, 1e-5)[1],
                 lambda: plain.add_rms_norm(x, [a, b], w, 1e-5)[1],
                 lambda: plain.add_rms_norm(x.float(), [a.float(), b.float()], wf, 1e-5)[1], 5 * size, graph=one),
            Case(f"swiglu {tokens}", lambda: fast.swiglu(both), lambda: plain.swiglu(both),
                 lambda: plain.swiglu(both.float()), 3.0 * both.numel(), graph=one),
        ]  # fmt: skip

    def routers(self, tokens: int) -> list[Case]:
        s, x = self.s, self.draw(tokens, self.s.hidden)
        w = self.draw(s.experts, s.hidden, dtype=torch.float32) / s.hidden**0.5

        def dense(kind: Any) -> Tensor:
            weights, index = kind.route(x, w, s.topk)
            return torch.zeros(tokens, s.experts, device=x.device).scatter_(1, index.long(), weights)

        return [Case(f"router {tokens}", lambda: self.fast.route(x, w, s.topk)[0],
                     lambda: self.plain.route(x, w, s.topk)[0], lambda: self.plain.route(x, w, s.topk)[0],
                     2.0 * x.numel() + 6 * w.numel(), graph=tokens == 1),
                Case(f"router, by expert {tokens}", lambda: dense(self.fast), lambda: dense(self.plain),
                     lambda: dense(self.plain))]  # fmt: skip

    def qkv(self, tokens: int) -> list[Case]:
        from hunyuan.model.operations import HeadNorms, HeadShape

        s, rows = self.s, 2 if tokens > 1 else 1
        shape, each = HeadShape(s.heads, s.kv_heads, s.dim), tokens // rows
        qkv, kv = self.draw(rows, each, (s.heads + 2 * s.kv_heads) * s.dim), OneLayer(self, rows, s.keys)
        angle = self.draw(each, s.dim // 2, dtype=torch.float32).repeat(1, 2)
        rope, norms = (angle.cos(), angle.sin()), HeadNorms(self.draw(s.dim), self.draw(s.dim), 1e-5)
        start = torch.full((1,), 3, dtype=torch.int32, device=qkv.device) if tokens == 1 else 3

        def run(kind: Any, x: Tensor, buffers: OneLayer) -> Tensor:
            q, keys, _ = kind.rope_norm_store(x, shape, rope, norms, buffers, 0, 3 if kind is self.plain else start)
            return torch.cat([q.flatten(), keys[:, 3 : 3 + each].flatten()]) if tokens > 1 else q

        def write(kind: Any) -> None:
            kind.rope_norm_store(qkv, shape, rope, norms, kv, 0, 3 if kind is self.plain else start)

        wide = OneLayer(self, rows, s.keys, torch.float32)
        return [Case(f"qkv, rope, norm, write {tokens}", lambda: write(self.fast), lambda: write(self.plain), None,
                     4.0 * qkv.numel(), graph=tokens == 1),
                Case(f"  its error {tokens}", lambda: run(self.fast, qkv, kv), lambda: run(self.plain, qkv, kv),
                     lambda: run(self.plain, qkv.float(), wide))]  # fmt: skip

    def linears(self, tokens: int) -> list[Case]:
        s, made = self.s, []
        inner, fused = s.heads * s.dim, (s.heads + 2 * s.kv_heads) * s.dim
        shapes = [("qkv_proj", fused, s.hidden), ("o_proj", s.hidden, inner), ("gate_up", 2 * s.width, s.hidden),
                  ("down", s.hidden, s.width)]  # fmt: skip
        for fp8 in (False, True):
            for name, outputs, inputs in shapes + ([("lm_head", s.vocab, s.hidden)] if tokens == 1 else []):
                made.append(self.linear(name, tokens, outputs, inputs, fp8))
        return made

    def linear(self, name: str, tokens: int, outputs: int, inputs: int, fp8: bool) -> Case:
        layer, x = self.layer(outputs, inputs, fp8), self.draw(1, tokens, inputs)
        exact = layer.dequantized if fp8 else layer.weight.float
        size = outputs * inputs * (1 if fp8 else 2)
        return Case(f"{name} {'fp8' if fp8 else 'bf16'} {tokens}", lambda: self.fast.linear(x, layer),
                    lambda: self.plain.linear(x, layer), lambda: x.float() @ exact().T,
                    size if tokens == 1 else 0, 0 if tokens == 1 else 2.0 * tokens * outputs * inputs,
                    graph=tokens == 1)  # fmt: skip

    def attention(self) -> list[Case]:
        from hunyuan.model.attention import Segment

        s, made = self.s, []
        jobs = [("image block", 2, s.image, s.keys, False), ("causal prefill", 1, s.prompt, s.prompt, True)]
        for name, rows, queries, keys, causal in jobs:
            q = self.draw(rows, queries, s.heads, s.dim)
            k, v = (self.draw(rows, keys, s.kv_heads, s.dim) for _ in range(2))
            segments = [Segment(keys - queries, keys, causal)]

            def run(kind: Any, tensors: Sequence[Tensor], segments: list[Segment] = segments) -> Tensor:
                return kind.attend(*tensors, segments)

            wide, pairs = [t.float() for t in (q, k, v)], queries * (keys - (queries / 2 if causal else 0))
            made.append(Case(f"{name} {rows} x {queries} x {keys}", partial(run, self.fast, (q, k, v)),
                             partial(run, self.plain, (q, k, v)), partial(run, self.plain, wide),
                             flops=4.0 * rows * s.heads * s.dim * pairs))  # fmt: skip
        return made

    def heads_in_fp8(self) -> list[Case]:
        """What attention in fp8 does to q, k and v of a step before it."""
        from hunyuan.accel.kernels import fp8_attention as fast
        from hunyuan.formats import fp8_attention as plain

        def dequantized(kind: Any, x: Tensor, center: bool) -> Tensor:
            values, scales = kind.quantize_heads(x, center)
            return values.float() * scales[:, None, :, None]

        s, made = self.s, []
        for name, tokens, heads, center in (("q", s.image, s.heads, False), ("k", s.keys, s.kv_heads, True)):
            x = self.draw(2, tokens, heads, s.dim)
            exact = x.float() - x.float().mean(1, keepdim=True) if center else x.float()
            made += [Case(f"{name} in fp8 2 x {tokens}", partial(fast.quantize_heads, x, center),
                          partial(plain.quantize_heads, x, center), bytes=5.0 * x.numel()),
                     Case(f"  its error {name}", partial(dequantized, fast, x, center),
                          partial(dequantized, plain, x, center), partial(torch.clone, exact))]  # fmt: skip
        return made

    def decode(self) -> list[Case]:
        from hunyuan.accel.kernels.decode_attention import decode_attention
        from hunyuan.model.attention import Segment

        s, made = self.s, []
        for length in (s.text, 3 * s.text):
            q, (k, v) = self.draw(1, 1, s.heads, s.dim), OneLayer(self, 1, 3 * s.text + 8).buffers(0)
            at = torch.tensor([length - 1], dtype=torch.int32, device=q.device)
            one = [Segment(length - 1, length, False)]

            def exact(q: Tensor = q, k: Tensor = k, v: Tensor = v, one: list[Segment] = one) -> Tensor:
                return self.plain.attend(q.float(), k.float(), v.float(), one)

            size = 4.0 * length * s.kv_heads * s.dim
            made.append(Case(f"decode attention x {length}", partial(decode_attention, q, k, v, at),
                             partial(self.plain.attend, q, k, v, one), exact, size,
                             graph=True))  # fmt: skip
        return made

    def patches(self) -> list[Case]:
        from hunyuan.model.embeddings import FinalLayer, PatchEmbed, channels_last

        s, made = self.s, []
        for name, kind, rows in (("patch_embed", PatchEmbed, 1), ("final_layer", FinalLayer, 2)):
            sizes = (32, s.patch, s.hidden) if kind is PatchEmbed else (s.hidden, s.patch, 32)
            with torch.device(self.device):
                plain, fast, exact = (kind(*sizes).requires_grad_(False) for _ in range(3))
            plain, fast = plain.to(BF16), fast.to(BF16)
            fast.load_state_dict(plain.state_dict())
            channels_last(fast)
            emb = self.draw(rows, s.hidden)
            x = self.draw(1, 32, s.grid, s.grid) if kind is PatchEmbed else self.draw(rows, s.grid**2, s.hidden)
            grid = () if kind is PatchEmbed else (s.grid, s.grid)
            work = sum(2.0 * p.numel() for p in plain.parameters() if p.dim() == 4) * rows * s.grid**2
            exact.load_state_dict(plain.state_dict())
            made.append(Case(f"{name} channels last", partial(fast, x, emb, *grid), partial(plain, x, emb, *grid),
                             partial(exact, x.float(), emb.float(), *grid), flops=work))  # fmt: skip
        return made

    def sweep(self) -> list[Case]:
        """The one-token kernels with other tiles."""
        from hunyuan.accel.kernels.decode_attention import Cut, decode_attention
        from hunyuan.accel.kernels.gemv import Tile, gemv

        s, made = self.s, []
        q, (k, v) = self.draw(1, 1, s.heads, s.dim), OneLayer(self, 1, s.text + 8).buffers(0)
        at = torch.tensor([s.text - 1], dtype=torch.int32, device=q.device)
        for cut in (Cut(16, 64, 3), Cut(32, 32, 4), Cut(32, 64, 2), Cut(32, 64, 3), Cut(32, 64, 3, 2),
                    Cut(32, 128, 2), Cut(64, 32, 3), Cut(64, 64, 2), Cut(64, 128, 1)):  # fmt: skip
            run = partial(decode_attention, q, k, v, at, cut)
            made.append(Case(f"decode attention {cut}", run, run, None, 4.0 * s.text * s.kv_heads * s.dim, graph=True))
        for fp8 in (False, True):
            layer, x = self.layer(2 * s.width, s.hidden, fp8), self.draw(1, s.hidden)
            scale = layer.weight_scale if fp8 else None
            for tile in (Tile(2, 1024, 4), Tile(4, 512, 4), Tile(4, 1024, 4), Tile(8, 512, 4), Tile(4, 2048, 8),
                         Tile(1, 4096, 4), Tile(2, 2048, 4), Tile(16, 256, 4)):  # fmt: skip
                run = partial(gemv, x, layer.weight, scale, None, tile)
                size = layer.weight.numel() * layer.weight.element_size()
                made.append(Case(f"gate_up {'fp8' if fp8 else 'bf16'} {tile}", run, run, None, size, graph=True))
        return made


class OneLayer:
    """Key-value buffers of one layer."""

    def __init__(self, bench: Bench, rows: int, capacity: int, dtype: torch.dtype = BF16) -> None:
        shape = (rows, capacity, bench.s.kv_heads, bench.s.dim)
        self.keys, self.values = (bench.draw(*shape, dtype=dtype) for _ in range(2))

    def buffers(self, _layer: int) -> tuple[Tensor, Tensor]:
        return self.keys, self.values

    def write(self, _layer: int, start: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        self.keys[:, start : start + k.shape[1]], self.values[:, start : start + k.shape[1]] = k, v
        return self.keys, self.values


def milliseconds(run: Run, device: str, graph: bool, repeats: int) -> float:
    """Median over `repeats`; of a graph that holds ten calls, a tenth of its time."""
    run()
    if device == "cpu":
        times = []
        for _ in range(repeats):
            began = time.perf_counter()
            run()
            times.append(1e3 * (time.perf_counter() - began))
        return statistics.median(times)
    calls = 1
    if graph:
        calls, captured = 10, torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(captured):
            for _ in range(calls):
                run()
        run = captured.replay
    times = []
    for _ in range(repeats + 2):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / calls)
    return statistics.median(times[2:])


def relative(ours: Tensor, exact: Tensor) -> float:
    return float((ours.double() - exact.double()).norm() / exact.double().norm())


def measure(case: Case, device: str, repeats: int) -> dict[str, Any]:
    line: dict[str, Any] = {"name": case.name}
    try:
        first = case.fast()
        line["fast_ms"] = milliseconds(case.fast, device, case.graph, repeats)
        line["plain_ms"] = None if case.plain is case.fast else milliseconds(case.plain, device, case.graph, repeats)
        if case.bytes:
            line["GB/s"] = case.bytes / line["fast_ms"] / 1e6
        if case.flops:
            line["TFLOP/s"] = case.flops / line["fast_ms"] / 1e9
        if case.exact is not None:
            exact = case.exact()
            line["error"], line["plain_error"] = relative(first, exact), relative(case.plain(), exact)
            line["same_bits"] = bool(torch.equal(first, case.fast()))
    except Exception as error:
        if "out of memory" in str(error):
            torch.cuda.empty_cache()
        line["failed"] = f"{type(error).__name__}: {error}"[:300]
    return line


def router_agreement(bench: Bench) -> dict[str, float]:
    """Share of tokens with the same set of experts as in fp64."""
    s = bench.s
    x, w = bench.draw(s.tokens, s.hidden), bench.draw(s.experts, s.hidden, dtype=torch.float32) / s.hidden**0.5
    exact = (x.double() @ w.double().T).topk(s.topk)[1].sort(-1)[0]
    shares = {}
    for kind in (bench.fast, bench.plain):
        index = kind.route(x, w, s.topk)[1].long().sort(-1)[0]
        shares[kind.name] = float((index == exact).all(-1).float().mean())
    return shares


def table(lines: list[dict[str, Any]]) -> str:
    columns = ("fast_ms", "plain_ms", "GB/s", "TFLOP/s", "error", "plain_error", "same_bits")
    rows = [f"{'operation':<44}" + "".join(f"{c:>13}" for c in columns)]
    for line in lines:
        if "failed" in line:
            rows.append(f"{line['name']:<44}  {line['failed']}")
            continue
        values = [line.get(c) for c in columns]
        shown = ["" if v is None else str(v) if isinstance(v, bool) else f"{v:.4g}" for v in values]
        rows.append(f"{line['name']:<44}" + "".join(f"{v:>13}" for v in shown))
    return "\n".join(rows)


def set_up(arguments: argparse.Namespace, sizes: Sizes) -> dict[str, Any]:
    import triton

    gpu = torch.cuda.get_device_name() if arguments.device == "cuda" else "cpu, interpreted"
    return {"gpu": gpu, "torch": torch.__version__, "triton": triton.__version__, "attention": arguments.attention,
            "seed": arguments.seed, "repeats": arguments.repeats, **vars(sizes)}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--attention", choices=("fa3", "fa3-fp8", "sdpa"), default="fa3")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="part of the names to run")
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.device == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported, which torch may have done already
        os.execv(sys.executable, [sys.executable, *sys.argv])
    sizes = Sizes() if arguments.device == "cuda" else SMALL
    with torch.inference_mode():
        bench = Bench(sizes, arguments.device, arguments.attention, arguments.seed)
        cases = [
            c
            for c in bench.cases() + (bench.sweep() if arguments.sweep and arguments.device == "cuda" else [])
            if arguments.only in c.name
        ]
        lines = [measure(case, arguments.device, arguments.repeats) for case in cases]
        agreement = router_agreement(bench)
    if arguments.json:
        print(json.dumps({"set_up": set_up(arguments, sizes), "lines": lines, "router": agreement}))
    else:
        print(json.dumps(set_up(arguments, sizes)), table(lines), f"router as in fp64: {agreement}", sep="\n")
    return int(any("failed" in line for line in lines))


if __name__ == "__main__":
    sys.exit(main())
