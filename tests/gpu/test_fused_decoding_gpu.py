"""A token through the fused layers, compiled: against the plain way, and the same bits however launches overlap;
and the fused choice of a token."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from humming_transformer import filled_cache, humming_transformer
from small_model import model_config, raw_config
from torch import Tensor

from hunyuan.generation.decoding import DecodeStep, TextRun
from hunyuan.generation.sampling import Sampling, uniforms
from hunyuan.generation.text import TextPlan
from hunyuan.model.operations import Operations, use_operations
from hunyuan.model.rope import positions_2d, rope_table

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU, and torch sees none"),
]
LAYERS, HIDDEN, LENGTH = 6, 1024, 700
CONFIG = model_config(
    hidden_size=HIDDEN, num_attention_heads=8, num_key_value_heads=2, attention_head_dim=128, num_hidden_layers=LAYERS,
    num_experts=16, moe_topk=[4] * LAYERS, moe_intermediate_size=[768] * LAYERS, num_shared_expert=[1] * LAYERS,
    vit_aligner={**raw_config()["vit_aligner"], "n_embed": HIDDEN},
)  # fmt: skip


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    pytest.importorskip("triton")
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("dense", ["fp8", "bf16"])
@pytest.mark.parametrize("splits", [1, 2, 4, None])
def test_overlapping_launches_give_the_plain_result_and_the_same_bits(dense: str, splits: int | None) -> None:
    """Cut in several ways; None: as the engine cuts them."""
    from hunyuan.accel.experts.streamed import Units
    from hunyuan.accel.fused_decoding import FP8_CUTS, Cuts, FusedDecoding
    from hunyuan.accel.hopper import HopperOperations

    engines = FP8_CUTS if dense == "fp8" else Cuts({}, FP8_CUTS.experts)
    cuts = engines if splits is None else Cuts({}, (Units(4, 4), Units(4, 4, splits)))
    fast = HopperOperations(attention="sdpa")
    model, kv = humming_transformer(CONFIG, dense, "cuda"), filled_cache(CONFIG, LENGTH + 8, "cuda")
    generator = torch.Generator("cuda").manual_seed(1)
    position = torch.tensor([LENGTH], dtype=torch.int32, device="cuda")
    rope = rope_table(positions_2d(LENGTH, LENGTH + 1, []).cuda(), 128, 10000.0)
    x = torch.zeros(1, 1, HIDDEN, dtype=torch.bfloat16, device="cuda")

    def draw() -> Tensor:
        return x.copy_(torch.randn(x.shape, device="cuda", generator=generator))

    one_by_one, overlapping = (FusedDecoding(model, fast, cuts, pdl) for pdl in (False, True))
    overlapping(draw(), rope, kv, position)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = overlapping(x, rope, kv, position)
    for _ in range(50):
        draw()
        graph.replay()
        assert torch.equal(out, one_by_one(x, rope, kv, position))
    use_operations(model, Operations())
    expected = model.decode(x, rope, kv, position).double()
    assert (out.double() - expected).norm() < 2e-2 * expected.norm()


@pytest.mark.parametrize("sampling", [Sampling(False), Sampling(True, 0.6, 1024, 0.95), Sampling(True, 1.3, 1000, 1.0)])
def test_a_fused_step_chooses_the_plain_one_s_tokens(sampling: Sampling) -> None:
    from hunyuan.accel.kernels.choosing import FusedStep

    def never(_token: Tensor, _position: Tensor) -> Tensor:
        raise NotImplementedError

    vocab, most, device = 133120, 200, torch.device("cuda")
    plan = TextPlan(((7, (8, 9)), (11, (12, 20))), frozenset(), 20, (30, 31, 32), 11)
    uniform = uniforms(torch.Generator(device).manual_seed(4), most)
    fused, plain = (kind(never, vocab, most, device) for kind in (FusedStep, DecodeStep))
    for step in (fused, plain):
        step.fill(TextRun(plan, sampling, uniform, 7, 0))
    generator = torch.Generator(device).manual_seed(5)
    for number in range(most):
        logits = 3 * torch.randn(vocab, device=device, generator=generator)
        logits[11] += 60 * (number == 8)
        for step in (fused, plain):
            step.choose(logits)
    assert torch.equal(fused.tokens, plain.tokens)
    assert torch.equal(fused.run_after, plain.run_after)
    assert {8, 9, 12, 20} <= set(plain.tokens.tolist())
