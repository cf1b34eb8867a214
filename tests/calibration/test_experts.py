"""One layer's experts: grouped as one by one, on tokens that chose nothing, and the benchmark that measures them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hunyuan.calibration import experts as module
from hunyuan.calibration.experts import FEW, OutputErrors, Quantized, Routed, quantize_experts
from hunyuan.formats.numbers import dequantize_fp8, dequantize_mxfp4, quantize_fp8, quantize_mxfp4
from hunyuan.model.moe import experts_loop
from scripts.benchmarks import bench_calibration
from scripts.benchmarks.bench_calibration import activations, random_expert, route

COUNT, HIDDEN, WIDTH, TOKENS = 5, 64, 96, 4800
CPU = torch.device("cpu")


def tokens_of_a_layer(dtype: torch.dtype = torch.float32) -> Routed:
    """The last expert is chosen by two tokens alone."""
    x, requests = activations(TOKENS, HIDDEN, CPU)
    weights, index = route(TOKENS, COUNT - 1, CPU)
    index[:2, 0] = COUNT - 1
    return Routed(x.to(dtype), weights[:, :2], index[:, :2], requests % 4 == 3, requests)


def quantize(routed: Routed) -> tuple[list[Quantized], Tensor, OutputErrors]:
    out, errors = torch.zeros(TOKENS, HIDDEN), OutputErrors()
    read = random_expert(HIDDEN, WIDTH, CPU, routed.x.dtype)
    return list(quantize_experts(read, COUNT, routed, out, errors)), out, errors


def layer_output(routed: Routed, matrices: list[tuple[Tensor, ...]]) -> Tensor:
    """What a layer's experts add, by the product's plain loop."""
    return experts_loop(routed.x, routed.weights, routed.index, lambda n: (matrices[n][0], matrices[n][1]))


def official() -> list[tuple[Tensor, ...]]:
    read = random_expert(HIDDEN, WIDTH, CPU, torch.float32)
    return [read(n) for n in range(COUNT)]


def test_what_is_added_and_measured_is_what_the_network_would_compute():
    routed = tokens_of_a_layer()
    found, out, errors = quantize(routed)
    stored = layer_output(routed, [tuple(dequantize_mxfp4(*packed) for packed in made[3:]) for made in found])
    wanted = layer_output(routed, official())
    assert torch.allclose(out, stored, atol=1e-5)
    apart = float((stored - wanted)[routed.held].square().sum())
    assert errors.layer_chosen == pytest.approx(apart, rel=1e-3)
    assert errors.layer_square == pytest.approx(float(wanted[routed.held].square().sum()), rel=1e-4)


def test_chosen_values_are_better_than_plain_ones_and_fp8_than_both():
    _, _, errors = quantize(tokens_of_a_layer())
    assert errors.layer_chosen < 0.7 * errors.layer_plain
    assert errors.layer_fp8 < 0.3 * errors.layer_chosen
    assert all(fp8 < plain for fp8, plain in zip(errors.fp8[:-1], errors.plain[:-1], strict=True))


def test_fp8_is_measured_on_what_fp8_stores():
    routed = tokens_of_a_layer()
    _, _, errors = quantize(routed)
    stored = [tuple(dequantize_fp8(*quantize_fp8(m)) for m in pair) for pair in official()]
    apart = (layer_output(routed, stored) - layer_output(routed, official()))[routed.held]
    assert errors.layer_fp8 == pytest.approx(float(apart.square().sum()), rel=1e-3)


def test_an_expert_of_few_tokens_is_rounded_plainly_and_named():
    found, _, errors = quantize(tokens_of_a_layer())
    assert errors.few == [COUNT - 1]
    assert [made.plain for made in found] == [False] * (COUNT - 1) + [True]
    assert errors.tokens[-1] < FEW
    first, second = official()[-1]
    for made, plain in ((found[-1].gate_and_up, quantize_mxfp4(first)), (found[-1].down, quantize_mxfp4(second))):
        assert torch.equal(made[0], plain[0])
        assert torch.equal(made[1], plain[1])


@pytest.mark.parametrize("rows", [module._ROWS, 100])
def test_a_group_gives_what_one_by_one_gives(monkeypatch, rows):
    """As on a GPU: several matrices at once, and few tokens at a time."""
    one, out, _ = quantize(tokens_of_a_layer())
    monkeypatch.setattr(module, "CPU_GROUP", module.GPU_GROUP)
    monkeypatch.setattr(module, "_ROWS", rows)
    grouped, again, errors = quantize(tokens_of_a_layer())
    assert errors.few == [COUNT - 1]
    for a, b in zip(one, grouped, strict=True):
        for first, second in zip(a[3:], b[3:], strict=True):
            same = (dequantize_mxfp4(*first) - dequantize_mxfp4(*second)).norm() / dequantize_mxfp4(*first).norm()
            assert float(same) < 0.02  # sums in another order may round a value the other way
    assert float((out - again).norm() / out.norm()) < 0.02


def test_bfloat16_tokens_as_on_a_gpu():
    found, out, errors = quantize(tokens_of_a_layer(torch.bfloat16))
    assert out.dtype == torch.float32
    assert errors.layer_chosen < 0.7 * errors.layer_plain
    assert {made.gate_and_up[0].dtype for made in found} == {torch.uint8}


@pytest.mark.slow
def test_the_benchmark_says_time_memory_and_each_expert(capsys):
    assert bench_calibration.main(["--small", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "16 experts of 128 x 96, 20,000 tokens of 48 requests, CPU" in said
    assert "32 such layers:" in said
    rows = [line.split() for line in said.splitlines() if line[:6].strip().isdigit() and len(line.split()) == 5]
    assert [int(row[0]) for row in rows] == list(range(16))
    assert all(float(row[4]) < float(row[3]) < float(row[2]) for row in rows)
    means = next(line.split() for line in said.splitlines() if line.strip().startswith("mean"))
    assert float(means[2]) < 0.75 * float(means[1])
