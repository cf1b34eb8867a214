"""The fast operations against the plain ones, Triton's kernels interpreted on the CPU; tests/gpu has the compiled ones.

Run by test_kernels.py as a process of its own with TRITON_INTERPRET=1: Triton decides when it is imported.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import torch
from humming_transformer import SMALL, filled_cache, humming_transformer, in_fp8
from small_model import model_config, noise, randomized
from small_transformer import prefilled, rope_of, small_transformer
from torch import Tensor, nn

from hunyuan.formats.modules import Fp8Linear
from hunyuan.formats.numbers import FP8
from hunyuan.generation.decoding import DecodeStep, TextRun
from hunyuan.generation.kv_cache import KVCache
from hunyuan.generation.sampling import Sampling, uniforms
from hunyuan.generation.text import TextPlan
from hunyuan.generation.workspace import plain_step
from hunyuan.model.embeddings import FinalLayer, PatchEmbed
from hunyuan.model.network import HunyuanImage3
from hunyuan.model.operations import PLAIN, HeadNorms, HeadShape, Operations, use_operations
from hunyuan.model.rope import positions_2d, rope_table
from hunyuan.model.transformer import Transformer
from scripts.support.route_replay import recorded_routes, replayed_routes

CPU, BF16 = torch.device("cpu"), torch.bfloat16
EARLY = "hunyuan.accel.kernels.rows" in sys.modules


@pytest.fixture(scope="module")
def fast() -> Operations:
    pytest.importorskip("triton")
    from hunyuan.accel.hopper import HopperOperations
    from hunyuan.accel.kernels.decode_attention import Cut

    return HopperOperations(attention="sdpa", cut=Cut(2, 16, 2))


@pytest.fixture(scope="module")
def fast_in_bf16(fast: Operations) -> Operations:
    return type(fast)(attention="sdpa", router_dtype=BF16)


@pytest.fixture
def company(fast: Operations) -> Iterator[Operations]:
    """For texts of up to four requests together."""
    with fast.for_a_few(4):
        yield fast
    assert fast.few == 1


@pytest.fixture(autouse=True)
def _loops_with_any_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter makes a loop's bounds from arrays of one element, which recent NumPy refuses."""
    from triton.runtime import interpreter

    original = interpreter._patch_lang_tensor

    def patch(tensor, scope):
        original(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patch)


def close(ours: Tensor, theirs: Tensor, tolerance: float = 1.2e-2) -> None:
    """Relative to the whole. The interpreter cuts bits off where a GPU rounds to bf16: up to 8e-3 each time."""
    assert ours.shape == theirs.shape
    theirs = theirs.double()
    assert (ours.double() - theirs).norm() <= tolerance * theirs.norm()


def bf16(*shape: int, seed: int = 0) -> Tensor:
    return noise(*shape, seed=seed).to(BF16)


def test_nothing_but_the_fast_set_defines_triton_kernels():
    assert not EARLY


# --- rows


@pytest.mark.parametrize("deltas", [0, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_add_and_norm(fast, deltas, dtype):
    x, weight = noise(2, 3, 96).to(dtype), (1 + 0.3 * noise(96, seed=9)).to(dtype)
    parts = [noise(2, 3, 96, seed=i).to(dtype) for i in range(1, deltas + 1)]
    total = sum((p.float() for p in parts), x.float()).to(dtype)
    if deltas:
        out, normed = fast.add_rms_norm(x, parts, weight, 1e-5)
        close(out, total, 1e-6 if dtype == torch.float32 else 8e-3)
        assert torch.equal(fast.add(x, parts), out)
    else:
        normed = fast.rms_norm(x, weight, 1e-5)
    close(normed, PLAIN.rms_norm(total, weight, 1e-5), 1e-6 if dtype == torch.float32 else 1.6e-2)
    assert normed.dtype == dtype


def test_expanded_rows_are_read_right(fast):
    x, delta = bf16(1, 3, 64).expand(2, -1, -1), bf16(2, 3, 64, seed=1)
    close(fast.add(x, [delta]), x + delta)


@pytest.mark.parametrize("width", [64, 1500])
def test_swiglu(fast, width):
    x = 3 * bf16(2, 2, 2 * width)
    close(fast.swiglu(x), PLAIN.swiglu(x.double()))


def test_quantized_rows(fast):
    from hunyuan.accel.kernels.rows import quantize

    x = torch.cat([100 * bf16(3, 200), torch.zeros(1, 200, dtype=BF16), 1e-3 * bf16(1, 200)])
    values, scales = quantize(x)
    expected = x.float().abs().amax(1, keepdim=True).clamp(min=1e-12) / 448
    torch.testing.assert_close(scales, expected)
    assert values.dtype == FP8
    assert values.float().abs().max() == 448
    close(values.float() * scales, x, 0.12)  # cut off, too


# --- router


@pytest.mark.parametrize(("tokens", "hidden", "experts", "topk"), [(70, 96, 64, 8), (3, 64, 8, 2), (1, 96, 64, 8)])
def test_router_chooses_as_in_fp32(fast, tokens, hidden, experts, topk):
    x, router = bf16(tokens, hidden), noise(experts, hidden, seed=1) / hidden**0.5
    weights, index = fast.route(x, router, topk)
    expected, chosen = (x.double() @ router.double().T).softmax(-1).topk(topk)
    expected /= expected.sum(-1, keepdim=True)
    assert index.dtype == torch.int32
    assert torch.equal(index.long(), chosen)
    torch.testing.assert_close(weights.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("tokens", "hidden", "experts", "topk"), [(70, 96, 64, 8), (3, 64, 8, 2), (1, 96, 64, 8)])
def test_router_in_bf16_is_torch_s(fast_in_bf16, tokens, hidden, experts, topk):
    """Eighths of small whole numbers: any order of summation gives the same sum, which bf16 cannot hold."""
    x = (torch.randint(-8, 9, (tokens, hidden), generator=torch.Generator().manual_seed(1)) / 8).to(BF16)
    router = torch.randint(-64, 65, (experts, hidden), generator=torch.Generator().manual_seed(2)) / 64
    router += 2**-12  # that bf16 does not see, but for the smallest
    weights, index = fast_in_bf16.route(x, router, topk)
    exact = x.double() @ router.bfloat16().double().T
    logits = nn.functional.linear(x, router.bfloat16())
    assert torch.equal(logits, exact.float().bfloat16())
    assert not torch.equal(logits.double(), exact)
    expected, chosen = logits.float().softmax(-1).sort(dim=-1, descending=True, stable=True)  # of equals the first
    expected, chosen = expected[:, :topk], chosen[:, :topk]
    assert torch.equal(index.long(), chosen)
    torch.testing.assert_close(weights, expected / expected.sum(-1, keepdim=True), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(weights, Operations(BF16).route(x, router, topk)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tokens", [1, 2])
def test_a_bf16_router_rounds_to_even(fast_in_bf16, tokens):
    router = torch.tensor([[1.0, 0], [1.0, 2**-8], [1.0, 2**-8 + 2**-15], [1.0, 3 * 2**-8], [1.0, 2**-6]])
    router = torch.cat([router, -router])  # the logits 1, 1, 1 + 2/256, 1 + 4/256, 1 + 4/256, and those of minus
    weights, index = fast_in_bf16.route(torch.ones(tokens, 2, dtype=BF16), router, 10)
    assert index[0].tolist() == [3, 4, 2, 0, 1, 5, 6, 7, 8, 9]
    assert weights[0, 5] == weights[0, 6] > weights[0, 7] > weights[0, 8] == weights[0, 9]


def test_three_16_bit_numbers_are_the_router_s_weight(fast):
    from hunyuan.accel.kernels.routing import split_weight

    router = noise(64, 256) / 64
    parts = split_weight(router)
    assert parts.dtype == BF16
    assert torch.equal(parts.double().sum(0).float(), router)


@pytest.mark.parametrize("tokens", [1, 2])
def test_of_equal_experts_the_first_is_taken(fast, tokens):
    weights, index = fast.route(torch.ones(tokens, 32, dtype=BF16), torch.ones(8, 32), 3)
    assert index.tolist() == [[0, 1, 2]] * tokens
    torch.testing.assert_close(weights, torch.full((tokens, 3), 1 / 3))


# --- q, k and v


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize(("rows", "tokens", "start"), [(1, 1, 5), (2, 5, 0), (2, 9, 3)])
@pytest.mark.parametrize("on_device", [False, True])
def test_qkv_lands_where_it_belongs(fast, norm, rows, tokens, start, on_device):
    shape = HeadShape(heads=6, kv_heads=2, head_dim=16)
    qkv = bf16(rows, tokens, (6 + 2 * 2) * 16)
    rope = rope_table(positions_2d(start, start + tokens, []), 16, 100.0)
    norms = HeadNorms(bf16(16, seed=1), bf16(16, seed=2), 1e-5) if norm else None
    config = model_config(num_attention_heads=6, num_key_value_heads=2, attention_head_dim=16)
    ours, theirs = (KVCache.allocate(config, rows, 13, BF16, CPU) for _ in range(2))
    for kv in (ours, theirs):
        for tensor in (*kv.keys, *kv.values):
            tensor.fill_(7)
    place = torch.tensor([start], dtype=torch.int32) if on_device else start
    q, keys, values = fast.rope_norm_store(qkv, shape, rope, norms, ours, 1, place)
    expected, *_ = PLAIN.rope_norm_store(qkv, shape, rope, norms, theirs, 1, start)
    close(q, expected)
    assert keys.data_ptr() == ours.keys[1].data_ptr()
    close(keys, theirs.keys[1])
    assert torch.equal(values, theirs.values[1])
    assert torch.equal(keys[:, start + tokens :], theirs.keys[1][:, start + tokens :])
    assert torch.equal(ours.keys[0], theirs.keys[0])


def test_a_row_of_the_buffers_may_lie_apart(fast):
    shape, config = HeadShape(4, 2, 16), model_config(num_key_value_heads=2, attention_head_dim=16)
    whole = KVCache.allocate(config, 2, 8, BF16, CPU)
    whole.keys[0].fill_(7)
    qkv, rope = bf16(1, 3, 8 * 16), rope_table(positions_2d(0, 3, []), 16, 100.0)
    fast.rope_norm_store(qkv, shape, rope, None, whole.select(1), 0, 2)
    assert (whole.keys[0][0] == 7).all()
    assert not (whole.keys[0][1, 2:5] == 7).all()


def test_too_many_tokens_for_the_buffers(fast):
    shape, config = HeadShape(4, 2, 16), model_config(num_key_value_heads=2, attention_head_dim=16)
    kv = KVCache.allocate(config, 1, 8, BF16, CPU)
    rope = rope_table(positions_2d(0, 3, []), 16, 100.0)
    with pytest.raises(ValueError, match="do not fit"):
        fast.rope_norm_store(bf16(1, 3, 8 * 16), shape, rope, None, kv, 0, 6)
    with pytest.raises(ValueError, match="key-value buffer"):
        fast.rope_norm_store(bf16(2, 3, 8 * 16), shape, rope, None, kv, 0, 0)


@pytest.mark.parametrize("laned", [False, True])
def test_rows_at_positions_of_their_own(fast, laned):
    """Each row's token as if the row were alone, to the last bit; and the plain form does the same."""
    shape, config = HeadShape(6, 2, 16), model_config(num_key_value_heads=2, attention_head_dim=16)
    qkv, places = bf16(3, 1, 10 * 16), [4, 0, 7]
    rope = tuple(table[places] for table in rope_table(positions_2d(0, 13, []), 16, 100.0))
    norms = HeadNorms(bf16(16, seed=1), bf16(16, seed=2), 1e-5)
    rows = [3, 0, 2] if laned else [0, 1, 2]
    lanes = torch.tensor(rows, dtype=torch.int32) if laned else None
    ours, theirs, alone = (KVCache.allocate(config, 4, 13, BF16, CPU) for _ in range(3))
    for tensor in (*ours.keys, *ours.values, *theirs.keys, *theirs.values, *alone.keys, *alone.values):
        tensor.fill_(7)
    if not laned:
        ours, theirs = ours.first(3), theirs.first(3)
    position = torch.tensor(places, dtype=torch.int32)
    q, keys, values = fast.rope_norm_store(qkv, shape, rope, norms, ours.laned(lanes), 1, position)
    expected, plain_keys, plain_values = PLAIN.rope_norm_store(
        qkv, shape, rope, norms, theirs.laned(lanes), 1, position
    )
    close(q, expected)
    close(keys, plain_keys)
    assert torch.equal(values, plain_values)
    for i, row in enumerate(rows):
        one = tuple(table[i : i + 1] for table in rope)
        single, *_ = fast.rope_norm_store(qkv[i : i + 1], shape, one, norms, alone.select(row), 1, position[i : i + 1])
        assert torch.equal(q[i : i + 1], single)
    assert torch.equal(keys, alone.keys[1][: len(keys)])
    with pytest.raises(ValueError, match="2 tokens a row"):
        fast.rope_norm_store(bf16(2, 2, 10 * 16), shape, rope, norms, ours.first(2), 1, position[:2])


# --- attention


@pytest.mark.parametrize(("rows", "heads", "kv_heads", "length"), [(1, 8, 2, 150), (2, 4, 4, 1), (1, 3, 1, 40)])
def test_decode_attention(fast, rows, heads, kv_heads, length):
    from hunyuan.accel.kernels.decode_attention import Cut, decode_attention

    q, keys, values = bf16(rows, 1, heads, 32), bf16(rows, 160, kv_heads, 32, seed=1), bf16(rows, 160, kv_heads, 32)
    position = torch.tensor([length - 1], dtype=torch.int32)
    keys[:, length:], values[:, length:] = float("nan"), float("nan")  # never read
    expected = PLAIN.decode_attention(q.float(), keys.float(), values.float(), position)
    out = decode_attention(q, keys, values, position, Cut(4, 16, 2))
    close(out, expected)
    assert torch.equal(out, decode_attention(q, keys, values, position, Cut(4, 16, 2)))
    close(fast.decode_attention(q, keys, values, position), expected)


def test_queries_at_positions_of_their_own_are_as_if_alone(fast):
    q, keys, values = bf16(3, 1, 8, 32), bf16(4, 160, 2, 32, seed=1), bf16(4, 160, 2, 32, seed=2)
    rows, places = [3, 0, 2], [150, 0, 41]
    lanes, position = (torch.tensor(values, dtype=torch.int32) for values in (rows, places))
    out = fast.decode_attention(q, keys, values, position, lanes)
    close(out, PLAIN.decode_attention(q.float(), keys.float(), values.float(), position, lanes))
    for i, row in enumerate(rows):
        part = slice(row, row + 1)
        alone = fast.decode_attention(q[i : i + 1], keys[part], values[part], position[i : i + 1])
        assert torch.equal(out[i : i + 1], alone)


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize(("rows", "tokens", "heads"), [(2, 150, 2), (1, 5, 3)])
def test_heads_in_fp8(fast, center, rows, tokens, heads):
    """A part of longer buffers, whose rows lie apart and whose rest is never read."""
    from hunyuan.accel.kernels.fp8_attention import quantize_heads
    from hunyuan.formats import fp8_attention as plain

    buffer = bf16(rows, 160, heads, 32) * torch.tensor([1.0, 30.0, 0.1])[:heads, None] + 5 * bf16(heads, 32, seed=1)
    buffer[:, :3], buffer[:, 3 + tokens :] = float("nan"), float("nan")
    x = buffer.to(BF16)[:, 3 : 3 + tokens]
    values, scales = quantize_heads(x, center)
    expected, expected_scales = plain.quantize_heads(x, center)
    torch.testing.assert_close(scales, expected_scales)
    assert (values.dtype, values.shape, values.is_contiguous()) == (FP8, x.shape, True)
    close(values.float(), expected.float(), 0.12)  # the interpreter cuts off, too
    assert values.float().abs().max() == 448
    again, again_scales = quantize_heads(x, center)
    assert torch.equal(again.view(torch.uint8), values.view(torch.uint8))
    assert torch.equal(again_scales, scales)


def test_heads_that_lie_otherwise_are_refused(fast):
    from hunyuan.accel.kernels.fp8_attention import quantize_heads

    with pytest.raises(ValueError, match="strides"):
        quantize_heads(bf16(1, 4, 8, 32).transpose(1, 2), center=False)
    zeros, scales = quantize_heads(torch.zeros(1, 4, 2, 32, dtype=BF16), center=True)
    assert (zeros.float() == 0).all()
    assert (scales > 0).all()


def test_a_denoising_step_in_fp8(monkeypatch, fast):
    """Our kernels around a stand-in for FlashAttention 3, which gets e4m3 and a scale per head."""
    from hunyuan.accel.kernels import fp8_attention
    from hunyuan.model.attention import Segment, attend

    def run(q, k, v, out, causal, scales):
        assert not causal
        assert q.dtype == k.dtype == v.dtype == FP8
        one = Segment(len(k) - len(q), len(k), causal=False)
        q, k, v = (t.float() * s[:, None] for t, s in zip((q, k, v), scales, strict=True))
        out.copy_(attend(q[None], k[None], v[None], [one])[0])

    monkeypatch.setattr(fp8_attention, "flashinfer_run", lambda kind: run if kind == FP8 else None)
    q, keys, values = bf16(2, 20, 4, 32), bf16(2, 120, 2, 32, seed=1) + 20 * bf16(2, 32, seed=3), bf16(2, 120, 2, 32)
    keys[:, 110:] = float("nan")
    segments = [Segment(90, 92, causal=True), Segment(92, 110, causal=False)]
    exact = attend(q.float(), keys.float(), values.float(), segments)
    out = torch.empty_like(q[:, 2:])
    fp8_attention.flashinfer_block()(q[:, 2:], keys[:, :110], values[:, :110], out)
    close(out, exact[:, 2:], 0.2)  # twice as far as rounded
    plain = type(fast)(attention="sdpa", fp8_attention=True)
    close(plain.attend(q, keys, values, segments), exact, 0.08)
    assert not torch.equal(plain.attend(q, keys, values, segments), fast.attend(q, keys, values, segments))
    assert (plain.attention, fast.attention) == ("sdpa, fp8", "sdpa")


# --- linear


@pytest.mark.parametrize("kind", ["fp8", "bf16", "fp32"])
def test_a_few_vectors_are_each_as_if_alone(kind):
    from hunyuan.accel.kernels.gemv import gemv

    x, outputs = bf16(5, 1, 1100), 10
    layer = fp8_layer(outputs, 1100)
    weight = layer.weight if kind == "fp8" else noise(outputs, 1100).to(BF16 if kind == "bf16" else torch.float32)
    scale = layer.weight_scale if kind == "fp8" else None
    out = gemv(x, weight, scale, torch.float32)
    assert out.shape == (5, 1, outputs)
    for i in range(len(x)):
        assert torch.equal(out[i : i + 1], gemv(x[i : i + 1], weight, scale, torch.float32))


def test_up_to_a_few_tokens_the_router_chooses_for_each_as_if_alone(company):
    x, router = bf16(4, 96), noise(64, 96, seed=1)
    weights, index = company.route(x, router, 8)
    for i in range(len(x)):
        alone = company.route(x[i : i + 1], router, 8)
        assert torch.equal(weights[i : i + 1], alone[0])
        assert torch.equal(index[i : i + 1], alone[1])


@pytest.mark.parametrize(("outputs", "inputs"), [(10, 64), (5, 1100)])
@pytest.mark.parametrize("dtype", [BF16, torch.float32])
def test_one_vector(outputs, inputs, dtype):
    from hunyuan.accel.kernels.gemv import gemv

    x, weight = bf16(1, 1, inputs), noise(outputs, inputs, seed=1).to(dtype)
    out = gemv(x, weight, None, torch.float32)
    torch.testing.assert_close(out, x.float() @ weight.float().T, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("outputs", "inputs"), [(10, 64), (5, 1100)])
@pytest.mark.parametrize("kind", [FP8, BF16, torch.float32])
def test_a_projection_is_the_gemv(outputs, inputs, kind):
    from hunyuan.accel.kernels.gemv import gemv
    from hunyuan.accel.kernels.projection import Rows, project

    x, weight = bf16(1, 1, inputs), noise(outputs, inputs, seed=1).to(kind)
    scale = noise(outputs, seed=2) if kind == FP8 else None
    expected = gemv(x, weight, scale, torch.float32)
    for rows in (None, Rows(1), Rows(8, 8)):
        out = project(x, weight, scale, out_dtype=torch.float32, rows=rows)
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-4)
    assert project(x, weight, scale).dtype == BF16


@pytest.mark.parametrize("kind", [FP8, BF16])
@pytest.mark.parametrize("gated", [True, False])
def test_a_projection_with_what_stands_around_it(kind, gated):
    from hunyuan.accel.kernels.projection import Norm, Rows, project

    x, weight, gain = 3 * bf16(1, 1, 96), (3 * noise(24, 96, seed=1)).to(kind), 1 + 0.3 * bf16(96, seed=2)
    scale = 0.1 + noise(24, seed=3).abs() if kind == FP8 else None
    residual, kept = bf16(12 if gated else 24, seed=4), torch.full((1, 1, 96), float("nan"), dtype=BF16)
    matrix = weight.float() * (1 if scale is None else scale[:, None])
    for rows in (None, Rows(8, 2)):
        out = project(
            x, weight, scale, norm=Norm(gain, 1e-5, kept.fill_(float("nan"))), gated=gated, residual=residual,
            out_dtype=torch.float32, rows=rows,
        )  # fmt: skip
        close(kept, PLAIN.rms_norm(x, gain, 1e-5), 1.6e-2)
        expected = nn.functional.linear(kept.float(), matrix)
        expected = (PLAIN.swiglu(expected) if gated else expected) + residual.float()
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)


def test_one_vector_through_an_fp8_layer_keeps_its_precision(fast):
    layer = fp8_layer(7, 96)
    x = bf16(1, 1, 96)
    close(fast.linear(x, layer), layer(x.float()))
    plain = nn.Linear(96, 6, bias=False, dtype=BF16).requires_grad_(False)
    close(fast.linear(x, plain), plain(x))
    close(fast.linear(bf16(2, 3, 96), plain), plain(bf16(2, 3, 96)), 1e-4)
    with pytest.raises(TypeError, match="no fast form"):
        fast.linear(x, nn.Linear(96, 6))


def fp8_layer(outputs: int, inputs: int) -> Fp8Linear:
    layer = Fp8Linear(inputs, outputs)
    layer.weight.data = (100 * noise(outputs, inputs, seed=1)).to(FP8)
    layer.weight_scale.data = 0.01 + noise(outputs, seed=2).abs() / 100
    return layer


def test_many_rows_through_an_fp8_layer(fast):
    layer, x = fp8_layer(32, 96), bf16(2, 9, 96)
    try:
        out = fast.linear(x, layer)
    except (RuntimeError, NotImplementedError) as error:
        pytest.skip(f"no scaled product on this CPU: {error}")
    assert out.dtype == BF16
    close(out, layer(x.float()), 0.12)


# --- all together


def test_a_bf16_transformer_is_the_same_with_fast_operations(fast):
    reference, rows, tokens = small_transformer(), 2, 9
    model = small_transformer().bfloat16()
    for layer in model.layers:
        layer.mlp.gate.wg.float()
    for ours, theirs in zip(reference.parameters(), model.parameters(), strict=True):
        ours.data = theirs.data.float()
    use_operations(model, fast)
    own = Operations()
    use_operations(reference, own)
    last = torch.tensor([tokens], dtype=torch.int32)
    with recorded_routes(own) as routes:
        kv, x = prefilled(reference, rows, tokens)
        expected = reference.decode(x, rope_of(tokens, tokens + 1), kv, last)
    with replayed_routes(fast, routes):
        kv, x = prefilled(model, rows, tokens)
        out = model.decode(x, rope_of(tokens, tokens + 1), kv, last)
    close(out, expected, 4e-2)


def test_tokens_of_several_requests_are_each_as_if_alone(company):
    """Three of four rows, at positions of their own: the same bits as one row at a time."""
    model, rows, places = small_transformer().bfloat16(), [2, 0, 3], [9, 4, 7]
    for layer in model.layers:
        layer.mlp.gate.wg.float()
    use_operations(model, company)
    kv, _ = prefilled(model, 4, 9)
    for tensor in kv.keys + kv.values:
        tensor[:, 9:] = 0
    x, position = bf16(3, 1, model.wte.weight.shape[1]), torch.tensor(places, dtype=torch.int32)
    alone = []
    for i, row in enumerate(rows):
        one = kv.select(row)
        alone.append(model.decode(x[i : i + 1], rope_of(places[i], places[i] + 1), one, position[i : i + 1]))
    stored = [tensor.clone() for tensor in kv.keys + kv.values]
    rope = tuple(torch.cat(tables) for tables in zip(*(rope_of(at, at + 1) for at in places), strict=True))
    out = model.decode(x, rope, kv.laned(torch.tensor(rows, dtype=torch.int32)), position)
    assert torch.equal(out, torch.cat(alone))
    assert all(torch.equal(now, then) for now, then in zip(kv.keys + kv.values, stored, strict=True))


@pytest.mark.parametrize("dense", ["fp8", "bf16"])
def test_a_token_goes_the_plain_way(fast, dense):
    from hunyuan.accel.experts.streamed import Units
    from hunyuan.accel.fused_decoding import Cuts, FusedDecoding
    from hunyuan.accel.kernels.projection import Rows

    names = ("qkv", "o", "router", "gate_and_up", "down")
    cuts = Cuts(dict.fromkeys(names, Rows(64)), (Units(64, 4), Units(64, 4)))  # few programs: they are interpreted
    model, x, last = humming_transformer(SMALL, dense), bf16(1, 1, 128), 5
    rope = rope_table(positions_2d(last, last + 1, []), 32, 100.0)
    ours, theirs, position = filled_cache(SMALL, 8), filled_cache(SMALL, 8), torch.tensor([last], dtype=torch.int32)
    use_operations(model, Operations())
    expected = model.decode(x, rope, theirs, position)
    out = FusedDecoding(model, fast, cuts)(x, rope, ours, position)
    close(out, expected, 3e-2)
    with pytest.raises(ValueError, match="one token of one row"):
        FusedDecoding(model, fast, cuts)(x.expand(2, 1, -1), rope, ours, position)
    for mine, other in zip(ours.keys + ours.values, theirs.keys + theirs.values, strict=True):
        close(mine[:, : last + 1], other[:, : last + 1], 3e-2)
        assert torch.equal(mine[:, last + 1 :], other[:, last + 1 :])


@pytest.mark.parametrize("dense", ["fp8", "bf16"])
def test_a_fused_step_has_the_plain_one_s_logits(fast, dense):
    from hunyuan.accel.fused_decoding import FusedStep, fused_steps

    network = randomized(HunyuanImage3(SMALL)).bfloat16()
    network.model = humming_transformer(SMALL, dense)
    if dense == "fp8":
        network.lm_head = in_fp8(network.lm_head)
    token, position = torch.tensor([9]), torch.tensor([5], dtype=torch.int32)
    ours, theirs = filled_cache(SMALL, 8), filled_cache(SMALL, 8)
    use_operations(network, fast)
    step = fused_steps(network)(ours)
    assert isinstance(step, FusedStep)
    assert step.capacity == 8
    logits = step.forward(token, position)
    use_operations(network, Operations())
    close(logits, plain_step(network, theirs).forward(token, position), 3e-2)
    assert logits.dtype == torch.float32
    close(ours.keys[1][:, :6], theirs.keys[1][:, :6], 3e-2)
    network.lm_head = nn.Linear(128, 8)
    with pytest.raises(TypeError, match="no fast form of Linear"):
        fused_steps(network)


def test_only_mxfp4_experts_with_a_shared_mlp(fast):
    from hunyuan.accel.fused_decoding import FusedDecoding

    with pytest.raises(TypeError, match="layer 0 has no MXFP4 experts"):
        FusedDecoding(randomized(Transformer(SMALL)), fast)
    model = humming_transformer(SMALL, "bf16")
    model.layers[0].self_attn.o_proj = nn.Linear(128, 128)
    with pytest.raises(TypeError, match="no fast form of Linear"):
        FusedDecoding(model, fast)
    model = humming_transformer(SMALL, "bf16")
    model.layers[1].mlp.shared_mlp = None
    with pytest.raises(TypeError, match="layer 1 is no mixture"):
        FusedDecoding(model, fast)


@pytest.mark.parametrize("sampling", [Sampling(False), Sampling(True, 0.6, 40, 0.95), Sampling(True, 1.3, 0, 1.0)])
@pytest.mark.parametrize("ties", [False, True])
def test_a_step_chooses_the_plain_one_s_tokens(sampling, ties):
    from hunyuan.accel.kernels.choosing import FusedStep

    def never(_token: Tensor, _position: Tensor) -> Tensor:
        raise NotImplementedError

    vocab, most = 300, 24
    plan = TextPlan(((7, (8, 9)), (11, (12, 20))), frozenset(), 20, (30, 31, 32), 11)
    uniform = uniforms(torch.Generator().manual_seed(4), most)
    steps = [kind(never, vocab, most, CPU) for kind in (FusedStep, DecodeStep)]
    for step in steps:
        step.fill(TextRun(plan, sampling, uniform, 7, 0))
    for number in range(most):
        logits = 3 * noise(vocab, seed=number)
        logits[7] += 6
        logits[11] += 60 * (number == 8)
        logits = logits.round() if ties else logits
        for step in steps:
            step.choose(logits)
        fused, plain = steps
        for name in ("token", "count", "at", "run_after", "tokens"):
            assert torch.equal(getattr(fused, name), getattr(plain, name)), (number, name)
    assert {8, 9, 12, 20} <= set(plain.tokens.tolist())


def test_logits_are_fp32(fast):
    head, norm = nn.Linear(64, 40, bias=False, dtype=BF16).requires_grad_(False), torch.ones(64, dtype=BF16)
    x = bf16(64)
    out = fast.logits(x, norm, 1e-5, head)
    assert (out.dtype, out.shape) == (torch.float32, (40,))
    close(out, PLAIN.logits(x, norm, 1e-5, head))


def test_patch_layers_give_the_same_with_channels_last(fast):
    embed, final = randomized(PatchEmbed(4, 32, 64)), randomized(FinalLayer(64, 32, 4))
    latents, emb = noise(2, 4, 6, 8), noise(2, 64)
    tokens = embed(latents, emb)
    velocity = final(tokens, emb, 6, 8)
    fast.prepare(nn.ModuleList([embed, final]))
    assert embed.model[0].weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(embed(latents, emb), tokens, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(final(tokens, emb, 6, 8), velocity, rtol=1e-4, atol=1e-4)
