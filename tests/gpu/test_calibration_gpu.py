"""Calibration on a GPU: the same kind of values as on a CPU, in groups, within the memory that is planned."""

from __future__ import annotations

import pytest
import torch

from hunyuan.calibration.experts import OutputErrors, Routed, quantize_experts
from scripts.benchmarks.bench_calibration import activations, random_expert, route

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU, and torch sees none"),
]
COUNT, HIDDEN, WIDTH, TOKENS = 16, 256, 192, 24_000


def losses(device: torch.device, dtype: torch.dtype) -> tuple[float, float, float]:
    """Plain, chosen and fp8, relative, of the layer's sum; tokens and weights are the CPU's."""
    cpu = torch.device("cpu")
    x, requests = activations(TOKENS, HIDDEN, cpu)
    weights, index = route(TOKENS, COUNT, cpu)
    held = requests % 4 == 3
    routed = Routed(*(t.to(device) for t in (x.to(dtype), weights, index, held, requests)))
    read, out, errors = (
        random_expert(HIDDEN, WIDTH, cpu, dtype),
        torch.zeros(TOKENS, HIDDEN, device=device),
        OutputErrors(),
    )
    with torch.inference_mode():
        for made in quantize_experts(
            lambda n: tuple(m.to(device) for m in read(n)),
            COUNT,
            routed,
            out,
            errors,  # type: ignore[arg-type,return-value]
        ):
            assert made.gate_and_up[0].device.type == device.type
    assert not errors.few
    return tuple((e / errors.layer_square) ** 0.5 for e in (errors.layer_plain, errors.layer_chosen, errors.layer_fp8))  # type: ignore[return-value]


def test_a_gpu_loses_what_a_cpu_loses():
    gpu, cpu = losses(torch.device("cuda"), torch.bfloat16), losses(torch.device("cpu"), torch.float32)
    assert gpu == pytest.approx(cpu, rel=0.05)
