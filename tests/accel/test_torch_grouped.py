"""Experts through torch's grouped products: the order of rows, tested with a loop in place of the product."""

from __future__ import annotations

import json

import pytest
import torch
from moe_samples import BF16, EXPERTS, TOPK, choices, error, filled
from small_model import noise

from hunyuan.accel.experts import torch_grouped
from scripts.benchmarks import bench_moe


def test_sorting_by_expert():
    index = torch.tensor([[4, 0], [0, 2], [4, 2], [5, 4]])
    order, ends = torch_grouped.sort_by_expert(index, 7)
    assert order.tolist() == [1, 2, 3, 5, 0, 4, 7, 6]
    assert ends.tolist() == [2, 2, 4, 4, 7, 8, 8]
    assert ends.dtype == torch.int32
    assert torch_grouped.inverse(order)[order].tolist() == list(range(8))


@pytest.mark.parametrize(("kind", "dtype", "limit"), [("bf16", torch.float32, 1e-6), ("bf16", BF16, 1e-2)])
@pytest.mark.parametrize("tokens", [1, 37])
def test_torch_backend_equals_eager(kind, dtype, limit, tokens):
    experts = filled(kind, dtype)
    x, weights, index = choices(tokens)
    index = noise(tokens, EXPERTS - 1).topk(TOPK).indices  # the last expert gets no token
    out = torch_grouped.TorchExperts(experts)(x.to(dtype), weights, index)
    assert out.dtype == dtype
    assert error(out, experts(x.float(), weights, index)) < limit
    assert torch.equal(out, torch_grouped.TorchExperts(experts)(x.to(dtype), weights, index))


def test_torch_backend_in_fp8():
    experts = filled("fp8")
    x, weights, index = choices(64)
    found = error(torch_grouped.TorchExperts(experts)(x, weights, index), experts(x.float(), weights, index))
    assert 1e-3 < found < 8e-2


def test_a_token_without_size_stays_zero():
    experts = filled("fp8")
    x, weights, index = choices(3)
    x[1] = 0
    assert torch_grouped.TorchExperts(experts)(x, weights, index)[1].abs().max() == 0


def test_bench_script_runs_on_the_cpu(tmp_path, capsys):
    out = tmp_path / "rows.json"
    assert bench_moe.main(["--device", "cpu", "--tokens", "3", "--repeats", "1", "--json", str(out)]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert {row["mode"]: row["repeats_exactly"] for row in rows} == dict.fromkeys(
        ("eager bf16", "torch bf16", "torch fp8"), True
    )
    assert all(row["error"] < 8e-2 for row in rows)
    assert bench_moe.HEAD in capsys.readouterr().out
