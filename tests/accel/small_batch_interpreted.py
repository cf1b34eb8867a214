"""Runs the few-token kernels in Triton's interpreter on the CPU and prints, as JSON, what the backends import early,
each case's relative error, and whether each token's result is the same without the others.

A program of its own: the interpreter must be chosen before Triton is imported. `test_backends.py` starts it.
"""

from __future__ import annotations

import json
import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

import torch
from torch import Tensor

from hunyuan.accel.experts import backends, flashinfer, torch_grouped, tuning
from hunyuan.accel.experts.humming import humming_layout, plain_layout
from hunyuan.accel.experts.small_batch import Blocks, SmallBatch, Stacks
from hunyuan.accel.experts.streamed import Streamed, Units
from hunyuan.formats.numbers import FP8
from hunyuan.model.moe import experts_loop

torch.set_num_threads(1)
MODULES = backends, flashinfer, torch_grouped, tuning
KERNELS = "hunyuan.accel.experts.small_batch_kernels", "hunyuan.accel.experts.streamed_kernels"
EARLY = sorted({*KERNELS, "flashinfer"} & set(sys.modules))
EXPERTS, HIDDEN, WIDTH, TOPK = 3, 128, 256, 2


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def stacks_of(kind: str) -> tuple[Stacks, tuple[Tensor, Tensor]]:
    """The stacks of a format and their fp32 values."""
    shapes = (EXPERTS, 2 * WIDTH, HIDDEN), (EXPERTS, HIDDEN, WIDTH)
    if kind == "mxfp4":
        made = []
        for seed, (experts, rows, columns) in enumerate(shapes):
            generator = torch.Generator().manual_seed(seed)
            packed = torch.randint(256, (experts, rows, columns // 2), dtype=torch.uint8, generator=generator)
            scale = torch.randint(118, 123, (experts, rows, columns // 32), dtype=torch.uint8, generator=generator)
            made.append(humming_layout(packed, scale))
        (a, a_offsets, a_scale), (b, b_offsets, b_scale) = made
        return Stacks(a, b, a_scale, b_scale, a_offsets, b_offsets), (plain_layout(*made[0]), plain_layout(*made[1]))
    a, b = (random(*shape, seed=i) * shape[2] ** -0.5 for i, shape in enumerate(shapes))
    if kind == "bf16":
        a, b = a.bfloat16(), b.bfloat16()
        return Stacks(a, b), (a.float(), b.float())
    scales = torch.linspace(0.5, 2, EXPERTS), torch.linspace(2, 0.5, EXPERTS)
    a, b = a.to(FP8), b.to(FP8)
    values = tuple(m.float() * s[:, None, None] for m, s in zip((a, b), scales, strict=True))
    return Stacks(a, b, *scales), (values[0], values[1])


def error(
    kind: str, tokens: int, blocks: tuple[Blocks, Blocks] | tuple[Units, Units], added: bool = False
) -> tuple[float, bool]:
    stacks, (gate_and_up, down) = stacks_of(kind)
    x = random(tokens, HIDDEN, seed=7).bfloat16()
    weights = random(tokens, TOPK, seed=8).softmax(-1)
    index = random(tokens, EXPERTS, seed=9).topk(TOPK).indices
    expected = experts_loop(x.float(), weights, index, lambda e: (gate_and_up[e], down[e]))
    more = (x, 3 * x.flip(0))
    expected += sum(more) if added else 0

    def run(part: slice) -> Tensor:
        if not isinstance(blocks[0], Units):
            return SmallBatch(stacks, blocks)(x[part], weights[part], index[part])
        small, sums = Streamed(stacks, blocks), (more[0][part].contiguous(), more[1][part].contiguous())
        h = small.first_product(x[part], index[part])
        return small.second_product(h, weights[part], index[part], added=sums if added else None)

    out, alone = run(slice(None)), torch.cat([run(slice(i, i + 1)) for i in range(tokens)])
    assert out.shape == x.shape
    assert out.dtype == torch.bfloat16
    return ((out.float() - expected).norm() / expected.norm()).item(), torch.equal(out, alone)


CASES = {
    "bf16": ("bf16", 1, (Blocks(128, 128), Blocks(128, 64))),
    "bf16 split": ("bf16", 2, (Blocks(256, 64), Blocks(128, 256, splits=2))),
    "fp8 split": ("fp8", 1, (Blocks(256, 128), Blocks(64, 256, splits=2))),
    "mxfp4": ("mxfp4", 1, (Blocks(128, 128, plain=True), Blocks(32, 128, plain=True))),
    "mxfp4 split": ("mxfp4", 3, (Blocks(64, 64, unroll=1, plain=True), Blocks(64, 256, splits=2, plain=True))),
    "streamed": ("mxfp4", 2, (Units(128, 4), Units(64, 4))),
    "streamed split": ("mxfp4", 1, (Units(64, 4), Units(64, 4, 2))),
    "streamed added": ("mxfp4", 2, (Units(64, 4), Units(64, 4)), True),
    "streamed split added": ("mxfp4", 2, (Units(64, 4), Units(64, 4, 2)), True),
}

if __name__ == "__main__":
    print(json.dumps([EARLY, {name: error(*case) for name, case in CASES.items()}]))
