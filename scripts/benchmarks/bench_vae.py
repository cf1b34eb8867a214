"""Measures the autoencoder alone: the plain 3D form against the fast 2D form, time, memory and error.

    python scripts/benchmarks/bench_vae.py --size 1024x1024 --dtype float16 --repeat 10 --convs
    python scripts/benchmarks/bench_vae.py --device cpu        # a tiny autoencoder, to see that the script runs

The weights are random and of the real shapes, so times and memory are those of the real model and errors are only
of its kind. Not included: the backbone, moving data to and from the host, making a PNG.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from hunyuan.accel.vae.fast_vae import FastVae
from hunyuan.accel.vae.frame_conv import FrameConv, Frames
from hunyuan.checkpoint.full_size import full_size_config
from hunyuan.formats.config import CheckpointConfig
from hunyuan.model.config import VaeConfig
from hunyuan.model.vae import Vae

GIB = 2**30
REAL = CheckpointConfig.from_dict(full_size_config(layers=1)).vae
TINY = VaeConfig((32, 32, 32, 32, 32), 8, 1, 16, 4, scaling_factor=0.5627)


def random_vae(config: VaeConfig, device: torch.device, seed: int) -> Vae:
    """Weights such as keep the size of what passes; every one is a bf16 number, as in the checkpoint."""
    with torch.device(device):
        vae = Vae(config).eval().requires_grad_(False)
    generator = torch.Generator(device).manual_seed(seed)
    for name, parameter in vae.named_parameters():
        values = torch.randn(parameter.shape, generator=generator, device=device)
        if parameter.dim() == 1:
            values = 0.1 * values + (not name.endswith("bias"))
        else:
            values /= parameter[0].numel() ** 0.5
        parameter.data = values.bfloat16()
    return vae


class Meter:
    """Median milliseconds and peak extra GiB of a call."""

    def __init__(self, device: torch.device, repeat: int) -> None:
        self.device, self.repeat = device, repeat

    def __call__(self, call: Callable[[], object]) -> tuple[float, float]:
        call()
        if self.device.type != "cuda":
            return median(self._wall(call) for _ in range(self.repeat)), float("nan")
        call()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        times = [self._events(call) for _ in range(self.repeat)]
        return median(times), (torch.cuda.max_memory_allocated() - before) / GIB

    @staticmethod
    def _wall(call: Callable[[], object]) -> float:
        start = perf_counter()
        call()
        return 1000 * (perf_counter() - start)

    @staticmethod
    def _events(call: Callable[[], object]) -> float:
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        call()
        last.record()
        last.synchronize()
        return first.elapsed_time(last)


def errors(ours: Tensor, exact: Tensor) -> str:
    difference = ours.float() - exact
    return (
        f"error: norm {difference.norm() / exact.norm():.1e}, largest {difference.abs().max() / exact.abs().max():.1e}"
    )


def measure(vae: Vae, size: tuple[int, int], dtype: torch.dtype, device: torch.device, meter: Meter) -> None:
    width, height = size
    factor, generator = vae.config.ffactor_spatial, torch.Generator(device).manual_seed(1)
    z = torch.randn(
        1, vae.config.latent_channels, height // factor, width // factor, generator=generator, device=device
    )
    pixels = 2 * torch.rand(1, 3, height, width, generator=generator, device=device) - 1
    vae.float()
    exact = {"decode": vae.decode(z), "encode": vae.encode(pixels).mean}
    vae.bfloat16()
    fast = FastVae(vae, dtype)
    sizes = [sum(p.numel() * p.element_size() for p in form.parameters()) / GIB for form in (vae, fast)]
    print(f"weights: plain (bf16) {sizes[0]:.2f} GiB, fast {sizes[1]:.2f} GiB")

    def autocast(call: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def inside() -> Tensor:
            with torch.autocast(device.type, dtype=torch.float16, enabled=device.type == "cuda"):
                return call()

        return inside

    calls: dict[str, dict[str, Callable[[], Tensor]]] = {
        "decode": {"plain": autocast(lambda: vae.decode(z)), "fast": lambda: fast.decode(z)},
        "encode": {"plain": autocast(lambda: vae.encode(pixels).mean), "fast": lambda: fast.encode(pixels).mean},
    }
    for what, forms in calls.items():
        for form, call in forms.items():
            ms, gib = meter(call)
            print(f"{what} {form:5}: {ms:9.2f} ms, {gib:5.2f} GiB extra, {errors(call(), exact[what])}")


def measure_convs(size: tuple[int, int], dtype: torch.dtype, device: torch.device, meter: Meter) -> None:
    """The decoder's convolutions one by one, at each level: one padded 3D call against the 2D calls."""
    print("convolutions of one residual block's kind, without norms and bias; TFLOP/s count no padding:")
    for channels, scale, frames in ((1024, 16, 1), (1024, 8, 2), (512, 4, 4), (256, 2, 4), (128, 1, 4)):
        width, height = size[0] // scale, size[1] // scale
        conv = nn.Conv3d(channels, channels, 3, padding=1, device=device, dtype=dtype).requires_grad_(False)
        x = torch.randn(1, channels, frames, height, width, device=device, dtype=dtype)
        spaced = x.to(memory_format=torch.channels_last_3d)
        packed = conv.weight.to(memory_format=torch.channels_last_3d)
        slices = {1: 1, 2: 4, 4: 10}[frames]
        work = 2 * 9 * slices * channels**2 * width * height / 1e9  # per ms
        forms: dict[str, Callable[[], object]] = {"3D, padded": partial(torch.conv3d, spaced, packed, padding=1)}
        for together in (1, 2):
            fast = FrameConv(conv, frames, dtype, together=together)
            forms[f"2D, {together} together"] = _windows(fast, x)
        for name, call in forms.items():
            ms = meter(call)[0]
            shape = f"{channels:4} channels, {width}x{height}, {frames} frames"
            print(f"  {shape}, {name}: {ms:7.2f} ms, {work / ms:4.0f} TFLOP/s")
        del conv, x, spaced, packed, forms


def _windows(conv: FrameConv, x: Tensor) -> Callable[[], object]:
    """The 2D calls on inputs that are laid out already, as the norm's kernel does it."""
    frames = Frames({t: x[:, :, t].contiguous(memory_format=torch.channels_last) for t in range(x.shape[2])})
    inputs = [conv.window(frames, call, None) for call in conv.calls]
    kernels = [conv.kernels[call.kernel] for call in conv.calls]

    def call() -> None:
        for window, kernel in zip(inputs, kernels, strict=True):
            torch.conv2d(window, kernel, padding=1)

    return call


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", help="width x height of the picture; 1024x1024 on a GPU, 64x48 elsewhere")
    parser.add_argument("--dtype", choices=["float16", "bfloat16", "float32"], help="of the fast form")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--convs", action="store_true", help="also measure single convolutions (GPU only)")
    parser.add_argument("--cudnn-benchmark", action="store_true", help="let cuDNN try its algorithms and pick")
    chosen = parser.parse_args(arguments)
    device, gpu = torch.device(chosen.device), chosen.device == "cuda"
    width, height = (int(side) for side in (chosen.size or ("1024x1024" if gpu else "64x48")).split("x"))
    dtype = getattr(torch, chosen.dtype or ("float16" if gpu else "float32"))
    torch.backends.cudnn.allow_tf32 = False  # float32 is the reference
    torch.backends.cudnn.benchmark = chosen.cudnn_benchmark
    where = torch.cuda.get_device_name() if gpu else platform.processor() or platform.machine()
    config = REAL if gpu else TINY
    cudnn = f"cuDNN {torch.backends.cudnn.version()}, benchmark {chosen.cudnn_benchmark}"
    print(f"{where}, torch {torch.__version__}, {cudnn}")
    print(f"{width}x{height}, one picture, fast form {dtype}, plain form bf16 under fp16 autocast on a GPU, {config}")
    print(f"median of {chosen.repeat} after warm-up; errors against the plain form in fp32; random weights")
    meter = Meter(device, chosen.repeat)
    with torch.no_grad():
        measure(random_vae(config, device, chosen.seed), (width, height), dtype, device, meter)
        if chosen.convs and gpu:
            torch.cuda.empty_cache()
            measure_convs((width, height), dtype, device, meter)
    print("not included: the backbone, transfers from and to the host, PNG")


if __name__ == "__main__":
    main()
