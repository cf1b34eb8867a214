"""Compares the autoencoder's Triton kernels with their plain forms; run by test_fast_vae.py as a process of its own.

Triton decides at import whether kernels are interpreted, so TRITON_INTERPRET=1 must be set before. On a machine with a
GPU and without the variable, it checks the compiled kernels. Also shows that nothing before needs Triton.
"""

from __future__ import annotations

import os
import sys

import torch
from torch import Tensor

sys.modules["triton"] = None  # type: ignore[assignment]  # the fast form must import without it
from hunyuan.accel.vae import fast_vae, frame_operations  # noqa: E402, F401

del sys.modules["triton"]
from hunyuan.accel.vae import frame_kernels as kernels  # noqa: E402

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"


def frame(channels: int, height: int, width: int, dtype: torch.dtype, wide: int = 1) -> Tensor:
    """A frame with its channels fastest; with `wide`, the second part of a tensor of that many frames."""
    x = torch.randn(1, channels * wide, height, width, device=DEVICE) + 1.5
    x = x.to(dtype).contiguous(memory_format=torch.channels_last)
    return x[:, -channels:]


def same(ours: Tensor, theirs: Tensor, dtype: torch.dtype) -> None:
    tolerance = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[dtype]
    torch.testing.assert_close(ours.double().cpu(), theirs.double().cpu(), rtol=tolerance, atol=tolerance)


def check_sums(sums: Tensor, x: Tensor) -> None:
    places = x[0, 0].numel()
    assert sums.dtype == torch.float64
    expected = frame_operations.channel_sums(x.cpu()) / places
    torch.testing.assert_close(sums.cpu() / places, expected, rtol=1e-5, atol=1e-5)


def check_norm(channels: int, height: int, width: int, dtype: torch.dtype, wide: int) -> None:
    x = frame(channels, height, width, dtype, wide)
    sums = kernels.channel_sums(x)
    check_sums(sums, x)
    weight, bias, offset = (torch.randn(channels, device=DEVICE) for _ in range(3))
    scale, shift = frame_operations.group_affine(sums, height * width, weight, bias, offset, channels // 4, 1e-6)
    check_affine(sums, height * width, weight, bias, offset)
    for activate in (True, False):
        ours = frame(channels, height, width, dtype, 3)
        beside = ours._base.clone()
        theirs = ours.cpu().clone()
        kernels.normalize(x, scale, shift, ours, activate)
        frame_operations.normalize(x.cpu(), scale.cpu(), shift.cpu(), theirs, activate)
        same(ours, theirs, dtype)
        assert torch.equal(ours._base[:, :-channels], beside[:, :-channels]), "wrote beside its part"
    whole = torch.nn.functional.group_norm(x.float() + offset[:, None, None], channels // 4, weight, bias, 1e-6)
    same(ours, whole, dtype)


def check_affine(sums: Tensor, count: int, weight: Tensor, bias: Tensor, offset: Tensor) -> None:
    """Both compute in fp64, and differ by the order of sums alone."""
    on_cpu = [each.cpu() for each in (weight, bias, offset)]
    for groups in {1, len(weight) // 4, 4}:
        for shifted in (True, False):
            ours = kernels.group_affine(sums, count, weight, bias, offset if shifted else None, groups, 1e-6)
            more = (*on_cpu[:2], on_cpu[2] if shifted else None)
            theirs = frame_operations.group_affine(sums.cpu(), count, *more, groups, 1e-6)
            for mine, plain in zip(ours, theirs, strict=True):
                assert mine.dtype == plain.dtype == torch.float32
                torch.testing.assert_close(mine.cpu(), plain, rtol=2e-6, atol=1e-6)


def check_residual(channels: int, height: int, width: int, dtype: torch.dtype, wide: int) -> None:
    x, y = frame(channels, height, width, dtype, wide), frame(channels, height, width, dtype, 2)
    bias, theirs = torch.randn(channels, device=DEVICE), x.cpu().clone()
    sums = kernels.add_residual(x, y, bias)
    expected = frame_operations.add_residual(theirs, y.cpu(), bias.cpu())
    same(x, theirs, dtype)
    check_sums(sums, x)
    same(sums / (height * width), expected / (height * width), dtype)


def check_spread(inputs: int, channels: int, height: int, width: int, t: int, dtype: torch.dtype) -> None:
    deep = 4 * t * channels
    y, x, bias = frame(deep, height, width, dtype, 2), frame(inputs, height, width, dtype, 2), torch.randn(deep)
    bias = bias.to(DEVICE)
    for i in range(t):
        ours = frame(channels, 2 * height, 2 * width, dtype)
        theirs = ours.cpu().clone()
        sums = kernels.depth_to_space(y, bias, x, ours, i)
        frame_operations.depth_to_space(y.cpu(), bias.cpu(), x.cpu(), theirs, i)
        same(ours, theirs, dtype)
        check_sums(sums, ours)


def check_gathered(inputs: int, channels: int, height: int, width: int, dtype: torch.dtype) -> None:
    """`height` and `width` are the halved ones."""
    y, x = (frame(count, 2 * height, 2 * width, dtype, 2) for count in (channels, inputs))
    bias = torch.randn(channels, device=DEVICE)
    ours = frame(4 * channels, height, width, dtype, 3)
    beside, theirs = ours._base.clone(), ours.cpu().clone()
    sums = kernels.space_to_depth(y, bias, x, ours)
    frame_operations.space_to_depth(y.cpu(), bias.cpu(), x.cpu(), theirs)
    same(ours, theirs, dtype)
    check_sums(sums, ours)
    assert torch.equal(ours._base[:, : -4 * channels], beside[:, : -4 * channels]), "wrote beside its part"


def main() -> None:
    torch.manual_seed(0)
    half, single = torch.float16, torch.float32
    sizes = [(32, 1, 1, single, 1), (96, 3, 5, half, 2), (128, 6, 7, half, 1), (160, 5, 1, single, 3)]
    sizes += [(64, 37, 15, half, 2), (32, 1, 9, torch.bfloat16, 1)]
    for size in sizes:
        check_norm(*size)
        check_residual(*size)
    for place in [(64, 32, 3, 5, 2, single), (32, 32, 4, 3, 1, half), (64, 160, 1, 2, 2, half)]:
        check_spread(*place)
    for inputs, channels, height, width, dtype in (
        (8, 8, 3, 5, torch.float32), (16, 8, 4, 3, torch.float16), (96, 24, 5, 9, torch.bfloat16),
        (320, 160, 2, 7, torch.float16),
    ):  # fmt: skip
        check_gathered(inputs, channels, height, width, dtype)
    if DEVICE == "cuda":
        for channels in (128, 256, 512, 1024):
            check_norm(channels, 128, 96, half, 2)
            check_residual(channels, 128, 96, half, 1)
            check_spread(channels, channels, 64, 48, 2, half)
            check_gathered(2 * channels, channels, 64, 48, half)
        check_norm(128, 1024, 1024, half, 1)
    print("kernels agree")


if __name__ == "__main__":
    main()
