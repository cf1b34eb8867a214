"""Calibrates the experts of one layer of the real size: seconds, peak memory, and what their output loses.

    python -m scripts.benchmarks.bench_calibration                         an H100: 64 experts of 4096 x 3072
    python -m scripts.benchmarks.bench_calibration --small --device cpu    the same at a thirty-second of the width

Weights are Gaussian, made where they are used. Activations are made up: a quarter of the dimensions carry most of them,
2% of the channels are ten times larger, each request has a mean of its own, and all are normed as a layer's norm does.
Experts are chosen unevenly. The figures are of tokens of requests that chose nothing. Not included: reading the layer
(4.8 GB), its attention and shared MLP, and writing 1.3 GB.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable, Sequence
from math import sqrt
from statistics import fmean

import torch
from torch import Tensor

from hunyuan.calibration.experts import Matrices, OutputErrors, Routed, quantize_experts

REQUESTS, TOPK, LAYERS = 48, 8, 32
OUTLIERS, OUTLIER_SIZE, OWN = 0.02, 10.0, 0.5


def activations(tokens: int, hidden: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Normed inputs `[tokens, hidden]` and the request of each."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    mixing = normal(hidden // 4, hidden) / sqrt(hidden // 4)
    size = 1 + (OUTLIER_SIZE - 1) * (torch.rand(hidden, generator=generator, device=device) < OUTLIERS)
    means = normal(REQUESTS, hidden // 4) * OWN
    requests = (torch.arange(tokens, device=device) * REQUESTS) // tokens
    x = torch.empty(tokens, hidden, dtype=torch.bfloat16 if device.type == "cuda" else torch.float32, device=device)
    for rows in torch.arange(tokens, device=device).split(8192):
        part = (
            (normal(len(rows), hidden // 4) + means[requests[rows]]) @ mixing + 0.5 * normal(len(rows), hidden)
        ) * size
        x[rows] = (part * part.square().mean(-1, keepdim=True).rsqrt()).to(x.dtype)
    return x, requests


def route(tokens: int, experts: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Weights and experts `[tokens, topk]`; the most popular expert is chosen some ten times as often as the least."""
    generator = torch.Generator(device).manual_seed(1)
    popular = torch.linspace(0, 2.5, experts, device=device)
    scores = popular + 2 * torch.randn(tokens, experts, generator=generator, device=device)
    weights, index = scores.softmax(-1).topk(min(TOPK, experts), -1)
    return weights / weights.sum(-1, keepdim=True), index


def random_expert(hidden: int, width: int, device: torch.device, dtype: torch.dtype) -> Callable[[int], Matrices]:
    """Makes an expert's Gaussian matrices by its number, the same ones each time."""

    def read(expert: int) -> Matrices:
        generator = torch.Generator(device).manual_seed(expert)
        shapes = ((2 * width, hidden), (hidden, width))
        first, second = (torch.randn(s, generator=generator, device=device) / sqrt(s[1]) for s in shapes)
        return first.to(dtype), second.to(dtype)

    return read


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tokens", type=int, default=600_000, help="of all requests; the built-in ones have as many")
    parser.add_argument("--experts", type=int, default=64)
    parser.add_argument("--small", action="store_true", help="128 x 96, 16 experts, 20,000 tokens: to try it anywhere")
    args = parser.parse_args(argv)
    hidden, width = (128, 96) if args.small else (4096, 3072)
    tokens, experts = (20_000, 16) if args.small else (args.tokens, args.experts)
    device = torch.device(args.device)
    x, requests = activations(tokens, hidden, device)
    weights, index = route(tokens, experts, device)
    routed = Routed(x, weights, index, requests % 4 == 3, requests)
    out = torch.zeros(tokens, hidden, device=device)
    read = random_expert(hidden, width, device, x.dtype)
    hidden_states = torch.zeros_like(x)  # as a whole calibration holds them beside these
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    errors, began = OutputErrors(), time.perf_counter()
    with torch.inference_mode():
        for _ in quantize_experts(read, experts, routed, out, errors):
            pass
        hidden_states += out.to(x.dtype)
    seconds = time.perf_counter() - began
    report(
        errors, seconds, f"{experts} experts of {hidden} x {width}, {tokens:,} tokens of {REQUESTS} requests", device
    )
    return 0


def report(errors: OutputErrors, seconds: float, what: str, device: torch.device) -> None:
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{what}, {name}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{seconds:.1f} s; peak resident memory {peak:.2f} GiB", end="")
    if device.type == "cuda":
        print(f", of the GPU {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB", end="")
    print(f"; {LAYERS} such layers: {LAYERS * seconds / 60:.1f} minutes")
    print("relative error of an expert's output on held out tokens; tokens: those that chose its values")
    print(f"{'expert':>6} {'tokens':>8} {'plain':>8} {'chosen':>8} {'fp8':>8}")
    rows = []
    for number, square in enumerate(errors.square):
        lost = (errors.plain[number], errors.chosen[number], errors.fp8[number])
        if square:
            rows.append([sqrt(error / square) for error in lost])
            print(f"{number:>6} {errors.tokens[number]:>8}" + "".join(f" {error:>8.4f}" for error in rows[-1]))
        else:
            print(f"{number:>6} {errors.tokens[number]:>8} no held out token chose it")
    for word, pick in (("least", min), ("mean", fmean), ("largest", max)):
        print(f"{word:>15}" + "".join(f" {pick(column):>8.4f}" for column in zip(*rows, strict=True)))
    whole = (errors.layer_plain, errors.layer_chosen, errors.layer_fp8)
    print(f"{'their sum':>15}" + "".join(f" {sqrt(error / errors.layer_square):>8.4f}" for error in whole))
    print(f"rounded plainly, too few tokens: {errors.few or 'none'}")


if __name__ == "__main__":
    sys.exit(main())
