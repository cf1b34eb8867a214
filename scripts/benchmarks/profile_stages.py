#!/usr/bin/env python3
"""Prints where the time of each stage goes, by groups of kernels, with the gaps in which the GPU waits for the host.

    scripts/benchmarks/profile_stages.py --dense fp8 [--profile-steps 2] [--profile-tokens 32] [--prepares 5]
                                         [--top 4] [--layers 32]
                                         [any other option of bench_engine.py that says what is run]

The engine is that of `bench_engine.py`, with random weights. One edit warms up; a second one is profiled stage by stage
(torch.profiler; each stage alone, from one idle GPU to the next): prepare, the text's prefill, decoded tokens,
denoising steps after the first, the autoencoder. `busy`: some kernel runs. `gaps`: none does, although the stage has
begun and has not ended; the profiler's own work on the host makes them longer where kernels are launched one by one.
Before that, some edits without the profiler time the parts of `prepare`, and how much they vary. Groups go by the
kernels' names, and the names with the most time stand below each group, so that a wrong group is seen. Without a GPU
the tiny model runs, and PyTorch's operations on the CPU take the kernels' place.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch.autograd import DeviceType  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402

from hunyuan.generation import job as job_module  # noqa: E402
from hunyuan.generation.denoise import Denoiser  # noqa: E402
from hunyuan.generation.job import EditJob  # noqa: E402
from hunyuan.model.network import HunyuanImage3  # noqa: E402
from hunyuan.prompt import images as images_module  # noqa: E402
from hunyuan.requests import EditRequest  # noqa: E402
from scripts.benchmarks import bench_engine  # noqa: E402

GROUPS = (
    ("copies and fills", r"^Memcpy|^Memset"),
    ("experts: copy of rows to their experts", r"expandInputRows"),
    ("experts: SwiGLU and quantize between the products", r"doGatedActivation|doActivation"),
    ("experts: weighted sum", r"finalizeMoeRouting"),
    ("experts: where rows go", r"ExpertPrefixSum|ExpertMaps|computeStrides|FP8DequantScale"),
    ("experts: products", r"GroupProblemShape|MoeFCGemm|MoeGemm"),
    ("experts, few tokens: gate and up", r"^gate_and_up(_|$)"),
    ("experts, few tokens: down", r"^down(_mxfp4|_dense|$)|^add_(splits|parts)"),
    (
        "attention",
        r"PrefillWithKVCache|flash_f|fmha|sdpa|^_part_kernel|^_join_kernel|^_measure_kernel|scaled_dot_product",
    ),
    ("dense layers, one token", r"^_gemv_kernel|^_project_kernel|gemv"),
    ("convolutions", r"fprop|implicit_gemm|convolve|conv2d|winograd|nchwToNhwc|nhwcToNchw|cudnn"),
    (
        "autoencoder: norms, residuals, rearranging",
        r"^_(sums|normalize|residual|affine|\w+_to_\w+)_kernel",
    ),
    ("router, and the choice of a token", r"^_route_kernel|^_choose_kernel|topk|softmax"),
    ("norms, rope, SwiGLU, quantize", r"^_(add_norm|swiglu|quantize|rope_norm_store)_kernel|[nN]orm(_|Kernel|$)"),
    ("dense layers", r"nvjet|gemm|cutlass|splitK|aten::(addmm|mm|bmm|linear|matmul)$"),
)
"""(what it is called, a pattern found in the kernel's name); the first that fits."""
REST = "the rest"
HOST_PARTS: tuple[tuple[Any, str], ...] = (
    (job_module, "load_image"),
    (images_module, "resize"),
    (images_module, "vision_input"),
    (job_module, "prepare_cond_image"),
    (HunyuanImage3, "encode_image"),
    (HunyuanImage3, "embed_vision"),
    (HunyuanImage3, "embed_latents"),
)
"""Of `prepare`; `resize` and `vision_input` are within `prepare_cond_image`."""


@dataclass(frozen=True)
class Kernel:
    """One launch; microseconds on the profiler's clock."""

    name: str
    start: float
    stop: float


@dataclass
class Profile:
    """One stage.

    Attributes:
        seconds: from its begin on an idle device to an idle device, under the profiler.
        units: tokens or steps within; 1 for a whole stage.
    """

    stage: str
    kernels: list[Kernel]
    seconds: float
    units: int = 1


def group_of(name: str) -> str:
    return next((group for group, pattern in GROUPS if re.search(pattern, name)), REST)


def busy_us(kernels: Iterable[Kernel]) -> float:
    """How long at least one of them runs."""
    total, end = 0.0, float("-inf")
    for kernel in sorted(kernels, key=lambda k: k.start):
        total += max(0.0, kernel.stop - max(end, kernel.start))
        end = max(end, kernel.stop)
    return total


def longest_gaps(kernels: Iterable[Kernel], count: int) -> list[tuple[float, str, str]]:
    """Microseconds without a kernel, and the kernels before and after; the longest first."""
    gaps, before = [], None
    for kernel in sorted(kernels, key=lambda k: k.start):
        if before is not None and kernel.start > before.stop:
            gaps.append((kernel.start - before.stop, before.name, kernel.name))
        if before is None or kernel.stop > before.stop:
            before = kernel
    return sorted(gaps, reverse=True)[:count]


def lines_of(taken: Profile, top: int) -> list[str]:
    """The table of one stage: milliseconds of one unit, groups by time."""
    scale, groups = 1e3 * taken.units, defaultdict[str, list[Kernel]](list)
    for kernel in taken.kernels:
        groups[group_of(kernel.name)].append(kernel)
    busy, wall = busy_us(taken.kernels) / scale, taken.seconds * 1e3 / taken.units
    calls = len(taken.kernels) / taken.units
    lines = [f"== {taken.stage}: {wall:.3f} ms, busy {busy:.3f}, gaps {wall - busy:.3f}; {calls:.0f} kernels"]
    for group, members in sorted(groups.items(), key=lambda item: -time_of(item[1])):
        each = time_of(members) / scale
        lines.append(f"{each:10.3f} ms {100 * each / wall:5.1f} % {len(members) / taken.units:8.1f} calls  {group}")
        names = defaultdict[str, list[Kernel]](list)
        for kernel in members:
            names[kernel.name].append(kernel)
        for name, same in sorted(names.items(), key=lambda item: -time_of(item[1]))[:top]:
            lines.append(f"{time_of(same) / scale:18.3f} {len(same) / taken.units:8.1f} calls  {short(name)}")
    for gap, before, after in longest_gaps(taken.kernels, top):
        lines.append(f"     gap {gap / 1e3:.3f} ms between {short(before, 50)} and {short(after, 50)}")
    return lines


def time_of(kernels: Iterable[Kernel]) -> float:
    return sum(kernel.stop - kernel.start for kernel in kernels)


def short(name: str, most: int = 110) -> str:
    name = re.sub(r"^void ", "", name)
    return name if len(name) <= most else f"{name[: most - 3]}..."


class Profiler:
    """Profiles parts of an edit, each by itself."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.taken = device, list[Profile]()
        with self.part("the profiler's own start"):
            torch.zeros(1, device=device)
        self.taken.clear()

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @contextmanager
    def part(self, stage: str, units: Callable[[], int] = lambda: 1) -> Iterator[None]:
        """`units` is asked at the end."""
        on_gpu = self.device.type == "cuda"
        self.synchronize()
        activities = [ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]
        with profile(activities=activities, acc_events=True) as profiler:  # without, it warns that it starts anew
            began = time.perf_counter()
            yield
            self.synchronize()
            seconds = time.perf_counter() - began
        self.taken.append(Profile(stage, kernels_of(profiler, on_gpu), seconds, units()))

    def summed(self) -> list[Profile]:
        """Parts of one name put together."""
        sums: dict[str, Profile] = {}
        for each in self.taken:
            if each.stage not in sums:
                sums[each.stage] = replace(each, kernels=list(each.kernels))
                continue
            known = sums[each.stage]
            # Moved, so that what lies between two parts is no gap.
            shift = max((k.stop for k in known.kernels), default=0.0) - min((k.start for k in each.kernels), default=0)
            known.kernels += [Kernel(k.name, k.start + shift, k.stop + shift) for k in each.kernels]
            known.seconds, known.units = known.seconds + each.seconds, known.units + each.units
        return list(sums.values())


def kernels_of(profiler: profile, on_gpu: bool) -> list[Kernel]:
    """What ran on the GPU; without one, the operations that no other one called."""
    if on_gpu:
        events = [e for e in profiler.events() if e.device_type == DeviceType.CUDA and not e.is_user_annotation]
    else:
        events = [e for e in profiler.events() if e.cpu_parent is None]
    return [Kernel(e.name, e.time_range.start, e.time_range.end) for e in events]


@contextmanager
def profiled(profiler: Profiler, steps: int) -> Iterator[None]:
    """While it lasts, an edit's stages are profiled; of denoising, `steps` steps after the first."""
    prepare, prefill, decode, picture = EditJob.prepare, EditJob._prefill_prompt, EditJob._decode, EditJob._picture
    predict = Denoiser.predict

    def whole(stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            with profiler.part(stage):
                return function(*arguments)

        return run

    def tokens(job: EditJob, *arguments: Any) -> list[int]:
        new: list[int] = []
        with profiler.part("a token", lambda: len(new)):
            new += decode(job, *arguments)
        return new

    def step(denoiser: Denoiser, latents: torch.Tensor, index: int) -> torch.Tensor:
        if not 1 <= index <= steps:
            return predict(denoiser, latents, index)
        with profiler.part("a step"):
            return predict(denoiser, latents, index)

    with ExitStack() as stack:
        for name, function in (
            ("prepare", whole("prepare", prepare)),
            ("_prefill_prompt", whole("prefill", prefill)),
            ("_decode", tokens),
            ("_picture", whole("autoencoder", picture)),
        ):
            stack.enter_context(mock.patch.object(EditJob, name, function))
        stack.enter_context(mock.patch.object(Denoiser, "predict", step))
        yield


def host_lines(run: Callable[[], Any], synchronize: Callable[[], None], repeat: int) -> list[str]:
    """Milliseconds of each part of `prepare` in `repeat` edits, without the profiler.

    Each part goes from an idle device to an idle device.
    """
    edits, preparing = list[defaultdict[str, list[float]]](), False

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if not preparing:
                return function(*arguments)
            synchronize()
            began = time.perf_counter()
            result = function(*arguments)
            synchronize()
            edits[-1][name].append(time.perf_counter() - began)
            return result

        return call

    prepare = EditJob.prepare

    def whole(job: EditJob) -> None:
        nonlocal preparing
        preparing = True
        edits.append(defaultdict(list))
        began = time.perf_counter()
        prepare(job)
        synchronize()
        edits[-1]["prepare"].append(time.perf_counter() - began)
        preparing = False

    with ExitStack() as stack:
        for owner, name in HOST_PARTS:
            stack.enter_context(mock.patch.object(owner, name, timed(name, getattr(owner, name))))
        stack.enter_context(mock.patch.object(EditJob, "prepare", whole))
        for _ in range(repeat):
            run()
    lines = [f"== parts of prepare, one after the other, without the profiler; of {repeat} edits: median, least, most"]
    for name, calls in edits[0].items():
        sums = [1e3 * sum(edit[name]) for edit in edits]
        lines.append(f"{median(sums):10.3f} {min(sums):10.3f} {max(sums):10.3f} ms {len(calls):3d} calls  {name}")
    return lines


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog="others: see bench_engine.py")
    parser.add_argument("--profile-steps", type=int, default=2)
    parser.add_argument("--profile-tokens", type=int, default=32)
    parser.add_argument("--prepares", type=int, default=5, help="edits whose preparation is timed in parts")
    parser.add_argument("--top", type=int, default=4, help="kernel names and gaps shown")
    mine, others = parser.parse_known_args(arguments)
    options = bench_engine.parse(others)
    if options.gpus != 1 or options.check or options.json or options.launches:
        parser.error("--gpus 2, --check, --json and --launches are bench_engine.py's alone")
    if mine.profile_steps < 1 or mine.profile_tokens < 1 or mine.prepares < 1 or mine.top < 0:
        parser.error("--profile-steps, --profile-tokens and --prepares are at least 1, --top at least 0")
    # Cut short by what follows from here on; the sequence is as long as bench_engine.py's after its prompt.
    options.tokens, options.steps = mine.profile_tokens, mine.profile_steps + 1
    shown = {"top": mine.top, "profile_steps": mine.profile_steps, "prepares": mine.prepares}
    return argparse.Namespace(**{**vars(options), **shown})


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    print("\n".join(bench_engine.setup_lines(options)))
    with tempfile.TemporaryDirectory() as folder:
        engine = bench_engine.build(options, Path(folder))
        request: EditRequest = bench_engine.request_of(options, engine)
        profiler = Profiler(engine.checkpoint.model.device)

        def run() -> Any:
            return engine.run(request, seed=1, steps=options.steps, on_progress=None, cancel=None)

        run()  # warm-up
        print("\n".join(host_lines(run, profiler.synchronize, options.prepares)), flush=True)
        plain = run().timings
        print("without the profiler: " + ", ".join(f"{k} {1e3 * v:.1f} ms" for k, v in plain.items()), flush=True)
        with profiled(profiler, options.profile_steps):
            run()
        for taken in profiler.summed():
            print("\n".join(lines_of(taken, options.top)), flush=True)
    print("times of prepare, prefill and autoencoder are of the whole stage, the others' of one unit")
    return 0


if __name__ == "__main__":
    sys.exit(main())
