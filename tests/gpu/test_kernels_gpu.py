"""The compiled fast operations against the eager ones at the model's widths. Run by scripts/checks/test_gpu.sh."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import pytest
import torch
from small_model import model_config, randomized, raw_config
from torch import Tensor, nn

from hunyuan.accel.flashinfer_modules import BUILT_MODULES, missing_modules
from hunyuan.formats import fp8_attention
from hunyuan.formats.modules import Fp8Linear
from hunyuan.formats.numbers import FP8
from hunyuan.generation.kv_cache import KVCache
from hunyuan.model.attention import Segment, split_segments
from hunyuan.model.operations import PLAIN, HeadNorms, HeadShape, Operations, use_operations
from hunyuan.model.rope import positions_2d, rope_table
from hunyuan.model.transformer import Transformer
from scripts.support.route_replay import recorded_routes, replayed_routes

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU, and torch sees none"),
]
BF16, HIDDEN, DIM = torch.bfloat16, 4096, 128
ATTENTIONS = ["sdpa", "fa3"] if importlib.util.find_spec("flashinfer") else ["sdpa"]
WIDE = {
    "hidden_size": HIDDEN, "num_attention_heads": 32, "num_key_value_heads": 8, "attention_head_dim": DIM,
    "num_hidden_layers": 2, "num_experts": 8, "moe_topk": [2, 2], "moe_intermediate_size": [512, 512],
    "num_shared_expert": [1, 1], "vit_aligner": {**raw_config()["vit_aligner"], "n_embed": HIDDEN},
}  # fmt: skip


@pytest.fixture(scope="module", params=ATTENTIONS)
def fast(request: pytest.FixtureRequest) -> Operations:
    from hunyuan.accel.hopper import HopperOperations

    return HopperOperations(attention=request.param)


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


def draw(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.randn(shape, device="cuda").to(dtype)


def error(ours: Tensor, exact: Tensor) -> float:
    assert ours.shape == exact.shape
    return float((ours.double() - exact.double()).norm() / exact.double().norm())


@pytest.mark.parametrize("tokens", [1, 3, 1000])
def test_rows(fast: Operations, tokens: int) -> None:
    x, a, b, w = draw(2, tokens, HIDDEN), draw(2, tokens, HIDDEN), draw(2, tokens, HIDDEN), draw(HIDDEN)
    for deltas in ([a], [a, b]):
        out, normed = fast.add_rms_norm(x, deltas, w, 1e-5)
        assert error(out, x.float() + sum(d.float() for d in deltas)) < 3e-3
        assert error(normed, PLAIN.rms_norm(out.float(), w.float(), 1e-5)) < 4e-3
        assert torch.equal(fast.add(x, deltas), out)
    assert error(fast.rms_norm(x, w, 1e-5), PLAIN.rms_norm(x, w, 1e-5)) < 1e-3
    both = draw(2, tokens, 2 * 3072)
    assert error(fast.swiglu(both), PLAIN.swiglu(both.float())) < 3e-3


@pytest.mark.parametrize("tokens", [1, 2, 63, 8240])
def test_router(fast: Operations, tokens: int) -> None:
    x, w = draw(tokens, HIDDEN), draw(64, HIDDEN, dtype=torch.float32) / HIDDEN**0.5
    weights, index = fast.route(x, w, 8)
    logits = x.double() @ w.double().T
    expected, chosen = logits.softmax(-1).topk(8)
    same = (index.long() == chosen).all(-1)
    assert same.float().mean() > 0.999
    expected = expected / expected.sum(-1, keepdim=True)
    torch.testing.assert_close(weights[same].double(), expected[same], rtol=1e-4, atol=1e-6)
    # Where the choice differs, the logits are as good as equal.
    worst = logits.gather(1, index.long()).amin(-1) - logits.gather(1, chosen).amin(-1)
    assert worst.abs().max() < 1e-4


@pytest.mark.parametrize("tokens", [1, 2, 63, 8240])
def test_router_in_bf16(fast: Operations, tokens: int) -> None:
    """Against autocast, whose product PyTorch's library sums in another order: a logit may round to its neighbour."""
    own = type(fast)(attention="sdpa", router_dtype=BF16)
    x, w = draw(tokens, HIDDEN), draw(64, HIDDEN, dtype=torch.float32) / HIDDEN**0.5
    weights, index = own.route(x, w, 8)
    with torch.autocast("cuda", BF16):
        logits = nn.functional.linear(x, w).float()
    expected, chosen = logits.softmax(-1).sort(dim=-1, descending=True, stable=True)
    expected, chosen = expected[:, :8], chosen[:, :8]
    same = (index.long() == chosen).all(-1)
    assert same.float().mean() > 0.95
    expected = expected / expected.sum(-1, keepdim=True)
    torch.testing.assert_close(weights[same], expected[same], rtol=2e-2, atol=1e-3)
    worst = logits.gather(1, index.long()).amin(-1) - logits.gather(1, chosen).amin(-1)
    assert worst.abs().max() <= 2**-5  # two steps of bf16 between 2 and 4


@pytest.mark.parametrize(("rows", "tokens", "start"), [(2, 700, 0), (2, 4120, 5000), (1, 1, 6999), (1, 17, 1)])
def test_qkv(fast: Operations, rows: int, tokens: int, start: int) -> None:
    config, shape = model_config(**WIDE), HeadShape(32, 8, DIM)
    qkv, norms = draw(rows, tokens, 48 * DIM), HeadNorms(draw(DIM), draw(DIM), 1e-5)
    rope = rope_table(positions_2d(start, start + tokens, []).cuda(), DIM, 10000.0)
    device = torch.device("cuda")
    ours, theirs = (KVCache.allocate(config, rows, 9200, d, device) for d in (BF16, torch.float32))
    wide = HeadNorms(norms.query.float(), norms.key.float(), 1e-5)
    expected, *_ = PLAIN.rope_norm_store(qkv.float(), shape, rope, wide, theirs, 1, start)
    for place in (start, torch.tensor([start], dtype=torch.int32, device="cuda")):
        ours.keys[1].zero_(), ours.values[1].zero_()
        q, keys, values = fast.rope_norm_store(qkv, shape, rope, norms, ours, 1, place)
        assert error(q, expected) < 3e-3
        span = slice(start, start + tokens)
        assert error(keys[:, span], theirs.keys[1][:, span]) < 3e-3
        assert torch.equal(values[:, span].float(), theirs.values[1][:, span])
        assert not keys[:, :start].any()
        assert not keys[:, start + tokens :].any()


@pytest.mark.parametrize("segments", [split_segments(0, 900, [(100, 356)]), [Segment(1500, 2524, False)],
                                      [Segment(300, 1001, True)], [Segment(77, 78, True)]])  # fmt: skip
def test_segments(fast: Operations, segments: list[Segment]) -> None:
    tokens, stop = segments[-1].stop - segments[0].start, segments[-1].stop
    q, keys, values = draw(2, tokens, 32, DIM), draw(2, 3000, 8, DIM), draw(2, 3000, 8, DIM)
    keys[:, stop:] = float("nan")
    out = fast.attend(q, keys, values, segments)
    assert error(out, PLAIN.attend(q.float(), keys.float(), values.float(), segments)) < 8e-3
    assert torch.equal(out, fast.attend(q, keys, values, segments))


@pytest.mark.parametrize(("tokens", "heads", "center"), [(4123, 32, False), (11000, 8, True), (5, 8, True)])
def test_heads_in_fp8(tokens: int, heads: int, center: bool) -> None:
    """The same scales and values as in plain form, but where a quotient lies between two of them."""
    from hunyuan.accel.kernels.fp8_attention import quantize_heads

    whole = draw(2, 11100, heads, DIM) + 8 * draw(1, 1, heads, DIM)
    whole[:, 2 + tokens :] = float("nan")
    x = whole[:, 2 : 2 + tokens]
    values, scales = quantize_heads(x, center)
    expected, expected_scales = fp8_attention.quantize_heads(x, center)
    torch.testing.assert_close(scales, expected_scales)
    assert (values.view(torch.uint8) == expected.view(torch.uint8)).float().mean() > 0.995
    assert error(values.float(), expected.float()) < 1e-2
    again, again_scales = quantize_heads(x, center)
    assert torch.equal(again.view(torch.uint8), values.view(torch.uint8))
    assert torch.equal(again_scales, scales)


@pytest.mark.skipif(bool(missing_modules(BUILT_MODULES)), reason="FlashInfer's attention in fp8 is not compiled")
@pytest.mark.parametrize(("rows", "tokens", "stop"), [(2, 1025, 2524), (1, 4097, 11003), (2, 256, 300)])
def test_a_denoising_step_in_fp8(rows: int, tokens: int, stop: int) -> None:
    """FlashAttention 3 takes the softmax's weights to fp8 block by block, the plain form at once: not the same bits."""
    from hunyuan.accel.hopper import HopperOperations

    fast = HopperOperations(fp8_attention=True)
    q, keys, values = draw(rows, tokens + 2, 32, DIM), draw(rows, 11100, 8, DIM), draw(rows, 11100, 8, DIM)
    keys += 8 * draw(1, 1, 8, DIM)
    keys[:, stop:], values[:, stop:] = float("nan"), float("nan")
    segments = [Segment(stop - tokens - 2, stop - tokens, True), Segment(stop - tokens, stop, False)]
    out = fast.attend(q, keys, values, segments)
    exact = PLAIN.attend(q.float(), keys.float(), values.float(), segments)
    plain = fp8_attention.Fp8AttentionOperations().attend(q.float(), keys.float(), values.float(), segments)
    assert error(out[:, :2], exact[:, :2]) < 8e-3
    assert error(plain[:, 2:], exact[:, 2:]) < 8e-2
    assert error(out[:, 2:], exact[:, 2:]) < 8e-2
    assert error(out[:, 2:], plain[:, 2:]) < 5e-2
    assert torch.equal(out, fast.attend(q, keys, values, segments))


@pytest.mark.parametrize("rows", [1, 2])
def test_decode_attention_in_a_graph(fast: Operations, rows: int) -> None:
    q, keys, values = draw(rows, 1, 32, DIM), draw(rows, 22800, 8, DIM), draw(rows, 22800, 8, DIM)
    position = torch.zeros(1, dtype=torch.int32, device="cuda")
    fast.decode_attention(q, keys, values, position)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = fast.decode_attention(q, keys, values, position)
    for last in (0, 1, 31, 63, 64, 6999, 22799):
        position.fill_(last)
        graph.replay()
        assert error(out, PLAIN.decode_attention(q.float(), keys.float(), values.float(), position)) < 8e-3
        first = out.clone()
        graph.replay()
        assert torch.equal(first, out)


def fp8_layer(outputs: int, inputs: int) -> Fp8Linear:
    layer, weight = Fp8Linear(inputs, outputs).cuda(), draw(outputs, inputs).float() / inputs**0.5
    layer.weight_scale.data = weight.abs().amax(1) / 448
    layer.weight.data = (weight / layer.weight_scale[:, None]).to(FP8)
    return layer


@pytest.mark.parametrize(("outputs", "inputs"), [(6144, 4096), (4096, 3072), (1001, 4096)])
@pytest.mark.parametrize("tokens", [1, 2, 17, 4120])
def test_linear(fast: Operations, tokens: int, outputs: int, inputs: int) -> None:
    x, plain = draw(1, tokens, inputs), nn.Linear(inputs, outputs, bias=False, device="cuda", dtype=BF16)
    assert error(fast.linear(x, plain), x.float() @ plain.weight.float().T) < 4e-3
    if outputs % 16:
        return  # tensor cores take fp8 in multiples of 16
    layer = fp8_layer(outputs, inputs)
    out = fast.linear(x, layer)
    assert error(out, x.float() @ layer.dequantized().T) < (4e-3 if tokens == 1 else 4e-2)
    assert torch.equal(out, fast.linear(x, layer))


def test_logits(fast: Operations) -> None:
    x, w, head = draw(HIDDEN), draw(HIDDEN), nn.Linear(HIDDEN, 133120, bias=False, device="cuda", dtype=BF16)
    normed = PLAIN.rms_norm(x.float(), w.float(), 1e-5)
    out = fast.logits(x, w, 1e-5, head)
    assert out.dtype == torch.float32
    assert error(out, normed @ head.weight.float().T) < 5e-3


def transformers(fast: Operations, own: Operations) -> tuple[Transformer, Transformer]:
    """The same weights in bf16, computed with `fast`, and in fp32, computed with `own`."""
    config = model_config(**WIDE)
    model, reference = (randomized(Transformer(config), seed=3).cuda() for _ in range(2))
    for layer in (*model.layers, *reference.layers):
        layer.mlp.experts.down_proj.mul_(0.02)  # from 1/4: a layer must not drown the stream
        layer.mlp.experts.gate_and_up_proj.mul_(0.05)
    model = model.bfloat16()
    for layer, theirs in zip(model.layers, reference.layers, strict=True):
        layer.mlp.gate.wg.float().weight.data.copy_(theirs.mlp.gate.wg.weight)
    routers = {id(layer.mlp.gate.wg.weight) for layer in reference.layers}
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        if id(theirs) not in routers:
            theirs.data.copy_(ours.data)
    use_operations(model, fast)
    use_operations(reference, own)
    return model, reference


def test_two_layers_against_fp32(fast: Operations) -> None:
    """Prompt with an image, an image block of two rows and one decoded token, the same experts for both."""
    own, tokens, blocks = Operations(), 1300, [(100, 356)]
    model, reference = transformers(fast, own)
    inputs = [draw(2, n, HIDDEN) for n in (tokens, 256, 1)]
    place = torch.tensor([tokens + 256], dtype=torch.int32, device="cuda")

    def run(network: Transformer, dtype: torch.dtype) -> list[Tensor]:
        kv = KVCache.allocate(model_config(**WIDE), 2, 2000, dtype, torch.device("cuda"))
        x = [t.to(dtype) for t in inputs]

        def rope(start: int, stop: int) -> tuple[Tensor, Tensor]:
            return rope_table(positions_2d(start, stop, []).cuda(), DIM, 10000.0)

        image = [Segment(tokens, tokens + 256, False)]
        return [
            network(x[0], rope(0, tokens), kv, split_segments(0, tokens, blocks)),
            network(x[1], rope(tokens, tokens + 256), kv, image),
            network.decode(x[2], rope(tokens + 256, tokens + 257), kv, place),
        ]

    with recorded_routes(own) as routes:
        expected = run(reference, torch.float32)
    with replayed_routes(fast, routes):
        out = run(model, BF16)
    assert [error(o, e) < 1e-2 for o, e in zip(out, expected, strict=True)] == [True] * 3
