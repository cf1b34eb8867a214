"""Times one layer's experts in every backend, and says how right and how reproducible each is.

    python bench_moe.py                      every mode at 1, 16, 1024, 4120 and 8240 tokens (a Hopper GPU)
    python bench_moe.py --probe humming 1024 every tile of one FlashInfer mode; the best goes to --cache-dir
    python bench_moe.py --blocks mxfp4       the one-token kernels' block sizes
    python bench_moe.py --device cpu         tiny sizes, to see that the script runs

Times are medians of CUDA-graph replays that go round several layers' weights, so that the L2 cache holds none of them;
the plain loop waits for the host and is timed without a graph. Outputs are filled with NaN before they are checked.
The error is against fp32 arithmetic on the weights' own values, on the first tokens.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from hunyuan.accel.experts import small_batch, tuning
from hunyuan.accel.experts.flashinfer import MODE_OF_FORMAT, take_stacks
from hunyuan.accel.experts.small_batch import Blocks
from hunyuan.accel.experts.tactics import Tactics
from hunyuan.accel.experts.torch_grouped import TorchExperts
from hunyuan.formats.modules import EXPERT_FORMATS
from hunyuan.formats.numbers import FP8
from hunyuan.model.moe import Experts, experts_loop

MODES = {  # name: (backend, format of the weights)
    "eager bf16": ("eager", "bf16"),
    "torch bf16": ("torch", "bf16"),
    "flashinfer bf16": ("flashinfer", "bf16"),
    "small_batch bf16": ("small_batch", "bf16"),
    "torch fp8": ("torch", "fp8"),
    "flashinfer fp8": ("flashinfer", "fp8"),
    "small_batch fp8": ("small_batch", "fp8"),
    "flashinfer humming": ("flashinfer", "mxfp4"),
    "small_batch mxfp4": ("small_batch", "mxfp4"),
}
CHECKED = 256  # tokens compared with fp32
SETS = {"bf16": 2, "fp8": 3, "mxfp4": 4}  # layers' weights that a timing goes round


@dataclass(frozen=True)
class Sizes:
    experts: int = 64
    topk: int = 8
    hidden: int = 4096
    width: int = 3072


@dataclass
class Row:
    mode: str
    tokens: int
    ms: float | None = None
    gb_s: float | None = None
    tflop_s: float | None = None
    error: float | None = None
    repeats_exactly: bool | None = None
    tactic: list[int] | None = None
    failure: str | None = None

    def line(self) -> str:
        if self.failure:
            return f"{self.mode:20s} {self.tokens:6d}  failed: {self.failure}"
        same = "yes" if self.repeats_exactly else "NO"
        return (
            f"{self.mode:20s} {self.tokens:6d} {self.ms:9.4f} {self.gb_s:8.0f} {self.tflop_s:8.1f} {self.error:9.1e} "
            f"{same:>4s}  {self.tactic or ''}"
        )


HEAD = f"{'mode':20s} {'tokens':>6s} {'ms':>9s} {'GB/s':>8s} {'TFLOP/s':>8s} {'error':>9s} {'same':>4s}  tactic"


def random_experts(kind: str, sizes: Sizes, device: torch.device, seed: int) -> Experts:
    """Experts whose weights have about the size that keeps activations near one."""
    with torch.device("meta"):
        made = EXPERT_FORMATS[kind](sizes.experts, sizes.hidden, sizes.width)
    generator = torch.Generator(device).manual_seed(seed)
    for name, rows, columns in (("gate_and_up", 2 * sizes.width, sizes.hidden), ("down", sizes.hidden, sizes.width)):
        shape = (sizes.experts, rows, columns)
        for part in (f"{name}_proj", f"{name}_scale"):
            if hasattr(made, part):
                values = _random_part(kind, part, shape, device, generator)
                made.register_parameter(part, nn.Parameter(values, requires_grad=False))
    return made


def _random_part(
    kind: str, part: str, shape: tuple[int, int, int], device: torch.device, generator: torch.Generator
) -> Tensor:
    experts, rows, columns = shape
    if kind == "mxfp4":
        low, high, per = (0, 256, 2) if part.endswith("proj") else (119, 121, 32)
        size = (experts, rows, columns // per)
        return torch.randint(low, high, size, dtype=torch.uint8, device=device, generator=generator)
    if part.endswith("scale"):
        return torch.full((experts,), columns**-0.5 / 64, device=device)
    out = torch.empty(shape, dtype=FP8 if kind == "fp8" else torch.bfloat16, device=device)
    for expert in range(experts):  # one at a time: no fp32 copy of a whole layer
        values = torch.randn(rows, columns, device=device, generator=generator)
        out[expert] = (values * (64 if kind == "fp8" else columns**-0.5)).to(out.dtype)
    return out


def inputs(tokens: int, sizes: Sizes, device: torch.device, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator(device).manual_seed(1000 + seed)
    x = torch.randn(tokens, sizes.hidden, device=device, generator=generator).bfloat16()
    scores = torch.randn(tokens, sizes.experts, device=device, generator=generator)
    weights, index = scores.softmax(-1).topk(sizes.topk)
    return x, (weights / weights.sum(-1, keepdim=True)).contiguous(), index


@dataclass
class Bench:
    """One format's weight sets as one backend computes with them."""

    sizes: Sizes
    device: torch.device
    tactics: Tactics
    max_tokens: int
    repeats: int

    def backends(self, impl: str, experts: list[Experts]) -> list[nn.Module]:
        if impl == "eager":
            return list(experts)
        if impl == "torch":
            return [TorchExperts(e) for e in experts]
        from hunyuan.accel.experts.flashinfer import FlashInferExperts, shared_for

        if impl == "small_batch":
            return [OneTokenOnly(e) for e in experts]
        shared = shared_for(experts[0], self.sizes.topk, self.tactics, self.max_tokens, small_batch=False)
        return [FlashInferExperts(e, shared) for e in experts]

    def row(self, mode: str, impl: str, modules: list[Any], tokens: int, weight_bytes: int) -> Row:
        row = Row(mode, tokens)
        data = [inputs(tokens, self.sizes, self.device, seed) for seed in range(len(modules))]
        if impl == "flashinfer":
            tuning.tune(modules[0], (tokens,))
            shared = modules[0].shared
            row.tactic = list(shared.tactics.find(shared.key, tokens))
        calls = [self._call(impl, module, given) for module, given in zip(modules, data, strict=True)]
        row.error, row.repeats_exactly = self._check(calls[0], modules[0], data[0])
        row.ms = self._time(calls, graph=impl != "eager")
        hit = sum(int(given[2].unique().numel()) for given in data) / len(data)
        row.gb_s = weight_bytes / self.sizes.experts * hit / row.ms / 1e6
        row.tflop_s = 6 * tokens * self.sizes.topk * self.sizes.hidden * self.sizes.width / row.ms / 1e9
        return row

    @staticmethod
    def _call(impl: str, module: Any, given: tuple[Tensor, Tensor, Tensor]) -> Callable[[], Tensor]:
        return partial(module.big if impl == "flashinfer" else module, *given)

    def _check(
        self, call: Callable[[], Tensor], module: nn.Module, given: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[float, bool]:
        first = call().clone()
        poison = torch.full_like(first, float("nan"))  # what the allocator hands out next
        del poison
        again = call()
        x, weights, index = (part[:CHECKED] for part in given)
        expected = experts_loop(x.float(), weights, index, partial(fp32_pair, module))
        error = ((first[:CHECKED].float() - expected).norm() / expected.norm()).item()
        return error, torch.equal(first, again)

    def _time(self, calls: list[Callable[[], Tensor]], graph: bool) -> float:
        """Median ms a call."""
        for call in calls:
            call()
        if self.device.type == "cpu":
            return median(_host_ms(call) for call in calls for _ in range(self.repeats))
        run: Callable[[], object] = captured(calls) if graph else lambda: [call() for call in calls]
        return tuning.milliseconds(run, self.repeats) / len(calls)


class OneTokenOnly(nn.Module):
    """The one-token kernels without FlashInfer beside them."""

    def __init__(self, experts: Experts) -> None:
        super().__init__()
        self.stacks = take_stacks(experts, MODE_OF_FORMAT[experts.format])
        self.small = small_batch.SmallBatch(self.stacks)

    def dequantized(self, expert: int) -> tuple[Tensor, Tensor]:
        return self.stacks.dequantized(expert)

    def forward(self, x: Tensor, weights: Tensor, index: Tensor) -> Tensor:
        return self.small(x, weights, index)


def candidate_blocks(kind: torch.dtype) -> tuple[list[Blocks], list[Blocks]]:
    """Blocks worth timing for the first and the second product."""
    if kind == torch.uint8:
        cuts = [(8, 512, 4, 2), (8, 512, 4, 1), (8, 512, 4, 4), (8, 1024, 8, 1), (8, 1024, 8, 2), (16, 512, 4, 1)]
        first = [Blocks(*cut) for cut in [*cuts, (16, 512, 4, 2), (16, 512, 8, 2), (8, 256, 2, 2), (4, 1024, 4, 1)]]
        tall = [(8, 512, 4, 2, splits) for splits in (1, 2, 4, 8)]
        return first, [Blocks(*cut) for cut in [*tall, (8, 1024, 8, 1, 1), (8, 1024, 8, 1, 4), (8, 512, 4, 3, 4)]]
    first = [Blocks(r, c, w) for r, c, w in ((2, 1024, 4), (4, 1024, 4), (4, 2048, 4), (8, 1024, 4), (8, 1024, 8))]
    second = [Blocks(r, 1024, 4, splits=s) for r, s in ((2, 1), (4, 1), (4, 2), (4, 4), (8, 4))]
    return first, second


def fp32_pair(module: Any, expert: int) -> tuple[Tensor, Tensor]:
    if isinstance(module, Experts):
        return module.matrix("gate_and_up", expert, torch.float32), module.matrix("down", expert, torch.float32)
    if isinstance(module, TorchExperts):
        scales = module.scales or (None, None)
        pair = zip((module.gate_and_up, module.down), scales, strict=True)
        first, second = (m[expert].float() * (1 if s is None else s[expert, 0]) for m, s in pair)
        return first, second
    return module.stacks.dequantized(expert)


def captured(calls: list[Callable[[], Tensor]]) -> Callable[[], None]:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph.replay


def _host_ms(call: Callable[[], Tensor]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3


def run_modes(bench: Bench, wanted: list[str], tokens: list[int]) -> list[Row]:
    rows = []
    for mode in wanted:
        impl, kind = MODES[mode]
        counts = [1, 2, small_batch.MAX_TOKENS] if impl == "small_batch" else tokens
        try:
            experts = [random_experts(kind, bench.sizes, bench.device, seed) for seed in range(SETS[kind])]
            size = sum(p.numel() * p.element_size() for p in experts[0].parameters())
            modules = bench.backends(impl, experts)
            del experts
        except Exception as error:
            rows.append(failed(mode, 0, error))
            print(rows[-1].line(), flush=True)
            continue
        for count in counts:
            try:
                rows.append(bench.row(mode, impl, modules, count, size))
            except Exception as error:
                rows.append(failed(mode, count, error))
            print(rows[-1].line(), flush=True)
        del modules
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()
    return rows


def failed(mode: str, tokens: int, error: Exception) -> Row:
    """One mode's failure must not cost the others' figures on a borrowed GPU."""
    return Row(mode, tokens, failure=f"{type(error).__name__}: {error}"[:300])


def probe(bench: Bench, mode: str, tokens: int) -> dict[str, object]:
    """Every deterministic tile of a mode; the best pair is remembered."""
    kind = {"humming": "mxfp4"}.get(mode, mode)
    module: Any = bench.backends("flashinfer", [random_experts(kind, bench.sizes, bench.device, 0)])[0]
    trial = tuning.trial(module, tokens)
    times = sorted(tuning.search(trial, everything=True).items(), key=lambda item: item[1])
    print(f"{mode} at {tokens} tokens: {len(times)} pairs worked, {trial.failed} failed")
    for ids, ms in times[:10]:
        print(f"  {list(ids)}  {ms:.4f} ms")
    bench.tactics.remember(module.shared.key, tokens, times[0][0])
    working = [sorted({ids[i] for ids, _ in times}) for i in (0, 1)]
    return {"mode": mode, "tokens": tokens, "best": times[0], "working": working, "failed": trial.failed}


def time_blocks(bench: Bench, kind: str) -> list[dict[str, object]]:
    """Both one-token products with every candidate block size, at one token."""
    experts = [random_experts(kind, bench.sizes, bench.device, seed) for seed in range(SETS[kind])]
    modules: list[Any] = bench.backends("small_batch", experts)
    data = [inputs(1, bench.sizes, bench.device, seed) for seed in range(len(modules))]
    results = []
    dtype = modules[0].stacks.gate_and_up.dtype
    defaults = small_batch.default_blocks(dtype)
    for product, candidates in enumerate(candidate_blocks(dtype)):
        for cut in [*candidates, *([replace(candidates[0], plain=True)] if kind == "mxfp4" else [])]:
            blocks = (cut, defaults[1]) if product == 0 else (defaults[0], cut)
            calls: list[Callable[[], Tensor]] = []
            for module, (x, weights, index) in zip(modules, data, strict=True):
                small = small_batch.SmallBatch(module.stacks, blocks)
                h = small.first_product(x, index)
                if product == 0:
                    calls.append(partial(small.first_product, x, index))
                else:
                    calls.append(partial(small.second_product, h, weights, index))
            try:
                ms = tuning.milliseconds(captured(calls), bench.repeats) / len(calls)
            except Exception as error:
                print(f"product {product + 1} {cut}: {type(error).__name__}: {str(error)[:200]}")
                continue
            matrix = (modules[0].stacks.gate_and_up, modules[0].stacks.down)[product]
            speed = matrix[0].numel() * matrix.element_size() * bench.sizes.topk / ms / 1e6
            print(f"product {product + 1} {cut}: {ms:.4f} ms, {speed:.0f} GB/s", flush=True)
            results.append({"product": product + 1, **asdict(cut), "ms": ms, "gb_s": speed})
    return results


def setup(device: torch.device, sizes: Sizes, arguments: argparse.Namespace) -> dict[str, object]:
    def of(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    found: dict[str, object] = {"python": platform.python_version(), "torch": torch.__version__, "triton": of("triton")}
    if device.type == "cuda":
        import_error = None
        try:
            import flashinfer

            found["flashinfer"] = flashinfer.__version__
        except ImportError as error:
            import_error = str(error)
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "gpu": properties.name,
            "multiprocessors": properties.multi_processor_count,
            "cuda": torch.version.cuda,
        }
        found |= {"flashinfer_error": import_error} if import_error else {}
    return {**found, **asdict(sizes), "sets": SETS, "repeats": arguments.repeats, "seeds": "weights 0.., inputs 1000.."}


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--modes", default=",".join(MODES), help="comma-separated")
    parser.add_argument("--tokens", default=None, help="comma-separated; default 1,16,1024,4120,8240, on the CPU 1,16")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--probe", nargs=2, metavar=("MODE", "TOKENS"), action="append")
    parser.add_argument("--blocks", choices=("bf16", "fp8", "mxfp4"), action="append")
    parser.add_argument("--cache-dir", type=Path, default=None, help="where measured tactics are kept")
    parser.add_argument("--json", type=Path, default=None, help="write everything there as well")
    return parser.parse_args(argv)


@torch.no_grad()
def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    device = torch.device(arguments.device)
    small = device.type == "cpu"
    sizes = Sizes(4, 2, 128, 128) if small else Sizes()
    tokens = [int(t) for t in (arguments.tokens or ("1,16" if small else "1,16,1024,4120,8240")).split(",")]
    wanted = [m for m in arguments.modes.split(",") if not small or MODES[m][0] in ("eager", "torch")]
    most = max([*tokens, *(int(t) for _, t in arguments.probe or [])])
    bench = Bench(sizes, device, Tactics(arguments.cache_dir), most, arguments.repeats)
    report: dict[str, Any] = {"setup": setup(device, sizes, arguments)}
    print(json.dumps(report["setup"]))
    if arguments.probe:
        report["probe"] = [probe(bench, mode, int(count)) for mode, count in arguments.probe]
    if arguments.blocks:
        report["blocks"] = {kind: time_blocks(bench, kind) for kind in arguments.blocks}
    if not arguments.probe and not arguments.blocks:
        print(HEAD)
        report["rows"] = [asdict(row) for row in run_modes(bench, wanted, tokens)]
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1))
    return int(any(row["failure"] for row in report.get("rows", [])))


if __name__ == "__main__":
    sys.exit(main())
